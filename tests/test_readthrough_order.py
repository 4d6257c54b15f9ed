"""ReadThrough in every order of events: questions, answers, writes, erasures, time, failures; on one thread, without waiting.

The threads of ReadThrough are stepped by hand: `_take` is a thread that takes a call, `_run` the moment in which its answer is
back. What the source says is fixed when the call is taken, as a database fixes it when the statement runs.
"""

from __future__ import annotations

import random
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from retailinfer.clock import ManualClock
from retailinfer.store.backoff import Backoff
from retailinfer.store.feature_table import FeatureTable

KEYS = st.sampled_from("abcd")
MS = 1_000_000


class Database:
    """Version numbers by key; every fetch gives what was there when its call was taken."""

    def __init__(self) -> None:
        self.version = 0
        self.rows: dict[str, int] = {}
        self.answer: Any = None

    def fetch(self, keys: list[str], *, timeout_s: float) -> Any:
        assert len(set(keys)) == len(keys)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Orders(RuleBasedStateMachine):
    """The table never goes back in time, no key is asked for twice at once, no wait and no count is left behind."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.source = Database()
        self.table = FeatureTable(
            {"x": "f64"}, source=self.source, timeout_ms=100, max_rows=64, max_unknown=64, clock=self.clock
        )
        self.through = self.table.through
        self.through._max_threads, self.through._max_batch, self.through._max_pending = 3, 3, 6
        self.through._backoff = Backoff(chance=random.Random(1))
        self.through._wake = lambda n: None  # type: ignore[method-assign]  # this test is the threads
        self.running: list[tuple[Any, Any]] = []  # calls, and what the source says
        self.floor: dict[str, int] = {}  # the newest version that was written by hand
        self.seen: dict[str, int] = {}
        self.flights: list[Any] = []

    def rows(self) -> dict[str, float]:
        """What the table holds."""
        keys = self.table.keys()
        return {key: self.table.core.lookup(key, 0)[1]["x"] for key in keys}

    @rule(key=KEYS)
    def source_changes(self, key: str) -> None:
        self.source.version += 1
        self.source.rows[key] = self.source.version

    @rule(key=KEYS)
    def source_forgets(self, key: str) -> None:
        self.source.rows.pop(key, None)

    @rule(keys=st.lists(KEYS, max_size=6), urgent=st.booleans())
    def ask(self, keys: list[str], urgent: bool) -> None:
        self.flights += self.through._ask(keys, urgent=urgent)

    @precondition(lambda self: len([call for call, _ in self.running if not call.lost]) < 3)
    @rule(fails=st.sampled_from([False, False, False, True]))
    def thread_takes_a_call(self, fails: bool) -> None:
        call = self.through._take()
        if call is not None:
            keys = {key for flight in call.flights for key in flight.keys}
            assert 0 < len(keys) <= 3
            for other, _ in self.running:
                if not other.lost:
                    same = {key for flight in other.flights for key in flight.keys} & keys
                    assert same <= set(self.floor), (
                        same
                    )  # only a write in between lets a key be asked for again
            rows = {key: self.source.rows.get(key) for key in keys}
            answer = {key: None if x is None else {"x": x} for key, x in rows.items()}
            self.running.append((call, ConnectionError() if fails else answer))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def answer_comes(self, data: st.DataObject) -> None:
        call, self.source.answer = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        before = self.rows()
        self.through._run(call)
        if call.replaced:
            self.through._stuck -= 1
        for flight in call.flights:
            assert flight.done.is_set()
        asked = {key for flight in call.flights for key in flight.keys}
        for key, x in self.rows().items():
            if before.get(key) != x:
                assert key in asked
                assert x >= self.floor.get(key, 0)

    @rule(key=KEYS)
    def write(self, key: str) -> None:
        """Somebody writes a row that is newer than anything the source has said so far."""
        self.source.version += 1
        self.source.rows[key] = self.source.version
        self.table.put(key, {"x": self.source.version})
        self.floor[key] = self.source.version

    @rule(key=KEYS)
    def erase(self, key: str) -> None:
        """Nothing that was true before may come back."""
        self.source.version += 1
        self.source.rows.pop(key, None)
        self.table.erase(key)
        self.floor[key] = self.source.version
        self.seen.pop(key, None)

    @rule(key=KEYS)
    def evict(self, key: str) -> None:
        """As the table does where there is no room, which overtakes no answer."""
        self.table.core.erase(key)

    @rule(step=st.sampled_from([1, 50, 240, 260, 2_000]))
    def time_passes(self, step: int) -> None:
        self.clock.advance_ns(step * MS)

    @invariant()
    def counts_are_right(self) -> None:
        through = self.through
        waiting = [flight for flight in self.flights if not flight.taken]
        assert sum(through._pending.values()) == sum(len(flight.keys) for flight in {*waiting})
        assert max(through._pending.values()) <= 6
        assert len(through._running) == len(self.running)
        assert 0 <= through._stuck <= 3
        for key, flight in through._flights.items():
            assert key in flight.keys
            assert not flight.done.is_set() or flight.lost

    @invariant()
    def rows_never_go_back(self) -> None:
        for key, x in self.rows().items():
            assert x >= self.seen.get(key, 0)
            self.seen[key] = x

    def teardown(self) -> None:
        """Everything ends: no flight is left when all calls have come back and the queues are empty."""
        while self.running or (call := self.through._take()) is not None:
            if not self.running:
                self.running.append((call, {}))
            call, self.source.answer = self.running.pop()
            self.through._run(call)
        assert self.through._flights == {}
        assert sum(self.through._pending.values()) == 0
        assert all(flight.done.is_set() for flight in self.flights)


TestOrders = Orders.TestCase
TestOrders.settings = settings(stateful_step_count=60)
