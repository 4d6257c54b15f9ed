"""Many callers at once: threads, swapped tables, code that calls back, coroutines and greenlets; all get what one would."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import sys
import threading
import time

import msgspec
import numpy as np
import pytest
import releases
from releases import CONTEXT, payment

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.errors import CallerError, ConfigError, FeatureError, FeatureTypeError, RetailInferError

THREADS = 8


@pytest.fixture(autouse=True)
def impatient():
    """Threads take turns 100 times as often as they would."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-5)
    yield
    sys.setswitchinterval(before)


def together(*works):
    """Run each in a thread of its own; the first error comes out."""
    barrier = threading.Barrier(len(works))
    errors = []

    def guarded(work):
        barrier.wait()
        try:
            work()
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def payments(n, seed=1):
    """Different payments."""
    rng = random.Random(seed)
    return [
        payment(
            amount=rng.uniform(-1e4, 1e4),
            rate=rng.choice([None, rng.random()]),
            count=rng.randrange(1000),
            channel=rng.choice(["web", "app", "日本", ""]),
            note=rng.choice([None, f"n{i}"]),
            tags=[f"t{j}" for j in range(rng.randrange(6))],
            sizes=[rng.random() for _ in range(rng.randrange(4))],
            codes=[rng.randrange(100) for _ in range(rng.randrange(4))],
        )
        for i in range(n)
    ]


# ---- threads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["c", "python"])
def test_eight_threads_get_the_bits_of_one(backend):
    """Single calls, JSON, MessagePack and batches, good and bad requests mixed, on one scorer."""
    scorer = releases.scorer_of(releases.payment_files(), backend=backend, max_in_flight=8)
    requests = payments(60)
    want = [scorer.score(r).score for r in requests]
    bodies = [msgspec.json.encode(r) for r in requests]
    packed = [msgspec.msgpack.encode(r) for r in requests]
    structs = [scorer.request_type(**r) for r in requests]

    def work(seed):
        order = list(range(len(requests)))
        random.Random(seed).shuffle(order)
        for _ in range(4):
            for i in order:
                assert scorer.score(requests[i]).score == want[i]
                assert scorer.score(structs[i]).score == want[i]
                assert msgspec.json.decode(scorer.score_json(bodies[i]))["score"] == want[i]
                assert msgspec.msgpack.decode(scorer.score_msgpack(packed[i]))["score"] == want[i]
                if i % 7 == 0:
                    with pytest.raises(FeatureError):
                        scorer.score(requests[i] | {"amount": float("inf")})
                if i % 13 == 0:
                    with pytest.raises(CallerError):
                        scorer.score_json(bodies[i][:-1])
            answers = scorer.score_batch([*requests, {}], errors="row")
            assert [a.score for a in answers[:-1]] == want
            assert isinstance(answers[-1], FeatureError)

    together(*[lambda s=s: work(s) for s in range(THREADS)])


@pytest.mark.parametrize(("hold_gil_below_us", "backend"), [(0.0, "c"), (1e9, "c"), (0.0, "python")])
def test_eight_threads_rank_as_one(hold_gil_below_us, backend):
    """With the GIL given up in every call, with it held in every call, and through the Python session."""
    files = releases.packed("deep", releases.deep_network(3), releases.item_spec())
    store = ri.Store(tables={"item": releases.items(1500)})
    options = {"hold_gil_below_us": hold_gil_below_us, "backend": backend, "max_in_flight": 8}
    ranker = releases.ranker_of(files, store=store, **options)
    rng = random.Random(4)
    cases = []
    for i in range(12):
        ids = rng.sample([f"sku-{j:03d}" for j in range(1600)], rng.choice([1, 30, 511, 512, 513, 1500]))
        context = {"user": f"u{i}", "boost": rng.random()}
        exclude, rule = rng.sample(ids, len(ids) // 4), rng.choice([None, "item.stock > 0"])
        answer = ranker.rank(context, ids, 25, available=rule, exclude=exclude)
        body = msgspec.json.encode({"context": context, "candidates": ids, "k": 25, "exclude": exclude})
        cases.append((context, ids, rule, exclude, body, answer))

    def work(seed):
        for context, ids, rule, exclude, body, want in random.Random(seed).sample(cases, len(cases)) * 3:
            got = ranker.rank(context, ids, 25, available=rule, exclude=exclude)
            assert (got.items, got.scores, got.suppressed) == (want.items, want.scores, want.suppressed)
            answer = msgspec.json.decode(ranker.rank_json(body, available=rule))
            assert (answer["items"], answer["scores"], answer["suppressed"]) == (
                want.items,
                want.scores,
                want.suppressed,
            )

    together(*[lambda s=s: work(s) for s in range(THREADS)])


def test_ids_of_answers_are_unique_across_threads():
    """Decisions, batches and rankings of all threads share one counter."""
    scorer, ranker = releases.payment_scorer(), releases.item_ranker()
    found = [[] for _ in range(THREADS)]

    def work(ids):
        for _ in range(200):
            ids.append(scorer.score(payment()).id)
            ids.extend(d.id for d in scorer.score_batch([payment()] * 3))
            ids.append(ranker.rank(CONTEXT, ["sku-001"]).id)

    together(*[lambda ids=ids: work(ids) for ids in found])
    every = [i for ids in found for i in ids]
    assert len(set(every)) == len(every) == THREADS * 200 * 5


# ---- swapped tables --------------------------------------------------------------------------------------------------


def generation(number, n=700):
    """A table in which every item weighs its generation, and says so in its stock."""
    return ri.Snapshot.from_rows(
        {
            f"sku-{i:03d}": {"weight": float(number), "stock": number, "age": i, "label": "x"}
            for i in range(n)
        },
        kinds={"weight": "f64", "stock": "i64", "age": "i64", "label": "str"},
    )


@pytest.mark.parametrize("hold_gil_below_us", [0.0, 1e9])
def test_a_ranking_sees_one_generation_of_a_table_that_is_swapped_meanwhile(hold_gil_below_us):
    """All scores of an answer are of one generation; so is what `available` compared."""
    store = ri.Store(tables={"item": generation(1)})
    ranker = releases.ranker_of(releases.item_files(), store=store, hold_gil_below_us=hold_gil_below_us)
    ids = [f"sku-{i:03d}" for i in range(700)]
    body = msgspec.json.encode({"context": CONTEXT, "candidates": ids, "k": 700})
    stop = threading.Event()
    seen = set()

    def swap():
        tables = [generation(number) for number in range(1, 6)]
        for number in itertools.count():
            if stop.is_set():
                return
            store.swap("item", tables[number % 5])

    def rank():
        for turn in itertools.count():
            if turn >= 60 and (
                len(seen) > 1 or turn >= 5_000
            ):  # a swap must have come between, however threads run
                return
            for answer in (
                ranker.rank(CONTEXT, ids, 700, available="item.stock > 0"),
                msgspec.json.decode(ranker.rank_json(body, available="item.stock < 6"), type=ri.Ranking),
            ):
                assert len(answer.items) == 700
                assert len(set(answer.scores)) == 1, set(answer.scores)
                seen.add(answer.scores[0])
            few = ranker.rank(CONTEXT, ids, 700, available="item.stock == 3")
            assert set(few.scores) in (set(), {4.0})
            assert len(few.items) in (0, 700)

    def all_ranks():
        try:
            together(*[rank] * 3)
        finally:
            stop.set()

    together(swap, all_ranks)
    assert len(seen) > 1


def test_two_tables_that_are_swapped_together_are_seen_together():
    """`swap_all` changes both or none for a call: the score is a difference of equal numbers."""
    spec = ri.FeatureSpec(
        request={"card": str, "shop": str},
        entities={"card": "card", "shop": "shop"},
        columns=[c.stored("card.n", null=-1.0), c.stored("shop.n", null=-1.0)],
    )

    def tables(number):
        return {name: ri.Snapshot.from_rows({"a": {"n": float(number)}}) for name in ("card", "shop")}

    store = ri.Store(tables=tables(0))
    scorer = releases.scorer_of(releases.packed("both", releases.weighted(1.0, -1.0), spec), store=store)
    stop = threading.Event()

    def swap():
        for number in itertools.count():
            if stop.is_set():
                return
            store.swap_all(tables(number % 1000))

    def score():
        try:
            for _ in range(3000):
                assert scorer.score({"card": "a", "shop": "a"}).score == 0.0
        finally:
            stop.set()

    together(swap, score)


def test_a_replaced_table_is_let_go_when_the_next_call_is_done():
    """Rules, workspaces and plans that have seen a table do not keep it."""
    store = ri.Store(tables={"item": generation(1)})
    ranker = releases.ranker_of(releases.item_files(), store=store)
    ids = [f"sku-{i:03d}" for i in range(50)]
    together(*[lambda: ranker.rank(CONTEXT, ids, available="item.stock > 0")] * THREADS)
    first = store["item"].table
    held = sys.getrefcount(first)
    ranker.rank(CONTEXT, ids, available="item.age > 3")
    assert sys.getrefcount(first) == held
    store.swap("item", generation(2))
    ranker.rank(CONTEXT, ids)
    assert sys.getrefcount(first) == 2  # `first` and the argument


# ---- code that calls back --------------------------------------------------------------------------------------------


class Calling(float):
    """A float that runs something when it is read."""

    __slots__ = ("work",)

    def __new__(cls, value, work):
        made = super().__new__(cls, value)
        made.work = work
        return made

    def __float__(self):
        self.work()
        return float.__add__(self, 0.0)


def test_a_value_may_call_the_scorer_that_reads_it():
    """Re-entered 20 deep, in single calls and in batches: each call has memory of its own, and a permit."""
    scorer = releases.scorer_of(releases.payment_files(), max_in_flight=22)
    plain = payments(30)
    want = [scorer.score(r).score for r in plain]
    depth = 0

    def again():
        nonlocal depth
        if depth >= 20:
            return
        depth += 1
        i = depth % len(plain)
        assert scorer.score(plain[i] | {"amount": Calling(plain[i]["amount"], again)}).score == want[i]
        assert [d.score for d in scorer.score_batch(plain[:5])] == want[:5]
        with pytest.raises(FeatureError):
            scorer.score(plain[i] | {"rate": Calling(float("inf"), lambda: None)})
        depth -= 1

    for i, request in enumerate(plain):
        called = request | {"amount": Calling(request["amount"], again)}
        assert scorer.score(called).score == want[i]
        assert scorer.score_batch([plain[0], called, plain[1]])[1].score == want[i]


def test_a_context_may_call_the_ranker_that_reads_it():
    """And another one of the same table."""
    ranker = releases.item_ranker()
    ids = [f"sku-{i:03d}" for i in range(60)]
    want = ranker.rank(CONTEXT, ids)

    def again():
        assert ranker.rank(CONTEXT, ids[::-1]).items == want.items

    got = ranker.rank(CONTEXT | {"boost": Calling(1.0, again)}, ids)
    assert (got.items, got.scores) == (want.items, want.scores)


@pytest.mark.parametrize("change", ["clear", "append", "pop", "replace", "shuffle"])
@pytest.mark.parametrize("hold_gil_below_us", [0.0, 1e9])
def test_a_context_may_change_the_list_of_candidates(change, hold_gil_below_us):
    """While it is read, of all moments: an answer about what is there, or a typed error, and no crash."""
    ranker = releases.ranker_of(
        releases.item_files(),
        store=ri.Store(tables={"item": releases.items()}),
        hold_gil_below_us=hold_gil_below_us,
    )
    for n in (1, 3, 700):
        ids = ["".join(["sku-", f"{i % 60:03d}"]) for i in range(n)]

        def work(ids=ids):
            if change == "clear":
                ids.clear()
            elif change == "append":
                ids.extend(["sku-001"] * 5000)
            elif change == "pop":
                ids.pop()
            elif change == "replace":
                ids[:] = [None] * len(ids)
            else:
                random.shuffle(ids)

        try:
            ranking = ranker.rank(CONTEXT | {"boost": Calling(1.0, work)}, ids)
        except CallerError:
            continue
        assert set(ranking.items) <= {f"sku-{i:03d}" for i in range(60)}


@pytest.mark.parametrize("change", ["clear", "grow", "replace"])
def test_a_value_may_change_the_request_that_holds_it(change):
    """The dict is ours to read, not to trust: an answer or a typed error."""
    scorer = releases.payment_scorer()
    for field in ("amount", "rate", "at"):
        request = payment()

        def work(request=request):
            if change == "clear":
                request.clear()
            elif change == "grow":
                request.update({f"k{i}": i for i in range(1000)})
            else:
                for name in list(request):
                    request[name] = f"x{name}"

        request[field] = Calling(1.0, work)
        with contextlib.suppress(RetailInferError):
            assert scorer.score(request).score > 0


@pytest.mark.parametrize("field", ["channel", "note"])
@pytest.mark.parametrize("trigger", ["amount", "rate", "at"])
def test_a_value_may_change_even_the_frozen_struct_that_holds_it(field, trigger):
    """`force_setattr` frees a text that was read already: its bytes are still there when they are hashed."""
    scorer = releases.payment_scorer()
    long = "".join(["x" * 50, "y" * 50])
    want = {scorer.score(payment(**{field: text, trigger: 1.0})).score for text in (long, "app")}
    for _ in range(20):
        held = []

        def work(held=held):
            msgspec.structs.force_setattr(held[0], field, "app")
            held.append([bytes(100 + i) for i in range(100)])

        changes = {field: "".join(["x" * 50, "y" * 50]), trigger: Calling(1.0, work)}
        held.append(scorer.request_type(**payment(**changes)))
        del changes
        assert scorer.score(held[0]).score in want


def test_a_row_of_a_batch_may_change_a_struct_whose_text_waits_for_the_model():
    """Texts of a string tensor are pointed at until the last row is read."""
    from onnx import TensorProto, helper

    spec = ri.FeatureSpec(
        request={"name": str, "n": float},
        tensors={"texts": ri.Tensor([c.raw("name")], dtype="string"), "x": ri.Tensor([c.numeric("n")])},
    )
    nodes = [
        helper.make_node("Equal", ["texts", "long"], ["e"]),
        helper.make_node("Cast", ["e"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["f", "x"], ["y"]),
    ]
    text = "x" * 50 + "y" * 50
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("texts", TensorProto.STRING, [None, 1]),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 1]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])],
        [helper.make_tensor("long", TensorProto.STRING, [], [text.encode()])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    scorer = releases.scorer_of(releases.packed("texts", model.SerializeToString(), spec))
    for _ in range(20):
        first = scorer.request_type(name="".join(["x" * 50, "y" * 50]), n=0.0)
        held = []

        def work(first=first, held=held):
            msgspec.structs.force_setattr(first, "name", "other")
            held.append([bytes(100 + i) for i in range(100)])

        second = scorer.request_type(name="z", n=Calling(5.0, work))
        assert [d.score for d in scorer.score_batch([first, second])] == [1.0, 5.0]


def test_a_batch_may_change_while_it_is_read():
    """The list is copied first."""
    scorer = releases.payment_scorer()
    requests = payments(20)
    want = [scorer.score(r).score for r in requests]
    first = requests[0]["amount"]
    requests[0]["amount"] = Calling(first, requests.clear)
    assert [d.score for d in scorer.score_batch(requests)] == want
    assert requests == []


def test_ids_whose_class_runs_code_are_never_asked():
    """Subclasses of str with their own hash and equality, among candidates and exclusions."""
    ids = ["".join(["sku-", f"{i:03d}"]) for i in range(30)]

    class Evil(str):
        __slots__ = ()

        def __hash__(self):
            ids.clear()
            return 0

        def __eq__(self, other):
            ids.clear()
            return True

    ranker = releases.item_ranker()
    bad = Evil("new")
    assert ranker.rank(CONTEXT, [*ids, bad], 50, exclude=[Evil("sku-001"), Evil("other")]).suppressed == {
        "sku-001": "excluded"
    }
    assert len(ids) == 30


def test_a_table_swapped_by_the_request_itself():
    """A value that swaps the table which the call is about to read: old or new, never a mixture."""
    store = ri.Store(tables={"item": generation(1)})
    ranker = releases.ranker_of(releases.item_files(), store=store)
    ids = [f"sku-{i:03d}" for i in range(700)]
    for number in range(2, 30):
        boost = Calling(1.0, lambda n=number: store.swap("item", generation(n)))
        scores = set(ranker.rank(CONTEXT | {"boost": boost}, ids, 700).scores)
        assert scores in ({float(number)}, {1.0 + number})


def test_a_value_that_closes_the_door_behind_itself():
    """The call under way finishes, the next one is refused."""
    scorer = releases.scorer_of(releases.payment_files())
    want = releases.payment_scorer().score(payment()).score
    assert scorer.score(payment(amount=Calling(12.5, scorer.close))).score == want
    with pytest.raises(ConfigError):
        scorer.score(payment())


# ---- coroutines and greenlets ------------------------------------------------------------------------------------------


def test_coroutines_get_the_bits_of_plain_calls():
    """Hundreds at once, inline and in threads, with errors among them."""
    scorer, ranker = releases.payment_scorer(), releases.item_ranker(n=600)
    requests = payments(100)
    want = [scorer.score(r).score for r in requests]
    ids = [f"sku-{i:03d}" for i in range(600)]
    best = ranker.rank(CONTEXT, ids).items

    async def main():
        bad = scorer.ascore({})
        tasks = [scorer.ascore(r, request_id=str(i)) for i, r in enumerate(requests)]
        rankings = [ranker.arank(CONTEXT, random.sample(ids, len(ids))) for _ in range(20)]
        answers = await asyncio.gather(bad, *tasks, *rankings, return_exceptions=True)
        assert isinstance(answers[0], FeatureError)
        assert [(d.id, d.score) for d in answers[1:101]] == [(str(i), s) for i, s in enumerate(want)]
        assert all(r.items == best for r in answers[101:])

    asyncio.run(main())


def test_calls_that_take_long_leave_the_event_loop_alone():
    """Cheap ones run inline, expensive ones in a thread, and the loop turns meanwhile."""
    scorer = releases.scorer_of(releases.payment_files())
    inline, other = [], []

    class Noting(float):
        __slots__ = ()
        where = inline

        def __float__(self):
            type(self).where.append(threading.get_ident())
            return 1.0

    async def main():
        await scorer.ascore(payment(amount=Noting(1.0)))
        Noting.where = other
        releases.put_engine(scorer, Slow(scorer._live.engine))
        turns = 0
        task = asyncio.ensure_future(scorer.ascore(payment(amount=Noting(1.0))))
        while not task.done():
            await asyncio.sleep(0)
            turns += 1
        assert turns > 1
        assert (await task).score > 0

    asyncio.run(main())
    assert inline == [threading.get_ident()]
    assert other
    assert other[0] != threading.get_ident()
    scorer.close()


class Slow:
    """An engine that says its model is slow."""

    fixed_us = one_us = 1e6
    row_us = 0.0

    def __init__(self, engine):
        self._engine = engine

    def __getattr__(self, name):
        return getattr(self._engine, name)


def test_a_cancelled_call_leaves_nothing_broken():
    """The thread finishes its work; later calls and closing are as ever."""
    scorer = releases.scorer_of(releases.payment_files())
    releases.put_engine(scorer, Slow(scorer._live.engine))

    async def main():
        for _ in range(30):
            task = asyncio.ensure_future(scorer.ascore(payment()))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        return await scorer.ascore(payment())

    assert asyncio.run(main()).score > 0
    scorer.close()
    with pytest.raises(ConfigError):
        asyncio.run(scorer.ascore(payment()))


def test_loops_of_several_threads_share_one_scorer():
    """One after the other, and at once."""
    scorer = releases.scorer_of(
        releases.payment_files(), max_waiting=128
    )  # 80 calls at once are no overload here
    releases.put_engine(scorer, Slow(scorer._live.engine))
    want = releases.payment_scorer().score(payment()).score

    def work():
        async def main():
            answers = await asyncio.gather(*[scorer.ascore(payment()) for _ in range(20)])
            assert {a.score for a in answers} == {want}

        asyncio.run(main())
        asyncio.run(main())

    together(*[work] * 4)
    before = threading.active_count()
    scorer.close()
    assert threading.active_count() < before


def test_an_async_ranking_reads_its_own_copy_of_the_candidates():
    """The caller may change the list while the ranking waits for a thread."""
    ranker = releases.item_ranker()
    releases.put_engine(ranker, Slow(ranker._live.engine))
    ids = [f"sku-{i:03d}" for i in range(60)]
    want = ranker.rank(CONTEXT, list(ids)).items

    async def main():
        busy = asyncio.gather(*[ranker.arank(CONTEXT, want) for _ in range(20)])  # so that ours waits
        task = asyncio.ensure_future(ranker.arank(CONTEXT, ids))
        await asyncio.sleep(0)
        ids.clear()
        await busy
        return await task

    assert asyncio.run(main()).items == want
    ranker.close()


@pytest.mark.requires("gevent")
def test_greenlets_that_switch_in_the_middle_of_a_request_do_not_mix():
    """A value that yields to the hub while it is read: every greenlet gets its own answer."""
    from processes import run_script

    out = run_script("""
        import gevent
        import releases
        from test_concurrency_threads import Calling, payments
        scorer = releases.scorer_of(releases.payment_files(), max_in_flight=400)
        requests = payments(40)
        want = [scorer.score(r).score for r in requests]
        def work(i):
            request = requests[i] | {"amount": Calling(requests[i]["amount"], lambda: gevent.sleep(0))}
            assert scorer.score(request).score == want[i]
            assert scorer.score_batch([request, requests[0], request])[2].score == want[i]
            return True
        jobs = [gevent.spawn(work, i % len(requests)) for i in range(400)]
        gevent.joinall(jobs)
        print(all(job.value for job in jobs))
    """)
    assert out == "True"


def test_a_scorer_in_use_is_closed_without_harm():
    """Calls under way finish or are refused with a ConfigError; nothing else happens."""
    for _ in range(5):
        scorer = releases.scorer_of(releases.payment_files())
        done = []

        def work(scorer=scorer, done=done):
            try:
                while True:
                    done.append(scorer.score(payment()).score)
            except ConfigError:
                return

        def close(scorer=scorer, done=done):
            while len(done) < 50:
                time.sleep(0)
            scorer.close()

        together(*[work] * 4, close)
        assert len(set(done)) == 1


def test_numpy_errors_of_callers_do_not_reach_us():
    """`numpy.seterr(all="raise")` is a common setting, and per thread."""
    scorer, ranker = releases.payment_scorer(), releases.item_ranker()
    with np.errstate(all="raise"):
        assert scorer.score(payment(amount=1e-300)).score > 0
        assert ranker.rank(CONTEXT | {"boost": 1e-40}, ["sku-001"]).scores == [pytest.approx(1.0)]
        with pytest.raises(FeatureTypeError):
            scorer.score(None)
