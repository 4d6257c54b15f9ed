"""`ri.preload`: make a prefork master ready, so that its workers share what was loaded and begin with nothing left to make.

Rules:
  * Called in the master, once, after everything is loaded and before the first fork. It starts no thread and opens nothing.
  * What is alive then is frozen out of garbage collection: a collection writes into every object that it looks at, and so
    gives each worker a copy of its own. What the heap holds unused goes back to the system first.
  * A session with a thread pool does not survive a fork: its threads are not in the child, and who ends the session there
    waits for them for ever. Ours have none. Those of others are warned of and kept alive in the children, or refused.
What every fork does, with and without this: life.py.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
import warnings
from typing import Any

from retailinfer._native import ort
from retailinfer.errors import ConfigError
from retailinfer.life import begin_again_in_children
from retailinfer.serving.door import Door

__all__ = ["preload"]

# What the first call of a worker would import otherwise; or its first load, where only workers load.
_LATER = (
    "asyncio",
    "concurrent.futures.thread",
    "hashlib",
    "retailinfer.serving.drain",
    "retailinfer.serving.live",
    "retailinfer.serving.loading",
    "retailinfer.serving.turns",
)


class _Foreign:
    """Sessions of the Python package onnxruntime that own threads, made by others in this process."""

    def __init__(self) -> None:
        self.known: list[Any] = []
        self.follows = False

    def follow(self) -> None:
        """From now on every child looks."""
        if not self.follows:
            self.follows = True
            begin_again_in_children(self)

    def look(self) -> list[Any]:
        """All that are there now; of what is frozen already, those seen before."""
        module: Any = sys.modules.get("onnxruntime")
        kind = getattr(module, "InferenceSession", None)
        if isinstance(kind, type):
            known = {id(one) for one in self.known}
            self.known += [
                one
                for one in gc.get_objects()
                if isinstance(one, kind) and id(one) not in known and _has_threads(one, module)
            ]
        return self.known

    def begin_in_child(self) -> None:
        """One reference too many: nobody in this process ends them, not even its exit."""
        for session in self.look():
            ort.keep_for_ever(session)


def _has_threads(session: Any, module: Any) -> bool:
    """As far as its options say: 0 threads are as many as there are cores."""
    options = session.get_session_options()
    parallel = options.execution_mode == module.ExecutionMode.ORT_PARALLEL
    return bool(options.intra_op_num_threads != 1 or (parallel and options.inter_op_num_threads != 1))


_foreign = _Foreign()


def preload(*doors: Door, strict: bool = False) -> None:
    """Make this process ready to be forked: `gunicorn --preload`, uWSGI, Celery's prefork pool, `multiprocessing`.

    Call it at the end of the module that loads scorers and rankers, or in gunicorn's `when_ready`. Workers then answer at
    once, with the same bits, and the pages of models and tables stay shared between them.

    Args:
        doors: the scorers and rankers that the workers will use.
        strict: refuse to go on where others have made sessions with threads, instead of warning.
    Raises: ConfigError for what is no open scorer or ranker, and with `strict` for sessions with threads.
    """
    for door in doors:
        if not isinstance(door, Door):
            raise ConfigError(f"Expected scorers and rankers, got `{type(door).__name__}`")
        door.manifest  # noqa: B018 - there as long as the door is
        if door.closed:
            raise ConfigError(f"{door!r} is closed", hint="load the release again")
    foreign = _foreign.look()
    if foreign:
        message = (
            f"onnxruntime.InferenceSession objects with threads of their own: {len(foreign)}; a child of fork has none of "
            "the threads, and would wait for them when it ends the session"
        )
        hint = "make them in the workers, or with intra_op_num_threads = inter_op_num_threads = 1"
        if strict:
            raise ConfigError(message, hint=hint)
        warnings.warn(f"{message}; the children will not end them ({hint})", RuntimeWarning, stacklevel=2)
    if "onnxruntime" in sys.modules and os.environ.get("ORT_DISABLE_TELEMETRY") is None:
        warnings.warn(
            "onnxruntime was imported without ORT_DISABLE_TELEMETRY=1: it may have started a thread that uploads telemetry, "
            "which no child of fork has; set the variable before the import",
            RuntimeWarning,
            stacklevel=2,
        )
    _foreign.follow()
    for name in _LATER:
        importlib.import_module(name)
    ort.drain()
    gc.collect()
    ort.trim_heap()
    gc.freeze()
