"""Thresholds that operators move: envelopes, what holds when, and decisions that follow the clock through every door."""

from __future__ import annotations

import functools
import gc
import math
import sys
import threading

import msgspec
import numpy as np
import pytest
import releases
from hypothesis import given
from hypothesis import strategies as st

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.clock import ManualClock
from retailinfer.errors import ConfigError, ManifestError, SpecError
from retailinfer.pipeline import Pipeline, action_of
from retailinfer.policy import Policy
from retailinfer.release.overrides import MAX_OPEN, apply, open_overrides, schedule
from retailinfer.release.statements import Lift, Override, decode_statement, encode_statement, moment_text

NOW_S = 1_795_953_600
HOUR = 3_600
DIGEST, OTHER = "a" * 64, "b" * 64
BANDS = [("approve", 0.0), ("review", 0.6), ("decline", 0.92)]
POLICY = Policy(
    BANDS,
    segment_by="country",
    segments={"gb": [("approve", 0.0), ("decline", 0.95)]},
    envelope={"review": (0.4, 0.91), "decline": (0.85, 0.97)},
    segment_envelopes={"gb": {"decline": (0.9, 1.0)}},
)


def moved(seq, thresholds, begins=0, until=HOUR, *, digest=DIGEST, segment=None):
    """An override that holds from `begins` to `until`, in seconds from now."""
    return Override(
        name="fraud",
        environment="production",
        digest=digest,
        epoch=1,
        seq=seq,
        issued=moment_text(NOW_S - HOUR),
        begins=moment_text(NOW_S + begins),
        until=moment_text(NOW_S + until),
        segment=segment,
        thresholds=thresholds,
        who="anna",
        why="card testing",
    )


def lift(seq, *seqs):
    """The end of some overrides."""
    return Lift(
        name="fraud",
        environment="production",
        epoch=1,
        seq=seq,
        issued=moment_text(NOW_S),
        lifts=seqs,
        who="ben",
        why="over",
    )


def at(log, seconds=0, policy=POLICY, digest=DIGEST):
    """What holds then."""
    return apply(policy, log, digest=digest, now_s=NOW_S + seconds)


# ---- envelopes -------------------------------------------------------------------------------------------------------


def test_a_policy_with_envelopes_survives_its_json():
    """And one without keeps the bytes that it always had."""
    assert Policy.from_json(POLICY.to_json()).to_json() == POLICY.to_json()
    assert b"envelope" not in Policy(BANDS).to_json()


@pytest.mark.parametrize(
    ("envelope", "text"),
    [
        ({"approve": (0.0, 0.1)}, "never moves"),
        ({"block": (0.9, 0.95)}, "an action with one band"),
        ({"decline": (0.93, 0.97)}, "around 0.92"),
        ({"decline": (0.97, 0.85)}, "around 0.92"),
        ({"decline": (0.6, 0.97)}, "neighbours"),
        ({"decline": (0.6 + 1e-9, 0.97)}, "neighbours"),  # as float32 it is the threshold of review
        ({"review": (0.4, 0.92)}, "neighbours"),
        ({"decline": (0.85, math.inf)}, "neighbours"),
        ({"decline": (math.nan, 0.97)}, "around 0.92"),
        ({"decline": (0.85, 1e39)}, "neighbours"),
        ({"decline": 0.97}, "lowest, highest"),
        ({"decline": (0.8, 0.9, 0.97)}, "lowest, highest"),
        ({"decline": ("low", "high")}, "lowest, highest"),
        ({"decline": (0.85, 10**400)}, "lowest, highest"),
        ([("decline", 0.85, 0.97)], "got `list`"),
    ],
)
def test_an_envelope_that_could_not_be_used_is_refused(envelope, text):
    """When the policy is written, not at 3 a.m."""
    with pytest.raises(SpecError, match=text):
        Policy(BANDS, envelope=envelope)


@pytest.mark.parametrize(
    ("bands", "segments"),
    [
        ([("approve", 0.0), ("decline", 10**400)], None),
        ([("appr\ud800ve", 0.0)], None),
        ([(None, 0.0)], None),
        (BANDS, {"\ud800": BANDS}),
        (BANDS, {5: BANDS}),
        (BANDS, {None: BANDS}),
        (BANDS, {"gb": [("approve", 10**400)]}),
    ],
)
def test_a_policy_that_could_not_be_written_is_refused(bands, segments):
    """When it is made, by a typed error, and not when a release is packed."""
    by = None if segments is None else "country"
    with pytest.raises(SpecError, match="Expected"):
        Policy(bands, segment_by=by, segments=segments)


def test_an_envelope_of_a_segment_needs_bands_of_its_own():
    """The common bands are not that segment's."""
    with pytest.raises(SpecError, match="no bands of its own"):
        Policy(BANDS, segment_envelopes={"gb": {"decline": (0.85, 0.97)}})
    twice = [("approve", 0.0), ("review", 0.5), ("approve", 0.6)]
    with pytest.raises(SpecError, match="one band"):
        Policy(twice, envelope={"approve": (0.55, 0.7)})


@pytest.mark.parametrize(
    ("thresholds", "segment", "text"),
    [
        ({"decline": 0.97 + 1e-9}, None, "from 0.85 to 0.97, its envelope"),
        ({"decline": 0.85 - 1e-9}, None, "its envelope"),
        ({"decline": math.nan}, None, "its envelope"),
        ({"decline": "0.9"}, None, "its envelope"),
        ({"decline": True}, None, "its envelope"),
        ({"approve": 0.1}, None, "declares no envelope"),
        ({"block": 0.9}, None, "declares no envelope"),
        ({"decline": 0.85, "review": 0.9}, None, "ascending"),
        ({"decline": 0.9, "review": 0.9}, None, "ascending"),
        ({"decline": 0.95}, "fr", "no bands of its own"),
        ({"review": 0.5}, "gb", "declares no envelope"),
        ({}, None, "at least one"),
    ],
)
def test_a_threshold_stays_inside_its_envelope_and_between_its_neighbours(thresholds, segment, text):
    """Each refusal says what would have been allowed."""
    with pytest.raises(ConfigError, match=text):
        POLICY.moved(thresholds, segment)


def test_the_ends_of_an_envelope_belong_to_it():
    """To the last bit."""
    for low in (0.85, 0.97):
        assert POLICY.moved({"decline": low}).threshold("decline") == low
    both = POLICY.moved({"decline": 0.97, "review": 0.91})
    assert both.thresholds()[1].tolist() == np.array([0.0, 0.91, 0.97], np.float32).tolist()
    assert both.threshold("decline", "gb") == 0.95


# ---- what holds when -------------------------------------------------------------------------------------------------


def test_an_override_holds_from_its_first_moment_to_the_one_before_its_last():
    """`until` itself is over."""
    log = [moved(1, {"decline": 0.95}, begins=10, until=20)]
    found = [at(log, seconds).policy.threshold("decline") for seconds in (9, 10, 19, 20)]
    assert found == [0.92, 0.95, 0.95, 0.92]
    assert at(log, 10).trace == (
        "threshold: decline from 0.95 instead of 0.92 until 2026-11-29T12:00:20Z, override 1",
    )
    assert at(log, 9).trace == ()


def test_the_later_of_two_holds_and_then_the_earlier_again():
    """By number, whichever ends first."""
    log = [moved(2, {"decline": 0.95}, until=HOUR), moved(1, {"decline": 0.93}, until=2 * HOUR)]
    assert [at(log, s).policy.threshold("decline") for s in (0, HOUR, 2 * HOUR)] == [0.95, 0.93, 0.92]
    assert at([*log, lift(3, 2)]).policy.threshold("decline") == 0.93
    assert at([*log, lift(3, 1, 2)]).policy.threshold("decline") == 0.92


def test_an_override_of_another_release_moves_nothing():
    """Not even of the next version of this one."""
    assert at([moved(1, {"decline": 0.95}, digest=OTHER)]).moved == ()


def test_segments_are_moved_apart():
    """A segment with bands of its own does not follow the common ones."""
    log = [moved(1, {"decline": 0.96}), moved(2, {"decline": 1.0}, segment="gb")]
    policy = at(log).policy
    assert (policy.threshold("decline"), policy.threshold("decline", "gb")) == (0.96, 1.0)
    assert [text.split(" from")[0] for text in at(log).trace] == [
        "threshold: decline",
        "threshold of gb: decline",
    ]


def test_what_does_not_fit_on_top_of_others_is_refused_whole():
    """Review was moved up; a decline below it would leave no score to review."""
    log = [moved(1, {"review": 0.9}), moved(2, {"decline": 0.89})]
    found = at(log)
    assert (found.policy.threshold("review"), found.policy.threshold("decline")) == (0.9, 0.92)
    assert [(one.override.seq, "ascending" in one.why) for one in found.refused] == [(2, True)]
    outside = at([moved(1, {"decline": 0.99, "review": 0.5})])
    assert outside.moved == ()
    assert "its envelope" in outside.refused[0].why


def test_of_very_many_the_latest_count():
    """So that who may sign cannot make hosts count for minutes."""
    log = [moved(seq, {"decline": 0.9}) for seq in range(1, MAX_OPEN + 1)]
    assert len(at([moved(0 + MAX_OPEN + 1, {"decline": 0.91}), *log]).moved) == 1
    first = moved(1, {"review": 0.5}, until=2 * HOUR)
    many = [moved(seq, {"decline": 0.9}) for seq in range(2, MAX_OPEN + 2)]
    assert {one.action for one in at([first, *many]).moved} == {"decline"}


ENTRIES = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from([None, "gb", "fr"]),
            st.dictionaries(
                st.sampled_from(["approve", "review", "decline"]),
                st.sampled_from([0.4, 0.5, 0.85, 0.9, 0.91, 0.93, 0.97, 0.99]),
                min_size=1,
            ),
            st.integers(-5, 8),
            st.integers(1, 9),
            st.sampled_from([DIGEST, DIGEST, OTHER]),
        ),
        st.lists(st.integers(1, 8), min_size=1, max_size=3).map(tuple),
    ),
    max_size=8,
)


@given(ENTRIES)
def test_the_schedule_says_in_advance_what_will_hold(entries):
    """At every moment what `apply` says then; and thresholds ascend, inside their envelopes, whatever was signed."""
    log = []
    for seq, entry in enumerate(entries, 1):
        if len(entry) == 5 and not isinstance(entry[0], int):
            segment, thresholds, begins, lasts, digest = entry
            log.append(moved(seq, thresholds, begins, begins + lasts, segment=segment, digest=digest))
        else:
            log.append(lift(seq, *entry))
    steps = schedule(POLICY, log, digest=DIGEST, now_s=NOW_S)
    assert [step.from_s for step in steps] == sorted({step.from_s for step in steps})
    for seconds in range(19):
        now = apply(POLICY, log, digest=DIGEST, now_s=NOW_S + seconds)
        step = next(step for step in reversed(steps) if step.from_s <= NOW_S + seconds)
        assert (step.moved, step.policy.to_json()) == (now.moved, now.policy.to_json())
        for segment in (None, "gb"):
            lows = now.policy.thresholds(segment)[1]
            assert (np.diff(lows) > 0).all()
        assert 0.85 <= now.policy.threshold("decline") <= 0.97
        assert now.policy.threshold("approve") == 0.0
        # by hand: lifted ones, ones of others and ones that are over move nothing
        live = [
            one
            for one in log
            if isinstance(one, Override)
            and one.digest == DIGEST
            and one.begins <= moment_text(NOW_S + seconds) < one.until
            and not any(isinstance(other, Lift) and one.seq in other.lifts for other in log)
        ]
        assert {m.override.seq for m in now.moved} | {r.override.seq for r in now.refused} <= {
            o.seq for o in live
        }
    assert steps[-1].moved == ()  # everything ends


def test_what_is_open_is_what_holds_or_will():
    """Not what is over, lifted, or of another release where one is named."""
    log = [
        moved(1, {"decline": 0.9}, begins=-20, until=0),
        moved(2, {"decline": 0.9}),
        moved(3, {"decline": 0.9}, begins=HOUR, until=2 * HOUR),
        moved(4, {"decline": 0.9}),
        moved(5, {"decline": 0.9}, digest=OTHER),
        lift(6, 4),
    ]
    assert [one.seq for one in open_overrides(log, now_s=NOW_S)] == [2, 3, 5]
    assert [one.seq for one in open_overrides(log, digest=DIGEST, now_s=NOW_S)] == [2, 3]


# ---- statements ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"until": moment_text(NOW_S - HOUR)}, "lasts from"),
        ({"begins": moment_text(NOW_S - 2 * HOUR)}, "lasts from"),
        ({"until": moment_text(NOW_S + 32 * 86_400)}, "within 31 days"),
        ({"until": "2026-02-30T00:00:00Z"}, "moment"),
        ({"thresholds": {}}, "length >= 1"),
        ({"seq": 0}, ">= 1"),
        ({"digest": "short"}, "regex"),
        ({"environment": "Production!"}, "environment"),
        ({"name": "../fraud"}, "name"),
    ],
)
def test_an_override_that_contradicts_itself_is_none(changes, text):
    """Refused when it is written, and when it is read."""
    bad = msgspec.structs.replace(moved(1, {"decline": 0.9}), **changes)
    with pytest.raises(ManifestError, match=text):
        encode_statement(bad)
    with pytest.raises(ManifestError, match=text):
        decode_statement(Override, msgspec.json.encode(bad, order="deterministic"))


def test_a_lift_ends_what_came_before_it():
    """Never what does not exist yet."""
    with pytest.raises(ManifestError, match="comes after"):
        encode_statement(lift(2, 2))
    assert decode_statement(Lift, encode_statement(lift(2, 1))) == lift(2, 1)


# ---- decisions -------------------------------------------------------------------------------------------------------


@functools.cache
def files():
    """Score = value; the policy above, with reviews."""
    spec = ri.FeatureSpec(
        request={"value": float, "country": str | None},
        columns=[c.numeric("value"), c.hashed("country", buckets=4)],
    )
    return releases.packed("fraud", releases.first_column(2), spec, policy=POLICY)


def pipeline_at(clock=None):
    """The release, by a clock that stands still."""
    clock = ManualClock(wall_ns=NOW_S * 10**9) if clock is None else clock
    return Pipeline.load(files(), trust="unsigned", store=ri.Store(clock=clock)), clock


def decided(pipeline, *values, country=None):
    """Actions through every door, which must agree, with what the traces say."""
    scorer = ri.Scorer(pipeline)
    requests = [{"value": value, "country": country} for value in values]
    alone = [scorer.score(one) for one in requests]
    bodies = [msgspec.json.decode(scorer.score_json(msgspec.json.encode(one))) for one in requests]
    packs = [msgspec.msgpack.decode(scorer.score_msgpack(msgspec.msgpack.encode(one))) for one in requests]
    batch = scorer.score_batch(requests)
    said = [(one.action, one.trace) for one in alone]
    assert [(one["action"], tuple(one["trace"])) for one in bodies] == said
    assert [(one["action"], tuple(one["trace"])) for one in packs] == said
    assert [(one.action, one.trace) for one in batch] == said
    engine = pipeline.engine
    for one, (action, trace) in zip(requests, said, strict=True):
        rung = engine.finish(engine.prepare(one), one["value"], release="remote:m", rung=2)
        assert (rung.action, rung.trace) == (action, trace)
        static = engine.finish_static(one, None, one["value"], release="x:1", rung=4)
        assert (static.action, static.trace) == (action, trace)
    pa = pytest.importorskip("pyarrow")
    schema = pa.schema([("value", pa.float64()), ("country", pa.string())])
    table = scorer.score_table(pa.Table.from_pylist(requests, schema=schema))
    assert table["action"].to_pylist() == [action for action, _ in said]
    assert [action_of(pipeline.policy_in_force, value, country) for value in values] == [
        one.action for one in alone
    ]
    return [one.action for one in alone], alone[0].trace


@pytest.mark.requires("onnx", "pyarrow")
def test_decisions_follow_the_thresholds_and_go_back_by_themselves():
    """Nobody is asked when it ends: the registry may be out of reach, and the follower dead."""
    signed, clock = pipeline_at()
    digest = signed.manifest.digest
    log = [
        moved(1, {"decline": 0.95}, begins=-60, until=HOUR, digest=digest),
        moved(2, {"review": 0.5}, begins=600, until=2 * HOUR, digest=digest),
        moved(3, {"decline": 0.99}, segment="gb", digest=digest),
    ]
    pipeline = signed.with_overrides(log)
    values = (0.55, 0.93, 0.95, 0.97)
    actions, trace = decided(pipeline, *values)
    assert actions == ["approve", "review", "decline", "decline"]
    assert trace[0] == "release: unsigned"
    assert [text.partition(" until")[0] for text in trace[1:]] == [
        "threshold: decline from 0.95 instead of 0.92",
        "threshold of gb: decline from 0.99 instead of 0.95",
    ]
    assert decided(pipeline, *values, country="gb")[0] == ["approve", "approve", "approve", "approve"]
    assert decided(signed, *values)[0] == ["approve", "decline", "decline", "decline"]  # as it was
    clock.advance_ns(600 * 10**9)
    assert decided(pipeline, *values)[0] == ["review", "review", "decline", "decline"]
    clock.advance_ns((HOUR - 600) * 10**9 - 1)
    assert decided(pipeline, *values)[0] == ["review", "review", "decline", "decline"]
    clock.advance_ns(1)
    actions, trace = decided(pipeline, *values)
    assert actions == ["review", "decline", "decline", "decline"]
    assert [text.split(" from")[0] for text in trace[1:]] == ["threshold: review"]
    assert decided(pipeline, 0.97, country="gb")[0] == ["decline"]
    clock.advance_ns(HOUR * 10**9)
    assert decided(pipeline, *values) == (
        ["approve", "decline", "decline", "decline"],
        ("release: unsigned",),
    )
    assert pipeline.moved == ()
    assert pipeline.policy_in_force.to_json() == pipeline.policy.to_json() == POLICY.to_json()


@pytest.mark.requires("onnx")
def test_a_clock_that_is_set_back_brings_no_override_back():
    """In decisions: once it has ended, it has."""
    signed, clock = pipeline_at()
    pipeline = signed.with_overrides([moved(1, {"decline": 0.95}, digest=signed.manifest.digest)])
    assert pipeline.engine.score({"value": 0.93, "country": None}).action == "review"
    clock.advance_ns(HOUR * 10**9)
    assert pipeline.engine.score({"value": 0.93, "country": None}).action == "decline"
    clock.step_wall_ns(-HOUR * 10**9)
    assert pipeline.engine.score({"value": 0.93, "country": None}).action == "decline"
    assert (pipeline.policy_in_force.threshold("decline"), pipeline.moved) == (0.92, ())  # tables too


@pytest.mark.requires("onnx")
def test_an_override_of_the_year_9000_fails_no_call():
    """Clocks count to 2262: what lies after that is nobody's, and does not come early either."""
    signed, clock = pipeline_at()
    year = {
        "issued": "9000-01-01T00:00:00Z",
        "begins": "9000-01-01T00:00:00Z",
        "until": "9000-01-02T00:00:00Z",
    }
    far = msgspec.structs.replace(moved(2, {"decline": 0.86}, digest=signed.manifest.digest), **year)
    mine = moved(1, {"decline": 0.95}, until=60, digest=signed.manifest.digest)
    found = []
    for log in ([far], [mine, far]):
        pipeline = signed.with_overrides(log)
        for _ in range(2):
            found.append(pipeline.engine.score({"value": 0.9, "country": None}).action)
            clock.advance_ns(61 * 10**9)
        assert pipeline.moved == ()
    assert found == ["review"] * 4


@pytest.mark.requires("onnx")
def test_overrides_that_change_nothing_make_no_new_pipeline():
    """A follower asks every half minute."""
    signed, clock = pipeline_at()
    assert signed.with_overrides([]) is signed
    assert signed.with_overrides([moved(1, {"decline": 0.9}, digest=OTHER)]) is signed
    mine = msgspec.structs.replace(moved(1, {"decline": 0.95}), digest=signed.manifest.digest)
    first = signed.with_overrides([mine])
    assert first is not signed
    assert first.with_overrides([mine]) is first
    assert first.sessions is signed.sessions
    assert first.request_type is signed.request_type
    assert first.permits is signed.permits
    lifted = first.with_overrides([mine, lift(2, 1)])
    assert lifted is not first
    assert lifted.engine.trace == ("release: unsigned",)
    clock.advance_ns(HOUR * 10**9)
    assert first.with_overrides([mine]) is first  # it has gone back by itself


@pytest.mark.requires("onnx")
@pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="collects between bytecodes only, which no answer has inside"
)
@pytest.mark.parametrize("batch", [False, True])
def test_no_answer_is_mixed_where_a_collection_runs_in_the_middle(batch):
    """Whatever an allocation sets off: here the end of an override, and a call that puts it in force."""
    request = {"value": 0.93, "country": None}
    seen, most = set(), 1
    while (most < 40 and len(seen) < 2) or most < 12:
        signed, clock = pipeline_at()
        pipeline = signed.with_overrides([moved(1, {"decline": 0.95}, digest=signed.manifest.digest)])
        pipeline.engine.score(request)
        begun = 0

        def collecting(phase, info, *, pipeline=pipeline, clock=clock, at=most):
            nonlocal begun
            begun += phase == "start"
            if phase == "start" and begun == at:
                clock.advance_ns(2 * HOUR * 10**9)
                pipeline.engine.score(request)

        often = gc.get_threshold()
        gc.callbacks.append(collecting)
        gc.set_threshold(1)
        try:
            answers = (
                pipeline.engine.score_batch([request] * 4) if batch else [pipeline.engine.score(request)]
            )
        finally:
            gc.set_threshold(*often)
            gc.callbacks.remove(collecting)
        for one in answers:
            seen.add(one.action)
            assert (one.action, len(one.trace)) in (("review", 2), ("decline", 1))
        most += 1
    assert seen == {"review", "decline"}


@pytest.mark.requires("onnx")
def test_no_answer_is_mixed_while_thresholds_move():
    """Threads that score over the moment of a move: the action is that of the threshold that the trace names."""
    clock = ManualClock(wall_ns=NOW_S * 10**9)
    signed, _ = pipeline_at(clock)
    log = [
        moved(seq, {"decline": 0.95 if seq % 2 else 0.9}, begins=seq, until=seq + 1) for seq in range(1, 41)
    ]
    log = [msgspec.structs.replace(one, digest=signed.manifest.digest) for one in log]
    pipeline = signed.with_overrides(log)
    wrong, seen = [], set()

    def once():
        answer = pipeline.engine.score({"value": 0.93, "country": None})
        low = float(answer.trace[1].split()[3]) if len(answer.trace) > 1 else 0.92
        seen.add(low)
        if (answer.action == "decline") != (low <= 0.93):
            wrong.append(answer)

    def score():
        while clock.wall_ns() < (NOW_S + 45) * 10**9:
            once()

    threads = [threading.Thread(target=score) for _ in range(3)]
    often = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for _ in range(450):
            clock.advance_ns(10**8)
            for _ in range(20):
                once()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(often)
    assert not wrong
    assert seen == {0.92, 0.9, 0.95}
