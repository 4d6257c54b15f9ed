"""Take an entity out of a decision log, while processes go on writing to it.

Rules:
  * A row is in a file half a second after its answer; so long is waited. Then all processes are asked to seal what they write,
    which they do within another: what was answered before the call is in files that nobody writes to any more. These are
    rewritten without the entity's rows, each whole or not at all.
  * A process that does not react in time (stopped, or its machine asleep) is named in the report; erase again then.
  * A row of the entity goes as a whole. Files whose keys were hashed with another hash key are named, not guessed at; so are
    those whose declaration is gone, after the key as it would stand here was looked for.
  * Rows of answers that are given after the call are new rows: stop asking about the entity first.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Final

import msgspec

from retailinfer.errors import ConfigError, IntegrityError, Unavailable, clip
from retailinfer.monitoring.decision_files import parquet_without
from retailinfer.monitoring.decision_folder import (
    LogFile,
    ask_to_seal,
    keeping,
    listing,
    recover,
    tidy,
    write_whole,
)
from retailinfer.monitoring.decision_rows import Keys, declarations

__all__ = ["QUEUED_S", "ErasureReport", "erase", "keys_for"]

QUEUED_S: Final = 0.5  # a row is in a file half a second after its answer
_SEAL_WAIT_S: Final = 5.0
_ROUND_S: Final = 0.02


class ErasureReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `erase` took out.

    Attributes:
        rows: taken out. files: rewritten or deleted.
        not_reached: files that may have rows of it still, with the reason; erase again when it is gone. Empty = all is erased.
    """

    rows: int
    files: int
    not_reached: tuple[str, ...] = ()


def keys_for(folder: Path, entity: str, hash_key: str | bytes | None) -> tuple[Keys, set[str]]:
    """Keys as a folder's logs write those of an entity, and the declarations that they fit.

    Raises: ConfigError for an entity that no file declares, or a hash key where none is needed and none where one is.
    """
    keys = Keys(hash_key)
    declared = declarations(folder)
    holding = {name for name, one in declared.items() if entity in one.entities}
    if not holding:
        names = sorted({f"`{name}`" for one in declared.values() for name in one.entities})
        known = ", ".join(names) or "it has none"
        raise ConfigError(
            f"Expected an entity of the log in {clip(str(folder), 80)} ({known}), got {clip(entity)}"
        )
    mine = {name for name in holding if declared[name].key_check == keys.check}
    if not mine:
        raise ConfigError(
            "the keys of this log are hashed with another hash key"
            if hash_key is not None and any(declared[name].hashed for name in holding)
            else "the keys of this log are not hashed"
            if hash_key is not None
            else "the keys of this log are hashed: erasing needs the hash key",
            hint="give the hash_key that the log was given",
        )
    return keys, mine


def erase(
    folder: Path,
    entity: str,
    key: Any,
    *,
    hash_key: str | bytes | None = None,
    now_s: float,
    wait_s: float = 60.0,
) -> ErasureReport:
    """Take all rows of an entity out of a folder.

    Args:
        hash_key: what the log was given, where its keys are hashed.
        now_s: seconds since 1970.
        wait_s: how long another process may keep the folder before this gives up.
    Raises: ConfigError for an entity that no file declares, or a hash key where none is needed and none where one is;
        Unavailable while another process keeps the folder; OSError. What was rewritten before stays so.
    """
    keys, mine = keys_for(folder, entity, hash_key)
    declared = declarations(folder)
    holding = {name for name, one in declared.items() if entity in one.entities}
    ask_to_seal(folder)  # so that who keeps the folder now lets go of it
    threading.Event().wait(QUEUED_S)  # for rows of processes that have no live file yet
    with keeping(folder, wait_s=wait_s) as keeper:
        if keeper is None:
            raise Unavailable(
                f"another process has kept the decision log for {wait_s:g} s", hint="erase again"
            )
        ask_to_seal(folder)
        missed = [
            f"{file.path.name}: process {file.pid} did not seal it within {_SEAL_WAIT_S:g} s"
            for file in _wait_for_seals(folder)
        ]
        tidy(folder, now_s=now_s)
        rows = files = 0
        text = keys.text(entity, key)
        for file in listing(folder).files:
            if file.kind == "live":
                continue
            if file.declaration in mine or file.declaration not in declared:
                try:
                    n = _without(file, f"entity.{entity}", text)
                except IntegrityError as exc:
                    missed.append(str(exc))
                    continue
                rows, files = rows + n, files + (n > 0)
                if file.declaration not in declared:
                    missed.append(
                        f"{file.path.name}: log-{file.declaration}.json is gone, and with it whether its keys are hashed"
                    )
            elif file.declaration in holding:
                missed.append(f"{file.path.name}: its keys are hashed with another hash key, or not at all")
    return ErasureReport(rows=rows, files=files, not_reached=tuple(missed))


def _wait_for_seals(folder: Path) -> list[LogFile]:
    """The live files of now, less those that are sealed before long, and those of dead processes, which are finished here."""
    waits = {file.tag for file in listing(folder).files if file.kind == "live"}
    pause = threading.Event()
    left: list[LogFile] = []
    for _ in range(int(_SEAL_WAIT_S / _ROUND_S)):
        left = [file for file in listing(folder).files if file.kind == "live" and file.tag in waits]
        for file in left:
            recover(file, "parquet")  # sealed, whatever becomes of it later
        left = [file for file in left if file.path.exists()]
        if not left:
            break
        pause.wait(_ROUND_S)
    return left


def _without(file: LogFile, column: str, key: str) -> int:
    if file.format == "parquet":
        return parquet_without(file.path, column, key)
    data = file.path.read_bytes()
    # As the log writes it: within a text, quotes would have a backslash before them.
    needle = msgspec.json.encode(column) + b":" + msgspec.json.encode(key)
    if needle not in data:
        return 0
    lines = data.splitlines(keepends=True)
    kept = [line for line in lines if needle not in line or not _is_of(line, column, key)]
    n = len(lines) - len(kept)
    if n == 0:
        return 0
    if kept:
        write_whole(file.path, b"".join(kept))
    else:
        file.path.unlink()
    return n


def _is_of(line: bytes, column: str, key: str) -> bool:
    try:
        return bool(msgspec.json.decode(line).get(column) == key)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, AttributeError):
        return False
