"""Stored rows as they were at each event's moment: as-of joins of events with the history of a table, and keys by alias.

Rules:
  * A row of a history holds from its moment until the next row of the same key; at its very moment it already holds. Of two
    rows of one key and moment the later one in the table counts.
  * Keys are compared as the store compares them: canonical values of the declared kind, after aliases.
  * Whole columns at a time: nothing here loops over rows.
Who uses it: `replay.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from retailinfer.errors import ConfigError, FeatureMissingError, SpecError, clip
from retailinfer.features.arrow import as_table, canonical
from retailinfer.features.canonical import Canonical

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from retailinfer.features.spec import Body
    from retailinfer.store.aliases import Aliases

__all__ = ["AsOf", "alias_fields", "as_of", "resolve"]

AGE_UNKNOWN = -(2**63)
UNKNOWN = 2  # place in STATE_NAMES of the program


class AsOf(NamedTuple):
    """What a table said of each event.

    columns: by stored reference, Arrow arrays of one value an event, null where there was none. row: of the history, -1
    where the entity was not known yet. updated_ns: when that row was true, AGE_UNKNOWN where nobody says.
    """

    columns: dict[str, Any]
    row: NDArray[np.int64]
    updated_ns: NDArray[np.int64]

    @property
    def states(self) -> NDArray[np.uint8]:
        """2 where the entity was not known yet, else 0: as the columns have it."""
        return np.where(self.row < 0, UNKNOWN, 0).astype(np.uint8)


def as_of(
    body: Body,
    entity: str,
    history: Any,
    keys: Sequence[Canonical],
    moment_ns: NDArray[np.int64],
    *,
    updated_at: str | None,
    available_at: str | None,
) -> AsOf:
    """The row of `history` that held for each event, and the stored columns of it that the spec reads.

    Args:
        keys: columns of the events, one a part of the entity's key.
        moment_ns: when each event came.
        updated_at: column of the history that says when a row was true; None: its rows have held for ever.
        available_at: column that says when a row could be read; None: at once.
    Raises: SpecError for a missing column, FeatureError for a value, ConfigError for two rows of a key without times.
    """
    table = as_table(history)
    label = f"tables[{entity!r}]"
    key_fields = body.entities[entity].key
    types = {f.name: f.type for f in body.fields}
    wanted = {ref: kind for ref, kind in body.stored.items() if ref.partition(".")[0] == entity}
    for name in (*key_fields, *(ref.partition(".")[2] for ref in wanted)):
        _only_one(table, name, label)
    n_rows, n_events = table.num_rows, len(moment_ns)
    own = [canonical(table.column(k), types[k], f"{entity}.{k}") for k in key_fields]
    for name, part in zip(key_fields, own, strict=True):
        if part.valid is not None and not part.valid.all():
            raise FeatureMissingError(
                f"Expected a key in every row of a history, got null in row {int(np.argmin(part.valid))}",
                path=f"$.{label}.{name}",
            )
    updated = _times(table, updated_at, f"{label}.{updated_at}", AGE_UNKNOWN)
    available = updated if available_at is None else _times(table, available_at, f"{label}.{available_at}")
    if available_at is None and updated_at is not None and (updated == AGE_UNKNOWN).any():
        raise FeatureMissingError(
            f"Expected a moment in every row of a history, got null in row {int(np.argmax(updated == AGE_UNKNOWN))}",
            path=f"$.{label}.{updated_at}",
            hint="say from when on the row was in the store",
        )
    known, codes = _codes([types[k] for k in key_fields], own, keys, n_rows, n_events)
    of_row, of_event = codes[:n_rows], codes[n_rows:]
    # One sorted number per row: key, then moment. The last one at or before an event's is its row, if the key is the same.
    moments = np.unique(available)
    step = len(moments) + 1
    in_rows = of_row * step + np.searchsorted(moments, available) + 1
    order = np.argsort(in_rows, kind="stable")
    if updated_at is None and available_at is None and (np.diff(in_rows[order]) == 0).any():
        raise ConfigError(
            f"Expected one row a key in {label}, whose rows hold for ever; got two",
            hint='give the table a column that says from when on each holds: updated_at="..."',
        )
    wanted_at = of_event * step + np.searchsorted(moments, moment_ns, side="right")
    place = np.searchsorted(in_rows[order], wanted_at, side="right") - 1
    row = np.where(place >= 0, order[np.maximum(place, 0)] if n_rows else -1, -1)
    if n_rows:
        row = np.where((row >= 0) & (of_row[np.maximum(row, 0)] == of_event) & known, row, -1)
    columns = {ref: _take(table.column(ref.partition(".")[2]), row) for ref in wanted}
    ages = (
        np.where(row >= 0, updated[np.maximum(row, 0)], AGE_UNKNOWN)
        if n_rows
        else np.full(n_events, AGE_UNKNOWN)
    )
    return AsOf(columns, row.astype(np.int64), ages.astype(np.int64))


def _only_one(table: pa.Table, name: str, label: str) -> None:
    count = table.column_names.count(name)
    if count != 1:
        raise SpecError(
            f"Expected one column `{name}` in {label}, got {count}",
            hint=f"it has: {', '.join(table.column_names)}",
        )


def _times(table: pa.Table, name: str | None, label: str, null: int | None = None) -> NDArray[np.int64]:
    """Moments of a column, ns; `null` where there is none, or an error."""
    if name is None:
        return np.full(table.num_rows, AGE_UNKNOWN, np.int64)
    if name not in table.column_names:
        raise SpecError(
            f"Expected a column `{name}` that says from when on a row holds, in {label.rpartition('.')[0]}",
            hint="name another one by updated_at=, or give None for a table whose rows have held for ever; "
            f"it has: {', '.join(table.column_names)}",
        )
    found = canonical(table.column(name), "timestamp", label)
    if found.valid is None or found.valid.all():
        return found.values
    if null is None:
        raise FeatureMissingError(
            f"Expected a moment in every row, got null in row {int(np.argmin(found.valid))}",
            path=f"$.{label}",
        )
    return np.where(found.valid.astype(bool), found.values, null)


def _take(column: Any, row: NDArray[np.int64]) -> Any:
    import pyarrow as pa  # noqa: PLC0415 - optional extra

    found = (
        column.take(pa.array(np.maximum(row, 0), mask=row < 0))
        if len(column)
        else pa.nulls(len(row), column.type)
    )
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found


def _codes(
    types: Sequence[str], rows: Sequence[Canonical], events: Sequence[Canonical], n_rows: int, n_events: int
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which events have a whole key; and a number for each key, those of the rows first, then those of the events."""
    known = np.ones(n_events, bool)
    codes = np.zeros(n_rows + n_events, np.int64)
    for kind, of_rows, of_events in zip(types, rows, events, strict=True):
        if of_events.valid is not None:
            known &= of_events.valid.astype(bool)
        part = _part_codes(kind, of_rows, of_events)
        if len(types) > 1:  # dense again, so that no product of sizes can pass 64 bits
            _, codes = np.unique(codes * (int(part.max(initial=0)) + 1) + part, return_inverse=True)
        else:
            codes = part
    return known, codes.astype(np.int64, copy=False)


def _part_codes(kind: str, rows: Canonical, events: Canonical) -> NDArray[np.int64]:
    if kind not in ("str", "bytes"):
        both = np.concatenate([rows.values, events.values])
        return np.unique(both, return_inverse=True)[1].astype(np.int64)
    import pyarrow as pa  # noqa: PLC0415 - optional extra

    chunks = [_arrow_texts(pa, column) for column in (rows, events)]
    encoded = pa.concat_arrays(chunks).dictionary_encode()
    found: NDArray[np.int64] = np.asarray(encoded.indices).astype(np.int64)
    return found


def _arrow_texts(pa: Any, column: Canonical) -> Any:
    """Canonical text as an Arrow array, nulls as whatever stands under them."""
    assert column.offsets is not None
    offsets = np.ascontiguousarray(column.offsets, np.int64)
    data = np.ascontiguousarray(column.values).view(np.uint8)
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    )


# ---- aliases -------------------------------------------------------------------------------------------------------------


def alias_fields(body: Body, aliases: Mapping[str, Aliases]) -> dict[str, Aliases]:
    """Field -> aliases of its values. Raises: ConfigError for entities that have no aliases, SpecError for unknown ones."""
    types = {f.name: f.type for f in body.fields}
    found: dict[str, Aliases] = {}
    for entity, given in aliases.items():
        if entity not in body.entities:
            raise SpecError(
                f"Unknown entity `{clip(entity)}` in aliases",
                hint=f"declared: {', '.join(body.entities) or 'none'}",
            )
        key = body.entities[entity].key
        if len(key) != 1 or types[key[0]] != given.key_kind:
            kinds = ", ".join(types[k] for k in key)
            raise ConfigError(
                f"Expected aliases of `{entity}`, whose key is ({kinds}), got those of keys of kind `{given.key_kind}`",
                hint="aliases are for entities whose key is one field",
            )
        if found.setdefault(key[0], given) is not given:
            raise ConfigError(f"two entities with the key `{key[0]}` have aliases; give them to one of them")
    return found


def resolve(aliases: Aliases, column: Canonical, at_ns: NDArray[np.int64]) -> Canonical:
    """A column of keys, each as what it stood for at its moment."""
    values, offsets, _ = aliases.core.resolve_column(column.values, column.offsets, at_ns, column.valid)
    return Canonical(values, column.valid, offsets)
