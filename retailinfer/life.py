"""Forks and the end of the process: what must begin anew in a child, and what must finish before the process is gone.

Rules:
  * Whatever owns threads, locks, connections, random state or counters registers here when it is made, never at import.
  * Registering keeps nothing alive: what is dropped is forgotten.
  * A child begins before any other code of it runs. A raw fork, which tells nobody, is noticed by who compares process ids.
  * The end comes once, whether the process ends by itself, as a worker of multiprocessing, or is asked to by `end_all`.
"""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from typing import Any, Protocol

__all__ = ["BeginsAgain", "Ends", "begin_again_in_children", "end_all", "end_with_process"]


class BeginsAgain(Protocol):
    """Something that a forked child must not share with its parent."""

    def begin_in_child(self) -> None:
        """Forget threads, connections and counts of the parent; take new locks. No other thread runs meanwhile."""
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
        self.ends: list[weakref.ref[Ends]] = []
        self.hooked = False
        self.told_multiprocessing = False

    def hook(self) -> None:
        if self.hooked:
            return
        self.hooked = True
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self.before_fork, after_in_child=self.in_child)
        atexit.register(end_all)

    def before_fork(self) -> None:
        """Workers of multiprocessing leave by os._exit, past atexit: they get a finalizer of their own instead."""
        util: Any = sys.modules.get("multiprocessing.util")
        if util is not None and not self.told_multiprocessing:
            self.told_multiprocessing = True
            util.register_after_fork(self, _finish_in_worker)

    def in_child(self) -> None:
        for ref in list(self.begins):
            one = ref()
            if one is not None:
                one.begin_in_child()


_life = _Life()


def _finish_in_worker(_: object) -> None:
    util: Any = sys.modules["multiprocessing.util"]
    util.Finalize(None, end_all, exitpriority=0)


def begin_again_in_children(one: BeginsAgain) -> None:
    """From now on every forked child calls `one.begin_in_child()`, as long as `one` lives; in the order of registration."""
    _life.hook()
    _life.begins.append(weakref.ref(one, _life.begins.remove))


def end_with_process(one: Ends) -> None:
    """`one.end_with_process()` is called when the process ends, as long as `one` lives; last registered first."""
    _life.hook()
    _life.ends.append(weakref.ref(one, _life.ends.remove))


def end_all() -> None:
    """Finish everything that is registered: for hosts that leave without Python's own end, such as `os._exit`."""
    for ref in reversed(list(_life.ends)):
        one = ref()
        if one is not None:
            one.end_with_process()
