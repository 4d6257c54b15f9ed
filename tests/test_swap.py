"""Another release in place of the one that answers: swaps, rollbacks, what lasts beside them, what is refused.

Rules:
  * Releases of swap_storm.py: number n gives n times the amount, decides `act-n`, and is version n.
  * `RETAILINFER_SWAPS` says how many swaps the storm has (make soak: thousands).
Following a registry is test_follow.py.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import sys
import threading
import time
import weakref
from typing import Any

import msgspec
import pytest
import releases
import signed_releases
import swap_storm
from swap_storm import release

import retailinfer as ri
from retailinfer import columns as c
from retailinfer import memory
from retailinfer.errors import BundleError, ConfigError, FeatureError, RequestError, SwapError
from retailinfer.monitoring.events import Answered, Changed
from retailinfer.pipeline import Pipeline
from retailinfer.serving import loading

REQUEST = {"card": "c1", "amount": 2.0}


class Heard:
    """A hook that keeps what it hears."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def on_event(self, event: Any) -> None:
        self.events.append(event)

    @property
    def changes(self) -> list[tuple[str, str, str, str]]:
        return [(e.part, e.before, e.after, e.why) for e in self.events if type(e) is Changed]


def scorer_of(number: int, *kinds: str, **settings: Any) -> Any:
    """A scorer of release number n."""
    return releases.scorer_of(release(number, kinds), **settings)


def number(scorer: Any) -> int:
    """The release that answers, by what it answers."""
    answer = scorer.score(REQUEST)
    assert swap_storm.mixed(answer, 2.0) is None
    return int(answer.release.partition(":")[2])


def hanging(monkeypatch: Any) -> tuple[threading.Event, threading.Event]:
    """Every load waits, once it began, until it is let on."""
    began, go = threading.Event(), threading.Event()
    real = loading.load_pipelines

    def slow(*args: Any, **options: Any) -> Any:
        made = real(*args, **options)
        began.set()
        assert go.wait(20)
        return made

    monkeypatch.setattr(loading, "load_pipelines", slow)
    return began, go


def in_thread(call: Any) -> tuple[threading.Thread, list[Any]]:
    """Call it in a thread; what it raised is kept."""
    raised: list[Any] = []

    def run() -> None:
        try:
            call()
        except Exception as exc:
            raised.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, raised


def wait_for(condition: Any) -> None:
    """Until it holds, ten seconds at most."""
    for _ in range(5_000):
        if condition():
            return
        threading.Event().wait(0.002)
    pytest.fail("did not come")


# ---- forward and back ------------------------------------------------------------------------------------------------


def test_a_swap_and_a_rollback():
    """Forward, on, and back to the one before; what happened is told in order."""
    heard = Heard()
    scorer = scorer_of(1, hooks=[heard])
    assert (scorer.health().resident, scorer.health().refused) == (None, "")
    began = scorer.health().since_ns
    scorer.swap(release(2), why="better")
    assert number(scorer) == 2
    scorer.swap(release(3))
    assert number(scorer) == 3
    health = scorer.health()
    assert (health.release, health.resident) == ("fraud:3", "fraud:2")
    assert health.since_ns > began
    assert scorer.manifest.version == "3"
    scorer.roll_back(why="worse")
    assert number(scorer) == 2
    assert scorer.health().resident is None
    assert heard.changes == [
        ("release", "fraud:1", "fraud:2", "better"),
        ("release", "fraud:2", "fraud:3", ""),
        ("release", "fraud:3", "fraud:2", "worse"),
    ]


def test_a_second_rollback_does_not_come_back_to_what_was_left():
    """Two people who press the button at once are one rollback."""
    scorer = scorer_of(1)
    with pytest.raises(ConfigError, match="only release"):
        scorer.roll_back(why="x")
    scorer.swap(release(2))
    scorer.roll_back(why="bad")
    with pytest.raises(ConfigError, match="only release"):
        scorer.roll_back(why="bad")
    assert number(scorer) == 1


def test_a_rollback_takes_a_millisecond_at_most():
    """One pointer, of a release that is ready: the fastest of some, on whatever machine this is."""
    scorer, took = scorer_of(1), []
    for i in range(15):
        scorer.swap(release(1 + i % 2))
        began = time.perf_counter_ns()
        scorer.roll_back(why="measured")
        took.append(time.perf_counter_ns() - began)
    assert sorted(took)[len(took) // 3] <= 1_000_000


def test_no_file_is_read_by_a_rollback(tmp_path, monkeypatch):
    """Neither disk nor network: both releases may be gone from where they came."""
    for i in (1, 2):
        folder = tmp_path / str(i)
        folder.mkdir()
        for name, data in release(i).items():
            (folder / name).write_bytes(data)
    scorer = releases.scorer_of(tmp_path / "1")
    scorer.swap(tmp_path / "2")
    monkeypatch.setattr(Pipeline, "load", lambda *_, **__: pytest.fail("loads"))
    monkeypatch.setattr("builtins.open", lambda *_, **__: pytest.fail("reads"))
    scorer.roll_back(why="x")
    assert number(scorer) == 1


@pytest.mark.parametrize("bad", ["bytes", "missing", "unsigned", "other"])
def test_a_bad_release_changes_nothing(bad, tmp_path):
    """The one before serves on, its resident one stays, and an event and health say why."""
    heard = Heard()
    scorer = scorer_of(1, hooks=[heard])
    scorer.swap(release(2))
    files: Any = dict(release(3))
    if bad == "bytes":
        files["model.onnx"] = files["model.onnx"][:-1] + b"?"
    elif bad == "missing":
        files = tmp_path / "nowhere"
    elif bad == "unsigned":
        scorer._settings["trust"] = signed_releases.trust()
    else:
        files = 7
    with pytest.raises((BundleError, ConfigError)) as caught:
        scorer.swap(files)
    assert number(scorer) == 2
    assert (scorer.health().resident, type(caught.value).__name__ in scorer.health().refused) == (
        "fraud:1",
        True,
    )
    assert heard.changes[-1][:3] == ("swap", "fraud:2", "refused")
    assert str(caught.value) in heard.changes[-1][3]
    scorer._settings["trust"] = "unsigned"
    scorer.swap(release(3))
    assert scorer.health().refused == ""


def test_c46_not_enough_memory_for_two_releases(monkeypatch):
    """Refused before anything is read; the one before serves on, an event says so."""
    heard = Heard()
    scorer = scorer_of(1, hooks=[heard])
    size = sum(map(len, release(2).values()))
    monkeypatch.setattr(memory, "available_bytes", lambda: int(2.4 * size))
    monkeypatch.setattr(Pipeline, "load", lambda *_, **__: pytest.fail("reads"))
    with pytest.raises(SwapError, match="MB beside the one that answers"):
        scorer.swap(release(2))
    assert number(scorer) == 1
    assert heard.changes[-1][:3] == ("swap", "fraud:1", "refused")
    monkeypatch.undo()
    monkeypatch.setattr(memory, "available_bytes", lambda: int(2.6 * size))
    scorer.swap(release(2))
    monkeypatch.setattr(memory, "available_bytes", lambda: None)  # nothing is known: nothing is refused
    scorer.swap(release(3))
    assert number(scorer) == 3


def test_a_door_that_load_did_not_make_cannot_swap():
    """It knows no settings: neither whom to trust nor which store."""
    scorer = ri.Scorer(Pipeline.load(release(1), trust="unsigned"))
    with pytest.raises(ConfigError, match="no settings"):
        scorer.swap(release(2))
    assert number(scorer) == 1


# ---- c44, c45: at once --------------------------------------------------------------------------------------------------


def test_c44_swaps_under_four_threads():
    """No error, and every answer is of one release: by its name, its score and its action."""
    found = swap_storm.swap_all(int(os.environ.get("RETAILINFER_SWAPS", "40")), seed=5)
    assert found["releases"] > 2


def test_c44_with_rungs_and_last_scores():
    """The same where every answer is remembered, drilled, and the release before is a rung."""
    swap_storm.swap_all(12, seed=6, kinds=("previous", "last_score"))


def test_c45_swaps_come_in_the_order_in_which_they_were_asked_for(monkeypatch):
    """One loads at a time; the last one asked for is the last one put in place."""
    heard = Heard()
    scorer = scorer_of(1, hooks=[heard])
    began, go = hanging(monkeypatch)
    first, _ = in_thread(lambda: scorer.swap(release(2)))
    assert began.wait(20)
    others = []
    for i in (3, 4, 5):
        others.append(in_thread(lambda i=i: scorer.swap(release(i)))[0])
        wait_for(lambda n=i - 1: len(scorer._turns._line) == n)
    assert number(scorer) == 1
    go.set()
    for thread in (first, *others):
        thread.join()
    assert number(scorer) == 5
    assert [change[2] for change in heard.changes] == ["fraud:2", "fraud:3", "fraud:4", "fraud:5"]


def test_c45_a_rollback_during_a_load_is_the_last_word(monkeypatch):
    """It takes effect at once; what is being loaded, and what waits behind it, is not put in place."""
    scorer = scorer_of(1)
    scorer.swap(release(2))
    began, go = hanging(monkeypatch)
    loading, raised = in_thread(lambda: scorer.swap(release(3)))
    assert began.wait(20)
    waiting, also_raised = in_thread(lambda: scorer.swap(release(4)))
    wait_for(lambda: len(scorer._turns._line) == 2)
    scorer.roll_back(why="now")
    assert number(scorer) == 1
    waiting.join()
    go.set()
    loading.join()
    assert [type(exc) for exc in raised + also_raised] == [SwapError, SwapError]
    assert number(scorer) == 1
    assert "came later" in scorer.health().refused
    scorer.swap(release(5))
    assert number(scorer) == 5


def test_c45_a_rollback_ends_the_first_swap_too(monkeypatch):
    """There is no release before, and still it says what is wanted: not the one that is being loaded."""
    scorer = scorer_of(1)
    began, go = hanging(monkeypatch)
    loading, raised = in_thread(lambda: scorer.swap(release(2)))
    assert began.wait(20)
    scorer.roll_back(why="do not")
    go.set()
    loading.join()
    assert [type(exc) for exc in raised] == [SwapError]
    assert number(scorer) == 1


def test_c45_closing_during_a_swap(monkeypatch):
    """The end is the last word, too."""
    scorer = scorer_of(1)
    began, go = hanging(monkeypatch)
    loading, raised = in_thread(lambda: scorer.swap(release(2)))
    assert began.wait(20)
    scorer.close()
    go.set()
    loading.join()
    assert [type(exc) for exc in raised] == [SwapError]
    for call in (
        lambda: scorer.swap(release(2)),
        lambda: scorer.roll_back(why="x"),
        lambda: scorer.score(REQUEST),
    ):
        with pytest.raises(ConfigError, match="closed"):
            call()


def test_a_slow_hook_holds_up_no_rollback():
    """Hooks hear of a change after it, in the order of the changes, and nobody who decides waits for them."""
    entered, go, heard = threading.Event(), threading.Event(), Heard()

    class Slow:
        def on_event(self, event: Any) -> None:
            if type(event) is Changed and event.after == "fraud:2":
                entered.set()
                assert go.wait(20)

    scorer = scorer_of(1, hooks=[Slow(), heard])
    swapping, raised = in_thread(lambda: scorer.swap(release(2)))
    assert entered.wait(20)
    back, _ = in_thread(lambda: scorer.roll_back(why="now"))
    back.join(10)
    assert not back.is_alive()
    assert number(scorer) == 1
    go.set()
    swapping.join()
    assert not raised
    assert [change[1:3] for change in heard.changes] == [("fraud:1", "fraud:2"), ("fraud:2", "fraud:1")]


@pytest.mark.parametrize("act", ["roll_back", "swap", "close"])
def test_a_hook_that_hears_of_a_swap_may_decide_otherwise(act):
    """It holds nothing that it would wait for."""

    class Decides:
        def __init__(self) -> None:
            self.scorer: Any = None

        def on_event(self, event: Any) -> None:
            if type(event) is Changed and event.after == "fraud:2":
                {
                    "roll_back": lambda: self.scorer.roll_back(why="no"),
                    "swap": lambda: self.scorer.swap(release(3)),
                    "close": self.scorer.close,
                }[act]()

    hook, heard = Decides(), Heard()
    scorer = hook.scorer = scorer_of(1, hooks=[hook, heard])
    swapping, raised = in_thread(lambda: scorer.swap(release(2)))
    swapping.join(20)
    assert not swapping.is_alive()
    assert not raised
    if act == "close":
        assert scorer.closed
    else:
        assert number(scorer) == {"roll_back": 1, "swap": 3}[act]
        assert [change[2] for change in heard.changes] == ["fraud:2", f"fraud:{number(scorer)}"]
    hook.scorer = None


def test_a_swap_in_the_middle_of_a_swap_is_refused(monkeypatch):
    """A signal's handler, say: it would wait for what it has interrupted."""
    scorer = scorer_of(1)
    real, raised = loading.load_pipelines, []

    def interrupted(*args: Any, **options: Any) -> Any:
        try:
            scorer.swap(release(3))
        except SwapError as exc:
            raised.append(exc)
        return real(*args, **options)

    monkeypatch.setattr(loading, "load_pipelines", interrupted)
    swapping, _ = in_thread(lambda: scorer.swap(release(2)))
    swapping.join(20)
    assert not swapping.is_alive()
    assert ["in the middle" in str(exc) for exc in raised] == [True]
    assert number(scorer) == 2


def test_what_was_overruled_while_it_loaded_is_not_remembered(monkeypatch):
    """Else a restart would refuse the release that answers: it is older than one that never did."""
    remembered: list[str] = []
    monkeypatch.setattr(Pipeline, "remember", lambda self: remembered.append(self.manifest.version))
    scorer = scorer_of(1)
    scorer.swap(release(2))
    began, go = hanging(monkeypatch)
    swapping, raised = in_thread(lambda: scorer.swap(release(3)))
    assert began.wait(20)
    scorer.roll_back(why="no")
    go.set()
    swapping.join()
    assert [type(exc) for exc in raised] == [SwapError]
    assert remembered[-1:] == ["2"]


def test_random_orders_of_swaps_and_rollbacks():
    """Against the plainest model: what answers, and what a rollback goes to."""
    rng, scorer = random.Random(3), scorer_of(1)
    now, before = 1, None
    for _ in range(60):
        if rng.random() < 0.6:
            other = rng.randrange(1, swap_storm.N_RELEASES + 1)
            scorer.swap(release(other))
            now, before = other, now
        elif before is None:
            with pytest.raises(ConfigError):
                scorer.roll_back(why="x")
        else:
            scorer.roll_back(why="x")
            now, before = before, None
        assert number(scorer) == now
        assert scorer.health().resident == (None if before is None else f"fraud:{before}")


# ---- requests of other releases ----------------------------------------------------------------------------------------


def test_requests_in_the_types_of_other_releases():
    """Structs of the release before answer, or say what they lack; bytes and dicts are the new one's."""
    scorer = scorer_of(1)  # has a country, which release 2 has not
    old = scorer.request_type(**REQUEST, country="de")
    scorer.swap(release(2))
    assert (
        swap_storm.mixed(scorer.score(old), 2.0) is None
    )  # of an object those fields are read that are wanted
    with pytest.raises(FeatureError):
        scorer.score(REQUEST | {"country": "de"})
    with pytest.raises(RequestError):
        scorer.score_json(msgspec.json.encode(old))
    two = scorer.request_type(**REQUEST)
    assert swap_storm.mixed(scorer.score(two), 2.0) is None
    scorer.swap(release(4))  # the same fields, another type
    assert scorer.request_type is not type(two)
    assert scorer.score(two).release == "fraud:4"
    scorer.swap(release(3))
    assert swap_storm.mixed(scorer.score(two), 2.0) is None  # without a country, which may be null
    scorer.roll_back(why="back")
    assert scorer.score(two).release == "fraud:4"


def test_a_call_under_way_ends_with_its_release():
    """Whatever is published in the middle of it, also on the way down the ladder."""
    scorer = scorer_of(1)

    class Swaps(float):
        __slots__ = ()

        def __float__(self) -> float:
            scorer.swap(release(2))
            return 2.0

    assert swap_storm.mixed(scorer.score({"card": "c", "amount": Swaps()}), 2.0) is None
    assert number(scorer) == 2
    again = scorer.score_batch([REQUEST, {"card": "c", "amount": Swaps()}, REQUEST])
    assert {answer.release for answer in again} == {"fraud:2"}


# ---- what lasts --------------------------------------------------------------------------------------------------------


def test_permits_hooks_and_settings_are_the_doors():
    """They live on: who holds a permit holds it, the hook hears of the new release, limits are as they were."""
    heard = Heard()
    scorer = scorer_of(1, hooks=[heard], max_in_flight=3, max_bytes=200)
    permits, lag = scorer.permits, scorer.loop_lag
    held = permits.take()
    scorer.swap(release(2))
    assert scorer.permits is permits
    assert scorer.loop_lag is lag
    assert scorer._live.engine.permits is permits
    assert (scorer.health().in_flight, scorer.health().limit) == (1, 3)
    permits.give(held)
    number(scorer)
    assert [e.answer.release for e in heard.events if type(e) is Answered] == ["fraud:2"]
    with pytest.raises(ri.LimitError):
        scorer.score_json(b" " * 300)


def test_the_release_before_is_the_rung_of_that_name():
    """With a hook that hears of an answer once, permits of its own, and no longer than it is the one before."""
    heard = Heard()
    root = releases.weighted(1.0, then=("Sqrt",))
    spec = ri.FeatureSpec(request={"amount": float}, columns=[c.numeric("amount")])
    ladder = ri.Contract(ladder=(ri.Rung(kind="previous"),))

    def packed(model: bytes, version: str) -> dict[str, bytes]:
        return releases.packed(
            "fraud", model, spec, contract=ladder, engine="onnx", info={"version": version}
        )

    scorer = releases.scorer_of(packed(releases.weighted(3.0), "1"), hooks=[heard])
    assert [rung.state for rung in scorer.health().rungs] == ["absent"]
    scorer.swap(packed(root, "2"))
    answer = scorer.score({"amount": -1.0})  # has no root
    assert (answer.release, answer.rung, answer.score) == ("fraud:1", 1, -3.0)
    told = [e for e in heard.events if type(e) is Answered]
    assert [(e.answer.release, e.answer.rung, e.why) for e in told] == [("fraud:1", 1, "ScoreError")]
    assert scorer._live.previous.permits is not scorer.permits
    scorer.roll_back(why="x")
    assert [rung.state for rung in scorer.health().rungs] == ["absent"]
    scorer.swap(packed(root, "3"))
    scorer.swap(packed(root, "4"))  # the one before has no root either
    with pytest.raises(ri.Unavailable):
        scorer.score({"amount": -1.0})


def test_last_scores_outlive_a_release_on_the_same_scale():
    """Where the scale has a name; of another scale nothing is used; who is forgotten is forgotten."""

    def packed(version: str, scale: str) -> dict[str, bytes]:
        spec = ri.FeatureSpec(
            request={"card": str, "amount": float}, entities={"card": "card"}, columns=[c.numeric("amount")]
        )
        ladder = (ri.Rung(kind="last_score", scale=scale),)
        return releases.packed(
            "fraud",
            releases.weighted(float(version), then=("Sqrt",)),
            spec,
            policy=ri.Policy([("approve", 0.0), ("review", 0.5)]),
            contract=ri.Contract(ladder=ladder),
            engine="onnx",
            info={"version": version},
        )

    scorer = releases.scorer_of(packed("1", "s"))
    scorer.score({"card": "a", "amount": 0.25})
    bad = {"card": "a", "amount": -1.0}
    scorer.swap(packed("4", "s"))
    assert (scorer.score(bad).score, scorer.score(bad).release) == (0.5, "fraud:4")
    scorer.swap(packed("9", "other"))
    with pytest.raises(ri.Unavailable):
        scorer.score(bad)
    scorer.roll_back(why="x")
    assert scorer.score(bad).score == 0.5
    assert scorer.forget("a")
    with pytest.raises(ri.Unavailable):
        scorer.score(bad)


def test_rankers_swap_and_their_table_keeps_no_columns_of_what_is_gone():
    """Items are encoded before a release answers, and with every table that comes; blocks go with their releases."""
    import pyarrow as pa

    def packed(weight: float) -> dict[str, bytes]:
        spec = ri.FeatureSpec(
            request={"sku": str, "boost": float},
            entities={"item": "sku"},
            candidate="item",
            columns=[c.numeric("boost"), c.stored("item.price", unknown=weight)],
        )
        table = pa.table({"sku": ["a", "b"], "boost": [1.0, 2.0], "item.price": [1.0, 2.0]})
        return releases.packed(
            "recs", releases.weighted(0.0, weight), spec.fit(table), info={"version": f"v{abs(weight):g}"}
        )

    def prices(*values: float) -> Any:
        rows = {f"s{i}": {"price": value} for i, value in enumerate(values)}
        return ri.Snapshot.from_rows(rows)

    store = ri.Store(tables={"item": prices(1.0, 2.0)})
    ranker = releases.ranker_of(packed(1.0), store=store)
    rank = lambda: ranker.rank({"boost": 0.0}, ["s0", "s1"], 2)  # noqa: E731
    assert rank().items == ["s1", "s0"]
    sizes = set()
    for i in range(6):
        ranker.swap(packed(-1.0 - i))
        answer = rank()
        assert (answer.items, answer.release) == (["s0", "s1"], f"recs:v{1 + i}")
        wait_for(lambda: len(ranker._drain) == 0)
        sizes.add(store.nbytes)
    assert len(sizes) == 1  # what two releases attach
    store.swap("item", prices(2.0, 1.0))
    assert rank().items == ["s1", "s0"]
    ranker.roll_back(why="x")
    assert rank().release == "recs:v5"
    assert ranker.rank({"boost": 0.0}, ["s0", "s1"], 2, available="item.price > 1.5").items == ["s0"]
    ranker.swap(packed(9.0))
    assert ranker.rank({"boost": 0.0}, ["s0", "s1"], 2, available="item.price > 1.5").items == ["s0"]


def test_coroutines_and_batches_go_on():
    """`ascore` and a batcher that was made before: every answer is of one release, and of the new one in the end."""
    scorer = scorer_of(1)
    batcher = scorer.batcher(max_rows=8)

    async def run() -> None:
        for i in range(2, 8):
            both = [scorer.ascore(REQUEST) for _ in range(20)] + [batcher.score(REQUEST) for _ in range(20)]
            swap = asyncio.to_thread(scorer.swap, release(1 + i % 6))
            *answers, _ = await asyncio.gather(*both, swap)
            assert all(swap_storm.mixed(answer, 2.0) is None for answer in answers)
            assert (await batcher.score(REQUEST)).release == scorer.manifest.release

    asyncio.run(run())


def test_a_batcher_gives_a_release_no_more_rows_than_it_takes():
    """The contract of the one that comes may allow fewer."""
    spec = ri.FeatureSpec(request=swap_storm.FIELDS, columns=[c.numeric("amount")])
    few = releases.packed("few", releases.weighted(1.0), spec, contract=ri.Contract(max_rows=3))
    scorer = scorer_of(2)
    batcher = scorer.batcher(max_rows=8)
    scorer.swap(few)

    async def run() -> list[Any]:
        return await asyncio.gather(*[batcher.score(REQUEST) for _ in range(20)])

    assert {answer.score for answer in asyncio.run(run())} == {2.0}


def test_who_waits_for_a_batch_is_told_of_a_release_of_arrays():
    """It answers no requests: nobody waits for ever."""
    scorer = scorer_of(2)
    batcher = scorer.batcher(max_rows=8, max_delay_ms=50.0)
    arrays = releases.packed("arrays", releases.weighted(1.0))

    async def run() -> list[Any]:
        waiting = asyncio.gather(*[batcher.score(REQUEST) for _ in range(3)], return_exceptions=True)
        await asyncio.sleep(0)
        scorer.swap(arrays)
        return await asyncio.wait_for(waiting, 10)

    assert [type(error) for error in asyncio.run(run())] == [ConfigError] * 3


# ---- what is let go of -------------------------------------------------------------------------------------------------


def test_old_releases_are_freed_when_the_last_call_is_over():
    """Not before, and by nobody who answers; two releases are kept."""
    scorer = scorer_of(1)
    score, inside, out, freed_in = [scorer.score], threading.Event(), threading.Event(), []

    class Waits(float):
        __slots__ = ()

        def __float__(self) -> float:
            inside.set()
            assert out.wait(20)
            return 2.0

    answers: list[Any] = []
    caller = threading.Thread(target=lambda: answers.append(score.pop()({"card": "c", "amount": Waits()})))
    caller.start()
    assert inside.wait(20)
    gc.collect()
    gc.disable()
    try:
        gone = weakref.ref(scorer._live.pipeline, lambda _: freed_in.append(threading.get_ident()))
        scorer.swap(release(2))
        scorer.swap(release(3))
        scorer.swap(release(4))
        assert gone() is not None
        out.set()
        caller.join()
        wait_for(lambda: gone() is None)
        assert swap_storm.mixed(answers[0], 2.0) is None
        assert answers[0].release == "fraud:1"
        assert freed_in != [caller.ident]
        drain = scorer._drain
        wait_for(lambda: len(drain) == 0)
        kept = [weakref.ref(one) for one in (scorer._live.pipeline, scorer._live.resident.pipeline)]
        del scorer, caller
        answers.clear()
        wait_for(lambda: all(one() is None for one in kept))
    finally:
        gc.enable()


def test_memory_stays_where_it_is():
    """After hundreds of swaps as much as before: within 2 %."""
    if not sys.platform.startswith("linux"):
        pytest.skip("platform: reads /proc")
    found = swap_storm.memory_of(60, warm_up=60)
    assert found["grown"] <= 0.02, found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="platform: no fork")
def test_a_forked_child_swaps_for_itself(monkeypatch):
    """Also one that was forked while its parent loads: nobody stands in its line, and its locks are free."""
    scorer = scorer_of(1)
    scorer.swap(release(2))
    began, go = hanging(monkeypatch)
    loading, raised = in_thread(lambda: scorer.swap(release(3)))
    assert began.wait(20)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            go.set()
            scorer.roll_back(why="child")
            one = number(scorer)
            scorer.swap(release(4))
            code = 0 if (one, number(scorer)) == (1, 4) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    go.set()
    loading.join()
    assert raised == []
    assert number(scorer) == 3
