"""The fallback ladder: who answers when the release cannot, in the declared order, within what is left of the deadline.

Rules:
  * Nothing of it is touched while the release answers. A walk begins with the error that kept it from doing so.
  * Each rung is tried at most once a call, by at most `max_concurrency` calls at once; one more goes to the next rung.
  * A rung is begun only where its recent p99 (what it may take at most, while nothing is known) fits what is left. What it
    gives after the deadline is dropped: then nobody below is asked either.
  * A rung decides what it may decide: another action becomes the review action where that is among them, else the next rung.
  * Caller's mistakes never come here; where the release did not look at the request and a rung finds one (`CallersOwn`), it
    is raised as such. Calls that were shed go past rungs that cost as much as the release, and only critical
    ones go at all.
  * The end is the answer of a rung, `Unavailable`, or the error that needs no other name: overload, a deadline.
What the rungs do is told by who builds them (serving/answers.py); exercising them is drills.py.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import msgspec

from retailinfer.clock import Clock
from retailinfer.contracts import RUNGS, Decision, Ranking, RungHealth
from retailinfer.errors import CallerError, DeadlineExceededError, OverloadedError, ServingError, Unavailable
from retailinfer.life import begin_again_in_children

__all__ = ["COLD_NS", "CONCURRENCY", "Call", "CallersOwn", "Ladder", "Step", "Tells"]

Answer: TypeAlias = Decision | Ranking

CONCURRENCY = 10
COLD_NS = 24 * 3600 * 10**9  # a rung that nobody has exercised for so long may not be there when it is needed
FAILING_ABOVE, WELL_BELOW = 0.6, 0.3  # shares of lately failed calls, the later ones weighing more
RECENT = 128  # durations that a rung's p99 is taken of
RETRY_SKIPPED = 32  # of calls that a slow rung is passed over for, one tries it: it may be fast again


_WHY = {
    "cold": "nothing has exercised it for a day",
    "failing": "its last call or drill failed",
    "ready": "it answered",
}


class CallersOwn(Exception):  # noqa: N818 - it carries an error, and is none of its own
    """A rung that reads requests as the release does found the caller's mistake. `error`: what to raise."""

    def __init__(self, error: CallerError) -> None:
        super().__init__(str(error))
        self.error = error


class Call:
    """What is known of a call that the release did not answer.

    Attributes:
        request: what was asked: the caller's object, or what its bytes are decoded to; of a ranking the context.
        request_id, now_ns, priority, observe, event_id: as the call brought them.
        began_ns, end_ns: of the monotonic clock; an answer after `end_ns` is worth nothing.
        counted: the request stands in its windows already.
        candidates, k, available, exclude: of a ranking.
        opens: decodes bytes into the above; called once, before the first rung is tried. May raise a CallerError.
        shadow: nobody waits for the answer.
    """

    __slots__ = (
        "available",
        "began_ns",
        "candidates",
        "counted",
        "end_ns",
        "event_id",
        "exclude",
        "k",
        "now_ns",
        "observe",
        "opens",
        "priority",
        "request",
        "request_id",
        "shadow",
    )

    def __init__(
        self,
        request: Any,
        *,
        began_ns: int,
        end_ns: int,
        request_id: str | None = None,
        now_ns: int = 0,
        priority: str = "critical",
        observe: bool = False,
        event_id: Any = None,
        counted: bool = False,
        candidates: Any = None,
        k: int = 0,
        available: Any = None,
        exclude: Any = None,
        opens: Callable[[Call], None] | None = None,
        shadow: bool = False,
    ) -> None:
        self.request = request
        self.began_ns = began_ns
        self.end_ns = end_ns
        self.request_id = request_id
        self.now_ns = now_ns
        self.priority = priority
        self.observe = observe
        self.event_id = event_id
        self.counted = counted
        self.candidates = candidates
        self.k = k
        self.available = available
        self.exclude = exclude
        self.opens = opens
        self.shadow = shadow


class Step:
    """One rung, with its own limits and counts.

    Args:
        kind: one of `contracts.RUNGS`; its place there is the rung's number.
        answer: called with the call and the moment (monotonic ns) at which the rung's time is over; it gives None where it is
            well and knows nothing of this call. None instead of it: the contract names the rung, and nobody brought it.
        max_ns: of one call; 0 = what the deadline leaves.
        decisions: actions that it may give; None: there are none to give. review: what the others become, where it may.
        costs_as_release: calls that were shed go past it.
        waits: it may wait for others, so that an event loop must not run it.
    """

    def __init__(
        self,
        kind: str,
        answer: Callable[[Call, int], Answer | None] | None,
        *,
        max_ns: int = 0,
        max_concurrency: int = CONCURRENCY,
        decisions: Sequence[str] | None = None,
        review: str | None = None,
        costs_as_release: bool = False,
        waits: bool = False,
    ) -> None:
        self.kind = kind
        self.number = RUNGS.index(kind)
        self.answer = answer
        self.max_ns = max_ns
        self.max_concurrency = max_concurrency
        self.decisions = None if decisions is None else frozenset(decisions)
        self.review = review
        self.costs_as_release = costs_as_release
        self.waits = waits
        self.told = "untried" if answer is not None else "absent"
        self.forget(0)

    def forget(self, now_ns: int) -> None:
        """Begin anew at a moment: no call under way, nothing known."""
        self.in_flight = 0
        self.answers = self.failures = self.refused = self.drills = self.failed_drills = 0
        self.began_ns = now_ns
        self.exercised_ns: int | None = None
        self.failing = False
        self._trouble = 0.0
        self._took = [0] * RECENT
        self._n_took = 0
        self._skipped = 0
        self._p99 = 0

    @property
    def p99_ns(self) -> int:
        """Of its recent answers; 0 before the first."""
        return self._p99

    @property
    def known(self) -> bool:
        """It has answered before."""
        return self._n_took > 0

    def note(self, took_ns: int) -> None:
        """An answer took so long."""
        self._took[self._n_took % RECENT] = took_ns
        self._n_took += 1
        if self._n_took <= RECENT or self._n_took % 16 == 0 or took_ns > self._p99:
            known = sorted(self._took[: min(self._n_took, RECENT)])
            self._p99 = known[int(0.99 * len(known))]

    def judge(self, *, ok: bool, shadow: bool) -> None:
        """It answered, or did not. A drill decides at once; of calls, some in a row do, because one may ask too much."""
        if shadow or (not ok and self.exercised_ns is None):
            self._trouble = 0.0 if ok else 1.0
        else:
            self._trouble += (float(not ok) - self._trouble) / 4
        if self._trouble > FAILING_ABOVE:
            self.failing = True
        elif self._trouble < WELL_BELOW:
            self.failing = False

    def fits(self, left_ns: int) -> bool:
        """Whether it is worth beginning with so much time left."""
        if left_ns >= (self._p99 if self.known else self.max_ns):
            self._skipped = 0
            return True
        self._skipped += 1
        return self._skipped % RETRY_SKIPPED == 0

    def allowed(self, answer: Answer) -> Answer | None:
        """The answer as this rung may give it; None where it may not."""
        if isinstance(answer, Decision):
            if not math.isfinite(answer.score):
                return None
            if self.decisions is not None and answer.action not in self.decisions:
                if self.review is None or self.review not in self.decisions:
                    return None
                answer = msgspec.structs.replace(answer, action=self.review)
        return answer if answer.rung == self.number else msgspec.structs.replace(answer, rung=self.number)

    def state(self, now_ns: int) -> str:
        """As `RungHealth.state` says it."""
        if self.answer is None:
            return "absent"
        last = self.began_ns if self.exercised_ns is None else self.exercised_ns
        if now_ns - last > COLD_NS:
            return "cold"
        return "failing" if self.failing else "untried" if self.exercised_ns is None else "ready"


class Tells(Protocol):
    """Who makes events of what happens here. Never raises."""

    def answered(self, call: Call, answer: Answer, took_ns: int, why: str) -> None:
        """A rung answered; `why` is the class name of the error that the release failed with."""
        ...

    def failed(self, call: Call, error: ServingError, took_ns: int) -> None:
        """Nobody answered."""
        ...

    def changed(self, part: str, before: str, after: str, why: str) -> None:
        """A rung is in another state."""
        ...


class Ladder:
    """The rungs below a release.

    Args:
        steps: best first.
        tells: hears of answers, failures and changes; None where nobody listens.

    Attributes:
        present: some rung is there. waits: some rung may wait for others.
        concerned: there is a rung, or somebody who hears of failures.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        *,
        clock: Clock,
        tells: Tells | None = None,
    ) -> None:
        self.steps = tuple(steps)
        self.clock = clock
        self._tells = tells
        there = [step for step in self.steps if step.answer is not None]
        self.present = bool(there)
        self.concerned = self.present or tells is not None
        self.waits = any(step.waits for step in there)
        self.unanswered = 0
        self._lock = threading.RLock()  # a signal's handler may call a scorer, too
        for step in self.steps:
            step.began_ns = clock.monotonic_ns()
        begin_again_in_children(self)

    def begin_in_child(self) -> None:
        """A forked child counts for itself, and nobody is inside."""
        self._lock = threading.RLock()
        self.unanswered = 0
        for step in self.steps:
            step.forget(self.clock.monotonic_ns())
            step.told = step.state(step.began_ns)

    # ---- the walk ----------------------------------------------------------------------------------------------------

    def answer(self, call: Call, error: ServingError) -> Answer:
        """What the best rung that can gives, after the release failed with `error`.

        Raises: ServingError when none can; CallerError when the call's bytes turn out to be no request.
        """
        if error.counted:
            call.counted = True
        if not self.present or not self._descends(call, error):
            self.failed(call, error)
            raise error
        if call.opens is not None:
            call.opens(call)
            call.opens = None
        why = type(error).__name__
        tried: list[tuple[str, str]] = []
        last: Exception = error
        for step in self.steps:
            now = self.clock.monotonic_ns()
            if now >= call.end_ns:
                raise self._over(call, tried, last)
            refusal = self._refusal(step, call.end_ns - now, error)
            if refusal is not None:
                tried.append((step.kind, refusal))
                continue
            end_ns = call.end_ns if step.max_ns == 0 else min(call.end_ns, now + step.max_ns)
            try:
                made = self._try(step, call, now, end_ns)
            except CallersOwn as exc:
                raise exc.error from None
            except Exception as exc:  # noqa: BLE001 - whatever a rung breaks of, the next one is there for it
                last = exc
                tried.append((step.kind, type(exc).__name__))
                call.counted = call.counted or getattr(exc, "counted", False)
                continue
            if made is None:
                tried.append((step.kind, "knows nothing of it"))
                continue
            now = self.clock.monotonic_ns()
            if now > call.end_ns:
                raise self._over(call, [*tried, (step.kind, "late")], last, late=True)
            if self._tells is not None:
                self._tells.answered(call, made, now - call.began_ns, why)
            return made
        if isinstance(error, OverloadedError):
            self.failed(call, error)
            raise error
        tried.insert(0, ("release", why))
        found = Unavailable(f"no rung could answer: {_way(tried)}")
        found.tried = tuple(tried)
        found.counted = call.counted
        self.failed(call, found)
        raise found from (error if last is error else last)

    def _descends(self, call: Call, error: ServingError) -> bool:
        """Whether anybody below is asked at all."""
        if isinstance(error, OverloadedError) and call.priority != "critical":
            return False
        return not getattr(error, "late", False) and self.clock.monotonic_ns() < call.end_ns

    def _refusal(self, step: Step, left_ns: int, error: ServingError) -> str | None:
        """Why a rung is passed over; None: it was entered, and has to be left."""
        if step.answer is None:
            return "absent"
        if step.costs_as_release and isinstance(error, OverloadedError):
            return "costs as much"
        with self._lock:
            if not step.fits(left_ns):
                step.refused += 1
                return "too slow for what is left"
            if step.in_flight >= step.max_concurrency:
                step.refused += 1
                return "full"
            step.in_flight += 1
        return None

    def _try(self, step: Step, call: Call, began_ns: int, end_ns: int) -> Answer | None:
        """Ask a rung that was entered, leave it, and keep what is learned. Raises: whatever it does."""
        assert step.answer is not None
        made: Answer | None = None
        is_well = False
        try:
            given = step.answer(call, end_ns)
            if given is not None:
                made = step.allowed(given)
                if made is None:
                    raise Unavailable(f"the {step.kind} rung may not give what it would")
            is_well = True
        except CallersOwn:
            is_well = True
            raise
        finally:
            now = self.clock.monotonic_ns()
            answered = made is not None and now <= call.end_ns
            with self._lock:
                step.in_flight = max(0, step.in_flight - 1)
                self._learn(step, now - began_ns, now, ok=is_well, answered=answered, shadow=call.shadow)
            self._look(step, now)
        return made

    def _learn(
        self, step: Step, took_ns: int, now_ns: int, *, ok: bool, answered: bool, shadow: bool
    ) -> None:
        # A failure that came quickly, such as a breaker's, says nothing of how long answers take; one that took long does.
        if ok or (step.known and took_ns > step.p99_ns):
            step.note(took_ns)
        step.judge(ok=ok, shadow=shadow)
        if ok:
            step.exercised_ns = now_ns
        if shadow:
            step.drills += 1
            step.failed_drills += not ok
        else:
            step.answers += answered
            step.failures += not ok

    # ---- drills --------------------------------------------------------------------------------------------------------

    def drill(self, step: Step, call: Call) -> bool | None:
        """Let a rung answer a copy of a call in the shadow. True: it can; None: it was full, or is not there."""
        now = self.clock.monotonic_ns()
        with self._lock:
            if step.answer is None or step.in_flight >= step.max_concurrency:
                return None
            step.in_flight += 1
        end_ns = call.end_ns if step.max_ns == 0 else min(call.end_ns, now + step.max_ns)
        try:
            self._try(step, call, now, end_ns)
        except Exception:  # noqa: BLE001 - counted; whoever needs the rung will see the same
            return False
        return True

    # ---- what is told --------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Tell of rungs that have changed their state, such as those that nobody has exercised for a day."""
        now = self.clock.monotonic_ns()
        for step in self.steps:
            self._look(step, now)

    def report(self) -> tuple[RungHealth, ...]:
        """How each rung is now."""
        self.look()
        now = self.clock.monotonic_ns()
        return tuple(
            RungHealth(
                kind=step.kind,
                rung=step.number,
                state=step.state(now),
                answers=step.answers,
                failures=step.failures,
                refused=step.refused,
                drills=step.drills,
                failed_drills=step.failed_drills,
                exercised_s=None if step.exercised_ns is None else (now - step.exercised_ns) / 1e9,
                p99_ms=step.p99_ns / 1e6,
            )
            for step in self.steps
        )

    def _look(self, step: Step, now_ns: int) -> None:
        with self._lock:
            before, after = step.told, step.state(now_ns)
            step.told = after
        if before != after and self._tells is not None:
            self._tells.changed(f"rung {step.kind}", before, after, _WHY.get(after, ""))

    def _over(
        self, call: Call, tried: list[tuple[str, str]], last: Exception, *, late: bool = False
    ) -> DeadlineExceededError:
        """The deadline passed on the way down."""
        way = f"; tried {_way(tried)}" if tried else ""
        found = DeadlineExceededError(f"the deadline passed before a rung of the ladder could answer{way}")
        found.late = late
        found.counted = call.counted
        found.__cause__ = last
        self.failed(call, found)
        return found

    def failed(self, call: Call, error: ServingError) -> None:
        """Nobody answered. What was shed is counted by who shed it, and there is no time for an event then."""
        if isinstance(error, OverloadedError):
            return
        with self._lock:
            self.unanswered += 1
        if self._tells is not None:
            self._tells.failed(call, error, self.clock.monotonic_ns() - call.began_ns)


def _way(tried: list[tuple[str, str]]) -> str:
    return "; ".join(f"{kind}: {why}" for kind, why in tried)
