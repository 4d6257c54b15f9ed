"""`retailinfer revoke`: the next list of what counts no more."""

from __future__ import annotations

import argparse
from pathlib import Path
from time import time

from retailinfer.cli.console import Console
from retailinfer.cli.extras import need
from retailinfer.cli.trusting import password_of, put, rules_of
from retailinfer.errors import ConfigError, SignatureError, clip
from retailinfer.release.statements import Revocations, moment_text
from retailinfer.release.trust_files import REVOCATIONS

__all__ = ["run"]


def run(options: argparse.Namespace, console: Console) -> int:
    """Read the list that counts now, add to it, number and sign it. Raises: BundleError, ConfigError."""
    need("signing", ("cryptography",), "sign")
    from retailinfer.authoring.signing import read_key
    from retailinfer.release.signature import sign_statement

    trust = Path(options.trust)
    out = Path(options.out) if options.out else trust.with_name(REVOCATIONS)
    rules = rules_of(options.trust)
    file = rules.file
    now = time()
    seq, releases, keys = 1, {}, {}
    if out.exists() and not options.fresh:
        try:
            old, _ = rules.open("revocations", out.read_bytes(), Revocations, "revocation", now_s=now)
        except SignatureError as exc:
            raise SignatureError(
                f"the list that is there cannot be taken over: {exc}",
                hint="--fresh begins a new one, without it",
            ) from exc
        releases, keys = dict(old.releases), dict(old.keys)
        seq = old.seq + 1 if old.epoch == file.epoch else 1
    for text in options.release:
        digest, why = _pair("--release", text)
        releases[digest] = why
    for text in options.revoked_key:
        name, why = _pair("--revoked-key", text)
        keys[next((one for one, (own, _, _) in rules.known.items() if own == name), name)] = why
    new = Revocations(
        epoch=file.epoch,
        seq=seq,
        issued=moment_text(now),
        expires=options.expires,
        releases=releases,
        keys=keys,
    )
    envelope = sign_statement(new, [read_key(Path(key), password_of(options)) for key in options.key])
    rules.revocations(envelope, now_s=now)  # what is written counts, or fails here
    put(out, envelope)
    console.emit({"ok": True, "out": str(out), "revocations": new})
    console.say(
        f"{out} is list number {seq} of epoch {file.epoch}: {len(releases)} release(s), {len(keys)} key(s)"
    )
    return 0


def _pair(option: str, text: str) -> tuple[str, str]:
    name, equals, why = text.partition("=")
    if not (name and equals and why):
        raise ConfigError(f"Expected {option} WHAT=WHY, got {clip(text, 80)}")
    return name, why
