"""`retailinfer rotate`: sign the next trust file, so that hosts find it by themselves."""

from __future__ import annotations

import argparse
from pathlib import Path
from time import time

from retailinfer.cli.console import Console
from retailinfer.cli.extras import need
from retailinfer.cli.trusting import password_of, put, rules_of
from retailinfer.errors import ConfigError
from retailinfer.release.trust import TRUST_TYPE, Rules, decode_trust, encode_trust
from retailinfer.release.trust_files import SUCCESSOR

__all__ = ["run"]


def run(options: argparse.Namespace, console: Console) -> int:
    """Check that the next file follows the newest one, and write it signed beside that. Raises: BundleError, ConfigError."""
    need("signing", ("cryptography",), "sign")
    from retailinfer.authoring.signing import read_key
    from retailinfer.release.signature import sign_payload

    rules = rules_of(options.trust)
    try:
        new = decode_trust(Path(options.next).read_bytes())
    except OSError as exc:
        raise ConfigError(f"cannot read {options.next}: {exc.strerror}") from exc
    keys = [read_key(Path(key), password_of(options)) for key in options.key]
    envelope = sign_payload(TRUST_TYPE, encode_trust(new), keys)
    rules.follow(envelope, now_s=time())  # what is written can be followed, or fails here
    out = Path(options.trust).with_name(SUCCESSOR.format(new.epoch))
    put(out, envelope)
    names = sorted(set(rules.file.keys) - set(new.keys)), sorted(set(new.keys) - set(rules.file.keys))
    console.emit({"ok": True, "out": str(out), "epoch": new.epoch, "left": names[0], "came": names[1]})
    console.say(f"{out} leads from epoch {rules.file.epoch} to epoch {new.epoch}")
    console.say(f"  left     {', '.join(names[0]) or 'no key'}")
    console.say(f"  came     {', '.join(names[1]) or 'no key'}")
    if Rules(new).file.revocation is not None:
        console.say(
            f"  next     retailinfer revoke --trust {options.trust}: the list of revocations begins again"
        )
    return 0
