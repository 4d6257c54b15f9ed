"""A fitted preprocessing of scikit-learn as a feature spec: `FeatureSpec.from_sklearn`.

The way: columns of the sample (`_Sample`) -> what each step does to each of them (sklearn_steps.py) -> columns of a spec
(sklearn_cells.py) -> both on the sample, cell by cell (`_compared`).
Rules:
  * A spec that is returned has answered every row of the sample as scikit-learn did: the same float64, or, for cells that go
    through log1p, within a bound that is worked out row by row and stands in the result (`Copied`).
  * Nothing is guessed: what cannot be copied exactly is named, with the path of its step.
"""

from __future__ import annotations

import keyword
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec
import numpy as np

from retailinfer.columns import Column
from retailinfer.errors import ConfigError, FeatureError, RetailInferError, SpecError, clip
from retailinfer.features import arrow
from retailinfer.features.sklearn_cells import (
    INEXACT_STEPS,
    REFUSED,
    Cell,
    Source,
    Value,
    is_nan,
    stepped,
    to_columns,
)
from retailinfer.features.sklearn_steps import (
    Block,
    Refusals,
    check_sources,
    is_transformer,
    known_missing,
    trace,
)
from retailinfer.features.spec import Body, Copied, FeatureSpec, Field, Tensor, _fields_of, check

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["from_sklearn", "is_copy", "preprocessing_of"]

TENSOR = "features"
NAN = float("nan")
ROWS = 16_384  # of a sample that are compared at a time
EPSILON = 2.0**-52
LOG1P_ULPS = 8  # ours is within 1 ulp of the true value, and NumPy's, whichever it has on a machine, within 4


def from_sklearn(
    made: Any,
    *,
    sample: Any,
    request: Mapping[str, Any] | type | None,
    dtype: str,
    extra: Literal["forbid", "ignore"],
) -> FeatureSpec:
    """See `FeatureSpec.from_sklearn`."""
    if dtype not in ("float64", "float32"):
        raise SpecError(f"Expected dtype float64 or float32, got `{clip(dtype)}`")
    if extra not in ("forbid", "ignore"):
        raise SpecError(f'Expected extra "forbid" or "ignore", got `{clip(extra)}`')
    steps = preprocessing_of(made)
    table = _Sample(sample, steps, None if request is None else _fields_of(request))
    traced = table.traced(steps)
    columns = to_columns(traced.cells, traced.refused)
    body = Body(
        fields=table.fields(traced), tensors={TENSOR: Tensor(columns, "float64")}, extra=extra, is_fitted=True
    )
    body = msgspec.structs.replace(body, stored=check(body))
    copied = _compared(FeatureSpec.from_body(body), traced.cells, table, steps)
    return FeatureSpec.from_body(
        msgspec.structs.replace(body, tensors={TENSOR: Tensor(columns, dtype)}),
        request_type=request if isinstance(request, type) else None,
        copied=copied,
    )


def preprocessing_of(made: Any) -> Any:
    """What changes columns: the transformer itself, or a pipeline without the estimator at its end.

    Raises: SpecError where nothing is left.
    """
    steps = getattr(made, "steps", None)
    if type(made).__name__ != "Pipeline" or not isinstance(steps, list) or is_transformer(steps[-1][1]):
        return made
    if len(steps) == 1:
        raise SpecError(
            f"the pipeline has no step before `{type(steps[-1][1]).__name__}`",
            hint="there is nothing to copy: declare the columns, c.numeric(name)",
        )
    return made[:-1]


def is_copy(spec: FeatureSpec, made: Any) -> bool:
    """Whether the columns of a spec are what `from_sklearn` makes of this preprocessing, whatever they are called."""
    names = getattr(made, "feature_names_in_", None)
    if names is None or tuple(spec.body.tensors) != (TENSOR,):
        return False
    wanted = spec.body.tensors[TENSOR].columns
    rounded = {c.refs[0] for c in wanted if c.steps and c.steps[0].op == "float32"}
    fields = {f.wire or f.name: f for f in spec.fields} | {f.name: f for f in spec.fields}
    for null in (NAN, None):
        cells = []
        for name in map(str, names):
            field = fields.get(name, Field(name, "float"))
            dtype = np.dtype({"float": "f8", "int": "i8", "bool": "?"}.get(field.type, "O"))
            if field.name in rounded:
                dtype = np.dtype(np.float32)
            source = Source(name, field.name, field.type, dtype, null if dtype.kind == "O" else NAN)
            cells.append(Cell(Value(source, source.null), name, dtype))
        try:
            traced = _traced(preprocessing_of(made), Block(tuple(cells), frame=True))
            columns = to_columns(traced.cells, traced.refused)
        except RetailInferError:
            return False
        if [_unnamed(c) for c in columns] == [_unnamed(c) for c in wanted]:
            return True
    return False


def _unnamed(column: Column) -> Column:
    cells = None if column.cells is None else ("",) * len(column.cells)
    return msgspec.structs.replace(column, name="", cells=cells)


# ---- tracing ---------------------------------------------------------------------------------------------------------


class _Traced(NamedTuple):
    """The cells of the whole preprocessing, and the fields of which no value may be missing."""

    cells: tuple[Cell, ...]
    refused: frozenset[str]

    @property
    def aware(self) -> set[str]:
        """Fields whose missing values some step was made for: it fills them, or gives them a number of their own."""
        found = set()
        for cell in self.cells:
            what = cell.what
            if isinstance(what, Value):
                aware = what.missing is not REFUSED and not known_missing(what.missing)
            else:
                selector, values = what.selector, what.values
                own = selector.keys is None or not _same(values[-1], values[-2]) or selector.refuse_other
                aware = own and not selector.refuse_null and not np.isnan(values[-1])
            if aware and cell.source.field not in self.refused:
                found.add(cell.source.field)
        return found


def _same(a: float, b: float) -> bool:
    return a == b or (is_nan(a) and is_nan(b))


def _traced(steps: Any, block: Block) -> _Traced:
    """Raises: SpecError with every step that cannot be copied."""
    refusals = Refusals()
    found = trace(steps, block, "", refusals)
    refusals.raise_if_any()
    if found is None or not found.cells:
        raise SpecError("the preprocessing gives no columns")
    cells = found.cells
    try:
        names = [str(name) for name in steps.get_feature_names_out(np.array(block.names, dtype=object))]
    except Exception:  # noqa: BLE001 - a step without names raises as it likes, and cells have names of their own
        names = []
    if len(names) == len(cells):
        cells = tuple(replace(cell, name=name) for cell, name in zip(cells, names, strict=True))
    return _Traced(cells, frozenset(refusals.fields))


# ---- the sample ------------------------------------------------------------------------------------------------------


class _Facts(NamedTuple):
    """A column of the sample. `problem`: why no field can bring it."""

    type: str
    dtype: np.dtype[Any]
    null: Any  # what stands for missing values in it
    has_null: bool
    problem: str | None = None


class _Sample:
    """Rows as scikit-learn takes them, and as tables are read."""

    def __init__(self, sample: Any, steps: Any, declared: tuple[Field, ...] | None) -> None:
        self._frame, self._table = _opened(sample)
        self._declared = declared
        there = [str(name) for name in self._frame.columns]
        names = getattr(steps, "feature_names_in_", None)
        self._named = names is not None
        self.names = there if names is None else [str(name) for name in names]
        n = getattr(steps, "n_features_in_", None)
        if names is None and n is not None and n != len(there):
            raise SpecError(
                f"the preprocessing was fitted on {n} columns without names, and the sample has {len(there)}",
                hint="give the sample those columns in that order, or fit on a table with names",
            )
        self.n_rows = len(self._frame)
        if not self.n_rows:
            raise SpecError("the sample has no rows to compare")
        self._facts = {name: self._look(name) for name in self.names if name in there}
        self._fields = self._field_names()

    def for_sklearn(self, rows: slice) -> Any:
        """The columns that the preprocessing was fitted on, as far as they are there; an array where it knows no names."""
        frame = self._frame[[name for name in self.names if name in self._facts]][rows]
        return frame if self._named else frame.to_numpy()

    def table(self, fields: Sequence[Field], rows: slice) -> Any:
        """The same rows as an Arrow table, with the columns that the fields bring."""
        known = {f.name for f in fields} | {f.wire for f in fields}
        return self._arrow([str(name) for name in self._frame.columns if name in known], rows)

    def raw(self, source: Source, rows: slice) -> NDArray[np.float64]:
        """A column of numbers, NaN where a value is missing."""
        column = arrow.canonical(self._arrow([source.column], rows).column(0), "float", source.column)
        values = np.asarray(column.values, dtype=np.float64)
        return values if column.valid is None else np.where(column.valid.astype(bool), values, NAN)

    def value(self, column: str, row: int) -> Any:
        """One cell of the sample, for messages."""
        return self._arrow([column], slice(row, row + 1)).column(0)[0].as_py()

    def _arrow(self, names: list[str], rows: slice) -> Any:
        if self._table is not None:
            return self._table.select(names).slice(rows.start, rows.stop - rows.start)
        return arrow.as_table(self._frame[names][rows])

    def traced(self, steps: Any) -> _Traced:
        """The cells, with what stands for a missing value as the sample, or else the steps, show it."""
        nulls = {name: facts.null for name, facts in self._facts.items()}
        found = _traced(steps, self._block(nulls))
        open_ = {
            n for n, f in self._facts.items() if f.dtype == object and not f.has_null and f.problem is None
        }
        open_ = {name for name in open_ if self._fields[name] not in found.aware}
        if open_:  # no step knows NaN in these columns: one may know None
            other = _traced(steps, self._block(nulls | dict.fromkeys(open_)))
            knows = {name for name in open_ if self._fields[name] in other.aware}
            found = _traced(steps, self._block(nulls | dict.fromkeys(knows))) if knows else found
        self._check_used(found)
        return found

    def fields(self, traced: _Traced) -> tuple[Field, ...]:
        """What requests bring: as declared, or every column that a cell reads in the type that it has in the sample."""
        if self._declared is not None:
            return self._declared
        used = {cell.source.column for cell in traced.cells}
        aware = traced.aware
        out = []
        for column in self.names:
            if column in used:
                name, facts = self._fields[column], self._facts[column]
                optional = facts.has_null or name in aware
                out.append(Field(name, facts.type, optional, "" if name == column else column))
        return tuple(out)

    def _block(self, nulls: Mapping[str, Any]) -> Block:
        types = {f.name: f.type for f in self._declared or ()}
        cells = []
        for column in self.names:
            facts = self._facts.get(
                column, _Facts("float", np.dtype(np.float64), NAN, False, self._absent(column))
            )
            name = self._fields[column]
            problem = None if name in types and column in self._facts else facts.problem
            source = Source(
                column, name, types.get(name, facts.type), facts.dtype, nulls.get(column, NAN), problem
            )
            cells.append(Cell(Value(source, source.null), column, facts.dtype))
        block = Block(tuple(cells), frame=True)
        return block if self._named else block.as_array()

    def _absent(self, column: str) -> str:
        there = ", ".join(str(name) for name in self._frame.columns)
        return f"the sample lacks the column `{column}`, which the preprocessing reads; it has: {there}"

    def _look(self, name: str) -> _Facts:
        values = np.asarray(self._frame[name])
        has_null, null = False, NAN
        if values.dtype == object:
            missing = [v for v in values if known_missing(v)]
            has_null, null = bool(missing), missing[0] if missing else NAN
        elif values.dtype.kind == "f":
            has_null = bool(np.isnan(values).any())
        try:
            kind, problem = _field_type(self._arrow([name], slice(0, self.n_rows)).column(0).type)
        except (FeatureError, ValueError, TypeError, NotImplementedError) as exc:  # pyarrow's are among these
            kind, problem = (
                "str",
                f"its values are of several types, or of one that Arrow has not: {clip(str(exc), 100)}",
            )
        if problem is not None:
            problem = f"no request field can bring column `{name}`: {problem}"
        numeric = (
            kind != "str" and values.dtype == object
        )  # numbers and truths of pandas with gaps, or Decimals
        return _Facts(kind, values.dtype, NAN if numeric and null is not None else null, has_null, problem)

    def _field_names(self) -> dict[str, str]:
        """Column -> request field: as declared by its name or its name on the wire, or an identifier made of it."""
        if self._declared is not None:
            by_wire = {f.wire: f.name for f in self._declared if f.wire}
            return {column: by_wire.get(column, column) for column in self.names}
        taken = set(self.names)
        out: dict[str, str] = {}
        for column in self.names:
            name = column
            if not column.isidentifier() or keyword.iskeyword(column) or column.startswith("__"):
                name = re.sub(r"\W", "_", column).lstrip("_") or "field"
                name = f"f_{name}" if not name.isidentifier() or keyword.iskeyword(name) else name
                base, n = name, 1
                while name in taken:
                    n += 1
                    name = f"{base}_{n}"
                taken.add(name)
            out[column] = name
        return out

    def _check_used(self, traced: _Traced) -> None:
        """What is read is there, and a field can bring it."""
        check_sources(traced.cells)
        declared = None if self._declared is None else {f.name for f in self._declared}
        for cell in traced.cells:
            column = cell.source.column
            if declared is not None and self._fields[column] not in declared:
                raise SpecError(
                    f"the preprocessing reads column `{column}`, and request= declares no such field",
                    hint=f"declared: {', '.join(sorted(declared)) or 'none'}; a Struct type can rename a field",
                )
            if isinstance(cell.what, Value) and cell.what.is_text:
                raise SpecError(
                    f"column `{cell.name}` leaves the preprocessing as text, which no matrix of numbers holds",
                    hint="encode it: OneHotEncoder, OrdinalEncoder or TargetEncoder",
                )


def _opened(sample: Any) -> tuple[Any, Any]:
    """A sample as a DataFrame that scikit-learn takes, and as the Arrow table that it was, if it was one."""
    if hasattr(sample, "iloc") and hasattr(sample, "columns"):  # pandas
        return sample.set_axis([str(name) for name in sample.columns], axis=1), None
    if type(sample).__module__.partition(".")[0] == "polars" and hasattr(sample, "columns"):
        return (sample.collect() if hasattr(sample, "collect") else sample), None
    table = arrow.as_table(sample)
    try:
        return table.to_pandas(), table
    except ImportError as exc:
        raise ConfigError("scikit-learn takes tables as pandas frames", hint="pip install pandas") from exc


def _field_type(kind: Any) -> tuple[str, str | None]:
    """The type of a request field that brings an Arrow column, or why there is none."""
    pa = arrow.require_pyarrow()
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_boolean(kind):
        return "bool", None
    if pa.types.is_integer(kind):
        return "int", None
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "float", None
    if (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)
    ):
        return "str", None
    return "str", f"Arrow has it as {kind}; numbers, booleans and text can be copied"


# ---- comparing -------------------------------------------------------------------------------------------------------


def _compared(spec: FeatureSpec, cells: Sequence[Cell], table: _Sample, steps: Any) -> Copied:
    """Both on the sample. Raises: SpecError with the row, the cell and both values of the first difference."""
    inexact = {
        cell.name: 0.0
        for cell in cells
        if isinstance(cell.what, Value) and any(step.op in INEXACT_STEPS for step in cell.what.steps)
    }
    largest = 0.0
    for start in range(0, table.n_rows, ROWS):
        rows = slice(start, min(start + ROWS, table.n_rows))
        expected = _expected(steps, table.for_sklearn(rows))
        try:
            got = np.asarray(spec.transform(table.table(spec.fields, rows)))
        except FeatureError as exc:
            where = f", rows {start} to {rows.stop - 1}" if table.n_rows > ROWS else ""
            raise SpecError(
                f"the copy refuses a row of the sample that scikit-learn takes{where}: {exc}"
            ) from exc
        if expected.shape != got.shape:
            raise SpecError(f"scikit-learn gives {expected.shape[1]} columns, and the copy {got.shape[1]}")
        for at, cell in enumerate(cells):
            ours, theirs = got[:, at], expected[:, at]
            same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
            with np.errstate(all="ignore"):
                apart = np.where(same, 0.0, np.abs(ours - theirs))
            bound: NDArray[np.float64] | float = 0.0
            if cell.name in inexact and isinstance(cell.what, Value):
                bound = _bound(cell.what, table.raw(cell.source, rows))
                inexact[cell.name] = max(inexact[cell.name], float(np.max(bound, initial=0.0)))
            bad = np.flatnonzero(~(apart <= bound))
            if len(bad):
                row = start + int(bad[0])
                raise SpecError(
                    f"row {row} of the sample: the copy gives {float(ours[bad[0]])!r} for `{cell.name}` (reads "
                    f"`{cell.source.column}`, there {clip(table.value(cell.source.column, row))}), scikit-learn "
                    f"{float(theirs[bad[0]])!r}; {len(bad)} rows differ",
                    hint="give the sample in the dtypes of the training table; where they are the same, this is a bug of "
                    "the copy",
                )
            largest = max(largest, float(np.max(apart, initial=0.0)))
    return Copied(rows=table.n_rows, exact=largest == 0.0, difference=largest, tolerance=inexact)


def _expected(steps: Any, rows: Any) -> NDArray[np.float64]:
    """scikit-learn's matrix of rows, dense."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unknown categories, names and versions
            made = steps.transform(rows)
    except Exception as exc:  # scikit-learn raises whatever its insides raise
        raise SpecError(
            f"scikit-learn refuses the sample: {type(exc).__name__}: {clip(str(exc), 200)}",
            hint="give rows that the pipeline itself takes",
        ) from exc
    made = made.toarray() if hasattr(made, "toarray") else made
    return np.asarray(made, dtype=np.float64)


def _bound(value: Value, raw: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far apart both may be, by row: the error of log1p carried through the steps, and one rounding of each."""
    given = np.where(
        np.isnan(raw), NAN if known_missing(value.null) or value.null is REFUSED else value.null, raw
    )
    x = np.asarray(given, dtype=np.float64)
    error = np.zeros(len(x))
    with np.errstate(all="ignore"):
        for step in value.steps:
            before, x = x, stepped(x, [step])
            a = step.value or 0.0
            if step.op == "multiply":
                error = error * abs(a)
            elif step.op == "divide":
                error = error / abs(a)
            elif step.op == "log1p":
                error = error / (1.0 + before) + LOG1P_ULPS * EPSILON * np.abs(x)
            elif step.op == "sqrt":
                error = error / np.maximum(x, 1e-300)
            elif step.op == "fill":  # a declared number: what was off in the one before it is gone, NaN too
                error = np.where(np.isnan(before), 0.0, error)
            if step.op in ("add", "subtract", "multiply", "divide"):
                error = np.where(error > 0, error + EPSILON * np.abs(x), 0.0)
    return np.nan_to_num(error)
