"""What commands share about signatures: whom to believe, and what a signature says, for people.

Rules:
  * `--trust` or the setting RETAILINFER_TRUST says whom to believe. Without either a release is read as unsigned, and the
    command says that nothing was verified.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Any

import msgspec

from retailinfer.errors import ConfigError
from retailinfer.release.bundle import SIGNATURE, STATE_VARIABLE, TRUST_VARIABLE, Bundle
from retailinfer.release.envelope import MAX_ENVELOPE_BYTES, decode_envelope
from retailinfer.release.statements import ReleaseStatement, decode_statement
from retailinfer.release.trust import Rules, decode_trust
from retailinfer.release.trust_files import SUCCESSOR

if TYPE_CHECKING:
    from retailinfer.release.trust_files import Trust

__all__ = ["add_trust", "password_of", "put", "rules_of", "signature_facts", "signature_text", "trust_of"]

PASSWORD_VARIABLE = "RETAILINFER_KEY_PASSWORD"  # noqa: S105 - the name of a setting


def add_trust(parser: argparse.ArgumentParser) -> None:
    """The options that say whom to believe."""
    parser.add_argument(
        "--trust",
        metavar="FILE",
        help=f"a trust file, or `unsigned`; default: the setting {TRUST_VARIABLE}, else nothing is verified",
    )
    parser.add_argument(
        "--state",
        metavar="FILE",
        help=f"what this host has accepted before, which is read only; default: the setting {STATE_VARIABLE}",
    )


def trust_of(options: argparse.Namespace) -> Trust | None:
    """Whom a command believes; None: nobody was named. Raises: ConfigError."""
    given = options.trust or os.environ.get(TRUST_VARIABLE) or "unsigned"
    if given == "unsigned":
        return None
    from retailinfer.release.trust_files import Trust

    return Trust(given, state=options.state or os.environ.get(STATE_VARIABLE) or None)


def password_of(options: argparse.Namespace) -> str | None:
    """The password of a private key. Raises: ConfigError."""
    if options.password_file is None:
        return os.environ.get(PASSWORD_VARIABLE) or None
    try:
        return Path(options.password_file).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"cannot read the password in {options.password_file}") from exc


def put(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a file that others may be reading: it is the old one or the new one. Raises: OSError."""
    beside = path.with_name(f".{path.name}.{os.urandom(4).hex()}.partial")
    try:
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        beside.replace(path)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def rules_of(trust: str) -> Rules:
    """The rules of the newest trust file that a path leads to, without revocations. Raises: ConfigError, BundleError."""
    try:
        file = decode_trust(Path(trust).read_bytes())
    except OSError as exc:
        raise ConfigError(f"cannot read {trust}: {exc.strerror}") from exc
    rules = Rules(file)
    while rules.file.trust is not None:
        successor = Path(trust).with_name(SUCCESSOR.format(rules.file.epoch + 1))
        if not successor.exists():
            break
        rules = Rules(rules.follow(successor.read_bytes(), now_s=time()))
    return rules


def signature_facts(folder: str, bundle: Bundle) -> dict[str, Any]:
    """By whom a release was signed, verified or not; {} for one that has no signature. Raises: BundleError."""
    if bundle.verdict is not None:
        verdict = bundle.verdict
        return {
            "verified": True,
            "signed_by": list(verdict.signed_by),
            "approved_by": list(verdict.approved_by),
            "expired_s": verdict.expired_s,
            "statement": msgspec.to_builtins(verdict.statement),
        }
    try:
        with Path(folder, SIGNATURE).open("rb") as file:
            data = file.read(MAX_ENVELOPE_BYTES + 1)
    except OSError:
        return {}
    envelope = decode_envelope(data)
    return {
        "verified": False,
        "keys": list(envelope.signatures),
        "statement": msgspec.to_builtins(decode_statement(ReleaseStatement, envelope.payload)),
    }


def signature_text(facts: dict[str, Any]) -> str:
    """The same in a line."""
    if not facts:
        return "none: whoever can write the directory can change the release"
    statement = facts["statement"]
    until = f", until {statement['expires']}" if statement.get("expires") else ", without an end"
    place = f"for {', '.join(statement['environments'])}{until}"
    if not facts["verified"]:
        keys = ", ".join(one[:12] for one in facts["keys"])
        return f"not verified, for no --trust was given; {SIGNATURE} says: {place}, by key(s) {keys}"
    late = f"; EXPIRED {facts['expired_s'] / 3600:.1f} h ago, in its grace" if facts["expired_s"] else ""
    approved = f", approved by {', '.join(facts['approved_by'])}" if facts["approved_by"] else ""
    return f"by {', '.join(facts['signed_by'])}{approved}, {place}{late}"
