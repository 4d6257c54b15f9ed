"""Small files that people write for `pack`: policy, contract and info, as JSON or TOML.

A policy is {"bands": [["approve", 0.0], ["review", 0.6]], "segment_by": ..., "segments": {...}, "review": ...}; contract
and info have the fields of `ri.Contract` and of `Info` in release/manifest.py.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from retailinfer.errors import ConfigError, SpecError, clip
from retailinfer.policy import Policy
from retailinfer.release.fallback import Fallback
from retailinfer.release.manifest import Info

__all__ = ["read_fallback", "read_policy", "read_struct"]

T = TypeVar("T")


def read_policy(path: str) -> Policy:
    """The policy of a file. A lowest score of -inf may be written as null (JSON) or -inf (TOML). Raises: ConfigError."""
    given = _read(path)
    for bands in (given.get("bands"), *(given.get("segments") or {}).values()):
        for band in bands if isinstance(bands, list) else ():
            if isinstance(band, list) and len(band) == 2 and band[1] == float("-inf"):
                band[1] = None
    try:
        return Policy.from_json(msgspec.json.encode(given))
    except SpecError as exc:
        raise ConfigError(f"{path} is not a policy: {exc}") from exc


def read_fallback(path: str) -> Fallback:
    """The fallback of a file; conditions of rules are text there, as in Python. Raises: ConfigError."""
    given = _read(path)
    known = ("score", "action", "rules", "popular")
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ConfigError(
            f"{path} has an unknown field {clip(unknown[0])}", hint=f"its fields are {', '.join(known)}"
        )
    try:
        return Fallback(**given)
    except SpecError as exc:
        raise ConfigError(f"{path} is not a fallback: {exc}") from exc


def read_struct(path: str, kind: type[T]) -> T:
    """A frozen Struct (`Contract`, `Info`) out of a file. Raises: ConfigError."""
    try:
        return msgspec.convert(_read(path), kind)
    except msgspec.ValidationError as exc:
        raise ConfigError(f"{path} is not a {kind.__name__.lower()}: {exc}") from exc


def read_info(path: str) -> dict[str, Any]:
    """The fields of `Info` that a file has. Raises: ConfigError."""
    read_struct(path, Info)
    return _read(path)


def _read(path: str) -> dict[str, Any]:
    try:
        data = Path(path).read_bytes()
    except OSError as exc:
        raise ConfigError(f"cannot read {path}: {exc.strerror}") from exc
    try:
        given = tomllib.loads(data.decode()) if path.lower().endswith(".toml") else msgspec.json.decode(data)
    except (tomllib.TOMLDecodeError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ConfigError(f"{path} is neither JSON nor TOML: {clip(str(exc), 200)}") from exc
    if not isinstance(given, dict):
        raise ConfigError(f"Expected an object with fields in {path}, got {clip(given)}")
    return given
