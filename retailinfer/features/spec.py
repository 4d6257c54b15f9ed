"""FeatureSpec: the one definition of a model's inputs, for training and for serving.

Rules:
  * A spec is immutable; `fit` returns a new one. It holds everything that decides a cell: fields, columns, vocabularies,
    learned numbers, and the time zone's transitions (so that another machine's zone data cannot change an answer).
  * `fingerprint` is the SHA-256 of the canonical JSON of exactly that: owners and sources, which no answer depends on, are
    left out. The drift baseline is kept beside it, outside.
  * Everything that can be checked without data is checked in the constructor, and the error says what to mend.
Learning from data is fit.py, compiling is program.py, running over tables is transform.py.
"""

# No `from __future__ import annotations` here: msgspec would compile every one of them when a release is loaded.

import datetime as dt
import keyword
import math
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from retailinfer.columns import ACTIONS, Column, Where, WindowDef, checked
from retailinfer.errors import ModelError, SpecError, clip

if TYPE_CHECKING:
    import os

    import numpy as np

    from retailinfer._native.program import Program
    from retailinfer.features.canonical import Columns
    from retailinfer.features.streams import EntityWindows, StreamProgram
    from retailinfer.features.transform import FeatureMatrix

__all__ = [
    "ArrayInput",
    "Copied",
    "Entity",
    "FeatureSpec",
    "Field",
    "Fitted",
    "Source",
    "Stream",
    "StreamBody",
    "Tensor",
    "Timestamp",
    "Vocabulary",
]

FORMAT = 1  # of features.json; raised when an older library could not read it
DTYPES: dict[str, int] = {"float32": 1, "int32": 6, "int64": 7, "string": 8, "bool": 9, "float64": 11}
# What arrays may also be: ONNX element type -> name.
ARRAY_DTYPES = {v: k for k, v in DTYPES.items()} | {
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    10: "float16",
    12: "uint32",
    13: "uint64",
}
SCALAR_KINDS = frozenset({"numeric", "ratio", "difference", "product", "elapsed", "dot", "cosine", "bins"})
FIELD_TYPES = ("float", "int", "str", "bool", "bytes", "timestamp", "list[float]", "list[int]", "list[str]")
STORED_TYPES = ("float", "int", "str", "bool", "bytes", "timestamp", "vector")
MAX_COLUMNS = 4096
MAX_CELLS = 2**18  # of a tensor's row: a workspace holds 512 rows
MAX_TEXT = 65536
MAX_PEOPLE = 256  # characters of a name that only people read
FLOAT32_MAX = 3.4028234663852886e38
EXACT_IN_DOUBLE = 2**53  # integers up to here


class Timestamp:
    """Type of a request field that holds a moment.

    Accepted: an aware `datetime`, RFC 3339 text on the wire, or a number of seconds since the Unix epoch. Kept as int64
    nanoseconds with the precision of a microsecond. A naive datetime is refused: nobody knows which moment it means.
    """


class Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One input of the model: columns side by side in one dtype.

    Args:
        columns: what stands in a row, from left to right.
        dtype: float32, float64, int32, int64, bool or string.
        axis: "rows" = one row a candidate; "context" = one row for all candidates of a ranking.
        mask: name of a second input of the same shape: 1 where a cell holds a value, 0 where it is padding or filled.
        mask_dtype: bool, float32, int32 or int64.
    """

    columns: tuple[Column, ...]
    dtype: str = "float32"
    axis: Literal["rows", "context"] = "rows"
    mask: str | None = None
    mask_dtype: str = "bool"


class Vocabulary(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Values with a code each; may be shared by several columns.

    Args:
        values: in the order of their codes; learned by `fit`, most frequent first, unless `frozen`.
        frozen: the values are given and stay (the rows of a trained embedding fix them).
        max_size, min_count: what `fit` keeps.
        oov: "first" = code 0 is the unknown value and known ones start at 1; "last" = the unknown value comes after them;
            "zeros" = no one-hot cell is set; "refuse" = FeatureRangeError.
    """

    values: tuple[str | int, ...] = ()
    frozen: bool = False
    max_size: int | None = None
    min_count: int = 1
    oov: str = "first"

    @property
    def size(self) -> int:
        """Number of codes, the unknown value's included."""
        return len(self.values) + (self.oov in ("first", "last"))


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What fills a table or a stream, outside this process: a view of the warehouse, a topic. For lineage only.

    Args:
        name: as people know it: "warehouse.cards_daily".
        owner: who answers for it.
        sha256: of what defines it, in hex; `Source.defined` takes the definition itself.
    """

    name: str
    owner: str | None = None
    sha256: str | None = None

    @classmethod
    def defined(cls, name: str, definition: str | bytes, *, owner: str | None = None) -> "Source":
        """With the digest of its definition: a query, a schema, whatever changes when the meaning of its values does."""
        import hashlib  # noqa: PLC0415 - brings OpenSSL's library; importing the package need not

        data = definition.encode() if isinstance(definition, str) else definition
        return cls(name, owner, hashlib.sha256(data).hexdigest())


class Entity(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What has rows in a table: its key, as one or several request fields, and where they cannot be told, column types.

    Args:
        key: request fields, in the order of the table's key.
        columns: stored column -> "float", "int", "str", "bool", "bytes", "timestamp" or "vector". Only needed for text and
            integers that are compared, hashed or coded without `fit` having seen them.
        owner: who answers for the table. source: what fills it. Both stand in the manifest of a release that reads it.
    """

    key: tuple[str, ...]
    columns: dict[str, str] = {}
    owner: str | None = None
    source: Source | None = None


class Field(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A field of the request in its one canonical type. `wire` is its name in JSON and MessagePack."""

    name: str
    type: str
    optional: bool = False
    wire: str = ""


class Stream(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Events that windows count and that are not requests: labels, clicks, returns.

    Args:
        fields: as `request` of a spec: field -> type, a msgspec Struct type or a dataclass. None: the requests themselves.
        event_time: the Timestamp field that says when it happened; None: when it arrives.
        owner: who answers for the events. source: where they come from. Both stand in the manifest of a release that
            counts them.
    """

    fields: Any
    event_time: str | None = None
    owner: str | None = None
    source: Source | None = None


class StreamBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A stream as a spec keeps it. `is_request`: its events are the requests; it has their fields and event time."""

    fields: tuple[Field, ...] = ()
    event_time: str | None = None
    is_request: bool = False
    owner: str | None = None
    source: Source | None = None


class ArrayInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An input that the caller brings as an array (`FeatureSpec.from_model`). None in a shape means any size."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


class Fitted(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What `fit` learned for one column. Ranges are of the raw value, before clip and transform."""

    center: float | None = None
    scale: float | None = None
    seen_low: float | None = None
    seen_high: float | None = None
    targets: tuple[float, ...] | None = None  # by vocabulary position
    prior: float | None = None


class Copied(msgspec.Struct, frozen=True):
    """How a spec made by `FeatureSpec.from_sklearn` compares with what it was copied from, on the sample.

    rows: compared. exact: every cell is the same float64 (0.0 and -0.0 count as the same). difference: the largest.
    tolerance: cell -> how far it may be off, for cells that go through log1p: ours and NumPy's differ in the last bits.
    """

    rows: int
    exact: bool
    difference: float
    tolerance: dict[str, float]


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """features.json: exactly what decides a cell, and who answers for what is read."""

    format: int = FORMAT
    fields: tuple[Field, ...] = ()
    event_time: str | None = None
    tz: str = "UTC"
    zone_at_s: tuple[int, ...] = ()
    zone_offset_s: tuple[int, ...] = (0,)
    entities: dict[str, Entity] = {}
    streams: dict[str, StreamBody] = {}
    windows: dict[str, WindowDef] = {}
    candidate: str | None = None
    vocabularies: dict[str, Vocabulary] = {}
    tensors: dict[str, Tensor] = {}
    arrays: tuple[ArrayInput, ...] = ()
    extra: Literal["forbid", "ignore"] = "forbid"
    stored: dict[str, str] = {}
    fitted: dict[str, Fitted] = {}
    is_fitted: bool = False


class FeatureSpec:
    """The model's inputs, declared once.

    Args:
        request: field -> str, float, int, bool, bytes, `ri.Timestamp` or a list of str, float, int; `X | None` where it may
            be absent or null. Or a msgspec Struct type or a dataclass, whose fields are taken.
        event_time: the Timestamp field that says when the event happened; `elapsed` is measured up to it.
        tz: IANA time zone in which parts of timestamps are read.
        entities: name -> request field(s) that hold its key, or an `Entity`.
        streams: name -> what its events are, for window columns: None = the requests themselves (one stream at most), a
            mapping of fields, a Struct type or a dataclass, or an `ri.Stream` with an event time of its own.
        candidate: the entity whose keys are ranked; its key field comes from the candidates, not from the context.
        vocabularies: name -> `Vocabulary`, for columns that share one.
        columns: short form for one float32 tensor named "features". What `c.lag` returns may stand among them as it is.
        windows: windows that only other columns refer to, by name.
        tensors: name -> `Tensor`, one per input of the model.
        extra: unknown request fields are refused ("forbid") or dropped ("ignore").
    Raises: SpecError.
    """

    def __init__(
        self,
        *,
        request: Mapping[str, Any] | type,
        event_time: str | None = None,
        tz: str = "UTC",
        entities: Mapping[str, str | Sequence[str] | Entity] | None = None,
        streams: Mapping[str, Any] | None = None,
        candidate: str | None = None,
        vocabularies: Mapping[str, Vocabulary] | None = None,
        columns: Sequence[Column | Sequence[Column]] = (),
        tensors: Mapping[str, Tensor] | None = None,
        windows: Sequence[Column | Sequence[Column]] = (),
        extra: Literal["forbid", "ignore"] = "forbid",
    ) -> None:
        if bool(columns) == bool(tensors):
            raise SpecError(
                "Expected either `columns` (one float32 matrix) or `tensors`, got both or neither"
            )
        if extra not in ("forbid", "ignore"):
            raise SpecError(f'Expected extra "forbid" or "ignore", got `{clip(extra)}`')
        all_tensors = {"features": Tensor(_flat(columns))} if columns else _flat_tensors(tensors or {})
        fields = _fields_of(request)
        stream_bodies = {name: _stream_body(name, given) for name, given in sorted((streams or {}).items())}
        all_tensors, all_windows = _own_windows(all_tensors, _flat(windows), stream_bodies, fields)
        bodies = {
            name: msgspec.structs.replace(e, key=_key_fields(e.key))
            if isinstance(e, Entity)
            else Entity(_key_fields(e))
            for name, e in (entities or {}).items()
        }
        at, offsets = _zone_transitions(tz)
        all_tensors, vocabs = _own_vocabularies(all_tensors, dict(vocabularies or {}))
        self._body = Body(
            fields=fields,
            event_time=event_time,
            tz=tz,
            zone_at_s=at,
            zone_offset_s=offsets,
            entities=bodies,
            streams=stream_bodies,
            windows=all_windows,
            candidate=candidate,
            vocabularies=vocabs,
            tensors=dict(sorted(all_tensors.items())),  # as features.json has them: one order everywhere
            extra=extra,
        )
        stored = check(self._body)
        fitted = not _needs_fit(self._body)
        self._body = msgspec.structs.replace(self._body, stored=stored, is_fitted=fitted)
        self.request_type: type | None = request if isinstance(request, type) else None
        self.baseline: dict[str, Any] | None = None
        self.copied: Copied | None = None

    # ---- other ways to get one ------------------------------------------------------------------------------------

    @classmethod
    def from_body(
        cls,
        body: Body,
        *,
        baseline: dict[str, Any] | None = None,
        request_type: type | None = None,
        copied: Copied | None = None,
    ) -> "FeatureSpec":
        """A spec out of a body that was checked or learned; used by `fit` and `from_json`."""
        spec = cls.__new__(cls)
        spec._body = body
        spec.request_type = request_type
        spec.baseline = baseline
        spec.copied = copied
        return spec

    @classmethod
    def from_sklearn(
        cls,
        pipeline: Any,
        *,
        sample: Any,
        request: Mapping[str, Any] | type | None = None,
        dtype: Literal["float64", "float32"] = "float64",
        extra: Literal["forbid", "ignore"] = "forbid",
    ) -> "FeatureSpec":
        """The fitted preprocessing of scikit-learn as a spec: what `pipeline.transform` gives, column by column.

        Copied are ColumnTransformer, Pipeline, FeatureUnion, StandardScaler, MinMaxScaler, MaxAbsScaler, RobustScaler,
        SimpleImputer, MissingIndicator, OneHotEncoder, OrdinalEncoder, TargetEncoder, KBinsDiscretizer, Binarizer,
        FunctionTransformer (numpy.log1p, numpy.sqrt, None), selections of columns, "passthrough" and "drop".

        Args:
            pipeline: a fitted transformer, or a Pipeline; an estimator at its end is left out: it is the model.
            sample: rows of the training table, in its dtypes: pandas, polars or anything with the Arrow stream interface.
                The spec is compared with scikit-learn on all of them.
            request: as for `FeatureSpec`; must declare the columns that are read, by name or by name on the wire. None: these
                columns, in their types; optional where the sample has a gap, or a step was made for one.
            dtype: of the tensor. float64 is what scikit-learn computes in.
            extra: as for `FeatureSpec`.
        Returns: a spec that needs no `fit` (which would add ranges and a baseline); `copied` says how it compares.
        Raises: SpecError that names every step that cannot be copied exactly, or the row and cell that differ.
        """
        from retailinfer.features.from_sklearn import from_sklearn  # noqa: PLC0415 - a later file of this package

        return from_sklearn(pipeline, sample=sample, request=request, dtype=dtype, extra=extra)

    @classmethod
    def from_json(cls, data: bytes | str) -> "FeatureSpec":
        """The inverse of `to_json`. Raises: SpecError for anything that `to_json` does not write."""
        try:
            body = msgspec.json.decode(data, type=Body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise SpecError(f"features.json is not a feature spec: {clip(str(exc), 300)}") from exc
        if body.format != FORMAT:
            raise SpecError(f"Expected features.json of format {FORMAT}, got {body.format}")
        if not body.arrays:
            stored = check(body)
            if body.stored != stored:  # types too: the program reads what they say
                raise SpecError(
                    "features.json lists other stored columns, or other types of them, than its columns refer to"
                )
        return cls.from_body(body)

    @classmethod
    def from_model(cls, model: "bytes | str | os.PathLike[str]") -> "FeatureSpec":
        """One raw input per input of an ONNX model, for a service that builds its own arrays (`scorer.score_arrays`).

        Raises: ModelError when the model cannot be read, or takes what arrays cannot hold.
        """
        from retailinfer._native.ort import OrtModel  # noqa: PLC0415 - loads ONNX Runtime's library

        if isinstance(model, bytes):
            data = model
        else:
            try:
                with open(model, "rb") as file:  # noqa: PTH123 - pathlib is for authors; a service starts without it
                    data = file.read()
            except OSError as exc:
                raise ModelError(f"cannot read the model: {exc}") from exc
        return cls.from_inputs(OrtModel(data).inputs)

    @classmethod
    def from_inputs(cls, inputs: Sequence[tuple[str, int, tuple[int | None, ...]]]) -> "FeatureSpec":
        """As `from_model`, out of (name, ONNX dtype number, shape) triples; a dimension of None means any size."""
        arrays = tuple(ArrayInput(name, ARRAY_DTYPES[dtype], tuple(shape)) for name, dtype, shape in inputs)
        return cls.from_body(Body(arrays=arrays, is_fitted=True))

    # ---- what it holds --------------------------------------------------------------------------------------------

    @property
    def body(self) -> Body:
        """The declaration and what was learned, as one immutable value."""
        return self._body

    @property
    def is_fitted(self) -> bool:
        """Nothing is left to learn from data."""
        return self._body.is_fitted

    @property
    def fields(self) -> tuple[Field, ...]:
        return self._body.fields

    @property
    def columns(self) -> tuple[Column, ...]:
        """All columns, tensor by tensor."""
        return tuple(c for t in self._body.tensors.values() for c in t.columns)

    @property
    def arrays(self) -> tuple[ArrayInput, ...]:
        """Inputs that the caller brings as arrays; empty unless made by `from_model`."""
        return self._body.arrays

    @property
    def windows(self) -> dict[str, WindowDef]:
        """Windows by name: those of columns, and those that only others refer to."""
        return self._body.windows

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the cells of a row, in order, when there is one tensor; else of all tensors one after the other."""
        return tuple(n for t in self._body.tensors for n in self.cell_names(t))

    def cell_names(self, tensor: str) -> tuple[str, ...]:
        """Names of the cells of one tensor's row."""
        return tuple(
            n
            for col in self._body.tensors[tensor].columns
            for n in column_cells(col, self._body.vocabularies)
        )

    @cached_property
    def program(self) -> "Program":
        """The compiled form. Raises: SpecError before `fit`, where something is to be learned."""
        from retailinfer.features.program import compile_program  # noqa: PLC0415 - a later file of this package

        return compile_program(self._body)

    def stream(self, name: str) -> "StreamProgram":
        """The compiled way from an event of a stream to slots. Raises: SpecError for a stream that the spec has not."""
        from retailinfer.features.streams import compile_stream  # noqa: PLC0415 - a later file of this package

        return compile_stream(self._body, name)

    def window_layout(self, stream: str | None = None) -> "tuple[EntityWindows, ...]":
        """What a request (None) or an event of a stream reads of windows and adds to them; see features/streams.py."""
        from retailinfer.features.streams import window_layout  # noqa: PLC0415 - a later file of this package

        return window_layout(self._body, stream)

    def read_events(self, table: Any, stream: str, *, first_row: int = 0) -> "Columns":
        """A table of a stream's events as canonical columns. Needs `retailinfer[arrow]`. Raises: SpecError, FeatureError."""
        from retailinfer.features.streams import read_events  # noqa: PLC0415 - a later file of this package

        return read_events(table, self._body, stream, first_row=first_row)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that can change an answer."""
        import hashlib  # noqa: PLC0415 - brings OpenSSL's library; importing the package need not

        return hashlib.sha256(
            msgspec.json.encode(_without_people(self._body), order="deterministic")
        ).hexdigest()

    def to_json(self) -> bytes:
        """Canonical JSON; equal specs give equal bytes."""
        return msgspec.json.encode(self._body, order="deterministic")

    def __repr__(self) -> str:
        b = self._body
        return (
            f"<FeatureSpec {len(b.fields)} fields, {len(self.columns)} columns in {len(b.tensors)} tensor(s), "
            f"{f'{len(b.windows)} windows, ' if b.windows else ''}{'fitted' if b.is_fitted else 'not fitted'}>"
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FeatureSpec) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    # ---- learning and running over tables -------------------------------------------------------------------------

    def fit(self, table: Any, *, label: "str | np.ndarray[Any, Any] | None" = None) -> "FeatureSpec":
        """A spec with vocabularies, centres, scales, ranges and the drift baseline learned from a table.

        Args:
            table: anything with the Arrow stream interface (pyarrow, polars, pandas). Columns: the request fields, stored
                columns under their reference ("card.mean_amount_30d"), and windows under their name.
            label: column name or array; needed by target encodings only.
        Needs `retailinfer[arrow]`. Raises: SpecError, FeatureError with the row.
        """
        from retailinfer.features.fit import fit  # noqa: PLC0415 - a later file of this package

        return fit(self, table, label=label)

    def transform(self, table: Any) -> "FeatureMatrix | dict[str, FeatureMatrix]":
        """The tensors of a table: the very cells that serving computes.

        Returns: for one tensor without a mask a matrix, shape (rows, cells), with `.names`; else a dict of them by name.
        Needs `retailinfer[arrow]`. Raises: SpecError, FeatureError with the row.
        """
        from retailinfer.features.transform import transform  # noqa: PLC0415 - a later file of this package

        return transform(self, table)

    def fit_transform(
        self, table: Any, *, label: "str | np.ndarray[Any, Any]"
    ) -> "tuple[FeatureSpec, FeatureMatrix | dict[str, FeatureMatrix]]":
        """`fit`, and the training tensors with out-of-fold values in target encodings (row i is in fold i mod folds).

        The one legal difference between training and serving: a row's own label must not be in its own feature.
        """
        from retailinfer.features.fit import fit_transform  # noqa: PLC0415 - a later file of this package

        return fit_transform(self, table, label=label)


# ---- cells ---------------------------------------------------------------------------------------------------------


def vocabulary_of(column: Column, vocabularies: Mapping[str, Vocabulary]) -> Vocabulary:
    """The vocabulary that a column reads."""
    return vocabularies[column.vocabulary or column.name]


def column_width(column: Column, vocabularies: Mapping[str, Vocabulary]) -> int:
    """Cells that a column takes in its tensor's row."""
    if column.kind == "categorical" and column.encoding == "onehot":
        return vocabulary_of(column, vocabularies).size
    if column.kind in ("embedding", "sequence"):
        return column.size or 0
    return 1 if column.cells is None else len(column.cells)


def column_cells(column: Column, vocabularies: Mapping[str, Vocabulary]) -> list[str]:
    """Names of a column's cells: "channel=web", "user.vector_0", those it declares, or just its name."""
    if column.kind == "categorical" and column.encoding == "onehot":
        vocab = vocabulary_of(column, vocabularies)
        known = [f"{column.name}={value}" for value in vocab.values]
        other = [f"{column.name}=(other)"]
        return other + known if vocab.oov == "first" else known + other if vocab.oov == "last" else known
    if column.kind in ("embedding", "sequence"):
        return [f"{column.name}_{i}" for i in range(column.size or 0)]
    return [column.name] if column.cells is None else list(column.cells)


# ---- checks --------------------------------------------------------------------------------------------------------


def check(body: Body) -> dict[str, str]:
    """Everything that can be wrong without data. Returns the stored references with their types."""
    fields = {f.name: f for f in body.fields}
    _check_fields(body.fields, body.event_time)
    _check_zone(body)
    _check_entities(body, fields)
    _check_streams(body)
    _check_people(body)
    for name, window in body.windows.items():
        checked(Column(kind="numeric", name=name, refs=(name,), window=window))
        _check_window(body, fields, name, window)
    stored: dict[str, str] = {}
    seen: set[str] = set()
    inputs: set[str] = set()
    n_columns = 0
    for name, tensor in body.tensors.items():
        if tensor.dtype not in DTYPES:
            raise SpecError(
                f"Expected dtype {tuple(DTYPES)}, got `{clip(tensor.dtype)}` - at tensor `{name}`"
            )
        if tensor.axis not in ("rows", "context"):
            raise SpecError(
                f'Expected axis "rows" or "context", got `{clip(tensor.axis)}` - at tensor `{name}`'
            )
        if tensor.mask_dtype not in ("bool", "float32", "int32", "int64"):
            raise SpecError(
                f"Expected mask_dtype bool, float32, int32 or int64, got `{clip(tensor.mask_dtype)}` - at tensor `{name}`"
            )
        if not tensor.columns:
            raise SpecError(f"tensor `{name}` has no columns")
        for label in (name, tensor.mask):
            if label is not None and label in inputs:
                raise SpecError(f"two inputs of the model are named `{label}`")
            if label is not None:
                inputs.add(label)
        for column in tensor.columns:
            n_columns += 1
            if not isinstance(column, Column):
                raise SpecError(
                    f"Expected a column of retailinfer.columns, got `{clip(column)}` - at `{name}`"
                )
            checked(column)
            if column.name in seen:
                raise SpecError(
                    f"two columns are named `{column.name}`", hint='give one of them `name="..."`'
                )
            seen.add(column.name)
            if column.window is not None and (
                column.refs != (column.name,) or body.windows.get(column.name) != column.window
            ):
                raise SpecError(
                    f"column `{column.name}` has another window than the spec lists under its name"
                )
            _check_column(body, fields, name, tensor, column, stored)
        cells = sum(column_width(column, body.vocabularies) for column in tensor.columns)
        if cells > MAX_CELLS:
            raise SpecError(f"Expected at most {MAX_CELLS} cells a row in tensor `{name}`, got {cells}")
    if n_columns > MAX_COLUMNS:
        raise SpecError(f"Expected at most {MAX_COLUMNS} columns, got {n_columns}")
    return stored


def _check_fields(fields: Sequence[Field], event_time: str | None, what: str = "request") -> None:
    types_ = {f.name: f.type for f in fields}
    if len(types_) != len(fields):
        raise SpecError(f"a {what} field is declared twice")
    for f in fields:
        if not f.name.isidentifier() or keyword.iskeyword(f.name) or f.name.startswith("__"):
            raise SpecError(f"Expected a Python identifier as field name, got `{clip(f.name)}`")
        if f.type not in FIELD_TYPES:
            raise SpecError(f"Expected a field type of {FIELD_TYPES}, got `{clip(f.type)}` - at `$.{f.name}`")
    if event_time is not None and types_.get(event_time) != "timestamp":
        raise SpecError(
            f"Expected event_time to be a {what} field of type Timestamp, got `{clip(event_time)}`"
        )


def _check_zone(body: Body) -> None:
    if (
        len(body.zone_offset_s) != len(body.zone_at_s) + 1
        or list(body.zone_at_s) != sorted(set(body.zone_at_s))
        or any(abs(s) > 86400 for s in body.zone_offset_s)
        or any(abs(s) > 2**40 for s in body.zone_at_s)
    ):
        raise SpecError("the time zone's transitions are not ascending moments with an offset each")


def _check_people(body: Body) -> None:
    """Owners are texts of one line, and a source means the same wherever it is named."""
    seen: dict[str, Source] = {}
    declared = [(f"entity `{name}`", one.owner, one.source) for name, one in body.entities.items()]
    declared += [(f"stream `{name}`", one.owner, one.source) for name, one in body.streams.items()]
    for where, owner, source in declared:
        if source is not None and not isinstance(source, Source):
            raise SpecError(f"Expected an ri.Source, got {clip(source)} - at {where}")
        texts = [owner] if source is None else [owner, source.owner, source.name]
        for text in texts:
            if text is not None and not (
                isinstance(text, str) and 0 < len(text) <= MAX_PEOPLE and text.isprintable()
            ):
                raise SpecError(
                    f"Expected a text of one line, at most {MAX_PEOPLE} characters, got {clip(text)} - at {where}"
                )
        if source is None:
            continue
        if source.sha256 is not None and not _is_sha256(source.sha256):
            raise SpecError(
                f"Expected a SHA-256 in hexadecimal, got {clip(source.sha256)} - at {where}",
                hint="ri.Source.defined(name, definition) computes it",
            )
        if seen.setdefault(source.name, source) != source:
            raise SpecError(f"source {clip(source.name)} is declared in two ways - at {where}")


def _is_sha256(text: object) -> bool:
    return isinstance(text, str) and len(text) == 64 and set(text) <= set("0123456789abcdef")


def _without_people(body: Body) -> Body:
    """The body without owners and sources."""
    bare = {"owner": None, "source": None}
    return msgspec.structs.replace(
        body,
        entities={name: msgspec.structs.replace(one, **bare) for name, one in body.entities.items()},
        streams={name: msgspec.structs.replace(one, **bare) for name, one in body.streams.items()},
    )


def _check_entities(body: Body, fields: Mapping[str, Field]) -> None:
    for name, entity in body.entities.items():
        if not name.isidentifier():
            raise SpecError(f"Expected a Python identifier as entity name, got `{clip(name)}`")
        if not entity.key:
            raise SpecError(f"entity `{name}` has no key field")
        if len(set(entity.key)) != len(entity.key):
            raise SpecError(f"the key of entity `{name}` names a field twice")
        for key in entity.key:
            if key not in fields or fields[key].type not in ("str", "int", "bytes"):
                raise SpecError(
                    f"Expected the key of entity `{name}` to be a request field of type str, int or bytes, got `{clip(key)}`",
                    hint=f"declared fields: {', '.join(fields) or 'none'}",
                )
        for column, kind in entity.columns.items():
            if kind not in STORED_TYPES:
                raise SpecError(
                    f"Expected a column type of {STORED_TYPES}, got `{clip(kind)}` - at `{name}.{column}`"
                )
    if body.candidate is not None:
        if body.candidate not in body.entities:
            raise SpecError(f"candidate `{clip(body.candidate)}` is not an entity")
        if len(body.entities[body.candidate].key) != 1:
            raise SpecError(
                f"candidate `{body.candidate}` has a key of several fields",
                hint="candidates are one id each; put the other fields into a separate entity",
            )
        if body.event_time in body.entities[body.candidate].key:
            raise SpecError("the event time cannot be the key of the candidate")


def _check_streams(body: Body) -> None:
    requests = [name for name, stream in body.streams.items() if stream.is_request]
    if len(requests) > 1:
        raise SpecError(
            f"Expected one stream of requests at most, got {', '.join(requests)}",
            hint="give the others their own fields: streams={name: {field: type}}",
        )
    for name, stream in body.streams.items():
        if not name.isidentifier():
            raise SpecError(f"Expected a Python identifier as stream name, got `{clip(name)}`")
        if stream.is_request and (stream.fields or stream.event_time):
            raise SpecError(f"stream `{name}` is the requests, and has fields of its own")
        if not stream.is_request:
            if not stream.fields:
                raise SpecError(
                    f"stream `{name}` has no fields", hint="None means that its events are the requests"
                )
            try:
                _check_fields(stream.fields, stream.event_time, "stream")
            except SpecError as exc:
                raise SpecError(f"{exc} - at stream `{name}`") from None


def _check_window(body: Body, fields: Mapping[str, Field], name: str, window: WindowDef) -> None:
    """A window against its stream and its entity; everything here names the window."""
    where = f"at window `{name}`"
    if name in fields:
        raise SpecError(
            f"the window `{name}` has the name of a request field", hint='give it another: name="..."'
        )
    if window.entity not in body.entities:
        raise SpecError(
            f"Unknown entity `{clip(window.entity)}` - {where}",
            hint=f"declared: {', '.join(body.entities) or 'none'}",
        )
    if window.on not in body.streams:
        known = ", ".join(body.streams)
        raise SpecError(
            f"Unknown stream `{clip(window.on)}` - {where}"
            if window.on
            else f"Expected on=, the stream that is counted - {where}",
            hint=f"declared: {known}"
            if known
            else 'declare it: streams={"payment": None} counts the requests themselves',
        )
    stream = body.streams[window.on]
    types_ = {f.name: f.type for f in (body.fields if stream.is_request else stream.fields)}
    for key in body.entities[window.entity].key:
        if types_.get(key) != fields[key].type:
            found = f"has it as {types_[key]}" if key in types_ else "has no such field"
            raise SpecError(
                f"Expected the key `{key}` ({fields[key].type}) of entity `{window.entity}` in stream `{window.on}`, "
                f"which {found} - {where}",
                hint="events say whose they are by the same field as requests",
            )
    if window.of is not None:
        _check_of(window, types_, where)
    for term in window.where:
        kind = types_.get(term.field)
        if kind is None:
            raise SpecError(
                f"Unknown field `{clip(term.field)}` in where - {where}",
                hint=f"stream `{window.on}` has: {', '.join(types_)}",
            )
        _check_term(term, kind, where)


def _check_of(window: WindowDef, types_: Mapping[str, str], where: str) -> None:
    kind = types_.get(window.of or "")
    if kind is None:
        raise SpecError(
            f"Unknown field `{clip(window.of)}` - {where}",
            hint=f"stream `{window.on}` has: {', '.join(types_)}",
        )
    if window.what == "distinct":
        if kind not in DISTINCT:
            raise SpecError(
                f"Expected {' or '.join(sorted(DISTINCT))} for distinct values, got {kind} - {where}",
                hint="two floats that look equal may differ: count rounded integers"
                if kind == "float"
                else None,
            )
        return
    if kind not in NUMBERS:
        raise SpecError(
            f"Expected float, int or bool for a {window.what}, got {kind} - {where}",
            hint='"distinct" counts different texts',
        )
    if window.scale is None:
        raise SpecError(
            f"Expected scale= for the {window.what} of a float - {where}",
            hint="values are added as whole numbers of 1/scale: scale=100 keeps cents",
        )


def _check_term(term: Where, kind: str, where: str) -> None:
    wanted = WHERE_TYPES.get(kind)
    if wanted is None:
        raise SpecError(f"Expected a number, text or boolean in where, `{term.field}` is {kind} - {where}")
    if type(term.value) is not wanted:
        shown = {float: "a number", int: "a whole number", str: "quoted text", bool: "true or false"}[wanted]
        raise SpecError(
            f"Expected {shown} after `{term.field} {term.op}`, got `{clip(term.value)}` - {where}"
        )
    if kind in ("str", "bool") and term.op not in ("==", "!="):
        raise SpecError(f"Expected == or != for `{term.field}`, which is {kind}, got {term.op} - {where}")
    if isinstance(term.value, int) and not -(2**63) <= term.value < 2**63:
        raise SpecError(f"Expected an integer of 64 bits in where, got `{clip(term.value)}` - {where}")
    if isinstance(term.value, str) and not _is_short_utf8(term.value):
        raise SpecError(f"Expected text that an event may hold in where, got `{clip(term.value)}` - {where}")


DISTINCT = frozenset({"str", "bytes", "int", "bool", "timestamp"})
WHERE_TYPES: dict[str, type] = {"float": float, "int": int, "str": str, "bool": bool}
NUMBERS = frozenset({"float", "int", "bool"})
KIND_TAKES: dict[str, frozenset[str]] = {
    "numeric": NUMBERS,
    "ratio": NUMBERS,
    "difference": NUMBERS,
    "product": NUMBERS,
    "elapsed": frozenset({"timestamp"}),
    "bins": NUMBERS,
    "lookup": frozenset({"float", "int", "bool", "str", "bytes", "timestamp"}),
    "boolean": frozenset({"bool"}),
    "raw": frozenset({"float", "int", "bool", "str", "bytes", "timestamp"}),
    "categorical": frozenset({"str", "int", "bool"}),
    "hashed": frozenset({"str", "bytes", "int", "bool", "timestamp"}),
    "time": frozenset({"timestamp"}),
    "equal": frozenset({"str", "bytes", "int", "float", "bool", "timestamp"}),
    "embedding": frozenset({"vector"}),
    "dot": frozenset({"vector"}),
    "cosine": frozenset({"vector"}),
    "sequence": frozenset({"list[float]", "list[int]", "list[str]"}),
}
# What a stored column is taken for when nobody said; the four kinds that read text or integers guess text until `fit`.
KIND_IMPLIES = {
    "elapsed": "timestamp",
    "time": "timestamp",
    "boolean": "bool",
    "embedding": "vector",
    "dot": "vector",
    "cosine": "vector",
}
GUESS_TEXT = frozenset({"raw", "categorical", "hashed", "equal"})


def _check_column(
    body: Body,
    fields: Mapping[str, Field],
    tensor_name: str,
    tensor: Tensor,
    column: Column,
    stored: dict[str, str],
) -> None:
    where = f"column `{column.name}`"
    if column.kind not in KIND_TAKES:
        raise SpecError(f"Unknown kind of column `{clip(column.kind)}` - at {where}")
    types_ = [_ref_type(body, fields, column, ref, stored) for ref in column.refs]
    for ref, kind in zip(column.refs, types_, strict=True):
        if kind not in KIND_TAKES[column.kind]:
            raise SpecError(
                f"Expected {' or '.join(sorted(KIND_TAKES[column.kind]))} for c.{column.kind}, got {kind} "
                f"- at {where}, reference `{ref}`"
            )
    if column.kind == "elapsed" and len(column.refs) == 1 and body.event_time is None:
        raise SpecError(
            f"{where} measures up to the event time", hint="give the spec `event_time=` or `until`"
        )
    if column.kind == "equal":
        text = {"str", "bytes"}
        if (types_[0] in text) != (types_[1] in text):
            raise SpecError(
                f"{where} compares {types_[0]} with {types_[1]}", hint="both text, or both numbers"
            )
    if column.max_age_ns is not None and not any("." in r for r in column.refs):
        raise SpecError(
            f"{where} has max_age, but reads no stored column",
            hint="request fields are never stale, and windows say so themselves",
        )
    _check_dtype(tensor_name, tensor, column, types_, where)
    _check_vocabulary(body, column, types_, where)
    _check_table(tensor_name, tensor, column, types_, where)
    _check_defaults(body, tensor, column, types_, where)
    _check_axis(body, tensor, column, where)


def _ref_type(
    body: Body, fields: Mapping[str, Field], column: Column, ref: str, stored: dict[str, str]
) -> str:
    if ref in fields:
        return fields[ref].type
    if ref in body.windows:
        return "float"
    entity, dot, name = ref.partition(".")
    if not dot or entity not in body.entities or not name:
        known = [*fields, *(f"{e}.<column>" for e in body.entities), *body.windows]
        raise SpecError(
            f"Unknown reference `{clip(ref)}` - at column `{column.name}`",
            hint=f"known: {', '.join(known)}",
        )
    declared = body.entities[entity].columns.get(name) or body.stored.get(ref)
    if declared is not None:
        stored[ref] = declared
        return declared
    implied = KIND_IMPLIES.get(column.kind) or ("str" if column.kind in GUESS_TEXT else "float")
    if column.kind == "lookup" and column.keys:
        first = column.keys[0]
        implied = "str" if isinstance(first, str) else "int" if isinstance(first, int) else "float"
    before = stored.setdefault(ref, implied)
    if before != implied:
        if {before, implied} == {"str", "float"} or {before, implied} == {"str", "bool"}:
            raise SpecError(
                f"`{ref}` is read both as {before} and as {implied}",
                hint=f'say which: entities={{"{entity}": ri.Entity(key=..., columns={{"{name}": "int"}})}}',
            )
        raise SpecError(f"`{ref}` is read both as {before} and as {implied} - at column `{column.name}`")
    return implied


def _check_dtype(name: str, tensor: Tensor, column: Column, types_: Sequence[str], where: str) -> None:
    text = {"str", "bytes"}
    if (tensor.dtype == "string") != (column.kind == "raw" and types_[0] in text):
        raise SpecError(
            f"{where} cannot stand in tensor `{name}` of dtype {tensor.dtype}",
            hint="text goes through c.raw into a string tensor, and only there",
        )
    floats = tensor.dtype in ("float32", "float64")
    norm = column.transform is not None or column.center is not None or column.scale is not None
    norm = (norm or bool(column.steps)) and column.kind != "bins"  # what bins hold is declared
    if not floats and (norm or column.kind in ("ratio", "dot", "cosine", "embedding", "elapsed")):
        raise SpecError(
            f"{where} has fractions, tensor `{name}` is {tensor.dtype}", hint="use a float tensor"
        )
    if not floats and (column.encoding == "target" or (column.part or "").endswith(("_sin", "_cos"))):
        raise SpecError(
            f"{where} has fractions, tensor `{name}` is {tensor.dtype}", hint="use a float tensor"
        )


def _check_vocabulary(body: Body, column: Column, types_: Sequence[str], where: str) -> None:
    if column.encoding not in ("index", "onehot", "target"):
        return
    if (column.vocabulary or column.name) not in body.vocabularies:
        raise SpecError(f"{where} has no vocabulary")
    vocab = vocabulary_of(column, body.vocabularies)
    if vocab.oov not in ("first", "last", "zeros", "refuse"):
        raise SpecError(f"Expected oov first, last, zeros or refuse, got `{clip(vocab.oov)}` - at {where}")
    if vocab.oov == "zeros" and column.encoding != "onehot":
        raise SpecError(f'oov="zeros" exists for one-hot columns only - at {where}')
    if vocab.frozen and not vocab.values:
        raise SpecError(f"the vocabulary of {where} is frozen and empty")
    for value in vocab.values:
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise SpecError(f"Expected text or integers as vocabulary of {where}, got `{clip(value)}`")
        if isinstance(value, str) and not _is_short_utf8(value):
            raise SpecError(f"the vocabulary of {where} holds text that no request can, `{clip(value)}`")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise SpecError(
                f"the vocabulary of {where} holds an integer of more than 64 bits, `{clip(value)}`"
            )
    if len(set(vocab.values)) != len(vocab.values):
        raise SpecError(f"the vocabulary of {where} holds a value twice")
    if column.kind == "sequence" and types_[0] == "list[float]":
        raise SpecError(f"{where} codes floats", hint='use encoding="number" or a list of int or str')
    wants = str if types_[0] in ("str", "list[str]") else int
    if vocab.values and not all(isinstance(v, wants) for v in vocab.values):
        raise SpecError(f"Expected a vocabulary of {wants.__name__} for {where}, got {clip(vocab.values[0])}")


def _check_table(name: str, tensor: Tensor, column: Column, types_: Sequence[str], where: str) -> None:
    """Keys in the type of what they are compared with, and numbers that the tensor holds."""
    if column.kind == "lookup" and column.keys:
        text = isinstance(column.keys[0], str)
        if types_[0] in ("bytes", "timestamp") or text != (types_[0] == "str"):
            raise SpecError(
                f"Expected keys that a value of type {types_[0]} can equal, got `{clip(column.keys[0])}` - at {where}"
            )
        for key in column.keys:
            if isinstance(key, str) and not _is_short_utf8(key):
                raise SpecError(f"{where} has a key that no request can hold, `{clip(key)}`")
            if types_[0] in ("int", "bool") and (key != int(key) or not -(2**63) <= key < 2**63):
                raise SpecError(
                    f"Expected keys that a value of type {types_[0]} can equal, got `{clip(key)}` - at {where}"
                )
    if column.kind not in ("bins", "lookup") or tensor.dtype in ("float32", "float64"):
        return
    held: list[Any] = [*(column.on or ()), *(column.off or ())]
    if column.cells is None:
        held = [*(column.values or ()), *([column.other] if column.kind == "lookup" else [])]
    for value in held:
        if value is None:
            raise SpecError(
                f"NaN cannot stand in tensor `{name}` of dtype {tensor.dtype} - at {where}",
                hint='give every value a number, and say other=number or "refuse"',
            )
        if isinstance(value, str):  # "refuse"
            continue
        if value != int(value) or not _fits(value, tensor.dtype):
            raise SpecError(
                f"Expected numbers that {tensor.dtype} holds, got `{clip(value)}` - at {where}",
                hint="use a float tensor",
            )


def _check_defaults(body: Body, tensor: Tensor, column: Column, types_: Sequence[str], where: str) -> None:
    scalar_only = (
        tensor.dtype not in ("float32", "float64", "string")
        and column.kind not in ("categorical", "hashed", "sequence")
        and column.cells is None
        and _can_be_missing(body, column)
    )
    for outcome in ("unknown", "null", "on_stale", "on_unavailable"):
        value = getattr(column, outcome)
        is_action = value in ACTIONS if isinstance(value, str) else False
        if value is None or (outcome == "on_stale" and is_action):
            continue
        if is_action:
            if scalar_only and value in ("use", "review"):
                raise SpecError(
                    f'{outcome}="{value}" would put NaN into {tensor.dtype} - at {where}',
                    hint='give a default value, or "refuse"',
                )
            continue
        if column.kind == "sequence":
            raise SpecError(f"{where} is padded when it is missing; {outcome} takes an action, not a default")
        text_default = types_[0] in ("str", "bytes") and column.kind in ("categorical", "hashed", "raw")
        if text_default != isinstance(value, str):
            wanted = "text" if text_default else "a number"
            raise SpecError(f"Expected {wanted} or an action for {outcome}, got `{clip(value)}` - at {where}")
        if column.kind == "hashed" and len(column.refs) > 1:
            raise SpecError(f"a cross of fields has no default; {outcome} takes an action - at {where}")
        if not isinstance(value, str):
            _check_default(tensor, column, outcome, value, where)
    if column.kind == "sequence":
        whole = column.encoding != "number" or tensor.dtype in ("int32", "int64")
        if (whole and column.pad != int(column.pad)) or not _fits(column.pad, tensor.dtype):
            raise SpecError(
                f"Expected a pad that {tensor.dtype} holds, got `{clip(column.pad)}` - at {where}"
            )


def _check_default(tensor: Tensor, column: Column, outcome: str, value: float, where: str) -> None:
    """A default that could never stand in its cell is found here, not with the first missing value."""
    if column.kind == "lookup" and column.cells is not None:
        return  # which cell is set: checked with the column
    codes = column.kind in ("categorical", "hashed")
    whole = codes or tensor.dtype in ("int32", "int64")
    if whole and (value != int(value) or not -(2**63) <= value < 2**63):
        raise SpecError(f"Expected a whole number of 64 bits for {outcome}, got `{clip(value)}` - at {where}")
    if column.kind in SCALAR_KINDS:
        if isinstance(column.clip, tuple):
            low, high = column.clip
            value = value if low is None else max(value, low)
            value = value if high is None else min(value, high)
        outside = (column.transform == "log1p" and value <= -1) or (column.transform == "sqrt" and value < 0)
        if outside and column.clip != "train":
            raise SpecError(
                f"Expected a raw value in the domain of {column.transform} for {outcome}, got `{clip(value)}` - at {where}",
                hint="a default stands for the raw value, before the transform",
            )
        if column.kind == "bins" or column.steps:
            return  # what comes out is declared, or depends on more than the default
        if (column.transform, column.center, column.scale, column.clip) != (None,) * 4:
            return  # what comes out depends on what is learned
    exact = tensor.dtype != "int64" or column.kind == "raw" or abs(value) <= EXACT_IN_DOUBLE
    if not codes and not (exact and _fits(value, tensor.dtype)):  # only c.raw stores an integer as it came
        raise SpecError(
            f"Expected a number that {tensor.dtype} holds for {outcome}, got `{clip(value)}` - at {where}"
        )


def _fits(value: float, dtype: str) -> bool:
    if dtype == "float32":
        return abs(value) <= FLOAT32_MAX
    if dtype == "int32":
        return -(2**31) <= value < 2**31
    return -(2**63) <= value < 2**63 if dtype == "int64" else True


def _is_short_utf8(text: str) -> bool:
    """Text that a request may hold: no lone surrogates, at most 64 KiB."""
    try:
        return len(text.encode()) <= MAX_TEXT
    except UnicodeEncodeError:
        return False


def _can_be_missing(body: Body, column: Column) -> bool:
    optional = {f.name for f in body.fields if f.optional}
    return column.kind in ("ratio", "cosine") or any(
        "." in r or r in optional or r in body.windows for r in column.refs
    )


def _check_axis(body: Body, tensor: Tensor, column: Column, where: str) -> None:
    if tensor.axis == "context" and body.candidate is not None:
        own = set(body.entities[body.candidate].key)
        for ref in column.refs:
            entity = ref.partition(".")[0] if "." in ref else None
            if ref in body.windows:
                entity = body.windows[ref].entity
            keys = set(body.entities[entity].key) if entity in body.entities else {ref}
            if keys & own:
                raise SpecError(
                    f'{where} differs between candidates, but its tensor has axis="context" - at `{ref}`'
                )


def _needs_fit(body: Body) -> bool:
    for tensor in body.tensors.values():
        for column in tensor.columns:
            learned = (column.center, column.scale, column.clip)
            if any(isinstance(v, str) for v in learned) or column.encoding == "target":
                return True
            if column.encoding in ("index", "onehot") and not vocabulary_of(column, body.vocabularies).frozen:
                return True
    return False


# ---- what the constructor takes ------------------------------------------------------------------------------------


def _flat(columns: Any) -> tuple[Column, ...]:
    """Columns with the tuples that `c.lag` returns opened up."""
    found: list[Column] = []
    for column in columns:
        if isinstance(column, (list, tuple)):
            found += _flat(column)
        else:
            found.append(column)
    return tuple(found)


def _flat_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise SpecError(f"Expected ri.Tensor, got `{clip(tensor)}` - at tensor `{name}`")
    return {n: msgspec.structs.replace(t, columns=_flat(t.columns)) for n, t in tensors.items()}


def _stream_body(name: str, given: Any) -> StreamBody:
    if given is None:
        return StreamBody(is_request=True)
    stream = given if isinstance(given, Stream) else Stream(given)
    said: dict[str, Any] = {
        "event_time": stream.event_time,
        "owner": stream.owner,
        "source": stream.source,
    }
    if stream.fields is None:
        return StreamBody(is_request=True, **said)
    try:
        return StreamBody(fields=_fields_of(stream.fields), **said)
    except SpecError as exc:
        raise SpecError(
            f"{exc} - at stream `{name}`", hint="None means that the stream's events are the requests"
        ) from None


def _own_windows(
    tensors: Mapping[str, Tensor],
    declared: Sequence[Column],
    streams: Mapping[str, StreamBody],
    fields: Sequence[Field],
) -> tuple[dict[str, Tensor], dict[str, WindowDef]]:
    """Complete what windows leave to the spec: stream, name, scale, the types of constants. All of them, by name.

    What cannot be completed stays as it is: `check` says what is wrong with it.
    """
    windows: dict[str, WindowDef] = {}

    def complete(column: Column) -> Column:
        if not isinstance(column, Column) or column.window is None:
            return column
        definition = _completed(column.window, streams, fields)
        auto = not column.refs
        name = f"{column.name}_{definition.on}" if auto and len(streams) > 1 else column.name
        if windows.setdefault(name, definition) != definition:
            raise SpecError(f"two windows are named `{name}`", hint='give one of them `name="..."`')
        return msgspec.structs.replace(column, name=name, refs=(name,), window=definition)

    for column in declared:
        if not isinstance(column, Column) or column.window is None:
            raise SpecError(f"Expected c.window or c.lag, got `{clip(column)}` - at windows")
        made = complete(column)
        if made != Column(kind="numeric", name=made.name, refs=made.refs, window=made.window):
            raise SpecError(
                f"the window `{made.name}` says what becomes of its value, but no tensor holds it - at windows",
                hint='give transforms and outcomes to the columns that refer to it (and fill="use" to c.lag)',
            )
    out = {
        name: msgspec.structs.replace(tensor, columns=tuple(complete(col) for col in tensor.columns))
        for name, tensor in tensors.items()
    }
    return out, dict(sorted(windows.items()))


def _completed(window: WindowDef, streams: Mapping[str, StreamBody], fields: Sequence[Field]) -> WindowDef:
    on = window.on or (next(iter(streams)) if len(streams) == 1 else "")
    stream = streams.get(on)
    if stream is None:
        return window
    types_ = {f.name: f.type for f in (fields if stream.is_request else stream.fields)}
    scale = window.scale
    if (
        scale is None
        and window.what not in ("count", "distinct")
        and types_.get(window.of or "") in ("int", "bool")
    ):
        scale = 1
    where = tuple(_typed(term, types_.get(term.field)) for term in window.where)
    return msgspec.structs.replace(window, on=on, scale=scale, where=where)


def _typed(term: Where, kind: str | None) -> Where:
    """A constant in the type of its field: 100 is 100.0 beside floats; beside integers, > 99.5 is >= 100."""
    value = term.value
    if isinstance(value, (bool, str)):
        return term
    if kind == "float":
        return msgspec.structs.replace(term, value=float(value))
    if kind == "int" and isinstance(value, float):
        if value.is_integer():
            return msgspec.structs.replace(term, value=int(value))
        if term.op in ("<", "<="):
            return msgspec.structs.replace(term, op="<=", value=math.floor(value))
        if term.op in (">", ">="):
            return msgspec.structs.replace(term, op=">=", value=math.ceil(value))
    return term


def _own_vocabularies(
    tensors: Mapping[str, Tensor], shared: dict[str, Vocabulary]
) -> tuple[dict[str, Tensor], dict[str, Vocabulary]]:
    """Give each column that codes values, and names no shared vocabulary, one under its own name."""
    out: dict[str, Vocabulary] = {}
    for name, vocab in shared.items():
        if not isinstance(vocab, Vocabulary) or not isinstance(vocab.values, (tuple, list)):
            raise SpecError(
                f"Expected ri.Vocabulary with a tuple of values, got `{clip(vocab)}` - at `{name}`"
            )
        out[name] = msgspec.structs.replace(vocab, values=tuple(vocab.values))
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise SpecError(f"Expected ri.Tensor, got `{clip(tensor)}` - at tensor `{name}`")
        for column in tensor.columns:
            if not isinstance(column, Column):
                raise SpecError(
                    f"Expected a column of retailinfer.columns, got `{clip(column)}` - at tensor `{name}`"
                )
            if column.encoding not in ("index", "onehot", "target"):
                continue
            if column.vocabulary is not None:
                if column.vocabulary not in shared:
                    raise SpecError(
                        f"Unknown vocabulary `{clip(column.vocabulary)}` - at column `{column.name}`",
                        hint=f"declared: {', '.join(shared) or 'none'}",
                    )
                continue
            if column.name in shared:
                raise SpecError(
                    f"column `{column.name}` has the name of a shared vocabulary",
                    hint=f'say vocabulary="{column.name}" to use it, or rename the column',
                )
            out[column.name] = Vocabulary(
                max_size=column.max_size, min_count=column.min_count, oov=column.oov
            )
    return dict(tensors), out


_SCALARS = {float: "float", int: "int", str: "str", bool: "bool", bytes: "bytes", Timestamp: "timestamp"}


def _key_fields(key: str | Sequence[str]) -> tuple[str, ...]:
    """One field may be given as plain text; text is never a sequence of letters."""
    return (key,) if isinstance(key, str) else tuple(key)


def _fields_of(request: Mapping[str, Any] | type) -> tuple[Field, ...]:
    if isinstance(request, Mapping):
        return tuple(_field(name, kind, "") for name, kind in request.items())
    if isinstance(request, type) and issubclass(request, msgspec.Struct):
        hints = typing.get_type_hints(request)
        return tuple(
            _field(f.name, hints[f.name], "" if f.encode_name == f.name else f.encode_name)
            for f in msgspec.structs.fields(request)
        )
    import dataclasses  # noqa: PLC0415 - few requests are declared so

    if isinstance(request, type) and dataclasses.is_dataclass(request):
        hints = typing.get_type_hints(request)
        return tuple(_field(f.name, hints[f.name], "") for f in dataclasses.fields(request))
    raise SpecError(
        f"Expected a mapping of fields, a msgspec Struct or a dataclass as request, got `{clip(request)}`"
    )


def _field(name: str, kind: Any, wire: str) -> Field:
    if not isinstance(name, str):
        raise SpecError(f"Expected text as field name, got `{clip(name)}`")
    optional = False
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        args = [a for a in typing.get_args(kind) if a not in (type(None), msgspec.UnsetType)]
        optional = len(args) < len(typing.get_args(kind))
        if len(args) == 1:
            kind = args[0]
    if kind is dt.datetime:
        kind = Timestamp
    if isinstance(kind, type) and kind in _SCALARS:
        return Field(name, _SCALARS[kind], optional, wire)
    if typing.get_origin(kind) in (list, tuple) and typing.get_args(kind)[:1]:
        item = typing.get_args(kind)[0]
        if item in (float, int, str):
            return Field(name, f"list[{item.__name__}]", optional, wire)
    raise SpecError(
        f"Expected str, float, int, bool, bytes, ri.Timestamp or a list of str, float or int, got `{clip(kind)}` "
        f"- at `$.{name}`"
    )


def _zone_transitions(tz: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Moments (seconds since the epoch, 1970 to 2100) at which the zone's offset changes, and the offsets between them."""
    if tz == "UTC":
        return (), (0,)
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError  # noqa: PLC0415 - most services know UTC only

    try:
        zone = ZoneInfo(tz)
    except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
        raise SpecError(
            f"Unknown time zone `{clip(tz)}`",
            hint="an IANA name such as Europe/London; `pip install tzdata`?",
        ) from exc

    def offset(at_s: int) -> int:
        delta = dt.datetime.fromtimestamp(at_s, tz=zone).utcoffset()
        return 0 if delta is None else int(delta.total_seconds())

    step, last = (
        14 * 86400,
        4_102_444_800,
    )  # no zone changes twice within two weeks in these years but for Ramadan pauses
    at: list[int] = []
    offsets = [offset(0)]
    start = 0
    while start < last:
        stop = min(start + step, last)
        if offset(stop) != offsets[-1]:
            low, high = start, stop
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if offset(middle) == offsets[-1] else (low, middle)
            at.append(high)
            offsets.append(offset(high))
            start = high
        else:
            start = stop
    return tuple(at), tuple(offsets)
