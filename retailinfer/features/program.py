"""Compile a spec: declarations and learned numbers -> the tables that the native program runs.

Rules:
  * All decisions that do not depend on a request are taken here, once.
  * A slot is one raw value: the request's fields first, in the order of the spec, then stored columns by reference, then
    windows by name.
  * A column that reads candidates only is an item column; one that reads both sides is a cross column; the rest is context.
What an operation computes is `_native/feature_ops.c`, readable in `_native/reference.py`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from retailinfer._native.program import Program, hash_int, hash_text
from retailinfer.columns import STEPS, TIME_PARTS, TRANSFORMS, UNITS_NS, Column, _split_part
from retailinfer.errors import SpecError
from retailinfer.features.spec import DTYPES, SCALAR_KINDS, Body, Field, Fitted, column_width, vocabulary_of

__all__ = [
    "Section",
    "compile_program",
    "event_struct",
    "request_struct",
    "sections",
    "slot_names",
    "slot_types",
]

SLOT_KINDS = {
    "float": 0,
    "int": 1,
    "bool": 2,
    "timestamp": 3,
    "str": 4,
    "bytes": 4,
    "vector": 5,
    "list[float]": 6,
    "list[int]": 7,
    "list[str]": 8,
}
COLUMN_KINDS = {
    "numeric": 0,
    "ratio": 1,
    "difference": 2,
    "product": 3,
    "elapsed": 4,
    "boolean": 5,
    "raw": 6,
    "categorical": 7,
    "onehot": 8,
    "target": 9,
    "hashed": 10,
    "time": 11,
    "equal": 12,
    "embedding": 13,
    "dot": 14,
    "cosine": 15,
    "sequence": 16,
    "lookup": 17,
    "bins": 18,
}
ACTION_CODES = {"use": 0, "refuse": 2, "review": 3}
DEFAULT = 1

Section = Literal["context", "item", "cross"]


def slot_names(body: Body) -> list[str]:
    """What the slots hold, in order."""
    return [f.name for f in body.fields] + list(body.stored) + list(body.windows)


def slot_types(body: Body) -> dict[str, str]:
    """Slot -> type, in order."""
    return {f.name: f.type for f in body.fields} | body.stored | dict.fromkeys(body.windows, "float")


def compile_program(body: Body, *, allow_nan: bool = True) -> Program:
    """The native program of a spec.

    Args:
        allow_nan: False makes every NaN that would reach a tensor a FeatureMissingError (models that cannot take it).
    Raises: SpecError when something is still to be learned.
    """
    if not body.is_fitted:
        raise SpecError(
            "the spec is not fitted: vocabularies, centres or scales are unknown",
            hint="call spec = spec.fit(table) first, and pack that one",
        )
    if body.arrays:
        raise SpecError(
            "this spec brings arrays, it has no columns to compute", hint="use score_arrays(feeds)"
        )
    names = slot_names(body)
    index = {name: i for i, name in enumerate(names)}
    kinds = slot_types(body)
    slots = [
        {"name": f.name, "wire": f.wire or f.name, "kind": SLOT_KINDS[f.type], "optional": f.optional}
        for f in body.fields
    ]
    slots += [
        {"name": r, "wire": r, "kind": SLOT_KINDS[kinds[r]], "optional": True}
        for r in (*body.stored, *body.windows)
    ]
    vocab_index = {name: i for i, name in enumerate(body.vocabularies)}
    vocabularies = []
    for vocab in body.vocabularies.values():
        first = 1 if vocab.oov == "first" else 0
        oov = {"first": 0, "last": len(vocab.values), "refuse": -1, "zeros": -2}[vocab.oov]
        vocabularies.append({"values": vocab.values, "first": first, "oov": oov, "size": vocab.size})
    keys: dict[tuple[Any, ...], int] = {}  # lookups in the same keys share them
    columns: list[dict[str, Any]] = []
    tensors: list[tuple[Any, ...]] = []
    for t, (name, tensor) in enumerate(body.tensors.items()):
        offset = 0
        for column in tensor.columns:
            compiled = _compile_column(body, column, index, kinds, vocab_index, tensor.dtype)
            if column.keys:
                own = _keys_of(column, kinds[column.refs[0]])
                at = keys.setdefault((own, column.other == "refuse"), len(vocabularies))
                if at == len(vocabularies):
                    oov = -1 if column.other == "refuse" else len(own)
                    vocabularies.append({"values": own, "first": 0, "oov": oov, "size": len(own)})
                compiled["vocabulary"] = at
            compiled.update(tensor=t, offset=offset, dtype=DTYPES[tensor.dtype], allow_nan=allow_nan)
            columns.append(compiled)
            offset += compiled["width"]
        if offset == 0:
            raise SpecError(
                f"tensor `{name}` has no cells: its vocabularies are empty",
                hint="was the column all null in fit?",
            )
        mask_dtype = DTYPES[tensor.mask_dtype]
        tensors.append(
            (name, DTYPES[tensor.dtype], offset, tensor.axis == "context", tensor.mask, mask_dtype)
        )
    program = Program(
        slots=slots,
        n_request=len(body.fields),
        event_slot=-1 if body.event_time is None else index[body.event_time],
        columns=columns,
        vocabularies=vocabularies,
        tensors=tensors,
        zone_at_s=tuple(body.zone_at_s),
        zone_offset_s=tuple(body.zone_offset_s),
    )
    program.mark_bytes([i for name, i in index.items() if kinds[name] == "bytes"])
    return program


def _compile_column(
    body: Body,
    column: Column,
    index: dict[str, int],
    kinds: dict[str, str],
    vocab_index: dict[str, int],
    dtype: str,
) -> dict[str, Any]:
    refs = [index[r] for r in column.refs]
    if column.kind == "elapsed" and len(refs) == 1:
        assert body.event_time is not None  # the spec's own check
        refs.append(index[body.event_time])
    learned = body.fitted.get(column.name)
    part, wave = _split_part(column.part) if column.part else ("second", None)
    kind = column.encoding if column.encoding in ("onehot", "target") else column.kind
    codes = column.encoding in ("index", "onehot", "target")
    targets = None
    if column.encoding == "target":
        vocab = vocabulary_of(column, body.vocabularies)
        # the program reads targets by code: a list that is too short would be read beyond its end
        if learned is None or learned.prior is None or len(learned.targets or ()) != len(vocab.values):
            raise _not_learned(column, "a target for each value of its vocabulary")
        # by code: a vocabulary with oov="first" starts at 1; the last entry is the prior, for whatever is not known
        lead = (learned.prior,) if vocab.oov == "first" else ()
        tail = (learned.prior,) if vocab.oov == "last" else ()
        targets = (*lead, *(learned.targets or ()), *tail, learned.prior)
    if column.values is not None:
        other = () if column.kind == "bins" else (None if isinstance(column.other, str) else column.other,)
        targets = tuple(float("nan") if v is None else v for v in (*column.values, *other))
    center = _learned_number(column, "center", learned)
    scale = _learned_number(column, "scale", learned)
    seen = None
    if learned is not None and learned.seen_low is not None and learned.seen_high is not None:
        seen = (learned.seen_low, learned.seen_high)
    clip: tuple[float, float] | None = None
    if column.clip == "train":
        clip = seen if seen is not None else (float("-inf"), float("inf"))
    elif isinstance(column.clip, tuple):
        low, high = column.clip
        clip = (float("-inf") if low is None else low, float("inf") if high is None else high)
    actions, fills = _outcomes(body, column, kinds, dtype)
    return {
        "name": column.name,
        "kind": COLUMN_KINDS[kind],
        "refs": refs,
        "width": column_width(column, body.vocabularies),
        "transform": 0 if column.transform is None else TRANSFORMS.index(column.transform) + 1,
        "part": list(TIME_PARTS).index(part),
        "wave": {None: 0, "sin": 1, "cos": 2}[wave],
        "period": (TIME_PARTS[part] or (0, 1))[1],
        "sequence": {"index": 0, "hashed": 1, "number": 2}.get(column.encoding or "", 0),
        "keep_first": column.keep == "first",
        "clip": clip,
        "norm": None
        if center is None and scale is None
        else (0.0 if center is None else float(center), 1.0 if scale is None else float(scale)),
        "seen": seen if column.kind in SCALAR_KINDS else None,
        "max_age_ns": column.max_age_ns or 0,
        # dot and cosine keep the declared size of their vectors where others keep a unit of time
        "unit_ns": (column.size or 0) if column.kind in ("dot", "cosine") else UNITS_NS[column.unit],
        "buckets": column.buckets or 1,
        "seed": column.seed,
        "pad": float(column.pad),
        "pad_code": 0 if column.encoding == "number" else int(column.pad),
        "vocabulary": vocab_index[column.vocabulary or column.name] if codes else -1,
        "targets": targets,
        "refuse_other": column.kind == "lookup" and column.other == "refuse",
        "edges": column.edges,
        "steps": [(list(STEPS).index(step.op), step.value, step.high) for step in column.steps],
        "on_off": _on_off(column),
        "actions": actions,
        "fills": fills,
    }


def _keys_of(column: Column, kind: str) -> tuple[Any, ...]:
    """Keys of a lookup in the canonical type of what they are compared with; -0.0 is 0.0."""
    if kind == "float":
        return tuple(float(key) + 0.0 for key in column.keys or ())
    return tuple(key if isinstance(key, str) else int(key) for key in column.keys or ())


def _on_off(column: Column) -> tuple[float, ...] | None:
    """By cell what it holds when it is set, and when it is not; None for columns of one number."""
    if column.cells is None:
        return None
    on = column.on or (1.0,) * len(column.cells)
    off = column.off or (0.0,) * len(column.cells)
    return tuple(value for pair in zip(on, off, strict=True) for value in pair)


def _not_learned(column: Column, what: str) -> SpecError:
    return SpecError(
        f"the spec lacks {what} for column `{column.name}`", hint="call spec = spec.fit(table) again"
    )


def _learned_number(column: Column, name: Literal["center", "scale"], learned: Fitted | None) -> float | None:
    """A centre or scale that was given, or what `fit` learned in its place."""
    given = getattr(column, name)
    if not isinstance(given, str):
        return None if given is None else float(given)
    found: float | None = None if learned is None else getattr(learned, name)
    if found is None or (name == "scale" and found == 0):
        raise _not_learned(column, f"the {given} that is its {name}")
    return found


def _outcomes(body: Body, column: Column, kinds: dict[str, str], dtype: str) -> tuple[list[int], list[Any]]:
    """Action and default by state: present, null, unknown, stale, unavailable."""
    chosen = [
        "use",
        column.null,
        column.null if column.unknown is None else column.unknown,
        column.on_stale,
        column.null if column.on_unavailable is None else column.on_unavailable,
    ]
    actions: list[int] = []
    fills: list[Any] = []
    for value in chosen:
        if isinstance(value, str) and value in ACTION_CODES:
            actions.append(ACTION_CODES[value])
            fills.append(None)
            continue
        actions.append(DEFAULT)
        fills.append(_fill(body, column, value, dtype))
    return actions, fills


def _fill(body: Body, column: Column, value: Any, dtype: str) -> Any:
    """A default as what the cell takes: an int is a code, a bucket or a raw integer, a float a number, a str a text."""
    if column.kind == "categorical":
        vocab = vocabulary_of(column, body.vocabularies)
        if value in vocab.values:
            at = vocab.values.index(value) + (vocab.oov == "first")
        elif vocab.oov == "refuse":
            raise SpecError(f"the default {value!r} of column `{column.name}` is not in its vocabulary")
        else:
            at = {"first": 0, "last": len(vocab.values), "zeros": -2}[vocab.oov]
        if column.encoding != "target":
            return at
        learned = body.fitted[column.name]
        return (
            learned.targets[vocab.values.index(value)]
            if value in vocab.values and learned.targets
            else learned.prior
        )
    if column.kind == "hashed":
        hashed = (
            hash_text(value, column.seed) if isinstance(value, str) else hash_int(int(value), column.seed)
        )
        return hashed % (column.buckets or 1)
    if column.kind == "raw" and isinstance(value, str):
        return value
    if column.kind == "raw" and dtype in ("int32", "int64", "bool"):
        return int(value) if dtype != "bool" else int(value != 0)
    return float(value)


# ---- what depends on what, for rankings ------------------------------------------------------------------------------


def sections(body: Body) -> tuple[dict[str, Section], list[Section]]:
    """Where each slot and each column belongs when candidates are ranked."""
    own = set(body.entities[body.candidate].key) if body.candidate is not None else set()

    def combine(parts: set[str]) -> Section:
        if parts == {"item"}:
            return "item"
        return "cross" if parts & {"item", "cross"} else "context"

    slots: dict[str, Section] = {f.name: "item" if f.name in own else "context" for f in body.fields}
    for ref in body.stored:
        entity = body.entities[ref.partition(".")[0]]
        slots[ref] = combine({slots[key] for key in entity.key})
    for name, window in body.windows.items():
        slots[name] = combine({slots[key] for key in body.entities[window.entity].key})
    columns: list[Section] = []
    for tensor in body.tensors.values():
        for column in tensor.columns:
            refs = set(column.refs)
            if column.kind == "elapsed" and len(column.refs) == 1 and body.event_time is not None:
                refs.add(body.event_time)
            columns.append(combine({slots[r] for r in refs}))
    return slots, columns


# ---- the request's own type ------------------------------------------------------------------------------------------

_WIRE_TYPES: dict[str, Any] = {
    "float": float,
    "int": int,
    "str": str,
    "bool": bool,
    "bytes": bytes,
    "timestamp": Annotated[dt.datetime, msgspec.Meta(tz=True)] | float | int,
    "list[float]": list[float],
    "list[int]": list[int],
    "list[str]": list[str],
}


def request_struct(
    body: Body, *, without: frozenset[str] = frozenset(), name: str = "Request"
) -> type[msgspec.Struct]:
    """The frozen Struct that JSON and MessagePack requests decode into; its fields are read by offset."""
    fields = tuple(f for f in body.fields if f.name not in without)
    return event_struct(fields, forbid_extra=body.extra == "forbid", name=name)


def event_struct(fields: Sequence[Field], *, forbid_extra: bool, name: str) -> type[msgspec.Struct]:
    """The same for any fields: those of an event."""
    made: list[Any] = []
    for f in fields:
        kind = _WIRE_TYPES[f.type]
        wire = msgspec.field(name=f.wire) if f.wire else msgspec.field()
        if f.optional:
            wire = msgspec.field(default=None, name=f.wire or None)
            kind = kind | None
        made.append((f.name, kind, wire))
    containers = any(f.type.startswith("list") for f in fields)
    return msgspec.defstruct(
        name,
        made,
        frozen=True,
        kw_only=True,
        gc=containers,
        forbid_unknown_fields=forbid_extra,
    )
