"""Remote: a model on one or several model servers, asked so that its trouble never becomes ours.

Rules:
  * One deadline for everything: choosing, waiting, all attempts. What comes later is dropped.
  * Each endpoint has a circuit breaker of its own. Calls go round the endpoints whose breakers let them.
  * At most `max_concurrency` calls at once; one more is refused at once (kind "busy"): the next rung takes over.
  * A failed attempt may be made once more, or a slow one be raced by a second: never both for one call, each within a budget
    (retries 10 % of calls and one a second, hedges 5 %). Calls in the shadow get neither.
  * Every reply is checked like an input, whoever gave it.
  * Safe for many threads. A forked child begins with nothing: no connections, closed breakers, full budgets, other chances.
    Breakers are not shared between processes: N workers probe N times.
Deciding is pure and elsewhere: breaker.py, budget.py, retries.py, hedge.py, outcome.py.
"""

from __future__ import annotations

import os
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from numpy.typing import NDArray

from retailinfer.clock import Clock, SystemClock
from retailinfer.errors import ConfigError, DeadlineExceededError, RemoteError, clip
from retailinfer.life import begin_again_in_children
from retailinfer.resilience.breaker import Breaker, Move, Outcome, State
from retailinfer.resilience.budget import Budget, Throttle
from retailinfer.resilience.hedge import hedge_delay_ns, may_hedge
from retailinfer.resilience.latency import Latency
from retailinfer.resilience.outcome import KINDS, outcome_of
from retailinfer.resilience.remote import Backend, Cancel
from retailinfer.resilience.remote.endpoint import parse_url
from retailinfer.resilience.remote.race import Arrays, Call, Race
from retailinfer.resilience.remote.reports import EndpointReport, RemoteReport
from retailinfer.resilience.remote.schema import compared
from retailinfer.resilience.remote.tensors import TensorSpec, check_reply
from retailinfer.resilience.remote.workers import Workers
from retailinfer.resilience.retries import retry_wait_ns

__all__ = ["Remote"]

OnChange: TypeAlias = Callable[[str, str, str, str], None]

_NORMAL_NS = 10_000_000_000  # without an answer for so long nobody knows what is normal


class _Target:
    """One endpoint and what is known of it. Changed under the lock of its Remote."""

    def __init__(self, backend: Any, name: str) -> None:
        self.backend = backend
        self.name = name
        self.cancels = _takes_cancel(backend)
        self.breaker: Breaker
        self.latency = Latency()
        self.answered_ns = 0  # the last answer
        self.attempts = 0
        self.failures: Counter[str] = Counter()

    def starves(self, now_ns: int, end_ns: int) -> bool:
        """Whether less time is left than calls to it normally take. What was normal is forgotten after a while without one."""
        normal_ns = self.latency.p99_ns
        return (
            normal_ns is not None and end_ns - now_ns < normal_ns and now_ns - self.answered_ns < _NORMAL_NS
        )


class Remote:
    """A model behind model servers.

    Args:
        endpoints: URLs (`http://`, `https://`, `grpc://`, `grpcs://`) or back ends of your own (`ri.Backend`), one or several.
        model: its name on the servers; part of every answer's release as `remote:<model>`. Needed for URLs.
        version: of the model; None = what the server takes.
        timeout_ms: of one call in all, where the deadline leaves more.
        retries: 1 or 0. hedge: True races a slow attempt with one at another endpoint; "same" also at the same one.
        max_concurrency: calls at once.
        slow_ms: an answer that took longer counts as slow for the breaker; None: nine tenths of `timeout_ms`.
        probes: attempts at once while a breaker is half open; 1 where more than four processes ask the same endpoint.
        headers: for HTTP, or metadata for gRPC, such as a token. ca_certs: file of who is trusted, instead of the system's.
        client_cert: files of a certificate and its key. max_reply_bytes: of one answer.
        binary: whether servers over HTTP take tensors as bytes; None: each is asked once.
        clock, chance, sleep: for simulations: what time it is, where chance comes from, how to wait (seconds).

    Raises: ConfigError.
    """

    def __init__(
        self,
        endpoints: str | Backend | Sequence[str | Backend],
        *,
        model: str | None = None,
        version: str | None = None,
        timeout_ms: float = 50.0,
        retries: int = 1,
        hedge: bool | Literal["same"] = False,
        max_concurrency: int = 10,
        slow_ms: float | None = None,
        probes: int = 3,
        headers: Mapping[str, str] | None = None,
        ca_certs: str | None = None,
        client_cert: tuple[str, str] | None = None,
        max_reply_bytes: int = 16 << 20,
        binary: bool | None = None,
        clock: Clock | None = None,
        chance: random.Random | None = None,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        _check_settings(timeout_ms, retries, hedge, max_concurrency, slow_ms, max_reply_bytes)
        _check_headers(headers or {})
        given = (
            [endpoints] if isinstance(endpoints, str) or not isinstance(endpoints, Sequence) else endpoints
        )
        settings: dict[str, Any] = {
            "version": version, "headers": headers, "ca_certs": ca_certs, "client_cert": client_cert,
            "max_reply_bytes": max_reply_bytes,
        }  # fmt: skip
        self._targets = [_target(one, model, binary, settings) for one in given]
        if not self._targets:
            raise ConfigError("Expected at least one endpoint of a model server, got none")
        if hedge is True and len(self._targets) < 2:
            raise ConfigError(
                "Expected two endpoints to hedge between, got one",
                hint='hedge="same" asks the same one twice',
            )
        self.model = model or self._targets[0].name
        self._timeout_ns = int(timeout_ms * 1e6)
        self._slow_ns = int((0.9 * timeout_ms if slow_ms is None else slow_ms) * 1e6)
        self._retries = 0 if hedge else retries  # never both for one call
        self._hedge = hedge
        self._most = max_concurrency
        self._probes = probes
        self._clock: Clock = clock or SystemClock()
        self._given_chance = chance
        self._given_sleep = sleep
        self._declared: dict[str, TensorSpec] = {}
        self._watchers: tuple[OnChange, ...] = ()
        self._forced: dict[str, State] = {}
        self._begin(chance or random.Random())
        begin_again_in_children(self)

    def _begin(self, chance: random.Random) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._never = threading.Event()  # its `wait` sleeps, and lets greenlets and signals through
        self._random = chance
        now_ns = self._clock.monotonic_ns()
        for target in self._targets:
            target.breaker = Breaker(chance=chance, now_ns=now_ns, probes=self._probes, slow_ns=self._slow_ns)
            target.latency, target.attempts, target.failures = Latency(), 0, Counter()
            forced = self._forced.get(target.name)
            if forced is not None:  # an operator's word holds in children too
                _operate(target.breaker, forced, now_ns)
                target.breaker.take_moves()
        self._retry_budget = Budget(share=0.1, per_second=1.0, now_ns=now_ns)
        self._hedge_budget = Budget(share=0.05, per_second=0.0, now_ns=now_ns)
        self._throttle = Throttle()
        self._workers: Workers | None = None
        self._turn = 0
        self._in_flight = 0
        self._n_calls = self._n_answers = self._n_busy = self._n_refused = self._n_retries = (
            self._n_hedges
        ) = 0

    def begin_in_child(self) -> None:
        """Forget what was the parent's. Connections are dropped without a word to the other side."""
        self._begin(random.Random())
        for target in self._targets:
            begin = getattr(target.backend, "begin_in_child", None)
            if callable(begin):
                begin()

    def close(self) -> None:
        """Close connections that are idle. The remote may be used again."""
        for target in self._targets:
            close = getattr(target.backend, "close", None)
            if callable(close):
                close()

    def __repr__(self) -> str:
        return f"<Remote {self.model}: {', '.join(target.name for target in self._targets)}>"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            "a remote cannot be pickled or copied: it holds connections, locks and perhaps a password"
        )

    # --- asking -----------------------------------------------------------------------------------------------------

    def infer(
        self,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Sequence[str],
        *,
        end_ns: int,
        clock: Clock | None = None,
        shadow: bool = False,
        shedding: bool = False,
    ) -> Arrays:
        """Run the model on rows.

        Args:
            inputs: by name, the first dimension being rows. outputs: names of what is wanted.
            end_ns: when the answer is worth nothing any more, of the monotonic clock.
            clock: that `end_ns` is read from; None: this remote's own.
            shadow: nobody waits for the answer: one attempt only.
            shedding: this process is refusing calls: no second attempt beside a first.
        Returns: the outputs, finite, with as many rows as went in.
        Raises: DeadlineExceededError if no time is left; RemoteError with its kind for all else.
        """
        if self._pid != os.getpid():  # a fork that told nobody
            self.begin_in_child()
        clock = clock or self._clock
        now_ns = clock.monotonic_ns()
        if end_ns <= now_ns:
            raise DeadlineExceededError(f"no time is left to ask the remote model {clip(self.model)}")
        end_ns = min(end_ns, now_ns + self._timeout_ns)
        call = Call(self._leave, inputs, outputs, end_ns, clock)
        with self._lock:
            self._n_calls += 1
            if self._in_flight >= self._most:
                self._n_busy += 1
                raise RemoteError(f"{self._most} calls to the remote model are under way", kind="busy")
            self._in_flight += 1
            self._retry_budget.deposit(now_ns)
            self._hedge_budget.deposit(now_ns)
        try:
            if self._hedge and not shadow:
                reply = self._race(call, shedding)
            else:
                reply = self._in_turn(call, 0 if shadow else self._retries)
        except BaseException:
            call.release()
            raise
        call.release()
        with self._lock:
            self._n_answers += 1
        return reply

    def _choose(self, call: Call, now_ns: int, other_than: _Target | None) -> tuple[_Target, int] | None:
        """An endpoint whose breaker lets a call through, and its permit; the one just tried comes last."""
        self._turn += 1
        n = len(self._targets)
        order = [self._targets[(self._turn + i) % n] for i in range(n)]
        if other_than is not None and n > 1:
            order.sort(key=lambda target: target is other_than)
        for target in order:
            breaker = target.breaker
            if breaker.state in (State.OPEN, State.HALF_OPEN) and target.starves(now_ns, call.end_ns):
                continue  # as a probe it would prove nothing
            permit = breaker.standing_permit
            if permit is None:
                with self._lock:
                    permit = breaker.admit(now_ns, call.end_ns)
                    moves = breaker.take_moves()
                self._tell(target, moves)
            if permit is not None:
                return target, permit
        return None

    def _refuse(self) -> RemoteError:
        with self._lock:
            self._n_refused += 1
        return RemoteError(
            f"no endpoint of the remote model {clip(self.model)} lets a call through", kind="open"
        )

    def _in_turn(self, call: Call, retries: int) -> Arrays:
        """One attempt in this thread, and another if it may be."""
        chosen = self._choose(call, call.clock.monotonic_ns(), None)
        if chosen is None:
            raise self._refuse()
        n_retries = 0
        while True:
            target, permit = chosen
            try:
                return self._attempt(call, target, permit, None)
            except RemoteError as exc:
                now_ns = call.clock.monotonic_ns()
                with self._lock:
                    wait_ns = retry_wait_ns(
                        exc, n_retries=n_retries, most=retries, left_ns=call.end_ns - now_ns,
                        normal_ns=target.latency.p50_ns or 0, now_ns=now_ns, budget=self._retry_budget, chance=self._random,
                    )  # fmt: skip
                if wait_ns is None:
                    raise
                if wait_ns:
                    self._sleep(wait_ns / 1e9)
                chosen = self._choose(call, call.clock.monotonic_ns(), target)
                if chosen is None:
                    raise
                n_retries += 1
                with self._lock:
                    self._n_retries += 1

    def _sleep(self, s: float) -> None:
        if self._given_sleep is None:
            self._never.wait(s)
        else:
            self._given_sleep(s)

    def _attempt(self, call: Call, target: _Target, permit: int, cancel: Cancel | None) -> Arrays:
        """Ask one endpoint, and tell its breaker what came of it."""
        began_ns = call.clock.monotonic_ns()
        starved = target.starves(began_ns, call.end_ns)
        outcome, kind = Outcome.IGNORED, ""  # of whoever is killed here: a greenlet, a signal's exception
        try:
            reply = self._ask(call, target, call.end_ns - began_ns, cancel)
            outcome = Outcome.SUCCESS
        except RemoteError as exc:
            kind = "cancelled" if cancel is not None and cancel.is_set else exc.kind
            if kind == "connect" and call.clock.monotonic_ns() < call.end_ns - (call.end_ns - began_ns) // 10:
                starved = False  # refused, and not for want of time
            outcome = outcome_of(kind, starved=starved)
            raise
        finally:
            self._note(target, permit, outcome, kind, call.clock.monotonic_ns(), began_ns)
        return reply

    def _ask(self, call: Call, target: _Target, left_ns: int, cancel: Cancel | None) -> Arrays:
        """What the back end says, checked and in time. Raises: RemoteError of a known kind, whatever the back end raises."""
        if left_ns <= 0:
            raise RemoteError(f"no time was left to ask {target.name}", kind="timeout")
        more = {"cancel": cancel} if cancel is not None and target.cancels else {}
        try:
            reply = target.backend.infer(call.inputs, call.outputs, timeout_s=left_ns / 1e9, **more)
        except RemoteError as exc:
            if exc.kind in KINDS:
                raise
            raise RemoteError(f"the back end {target.name} failed", kind="failed") from exc
        except Exception as exc:
            raise RemoteError(
                f"the back end {target.name} raised {type(exc).__name__}", kind="failed"
            ) from exc
        checked = check_reply(reply, call.outputs, n_rows=call.n_rows, declared=self._declared)
        if call.clock.monotonic_ns() > call.end_ns:
            raise RemoteError(f"{target.name} answered after the time given", kind="timeout")
        return checked

    def _note(
        self, target: _Target, permit: int, outcome: Outcome, kind: str, now_ns: int, began_ns: int
    ) -> None:
        took_ns = now_ns - began_ns
        with self._lock:
            target.attempts += 1
            target.breaker.record(permit, outcome, now_ns, took_ns)
            if outcome is Outcome.SUCCESS:
                target.latency.note(took_ns)
                target.answered_ns = now_ns
                self._throttle.succeeded()
            elif kind:
                target.failures[kind] += 1
                if outcome is not Outcome.IGNORED:
                    self._throttle.failed()
            moves = target.breaker.take_moves()
            if any(move.after is State.OPEN for move in moves):
                target.latency.forget()  # what was normal before says nothing about a probe's time
        self._tell(target, moves)

    # --- two attempts beside each other -----------------------------------------------------------------------------

    def _race(self, call: Call, shedding: bool) -> Arrays:
        """One attempt on a thread of its own, and a second one beside it when it is slow or has failed."""
        now_ns = call.clock.monotonic_ns()
        chosen = self._choose(call, now_ns, None)
        if chosen is None:
            raise self._refuse()
        first = chosen[0]
        race = Race(call)
        self._enter(race, *chosen)
        with self._lock:
            delay_ns = hedge_delay_ns(first.latency)
        # Without a delay too little is known to call an attempt slow; that it failed is enough.
        left_ns = call.end_ns - now_ns
        race.wait(left_ns if delay_ns is None else min(delay_ns, left_ns))
        if race.wants_another():
            self._hedge_with(race, first, shedding)
        race.decide()
        return race.result()

    def _hedge_with(self, race: Race, first: _Target, shedding: bool) -> None:
        """Begin the second attempt, if it may be."""
        call, now_ns = race.call, race.call.clock.monotonic_ns()
        n = len(self._targets)
        begin = self._targets.index(first)
        others = (
            [self._targets[(begin + i) % n] for i in range(1, n)] if self._hedge is True else [*self._targets]
        )
        for target in others:
            with self._lock:
                allowed = may_hedge(
                    breaker=target.breaker.state, throttle=self._throttle, shedding=shedding, failed=race.failed,
                    left_ns=call.end_ns - now_ns, latency=target.latency, budget=self._hedge_budget, now_ns=now_ns,
                )  # fmt: skip
                permit = target.breaker.admit(now_ns, call.end_ns) if allowed else None
                self._n_hedges += permit is not None
            if permit is not None:
                self._enter(race, target, permit)
                return

    def _enter(self, race: Race, target: _Target, permit: int) -> None:
        if self._workers is None:
            with self._lock:
                self._workers = self._workers or Workers(2 * self._most)
        cancel = race.enter()

        def run() -> None:
            try:
                race.leave(cancel, self._attempt(race.call, target, permit, cancel), None)
            except RemoteError as exc:
                race.leave(cancel, None, exc)
            except BaseException as exc:  # noqa: BLE001 - a thread has nobody to raise to
                race.leave(
                    cancel, None, RemoteError(f"{target.name} raised {type(exc).__name__}", kind="failed")
                )

        try:
            self._workers.run(run)
        except RuntimeError:  # no more threads can be had
            now_ns = race.call.clock.monotonic_ns()
            self._note(target, permit, Outcome.IGNORED, "", now_ns, now_ns)
            race.leave(cancel, None, RemoteError("no thread could be started for an attempt", kind="failed"))

    # --- what the model is ------------------------------------------------------------------------------------------

    def check(
        self,
        inputs: Mapping[str, tuple[Any, Sequence[int | None]]],
        outputs: Mapping[str, tuple[Any, Sequence[int | None]]],
        *,
        timeout_s: float = 5.0,
    ) -> None:
        """Compare what every endpoint says of its model with what will be sent and expected.

        Args:
            inputs, outputs: name -> (dtype, shape), a size None or -1 where any will do; there may be other outputs.
        From then on replies are held to what the endpoints declare. Back ends without `metadata(timeout_s=)` are passed over.

        Raises: SchemaMismatchError; RemoteError if an endpoint does not answer.
        """
        declared: dict[str, TensorSpec] = {}
        for target in self._targets:
            ask = getattr(target.backend, "metadata", None)
            if callable(ask):
                found = ask(timeout_s=timeout_s)
                declared |= compared(f"{clip(self.model)} on {target.name}", found, inputs, outputs)
        self._declared = declared

    # --- an operator, and who looks on ------------------------------------------------------------------------------

    def force_open(self, endpoint: str | None = None) -> None:
        """Make no calls to an endpoint (None: to any) until `resume`; holds in children forked later too."""
        self._operate(State.FORCED_OPEN, endpoint)

    def disable_breaker(self, endpoint: str | None = None) -> None:
        """Make every call to an endpoint (None: to all), whatever comes of it, until `resume`."""
        self._operate(State.DISABLED, endpoint)

    def resume(self, endpoint: str | None = None) -> None:
        """Let outcomes decide again, beginning with nothing counted."""
        self._operate(State.CLOSED, endpoint)

    def _operate(self, state: State, endpoint: str | None) -> None:
        chosen = [target for target in self._targets if endpoint in (None, target.name)]
        if not chosen:
            raise ConfigError(
                f"Expected one of {[target.name for target in self._targets]}, got {clip(endpoint)}"
            )
        for target in chosen:
            with self._lock:
                _operate(target.breaker, state, self._clock.monotonic_ns())
                moves = target.breaker.take_moves()
                if state is State.CLOSED:
                    self._forced.pop(target.name, None)
                else:
                    self._forced[target.name] = state
            self._tell(target, moves)

    def breaker_states(self) -> dict[str, str]:
        """Endpoint -> state of its breaker, such as "closed", "open", "half_open"."""
        return {target.name: target.breaker.state.value for target in self._targets}

    def watch(self, on_change: OnChange) -> None:
        """From now on `on_change(part, before, after, why)` hears of every change of a breaker."""
        self._watchers = (*self._watchers, on_change)

    def report(self) -> RemoteReport:
        """Counts since this process began."""
        with self._lock:
            return RemoteReport(
                model=self.model, calls=self._n_calls, answers=self._n_answers, busy=self._n_busy,
                refused=self._n_refused, retries=self._n_retries, hedges=self._n_hedges, in_flight=self._in_flight,
                endpoints=[
                    EndpointReport(
                        target.name, target.breaker.state.value, target.attempts, dict(target.failures),
                        _ms(target.latency.p50_ns), _ms(target.latency.p99_ns),
                    )
                    for target in self._targets
                ],
            )  # fmt: skip

    def _tell(self, target: _Target, moves: list[Move]) -> None:
        for move in moves:
            for watcher in self._watchers:
                watcher(f"breaker {target.name} {self.model}", move.before.value, move.after.value, move.why)

    def _leave(self) -> None:
        """A call and all its attempts are over."""
        with self._lock:
            self._in_flight -= 1


def _ms(ns: int | None) -> float | None:
    return None if ns is None else ns / 1e6


def _operate(breaker: Breaker, state: State, now_ns: int) -> None:
    if state is State.FORCED_OPEN:
        breaker.force_open(now_ns)
    elif state is State.DISABLED:
        breaker.disable(now_ns)
    else:
        breaker.resume(now_ns)


def _takes_cancel(backend: object) -> bool:
    """Our own back ends do. One of somebody else is asked for `infer` with what the Protocol says, and nothing more."""
    return getattr(backend, "takes_cancel", False) is True


def _target(given: object, model: str | None, binary: bool | None, settings: dict[str, Any]) -> _Target:
    if not isinstance(given, str):
        if not isinstance(given, Backend):
            raise ConfigError(
                f"Expected URLs of model servers, or back ends with a method infer, got `{type(given).__name__}`",
                hint="see retailinfer.Backend",
            )
        return _Target(given, str(getattr(given, "name", type(given).__name__)))
    endpoint = parse_url(given)
    if not isinstance(model, str) or not model:
        raise ConfigError("Expected the name that the model has on the server: model=")
    backend: Any
    try:
        if endpoint.kind == "http":
            from retailinfer.resilience.remote.http import HttpBackend  # noqa: PLC0415 - optional extra

            backend = HttpBackend(endpoint, model=model, binary=binary, **settings)
        else:
            from retailinfer.resilience.remote.grpc import GrpcBackend  # noqa: PLC0415 - optional extra

            backend = GrpcBackend(endpoint, model=model, **settings)
    except ImportError as exc:
        extra, package = ("remote", "urllib3") if endpoint.kind == "http" else ("grpc", "grpcio")
        raise ConfigError(
            f"{endpoint.kind} needs the package {package}", hint=f"pip install retailinfer[{extra}]"
        ) from exc
    return _Target(backend, endpoint.name)


def _check_headers(headers: Mapping[str, object]) -> None:
    """Here, and not where they are sent: a message from there would show the token. Raises: ConfigError."""
    for name, value in headers.items():
        if not isinstance(name, str) or re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) is None:
            raise ConfigError(f"Expected names of headers, got {clip(name)}")
        if isinstance(value, bytes) and name.lower().endswith("-bin"):  # gRPC's own kind
            continue
        if not isinstance(value, str) or re.fullmatch(r"[\t\x20-\x7e\x80-\xff]*", value) is None:
            raise ConfigError(
                f"Expected the header {clip(name)} as text of one line", hint="a token from a file: .strip()"
            )


def _check_settings(
    timeout_ms: object, retries: object, hedge: object, most: object, slow_ms: object, max_reply_bytes: object
) -> None:
    if not isinstance(timeout_ms, (int, float)) or not 0 < timeout_ms <= 3.6e6:
        raise ConfigError(f"Expected timeout_ms from above 0 to an hour, got {clip(timeout_ms)}")
    if retries not in (0, 1):
        raise ConfigError(f"Expected retries=0 or 1, got {clip(retries)}", hint="more make an outage worse")
    if hedge not in (False, True, "same"):
        raise ConfigError(f'Expected hedge=False, True or "same", got {clip(hedge)}')
    if not isinstance(most, int) or not 1 <= most <= 10_000:
        raise ConfigError(f"Expected max_concurrency from 1 to 10,000, got {clip(most)}")
    if slow_ms is not None and (not isinstance(slow_ms, (int, float)) or not slow_ms > 0):
        raise ConfigError(f"Expected slow_ms above 0, got {clip(slow_ms)}")
    if not isinstance(max_reply_bytes, int) or not 1 <= max_reply_bytes <= 1 << 31:
        raise ConfigError(f"Expected max_reply_bytes from 1 to 2 GB, got {clip(max_reply_bytes)}")
