"""Forks and the end of the process: what must begin anew in a child, and what must finish before the process is gone.

Rules:
  * Whatever owns threads, locks, connections, random state or counters registers here when it is made, never at import.
  * Registering keeps nothing alive: what is dropped is forgotten.
  * A child begins before any other code of it runs. A raw fork, which tells nobody, is noticed by who compares process ids.
  * The end comes once, whether the process ends by itself, as a worker of multiprocessing, or is asked to by `end_all`.
  * gevent's workers patch threads, locks and sockets after the fork: who began before that begins again.
  * What one of them raises is reported as an exception that nobody can catch; the others have their turn nevertheless.
"""

from __future__ import annotations

import atexit
import importlib
import os
import sys
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol

__all__ = [
    "BeginsAgain",
    "Ends",
    "Pauses",
    "begin_again_in_children",
    "end_all",
    "end_with_process",
    "pause_for_forks",
]


class BeginsAgain(Protocol):
    """Something that a forked child must not share with its parent."""

    def begin_in_child(self) -> None:
        """Forget threads, connections and counts of the parent; take new locks. No other thread runs meanwhile."""
        ...


class Pauses(Protocol):
    """Something in whose middle no fork may happen: work of its thread in libraries whose locks a child would inherit."""

    def before_fork(self) -> None:
        """Come to a place where a fork does no harm, within a bound of its own, and stay there."""
        ...

    def after_fork(self) -> None:
        """Go on. Called in the parent alone; the child begins anew."""
        ...


class Ends(Protocol):
    """Something with work that must be done before the process is gone."""

    def end_with_process(self) -> None:
        """Finish within a bound of its own; later calls do nothing."""
        ...


class _Life:
    """What is registered, in order, in this process and its children."""

    def __init__(self) -> None:
        self.begins: list[weakref.ref[BeginsAgain]] = []
        self.pauses: list[weakref.ref[Pauses]] = []
        self.ends: list[weakref.ref[Ends]] = []
        self.hooked = False
        self.told_multiprocessing = False
        self.watches_gevent = False
        self.finishes_in = 0  # process id of the worker of multiprocessing that will call `end_all`

    def hook(self) -> None:
        if self.hooked:
            return
        self.hooked = True
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self.before_fork,
                after_in_parent=self.in_parent,
                after_in_child=self.in_child,
            )
        atexit.register(end_all)

    def before_fork(self) -> None:
        """Workers of multiprocessing leave by os._exit, past atexit: they get a finalizer of their own instead."""
        util: Any = sys.modules.get("multiprocessing.util")
        if util is not None and not self.told_multiprocessing:
            self.told_multiprocessing = True
            util.register_after_fork(self, _finish_in_worker)
        if "gevent" in sys.modules:
            importlib.import_module("gevent.events")  # for `watch_gevent`: the child should not import
        for pauses in reversed(self.pauses):
            _let(pauses(), "before_fork")

    def in_parent(self) -> None:
        for pauses in list(self.pauses):
            _let(pauses(), "after_fork")

    def in_child(self) -> None:
        self.begin()
        self.watch_gevent()
        self.finish_in_worker()  # one that a worker forked by itself leaves as the worker does

    def begin(self) -> None:
        for begins in list(self.begins):
            _let(begins(), "begin_in_child")

    def watch_gevent(self) -> None:
        """Locks and queues that were made a moment ago would block all greenlets once gevent has replaced the real ones."""
        events: Any = sys.modules.get("gevent.events")
        if events is None or self.watches_gevent:
            return
        self.watches_gevent = True
        forked_pid = os.getpid()

        def patched(event: object) -> None:
            if isinstance(event, events.GeventDidPatchAllEvent) and os.getpid() == forked_pid:
                self.begin()

        events.subscribers.append(patched)

    def finish_in_worker(self) -> None:
        """In a worker of multiprocessing that came here by itself, as those of spawn and forkserver do: no fork told it."""
        process: Any = sys.modules.get("multiprocessing.process")
        if process is not None and self.finishes_in != os.getpid() and process.parent_process() is not None:
            _finish_in_worker(self)


_life = _Life()


def _finish_in_worker(life: _Life) -> None:
    util: Any = sys.modules.get("multiprocessing.util")
    if util is not None:
        life.finishes_in = os.getpid()
        util.Finalize(None, end_all, exitpriority=0)


def _let(one: object, method: str) -> None:
    """One's turn, if it still lives."""
    if one is None:
        return
    call: Callable[[], None] = getattr(one, method)
    try:
        call()
    except Exception as exc:  # noqa: BLE001 - there is no caller that could do anything about it
        sys.unraisablehook(_Unraisable(exc, one, method))


class _Unraisable:
    """What `sys.unraisablehook` takes."""

    def __init__(self, exc: Exception, one: object, method: str) -> None:
        self.exc_type: type[BaseException] = type(exc)
        self.exc_value: BaseException | None = exc
        self.exc_traceback: TracebackType | None = exc.__traceback__
        self.err_msg: str | None = f"Exception ignored in {type(one).__name__}.{method}"
        self.object: object = None


def begin_again_in_children(one: BeginsAgain) -> None:
    """From now on every forked child calls `one.begin_in_child()`, as long as `one` lives; in the order of registration."""
    _life.hook()
    _life.begins.append(weakref.ref(one, _life.begins.remove))


def pause_for_forks(one: Pauses) -> None:
    """`one.before_fork()` and `one.after_fork()` are called around every fork, as long as `one` lives."""
    _life.hook()
    _life.pauses.append(weakref.ref(one, _life.pauses.remove))


def end_with_process(one: Ends) -> None:
    """`one.end_with_process()` is called when the process ends, as long as `one` lives; last registered first."""
    _life.hook()
    _life.finish_in_worker()
    _life.ends.append(weakref.ref(one, _life.ends.remove))


def end_all() -> None:
    """Finish everything that is registered: for hosts that leave without Python's own end, such as `os._exit`."""
    for ends in reversed(list(_life.ends)):
        _let(ends(), "end_with_process")
