"""Files with rows: Parquet and Arrow files as tables, and `--store NAME=FILE:KEY` as a Store.

Rules: the command line's only use of pyarrow; what a file cannot give is said with the file's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retailinfer.clock import SystemClock
from retailinfer.errors import ConfigError, RetailInferError, clip

if TYPE_CHECKING:
    from retailinfer.store.store import Store

__all__ = ["STORE_HELP", "read_rows", "read_store"]

STORE_HELP = (
    "a table that the features read: its name, a Parquet or Arrow file, and the column that is the key. "
    "Several key columns are separated by commas; `@COLUMN` at the end names the column that says when each row was "
    "true. Examples: card=cards.parquet:card_id   pair=pairs.parquet:user_id,sku@updated_at. Repeat it for each table"
)


def read_rows(path: str) -> Any:
    """A pyarrow Table out of a Parquet or Arrow (Feather) file. Raises: ConfigError."""
    try:
        import pyarrow as pa
        from pyarrow import feather, parquet
    except ImportError as exc:
        raise ConfigError(f"reading {path} needs pyarrow", hint="pip install 'retailinfer[arrow]'") from exc
    suffix = Path(path).suffix.lower()
    try:
        if suffix in (".parquet", ".pq"):
            return parquet.read_table(path)
        if suffix in (".arrow", ".feather", ".ipc"):
            return feather.read_table(path)
    except (OSError, pa.ArrowException) as exc:
        raise ConfigError(f"cannot read {path}: {_first_line(exc)}") from exc
    raise ConfigError(f"Expected a .parquet, .arrow or .feather file, got {path}")


def read_store(given: Sequence[str]) -> Store | None:
    """The tables of `--store` options, with windows of no event; None without any. Raises: ConfigError."""
    if not given:
        return None
    from retailinfer.authoring.loading import empty_windows
    from retailinfer.store.store import Store
    from retailinfer.store.table import Snapshot

    tables: dict[str, Snapshot] = {}
    for text in given:
        name, path, keys, updated_at = _parts(text)
        if name in tables:
            raise ConfigError(f"--store names the table `{name}` twice")
        rows = read_rows(path)
        try:
            tables[name] = Snapshot.from_arrow(
                rows, key=keys[0] if len(keys) == 1 else keys, updated_at=updated_at, name=name
            )
        except RetailInferError as exc:
            raise ConfigError(f"{path} cannot be the table `{name}`: {exc}") from exc
    return Store(tables=tables, windows=empty_windows(), clock=SystemClock())


def _parts(text: str) -> tuple[str, str, tuple[str, ...], str | None]:
    name, equals, rest = text.partition("=")
    path, colon, key = rest.rpartition(":")
    key, _, updated_at = key.partition("@")
    keys = tuple(part.strip() for part in key.split(","))
    if not (equals and colon and name and path and all(keys)):
        raise ConfigError(
            f"Expected --store NAME=FILE:KEY, got {clip(text, 80)}",
            hint="as in card=cards.parquet:card_id",
        )
    return name, path, keys, updated_at or None


def _first_line(exc: BaseException) -> str:
    return clip(str(exc).partition("\n")[0], 200).strip("'\"")
