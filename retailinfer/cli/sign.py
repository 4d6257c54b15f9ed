"""`retailinfer sign`: put a signature beside a release."""

from __future__ import annotations

import argparse
from pathlib import Path

from retailinfer.cli.console import Console
from retailinfer.cli.extras import need
from retailinfer.cli.trusting import password_of
from retailinfer.errors import ConfigError, clip

__all__ = ["run"]


def run(options: argparse.Namespace, console: Console) -> int:
    """Sign, and say what was signed. Raises: BundleError, ConfigError."""
    need("signing", ("cryptography",), "sign")
    from retailinfer.authoring.signing import sign, sign_model, signed_statement

    if options.model_signing:
        if len(options.key) != 1:
            raise ConfigError("Expected one --key with --model-signing, which has one signature")
        path = sign_model(options.release, key=options.key[0], password=password_of(options))
        console.emit({"ok": True, "file": str(path)})
        console.say(f"{path} signs every file of the release, for tools that read OpenSSF model-signing")
        return 0
    statement = sign(
        options.release,
        key=[Path(key) for key in options.key],
        password=password_of(options),
        environments=options.environment,
        not_before=options.not_before,
        expires=options.expires,
        requires=_requires(options.requires),
        replace=options.replace,
    )
    found = signed_statement(options.release)
    keys = () if found is None else found[1]
    console.emit({"ok": True, "statement": statement, "keys": list(keys)})
    console.say(
        f"{statement.name}:{statement.version} is signed by {len(keys)} key(s): digest {statement.digest[:12]}"
    )
    until = statement.expires or "no end"
    console.say(f"  for      {', '.join(statement.environments)}, until {until}")
    for distribution, lowest in statement.requires.items():
        console.say(f"  needs    {distribution} >= {lowest}")
    console.say(f"  keys     {', '.join(key[:12] for key in keys)}")
    console.say(f"  next     retailinfer verify {options.release} --trust TRUST.json")
    return 0


def _requires(given: list[str]) -> dict[str, str] | None:
    found = {}
    for text in given:
        name, equals, lowest = text.partition("=")
        if not (name and equals and lowest):
            raise ConfigError(f"Expected --requires DISTRIBUTION=VERSION, got {clip(text, 80)}")
        found[name] = lowest
    return found or None
