"""Scorer and Ranker when something fails: real releases behind every rung, faults by requests, sources and clocks.

Rules:
  * The release of these tests takes the square root of the amount, so a negative amount has no score: that is its fault.
  * The release before it takes e to the minus amount: it answers those, down to some -88, where float32 ends.
The ladder on its own is test_ladder.py.
"""

from __future__ import annotations

import functools
import json
import threading
from typing import Any

import msgspec
import numpy as np
import pytest
import releases

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.clock import ManualClock
from retailinfer.errors import (
    BundleError,
    CallerError,
    ConfigError,
    FeatureTypeError,
    RequestError,
    ScoreError,
    ServingError,
    SpecError,
    Unavailable,
)
from retailinfer.monitoring.events import Answered, Changed, Failed

MS = 10**6
POLICY = ri.Policy([("approve", 0.0), ("review", 0.5), ("decline", 0.9)])
FALLBACK = ri.Fallback(score=0.6, rules=[("till == true", "approve"), ("amount < -1000", "decline")])
GOOD = {"card": "c1", "amount": 0.04, "till": False}
BAD = {"card": "c1", "amount": -0.25, "till": False}  # no square root; 1.28 to the release before
WORSE = {"card": "c1", "amount": float(-5000), "till": False}  # infinity to the release before
TILL = WORSE | {"till": True}


def spec(**more: Any) -> ri.FeatureSpec:
    """Fields of a payment; `more` are fields that only one release has."""
    return ri.FeatureSpec(
        request={"card": str, "amount": float, "till": bool} | more,
        entities={"card": "card"},
        columns=[c.numeric("amount")],
    )


def golden() -> Any:
    """Payments that the release can score."""
    import pyarrow as pa

    return pa.table({"card": ["a", "b"], "amount": [0.04, 0.5], "till": [True, False]})


@functools.cache
def now_files(use_case: Any = None, kinds: tuple[Any, ...] = (), deadline_ms: Any = None) -> dict[str, bytes]:
    """The release."""
    contract = ri.Contract(
        use_case=use_case,
        deadline_ms=deadline_ms,
        max_rows=100,
        ladder=tuple(k if isinstance(k, ri.Rung) else ri.Rung(kind=k) for k in kinds),
    )
    return releases.packed(
        "now",
        releases.weighted(1.0, then=("Sqrt",)),
        spec(),
        policy=POLICY,
        golden=golden(),
        contract=contract,
        fallback=FALLBACK,
        engine="onnx",
        info={"version": "2"},
    )


@functools.cache
def before_files(scale: str | None = None) -> dict[str, bytes]:
    """The release before."""
    ladder = () if scale is None else (ri.Rung(kind="last_score", scale=scale),)
    return releases.packed(
        "before",
        releases.weighted(-1.0, then=("Exp",)),
        spec(),
        policy=ri.Policy([("approve", 0.0), ("review", 1.5), ("decline", 2.0)]),
        golden=golden(),
        contract=ri.Contract(ladder=ladder),
        engine="onnx",
        info={"version": "1"},
    )


def scorer_of(*kinds: Any, **options: Any) -> ri.Scorer:
    """The release with a ladder."""
    files = now_files(options.pop("use_case", None), tuple(kinds), options.pop("deadline_ms", None))
    if "previous" in [k if isinstance(k, str) else k.kind for k in kinds]:
        options.setdefault("previous", before_files())
    found: ri.Scorer = releases.scorer_of(files, **options)
    return found


class Heard:
    """A hook that keeps what it hears."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.changed = threading.Event()

    def on_event(self, event: Any) -> None:
        self.events.append(event)
        if isinstance(event, Changed):
            self.changed.set()

    def of(self, kind: type) -> list[Any]:
        """Events of one kind."""
        return [event for event in self.events if type(event) is kind]


# ---- rung by rung ----------------------------------------------------------------------------------------------------


def test_release_answers_as_if_there_were_no_ladder():
    """Same bits, same fields; rung 0."""
    plain, laddered = scorer_of(), scorer_of("previous", "last_score", "static")
    one, other = plain.score(GOOD, request_id="r"), laddered.score(GOOD, request_id="r")
    assert one == other
    assert one.rung == 0


def test_previous_release_answers_with_its_own_model_and_says_so():
    """A score that the release cannot make comes from the release before: rung 1, its name, the caller's id."""
    heard = Heard()
    scorer = scorer_of("previous", "static", hooks=[heard])
    made = scorer.score(BAD, request_id="order-1")
    assert (made.id, made.action, made.rung) == ("order-1", "approve", 1)
    assert made.score == pytest.approx(np.exp(0.25))
    assert made.release == "before:1"
    (event,) = heard.of(Answered)
    assert (event.answer, event.request, event.why) == (made, BAD, "ScoreError")
    assert event.took_ns > 0


def test_previous_release_that_lacks_a_field_answers_without_it():
    """Fields that only the new release knows are left out, not refused."""
    files = releases.packed(
        "newer",
        releases.weighted(1.0, then=("Sqrt",)),
        spec(device=str | None),
        policy=POLICY,
        golden=golden().append_column("device", golden()["card"]),
        contract=ri.Contract(ladder=(ri.Rung(kind="previous"),)),
        engine="onnx",
    )
    scorer = releases.scorer_of(files, previous=before_files())
    assert scorer.score(BAD | {"device": "phone"}).rung == 1
    assert scorer.score(scorer.request_type(**BAD, device="phone")).rung == 1
    assert json.loads(scorer.score_json(json.dumps(BAD | {"device": "phone"}).encode()))["rung"] == 1


def test_last_score_of_the_entity_answers_by_the_policy_of_now():
    """What the card got last, as long as it is young enough; never for another card."""
    clock = ManualClock()
    scorer = scorer_of(ri.Rung(kind="last_score", max_age_s=60), store=ri.Store(clock=clock))
    with pytest.raises(Unavailable):
        scorer.score(BAD)
    first = scorer.score(GOOD | {"amount": 0.49})
    made = scorer.score(BAD)
    assert (made.rung, made.score, made.action) == (3, first.score, "review")
    with pytest.raises(Unavailable):
        scorer.score(BAD | {"card": "c2"})
    clock.advance_ns(30 * 10**9)
    assert scorer.score(BAD).rung == 3
    clock.advance_ns(31 * 10**9)
    with pytest.raises(Unavailable):  # its own answer in between has not made the score younger
        scorer.score(BAD)


def test_last_score_of_an_entity_can_be_erased():
    """`forget` takes the entity's score, and no other's."""
    scorer = scorer_of("last_score", "static")
    for card in ("c1", "c2"):
        scorer.score(GOOD | {"card": card})
    assert [scorer.forget("c1"), scorer.forget("c1"), scorer.forget("nobody")] == [True, False, False]
    assert scorer.score(BAD).rung == 4
    assert scorer.score(BAD | {"card": "c2"}).rung == 3
    assert scorer_of().forget("c1") is False


def test_only_so_many_entities_are_remembered():
    """The oldest go first, and a null key is nobody's."""
    scorer = scorer_of(ri.Rung(kind="last_score", max_entities=3), "static")
    for i in range(5):
        scorer.score(GOOD | {"card": f"c{i}"})
    assert [scorer.score(BAD | {"card": f"c{i}"}).rung for i in range(5)] == [4, 4, 3, 3, 3]


@pytest.mark.parametrize(("scale", "rung"), [(None, 4), ("risk", 3)])
def test_scores_of_the_release_before_are_of_another_scale(scale: str | None, rung: int):
    """What it computed is remembered for a release that says it means the same, and for no other."""
    kinds = "previous", ri.Rung(kind="last_score", scale=scale), "static"
    scorer = scorer_of(*kinds, previous=before_files(scale))
    assert scorer.score(BAD).rung == 1
    assert scorer.score(WORSE).rung == rung


def test_static_rung_answers_by_rule_then_by_prior():
    """The first rule that holds gives the action; without one the policy decides by the prior."""
    scorer = scorer_of("static")
    assert (scorer.score(BAD).action, scorer.score(BAD).score) == ("review", pytest.approx(0.6))
    assert scorer.score(WORSE).action == "decline"
    made = scorer.score(TILL)
    assert (made.action, made.rung, made.reasons) == ("approve", 4, ())
    assert made.release == scorer.manifest.release


# ---- doors -------------------------------------------------------------------------------------------------------------


def test_every_door_of_a_scorer_goes_down_the_ladder():
    """Objects, JSON, MessagePack, batches and coroutines get the same answer from the same rung."""
    import asyncio

    scorer = scorer_of("previous", "static")
    expected = scorer.score(BAD, request_id="r")
    assert (
        msgspec.json.decode(scorer.score_json(msgspec.json.encode(BAD), request_id="r"), type=ri.Decision)
        == expected
    )
    packed = scorer.score_msgpack(msgspec.msgpack.encode(BAD), request_id="r")
    assert msgspec.msgpack.decode(packed, type=ri.Decision) == expected
    assert asyncio.run(scorer.ascore(BAD, request_id="r")) == expected
    assert asyncio.run(scorer.ascore(scorer.request_type(**BAD), request_id="r")) == expected


def test_only_the_rows_that_failed_go_down():
    """A batch keeps the release's bits for the good rows; `errors` decides about rows that nobody could answer."""
    scorer = scorer_of("previous")
    rows = [GOOD, BAD, GOOD | {"amount": 0.25}, {"card": "c", "amount": "x", "till": False}]
    for errors in ("raise", "row"):
        made: Any = scorer.score_batch(rows[:3], errors=errors)
        assert [d.rung for d in made] == [0, 1, 0]
        assert [d.score for d in made] == [scorer.score(row).score for row in rows[:3]]
    assert [d.rung for d in scorer.score_batch(iter(rows[:3]))] == [0, 1, 0]
    mixed: Any = scorer.score_batch(rows, errors="row")
    assert isinstance(mixed[3], FeatureTypeError)
    with pytest.raises(FeatureTypeError, match=r"\$\[3\]"):
        scorer.score_batch(rows)


def test_otherwise_is_returned_as_it_is_and_never_for_a_callers_mistake():
    """None is a value; a request that is none raises all the same; bytes doors return it too."""
    scorer = scorer_of()
    mine = object()
    assert scorer.score(BAD, otherwise=mine) is mine
    assert scorer.score(BAD, otherwise=None) is None
    assert scorer.score_json(msgspec.json.encode(BAD), otherwise=None) is None
    assert scorer.score_msgpack(msgspec.msgpack.encode(BAD), otherwise=b"later") == b"later"
    assert scorer.score(GOOD, otherwise=None).rung == 0  # type: ignore[union-attr]
    assert scorer.score(GOOD, deadline_ms=0, otherwise=mine) is mine
    with pytest.raises(ScoreError):
        scorer.score(BAD)
    with pytest.raises(FeatureTypeError):
        scorer.score(GOOD | {"amount": "much"}, otherwise=None)
    with pytest.raises(RequestError):
        scorer.score_json(b"{", otherwise=None)
    with pytest.raises(CallerError):
        scorer.score(GOOD, at="noon", otherwise=None)  # type: ignore[arg-type]


def test_failures_are_told_with_the_callers_id():
    """What nobody answered is an event too, also where there is no ladder and where the caller had an `otherwise`."""
    heard = Heard()
    scorer = scorer_of(hooks=[heard])
    scorer.score(BAD, request_id="order-9", otherwise=None)
    (event,) = heard.of(Failed)
    assert (event.error, event.request_id, event.release, event.late) == (
        "ScoreError",
        "order-9",
        scorer.manifest.release,
        False,
    )
    assert scorer.health().unanswered == 1


def test_failures_in_batches_are_told_row_by_row():
    """With and without a ladder; a batch that fails as a whole is one event."""
    for kinds in ((), ("previous",)):
        heard = Heard()
        scorer = scorer_of(*kinds, hooks=[heard])
        made = scorer.score_batch([GOOD, WORSE, WORSE], errors="row")
        assert [isinstance(one, ServingError) for one in made] == [False, True, True]
        assert [event.error for event in heard.of(Failed)] == [("Unavailable" if kinds else "ScoreError")] * 2
        assert len(heard.of(Answered)) == 1
    heard = Heard()
    scorer = scorer_of(hooks=[heard])
    with pytest.raises(ScoreError, match=r"\$\[1\]"):
        scorer.score_batch([GOOD, WORSE, WORSE])
    assert [event.error for event in heard.of(Failed)] == ["ScoreError"]


def test_hooks_that_fail_cost_nobody_an_answer():
    """On every rung: the answer comes, the failure is counted."""

    class Broken:
        def on_event(self, event: Any) -> None:
            raise RuntimeError("sink")

    scorer = scorer_of("previous", hooks=[Broken()])
    with pytest.warns(RuntimeWarning, match="raised RuntimeError"):
        assert scorer.score(GOOD).rung == 0
    assert scorer.score(BAD).rung == 1
    assert scorer.health().hook_failures >= 2


# ---- what was declared -----------------------------------------------------------------------------------------------------


def test_rungs_have_to_be_declared():
    """Who brings a release before must have said that it may answer; nothing answers that was not reviewed."""
    with pytest.raises(ConfigError, match="no such rung"):
        scorer_of(previous=before_files())


def test_rung_that_nobody_brought_is_absent_and_passed_over():
    """A contract is made once, hosts differ."""
    scorer = releases.scorer_of(now_files(None, ("previous", "static")))
    assert scorer.score(BAD).rung == 4
    assert [(r.kind, r.state) for r in scorer.health().rungs] == [("previous", "absent"), ("static", "ready")]


def test_release_before_that_cannot_be_trusted_is_not_loaded():
    """It is verified as the release is."""
    files = dict(before_files())
    files["policy.json"] = files["policy.json"].replace(b"1.5", b"1.4")
    with pytest.raises(BundleError):
        scorer_of("previous", previous=files)


def test_contract_can_be_laid_over_by_configuration(tmp_path):
    """A mapping, JSON or TOML; other fields stay; what contradicts the release is refused."""
    files = now_files(None, ("static",), 50)
    asks: Any = {"deadline_ms": 7, "ladder": [{"kind": "static", "max_ms": 3}]}
    (tmp_path / "c.json").write_bytes(msgspec.json.encode(asks))
    (tmp_path / "c.toml").write_text('deadline_ms = 7\nladder = [{kind = "static", max_ms = 3}]\n')
    for way in (asks, str(tmp_path / "c.json"), tmp_path / "c.toml"):
        found = releases.scorer_of(files, contract=way).contract
        assert (found.deadline_ms, found.ladder[0].max_ms, found.max_rows) == (7, 3, 100)
    assert (
        releases.scorer_of(files, contract={"ladder": (ri.Rung(kind="static"),)}).contract.deadline_ms == 50
    )
    for wrong in (
        {"deadline": 5},
        {"deadline_ms": -5},
        {"ladder": [{"kind": "prayer"}]},
        5,
        str(tmp_path / "none.json"),
        {5: 5},
    ):
        with pytest.raises(ConfigError):
            releases.scorer_of(files, contract=wrong)
    (tmp_path / "c.json").write_bytes(b"{")
    with pytest.raises(ConfigError, match="cannot be read"):
        releases.scorer_of(files, contract=tmp_path / "c.json")
    with pytest.raises(SpecError):
        releases.scorer_of(files, contract={"ladder": [{"kind": "static", "decisions": ["dance"]}]})


@pytest.mark.parametrize("other", [None, "recommendation"])
def test_configuration_does_not_change_what_a_release_is_for(other: Any):
    """Else a file on a host could let a rule of a fraud release approve."""
    files = now_files("fraud", ("static",))
    with pytest.raises(ConfigError, match="use_case"):
        releases.scorer_of(
            files, contract={"use_case": other, "ladder": [{"kind": "static", "decisions": ["approve"]}]}
        )
    assert releases.scorer_of(files, contract={"use_case": "fraud"}).contract.use_case == "fraud"


@pytest.mark.parametrize("rung", ["static", ri.Rung(kind="last_score")])
def test_fraud_never_approves_below_the_remote(rung: Any):
    """Whatever the rule says and whatever the card got last: from rung 3 on fraud is a person's to decide."""
    scorer = scorer_of(rung, use_case="fraud")
    assert scorer.score(GOOD).action == "approve"
    for request in (BAD, WORSE, TILL):
        made = scorer.score(request)
        assert made.rung >= 3
        assert made.action == "review"


def test_fraud_cannot_be_configured_to_approve_by_rule():
    """The use case's rule holds for configuration as it does for packing."""
    files = now_files("fraud", ("static",))
    with pytest.raises(SpecError, match="manual review"):
        releases.scorer_of(files, contract={"ladder": [{"kind": "static", "decisions": ["approve"]}]})
