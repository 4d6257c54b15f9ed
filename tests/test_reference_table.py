"""Whole tables: the compiled program against the plain NumPy twin, bit by bit, over random specs and rows.

The twin is `retailinfer._native.reference`; what is drawn is in strategies.py. Requests, batches and rankings:
test_reference_requests.py.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from strategies import Case, cases, same_bits, same_place

from retailinfer._native import reference
from retailinfer.errors import FeatureError
from retailinfer.features.arrow import Canonical, Columns
from retailinfer.features.program import compile_program
from retailinfer.features.spec import FeatureSpec, check
from retailinfer.features.transform import fill


def native_table(case: Case, *, allow_nan: bool = True) -> tuple[dict[str, np.ndarray], list[int]]:
    """Tensors and masks of a case's rows by name, and counts of values outside the training range."""
    program = compile_program(case.body, allow_nan=allow_nan)
    columns = reference.columns_of(case.body, case.joined())
    table = Columns(len(case.rows), {k: Canonical(*v) for k, v in columns.items()})
    outs, masks, outside = fill(program, case.body, table)
    tensors = {}
    for (name, _, _, _, mask_name, _), out, mask in zip(program.tensors, outs, masks, strict=True):
        tensors[name] = out
        if mask_name is not None:
            tensors[mask_name] = mask
    return tensors, outside


def assert_same(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    """Compare all tensors and masks cell by cell, as bits."""
    assert got.keys() == want.keys()
    for name, cells in want.items():
        assert same_bits(got[name], cells), f"{name}: native {got[name]!r}, twin {cells!r}"


def surviving_rows(case: Case, *, allow_nan: bool = True) -> Case:
    """The case without the rows that both sides refuse; they must refuse the same row, for the same reason."""
    while case.rows:
        try:
            case.expected(table=True, allow_nan=allow_nan)
        except FeatureError as exc:
            refusal = exc
        else:
            break
        with pytest.raises(type(refusal)) as caught:
            native_table(case, allow_nan=allow_nan)
        assert same_place(caught.value.path, refusal.path)
        row = int(refusal.path[2 : refusal.path.index("]")])
        case = dataclasses.replace(case, rows=case.rows[:row] + case.rows[row + 1 :])
    return case


@given(case=cases())
def test_a_table_gives_the_bits_of_the_twin(case):
    """Tensors, masks and range counts of random rows under random specs are equal, and so are the refusals."""
    case = surviving_rows(case)
    want = case.expected(table=True)
    got, outside = native_table(case)
    assert_same(got, want.tensors)
    assert outside == want.outside


@given(case=cases())
def test_a_model_that_cannot_take_nan_gets_none(case):
    """With allow_nan=False a cell that would be NaN refuses its row, and nothing else changes."""
    case = surviving_rows(case, allow_nan=False)
    want = case.expected(table=True, allow_nan=False)
    got, _ = native_table(case, allow_nan=False)
    assert_same(got, want.tensors)
    assert not any(np.isnan(v).any() for v in got.values() if v.dtype.kind == "f")


@given(case=cases(max_rows=2))
def test_a_spec_survives_its_json(case):
    """A spec read back from its JSON is the same spec: same bytes, same fingerprint, same cells."""
    check(case.body)
    spec = case.spec
    again = FeatureSpec.from_json(spec.to_json())
    assert again.body == case.body
    assert again.fingerprint == spec.fingerprint
