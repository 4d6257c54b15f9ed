"""What scikit-learn made of a table, cell by cell, in a form that columns of a spec can be written from.

Every transformer that can be copied works on one column at a time: a cell is a function of one request field. Three forms are
enough, and each stays itself under whatever is done to it later:
    Value   the raw value, then steps of arithmetic; and what stands for a missing one
    Pick    one of several declared numbers, by the value (`Selector` of keys) or by the bin that a number falls into
    Hot     on or off: whether a group of values was picked; cells of one `Group` become one column again
Rules:
  * Arithmetic on a Value is a step, done in serving as scikit-learn does it in training: the same operations in the same
    order, in float64. Arithmetic on declared numbers is done here, by NumPy, as scikit-learn does it.
  * A missing value is followed as what scikit-learn sees in its place: NaN, None, or what an imputer put there.
What each transformer does to cells is sklearn_steps.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from retailinfer.columns import Column, Key, Step, checked

__all__ = [
    "REFUSED",
    "Cell",
    "Group",
    "Hot",
    "Pick",
    "Selector",
    "Source",
    "Value",
    "is_nan",
    "numbers",
    "stepped",
    "to_columns",
    "with_nan_filled",
]

F64 = NDArray[np.float64]
REFUSED: Final = "(refused)"  # a missing value that scikit-learn raises an error for
INEXACT_STEPS = frozenset({"log1p", "signed_log1p"})


@dataclass(frozen=True)
class Source:
    """A column of the table, and the request field that brings it.

    type: of the field: float, int, bool, str. dtype: as NumPy shows the column. null: what stands in it for a missing value.
    problem: why no field can bring it; an error only where a step reads it.
    """

    column: str
    field: str
    type: str
    dtype: np.dtype[Any]
    null: Any
    problem: str | None = None


@dataclass(frozen=True)
class Value:
    """The raw value of a source after `steps`. `null`: what stands for a missing raw value, before the steps."""

    source: Source
    null: Any
    steps: tuple[Step, ...] = ()

    @property
    def missing(self) -> Any:
        """What stands for a missing value after the steps."""
        if not self.steps or self.null is REFUSED:
            return self.null
        number = math.nan if self.null is None else float(self.null)
        return float(stepped(np.array([number]), self.steps)[0])

    @property
    def is_text(self) -> bool:
        return self.source.type == "str"


@dataclass(frozen=True, eq=False)
class Selector:
    """Which of several outcomes a raw value has: one a key, then all others; or one a bin. Last of all, a missing value.

    keys: of the source's own type; None: bins of the number after `before`, between `edges`.
    refuse_other: scikit-learn raises an error for what is no key. refuse_null: for a missing value.
    """

    source: Source
    keys: tuple[Key, ...] | None = None
    before: Value | None = None
    edges: tuple[float, ...] = ()
    refuse_other: bool = False
    refuse_null: bool = False

    @property
    def n(self) -> int:
        """Outcomes: keys or bins, all others (of keys), missing."""
        return len(self.edges) + 2 if self.keys is None else len(self.keys) + 2

    def refusing(self, *, other: bool, null: bool) -> Selector:
        return replace(self, refuse_other=self.refuse_other or other, refuse_null=self.refuse_null or null)


@dataclass(frozen=True, eq=False)
class Pick:
    """A declared number by outcome, shape (selector.n,)."""

    selector: Selector
    values: F64

    @property
    def source(self) -> Source:
        return self.selector.source


@dataclass(frozen=True, eq=False)
class Group:
    """Cells of which an outcome sets one, or none (-1); shape of `codes`: (selector.n,)."""

    selector: Selector
    codes: NDArray[np.int64]
    label: str = ""


@dataclass(frozen=True, eq=False)
class Hot:
    """The cell number `at` of a group: `on` where it is set, else `off`."""

    group: Group
    at: int
    on: float = 1.0
    off: float = 0.0

    @property
    def selector(self) -> Selector:
        return self.group.selector

    @property
    def source(self) -> Source:
        return self.group.selector.source

    @property
    def values(self) -> F64:
        return np.where(self.group.codes == self.at, self.on, self.off)


@dataclass(frozen=True)
class Cell:
    """One column of scikit-learn's matrix: what it holds, its name so far, and the dtype it has there."""

    what: Value | Pick | Hot
    name: str
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.float64))

    @property
    def source(self) -> Source:
        return self.what.source

    @property
    def null(self) -> Any:
        """What stands for a missing value; REFUSED where scikit-learn raises an error for one."""
        if isinstance(self.what, Value):
            return self.what.missing
        return REFUSED if self.what.selector.refuse_null else float(self.what.values[-1])


def is_nan(value: object) -> bool:
    """A float that is NaN; anything else is not."""
    return isinstance(value, (float, np.floating)) and math.isnan(value)


# ---- arithmetic ------------------------------------------------------------------------------------------------------


def stepped(values: F64, steps: Sequence[Step]) -> F64:
    """NumPy's answer to steps on numbers, as scikit-learn computes it. NaN passes, until a step fills it."""
    with np.errstate(all="ignore"):
        for step in steps:
            a, b = step.value or 0.0, step.high
            if step.op == "fill":
                values = np.where(np.isnan(values), a, values)
            elif step.op == "clip":
                values = np.clip(values, a, b)
            elif step.op == "float32":
                values = values.astype(np.float32).astype(np.float64)
            elif step.op in ("log1p", "sqrt"):
                values = np.log1p(values) if step.op == "log1p" else np.sqrt(values)
            else:
                of_two: dict[str, Any] = {"add": np.add, "subtract": np.subtract, "multiply": np.multiply}
                values = of_two.get(step.op, np.divide)(values, a)
    return values


def numbers(cell: Cell, *steps: Step) -> Cell:
    """The cell after steps, in float64."""
    what = cell.what
    made: Value | Pick | Hot
    if isinstance(what, Value):
        made = replace(what, steps=what.steps + steps)
    elif isinstance(what, Pick):
        made = Pick(what.selector, stepped(what.values, steps))
    else:
        on, off = stepped(np.array([what.on, what.off]), steps)
        made = Hot(what.group, what.at, float(on), float(off))
    return Cell(made, cell.name)


def with_nan_filled(cell: Cell, number: float) -> Cell:
    """The cell with a number where it is NaN: what an imputer does to numbers."""
    what = cell.what
    if isinstance(what, Value) and not what.steps:
        missing = what.null is None or is_nan(what.null)
        return replace(cell, what=replace(what, null=number) if missing else what)
    if isinstance(what, Value) and not is_nan(what.missing):
        return cell
    return replace(numbers(cell, Step("fill", number)), dtype=cell.dtype)


# ---- to columns ------------------------------------------------------------------------------------------------------


def to_columns(cells: Sequence[Cell], refused: frozenset[str]) -> tuple[Column, ...]:
    """Columns of a spec that hold these cells in this order. `refused`: fields of which no value may be missing."""
    taken: set[str] = set()
    columns: list[Column] = []
    at = 0
    while at < len(cells):
        cell, end = cells[at], at + 1
        if isinstance(cell.what, Hot):
            end = _run(cells, at)
            columns.append(_onehot(cells[at:end], taken, refused))
        elif isinstance(cell.what, Pick):
            columns.append(_declared(cell, cell.what, taken, refused))
        else:
            columns.append(_number(cell, cell.what, taken, refused))
        at = end
    return tuple(checked(column) for column in columns)


def _run(cells: Sequence[Cell], start: int) -> int:
    """The end of the cells from `start` on that are different cells of one group."""
    first = cells[start].what
    assert isinstance(first, Hot)
    seen: set[int] = set()
    end = start
    while end < len(cells):
        what = cells[end].what
        if not isinstance(what, Hot) or what.group is not first.group or what.at in seen:
            break
        seen.add(what.at)
        end += 1
    return end


def _unique(name: str, taken: set[str]) -> str:
    """The name, or the name with a number where another column has it."""
    made, n = name, 1
    while made in taken:
        n += 1
        made = f"{name} ({n})"
    taken.add(made)
    return made


def _arithmetic(value: Value) -> dict[str, Any]:
    """Transform, centre and scale where the steps begin so, and the rest as steps. The same operations in the same order."""
    steps = list(value.steps)
    if value.source.dtype == np.float32:
        steps.insert(0, Step("float32"))  # what the table rounded, a request is rounded to
    out: dict[str, Any] = {}
    if steps and steps[0].op in ("log1p", "sqrt"):
        out["transform"] = steps.pop(0).op
    if steps and steps[0].op == "subtract":
        out["center"] = steps.pop(0).value
    if steps and steps[0].op == "divide":
        out["scale"] = steps.pop(0).value
    return {**out, "steps": tuple(steps)}


def _null_of(value: Value, refused: frozenset[str]) -> Any:
    if value.null is REFUSED or value.source.field in refused:
        return "refuse"
    return "use" if value.null is None or is_nan(value.null) else float(value.null)


def _number(cell: Cell, value: Value, taken: set[str], refused: frozenset[str]) -> Column:
    return Column(
        kind="numeric",
        name=_unique(cell.name, taken),
        refs=(value.source.field,),
        null=_null_of(value, refused),
        **_arithmetic(value),
    )


def _table(selector: Selector, held: Sequence[float | None], refused: frozenset[str]) -> dict[str, Any]:
    """What a column of a selector has beside its name and cells.

    held: by outcome, the number (None: NaN), or with cells which of them is set (None: none).
    """
    made: dict[str, Any] = {"refs": (selector.source.field,)}
    if selector.keys is None:
        assert selector.before is not None
        null = "refuse" if selector.refuse_null else _null_of(selector.before, refused)
        made |= {"kind": "bins", "edges": selector.edges, "values": tuple(held[:-1]), "null": null}
        return made | _arithmetic(selector.before)
    refuses_null = selector.refuse_null or selector.source.field in refused
    return made | {
        "kind": "lookup",
        "keys": selector.keys,
        "values": tuple(held[:-2]),
        "other": "refuse" if selector.refuse_other else held[-2],
        "null": "refuse" if refuses_null else "use" if held[-1] is None else held[-1],
    }


def _declared(cell: Cell, pick: Pick, taken: set[str], refused: frozenset[str]) -> Column:
    held = [None if math.isnan(v) else float(v) for v in pick.values]
    return Column(name=_unique(cell.name, taken), **_table(pick.selector, held, refused))


def _onehot(run: Sequence[Cell], taken: set[str], refused: frozenset[str]) -> Column:
    hots = [cell.what for cell in run if isinstance(cell.what, Hot)]
    group, selector = hots[0].group, hots[0].selector
    place = {hot.at: float(i) for i, hot in enumerate(hots)}
    codes = [place.get(int(code)) for code in group.codes]
    on, off = tuple(hot.on for hot in hots), tuple(hot.off for hot in hots)
    return Column(
        name=_unique(group.label or run[0].name, taken),
        cells=tuple(cell.name for cell in run),
        on=None if all(v == 1.0 for v in on) else on,
        off=None if all(v == 0.0 for v in off) else off,
        **_table(selector, codes, refused),
    )
