"""A model server first, the release beside it: answers, agreement, what happens when either fails.

The server is a small one that runs the release's own ONNX file in onnxruntime's session, so that agreement can be exact.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import gc
import weakref

import msgspec
import numpy as np
import pytest
import small_releases
from model_servers import OipServer
from services import until

import retailinfer as ri
from retailinfer.clock import ManualClock
from retailinfer.errors import (
    ConfigError,
    DeadlineExceededError,
    FeatureError,
    LimitError,
    OverloadedError,
    RemoteError,
    SchemaMismatchError,
)
from retailinfer.monitoring.events import Answered, Changed
from retailinfer.pipeline import Pipeline
from retailinfer.scorer import Scorer

pytestmark = pytest.mark.requires("pyarrow", "onnx", "urllib3")

AT = dt.datetime(2023, 11, 20, tzinfo=dt.UTC)
PAYMENT = {"card_id": "c7", "channel": "app", "amount": 84.5, "at": AT, "gift": None}
BODY = b'{"card_id": "c7", "channel": "app", "amount": 84.5, "at": "2023-11-20T00:00:00Z", "gift": null}'


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A release that scores payments with a table of cards."""
    return small_releases.pack_payments(tmp_path_factory.mktemp("release"))


def store(clock=None) -> ri.Store:
    """Cards."""
    import pyarrow as pa

    cards = {
        "card_id": [f"c{i}" for i in range(50)],
        "mean_amount": pa.array(np.arange(10, 60, dtype=np.float32)),
    }
    table = ri.Snapshot.from_arrow(pa.table(cards), key="card_id", name="card")
    return ri.Store(tables={"card": table}, **({} if clock is None else {"clock": clock}))


def onnx_model(release):
    """The release's own file as a server runs it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    file = next(path for path in release.iterdir() if path.suffix == ".onnx")
    session = onnxruntime.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(None, inputs), strict=True))


def server_of(release, function=None) -> OipServer:
    """A server with that model, declared as it is."""
    n = ri.Scorer.load(release, store=store(), trust="unsigned")
    inputs, outputs = schema(n)
    n.close()
    return OipServer(function or onnx_model(release), metadata={"inputs": inputs, "outputs": outputs})


def schema(scorer) -> tuple[list[dict], list[dict]]:
    """What the model declares, as servers write it."""
    from retailinfer.serving.answers import remote_schema

    return tuple(
        [
            {"name": name, "datatype": "FP32", "shape": [-1 if one is None else one for one in shape]}
            for name, (_, shape) in part.items()
        ]
        for part in remote_schema(scorer._live.pipeline)
    )


class Heard:
    """A hook that keeps what it hears."""

    def __init__(self) -> None:
        self.events: list = []

    def on_event(self, event) -> None:
        self.events.append(event)

    def of(self, kind) -> list:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture
def world(release):
    """A server, a scorer that asks it first, and a scorer of the release alone."""
    with server_of(release) as server:
        remote = ri.Remote(server.url, model="fraud", timeout_ms=5_000)
        heard = Heard()
        scorer = ri.Scorer.load(
            release, store=store(), trust="unsigned", remote=remote, primary="remote", hooks=[heard]
        )
        local = ri.Scorer.load(release, store=store(), trust="unsigned")
        yield server, scorer, local, heard
        remote.close()


def same(got: ri.Decision, want: ri.Decision) -> None:
    """The same score to the last bits of float32, the same action and flags."""
    assert got.score == pytest.approx(want.score, rel=1e-6)
    assert (got.action, got.stale, got.missing) == (want.action, want.stale, want.missing)


def test_server_answers_and_the_release_agrees(world):
    """rung 0, release `remote:fraud`; every call is compared; the score is the server's."""
    server, scorer, local, heard = world
    scorer.check_remote()
    got = scorer.score(PAYMENT, request_id="r-1", deadline_ms=5_000)
    same(got, local.score(PAYMENT))
    assert (got.id, got.rung, got.release) == ("r-1", 0, "remote:fraud")
    same(msgspec.json.decode(scorer.score_json(BODY), type=ri.Decision), local.score(PAYMENT))
    packed = msgspec.msgpack.encode(msgspec.json.decode(BODY))
    same(msgspec.msgpack.decode(scorer.score_msgpack(packed), type=ri.Decision), local.score(PAYMENT))
    same(asyncio.run(scorer.ascore(PAYMENT)), local.score(PAYMENT))
    found = scorer.agreement()
    assert (found.answers, found.compared, found.equal_actions) == (4, 4, 1.0)
    assert found.largest_difference < 1e-6
    assert (found.local_answers, found.local_failures, found.remote_failures) == (0, 0, {})
    events = heard.of(Answered)
    assert [event.answer.release for event in events] == ["remote:fraud"] * 4
    assert [event.why for event in events] == [""] * 4
    assert server.n_inferred == 4
    assert (
        scorer.freshness == local.freshness == ri.Freshness(answers=4, fresh=0)
    )  # a table whose rows have no age


def test_latency_of_both_is_told(world):
    """After 64 calls there are quantiles; the server's include its round trip."""
    _, scorer, _, _ = world
    assert scorer.agreement().remote_p50_ms is None
    for _ in range(64):
        scorer.score(PAYMENT)
    found = scorer.agreement()
    assert 0 < found.local_p50_ms <= found.local_p99_ms
    assert found.local_p50_ms < found.remote_p50_ms <= found.remote_p99_ms


def test_server_that_differs_is_found_out(world):
    """Its answers stand, and what they differ in is counted."""
    server, scorer, local, _ = world
    own = local.score(PAYMENT)
    server.function = lambda inputs: {"probability": np.full((1, 1), 0.95, np.float32)}
    got = scorer.score(PAYMENT)
    assert (got.score, got.action) == (pytest.approx(0.95), "decline")
    assert own.action != "decline"
    found = scorer.agreement()
    assert (found.compared, found.equal_actions) == (1, 0.0)
    assert found.largest_difference == pytest.approx(0.95 - own.score, rel=1e-5)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (lambda inputs: {"probability": np.full((1, 1), np.nan, np.float32)}, "not_finite"),
        (lambda inputs: {"probability": np.full((2, 1), 0.5, np.float32)}, "mismatch"),
        (lambda inputs: {"probability": np.full((1, 1), 7.0, np.float32)}, "ScoreError"),
    ],
)
def test_release_answers_where_the_servers_answer_is_none(world, answer, kind):
    """NaN, other rows, a score outside the declared range: the local decision, with the release's name."""
    server, scorer, local, heard = world
    server.function = answer
    got, own = scorer.score(PAYMENT), local.score(PAYMENT)
    same(got, own)
    assert (got.release, got.rung) == (own.release, 0)
    found = scorer.agreement()
    assert (found.local_answers, found.compared, found.remote_failures) == (1, 0, {kind: 1})
    assert [event.answer.release for event in heard.of(Answered)] == [own.release]


def test_release_answers_when_the_server_hangs_and_dies(release):
    """After the remote's own time the local score, which is there already, decides; then the breaker opens."""
    heard = Heard()
    with server_of(release) as server:
        remote = ri.Remote(server.url, model="fraud", timeout_ms=150, binary=False)
        scorer = ri.Scorer.load(
            release, store=store(), trust="unsigned", remote=remote, primary="remote", hooks=[heard]
        )
        local = ri.Scorer.load(release, store=store(), trust="unsigned")
        server.delay_s = 5.0
        for _ in range(3):
            got = scorer.score(PAYMENT)
            same(got, local.score(PAYMENT))
            assert got.release == local.score(PAYMENT).release
        assert scorer.agreement().remote_failures == {"timeout": 3}
        assert [event.why for event in heard.of(Answered)] == ["RemoteError"] * 3
    for _ in range(20):
        same(scorer.score(PAYMENT), local.score(PAYMENT))
    changes = [(change.before, change.after) for change in heard.of(Changed)]
    assert changes == [("closed", "open")]
    assert scorer.health().breakers == {server.url: "open"}
    assert scorer.agreement().local_answers == 23
    remote.close()


def test_release_answers_within_the_deadline_of_a_black_hole(release):
    """The server gets what the deadline leaves but for 3 ms; the local decision is made in those."""
    clock = ManualClock(wall_ns=int(AT.timestamp() * 1e9))
    given = []

    class BlackHole:
        name = "black-hole"

        def infer(self, inputs, outputs, *, timeout_s):
            given.append(timeout_s)
            clock.advance_ns(int(timeout_s * 1e9))
            raise RemoteError("nobody", kind="timeout")

    pipeline = Pipeline.load(release, store=store(clock), trust="unsigned")
    remote = ri.Remote(BlackHole(), model="m", clock=clock, timeout_ms=1_000)
    scorer = Scorer(pipeline, remote=remote, primary="remote")
    for deadline_ms, left_ms in ((100, 97), (10, 9)):
        assert scorer.score(PAYMENT, deadline_ms=deadline_ms).release == scorer.manifest.release
        assert given.pop() == pytest.approx(left_ms / 1e3)


def test_batches_are_one_call_and_rows_have_their_own_errors(world):
    """Rows go together; a row that is no request has its own error; beyond max_rows nothing is asked."""
    server, scorer, local, _ = world
    rows = [PAYMENT | {"amount": float(i)} for i in range(1, 20)]
    for got, want in zip(scorer.score_batch(rows), local.score_batch(rows), strict=True):
        same(got, want)
    assert server.n_inferred == 1
    mixed = scorer.score_batch([PAYMENT, {"amount": "x"}, PAYMENT], errors="row")
    assert isinstance(mixed[1], FeatureError)
    same(mixed[2], local.score(PAYMENT))
    with pytest.raises(FeatureError):
        scorer.score_batch([PAYMENT, {"amount": "x"}])
    with pytest.raises(LimitError):
        scorer.score_batch([PAYMENT] * 1_001)
    assert scorer.score_batch([]) == []
    assert server.n_inferred == 2
    server.refuse = (500, {})
    for got, want in zip(scorer.score_batch(rows), local.score_batch(rows), strict=True):
        same(got, want)
        assert got.release == want.release


def test_callers_mistakes_and_overload_are_told_before_anybody_is_asked(world):
    """A wrong request and a full process never reach the server."""
    server, scorer, _, _ = world
    with pytest.raises(FeatureError):
        scorer.score(PAYMENT | {"amount": "many"})
    with pytest.raises(FeatureError):
        scorer.score({})
    with pytest.raises(DeadlineExceededError):
        scorer.score(PAYMENT, deadline_ms=0)
    assert scorer.score(PAYMENT, deadline_ms=-1, otherwise=None) is None
    assert server.n_inferred == 0


def test_full_process_is_refused(release):
    """Permits are taken, and are not held while the server is waited for."""
    with server_of(release) as server:
        remote = ri.Remote(server.url, model="fraud", timeout_ms=5_000)
        pipeline = Pipeline.load(release, store=store(), trust="unsigned", max_in_flight=1)
        scorer = Scorer(pipeline, remote=remote, primary="remote")
        permit = scorer.permits.take()
        for score, request in (
            (scorer.score, PAYMENT),
            (scorer.score_json, b"no body that anybody reads"),
            (scorer.score_msgpack, b""),
            (scorer.score_batch, [PAYMENT]),
        ):
            with pytest.raises(OverloadedError):
                score(request)
        assert server.n_inferred == 0
        scorer.permits.give(permit)
        assert scorer.score(PAYMENT).release == "remote:fraud"
        remote.close()


def test_permit_is_held_for_features_and_local_model_alone(release):
    """Whatever happens in either it is given back."""
    seen = []

    class Asked:
        model = "m"

        def infer(self, inputs, outputs, *, end_ns, clock):
            seen.append(("remote", scorer.permits.in_flight))
            return {"probability": np.full((len(next(iter(inputs.values()))), 1), 0.5, np.float32)}

    scorer = ri.Scorer.load(release, store=store(), trust="unsigned", remote=Asked(), primary="remote")
    chain = scorer._live.pipeline.chain_scores

    def watched(*args):
        seen.append(("local", scorer.permits.in_flight))
        return chain(*args)

    scorer._live.pipeline.chain_scores = watched
    scorer.score(PAYMENT)
    scorer.score_batch([PAYMENT, PAYMENT])
    assert seen == [("local", 1), ("remote", 0)] * 2
    for bad in (lambda: scorer.score({}), lambda: scorer.score_batch([PAYMENT, {}])):
        with pytest.raises(FeatureError):
            bad()
    scorer._live.pipeline.chain_scores = lambda *_: (_ for _ in ()).throw(ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        scorer.score(PAYMENT)
    assert (scorer.permits.in_flight, scorer.permits.waiting) == (0, 0)
    assert sum(scorer.permits.admitted.values()) == 5


def test_release_answers_whatever_a_remote_of_the_users_own_raises(release):
    """The Protocol asks for a RemoteError; a bug in it is no reason to have no answer, and no error of its own comes out."""

    class Broken:
        model = "m"

        def infer(self, inputs, outputs, *, end_ns, clock):
            raise KeyError("a bug")

    scorer = ri.Scorer.load(release, store=store(), trust="unsigned", remote=Broken(), primary="remote")
    assert scorer.score(PAYMENT).release == scorer.manifest.release
    assert [one.rung for one in scorer.score_batch([PAYMENT, PAYMENT])] == [0, 0]
    assert scorer.agreement().remote_failures == {"failed": 3}


def test_neither_model_answers(release):
    """Then the ladder is gone down, and without one the error is the server's."""

    class Broken:
        name = "broken"

        def infer(self, inputs, outputs, *, timeout_s):
            raise RemoteError("told so", kind="server")

    scorer = ri.Scorer.load(
        release, store=store(), trust="unsigned", remote=ri.Remote(Broken(), model="m"), primary="remote"
    )
    scorer._live.pipeline.chain_scores = lambda *_: (_ for _ in ()).throw(ri.SessionError("gone"))
    with pytest.raises(ri.ServingError):
        scorer.score(PAYMENT)
    assert scorer.score(PAYMENT, otherwise="review") == "review"
    found = scorer.agreement()
    assert (found.answers, found.local_failures, found.remote_failures) == (2, 2, {"server": 2})


def test_late_answers_are_dropped_on_a_clock_that_is_moved(release):
    """A back end that takes more than it may: the answer would be late, and is none."""
    clock = ManualClock(wall_ns=int(AT.timestamp() * 1e9))

    class Slow:
        name = "slow"

        def infer(self, inputs, outputs, *, timeout_s):
            clock.advance_ns(int(timeout_s * 1e9) + 20_000_000)
            return {"probability": np.full((1, 1), 0.5, np.float32)}

    pipeline = Pipeline.load(release, store=store(clock), trust="unsigned")
    scorer = Scorer(pipeline, remote=ri.Remote(Slow(), model="m", clock=clock), primary="remote")
    with pytest.raises(DeadlineExceededError) as caught:
        scorer.score(PAYMENT, deadline_ms=30)
    assert caught.value.late
    assert scorer.health().late == 1


@pytest.mark.parametrize("server_is", ["well", "down"])
def test_windows_count_a_request_once_whoever_answers(tmp_path, server_is):
    """Over single calls and batches: the same scores as a scorer of its own with windows of its own, request by request."""
    release = small_releases.pack_windows(tmp_path)

    def fresh_store() -> ri.Store:
        table = ri.Snapshot.from_arrow(small_releases.card_table(), key="card_id", name="card")
        return ri.Store(tables={"card": table}, windows=ri.Windows.memory())

    local = ri.Scorer.load(release, store=fresh_store(), trust="unsigned")
    inputs, outputs = schema(local)
    with OipServer(onnx_model(release), metadata={"inputs": inputs, "outputs": outputs}) as server:
        remote = ri.Remote(server.url, model="fraud", timeout_ms=5_000)
        scorer = ri.Scorer.load(
            release, store=fresh_store(), trust="unsigned", remote=remote, primary="remote"
        )
        if server_is == "down":
            remote.force_open()
        for i in range(6):
            payment = PAYMENT | {"amount": 150.0 + i, "at": AT + dt.timedelta(minutes=i)}
            options = {"observe": True, "event_id": f"e{i}", "at": AT + dt.timedelta(minutes=i)}
            same(scorer.score(payment, **options), local.score(payment, **options))
            same(scorer.score(payment, **options), local.score(payment, **options))  # the same event again
        rows = [PAYMENT | {"amount": 150.0 + i, "at": AT + dt.timedelta(minutes=10)} for i in range(4)]
        for errors in ("raise", "row"):
            options = {"observe": True, "at": AT + dt.timedelta(minutes=10), "errors": errors}
            for got, want in zip(
                scorer.score_batch(rows, **options), local.score_batch(rows, **options), strict=True
            ):
                same(got, want)
                assert got.release.startswith("remote:" if server_is == "well" else "windows:"), (
                    scorer.agreement()
                )
        with pytest.raises(FeatureError):  # none of these is counted, because one cannot be
            scorer.score_batch([*rows, {"amount": "x"}], observe=True, at=AT + dt.timedelta(minutes=11))
        last = PAYMENT | {"amount": 200.0, "at": AT + dt.timedelta(minutes=12)}
        same(scorer.score(last, at=last["at"]), local.score(last, at=last["at"]))
        scorer.close()
        remote.close()


def test_rungs_below_are_drilled_by_the_servers_answers(release):
    """The first answer is drilled, as where the release answers first."""
    with server_of(release) as server:
        remote = ri.Remote(server.url, model="fraud", timeout_ms=5_000)
        scorer = ri.Scorer.load(
            release, store=store(), trust="unsigned", remote=remote, primary="remote", previous=release,
            contract={"ladder": [{"kind": "previous"}]},
        )  # fmt: skip
        assert [rung.state for rung in scorer.health().rungs] == ["untried"]
        scorer.score(PAYMENT)
        until(lambda: [rung.state for rung in scorer.health().rungs] == ["ready"], what="the drill")
        scorer.close()
        remote.close()


def test_check_remote_finds_another_model(release):
    """The server's metadata must fit the release."""
    with OipServer() as server:
        remote = ri.Remote(server.url, model="fraud", timeout_ms=5_000)
        scorer = ri.Scorer.load(release, store=store(), trust="unsigned", remote=remote, primary="remote")
        with pytest.raises(SchemaMismatchError):
            scorer.check_remote()
        remote.close()


def test_settings_that_mean_nothing_are_refused(release):
    """primary="remote" needs a remote; without it there is no agreement; nothing to batch for."""
    with pytest.raises(ConfigError, match="Expected primary="):
        ri.Scorer.load(release, store=store(), trust="unsigned", primary="remote")
    with pytest.raises(ConfigError, match="Expected primary="):
        ri.Scorer.load(release, store=store(), trust="unsigned", primary="both")
    scorer = ri.Scorer.load(release, store=store(), trust="unsigned")
    with pytest.raises(ConfigError, match="compares nothing"):
        scorer.agreement()
    with pytest.raises(ConfigError, match="no remote"):
        scorer.check_remote()


def test_closed_and_dropped_scorers_are_gone(release):
    """A closed one refuses; a dropped one is freed although its remote lives on."""
    with server_of(release) as server:
        remote = ri.Remote(server.url, model="fraud", timeout_ms=5_000)
        scorer = ri.Scorer.load(
            release, store=store(), trust="unsigned", remote=remote, primary="remote", hooks=[Heard()]
        )
        with pytest.raises(ConfigError, match="nothing to batch"):
            scorer.batcher()
        scorer.score(PAYMENT)
        ref = weakref.ref(scorer)
        scorer.close()
        with pytest.raises(ConfigError, match="closed"):
            scorer.score(PAYMENT)
        del scorer
        gc.collect()
        assert ref() is None
        remote.close()
