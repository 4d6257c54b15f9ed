"""life.py: children begin anew, ends come once, however the process was made and however it leaves.

Each test runs a script in processes of its own: what is tested is what happens around forks and exits.
"""

from __future__ import annotations

import gc
import os

import pytest
from processes import run_script

from retailinfer import life

POSIX = pytest.mark.skipif(not hasattr(os, "fork"), reason="platform: no fork here")

PRELUDE = """
import gc, os, signal, sys, threading
from retailinfer import life

class One:
    '''Writes a line to a file for everything that it is told.'''
    def __init__(self, name, path):
        self.name, self.path, self.ended = name, path, False
        life.begin_again_in_children(self)
        life.end_with_process(self)
    def say(self, text):
        with open(self.path, "a") as file:
            file.write(f"{self.name} {text}\\n")
    def begin_in_child(self):
        self.ended = False
        self.say("begins")
    def end_with_process(self):
        if not self.ended:
            self.ended = True
            self.say("ends")

def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


@pytest.fixture
def told(tmp_path):
    """Run a script that gets the path of a file; what was written there, in order."""

    def call(script: str, **more) -> list[str]:
        path = tmp_path / "told"
        import textwrap

        run_script(f"{PRELUDE}\nPATH = {str(path)!r}\n{textwrap.dedent(script)}", **more)
        return path.read_text().split("\n")[:-1] if path.exists() else []

    return call


@pytest.mark.parametrize(
    "leave", ["", "sys.exit(0)", "raise SystemExit", "life.end_all(); os._exit(0)", "life.end_all()"]
)
def test_the_end_comes_once_and_in_reverse_order(told, leave):
    """At the last line, by sys.exit, or asked for before an exit that Python does not see."""
    assert told(f"a, b = One('a', PATH), One('b', PATH)\n{leave}") == ["b ends", "a ends"]


def test_what_was_dropped_is_forgotten(told):
    """Registering keeps nothing alive."""
    script = """
        a, b = One("a", PATH), One("b", PATH)
        del a
        gc.collect()
    """
    assert told(script) == ["b ends"]


@POSIX
@pytest.mark.parametrize("leave", ["sys.exit(0)", "life.end_all(); os._exit(0)"])
def test_a_forked_child_begins_and_ends_for_itself(told, leave):
    """The child begins before any of its code runs; the parent's end is its own."""
    script = f"""
        a, b = One("a", PATH), One("b", PATH)
        pid = os.fork()
        if pid == 0:
            a.say("in child")
            {leave}
        assert wait(pid) == 0
        a.say("in parent")
    """
    assert told(script) == [
        "a begins", "b begins", "a in child", "b ends", "a ends", "a in parent", "b ends", "a ends",
    ]  # fmt: skip


@POSIX
@pytest.mark.parametrize("how", ["fork", "forkserver", "spawn"])
@pytest.mark.parametrize("made", ["before", "inside"])
def test_workers_of_multiprocessing_end_what_they_have(tmp_path, how, made):
    """They leave by os._exit, past atexit. What they made themselves ends too, and so does what they inherited."""
    script = tmp_path / "workers.py"
    script.write_text(
        PRELUDE
        + f"""
import multiprocessing

def work(path):
    global kept
    if {made!r} == "inside":
        kept = One("own", path)
    else:
        assert (globals().get("a") is not None) == ({how!r} == "fork")

if __name__ == "__main__":
    PATH = {str(tmp_path / "told")!r}
    if {made!r} == "before":
        a = One("a", PATH)
    context = multiprocessing.get_context({how!r})
    for _ in range(2):
        worker = context.Process(target=work, args=(PATH,))
        worker.start()
        worker.join()
        assert worker.exitcode == 0, worker.exitcode
"""
    )
    run_script(f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')")
    told = (tmp_path / "told").read_text().split("\n")[:-1]
    if made == "inside":
        assert told == ["own ends"] * 2
    else:
        assert told == (["a begins", "a ends"] * 2 if how == "fork" else []) + ["a ends"]


@POSIX
def test_a_pool_of_processes_ends_what_each_worker_made(tmp_path):
    """concurrent.futures too."""
    script = f"""
        from concurrent.futures import ProcessPoolExecutor
        import multiprocessing
        PATH = {str(tmp_path / "told")!r}
        def work(_):
            if "own" not in globals():
                globals()["own"] = One("own", PATH)
            return os.getpid()
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
            pids = set(pool.map(work, range(50)))
        print(len(pids))
    """
    import textwrap

    n = int(run_script(PRELUDE + textwrap.dedent(script)))
    assert (tmp_path / "told").read_text().split("\n")[:-1] == ["own ends"] * n


@POSIX
def test_a_fork_of_a_worker_ends_too(told):
    """A worker of multiprocessing that forks by itself: the grandchild leaves through the worker's own code."""
    script = """
        import multiprocessing
        def work():
            pid = os.fork()
            if pid == 0:
                a.say("in grandchild")
                sys.exit(0)
            assert wait(pid) == 0
            a.say("in child")
        a = One("a", PATH)
        worker = multiprocessing.get_context("fork").Process(target=work)
        worker.start()
        worker.join()
        assert worker.exitcode == 0
    """
    assert told(script) == [
        "a begins", "a begins", "a in grandchild", "a ends", "a in child", "a ends", "a ends",
    ]  # fmt: skip


@POSIX
def test_one_that_raises_stops_nobody_else(told):
    """It is reported, and the others have their turn, in children and at the end."""
    script = """
        class Broken(One):
            def begin_in_child(self):
                raise ValueError("cannot begin")
            def end_with_process(self):
                raise ValueError("cannot end")
        seen = []
        sys.unraisablehook = lambda one: seen.append((one.err_msg, str(one.exc_value)))
        a, b, c = One("a", PATH), Broken("b", PATH), One("c", PATH)
        pid = os.fork()
        if pid == 0:
            assert seen == [("Exception ignored in Broken.begin_in_child", "cannot begin")], seen
            seen.clear()
            life.end_all()
            assert seen == [("Exception ignored in Broken.end_with_process", "cannot end")], seen
            os._exit(0)
        assert wait(pid) == 0
        sys.unraisablehook = lambda one: None
    """
    assert told(script) == ["a begins", "c begins", "c ends", "a ends", "c ends", "a ends"]


@POSIX
def test_what_pauses_for_forks_is_asked_around_each_one(told):
    """Before it, and after it in the parent alone; in a child it begins anew instead."""
    script = """
        class Pausing(One):
            def __init__(self, *args):
                super().__init__(*args)
                life.pause_for_forks(self)
            def before_fork(self):
                self.say("pauses")
            def after_fork(self):
                self.say("goes on")
        a, b = Pausing("a", PATH), Pausing("b", PATH)
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        wait(pid)
        del a
        gc.collect()
        told = open(PATH).read().split("\\n")[:-1]
        assert told[:2] == ["b pauses", "a pauses"], told
        assert sorted(told[2:]) == ["a begins", "a goes on", "b begins", "b goes on"], told
        os.unlink(PATH)
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        wait(pid)
    """
    assert sorted(told(script)) == ["b begins", "b ends", "b goes on", "b pauses"]


@POSIX
def test_sigterm_under_a_handler_that_exits_is_an_end(told):
    """As gunicorn's workers do it. Without a handler the kernel ends the process, and nobody is asked."""
    script = """
        a = One("a", PATH)
        for handler in (lambda *_: sys.exit(0), signal.SIG_DFL):
            r, w = os.pipe()
            pid = os.fork()
            if pid == 0:
                signal.signal(signal.SIGTERM, handler)
                os.write(w, b"x")
                signal.pause()
            os.read(r, 1)
            os.kill(pid, signal.SIGTERM)
            a.say(str(wait(pid)))
    """
    assert told(script) == ["a begins", "a ends", "a 0", "a begins", "a -15", "a ends"]


def test_lists_hold_no_dead_references():
    """Whoever makes and drops such things for hours does not make the next fork slower."""

    class Both:
        def begin_in_child(self) -> None: ...
        def end_with_process(self) -> None: ...
        def before_fork(self) -> None: ...
        def after_fork(self) -> None: ...

    def sizes() -> tuple[int, ...]:
        return len(life._life.begins), len(life._life.pauses), len(life._life.ends)

    gc.collect()
    before = sizes()
    kept = [Both() for _ in range(50)]
    for one in kept:
        life.begin_again_in_children(one)
        life.pause_for_forks(one)
        life.end_with_process(one)
    assert sizes() == tuple(n + 50 for n in before)
    del kept, one
    gc.collect()
    assert sizes() == before


def test_what_began_in_a_child_begins_again_once_gevent_has_patched_it(told):
    """gunicorn's worker for gevent patches after the fork: locks made before would block all greenlets."""
    pytest.importorskip("gevent")
    script = """
        import gevent.monkey
        a = One("a", PATH)
        pid = os.fork()
        if pid == 0:
            gevent.monkey.patch_all()
            os._exit(0)
        a.say(str(wait(pid)))
        gevent.monkey.patch_all()
        a.say("the parent goes on")
    """
    assert told(script) == ["a begins", "a begins", "a 0", "a the parent goes on", "a ends"]
