"""ONNX Runtime inside a process: silent, without threads, safe around fork and exit, without leaks.

Each test that forks, exits or measures runs a script in a process of its own, with a bounded wait.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from onnx import helper, numpy_helper

from retailinfer._native import ort

WAIT_S = 120

POSIX = pytest.mark.skipif(not hasattr(os, "fork"), reason="platform: no fork here")
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="platform: reads /proc")

# What every script starts with. `wait` is waitpid with an end.
PRELUDE = """
import gc, os, sys, threading, time
import numpy as np
from retailinfer._native import ort
from retailinfer.errors import ModelError, SessionError
from retailinfer.runtime.session import open_session

SMALL = open(os.environ["SMALL_MODEL"], "rb").read()   # y = x @ w, 40 columns to 2
SLOW = open(os.environ["SLOW_MODEL"], "rb").read()     # tens of milliseconds per run
X = np.arange(40, dtype=np.float32).reshape(1, 40) / 40

def opened(model=SMALL):
    session = open_session(model, backend="c")
    session.select_score(0, 0)
    return session

def wait(pid, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return "hung"

def threads():
    return len(os.listdir("/proc/self/task"))

def rss_kb():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
"""


def model_bytes(nodes, initializers, *, width=40, columns=2):
    """A model of float rows."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, [None, width])],
        [helper.make_tensor_value_info("y", 1, [None, columns])],
        [numpy_helper.from_array(value, name) for name, value in initializers.items()],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()


@pytest.fixture(scope="module")
def model_files(tmp_path_factory):
    """Paths of the two models as environment variables."""
    folder = tmp_path_factory.mktemp("models")
    rng = np.random.default_rng(0)
    small = model_bytes(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": rng.normal(size=(40, 2)).astype("f4")}
    )
    chain = [helper.make_node("MatMul", ["x", "first"], ["h0"])]
    chain += [helper.make_node("MatMul", [f"h{i}", "square"], [f"h{i + 1}"]) for i in range(150)]
    chain.append(helper.make_node("MatMul", ["h150", "last"], ["y"]))
    scale = 1 / 1024**0.5
    weights = {
        "first": (rng.normal(size=(40, 1024)) * scale).astype("f4"),
        "square": (rng.normal(size=(1024, 1024)) * scale).astype("f4"),
        "last": (rng.normal(size=(1024, 2)) * scale).astype("f4"),
    }
    (folder / "small.onnx").write_bytes(small)
    (folder / "slow.onnx").write_bytes(model_bytes(chain, weights))
    return {"SMALL_MODEL": str(folder / "small.onnx"), "SLOW_MODEL": str(folder / "slow.onnx")}


@pytest.fixture
def run(model_files, tmp_path):
    """Run a script in a process of its own; its last line of output comes back. Anything on stderr is a failure."""

    def run_script(script, **environment):
        inherited = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
        done = subprocess.run(
            [sys.executable, "-c", PRELUDE + textwrap.dedent(script)],
            env=inherited | {"OPENBLAS_NUM_THREADS": "1", "HOME": str(tmp_path)} | model_files | environment,
            capture_output=True, text=True, timeout=WAIT_S, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, ""), (
            done.returncode,
            done.stderr[-3000:],
            done.stdout[-3000:],
        )
        return done.stdout.strip().splitlines()[-1]

    return run_script


@LINUX
def test_opening_and_running_starts_no_thread_and_writes_no_file(run, tmp_path):
    """No pool, no telemetry thread, nothing in the home directory, and the Python package is not imported."""
    out = run("""
        before = threads()
        session = opened()
        session.scores([X]); session.run({"x": X}, gil="release")
        print(threads() - before, "onnxruntime" in sys.modules, os.environ["ORT_DISABLE_TELEMETRY"], ort.in_flight())
    """)
    assert out == "0 False 1 0"
    assert list(tmp_path.iterdir()) == []


@LINUX
def test_importing_loads_no_library(run):
    """The library is loaded by the first model, not by an import; the variable is set before."""
    out = run("""
        loaded = lambda: "libonnxruntime" in open("/proc/self/maps").read()
        first = loaded(), os.environ.get("ORT_DISABLE_TELEMETRY")
        opened()
        print(first, loaded(), ort.start() == ort.start())
    """)
    assert out == "(False, None) True True"


def test_the_choice_of_the_user_about_telemetry_stands(run):
    """ORT_DISABLE_TELEMETRY is only set where nobody set it."""
    assert run("opened(); print(os.environ['ORT_DISABLE_TELEMETRY'])", ORT_DISABLE_TELEMETRY="true") == "true"


def test_an_earlier_import_of_onnxruntime_without_the_switch_is_told(monkeypatch):
    """It may have started its telemetry thread: one warning, and things go on."""
    monkeypatch.setitem(sys.modules, "onnxruntime", object())
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    with pytest.warns(RuntimeWarning, match="ORT_DISABLE_TELEMETRY=1"):
        ort.guard_environment()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def test_the_library_is_not_loaded_with_settings_from_model_files(run):
    """With ORT_LOAD_CONFIG_FROM_MODEL=1 the first model is refused before anything is loaded."""
    out = run(
        """
        try:
            opened()
        except Exception as exc:
            print(type(exc).__name__, "libonnxruntime" in open("/proc/self/maps").read())
        """,
        ORT_LOAD_CONFIG_FROM_MODEL="1",
    )
    assert out == "ConfigError False"


@POSIX
@pytest.mark.parametrize("gil", ["release", "hold"])
def test_a_fork_while_another_thread_runs_a_model_gives_a_working_child(gil, run):
    """Forty forks beside a thread that never leaves the model: each child answers with the same bits and exits."""
    out = run(f"""
        session, slow = opened(), opened(SLOW)
        want = session.scores([X]).tobytes()
        stop, going = threading.Event(), threading.Event()

        def work():
            while not stop.is_set():
                slow.scores([X], gil={gil!r}); session.scores([X], gil={gil!r})
                going.set()

        worker = threading.Thread(target=work); worker.start(); going.wait(20)
        codes = []
        for number in range(40):
            pid = os.fork()
            if pid == 0:
                good = session.scores([X]).tobytes() == want and opened().scores([X]).tobytes() == want
                good = good and ort.in_flight() == 0 and not ort.is_poisoned() and ort.drain() == 1
                if number % 2:
                    os._exit(0 if good else 3)
                threading.Thread(target=session.scores, args=([X],)).start()
                sys.exit(0 if good else 3)
            codes.append(wait(pid))
        stop.set(); worker.join()
        print(set(codes), session.scores([X]).tobytes() == want, ort.in_flight())
    """)
    assert out == "{0} True 0"


@POSIX
def test_a_child_forked_in_the_middle_of_a_run_refuses_instead_of_hanging(run):
    """When the wait before a fork runs out, the parent goes on and the child says why it cannot."""
    out = run("""
        ort.FORK_WAIT_S = 0.0
        session, slow = opened(), opened(SLOW)
        poisoned = 0
        for attempt in range(200):
            inside = threading.Thread(target=slow.scores, args=([np.repeat(X, 8, 0)],), kwargs={"gil": "release"})
            inside.start()
            while ort.in_flight() == 0 and inside.is_alive():
                pass
            pid = os.fork()
            if pid == 0:
                try:
                    session.scores([X])
                    os._exit(0)
                except SessionError as exc:
                    refused = 7 if "forked while another thread" in str(exc) and ort.is_poisoned() else 8
                try:
                    opened()
                except SessionError:
                    os._exit(refused)
                os._exit(9)
            code = wait(pid)
            inside.join()
            assert code in (0, 7), code
            poisoned += code == 7
            session.scores([X])
            if poisoned == 3:
                break
        print(poisoned, ort.is_poisoned(), ort.in_flight())
    """)
    assert out == "3 False 0"


@POSIX
def test_a_fork_by_a_c_library_is_noticed_too(run):
    """Without Python's hooks the child still works, or refuses when a thread was inside."""
    out = run("""
        import ctypes
        fork = ctypes.PyDLL(None).fork
        session, slow = opened(), opened(SLOW)
        codes = []
        for busy in (False, True, False):
            if busy:
                inside = threading.Thread(target=slow.scores, args=([np.repeat(X, 64, 0)],), kwargs={"gil": "release"})
                inside.start()
                while ort.in_flight() == 0 and inside.is_alive():
                    pass
            pid = fork()
            if pid == 0:
                try:
                    session.scores([X])
                    os._exit(0)
                except SessionError:
                    os._exit(7)
            codes.append(wait(pid))
            if busy:
                inside.join()
        print(codes)
    """)
    assert out == "[0, 7, 0]"


@POSIX
def test_a_thread_that_holds_the_gil_is_not_stopped_by_a_fork_in_preparation(run):
    """Another library's fork hook may let threads run between our hook and the fork: they must not wait for it."""
    out = run("""
        session, ran, started = None, threading.Event(), threading.Event()
        waited = []

        def other_hook():                    # registered first, so it runs after ours
            started.set()
            waited.append(ran.wait(20))

        os.register_at_fork(before=other_hook)
        session = opened()

        def work():
            started.wait(20)
            session.scores([X], gil="hold")
            ran.set()

        worker = threading.Thread(target=work); worker.start()
        pid = os.fork()
        if pid == 0:
            session.scores([X])
            os._exit(0)
        worker.join()
        print(wait(pid), waited)
    """)
    assert out == "0 [True]"


@POSIX
def test_grandchildren_and_pools_of_processes_work(run):
    """A session opened before serves in children of children; models opened there are freed there."""
    out = run("""
        session = opened()
        want = session.scores([X]).tobytes()
        def generation(depth):
            if depth == 0:
                return 0
            pid = os.fork()
            if pid == 0:
                good = session.scores([X]).tobytes() == want
                own = opened(); own.scores([X]); del own; gc.collect()
                good = good and ort.drain() == 1
                os._exit(generation(depth - 1) if good else 3)
            return wait(pid)
        print(generation(3))
    """)
    assert out == "0"


@pytest.mark.parametrize("gil", ["release", "hold"])
def test_exit_with_live_sessions_and_daemon_threads_is_clean(gil, run):
    """Exits at a dozen moments in the middle of runs: exit code 0, nothing on stderr, no hang."""
    for n_runs in range(1, 30, 5):
        out = run(f"""
            session, slow = opened(), opened(SLOW)
            going = threading.Event()
            def work():
                while True:
                    try:
                        slow.scores([X], gil={gil!r})
                    except SessionError:
                        return
                    going.set()
            for _ in range(3):
                threading.Thread(target=work, daemon=True).start()
            going.wait(20)
            for _ in range({n_runs}):
                session.scores([X], gil={gil!r})
            print("leaving", flush=True)
            sys.exit(0)
        """)
        assert out == "leaving"


def test_after_the_end_of_the_program_models_refuse(run):
    """A call from an exit handler that runs after ours gets an error instead of a crash."""
    out = run("""
        import atexit
        def late():
            global session
            try:
                session.scores([X]); print("ran")
            except SessionError as exc:
                first = "exiting" in str(exc)
                session = None
                print(first, ort.drain(), flush=True)
        atexit.register(late)
        session = opened()
    """)
    assert out == "True 0"


def test_many_threads_get_the_bits_of_one(run):
    """Eight threads on one session, with and without the GIL: every answer is the one of a single thread."""
    out = run("""
        session = opened()
        batches = [np.random.default_rng(i).normal(size=(1 + i * 37 % 600, 40)).astype("f4") for i in range(24)]
        want = [session.scores([batch]).tobytes() for batch in batches]
        wrong = []
        def work(number):
            for i in range(60):
                at = (number * 5 + i) % len(batches)
                got = session.scores([batches[at]], gil="release" if i % 2 else "hold").tobytes()
                if got != want[at]:
                    wrong.append((number, i))
        workers = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        [worker.start() for worker in workers]; [worker.join() for worker in workers]
        print(wrong, ort.in_flight())
    """)
    assert out == "[] 0"


@LINUX
def test_twenty_thousand_runs_leave_no_memory_behind(run):
    """Good runs, failing runs, lanes, strings and refused models: the resident size stays where it was."""
    out = run("""
        from onnx import helper, numpy_helper
        def build(nodes, inputs, outputs, **weights):
            graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info(*i) for i in inputs],
                                      [helper.make_tensor_value_info(*o) for o in outputs],
                                      [numpy_helper.from_array(w, n) for n, w in weights.items()])
            opset = [helper.make_opsetid("", 17)]
            return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
        session = opened()
        lane = session.lane([X])
        gather = open_session(build([helper.make_node("Gather", ["t", "i"], ["y"])], [("i", 7, [None])],
                                    [("y", 1, [None, 2])], t=np.zeros((3, 2), np.float32)))
        gather.select_score(0, 1)
        echo = [helper.make_node("Identity", ["s"], ["y"])]
        strings = open_session(build(echo, [("s", 8, [None])], [("y", 8, [None])]))
        text = np.array(["x" * 100, "é\\0" * 50] * 4, object)
        refused = build([helper.make_node("Frobnicate", ["x"], ["y"])], [("x", 1, [None])], [("y", 1, [None])])
        nan, far, near = X * np.nan, np.array([9]), np.array([1])

        def fails(call, *arguments):
            try:
                call(*arguments)
            except Exception as exc:
                return exc
            raise AssertionError("no error")

        def cycle(n):
            for _ in range(n):
                session.scores([X]); lane.scores(); session.run({"x": X}); gather.scores([near])
                fails(session.scores, [nan]); fails(gather.scores, [far]); fails(gather.run, {"i": far})
                strings.run({"s": text})
        def reopen(n):
            for _ in range(n):
                again = opened(); again.scores([X]); del again
                fails(open_session, refused)

        cycle(2_000); reopen(100); gc.collect()
        sizes = [rss_kb()]
        for _ in range(5):
            cycle(1_000); reopen(60); gc.collect()
            sizes.append(rss_kb())
        print(sizes[-1] - sizes[0] if sizes[-1] - sizes[0] > 600 else "flat", ort.in_flight())
    """)
    assert out == "flat 0"


def test_models_that_are_gone_are_freed_by_the_next_opening_or_by_drain(run):
    """Dropping a reference frees nothing on the spot; opening another model, or `drain`, does."""
    out = run("""
        kept = [opened() for _ in range(5)]
        before = ort.drain()
        del kept[:3]
        first = ort.drain()
        del kept[0]
        opened_again = opened()
        print(before, first, ort.drain())
    """)
    assert out == "0 3 0"


def test_the_log_is_kept_in_memory_and_bounded(run):
    """What ONNX Runtime would print is at hand for a report, at most sixteen lines, without build paths."""
    out = run("""
        from onnx import helper, numpy_helper
        graph = helper.make_graph([helper.make_node("Gather", ["t", "i"], ["y"], name="look_up")], "g",
            [helper.make_tensor_value_info("i", 7, [None])], [helper.make_tensor_value_info("y", 1, [None])],
            [numpy_helper.from_array(np.zeros(3, np.float32), "t")])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
        session = open_session(model)
        assert ort.recent_log() == []
        for number in range(40):
            try:
                session.run({"i": np.array([100 + number])})
            except SessionError:
                pass
        log = ort.recent_log()
        print(len(log), "look_up" in log[-1], "139" in log[-1], any("onnxruntime_src" in line for line in log))
    """)
    assert out == "16 True True False"


def test_each_call_of_the_library_may_fail_and_leaves_nothing_behind(run):
    """Every call while opening and running fails once, in turn: a typed error, flat memory, and the next try works.

    Failures can be asked for in the debug build only; the other one must not contain them.
    """
    out = run("""
        session, batch = opened(), np.repeat(X, 3, 0)
        lane = session.lane([X])
        if not ort._fail_call(10**6):
            print("release build")
            raise SystemExit
        ort._fail_call(-1)
        from onnx import helper, numpy_helper
        graph = helper.make_graph([helper.make_node("Identity", ["s"], ["y"]), helper.make_node("Shape", ["s"], ["n"])],
            "g", [helper.make_tensor_value_info("s", 8, [None])],
            [helper.make_tensor_value_info("y", 8, [None]), helper.make_tensor_value_info("n", 7, None)])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        helper.set_model_props(model, {"a": "b", "c": "d"})
        strings = model.SerializeToString()
        text = {"s": np.array(["x" * 5000, "y"], object)}
        echo = open_session(strings)
        echo.select_score(1)
        unknown = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g",
            [helper.make_tensor_value_info("x", 1, [None, None])],
            [helper.make_tensor_value_info("y", 1, [None, None])])
        opset = [helper.make_opsetid("", 17)]
        wide = open_session(helper.make_model(unknown, opset_imports=opset, ir_version=8).SerializeToString())
        wide.select_score(0, 7)
        calls = {
            "unknown width": (lambda: wide.scores([batch]), 5_000),
            "scores": (lambda: session.scores([batch]), 5_000),
            "lane": (lambda: lane.scores(), 5_000),
            "new lane": (lambda: session.lane([batch]).scores(), 5_000),
            "run": (lambda: session.run({"x": X}), 5_000),
            "strings": (lambda: echo.run(text), 2_000),
            "string scores": (lambda: echo.scores([text["s"][:1]]), 2_000),
            "open": (lambda: open_session(strings), 15),
        }
        def sweep():
            reached = {}
            for name, (call, repeats) in calls.items():
                for number in range(200):
                    for _ in range(repeats):
                        ort._fail_call(number)
                        try:
                            call()
                        except (SessionError, ModelError):
                            pass
                        happened = ort._fail_call(-1)
                        if not happened:
                            break
                    call()
                    if not happened:
                        break
                reached[name] = number
            return reached
        reached = sweep(); gc.collect()
        before = rss_kb()
        assert sweep() == reached
        gc.collect()
        grown = rss_kb() - before
        assert grown < 300, (grown, reached)
        assert ort.in_flight() == 0
        assert all(number >= 3 - (name == "lane") * 2 for name, number in reached.items()), reached
        assert reached["open"] > 25, reached
        print("every call", reached, grown)
    """)
    assert out == "release build" or out.startswith("every call")
