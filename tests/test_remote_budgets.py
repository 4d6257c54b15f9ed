"""What may be asked for beyond the first attempt: budgets, throttle, retries, hedges; on clocks that tests move."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from retailinfer.errors import ConfigError, RemoteError
from retailinfer.resilience.breaker import Outcome, State
from retailinfer.resilience.budget import Budget, Throttle
from retailinfer.resilience.hedge import hedge_delay_ns, is_fatal, may_hedge
from retailinfer.resilience.latency import Latency
from retailinfer.resilience.outcome import KINDS, outcome_of
from retailinfer.resilience.retries import retry_wait_ns

SECOND = 1_000_000_000
MS = 1_000_000
# (ns until the next call, whether it asks for a further attempt)
TRAFFIC = st.lists(
    st.tuples(st.sampled_from([0, 1, MS, 50 * MS, SECOND, 11 * SECOND]), st.booleans()), max_size=400
)


@given(traffic=TRAFFIC, share=st.sampled_from([0.05, 0.1, 0.25]), per_second=st.sampled_from([0.0, 1.0, 2.5]))
@example(traffic=[(0, True)] * 400, share=0.1, per_second=1.0)
@example(traffic=[(50 * MS, True)] * 400, share=0.05, per_second=0.0)
def test_budget_never_gives_more_than_its_share_and_its_reserve(traffic, share, per_second):
    """Over any stretch of calls: at most share x calls + reserve x (its length + 10 s); over ten seconds the same."""
    budget = Budget(share=share, per_second=per_second, now_ns=0)
    now_ns, calls, given_ns = 0, [], []
    for gap_ns, asks in traffic:
        now_ns += gap_ns
        calls.append(now_ns)
        budget.deposit(now_ns)
        if asks and budget.withdraw(now_ns):
            given_ns.append(now_ns)
            # what was put in during the second before the ten may still be there: buckets are a second wide
            in_ten = [at for at in calls if at > now_ns - 11 * SECOND]
            assert (
                sum(at > now_ns - 9 * SECOND for at in given_ns)
                <= share * len(in_ten) + 10 * per_second + 1e-9
            )
            assert len(given_ns) <= share * len(calls) + per_second * (now_ns / SECOND + 10) + 1e-9


def test_budget_gives_what_it_promises():
    """A tenth of a steady stream and one a second: not less than that either, once it runs."""
    budget = Budget(share=0.1, per_second=1.0, now_ns=0)
    given_ = 0
    for i in range(100 * 60):  # a minute of 100 calls a second
        budget.deposit(i * 10 * MS)
        given_ += budget.withdraw(i * 10 * MS)
    assert 0.95 * (600 + 60) <= given_ <= 600 + 70


def test_dead_remote_costs_at_most_a_tenth_more_attempts():
    """Table (a), promise 3: every call fails and wants another attempt; 1.10 attempts a call, and one more a second."""
    budget, chance = Budget(share=0.1, per_second=1.0, now_ns=0), random.Random(1)
    error = RemoteError("refused", kind="connect")
    calls = attempts = now_ns = 0
    while now_ns < 600 * SECOND:
        now_ns += int(chance.expovariate(200) * SECOND)
        calls += 1
        attempts += 1
        budget.deposit(now_ns)
        n = 0
        while retry_wait_ns(
            error, n_retries=n, most=1, left_ns=30 * MS, normal_ns=0, now_ns=now_ns, budget=budget, chance=chance
        ) is not None:  # fmt: skip
            n += 1
            attempts += 1
        assert attempts <= 1.10 * calls + (now_ns / SECOND + 10)
    assert attempts >= 1.09 * calls


def test_hedges_stay_below_a_twentieth():
    """Every call is slow and wants a hedge: five of a hundred get one, whatever the rate."""
    for per_second in (1, 10, 1_000):
        budget, latency, throttle = Budget(share=0.05, per_second=0.0, now_ns=0), _known(10 * MS), Throttle()
        hedges = calls = now_ns = 0
        for _ in range(5_000):
            now_ns += SECOND // per_second
            calls += 1
            budget.deposit(now_ns)
            hedges += may_hedge(
                breaker=State.CLOSED, throttle=throttle, shedding=False, failed=False, left_ns=SECOND, latency=latency,
                budget=budget, now_ns=now_ns,
            )  # fmt: skip
            assert hedges <= 0.05 * calls
        assert hedges >= (0.045 * calls if per_second > 2 else 0)


def _known(ns: int) -> Latency:
    latency = Latency()
    for _ in range(16):
        latency.note(ns)
    return latency


def test_hedge_waits_for_the_slow_ones():
    """p95 of the last calls, at least 5 ms; not at all while too little is known."""
    assert hedge_delay_ns(Latency()) is None
    assert hedge_delay_ns(_known(MS)) == 5 * MS
    assert hedge_delay_ns(_known(40 * MS)) == 40 * MS
    latency = Latency()
    for i in range(1, 129):
        latency.note(i * MS)
    assert hedge_delay_ns(latency) == 122 * MS


@pytest.mark.parametrize(
    "change",
    [
        {"breaker": State.HALF_OPEN},
        {"breaker": State.DISABLED},
        {"shedding": True},
        {"left_ns": 9 * MS},
        {"latency": Latency()},
    ],
    ids=["half open", "disabled", "shedding", "no time", "unknown"],
)
def test_hedge_is_not_made_and_not_paid_for(change):
    """One condition that does not hold is enough; the budget keeps its token."""
    budget = Budget(share=1.0, per_second=0.0, now_ns=0)
    budget.deposit(0)
    fine = {
        "breaker": State.CLOSED,
        "throttle": Throttle(),
        "shedding": False,
        "failed": False,
        "left_ns": SECOND,
        "latency": _known(10 * MS),
    }
    assert not may_hedge(**(fine | change), budget=budget, now_ns=0)
    assert may_hedge(**fine, budget=budget, now_ns=0)
    assert not may_hedge(**fine, budget=budget, now_ns=0)


def test_throttle_closes_after_five_failures_and_opens_slowly():
    """Ten tokens, a failure takes one, a success gives a tenth, more than half must be there."""
    throttle = Throttle()
    for _ in range(4):
        throttle.failed()
    assert throttle.is_open
    throttle.failed()
    assert not throttle.is_open
    throttle.succeeded()
    assert throttle.is_open
    for _ in range(50):
        throttle.failed()
    for _ in range(50):
        throttle.succeeded()
    assert not throttle.is_open
    throttle.succeeded()
    assert throttle.is_open


def _wait(error: RemoteError, **change) -> int | None:
    known = {
        "n_retries": 0,
        "most": 1,
        "left_ns": 30 * MS,
        "normal_ns": 5 * MS,
        "now_ns": 0,
        "chance": random.Random(0),
    }
    budget = Budget(share=1.0, per_second=1.0, now_ns=0)
    return retry_wait_ns(error, **(known | change), budget=budget)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_only_failures_without_a_byte_of_an_answer_are_tried_again(kind):
    """Refused, reset before the answer, UNAVAILABLE: those alone, unless the other side names a time."""
    assert (_wait(RemoteError("x", kind=kind)) is not None) is (kind in ("connect", "reset", "unavailable"))
    named = _wait(RemoteError("x", kind=kind, retry_after_s=0.004))
    assert named == (4 * MS if KINDS[kind].again else None)


def test_retries_fit_the_deadline_or_are_not_made():
    """Wait and a normal call must fit; no second retry; a wait is anything from 0 to 2 ms, then 4, 8, 16, 20."""
    error = RemoteError("x", kind="connect")
    assert _wait(error, left_ns=5 * MS) is None
    assert _wait(RemoteError("x", kind="overloaded", retry_after_s=1.0)) is None
    assert _wait(error, n_retries=1) is None
    chance = random.Random(3)
    for n, most_ms in enumerate([2, 4, 8, 16, 20, 20]):
        waits = [_wait(error, n_retries=n, most=9, left_ns=SECOND, chance=chance) or 0 for _ in range(300)]
        assert max(waits) <= most_ms * MS
        assert max(waits) > 0.95 * most_ms * MS
        assert min(waits) < 0.05 * most_ms * MS


def test_starved_timeouts_say_nothing_about_the_other_side():
    """An attempt that had less time than such calls take is not held against the remote; any other failure is."""
    assert outcome_of("timeout", starved=True) is Outcome.IGNORED
    assert outcome_of("timeout", starved=False) is Outcome.FAILURE
    assert outcome_of("malformed", starved=True) is Outcome.FAILURE
    assert outcome_of("rejected", starved=False) is Outcome.IGNORED


def test_fatal_errors_end_both_attempts():
    """Where another attempt would give the same, or the other side asks to be left alone."""
    assert is_fatal("rejected", None)
    assert is_fatal("overloaded", 1.0)
    assert not is_fatal("connect", None)


@pytest.mark.parametrize(
    "settings", [{"share": -0.1}, {"share": 2.0}, {"per_second": -1.0}, {"ttl_ns": 0}], ids=str
)
def test_budgets_that_mean_nothing_are_refused(settings):
    """Shares are between none and all."""
    with pytest.raises(ConfigError, match="Expected a share"):
        Budget(**({"share": 0.1, "per_second": 1.0, "now_ns": 0} | settings))
