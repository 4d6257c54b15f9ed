"""Whole tables: the compiled program against the plain NumPy twin, bit by bit, over random specs and rows.

The twin is `retailinfer._native.reference`; what is drawn is in strategies.py. Requests, batches and rankings:
test_reference_requests.py.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import Case, cases, same_bits, same_place

from retailinfer._native import reference
from retailinfer.errors import FeatureError
from retailinfer.features.canonical import Canonical, Columns
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


@given(case=cases(windows=True))
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


@given(case=cases(windows=True), data=st.data())
def test_history_gives_the_bits_of_the_twin(case, data):
    """Rows with states, ages and a moment each: tensors, masks, what each column met and who asks for review are equal."""
    n = len(case.rows)
    now_ns = np.array(
        [case.now_ns + data.draw(st.sampled_from((0, -1, 3600))) * 10**9 for _ in range(n)], np.int64
    )
    columns = reference.columns_of(case.body, case.joined())
    states, written = case.states()
    program = compile_program(case.body)
    table = Columns(n, {k: Canonical(*v) for k, v in columns.items()}, states, written, now_ns)
    reviews, flags = np.empty(n, np.uint8), np.empty((n, len(program.column_names)), np.uint8)
    try:
        want = reference.run(case.body, columns, n, now_ns=now_ns, states=states, updated_ns=written)
    except FeatureError as exc:
        refusal = exc
    else:
        refusal = None
    if refusal is not None:
        with pytest.raises(type(refusal)) as caught:
            fill(program, case.body, table)
        assert same_place(caught.value.path, refusal.path)
        return
    outs, masks, outside = fill(program, case.body, table, reviews=reviews, flags=flags)
    tensors = {}
    for (name, _, _, _, mask_name, _), out, mask in zip(program.tensors, outs, masks, strict=True):
        tensors |= {name: out} if mask_name is None else {name: out, mask_name: mask}
    assert_same(tensors, want.tensors)
    assert outside == want.outside
    np.testing.assert_array_equal(flags, want.states)
    np.testing.assert_array_equal(reviews.astype(bool), want.review)


@given(case=cases(max_rows=2, windows=True))
def test_a_spec_survives_its_json(case):
    """A spec read back from its JSON is the same spec: same bytes, same fingerprint, same cells."""
    check(case.body)
    spec = case.spec
    again = FeatureSpec.from_json(spec.to_json())
    assert again.body == case.body
    assert again.fingerprint == spec.fingerprint
