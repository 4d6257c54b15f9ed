"""Requests in every form, batches and rankings: the engine against the plain NumPy twin, bit by bit.

Each test runs the engine as a loaded release does (bare.py), and compares the arrays that its model would have got.
Whole tables: test_reference_table.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import numpy as np
import pytest
from bare import BarePipeline
from hypothesis import given
from strategies import Case, as_request, as_wire, cases, same_bits

from retailinfer._native import reference
from retailinfer.errors import FeatureError


def one(case: Case, row: int) -> Case:
    """The case with one of its rows."""
    return dataclasses.replace(case, rows=[case.rows[row]])


def outcome(case: Case, row: int) -> reference.Result | FeatureError:
    """What the twin says of one row."""
    try:
        return one(case, row).expected()
    except FeatureError as exc:
        return exc


def assert_same(got: dict[str, np.ndarray], want: dict[str, np.ndarray], form: str) -> None:
    """Compare all tensors and masks cell by cell, as bits."""
    assert got.keys() == want.keys()
    for name, cells in want.items():
        assert same_bits(got[name], cells), f"{form}, {name}: native {got[name]!r}, twin {cells!r}"


def columns_in(case: Case, want: reference.Result, *states: int) -> set[str]:
    """Names of the columns that met one of these states."""
    names = [column.name for tensor in case.body.tensors.values() for column in tensor.columns]
    return {names[i] for i in range(len(names)) if np.isin(want.states[:, i], states).any()}


def assert_decision(case: Case, want: reference.Result, decision: Any) -> None:
    """The answer lists what was missing and stale, and asks for review where a column did."""
    assert set(decision.missing) == columns_in(case, want, 1, 2, 4)
    # a stale value that then gave no result (a ratio over zero) is listed as both
    assert (
        columns_in(case, want, 3) <= set(decision.stale) <= columns_in(case, want, 3) | set(decision.missing)
    )
    assert decision.action == ("review" if want.review[0] else "pass")


def forms(pipe: BarePipeline, case: Case, row: dict[str, Any]) -> dict[str, Any]:
    """The same request as every kind of object, by the name of the form."""
    request = as_request(case.body, row)
    names = list(request)
    loose = msgspec.defstruct("Loose", [(n, object, None) for n in names])
    data = dataclasses.make_dataclass("Data", [(n, object, None) for n in names], slots=True)
    return {
        "dict": request,
        "dict without nulls": as_request(case.body, row, drop_nulls=True),
        "generated Struct": pipe.request_type(**request),
        "user's Struct": loose(**request),
        "dataclass": data(**request),
    }


def answers(pipe: BarePipeline, case: Case, row: dict[str, Any]) -> dict[str, Any]:
    """Every way to score one request: name of the form -> function that returns a decision."""
    engine, now = pipe.engine, case.now_ns
    calls: dict[str, Any] = {
        form: (lambda given=given: engine.score(given, None, now))
        for form, given in forms(pipe, case, row).items()
    }
    calls["batch of one"] = lambda: engine.score_batch([as_request(case.body, row)], False, now)[0]
    json = msgspec.json.encode(as_wire(case.body, row, text=True))
    calls["JSON"] = lambda: msgspec.convert(
        msgspec.json.decode(engine.score_json(json, None, now)), decision_type()
    )
    pack = msgspec.msgpack.encode(as_wire(case.body, row, text=False))
    decode = msgspec.msgpack.Decoder(pipe.request_type).decode
    calls["MessagePack"] = lambda: msgspec.msgpack.decode(
        engine.score_msgpack(pack, decode, msgspec.msgpack.encode, None, now), type=decision_type()
    )
    return calls


def decision_type() -> Any:
    """The type of an answer."""
    from retailinfer.contracts import Decision

    return Decision


@given(case=cases(max_rows=3))
def test_every_form_of_a_request_gives_the_bits_of_the_twin(case):
    """Dict, Structs, dataclass, JSON and MessagePack fill the same cells, or fail alike, and answer alike."""
    pipe = BarePipeline(case)
    for i, row in enumerate(case.rows):
        want = outcome(case, i)
        for form, call in answers(pipe, case, row).items():
            if isinstance(want, FeatureError):
                with pytest.raises(type(want)) as caught:
                    call()
                place = "$[0]" if form == "batch of one" else "$"
                assert caught.value.path == place + want.path.removeprefix("$[0]")
                continue
            decision = call()
            assert_same(pipe.last(), want.tensors, form)
            assert_decision(case, want, decision)


@given(case=cases(max_rows=8))
def test_a_batch_gives_the_bits_of_its_rows(case):
    """Requests together fill the cells that each fills alone; a row that fails leaves the others as they are."""
    pipe = BarePipeline(case)
    wants = [outcome(case, i) for i in range(len(case.rows))]
    given_ = [list(forms(pipe, case, row).values())[i % 5] for i, row in enumerate(case.rows)]
    got = pipe.engine.score_batch(given_, True, case.now_ns)
    good = [w for w in wants if not isinstance(w, FeatureError)]
    if good:
        together = {name: np.concatenate([w.tensors[name] for w in good]) for name in pipe.names}
        assert_same(pipe.last(), together, "batch")
    for i, (want, decision) in enumerate(zip(wants, got, strict=True)):
        if isinstance(want, FeatureError):
            assert type(decision) is type(want)
            assert decision.path == f"$[{i}]" + want.path.removeprefix("$[0]")
        else:
            assert_decision(case, want, decision)
