"""What windows do with events that are late, early, doubled, simultaneous, too large, or one too many.

Rules:
  * One pane is a minute unless a test says otherwise; the count covers 10 of them and its accumulator keeps 12.
  * Every event goes through the twin too (`Both`), so that each behaviour here is declared there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from windows_both import PRESENT, SECOND, STALE, UNKNOWN, Both, acc_digest, native_plan, program_of

from retailinfer._native.windows import MAX_KEEP, WindowGroup, WindowPlan, event_hash
from retailinfer._native.windows_reference import Accumulator, Add, Plan, Read
from retailinfer.clock import ManualClock
from retailinfer.errors import ConfigError, FeatureRangeError, FeatureTypeError

MINUTE = 60 * SECOND
T0 = 28_000_000 * MINUTE  # the start of a pane
EVER = -(2**62)


def counting(
    *,
    n: int = 10,
    keep: int = 12,
    since_ns: int = EVER,
    with_event: bool = False,
    max_entities: int = 10**6,
    clock: Any = None,
) -> Both:
    """A count of payments by card."""
    return Both(
        [Accumulator("count", 60, keep, since_ns)],
        Plan("payment", ("card",), (Add(0),), (Read(0, "count", n, with_event=with_event),)),
        max_entities=max_entities,
        clock=clock,
    )


def summing(
    kind: str = "sum", whats: Sequence[str] = ("sum",), *, of: str = "amount", scale: float = 100
) -> Both:
    """Sums and the like of the amount by card."""
    return Both(
        [Accumulator(kind, 60, 12, EVER)],
        Plan(
            "payment",
            ("card",),
            (Add(0, of, scale),),
            tuple(Read(0, what, 10, scale=scale) for what in whats),
        ),
    )


def count(both: Both, at_ns: int, card: str = "a") -> float:
    """What a request reads, without adding."""
    found = both.run({"card": card}, at_ns, add=False)
    assert found is not None
    return found[0][0]


class TestTimes:
    def test_a_window_is_left_open_in_panes(self) -> None:
        """Ten panes up to that of the request: an event leaves the window when its whole pane has left it."""
        both = counting()
        both.run({"card": "a"}, T0)
        assert count(both, T0 + 10 * MINUTE - 1) == 1
        assert count(both, T0 + 10 * MINUTE) == 0

    def test_simultaneous_events_see_those_before_them(self) -> None:
        """Of events with equal times each sees what was added before it, and itself only with include."""
        without, within = counting(), counting(with_event=True)
        assert [without.run({"card": "a"}, T0)[0][0] for _ in range(3)] == [0, 1, 2]  # type: ignore[index]
        assert [within.run({"card": "a"}, T0)[0][0] for _ in range(3)] == [1, 2, 3]  # type: ignore[index]

    def test_a_late_event_counts_where_it_belongs(self) -> None:
        """An event of the past is counted in its own pane, and does not see what came after it."""
        both = counting()
        both.run({"card": "a"}, T0 + 2 * MINUTE)
        assert both.run({"card": "a"}, T0) == [(0.0, PRESENT)]
        assert count(both, T0 + 2 * MINUTE) == 2
        assert count(both, T0 + 10 * MINUTE) == 1

    def test_an_event_older_than_what_is_kept_is_dropped_and_counted(self) -> None:
        """Twelve panes behind the newest one nothing is added, however many windows would still read it."""
        both = counting()
        both.run({"card": "a"}, T0 + 12 * MINUTE)
        both.run({"card": "a"}, T0 + MINUTE)
        both.run({"card": "a"}, T0)
        assert both.group.info()["late"] == 1
        assert both.group.info()["panes"] == 2

    def test_a_reader_of_the_past_is_told_what_is_gone(self) -> None:
        """A request more than two panes older than the newest event reads what is kept, as stale."""
        both = counting()
        for minute in range(12):
            both.run({"card": "a"}, T0 + minute * MINUTE)
        assert both.run({"card": "a"}, T0 + 9 * MINUTE, add=False) == [(10.0, PRESENT)]
        both.run({"card": "a"}, T0 + 12 * MINUTE)
        assert both.run({"card": "a"}, T0 + 9 * MINUTE, add=False) == [(9.0, STALE)]

    def test_an_event_from_the_future_is_taken_at_the_clock(self) -> None:
        """A client's clock may be five minutes ahead; beyond that the store's own counts."""
        both = counting()
        both.run({"card": "a"}, T0 + 5 * MINUTE, now_ns=T0)
        assert count(both, T0) == 0
        both.run({"card": "a"}, T0 + 6 * MINUTE, now_ns=T0)
        assert count(both, T0) == 1
        assert both.group.info()["ahead"] == 1

    def test_a_delay_moves_the_whole_window(self) -> None:
        """With a delay of two minutes a window ends two panes earlier, and the event itself is never in it."""
        both = Both(
            [Accumulator("count", 60, 14, EVER)],
            Plan(
                "label", ("card",), (Add(0),), (Read(0, "count", 10, delay_ns=2 * MINUTE, with_event=True),)
            ),
        )
        assert both.run({"card": "a"}, T0) == [(0.0, PRESENT)]
        assert [count(both, T0 + m * MINUTE) for m in (1, 2, 11, 12)] == [0, 1, 1, 0]

    @pytest.mark.parametrize(
        "at_ns", [-700_000_000 * SECOND, 3_663_700_000 * SECOND, T0 * 1_000 // 1_000_000]
    )
    def test_a_time_that_cannot_be_is_refused(self, at_ns: int) -> None:
        """A time outside 1950 to 2086 is refused by name; milliseconds for seconds end up in 1970 and are merely old."""
        both = counting()
        if at_ns > 0 and at_ns < T0:
            assert both.run_native({"card": "a"}, at_ns) == [(0.0, PRESENT)]
            return
        with pytest.raises(FeatureRangeError, match="seconds, not milliseconds"):
            both.run_native({"card": "a"}, at_ns)

    def test_local_panes_follow_the_zone(self) -> None:
        """Days of an accumulator with a calendar begin at local midnight, also where the clocks change."""
        group = WindowGroup("sku", "str")
        number = group.register(acc_digest(0), "sum", 86_400 * SECOND, 12, calendar=True)
        switch_s = 1_711_846_800  # 31 March 2024, 01:00 UTC: Berlin goes from +1 to +2
        slots = [
            {"name": name, "wire": name, "kind": kind, "optional": True}
            for name, kind in (("card", 4), ("n", 1), ("w0", 0), ("w1", 0))
        ]
        program = type(program_of(0))(
            slots=slots, n_request=2, event_slot=-1, columns=[], vocabularies=[], tensors=[],
            zone_at_s=(switch_s,), zone_offset_s=(3_600, 7_200),
        )  # fmt: skip
        plan = WindowPlan(
            group,
            program,
            stream="sale",
            keys=(0,),
            adds=((number, (), 1, 1.0),),
            reads=((2, number, "lag", 1, 0, False, 1, 1.0), (3, number, "lag", 1, 0, False, 2, 1.0)),
        )
        plan.run({0: "a", 1: 5}, (1_711_839_600 - 1) * SECOND)  # 30 March, 23:59:59
        plan.run({0: "a", 1: 7}, 1_711_839_600 * SECOND)  # 31 March, 00:00, a day of 23 hours
        plan.run({0: "a", 1: 1}, (1_711_922_400 - 1) * SECOND)  # 31 March, 23:59:59
        assert plan.run({0: "a"}, 1_711_922_400 * SECOND, add=False) == [(8.0, 0), (5.0, 0)]  # 1 April, 00:00
        before = plan.run({0: "a"}, (1_711_922_400 - 1) * SECOND, add=False)
        assert before is not None
        assert before[0] == (5.0, 0)
        assert math.isnan(before[1][0])
        assert before[1][1] == 1  # null: nothing was sold on the 29th


class TestClockSteps:
    def test_a_clock_that_was_far_ahead_does_no_lasting_harm(self) -> None:
        """Events that a wrong clock dated years ahead are taken out once the clock is right; the entity says it forgot."""
        clock = ManualClock(wall_ns=T0)
        both = counting(clock=clock)
        both.run_native({"card": "a"}, T0, now_ns=T0)
        wrong = T0 + 400 * 86_400 * SECOND
        both.run_native({"card": "a"}, wrong, now_ns=wrong)
        assert both.run_native({"card": "a"}, T0 + MINUTE, now_ns=T0 + MINUTE) == [(0.0, STALE)]
        assert both.group.info()["stepped"] == 1
        clock.advance_ns(20 * MINUTE)
        later = T0 + 20 * MINUTE
        assert both.run_native({"card": "a"}, later, now_ns=later) == [(0.0, PRESENT)]
        assert both.run_native({"card": "a"}, later, now_ns=later) == [(1.0, PRESENT)]

    def test_a_now_of_the_past_destroys_nothing(self) -> None:
        """Asking, or adding, as of yesterday leaves today's events where they are."""
        clock = ManualClock(wall_ns=T0)
        both = counting(clock=clock)
        both.run_native({"card": "a"}, T0, now_ns=T0)
        yesterday = T0 - 86_400 * SECOND
        both.run_native({"card": "a"}, yesterday, now_ns=yesterday)
        assert both.run_native({"card": "a"}, T0, now_ns=T0, add=False) == [(1.0, PRESENT)]
        assert both.group.info()["stepped"] == 0

    def test_a_small_step_back_only_makes_events_late(self) -> None:
        """A clock that is set back by minutes gives older times: they are added where they belong."""
        clock = ManualClock(wall_ns=T0 + 4 * MINUTE)
        both = counting(clock=clock)
        both.run_native({"card": "a"}, T0 + 4 * MINUTE, now_ns=T0 + 4 * MINUTE)
        clock.step_wall_ns(-4 * MINUTE)
        both.run_native({"card": "a"}, T0, now_ns=T0)
        assert both.run_native({"card": "a"}, T0 + 4 * MINUTE, now_ns=T0 + 4 * MINUTE, add=False)[0][0] == 2

    def test_an_accumulator_made_under_a_wrong_clock_recovers(self) -> None:
        """One that was declared while the clock stood in the future is complete from the next time it is declared."""
        clock = ManualClock(wall_ns=T0 + 400 * 86_400 * SECOND)
        group = WindowGroup("card", "str", clock=clock)
        group.register(acc_digest(0), "count", MINUTE, 12)
        clock.step_wall_ns(-400 * 86_400 * SECOND)
        group.register(acc_digest(0), "count", MINUTE, 12)
        assert group.since(acc_digest(0)) == T0


class TestDuplicates:
    def test_an_id_counts_once(self) -> None:
        """An event with the id of one of the last eight is not added, and reads nothing of itself."""
        both = counting(with_event=True)
        assert both.run({"card": "a"}, T0, event_hash=7) == [(1.0, PRESENT)]
        assert both.run({"card": "a"}, T0, event_hash=7) == [(1.0, PRESENT)]
        assert both.group.info()["duplicates"] == 1

    def test_eight_ids_are_remembered(self) -> None:
        """The ninth id pushes out the first: after eight others an event is new again."""
        both = counting()
        for event_id in range(1, 9):
            both.run({"card": "a"}, T0, event_hash=event_id)
        both.run({"card": "a"}, T0, event_hash=1)
        assert count(both, T0) == 8
        both.run({"card": "a"}, T0, event_hash=9)
        both.run({"card": "a"}, T0, event_hash=1)
        assert count(both, T0) == 10

    def test_ids_of_another_entity_or_stream_are_others(self) -> None:
        """Each entity and stream has its own ring."""
        both = counting()
        both.run({"card": "a"}, T0, event_hash=1)
        both.run({"card": "b"}, T0, event_hash=1)
        label = native_plan(
            both.group, both.accumulators, Plan("label", ("card",), (Add(0),), (Read(0, "count", 10),))
        )
        label.run({0: "a"}, T0, event_hash=1)
        assert both.run_native({"card": "a"}, T0, add=False)[0][0] == 2
        assert both.group.info()["duplicates"] == 0

    def test_ids_of_any_plain_type(self) -> None:
        """Texts, bytes and integers are ids; other types are refused by name."""
        assert event_hash("1") == event_hash(b"1") != event_hash(1)
        for wrong in (1.0, None, True):
            with pytest.raises(FeatureTypeError):
                event_hash(wrong)  # type: ignore[arg-type]
        with pytest.raises(FeatureRangeError):
            event_hash(2**63)
        with pytest.raises(FeatureRangeError):
            event_hash("\ud800")


class TestValues:
    def test_halves_round_to_even_at_the_scale(self) -> None:
        """What is between two units goes to the even one, as everywhere else."""
        both = summing(scale=1)
        for amount in (0.5, 1.5, 2.5):
            both.run({"card": "a", "amount": amount}, T0)
        assert both.run({"card": "a"}, T0, add=False) == [(4.0, PRESENT)]

    def test_a_value_beyond_2_to_the_53_is_refused_before_anything_changes(self) -> None:
        """Neither windows nor the ring of ids see an event that is refused."""
        both = summing()
        for amount in (9.1e13, -9.1e13, 1e300):
            with pytest.raises(FeatureRangeError, match=r"\$\.amount"):
                both.run_native({"card": "a", "amount": amount}, T0, event_hash=5)
        both.run({"card": "a", "amount": 9e13}, T0, event_hash=5)
        assert both.group.info()["duplicates"] == 0

    def test_the_sum_of_a_pane_is_bounded_too(self) -> None:
        """An event that would take a pane past 2**53 units is refused; the next pane has room again, and totals are exact."""
        both = summing(of="n", scale=1)
        both.run({"card": "a", "n": 2**53}, T0)
        with pytest.raises(FeatureRangeError, match="one pane"):
            both.run_native({"card": "a", "n": 1}, T0)
        both.run({"card": "a", "n": -1}, T0)
        for minute in range(1, 10):
            both.run({"card": "a", "n": 2**53}, T0 + minute * MINUTE)
        assert both.run({"card": "a"}, T0 + 9 * MINUTE, add=False) == [(float(10 * 2**53 - 1), PRESENT)]

    def test_nothing_has_no_mean_no_smallest_no_largest(self) -> None:
        """Without an event in the window these are null, while a sum is zero."""
        both = summing(whats=("mean", "sum", "lag"))
        found = both.run({"card": "a"}, T0, add=False)
        assert found is not None
        assert [state for _, state in found] == [1, PRESENT, 1]
        assert summing("min", ("min",)).run({"card": "a"}, T0, add=False)[0][1] == 1  # type: ignore[index]

    def test_a_null_value_adds_nothing(self) -> None:
        """An event without the field leaves the sum and the mean as they are."""
        both = summing(whats=("mean", "count"))
        both.run({"card": "a", "amount": 2.0}, T0)
        both.run({"card": "a", "amount": None}, T0)
        assert both.run({"card": "a"}, T0, add=False) == [(2.0, PRESENT), (1.0, PRESENT)]

    def test_distinct_is_exact_to_64_and_then_says_64(self) -> None:
        """Any number of different values, over one pane or many, in any order."""
        for spread in (0, MINUTE):
            both = Both(
                [Accumulator("distinct", 60, 72, EVER)],
                Plan("payment", ("card",), (Add(0, "n"),), (Read(0, "distinct", 70),)),
            )
            for number in range(70):
                both.run({"card": "a", "n": number}, T0 + number % 70 * spread)
                both.run({"card": "a", "n": number // 2}, T0 + number % 70 * spread)
            assert both.run({"card": "a"}, T0 + 69 * spread, add=False) == [(64.0, PRESENT)]

    def test_zeros_are_one_value(self) -> None:
        """-0.0 and 0.0 are not two different amounts."""
        both = Both(
            [Accumulator("distinct", 60, 12, EVER)],
            Plan("payment", ("card",), (Add(0, "amount"),), (Read(0, "distinct", 10),)),
        )
        for amount in (0.0, -0.0):
            both.run({"card": "a", "amount": amount}, T0)
        assert both.run({"card": "a"}, T0, add=False) == [(1.0, PRESENT)]


class TestKeys:
    def test_no_key_is_unknown(self) -> None:
        """A null in the key, and a key of more than a kilobyte, read as unknown and add nothing."""
        both = counting()
        for card in (None, "x" * 1_025):
            found = both.run_native({"card": card}, T0)
            assert found[0][1] == UNKNOWN
            assert math.isnan(found[0][0])
        assert both.group.info()["no_key"] == 2
        assert both.group.info()["entities"] == 0

    def test_keys_of_several_parts_do_not_run_together(self) -> None:
        """("a", 1) and ("a1",) like keys are different entities, whatever the bytes of their parts."""
        both = Both(
            [Accumulator("count", 60, 12, EVER)],
            Plan("payment", ("card", "shop"), (Add(0),), (Read(0, "count", 10),)),
        )
        both.run({"card": "a", "shop": 1}, T0)
        assert both.run({"card": "a", "shop": 256}, T0, add=False) == [(0.0, PRESENT)]
        assert both.run({"card": "a", "shop": 1}, T0, add=False) == [(1.0, PRESENT)]
        assert both.group.erase(("a", 1))
        with pytest.raises(FeatureTypeError):
            both.group.erase("a")


class TestCold:
    def test_a_window_is_stale_until_it_covers_its_time(self) -> None:
        """From its accumulator's beginning on a window needs its whole length, in whole panes."""
        both = counting(since_ns=T0 + 1)
        assert both.run({"card": "a"}, T0 + 9 * MINUTE) == [(0.0, STALE)]
        assert both.run({"card": "a"}, T0 + 10 * MINUTE - 1, add=False) == [(1.0, STALE)]
        assert both.run({"card": "a"}, T0 + 10 * MINUTE, add=False) == [(1.0, PRESENT)]

    def test_who_asks_for_more_later_is_told(self) -> None:
        """A longer window of a later release is stale until its accumulator has kept that much; the shorter one is not."""
        clock = ManualClock(wall_ns=T0)
        both = counting(clock=clock)
        for minute in range(60):
            both.run_native({"card": "a"}, T0 + minute * MINUTE)
        clock.advance_ns(60 * MINUTE)
        number = both.group.register(acc_digest(0), "count", MINUTE, 42)
        longer = WindowPlan(
            both.group,
            program_of(2),
            stream="payment",
            keys=(0,),
            adds=((number, (), -1, 1.0),),
            reads=((6, number, "count", 10, 0, False, 0, 1.0), (7, number, "count", 40, 0, False, 0, 1.0)),
        )
        assert longer.run({0: "a"}, T0 + 59 * MINUTE, add=False) == [(10.0, PRESENT), (12.0, STALE)]
        for minute in range(60, 120):
            longer.run({0: "a"}, T0 + minute * MINUTE)
        assert longer.run({0: "a"}, T0 + 119 * MINUTE, add=False) == [(10.0, PRESENT), (40.0, PRESENT)]


class TestBounds:
    def test_the_least_recently_updated_entity_goes_first(self) -> None:
        """Exactly in the order of updates, not of requests."""
        both = counting(max_entities=2)
        both.run({"card": "a"}, T0)
        both.run({"card": "b"}, T0)
        both.run({"card": "a"}, T0)
        both.run({"card": "b"}, T0, add=False)
        both.run({"card": "c"}, T0)
        assert both.group.info()["evicted"] == 1
        assert count(both, T0, "a") == 2
        both.check_counts()

    def test_after_an_eviction_zero_is_not_known_to_be_zero(self) -> None:
        """Entities that are unknown, or new again, are stale until windows have passed the newest evicted event."""
        both = counting(max_entities=1)
        both.run({"card": "a"}, T0 + 30 * SECOND)
        both.run({"card": "b"}, T0 + 40 * SECOND)
        assert both.run({"card": "a"}, T0 + 50 * SECOND, add=False) == [(0.0, STALE)]
        assert both.run({"card": "b"}, T0 + 50 * SECOND, add=False) == [(1.0, PRESENT)]
        assert both.run({"card": "a"}, T0 + 10 * MINUTE - 1, add=False) == [(0.0, STALE)]
        assert both.run({"card": "a"}, T0 + 10 * MINUTE, add=False) == [(0.0, PRESENT)]
        both.run({"card": "a"}, T0 + 50 * SECOND)
        assert both.run({"card": "a"}, T0 + 50 * SECOND, add=False) == [(1.0, STALE)]

    def test_the_bound_in_bytes_holds(self) -> None:
        """Entities with long keys are bounded by memory, not by number."""
        group = WindowGroup("card", "str", max_bytes=1 << 16)
        plan = native_plan(
            group,
            [Accumulator("count", 60, 12, EVER)],
            Plan("p", ("card",), (Add(0),), (Read(0, "count", 10),)),
        )
        for number in range(500):
            plan.run({0: f"{number:0>900}"}, T0)
        info = group.info()
        assert info["live_bytes"] <= 1 << 16
        assert 20 < info["entities"] < 80
        assert info["evicted"] == 500 - info["entities"]

    def test_entities_without_live_panes_are_swept(self) -> None:
        """A clock that goes on empties the state of those who do not come back, two with each new one."""
        both = counting()
        for number in range(40):
            both.run({"card": f"old{number}"}, T0, now_ns=T0)
        later = T0 + 86_400 * SECOND
        for number in range(20):
            both.run({"card": f"new{number}"}, later, now_ns=later)
        assert both.group.info()["swept"] == 40
        assert both.group.info()["entities"] == 20
        assert both.run({"card": "old1"}, later, add=False) == [(0.0, PRESENT)]
        both.check_counts()

    def test_memory_is_given_to_others_when_entities_grow_and_go(self) -> None:
        """Blocks lie dense: entities that grew from one pane to twelve leave no holes behind."""
        both = counting(keep=40, n=38)
        for minute in range(40):
            for card in range(300):
                both.run_native({"card": f"card {card}"}, T0 + minute * MINUTE)
        info = both.group.info()
        assert info["panes"] == 300 * 40
        assert info["bytes"] < 300 * (16 * 40 + 96) + (1 << 19)
        for card in range(300):
            assert both.group.erase(f"card {card}")
        assert both.group.info()["live_bytes"] < 1 << 14

    def test_what_cannot_be_kept_is_refused(self) -> None:
        """Panes of parts of a second, more than a thousand, another accumulator under a known digest."""
        group = WindowGroup("card", "str")
        digest = acc_digest(0)
        for pane_ns, keep in (
            (SECOND // 2, 3),
            (3 * SECOND // 2, 3),
            (MINUTE, MAX_KEEP + 1),
            (MINUTE, 0),
            (2**62, 900),
        ):
            with pytest.raises(ConfigError):
                group.register(digest, "count", pane_ns, keep)
        group.register(digest, "count", MINUTE, 12)
        with pytest.raises(ConfigError):
            group.register(digest, "sum", MINUTE, 12)
        with pytest.raises(ConfigError):
            group.register(b"short", "count", MINUTE, 12)
        for wrong in (("float",), (), "text"):
            with pytest.raises(ConfigError):
                WindowGroup("card", wrong)

    def test_a_plan_that_makes_no_sense_is_refused(self) -> None:
        """Windows longer than what is kept, sums of counts, texts compared with numbers, keys of another kind."""
        group = WindowGroup("card", "str")
        number = group.register(acc_digest(0), "count", MINUTE, 12)
        total = group.register(acc_digest(1), "sum", MINUTE, 12)
        program = program_of(1)
        read = (6, number, "count", 10, 0, False, 0, 1.0)
        good: dict[str, Any] = {
            "stream": "p",
            "keys": (0,),
            "adds": ((number, (), -1, 1.0),),
            "reads": (read,),
        }
        WindowPlan(group, program, **good)
        wrong: list[dict[str, Any]] = [
            {"reads": ((6, number, "count", 11, 0, False, 0, 1.0),)},
            {"reads": ((6, number, "sum", 10, 0, False, 0, 1.0),)},
            {"reads": ((0, number, "count", 10, 0, False, 0, 1.0),)},
            {"reads": ((6, 99, "count", 10, 0, False, 0, 1.0),)},
            {"keys": (1,)},
            {"keys": (0, 1)},
            {"keys": ("card",)},
            {"adds": ((number, (), 2, 1.0),)},
            {"adds": ((total, (), -1, 1.0),)},
            {"adds": ((total, (), 4, 1.0),)},
            {"adds": ((total, (), 2, 0.0),)},
            {"adds": ((number, ((2, 9, 1.0),), -1, 1.0),)},
            {"adds": ((number, ((2, 0, "x"),), -1, 1.0),)},
            {"adds": ((number, ((4, 0, 1.0),), -1, 1.0),)},
            {"adds": ((number, ((2, 0, math.nan),), -1, 1.0),)},
            {"adds": ((number, (), -1, 1.0), (number, (), -1, 1.0))},
        ]
        for change in wrong:
            with pytest.raises(ConfigError):
                WindowPlan(group, program, **(good | change))
