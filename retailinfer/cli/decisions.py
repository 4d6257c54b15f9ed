"""`retailinfer decisions`: what is in the folder of a decision log, one entity's rows, and erasing them.

Rules: reads what processes have written, without disturbing them; `--erase` is what `DecisionLog.erase` does.
"""

from __future__ import annotations

import argparse
import datetime as dt
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from time import time
from typing import Any

import msgspec

from retailinfer.cli.console import Console, bytes_text
from retailinfer.errors import ConfigError, clip
from retailinfer.monitoring.decision_erasure import erase, keys_for
from retailinfer.monitoring.decision_files import read_rows
from retailinfer.monitoring.decision_folder import listing
from retailinfer.monitoring.decision_log import moment_ns
from retailinfer.monitoring.decision_rows import Keys, declarations

__all__ = ["run"]


def run(options: argparse.Namespace, console: Console) -> int:
    """Show or erase. Raises: ConfigError, Unavailable, OSError."""
    folder = Path(options.folder)
    if not folder.is_dir():
        raise ConfigError(f"Expected the folder of a decision log, got {clip(str(folder), 80)}")
    if options.erase:
        return _erase(folder, options, console)
    rows = _rows(folder, options)
    if options.rows:
        for row in rows:
            sys.stdout.write(msgspec.json.encode(row).decode() + "\n")
        return 0
    return _show(folder, rows, console)


def _rows(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    low, high = _moment(options.since, "--since"), _moment(options.until, "--until")
    rows = read_rows(
        folder, since_ns=-(1 << 63) if low is None else low, until_ns=1 << 63 if high is None else high
    )
    if options.of is None:
        return rows
    entity, key = _pair(options.of, "--of")
    if not any(entity in one.entities for one in declarations(folder).values()):
        raise ConfigError(f"Expected an entity that the log declares in --of, got {clip(entity)}")
    # With another hash key nothing would be found, and nothing said: `keys_for` refuses it.
    keys, _ = keys_for(folder, entity, _hash_key(folder, options))
    text = keys.text(entity, key)
    return (row for row in rows if row.get(f"entity.{entity}") == text)


def _erase(folder: Path, options: argparse.Namespace, console: Console) -> int:
    entity, key = _pair(options.erase, "--erase")
    console.step("other processes seal what they write, then every file is read")
    report = erase(folder, entity, key, hash_key=_hash_key(folder, options), now_s=time())
    console.emit({"ok": not report.not_reached, "erased": report})
    console.say(f"{report.rows} row(s) erased from {report.files} file(s)")
    for text in report.not_reached:
        console.say(f"not reached: {text}")
    return 1 if report.not_reached else 0


def _show(folder: Path, rows: Iterator[dict[str, Any]], console: Console) -> int:
    files = listing(folder).files
    kinds: Counter[tuple[str, str, Any, str]] = Counter()
    first, last, n = 1 << 63, -(1 << 63), 0
    for row in rows:
        n += 1
        first, last = min(first, row["at_ns"]), max(last, row["at_ns"])
        outcome = row["why"] if row["kind"] == "failed" else row["action"] or ""
        kinds[row["kind"], row["release"], row["rung"], outcome] += 1
    declared = list(declarations(folder).values())
    size = sum(file.path.stat().st_size for file in files if file.path.exists())
    counts = [
        {"kind": kind, "release": release, "rung": rung, "outcome": outcome, "rows": count}
        for (kind, release, rung, outcome), count in sorted(kinds.items(), key=lambda one: -one[1])
    ]
    console.emit(
        {
            "rows": n,
            "first_ns": first if n else None,
            "last_ns": last if n else None,
            "files": [{"name": file.path.name, "kind": file.kind, "format": file.format} for file in files],
            "bytes": size,
            "declared": declared,
            "counts": counts,
        }
    )
    span = f" from {_text(first)} to {_text(last)}" if n else ""
    console.say(f"{n} row(s){span}; {len(files)} file(s), {bytes_text(size)}")
    for one in declared:
        keys = ", ".join(f"{name} ({', '.join(fields)})" for name, fields in one.entities.items()) or "none"
        console.say(
            f"declared: keys of {keys}{', hashed' if one.hashed else ''}; fields {', '.join(one.fields) or 'none'}; "
            f"sample {one.sample:g}; kept {'until deleted' if one.keep_days is None else f'{one.keep_days:g} days'}"
        )
    if counts:
        console.say()
        console.table([("rows", "kind", "release", "rung", "outcome"), *(_line(one) for one in counts)])
    return 0


def _line(one: dict[str, Any]) -> tuple[object, ...]:
    rung = "" if one["rung"] is None else one["rung"]
    return one["rows"], one["kind"], one["release"], rung, one["outcome"]


def _pair(text: str, option: str) -> tuple[str, str]:
    entity, equals, key = text.partition("=")
    if not (entity and equals):
        raise ConfigError(
            f"Expected {option} ENTITY=KEY, got {clip(text, 80)}", hint=f"as in {option} card=c-17"
        )
    return entity, key


def _hash_key(folder: Path, options: argparse.Namespace) -> bytes | None:
    """What the file holds; without the line's end of who wrote it by hand, unless it is the secret as it stands."""
    if options.hash_key is None:
        return None
    secret = Path(options.hash_key).read_bytes()
    known = {one.key_check for one in declarations(folder).values()}
    return secret if len(secret) >= 16 and Keys(secret).check in known else secret.strip()


def _moment(text: str | None, option: str) -> int | None:
    if text is None:
        return None
    try:
        at = dt.datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"Expected a moment for {option}, got {clip(text)}", hint="as in 2027-01-31T00:00:00Z"
        ) from None
    return moment_ns(at if at.tzinfo is not None else at.replace(tzinfo=dt.UTC), option)


def _text(ns: int) -> str:
    try:
        return f"{dt.datetime.fromtimestamp(ns / 1e9, dt.UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return f"{ns} ns since 1970"
