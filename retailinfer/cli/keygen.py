"""`retailinfer keygen`: a new key that signs, and its place in a trust file."""

from __future__ import annotations

import argparse
import base64
import contextlib
import os
from pathlib import Path

import msgspec

from retailinfer.cli.console import Console
from retailinfer.cli.extras import need
from retailinfer.cli.trusting import password_of, put
from retailinfer.errors import ConfigError, ManifestError
from retailinfer.release.statements import seconds_of
from retailinfer.release.trust import Key, Role, TrustFile, decode_trust, encode_trust

__all__ = ["run"]

ROLES = ("release", "approval", "pointer", "revocation", "override", "trust")


def run(options: argparse.Namespace, console: Console) -> int:
    """Make a key, write it, name it in a trust file when asked. Raises: ConfigError; no file is ever replaced."""
    need("signing", ("cryptography",), "sign")
    from retailinfer.release.signature import EcPrivateKey, PrivateKey

    out = Path(options.out)
    password = password_of(options)
    if options.model_signing:
        if options.trust is not None:
            raise ConfigError(
                "a key of --model-signing has no place in a trust file", hint="leave --trust out"
            )
        key = EcPrivateKey.generate()
        _write(out, key.to_pem(password), 0o600)
        public = out.with_suffix(".pub")
        _write(public, key.public.to_pem(), 0o644)
        console.emit({"ok": True, "name": options.name, "private": str(out), "public": str(public)})
        console.say(f"{out} is the private key, for its owner only; {public} is the public one")
        console.say(f"  next     retailinfer sign RELEASE --model-signing --key {out}")
        return 0
    own = PrivateKey.generate()
    record = Key(
        algorithm="ed25519",
        public=base64.b64encode(own.public).decode(),
        who=options.who,
        expires=options.expires,
    )
    _checked(record)
    new = None if options.trust is None else _with_key(options, record)
    text = b"" if new is None else encode_trust(new)  # whatever is wrong is found before a file is written
    _write(out, own.to_pem(password), 0o600)
    if new is not None:
        try:
            put(Path(options.trust), text)
        except BaseException:
            _drop(out)  # nobody would know the key
            raise
    entry = msgspec.to_builtins(record)
    console.emit(
        {
            "ok": True,
            "name": options.name,
            "private": str(out),
            "id": own.id,
            "key": entry,
            "trust": options.trust,
        }
    )
    console.say(f"{out} is the private key of `{options.name}`, for its owner only; id {own.id[:12]}")
    if new is None:
        console.say("  its entry under `keys` of a trust file:")
        console.say(f'  "{options.name}": {msgspec.json.encode(record).decode()}')
    else:
        roles = ", ".join(role for role in ROLES if options.name in getattr(getattr(new, role), "keys", ()))
        console.say(f"  {options.trust} names it for: {roles or 'nothing yet'}")
    if "release" in (options.role or ["release"]):
        console.say(f"  next     retailinfer sign RELEASE --key {out}")
    return 0


def _checked(record: Key) -> None:
    """Raises: ConfigError for a moment that is none."""
    try:
        msgspec.convert(msgspec.to_builtins(record), Key)
        _ = record.expires is None or seconds_of(record.expires)
    except (msgspec.ValidationError, ManifestError) as exc:
        raise ConfigError(f"the key cannot be described so: {exc}") from exc


def _with_key(options: argparse.Namespace, record: Key) -> TrustFile:
    """The trust file with the key, a new one where there is none. Raises: ConfigError."""
    roles = options.role or ["release"]
    path = Path(options.trust)
    try:
        file = decode_trust(path.read_bytes())
    except FileNotFoundError:
        if "release" not in roles:
            raise ConfigError(
                "a new trust file needs a key that signs releases", hint="begin with --role release"
            ) from None
        file = TrustFile(
            format=1,
            epoch=1,
            environment=options.environment,
            names=tuple(options.names or ["*"]),
            keys={options.name: record},
            release=Role(keys=(options.name,)),
        )
    else:
        if options.name in file.keys:
            raise ConfigError(f"{path} names a key `{options.name}` already", hint="choose another name")
        file = msgspec.structs.replace(file, keys={**file.keys, options.name: record})
    changes = {}
    for role in roles:
        there: Role | None = getattr(file, role)
        names = () if there is None else tuple(name for name in there.keys if name != options.name)
        threshold = options.threshold or (1 if there is None else there.threshold)
        changes[role] = Role(keys=(*names, options.name), threshold=threshold)
    return msgspec.structs.replace(file, **changes)


def _write(path: Path, data: bytes, mode: int) -> None:
    """A new file; nothing is replaced, so that no key is lost."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError as exc:
        raise ConfigError(
            f"{path} is there already", hint="keys are never replaced; choose another name"
        ) from exc
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        _drop(path)  # half a key is none
        raise


def _drop(path: Path) -> None:
    """Take away what was just made."""
    with contextlib.suppress(OSError):
        path.unlink()
