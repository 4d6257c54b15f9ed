"""State of windows: saved, restored, damaged, erased, forked, filled with history, found again by the next release.

Rules:
  * A dump is bytes in memory here; files around it are the store's (archive.py).
  * Whatever is refused has changed nothing: the state is dumped again and compared byte by byte.
"""

from __future__ import annotations

import datetime as dt
import io
import os
import random
import threading
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from windows_both import PRESENT, SECOND, STALE, native_plan

import retailinfer as ri
from retailinfer import columns as c
from retailinfer._native.windows import WindowGroup, WindowReplay
from retailinfer._native.windows_reference import Accumulator, Add, Plan, Read
from retailinfer.clock import ManualClock
from retailinfer.errors import ConfigError, FeatureError, IntegrityError, SchemaMismatchError

MINUTE = 60 * SECOND
DAY = 86_400 * SECOND
T0 = 28_000_000 * MINUTE


def payments_spec(**more: Any) -> ri.FeatureSpec:
    """Windows over payments by card and by device."""
    return ri.FeatureSpec(
        request={"card_id": str, "device_id": int, "amount": float, "at": ri.Timestamp},
        event_time="at",
        entities={"card": "card_id", "device": "device_id"},
        streams={"payment": None},
        columns=[
            c.window("card", "count", on="payment", over="1h", current="exclude"),
            c.window("card", "sum", on="payment", of="amount", scale=100, over="24h", current="exclude"),
            c.window("card", "max", on="payment", of="amount", scale=100, over="24h", current="exclude"),
            c.window("device", "distinct", on="payment", of="card_id", over="24h"),
        ],
        **more,
    )


class Shop:
    """Windows of one process, bound for requests."""

    def __init__(self, clock: ManualClock, spec: ri.FeatureSpec | None = None) -> None:
        self.clock = clock
        self.spec = spec or payments_spec()
        self.windows = ri.Windows.memory(clock=clock, max_entities=10_000)
        self.bind()

    def bind(self) -> None:
        self.plans = [self.windows.bind(one, self.spec.program) for one in self.spec.window_layout()]

    def pay(
        self,
        card: str,
        device: int,
        amount: float,
        at_ns: int,
        *,
        add: bool = True,
        now_ns: int | None = None,
    ) -> list[tuple[float, int]]:
        """Read all windows, and add the payment."""
        names = self.spec.program.slot_names
        values = {
            names.index("card_id"): card,
            names.index("device_id"): device,
            names.index("amount"): amount,
        }
        found: list[tuple[float, int]] = []
        for plan in self.plans:
            found += plan.run(values, at_ns, now_ns=now_ns or self.clock.wall_ns(), add=add) or []
        return found

    def dump(self) -> bytes:
        return b"".join(self.windows.dump())

    def fill(self, n: int = 400) -> Shop:
        draw = random.Random(7)
        for i in range(n):
            self.pay(
                f"card {draw.randrange(50)}", draw.randrange(9), draw.randrange(10_000) / 100, T0 + i * MINUTE
            )
        return self


@pytest.fixture
def clock() -> ManualClock:
    """A clock that stands at T0."""
    return ManualClock(wall_ns=T0)


class TestRestore:
    def test_a_restart_reads_what_was_there_before(self, clock: ManualClock) -> None:
        """Another process restores before or after its releases are loaded, and gives the same bits and the same dump."""
        shop = Shop(clock).fill()
        data = shop.dump()
        for early in (True, False):
            other = Shop(clock)
            if early:
                other.windows = ri.Windows.memory(clock=clock, max_entities=10_000)
            assert other.windows.restore(io.BytesIO(data).read) == {"card": 50, "device": 9}
            other.bind()
            assert other.dump() == data
            for card in range(50):
                asked = (f"card {card}", card % 9, 1.0, T0 + 400 * MINUTE)
                assert shop.pay(*asked, add=False) == other.pay(*asked, add=False)

    def test_what_was_not_complete_stays_so(self, clock: ManualClock) -> None:
        """A window that was stale is as stale after a restart, and complete at the same moment."""
        shop = Shop(clock).fill(3)
        other = Shop(clock)
        clock.advance_ns(30 * MINUTE)
        other.windows.restore(io.BytesIO(shop.dump()).read)
        other.bind()
        for minute, state in (
            (57, STALE),
            (58, PRESENT),
        ):  # panes of two minutes, that of the request included
            at_ns = T0 + minute * MINUTE
            assert other.pay("card 1", 1, 1.0, at_ns, add=False, now_ns=at_ns)[0][1] == state

    def test_events_that_were_missed_can_be_admitted(self, clock: ManualClock) -> None:
        """With complete=False windows count, but say stale until they have passed the restart."""
        shop = Shop(clock).fill()
        data = shop.dump()
        clock.advance_ns(DAY)
        shop.windows.restore(io.BytesIO(data).read, complete=False)
        assert shop.pay("card 1", 1, 1.0, T0 + DAY, add=False)[0] == (0.0, STALE)
        clock.advance_ns(62 * MINUTE)
        assert shop.pay("card 1", 1, 1.0, T0 + DAY + 62 * MINUTE, add=False)[0] == (0.0, PRESENT)

    def test_any_damage_is_refused_and_changes_nothing(self, clock: ManualClock) -> None:
        """Every flipped byte (of a small dump), every cut, everything behind the first piece dropped."""
        shop = Shop(clock).fill(12)
        data = shop.dump()
        target = Shop(clock).fill(5)
        before = target.dump()
        for at in range(len(data)):
            broken = data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :]
            with pytest.raises(IntegrityError):
                target.windows.restore(io.BytesIO(broken).read)
        for end in range(0, len(data), 7):
            with pytest.raises(IntegrityError):
                target.windows.restore(io.BytesIO(data[:end]).read)
        assert target.dump() == before

    def test_a_forged_dump_with_a_right_checksum_is_refused(self) -> None:
        """Blocks that no kernel wrote: panes out of order, sums past their bound, unknown accumulators, sizes that lie."""
        group = WindowGroup("card", "str")
        accumulators = [Accumulator("sum", 60, 12, 0), Accumulator("distinct", 60, 12, 0)]
        plan = native_plan(
            group, accumulators,
            Plan("p", ("card",), (Add(0, "n"), Add(1, "device")), (Read(0, "sum", 10),)),
        )  # fmt: skip
        for minute in range(3):
            plan.run({0: "a", 3: 5, 4: f"d{minute}"}, T0 + minute * MINUTE, event_hash=minute + 1)
        state, piece = group.state(), b"".join(group.blocks())
        draw = random.Random(3)
        refused = 0
        for _ in range(3_000):
            broken = bytearray(piece)
            for _ in range(draw.choice([1, 1, 2, 8])):
                broken[draw.randrange(len(broken))] = draw.choice(
                    [0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)]
                )
            fresh = WindowGroup("card", "str")
            try:
                fresh.load_blocks(state, [bytes(broken)])
            except IntegrityError:
                refused += 1
                continue
            again = native_plan(fresh, accumulators, plan_of(plan))
            again.run({0: "a", 3: 1, 4: "x"}, T0 + 3 * MINUTE)  # whatever was taken can be worked with
            assert fresh.load_blocks(fresh.state(), list(fresh.blocks())) >= 1
        assert refused > 1_000
        changes: tuple[dict[str, Any], ...] = (
            {"name": "device"}, {"key_kind": "int"}, {"accumulators": []}, {"evicted_until_ns": -1}, {"saved_at_ns": None},
            {"accumulators": [*state["accumulators"], state["accumulators"][0]]},
            {"accumulators": [state["accumulators"][0] | {"keep_panes": 10**6}]},
        )  # fmt: skip
        for change in changes:
            with pytest.raises(IntegrityError):
                group.load_blocks(state | change, [piece])
        assert b"".join(group.blocks()) == piece

    def test_a_dump_of_other_definitions_is_refused(self, clock: ManualClock) -> None:
        """Keys of another type under the same entity: nothing is reinterpreted."""
        data = Shop(clock).fill(5).dump()
        other = ri.Windows.memory(clock=clock)
        group = WindowGroup("card", "int")
        other._groups["card"] = group
        with pytest.raises(SchemaMismatchError):
            other.restore(io.BytesIO(data).read)

    def test_entities_that_change_during_a_dump_are_in_it_once(self, clock: ManualClock) -> None:
        """Updates, new entities, evictions and growth between two pieces: what is restored is some moment of each entity."""
        shop = Shop(clock).fill(200)
        group = shop.windows._groups["card"]
        state, pieces = group.state(), []
        for i, piece in enumerate(group.blocks(step_bytes=1_024)):
            pieces.append(piece)
            for j in range(5):
                shop.pay(f"card {(i * 5 + j) % 50}", 1, 2.0, T0 + (200 + i) * MINUTE)
            group.erase(f"card {i % 50}")
        fresh = WindowGroup("card", "str")
        assert fresh.load_blocks(state, pieces) >= 40
        first = group.blocks(step_bytes=1_024)
        next(first)
        list(group.blocks())
        with pytest.raises(ConfigError, match="one save"):
            list(first)


def plan_of(native: Any) -> Plan:
    """The plan above, for another group."""
    assert native.stream == "p"
    return Plan("p", ("card",), (Add(0, "n"), Add(1, "device")), (Read(0, "sum", 10),))


class TestBackfill:
    def events(self, n: int = 300, *, last_ns: int = T0) -> pa.Table:
        draw = random.Random(5)
        at = sorted(last_ns - draw.randrange(2 * 86_400) * SECOND for _ in range(n))
        return pa.table(
            {
                "card_id": [f"card {draw.randrange(20)}" for _ in at],
                "device_id": [draw.randrange(5) for _ in at],
                "amount": [draw.randrange(10_000) / 100 for _ in at],
                "at": pa.array([one // 1_000 for one in at], pa.timestamp("us", "UTC")),
            }
        )

    def test_history_makes_windows_complete(self, clock: ManualClock) -> None:
        """After a backfill the windows read what they would have, had they been there, and are not stale."""
        table = self.events()
        early = ManualClock(wall_ns=T0 - 3 * DAY)
        live = Shop(early)
        for row in table.to_pylist():
            at_ns = int(row["at"].timestamp()) * SECOND
            early.advance_ns(at_ns - early.wall_ns())
            live.pay(row["card_id"], row["device_id"], row["amount"], at_ns)
        late = Shop(clock)
        shuffled = table.take(np.random.default_rng(1).permutation(len(table)))
        assert late.windows.backfill(late.spec, "payment", shuffled) == 300
        early.advance_ns(T0 - early.wall_ns())
        for card in range(20):
            asked = (f"card {card}", card % 5, 1.0, T0)
            assert late.pay(*asked, add=False) == live.pay(*asked, add=False)
            assert all(state == PRESENT for _, state in late.pay(*asked, add=False))

    def test_live_events_and_history_never_count_twice(self, clock: ManualClock) -> None:
        """Only what is dated before an accumulator's beginning is taken from history, and twice the same changes nothing."""
        shop = Shop(clock)
        for i in range(10):
            shop.pay("card 1", 1, 1.0, T0 + i * SECOND)
        table = self.events(50, last_ns=T0 + 10 * SECOND)
        before = table.filter(
            pa.compute.less(table["at"], pa.scalar(dt.datetime.fromtimestamp(T0 // SECOND, dt.UTC)))
        )
        added = shop.windows.backfill(shop.spec, "payment", table)
        assert added == len(before)
        data = shop.dump()
        assert shop.windows.backfill(shop.spec, "payment", table) == 0
        assert shop.dump() == data

    def test_a_history_without_times_or_with_a_bad_value_is_refused(self, clock: ManualClock) -> None:
        """The error names the row; the windows are not called complete."""
        shop = Shop(clock)
        table = self.events(5)
        broken = table.set_column(2, "amount", pa.array([1.0, 2.0, 1e300, 3.0, 4.0]))
        with pytest.raises(FeatureError, match=r"\$\[2\]"):
            shop.windows.backfill(shop.spec, "payment", broken)
        assert shop.windows.stats[0].complete_since_ns == T0
        holes = table.set_column(3, "at", pa.array([None] * 5, pa.timestamp("us", "UTC")))
        with pytest.raises((FeatureError, ri.CallerError)):
            shop.windows.backfill(shop.spec, "payment", holes)


class TestLife:
    def test_the_next_release_finds_the_state(self, clock: ManualClock) -> None:
        """A spec with other columns and the same windows binds to the same accumulators; one that differs makes new ones."""
        shop = Shop(clock).fill(50)
        held = shop.windows.stats[0].accumulators
        again = payments_spec(
            windows=[c.window("card", "count", on="payment", over="1h", name="other", delay="2m")]
        )
        shop.spec = again
        shop.bind()
        assert shop.windows.stats[0].accumulators == held
        assert shop.pay("card 1", 1, 1.0, T0 + 50 * MINUTE, add=False)[0][0] > 0

    def test_erasing_an_entity_leaves_nothing(self, clock: ManualClock) -> None:
        """Neither counts, nor keys, nor ids: the next dump does not have them."""
        shop = Shop(clock).fill(50)
        shop.pay("somebody@example.org", 1, 1.0, T0)
        assert b"somebody@example.org" in shop.dump()
        assert shop.windows.erase("card", "somebody@example.org")
        assert not shop.windows.erase("card", "somebody@example.org")
        assert not shop.windows.erase("nothing", "x")
        assert b"somebody@example.org" not in shop.dump()
        assert shop.pay("somebody@example.org", 1, 1.0, T0, add=False)[0][0] == 0

    def test_a_forked_worker_goes_on_with_a_copy(self, clock: ManualClock) -> None:
        """What a child adds the parent does not see, and both are whole."""
        shop = Shop(clock).fill(100)
        before = shop.dump()
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                same = shop.dump() == before
                shop.fill(100)
                os.write(write, b"yes" if same and shop.dump() != before else b"no")
                status = 0
            finally:
                os._exit(status)
        os.close(write)
        assert os.read(read, 10) == b"yes"
        os.close(read)
        assert os.waitpid(pid, 0)[1] == 0
        assert shop.dump() == before

    def test_threads_lose_no_event(self, clock: ManualClock) -> None:
        """Four threads over the same cards: every event is counted, once."""
        shop = Shop(clock)
        start = threading.Barrier(4)

        def work() -> None:
            mine = [shop.windows.bind(one, shop.spec.program) for one in shop.spec.window_layout()]
            names = shop.spec.program.slot_names
            start.wait()
            for i in range(500):
                values = {
                    names.index("card_id"): f"card {i % 7}",
                    names.index("device_id"): 1,
                    names.index("amount"): 1.0,
                }
                for plan in mine:
                    plan.run(values, T0, now_ns=T0)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        total = sum(shop.pay(f"card {i}", 1, 0.0, T0, add=False)[2][0] for i in range(7))
        assert total == 2_000

    def test_another_kind_of_key_is_refused(self, clock: ManualClock) -> None:
        """An entity cannot be text in one release and a number in the next."""
        shop = Shop(clock)
        other = ri.FeatureSpec(
            request={"card_id": int, "at": ri.Timestamp}, event_time="at", entities={"card": "card_id"},
            streams={"payment": None}, columns=[c.window("card", "count", on="payment", over="1h")],
        )  # fmt: skip
        with pytest.raises(ConfigError, match="keyed by"):
            shop.windows.bind(other.window_layout()[0], other.program)

    @pytest.mark.parametrize(
        "wrong",
        [{"max_entities": 0}, {"max_entities": True}, {"max_entities": 1.5}, {"max_bytes": 100}, {"max_ahead": "soon"},
         {"max_ahead": -1}],
    )  # fmt: skip
    def test_settings_that_mean_nothing_are_refused(self, wrong: dict[str, Any]) -> None:
        """By name, when they are given."""
        with pytest.raises(ConfigError):
            ri.Windows.memory(**wrong)

    def test_figures_are_stated(self, clock: ManualClock) -> None:
        """Entities, panes, memory and what happened to events, for each kind of entity."""
        card, device = Shop(clock).fill(100).windows.stats
        assert (card.entity, device.entity) == ("card", "device")
        assert card.events == device.events == 100
        assert card.entities <= 50
        assert 0 < card.panes <= 400
        assert card.bytes > 0
        assert msgspec.to_builtins(card)["complete_since_ns"] == T0


class TestReplay:
    def test_history_and_requests_give_the_same_bits(self, clock: ManualClock) -> None:
        """The native loop over columns reads and adds as the same events do one by one."""
        table = TestBackfill().events(200)
        spec = payments_spec()
        one, other = Shop(clock, spec), Shop(clock, spec)
        found = spec.read_events(table, "payment")
        moments = found.by_name["at"]
        assert moments is not None
        at_ns = np.ascontiguousarray(moments[0])
        columns = [found.by_name.get(name) for name in spec.program.slot_names]
        replay = WindowReplay()
        slots = [slot for plan in other.plans for slot in plan.slots]
        replay.add_stream(spec.program, other.plans, columns, 200, at_ns, windows=slots)
        found_by_stream, added = replay.run(np.zeros(200, np.uint8), np.arange(200, dtype=np.int64))
        values, states = found_by_stream[0]
        assert added == 200
        for row, event in enumerate(table.to_pylist()):
            read = one.pay(
                event["card_id"], event["device_id"], event["amount"], int(at_ns[row]), now_ns=int(at_ns[row])
            )
            assert np.array_equal(values[row], [value for value, _ in read], equal_nan=True)
            assert states[row].tolist() == [state for _, state in read]
        assert one.dump() == other.dump()

    def test_columns_that_do_not_fit_are_refused(self) -> None:
        """Sizes, types and row numbers are checked before anything is read."""
        group = WindowGroup("card", "str")
        plan = native_plan(
            group,
            [Accumulator("sum", 60, 12, 0)],
            Plan("p", ("card",), (Add(0, "amount"),), (Read(0, "sum", 10),)),
        )
        texts, ends = np.frombuffer(b"ab", np.uint8).copy(), np.array([0, 1, 2])
        amounts, at = np.array([1.0, np.inf]), np.full(2, T0)
        good: list[Any] = [(texts, None, ends, None), None, (amounts, None, None, None)]
        for wrong in (
            [(texts, None, np.array([0, 1, 3]), None), None, good[2]],
            [(texts, None, np.array([0, 2, 1]), None), None, good[2]],
            [good[0], None, (amounts[:1], None, None, None)],
            [good[0], None, (np.array([1, 2]), None, None, None)],
            [good[0], None, (amounts, np.ones(1, np.uint8), None, None)],
        ):
            with pytest.raises(ValueError, match=r"need|leave"):
                WindowReplay().add_stream(plan.program, [plan], wrong, 2, at)
        replay = WindowReplay()
        replay.add_stream(plan.program, [plan], good, 2, at)
        for streams, rows in (([0], [2]), ([0], [-1]), ([1], [0])):
            with pytest.raises(ValueError, match=r"row|stream"):
                replay.run(np.array(streams, np.uint8), np.array(rows))
        with pytest.raises(FeatureError, match=r"\$\[1\]\.amount"):
            replay.run(np.zeros(2, np.uint8), np.arange(2))
