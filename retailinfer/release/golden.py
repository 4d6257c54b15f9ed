"""Golden rows: inputs with everything already looked up, and the answers they gave where the release was packed.

Rules:
  * Rows are canonical columns (what `Program.fill_table` reads), so that they can be replayed anywhere without a store:
    stored values and windows are there as they were read, with the state that they were in. A service that brings its own
    arrays has arrays instead.
  * On the CPU class and ONNX Runtime that the manifest records, tensors and scores must be bit-equal. Elsewhere tensors
    are still bit-equal (our own arithmetic), scores are within the tolerance and no action changes.
  * Plain MessagePack, decoded strictly; sizes are checked before anything points into the bytes. No pickle.
Who makes them: `authoring.golden`. Who replays them: `pipeline`, when it loads.
"""

# No `from __future__ import annotations` here: msgspec would compile every one of them when a release is loaded.

import functools
import platform
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import msgspec
import numpy as np
from msgspec import Meta

from retailinfer.errors import GoldenMismatchError, ManifestError, clip

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "Golden",
    "GoldenArray",
    "GoldenColumn",
    "array_of",
    "array_problem",
    "array_values",
    "check_kinds",
    "check_scores",
    "check_tensors",
    "cpu_class",
    "decode_golden",
    "encode_golden",
    "hash_tensors",
    "libm_version",
]

MAX_ROWS = 64
N_STATES = 5  # present, null, unknown, stale, unavailable
# What `Program.fill_table` takes for one slot: values, valid, offsets, children.
Canonical: TypeAlias = (
    "tuple[NDArray[Any], NDArray[np.uint8] | None, NDArray[np.int64] | None, NDArray[np.int64] | None]"
)

# kind -> dtype of `values`; "text" and "list[str]" hold UTF-8 (or raw bytes).
_VALUES: dict[str, str] = {
    "float": "<f8",
    "int": "<i8",
    "text": "|u1",
    "vector": "<f4",
    "list[float]": "<f8",
    "list[int]": "<i8",
    "list[str]": "|u1",
}
_ARRAYS = frozenset(
    {
        "float32",
        "float64",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "bool",
        "string",
    }
)


class GoldenColumn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One canonical column, as bytes (little-endian, without gaps).

    Attributes:
        kind: "float", "int" (also booleans and nanoseconds), "text", "vector", "list[float]", "list[int]", "list[str]".
        valid: one byte a row; None: all are present. width: of vectors.
        offsets: int64, rows + 1, for texts and lists. children: int64 offsets of the texts in lists.
    """

    kind: Literal["float", "int", "text", "vector", "list[float]", "list[int]", "list[str]"]
    values: bytes
    valid: bytes | None = None
    offsets: bytes | None = None
    children: bytes | None = None
    width: Annotated[int, Meta(ge=1, le=1 << 20)] = 1


class GoldenArray(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One array that the caller would bring; strings stand in `texts`."""

    dtype: str
    shape: Annotated[tuple[Annotated[int, Meta(ge=0, le=1 << 40)], ...], Meta(max_length=8)]
    values: bytes = b""
    texts: tuple[str, ...] = ()


class Golden(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """golden.msgpack.

    Attributes:
        now_ns: the clock of these rows. n_rows: how many, at most 64.
        rows_per_run: how many rows went into the model at once: `n_rows`, or 1.
        columns: reference -> column; every slot of the feature program that a row has a value for.
        states: stored reference or window -> one byte a row, where some of its values were unknown, stale or unavailable
            (places in `_native.program.STATE_NAMES`); 0 is what the column itself says.
        arrays: input -> array, instead of columns, for releases without feature columns.
        tensors_sha256: `hash_tensors` of what the program made of the columns, masks after their tensors.
        scores: float32, little-endian, one a row; empty for a release without a score.
        actions: the policy's answers; None without a policy.
        outputs_sha256: `hash_tensors` of all outputs of the last model, for releases of arrays.
    """

    now_ns: int
    n_rows: Annotated[int, Meta(ge=1, le=MAX_ROWS)]
    rows_per_run: Annotated[int, Meta(ge=1, le=MAX_ROWS)]
    columns: dict[str, GoldenColumn] = {}
    states: dict[str, bytes] = {}
    arrays: dict[str, GoldenArray] = {}
    tensors_sha256: str
    scores: bytes = b""
    actions: tuple[str, ...] | None = None
    outputs_sha256: str | None = None

    def score_values(self) -> "NDArray[np.float32]":
        """The recorded scores; shape (n_rows,), or (0,)."""
        return np.frombuffer(self.scores, dtype="<f4").astype(np.float32, copy=False)

    def canonical(self, slots: Sequence[str]) -> "list[Canonical | None]":
        """What `fill_table` takes, in the order of the program's slots; a slot without a column is None (all null).

        The arrays are read-only views of this object's bytes. Raises: GoldenMismatchError for columns of no slot.
        """
        unknown = self.columns.keys() - set(slots)
        if unknown:
            raise GoldenMismatchError(
                f"the golden rows have a column {clip(min(unknown))} that the feature spec does not read",
                hint="golden.msgpack and features.json are of two releases; pack again",
            )
        return [_views(self.columns[slot]) if slot in self.columns else None for slot in slots]

    def state_arrays(self, looked_up: Collection[str]) -> "dict[str, NDArray[np.uint8]]":
        """The recorded states by stored reference or window, as `fill_table` takes them.

        Raises: GoldenMismatchError for one that is not in `looked_up`: fields of a request are there, or they are null.
        """
        unknown = self.states.keys() - set(looked_up)
        if unknown:
            raise GoldenMismatchError(
                f"the golden rows have states of {clip(min(unknown))}, which the feature spec does not look up",
                hint="golden.msgpack and features.json are of two releases; pack again",
            )
        return {name: np.frombuffer(one, dtype=np.uint8) for name, one in self.states.items()}

    def feeds(self) -> "dict[str, NDArray[Any]]":
        """The recorded arrays by input."""
        return {name: array_values(one) for name, one in self.arrays.items()}


def encode_golden(golden: Golden) -> bytes:
    """MessagePack of golden rows; equal rows give equal bytes."""
    return msgspec.msgpack.encode(golden, order="deterministic")


def decode_golden(data: bytes) -> Golden:
    """The inverse of `encode_golden`. Raises: ManifestError for anything that it does not write."""
    try:
        golden = msgspec.msgpack.decode(data, type=Golden)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ManifestError(
            f"golden.msgpack does not hold golden rows: {clip(str(exc), 200)}", hint="pack the release again"
        ) from exc
    problem = _problem(golden)
    if problem is not None:
        raise ManifestError(f"golden.msgpack contradicts itself: {problem}", hint="pack the release again")
    return golden


def column_of(kind: str, canonical: Canonical) -> GoldenColumn:
    """The inverse of `Golden.canonical` for one column."""
    values, valid, offsets, children = canonical
    return GoldenColumn(
        kind=kind,  # type: ignore[arg-type]  # checked when it is decoded
        values=np.ascontiguousarray(values, dtype=_VALUES[kind]).tobytes(),
        valid=None if valid is None or bool(valid.all()) else (valid != 0).astype(np.uint8).tobytes(),
        offsets=None if offsets is None else np.ascontiguousarray(offsets, dtype="<i8").tobytes(),
        children=None if children is None else np.ascontiguousarray(children, dtype="<i8").tobytes(),
        width=values.shape[1] if kind == "vector" else 1,
    )


def array_of(value: "NDArray[Any]") -> GoldenArray:
    """The inverse of `Golden.feeds` for one array."""
    if value.dtype.kind in "OUT":
        return GoldenArray(
            dtype="string", shape=value.shape, texts=tuple(str(v) for v in value.ravel().tolist())
        )
    plain = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<"))
    return GoldenArray(dtype=value.dtype.name, shape=value.shape, values=plain.tobytes())


def hash_tensors(tensors: "Iterable[NDArray[Any] | Sequence[str]]") -> str:
    """SHA-256 (hex) over tensors in order: their bytes, little-endian; texts as length (8 bytes) and UTF-8.

    Every tensor starts with its number of bytes (of texts), so that moving a border changes the hash.
    """
    import hashlib  # noqa: PLC0415 - brings OpenSSL's library; importing the package need not

    digest = hashlib.sha256()
    for tensor in tensors:
        if isinstance(tensor, np.ndarray) and tensor.dtype.kind not in "OUT":
            data = np.ascontiguousarray(tensor, dtype=tensor.dtype.newbyteorder("<"))
            digest.update(data.nbytes.to_bytes(8, "little"))
            digest.update(data.tobytes())
        else:
            texts = [
                str(t).encode()
                for t in (tensor.ravel().tolist() if isinstance(tensor, np.ndarray) else tensor)
            ]
            digest.update(len(texts).to_bytes(8, "little"))
            for text in texts:
                digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()


def check_kinds(golden: Golden, types: Mapping[str, str]) -> None:
    """Refuse columns of another kind than their field has: offsets are counted in its items.

    Args:
        types: field or stored reference -> type in the feature spec.
    Raises: GoldenMismatchError.
    """
    for name, column in golden.columns.items():
        if name in types and column.kind != slot_kind(types[name]):
            raise GoldenMismatchError(
                f"golden column {clip(name)} holds `{column.kind}`, the feature spec says `{types[name]}`",
                hint="golden.msgpack and features.json are of two releases; pack again",
            )


def check_tensors(golden: Golden, found_sha256: str) -> None:
    """Raises: GoldenMismatchError when the feature program makes other tensors of the golden rows."""
    if found_sha256 != golden.tensors_sha256:
        raise GoldenMismatchError(
            f"the features of {golden.n_rows} golden rows have SHA-256 `{found_sha256[:12]}...`, expected "
            f"`{golden.tensors_sha256[:12]}...`",
            hint="this build computes features differently from the one that packed the release; please report it",
        )


def check_scores(
    golden: Golden,
    scores: "NDArray[np.float32]",
    actions: Sequence[str] | None,
    *,
    same_machine: bool,
    tolerance: float,
) -> None:
    """Compare what the models answer now with what they answered when packing.

    Args:
        scores: float32, one per golden row. actions: the policy's answers to them; None without a policy.
        same_machine: CPU class and ONNX Runtime are those of the manifest; scores must then be bit-equal.
        tolerance: largest accepted difference elsewhere (`Manifest.tolerance.golden`).
    Raises: GoldenMismatchError, which names the first row.
    """
    expected = golden.score_values()
    if scores.shape != expected.shape:
        raise GoldenMismatchError(f"Expected {expected.size} golden scores, got shape {scores.shape}")
    wrong = scores.view(np.uint32) != expected.view(np.uint32)
    if not same_machine:
        scale = np.maximum(1.0, np.abs(expected.astype(np.float64)))
        far = np.abs(scores.astype(np.float64) - expected.astype(np.float64)) > tolerance * scale
        wrong = far | ~np.isfinite(scores)
    if wrong.any():
        row = int(wrong.argmax())
        raise GoldenMismatchError(
            f"golden row {row} scores {float(scores[row])!r}, expected {float(expected[row])!r} "
            f"({int(wrong.sum())} of {expected.size} rows differ)",
            hint="the engine computes this model differently here; pack the release on this kind of machine",
        )
    if golden.actions is not None and actions is not None and tuple(actions) != golden.actions:
        row = next(i for i, (a, b) in enumerate(zip(actions, golden.actions, strict=True)) if a != b)
        raise GoldenMismatchError(
            f"golden row {row} leads to {clip(actions[row])}, expected {clip(golden.actions[row])}",
            hint="scores or thresholds differ from those that the release was packed with",
        )


# ---- the CPU class ---------------------------------------------------------------------------------------------------

# Instruction sets by which ONNX Runtime chooses its kernels, and with them the last bits of a result.
_X86 = [
    "avx",
    "f16c",
    "fma",
    "avx2",
    "avx_vnni",
    "avx_vnni_int8",
    "avx512f",
    "avx512bw",
    "avx512dq",
    "avx512vl",
]
_X86_MORE = ["avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"]
_ARM = ["asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"]


@functools.lru_cache(maxsize=1)
def cpu_class() -> str:
    """Name of the group of CPUs that compute a model to the same bits: architecture and vector instruction sets."""
    machine = platform.machine().lower() or "unknown"
    found: set[str] = set()
    if sys.platform == "linux":
        try:
            with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - as hashlib
                text = file.read(8192)  # the first processor is enough, and machines have hundreds
        except OSError:
            text = ""
        for line in text.splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                found = set(value.split())
                break
    flags = [flag for flag in (*_X86, *_X86_MORE, *_ARM) if flag in found]
    return f"{sys.platform}-{machine}" + (f"+{'+'.join(flags)}" if flags else "")


# ---- checks ----------------------------------------------------------------------------------------------------------


def _views(column: GoldenColumn) -> Canonical:
    values = np.frombuffer(column.values, dtype=_VALUES[column.kind])
    return (
        values.reshape(-1, column.width) if column.kind == "vector" else values,
        None if column.valid is None else np.frombuffer(column.valid, dtype=np.uint8),
        None if column.offsets is None else np.frombuffer(column.offsets, dtype="<i8"),
        None if column.children is None else np.frombuffer(column.children, dtype="<i8"),
    )


def array_values(one: GoldenArray) -> "NDArray[Any]":
    """The inverse of `array_of`, for one without an `array_problem`."""
    if one.dtype == "string":
        cells = np.empty(len(one.texts), dtype=object)
        cells[:] = one.texts
        return cells.reshape(one.shape)
    return np.frombuffer(one.values, dtype=np.dtype(one.dtype).newbyteorder("<")).reshape(one.shape)


def _problem(golden: Golden) -> str | None:
    """What is wrong with decoded golden rows: everything that could make a reader look past its bytes."""
    n = golden.n_rows
    if len(golden.scores) not in (0, 4 * n):
        return f"{len(golden.scores)} bytes of scores for {n} rows"
    if golden.actions is not None and len(golden.actions) != n:
        return f"{len(golden.actions)} actions for {n} rows"
    if golden.rows_per_run not in (1, n):
        return f"{golden.rows_per_run} rows per run"
    if bool(golden.columns) and bool(golden.arrays):
        return "both columns and arrays"
    for name, states in golden.states.items():
        if len(states) != n or max(states) >= N_STATES:
            return f"{len(states)} states of {clip(name)} for {n} rows, or some that there are not"
    for name, column in golden.columns.items():
        problem = _column_problem(column, n)
        if problem is not None:
            return f"column {clip(name)} {problem}"
    for name, one in golden.arrays.items():
        problem = array_problem(one)
        if problem is not None:
            return f"array {clip(name)} {problem}"
    return None


def _column_problem(column: GoldenColumn, n: int) -> str | None:
    if column.valid is not None and len(column.valid) != n:
        return f"has {len(column.valid)} validity bytes for {n} rows"
    size = np.dtype(_VALUES[column.kind]).itemsize
    if len(column.values) % size:
        return "ends in the middle of a value"
    n_values = len(column.values) // size
    nested = column.kind == "text" or column.kind.startswith("list")
    if nested != (column.offsets is not None) or (column.kind == "list[str]") != (
        column.children is not None
    ):
        return "has other offsets than its kind needs"
    if not nested:
        wanted = n * (column.width if column.kind == "vector" else 1)
        return None if n_values == wanted else f"has {n_values} values, expected {wanted}"
    if column.children is not None:
        problem = _offsets_problem(column.children, None, n_values)
        if problem is not None:
            return problem
        n_values = len(column.children) // 8 - 1
    return _offsets_problem(column.offsets or b"", n, n_values)


def _offsets_problem(data: bytes, n: int | None, n_values: int) -> str | None:
    if len(data) % 8 or len(data) < 8 or (n is not None and len(data) != 8 * (n + 1)):
        return f"has {len(data)} bytes of offsets"
    offsets = np.frombuffer(data, dtype="<i8")
    if offsets[0] != 0 or offsets[-1] != n_values or bool((np.diff(offsets) < 0).any()):
        return "has offsets that are not ascending from 0 to its number of values"
    return None


def array_problem(one: GoldenArray) -> str | None:
    """What is wrong with a decoded array: everything that `array_values` could trip over."""
    if one.dtype not in _ARRAYS:
        return f"has dtype {clip(one.dtype)}"
    cells = 1
    for size in one.shape:
        cells *= size
    if one.dtype == "string":
        return (
            None
            if len(one.texts) == cells and not one.values
            else f"has {len(one.texts)} texts for {cells} cells"
        )
    wanted = cells * np.dtype(one.dtype).itemsize
    return (
        None
        if len(one.values) == wanted and not one.texts
        else f"has {len(one.values)} bytes, expected {wanted}"
    )


def slot_kind(field_type: str) -> str:
    """Kind of golden column for a field or stored type of the feature spec."""
    if field_type in ("str", "bytes"):
        return "text"
    return "int" if field_type in ("int", "bool", "timestamp") else field_type


def libm_version() -> str:
    """The C library whose `expf` and `exp` finish a forest's score: "glibc 2.36"; empty where it does not tell."""
    return " ".join(part for part in platform.libc_ver() if part)


def by_slot(columns: Mapping[str, Canonical], kinds: Mapping[str, str]) -> dict[str, GoldenColumn]:
    """Canonical columns -> golden columns; `kinds` maps a reference to its type in the feature spec."""
    return {ref: column_of(slot_kind(kinds[ref]), canonical) for ref, canonical in columns.items()}
