"""Sources that do what real ones do on bad days, and a plain table to read through; no test here sleeps.

`Held` keeps every call until it is let go, so that a test decides what is under way; `Table` is what a table must be for its
ReadThrough, as a dict.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

WAIT_S = 30.0  # for what must happen; a test that waits this long fails


class Table:
    """The part of a table that a ReadThrough needs, with what was written in the order in which it was."""

    def __init__(self, columns: Sequence[str] = ("x",)) -> None:
        self.columns = columns
        self.rows: dict[Any, Mapping[str, Any]] = {}
        self.times: dict[Any, float | None] = {}
        self.unknown: set[Any] = set()
        self.through: Any = None

    def put(self, key: Any, row: Mapping[str, Any], *, updated_at: float | None = None) -> None:
        x = row["x"]
        if x is not None and not isinstance(x, (int, float)):
            raise TypeError(f"expected a number, got {type(x).__name__}")
        with self.through.lock:
            self.through.fence((key,))
            self.rows[key] = row
            self.times[key] = updated_at
            self.unknown.discard(key)

    def mark_unknown(self, keys: Sequence[Any]) -> None:
        with self.through.lock:
            self.through.fence(keys)
            for key in keys:
                self.rows.pop(key, None)
                self.unknown.add(key)

    def erase(self, key: Any) -> None:
        with self.through.lock:
            self.through.fence((key,))
            self.rows.pop(key, None)
            self.unknown.discard(key)

    def knows(self, key: Any) -> bool:
        return key in self.rows or key in self.unknown


class Counting:
    """Answers from a mapping at once, and remembers which keys each call asked for."""

    def __init__(self, rows: Mapping[Any, Any] | None = None) -> None:
        self.rows = rows
        self.calls: list[list[Any]] = []

    def fetch(self, keys: Sequence[Any], *, timeout_s: float) -> Mapping[Any, Any]:
        assert timeout_s > 0
        self.calls.append(list(keys))
        return {key: {"x": 1.0} if self.rows is None else self.rows.get(key) for key in keys}


class Says:
    """Answers whatever a function makes of the keys."""

    def __init__(self, answer: Callable[[Sequence[Any]], Any]) -> None:
        self.answer = answer

    def fetch(self, keys: Sequence[Any], *, timeout_s: float) -> Any:
        return self.answer(keys)


class Held:
    """Every call waits until the test lets it go, and says so when it has begun."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.calls: list[HeldCall] = []
        self.open = False

    def fetch(self, keys: Sequence[Any], *, timeout_s: float) -> Any:
        call = HeldCall(list(keys))
        self.calls.append(call)
        if self.open:
            call.go.set()
        self.begun.release()
        assert call.go.wait(WAIT_S)
        if isinstance(call.answer, BaseException):
            raise call.answer
        return call.answer

    def wait(self, n_calls: int = 1) -> None:
        """Until this many more calls have begun."""
        for _ in range(n_calls):
            assert self.begun.acquire(timeout=WAIT_S), f"{len(self.calls)} calls have begun"

    def let_go(self) -> None:
        """Every call, now and later, returns at once."""
        self.open = True
        for call in self.calls:
            call.go.set()


class HeldCall:
    """One call that waits."""

    def __init__(self, keys: list[Any]) -> None:
        self.keys = keys
        self.go = threading.Event()
        self.answer: Any = {key: {"x": 1.0} for key in keys}

    def returns(self, answer: Any) -> None:
        """Let it go with this answer, or raise it."""
        self.answer = answer
        self.go.set()
