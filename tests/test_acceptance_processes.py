"""Acceptance around processes (cases 50, 51, 54, 56, and leaks): forks, exits and long runs with scorers and rankers alive.

Each test runs a script in a process of its own with a bounded wait: a hang is a failure, and so is any output on stderr.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import run_script

POSIX = pytest.mark.skipif(not hasattr(os, "fork"), reason="platform: no fork here")
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="platform: reads /proc")

PRELUDE = """
import gc, os, sys, threading, time, asyncio, signal
import msgspec, numpy as np
import releases, retailinfer as ri
from releases import CONTEXT, payment
from retailinfer.errors import RetailInferError

def wait(pid, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.0005)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return "hung"

def rss_kb():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024

IDS = [f"sku-{i:03d}" for i in range(700)]
"""


def run(script, **more):
    """The prelude and a script."""
    import textwrap

    return run_script(PRELUDE + textwrap.dedent(script), **more)


# ---- 50, 51: fork --------------------------------------------------------------------------------------------------------


@POSIX
@pytest.mark.parametrize(
    "leave", ["sys.exit(0)", "os._exit(0)", "raise SystemExit(0)", "os.kill(os.getpid(), 15)"]
)
def test_c50_a_scorer_loaded_before_the_fork_answers_in_the_children_and_they_exit(leave):
    """What a prefork master with --preload does: same bits in parent and children, every way to leave ends."""
    out = run(f"""
        scorer, ranker = releases.payment_scorer(), releases.item_ranker(n=700)
        want = scorer.score(payment()).score, ranker.rank(CONTEXT, IDS).items
        codes = []
        for _ in range(8):
            pid = os.fork()
            if pid == 0:
                signal.signal(15, signal.SIG_DFL)
                assert (scorer.score(payment()).score, ranker.rank(CONTEXT, IDS).items) == want
                assert asyncio.run(scorer.ascore(payment())).score == want[0]
                {leave}
            start = time.monotonic()
            codes.append(wait(pid))
            assert time.monotonic() - start < 5
        assert (scorer.score(payment()).score, ranker.rank(CONTEXT, IDS).items) == want
        print(set(codes) <= {{0, -15}})
    """)
    assert out == "True"


@POSIX
def test_c50_a_scorer_may_be_loaded_and_dropped_in_a_child():
    """And the parent's goes on; the child frees what it inherited without harm."""
    out = run("""
        scorer = releases.payment_scorer()
        want = scorer.score(payment()).score
        pid = os.fork()
        if pid == 0:
            own = releases.scorer_of(releases.payment_files())
            assert own.score(payment()).score == want
            del own
            releases.payment_scorer.cache_clear()
            del scorer
            gc.collect()
            assert releases.payment_scorer().score(payment()).score == want
            sys.exit(0)
        code = wait(pid)
        assert scorer.score(payment()).score == want
        print(code)
    """)
    assert out == "0"


@POSIX
@pytest.mark.parametrize(
    ("hold_gil_below_us", "forks"),
    [
        (0.0, 15),
        (1e9, 15),
    ],
)
def test_c51_fork_while_other_threads_score_and_rank(hold_gil_below_us, forks):
    """The child answers, forks again, and exits; nobody hangs on something that was half done."""
    out = run(f"""
        scorer = releases.scorer_of(releases.payment_files(), hold_gil_below_us={hold_gil_below_us})
        store = ri.Store(tables={{"item": releases.items(700)}})
        ranker = releases.ranker_of(releases.item_files(), store=store, hold_gil_below_us={hold_gil_below_us})
        want = scorer.score(payment()).score, ranker.rank(CONTEXT, IDS).items
        stop = threading.Event()
        def score():
            while not stop.is_set():
                scorer.score(payment())
                scorer.score_batch([payment()] * 50)
        def rank():
            while not stop.is_set():
                ranker.rank(CONTEXT, IDS)
        def swap():
            while not stop.is_set():
                store.swap("item", releases.items(700))
        threads = [threading.Thread(target=work) for work in (score, rank, rank, swap)]
        for thread in threads:
            thread.start()
        codes = []
        for n in range({forks}):
            pid = os.fork()
            if pid == 0:
                assert (scorer.score(payment()).score, ranker.rank(CONTEXT, IDS).items) == want
                store.swap("item", releases.items(700))
                assert ranker.rank(CONTEXT, IDS).items == want[1]
                if n % 10 == 0:
                    inner = os.fork()
                    if inner == 0:
                        assert scorer.score(payment()).score == want[0]
                        os._exit(0)
                    assert wait(inner) == 0
                sys.exit(0)
            codes.append(wait(pid))
        stop.set()
        for thread in threads:
            thread.join()
        print(codes.count(0))
    """)
    assert out == str(forks)


@POSIX
@pytest.mark.slow
def test_c51_240_forks_over_the_whole_matrix():
    """What was loaded when, whose sessions, which threads, which way to leave: every child answers and ends."""
    pytest.importorskip("onnxruntime")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("fork_matrix.py")), "--forks", "240"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])},
        capture_output=True, text=True, check=False, timeout=170,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stdout[-3000:]
    report = json.loads(done.stdout)
    assert (report["forks"], report["cases"]) == (240, 24)
    assert report["first_ms_p50"] <= 250
    assert report["exit_ms_p99"] <= 1_000


@POSIX
def test_c51_ids_of_answers_are_unique_across_forks():
    """Parent and children count on with prefixes of their own, also when none had answered before the fork."""
    out = run("""
        scorer = releases.payment_scorer()
        ids = []
        for answered in (False, True):
            if answered:
                ids.append(scorer.score(payment()).id)
            readers = []
            for _ in range(4):
                r, w = os.pipe()
                if os.fork() == 0:
                    text = " ".join(scorer.score(payment()).id for _ in range(50))
                    os.write(w, text.encode())
                    os._exit(0)
                os.close(w)
                readers.append(r)
            ids += [scorer.score(payment()).id for _ in range(50)]
            for r in readers:
                ids += os.read(r, 100_000).decode().split()
                os.wait()
        print(len(ids), len(set(ids)))
    """)
    assert out == "501 501"


@POSIX
def test_c51_async_calls_after_a_fork_make_threads_of_their_own():
    """Threads do not survive a fork: a child that inherits a used executor must not wait for it."""
    out = run("""
        from test_concurrency_threads import Slow
        scorer = releases.payment_scorer()
        releases.put_engine(scorer, Slow(scorer._live.engine))
        want = asyncio.run(scorer.ascore(payment())).score
        pid = os.fork()
        if pid == 0:
            assert asyncio.run(scorer.ascore(payment())).score == want
            scorer.close()
            sys.exit(0)
        code = wait(pid)
        assert asyncio.run(scorer.ascore(payment())).score == want
        scorer.close()
        print(code)
    """)
    assert out == "0"


@POSIX
def test_c50_multiprocessing_with_fork_and_spawn_serves():
    """Pools of workers, however they start, answer and end."""
    out = run("""
        import multiprocessing
        import worker_for_tests
        want = releases.payment_scorer().score(payment()).score
        for how in ("fork", "spawn"):
            with multiprocessing.get_context(how).Pool(2) as pool:
                assert set(pool.map(worker_for_tests.score, range(20))) == {want}
        print("ok")
    """)
    assert out == "ok"


# ---- 54: exit ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["", "sys.exit(0)", "raise SystemExit(0)", "scorer.close(); ranker.close()"])
def test_c54_the_interpreter_ends_with_live_scorers(end):
    """Alive as globals, in cycles, in threads' locals: no crash, no output."""
    run(f"""
        scorer, ranker = releases.payment_scorer(), releases.item_ranker()
        scorer.score(payment())
        ranker.rank(CONTEXT, IDS)
        scorer.itself = scorer
        cycle = [ranker]
        cycle.append(cycle)
        sys.modules["kept"] = scorer
        {end}
    """)


@pytest.mark.parametrize("hold_gil_below_us", [0.0, 1e9])
@pytest.mark.slow
def test_c54_the_interpreter_ends_while_daemon_threads_score(hold_gil_below_us):
    """Threads that are inside native code, with or without the GIL, when everything is taken down."""
    for _ in range(5):
        run(f"""
            scorer = releases.scorer_of(releases.payment_files(), hold_gil_below_us={hold_gil_below_us})
            store = ri.Store(tables={{"item": releases.items(700)}})
            ranker = releases.ranker_of(releases.item_files(), store=store, hold_gil_below_us={hold_gil_below_us})
            def work():
                while True:
                    try:
                        scorer.score(payment())
                        scorer.score_batch([payment()] * 20)
                        ranker.rank(CONTEXT, IDS)
                    except RetailInferError:
                        pass  # the models are closed by now; a thread that still runs is told so
            for _ in range(4):
                threading.Thread(target=work, daemon=True).start()
            time.sleep(0.05)
        """)


def test_c54_a_thread_outlives_the_main_thread():
    """Non-daemon threads finish their calls after the last line of the script."""
    out = run("""
        scorer = releases.payment_scorer()
        def work():
            time.sleep(0.05)
            print(scorer.score(payment()).score == want)
        want = scorer.score(payment()).score
        threading.Thread(target=work).start()
    """)
    assert out == "True"


def test_c54_a_scorer_used_while_the_interpreter_ends_does_not_crash():
    """atexit hooks and finalisers that score: an answer or a typed error."""
    out = run("""
        import atexit
        scorer = releases.payment_scorer()
        class Late:
            def __del__(self, scorer=scorer, payment=payment):
                try:
                    scorer.score(payment())
                except Exception:
                    pass
        kept = Late()
        def last():
            try:
                print(scorer.score(payment()).score > 0)
            except RetailInferError as exc:
                print(True)
        atexit.register(last)
    """)
    assert out == "True"


def test_c55_a_subinterpreter_is_refused_clearly():
    """An ImportError that says so, or it works; no crash."""
    run("""
        try:
            import _xxsubinterpreters as interpreters
        except ImportError:
            sys.exit(0)
        CODE = "import retailinfer\\ntry:\\n    retailinfer.Scorer\\nexcept ImportError:\\n    pass"
        one = interpreters.create()
        try:
            interpreters.run_string(one, CODE)
        except interpreters.RunFailedError as exc:
            assert "ImportError" in str(exc), exc
        interpreters.destroy(one)
    """)


# ---- 56: onnxruntime imported by somebody else ---------------------------------------------------------------------------


def test_c56_onnxruntime_imported_before_us_is_warned_of_and_works():
    """Its telemetry may be running already: said once, and served nevertheless."""
    pytest.importorskip("onnxruntime")
    out = run(
        """
        files = releases.payment_files()
        want = releases.scorer_of(files).score(payment()).score
        import subprocess
        code = '''if True:
            import warnings, sys, os
            import onnxruntime
            os.environ.pop("ORT_DISABLE_TELEMETRY")  # as if it had never been set; this test shall send nothing either
            import retailinfer as ri
            from retailinfer.clock import SystemClock
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                scorer = ri.Scorer.load(sys.argv[1], trust="unsigned")
            assert any("ORT_DISABLE_TELEMETRY" in str(w.message) for w in caught), [str(w.message) for w in caught]
            import releases
            print(scorer.score(releases.payment()).score)
            '''
        import tempfile, pathlib
        with tempfile.TemporaryDirectory() as folder:
            for name, data in files.items():
                pathlib.Path(folder, name).write_bytes(data)
            env = os.environ | {"ORT_DISABLE_TELEMETRY": "1"}
            done = subprocess.run([sys.executable, "-c", code, folder], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        print(float(done.stdout) == want)
    """
    )
    assert out == "True"


# ---- leaks ---------------------------------------------------------------------------------------------------------------

LEAKS = """
    scorer, ranker = releases.payment_scorer(), releases.item_ranker(n=700)
    body = msgspec.json.encode(payment())
    packed = msgspec.msgpack.encode(payment())
    ranking = msgspec.json.encode({"context": CONTEXT, "candidates": IDS, "exclude": ["sku-001", "new"]})
    bad = [b"", body[:-1], body.replace(b"12.5", b"1e999"), body.replace(b'"web"', b"7"), b"[" * 50]
    arrays = {"x": np.zeros((4, 15), np.float32)}
    class Odd(float):
        def __float__(self):
            raise ZeroDivisionError

    def once(i):
        scorer.score(payment(amount=float(i)))
        scorer.score_json(body)
        scorer.score_msgpack(packed)
        for call in (scorer.score_json, scorer.score_msgpack, ranker.rank_json):
            try:
                call(bad[i % 5])
            except RetailInferError:
                pass
        for broken in ({}, payment(amount=Odd(1.0)), payment(channel="x" * 70_000), payment(tags=[None]), None):
            try:
                scorer.score(broken)
            except RetailInferError:
                pass
        if i % 20 == 0:
            scorer.score_batch([payment(), {}, payment()] * 20, errors="row")
            ranker.rank(CONTEXT, [*IDS, "new"], available="item.stock > 0", exclude=["a"])
            ranker.rank_json(ranking)
            scorer.score_arrays(arrays)
            for wrong in ([5], ["a", None]):
                try:
                    ranker.rank(CONTEXT, wrong)
                except RetailInferError:
                    pass

    def measure(n):
        for i in range(n):
            once(i)
        gc.collect()
        return rss_kb(), len(gc.get_objects()), sys.getallocatedblocks()
"""


@LINUX
def test_calls_leave_nothing_behind():
    """Good and bad calls of every door: no growth of memory, of objects, or of allocated blocks."""
    out = run(
        LEAKS
        + """
    measure(2000)
    rss, objects, blocks = measure(2000)
    rss_after, objects_after, blocks_after = measure(4000)
    print(rss_after - rss < 600, objects_after - objects < 50, blocks_after - blocks < 200,
          (rss_after - rss, objects_after - objects, blocks_after - blocks))
    """
    )
    assert out.startswith("True True True"), out


@LINUX
@pytest.mark.slow
def test_two_hundred_thousand_scores_leave_nothing_behind():
    """The slope over a long run: at most 64 KiB per million calls is the promise; a few pages here."""
    out = run(
        LEAKS
        + """
    for i in range(20_000):
        scorer.score_json(body)
    before = rss_kb()
    for i in range(200_000):
        scorer.score_json(body)
    plain = rss_kb() - before
    measure(5_000)
    before = measure(1_000)[0]
    mixed = measure(20_000)[0] - before
    print(plain <= 64, mixed <= 600, (plain, mixed))
    """
    )
    assert out.startswith("True True"), out


@LINUX
@pytest.mark.slow
def test_loading_and_swapping_leave_nothing_behind():
    """Releases that come and go, tables that are replaced under rankers with rules."""
    out = run("""
        files = releases.payment_files()
        store = ri.Store(tables={"item": releases.items(700)})
        ranker = releases.ranker_of(releases.item_files(), store=store)
        tables = [releases.items(20_000, shift=float(i)) for i in range(2)]
        def once(i):
            with releases.scorer_of(files) as scorer:
                scorer.score(payment())
            other = releases.ranker_of(releases.item_files(), store=store)
            other.rank(CONTEXT, IDS)
            del other
            store.swap("item", releases.items(20_000, shift=float(i)))
            ranker.rank(CONTEXT, IDS, available=f"item.stock > {i % 5}")
        def measure(n):
            for i in range(n):
                once(i)
            gc.collect()
            return rss_kb(), len(gc.get_objects())
        measure(12)
        rss, objects = measure(12)
        rss_after, objects_after = measure(24)
        print(rss_after - rss < 6000, objects_after - objects < 50, (rss_after - rss, objects_after - objects))
    """)
    assert out.startswith("True True"), out


@LINUX
def test_a_dropped_scorer_frees_its_model():
    """Its memory goes back when the last reference goes: no cycle keeps it from being freed at once."""
    out = run("""
        import weakref
        gc.disable()
        scorer = releases.scorer_of(releases.payment_files())
        scorer.score(payment())
        session = weakref.ref(scorer._live.pipeline)
        del scorer
        print(session() is None)
    """)
    assert out == "True"
