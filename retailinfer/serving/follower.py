"""Following a registry: what its pointer names is loaded beside what answers, replayed, and published.

Rules:
  * One round: look at the pointer, decide (release/following.py), do one thing. Rounds come from a thread of the follower's
    own, `poll_s` apart with jitter, and from `refresh()` in the thread of who calls it; one at a time.
  * Nothing that goes wrong in a round ends the thread or touches what answers: it is told to hooks, shown by `following` and
    `health()`, and tried again after a pause.
  * What was accepted is remembered last: after the release has answered its golden rows and was published.
  * The thread holds neither the follower nor its door while it sleeps: a door that is dropped is gone, and its thread ends.
  * A forked child follows by a thread of its own. No fork happens in the middle of a round, within `FORK_S`.
  * The door's rollback takes no lock of this file: it leaves a note, which the next round reads and writes to disk.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict, TypeVar

from retailinfer.contracts import Following
from retailinfer.errors import BundleError, ConfigError, IntegrityError, RegistryError, RetailInferError, clip
from retailinfer.life import begin_again_in_children, end_with_process, pause_for_forks
from retailinfer.release.following import Failure, LocalRollback, Step, decide, failed_again, rollback_holds
from retailinfer.release.last_good import STATE, LastGood, host_turn
from retailinfer.release.registry import InForce, Registry
from retailinfer.release.registry_rules import roles_of
from retailinfer.release.statements import moment_text
from retailinfer.serving.thresholds import Thresholds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from retailinfer.clock import Clock
    from retailinfer.pipeline import Pipeline
    from retailinfer.release.overrides import Moved
    from retailinfer.release.statements import Pointer, ReleaseStatement
    from retailinfer.release.trust_files import Trust
    from retailinfer.serving.door import Door
    from retailinfer.serving.live import Live
    from retailinfer.store.store import Store

__all__ = ["Follower", "Settings", "follow"]

D = TypeVar("D", bound="Door")

FORK_S = END_S = 0.8  # a worker is gone a second after it was asked to be
TURN_S = 120.0  # a process waits for the loads of others no longer
LEAST_POLL_S, MOST_POLL_S = 0.01, 1e6  # what a thread can wait is bounded, too
MOST_WHY = 4096  # characters, as in a pointer

State = Literal["ok", "unreachable", "refused", "failed"]


class Settings(TypedDict, total=False):
    """What `follow` hands on to the loading of every release, as `load` takes it."""

    store: Store | None
    backend: Literal["auto", "c", "python"]
    max_bytes: int
    max_depth: int
    hold_gil_below_us: float
    max_in_flight: int | None
    max_waiting: int
    contract: Mapping[str, Any] | str | os.PathLike[str] | None


class Incoming(NamedTuple):
    """Files of a release to load, and what is known of them.

    Attributes:
        expected: digest that a pointer names; None where an operator decided, so that the host's own memory has to allow it.
        trust: whose signatures count.
    """

    files: dict[str, bytes]
    expected: str | None
    trust: Trust | Literal["unsigned"]


class _Known(NamedTuple):
    """Of a loaded release. statement: that was signed of it; None where nobody asks."""

    version: str
    files: Mapping[str, bytes]
    statement: ReleaseStatement | None


class Follower:
    """See the rules above. Made by `Scorer.follow` and `Ranker.follow`.

    Args:
        registry, name: what is followed.
        last_good: folder for what is started from while the registry is out of reach; None = nothing is kept.
        poll_s: between two looks.
        on_revoked: "serve" = a release that is revoked while it runs goes on; "degrade" = the rungs below it answer.
    Raises: ConfigError.
    """

    def __init__(
        self,
        registry: Registry,
        name: str,
        *,
        last_good: str | os.PathLike[str] | None,
        poll_s: float,
        on_revoked: Literal["serve", "degrade"],
    ) -> None:
        if (
            not isinstance(poll_s, (int, float))
            or isinstance(poll_s, bool)
            or not LEAST_POLL_S <= poll_s <= MOST_POLL_S
        ):
            raise ConfigError(f"Expected poll_s from {LEAST_POLL_S} to {MOST_POLL_S:.0f}, got {clip(poll_s)}")
        if on_revoked not in ("serve", "degrade"):
            raise ConfigError(f'Expected on_revoked "serve" or "degrade", got {clip(on_revoked)}')
        self._registry = registry
        self._name = name
        self._poll_s = float(poll_s)
        self._on_revoked = on_revoked
        self._clock: Clock = registry.clock
        self._last_good = (
            None if last_good is None else LastGood(last_good, environment=registry.environment, name=name)
        )
        if self._last_good is not None and registry.trust is not None:
            registry.trust.remember_in(self._last_good.root / STATE)
        self._thresholds = Thresholds(registry, name, self._last_good)
        self._door: Callable[[], Door | None] = lambda: None
        self._followed: InForce | None = None
        self._shown: Pointer | None = None  # the newest pointer that may be followed
        self._rollback: LocalRollback | None = None
        self._unwritten = False  # the rollback, to disk
        self._only_here = False  # it is about a release that other processes cannot find
        # Of the door: left, to, why. The last one counts, and threads may meet here.
        self._notes: deque[tuple[str, str, str]] = deque(maxlen=1)
        self._failures: dict[str, Failure] = {}
        self._known: dict[str, _Known] = {}  # of what answers, and of what it may go back to
        self._unsettled: str | None = None  # digest of what was accepted, and is not remembered yet
        self._state: State = "ok"
        self._why = ""
        self._disk = self._unlisted = ""  # what is wrong with the folder, and with the list of revocations
        self._revoked: str | None = None  # what answers and is revoked
        self._tried_ns: int | None = None
        self._ok_ns: int | None = None
        self._ended = False
        self._anew()

    def _anew(self) -> None:
        self._pid = os.getpid()
        self._random = random.Random(os.urandom(16))  # all of a host would look at the same moment
        self._round_lock = threading.RLock()
        self._in_round = False
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._pauser = 0

    # ---- the first release -------------------------------------------------------------------------------------------

    def open(self, build: Callable[[Incoming], Pipeline]) -> tuple[Pipeline, list[tuple[str, str, str, str]]]:
        """Load what should answer; what was loaded last, where that cannot be had.

        Args:
            build: verifies, loads and replays. Raises: as `Pipeline.load`.
        Returns: the pipeline, and (part, before, after, why) of what went wrong, for hooks that are not there yet.
        Raises: RegistryError when the registry is out of reach, or has promoted nothing, and nothing is kept here that may
            answer; BundleError when the champion cannot be loaded, and nothing is kept.
        """
        found, problem = self._first_look()
        step = decide(self._shown, running=None, rollback=self._rollback)
        with self._turn():
            if step.kind == "load" and step.digest is not None:
                try:
                    pipeline, files = self._built(step.digest, found, build)
                except Exception as exc:  # noqa: BLE001 - whatever it is, what was good yesterday may answer
                    problem = _as_ours(exc, problem)
                    self._fail(step.digest, exc)
                else:
                    self._opened(pipeline, files, found)
                    return pipeline.with_overrides(self._thresholds.log), self._problems()
            elif problem is None:
                problem = RegistryError(
                    f"`{self._name}` has no champion in {self._registry.environment}, says {self._registry!r}",
                    hint="is the registry there? promote a release; a service can follow from then on",
                )
                self._state, self._why = "unreachable", str(problem)
            for kept, found in self._kept():
                try:
                    pipeline = build(kept)
                except Exception as exc:  # noqa: BLE001 - as above
                    problem = _as_ours(exc, problem)
                    continue
                self._opened(pipeline, kept.files, found)
                return pipeline.with_overrides(self._thresholds.log), self._problems()
        raise problem

    def _first_look(self) -> tuple[InForce | None, RetailInferError | None]:
        """Pointer, thresholds, and an operator's rollback on this host; what is wrong where there is no pointer."""
        problem: RetailInferError | None = None
        self._look_at_revocations()
        try:
            found = self._registry.in_force(self._name)
        except (RegistryError, BundleError) as exc:
            found, problem = None, exc
            self._state, self._why = _state_of(exc), str(exc)
        else:
            self._ok_ns = self._clock.monotonic_ns()
        self._tried_ns = self._clock.monotonic_ns()
        self._shown = None if found is None else found.pointer
        self._thresholds.look(there=found is not None or isinstance(problem, BundleError))
        if self._last_good is not None:
            try:
                self._rollback = self._last_good.rollback()
            except (RegistryError, BundleError) as exc:
                self._disk = str(exc)
        if not rollback_holds(self._rollback, self._shown):
            self._rollback = None
        return found, problem

    def _kept(self) -> Iterator[tuple[Incoming, InForce]]:
        """What this host has loaded last, with the pointer that named it, verified again."""
        if self._last_good is None:
            return
        try:
            for one in self._last_good.kept():
                with contextlib.suppress(RegistryError, BundleError):
                    found = self._registry.opened(self._name, one.pointer, kept=True)
                    if found.pointer.champion != one.digest:
                        continue
                    files = self._last_good.files(one.digest)
                    if files is not None:
                        yield self._incoming(files, one.digest), found
        except (RegistryError, BundleError) as exc:
            self._disk = str(exc)

    def _opened(self, pipeline: Pipeline, files: Mapping[str, bytes], found: InForce | None) -> None:
        self._followed, self._unsettled = found, pipeline.manifest.digest
        self._know(pipeline, files)

    def _problems(self) -> list[tuple[str, str, str, str]]:
        found: list[tuple[str, str, str, str]] = []
        if self._state != "ok":
            found.append((f"follow {self._name}", "ok", self._state, self._why))
        if self._disk:
            found.append((f"last good {self._name}", "kept", "not kept", self._disk))
        return found

    # ---- the thread --------------------------------------------------------------------------------------------------

    def start(self, door: Door) -> None:
        """Follow from now on."""
        self._door = weakref.ref(door)
        self._settle()
        self._move_thresholds(door)
        begin_again_in_children(self)
        end_with_process(self)
        pause_for_forks(self)
        self._start()

    def _start(self) -> None:
        wake = self._wake

        def gone(_: weakref.ref[Follower]) -> None:
            wake.set()

        thread = threading.Thread(
            target=_run,
            args=(weakref.ref(self, gone), wake, self._stop),
            name=f"retailinfer-follow-{self._name}",
            daemon=True,
        )
        try:
            thread.start()
        except RuntimeError as exc:  # no more threads, or the process is ending: refresh() works still
            self._move("failed", f"no thread to follow with: {exc}")
        else:
            self._thread = thread

    def pause_s(self) -> float:
        """Until the next look: a quarter more or less than asked for."""
        return self._poll_s * (0.75 + 0.5 * self._random.random())

    def close(self) -> None:
        """End the thread; a round under way is waited for, but not long."""
        self._ended = True
        self._stop.set()
        self._wake.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread() and self._pid == os.getpid():
            thread.join(END_S)

    def end_with_process(self) -> None:
        """What life.py calls."""
        self.close()

    def begin_in_child(self) -> None:
        """What life.py calls: the parent's thread is not here."""
        self._anew()
        door = self._door()
        if not self._ended and door is not None:
            self._start()

    def before_fork(self) -> None:
        """What life.py calls: a round under way ends first."""
        if self._round_lock.acquire(timeout=FORK_S):
            self._pauser = threading.get_ident()

    def after_fork(self) -> None:
        """What life.py calls, in the parent."""
        if self._pauser == threading.get_ident():
            self._pauser = 0
            self._round_lock.release()

    # ---- one round ---------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Look now, in this thread; pauses after failures are over."""
        if self._pid != os.getpid():
            self.begin_in_child()  # a raw fork, which told nobody
        with self._round_lock:
            if not self._in_round:  # a hook of ours that asks again
                self._failures.clear()
                self.round()

    def round(self) -> None:
        """Look, decide, do. Raises nothing of ours: what went wrong is told."""
        with self._round_lock:
            door = self._door()
            if door is None or self._ended or self._in_round:
                return
            self._in_round = True
            try:
                self._look(door)
            except Exception as exc:  # noqa: BLE001 - the thread goes on, and answers do
                self._move("failed", f"{type(exc).__name__}: {exc}")
            finally:
                self._in_round = False

    def _look(self, door: Door) -> None:
        self._tried_ns = self._clock.monotonic_ns()
        self._look_at_revocations()
        self._take_note()
        self._settle()
        self._look_at_running(door)
        door._look_at_expiry()
        try:
            found = self._registry.in_force(self._name)
        except (RegistryError, BundleError) as exc:
            # a pointer that must not be followed says nothing of thresholds
            self._thresholds.look(there=isinstance(exc, BundleError))
            self._move_thresholds(door)
            self._stay_back(door)
            self._move(_state_of(exc), str(exc))
            return
        self._thresholds.look(there=found is not None)
        self._move_thresholds(door)
        followed = None if self._followed is None else self._followed.pointer
        before = self._found_in(door)
        resident = before.resident
        step = decide(
            None if found is None else found.pointer,
            running=before.digest,
            resident=None if resident is None else resident.digest,
            followed=followed,
            rollback=self._rollback,
            failures=self._failures,
            now_ns=self._clock.monotonic_ns(),
        )
        if step.kind == "refuse":
            self._stay_back(door)
            # One that shows nothing where something was is most likely not mounted.
            self._move("unreachable" if found is None else "refused", step.why)
            return
        self._ok_ns = self._tried_ns
        self._shown = None if found is None else found.pointer
        if self._rollback is not None and not step.rolled_back:
            self._end_rollback()
        self._do(door, step, found, before)
        self._move_thresholds(door)  # what was resident knows those of then

    def _found_in(self, door: Door) -> Live:
        """What answers, after what an operator decided about it was read."""
        live = door._live
        if self._notes:
            self._take_note()
        return live

    def _stay_back(self, door: Door) -> None:
        """An operator's rollback, of a process beside us too, holds where the registry says nothing that may be followed."""
        before, followed = self._found_in(door), None if self._followed is None else self._followed.pointer
        step = decide(
            followed,
            running=before.digest,
            resident=None if before.resident is None else before.resident.digest,
            followed=followed,
            rollback=self._rollback,
            failures=self._failures,
            now_ns=self._clock.monotonic_ns(),
        )
        if not step.rolled_back or step.digest is None or step.kind not in ("recall", "load"):
            return
        try:
            if step.kind == "recall":
                door._recall(before, why=step.why)
            else:
                self._replace(door, step.digest, None, step.why, before)
        except Exception as exc:  # noqa: BLE001 - what answers goes on, whatever it was
            self._fail(step.digest, exc)

    def _do(self, door: Door, step: Step, found: InForce | None, before: Live) -> None:
        """What was decided, about what answered then."""
        if step.kind == "wait":
            self._move("failed", self._why if self._state == "failed" else step.why)
            return
        if step.kind in ("recall", "load") and step.digest is not None:
            try:
                if step.kind == "recall":
                    moved = door._recall(before, why=step.why)
                else:
                    moved = self._replace(door, step.digest, found, step.why, before)
            except Exception as exc:  # noqa: BLE001 - what answers goes on, whatever it was
                self._fail(step.digest, exc)
                return
            if not moved:  # somebody decided here meanwhile: their word is the last one, until the next round
                return
        if step.kind != "stay" and found is not None:
            self._accept(door, found)
        self._forget_others(door._live)
        self._failures.clear()
        self._move("ok", step.why)

    def _replace(self, door: Door, digest: str, found: InForce | None, why: str, since: Live) -> bool:
        with self._turn():
            if self._stop.is_set():
                return False
            live, files = self._built(digest, found, door._prepare)
            if not door._replace(since, live, why=why):
                return False
        self._know(live.pipeline, files)
        self._forget_others(door._live)
        self._unsettled = digest
        return True

    def _built(
        self, digest: str, found: InForce | None, build: Callable[[Incoming], Any]
    ) -> tuple[Any, Mapping[str, bytes]]:
        """Load a release from this host's disk, else from the registry. Raises: what the latter does."""
        named = found is not None and found.pointer.champion == digest
        expected = digest if named else None
        if self._last_good is not None:
            with contextlib.suppress(RegistryError, BundleError):
                kept = self._last_good.files(digest)
                if kept is not None:
                    return _that_is(digest, build(self._incoming(kept, expected))), kept
        files = self._registry.read(digest, name=self._name)
        return _that_is(digest, build(self._incoming(files, expected))), files

    def _incoming(self, files: dict[str, bytes], expected: str | None) -> Incoming:
        trust = self._registry.trust
        return Incoming(files, expected, "unsigned" if trust is None else trust)

    def _accept(self, door: Door, found: InForce) -> None:
        """A pointer that what answers agrees with."""
        if self._followed is None or found.document != self._followed.document:
            self._followed = found
            self._unsettled = door._live.digest
        self._settle()

    def _turn(self) -> contextlib.AbstractContextManager[bool]:
        """One process of the host builds at a time; whoever waits too long goes on."""
        root = None if self._last_good is None else self._last_good.root
        return host_turn(root, most_s=TURN_S, wait=self._stop.wait, jitter=self._random.random)

    # ---- what an operator decided here ---------------------------------------------------------------------------------

    def decided_here(self, left: str, to: str, why: str) -> None:
        """The door goes back, or is given another release, whatever the pointer says. Called before that answers: a round that
        finds it there finds the note too. Takes no lock and touches no disk.
        """
        self._notes.append((left, to, why))

    def look_soon(self) -> None:
        """The next round comes now."""
        self._wake.set()

    def _take_note(self) -> None:
        """Make what an operator decided a rollback that wins over the pointer, here and in the processes beside us."""
        disk = self._last_good
        if disk is not None and not self._notes and not self._unwritten and not self._only_here:
            try:
                self._rollback = disk.rollback()
            except (RegistryError, BundleError) as exc:
                self._disk_says(exc)
        if self._notes:
            left, to, why = self._notes.pop()
            # Whatever it was given as: what cannot be written, or not be read again, would be lost at a restart.
            why = str(why).encode("utf-8", "replace").decode()[:MOST_WHY]
            pointer = None if self._followed is None else self._followed.pointer
            if pointer is not None and pointer.champion == to:
                self._rollback = None  # back at what the pointer wants
            else:
                epoch, seq = (0, 0) if pointer is None else (pointer.epoch, pointer.seq)
                at = moment_text(self._clock.wall_ns() / 1e9)
                self._rollback = LocalRollback(left=left, to=to, epoch=epoch, seq=seq, why=why, at=at)
            self._only_here = self._rollback is not None and to not in self._known  # `swap` brought it
            self._unwritten, self._unsettled = not self._only_here, to
        self._write_rollback()

    def _end_rollback(self) -> None:
        self._rollback, self._unwritten, self._only_here = None, not self._only_here, False
        self._write_rollback()

    def _write_rollback(self) -> None:
        if not self._unwritten:
            return
        try:
            if self._last_good is not None:
                self._last_good.set_rollback(self._rollback)
            self._unwritten = False
        except RegistryError as exc:
            self._disk_says(exc)

    # ---- what is kept --------------------------------------------------------------------------------------------------

    def _know(self, pipeline: Pipeline, files: Mapping[str, bytes]) -> None:
        """What keeping a release takes. The bytes are those that its pipeline holds anyway; the pipeline is not held here."""
        verdict, manifest = pipeline.bundle.verdict, pipeline.manifest
        self._known[manifest.digest] = _Known(
            manifest.version, files, None if verdict is None else verdict.statement
        )

    def _forget_others(self, live: Live) -> None:
        there = {live.digest, *(() if live.resident is None else (live.resident.digest,))}
        for digest in self._known.keys() - there:
            del self._known[digest]

    def _settle(self) -> None:
        """Remember what was accepted, and keep its files; once more in the next round, where the disk refused."""
        digest = self._unsettled
        if digest is None or digest not in self._known:
            self._unsettled = None
            return
        known, found, trust = self._known[digest], self._followed, self._registry.trust
        try:
            if trust is not None:
                pointer = None if found is None else found.verdict
                trust.remember(self._name, digest, pointer, statement=known.statement)
            if self._last_good is not None and found is not None and found.pointer.champion == digest:
                self._last_good.keep(
                    known.files,
                    digest=digest,
                    version=known.version,
                    pointer=found.document,
                    verified=moment_text(self._clock.wall_ns() / 1e9),
                )
        except (RegistryError, BundleError) as exc:
            self._disk_says(exc)
        else:
            self._unsettled = None
            self._disk_says(None)

    def _move_thresholds(self, door: Door) -> None:
        """What operators have moved holds from now on; then it is remembered."""
        door._adjust(self._thresholds.log)
        pipeline = door._live.pipeline
        self._thresholds.tell(pipeline.moved, pipeline.refused, self._tell)
        del pipeline  # a release that is let go of later is not held by a thread that sleeps
        try:
            settled = self._thresholds.settle()
        except (RegistryError, BundleError) as exc:
            self._disk_says(exc)
        else:
            if settled and self._unsettled is None and not self._unwritten:
                self._disk_says(None)

    def _disk_says(self, exc: RetailInferError | None) -> None:
        before, self._disk = self._disk, "" if exc is None else str(exc)
        if bool(before) != bool(self._disk):
            states = ("kept", "not kept") if self._disk else ("not kept", "kept")
            self._tell(f"last good {self._name}", *states, self._disk)

    # ---- what answers now ----------------------------------------------------------------------------------------------

    def _look_at_revocations(self) -> None:
        trust = self._registry.trust
        if trust is not None:
            try:
                trust.look_again()
            except (ConfigError, BundleError) as exc:
                self._unlisted = str(exc)
            else:
                self._unlisted = ""

    def _look_at_running(self, door: Door) -> None:
        """A release that is revoked while it answers is told of, and demoted where that was asked for."""
        trust, live = self._registry.trust, door._live
        digest = live.digest
        why = None if trust is None else trust.rules.revoked_because(digest)
        if (why is not None) != (self._revoked == digest):
            self._revoked = None if why is None else digest
            states = (live.release, "revoked") if why is not None else ("revoked", live.release)
            self._tell("release", *states, why or "it is on the list no more")
        if live.is_silenced or (why is not None and self._on_revoked == "degrade"):
            door._silence(live, None if why is None else f"{live.release} was revoked: {clip(why, 120)}")

    # ---- telling -------------------------------------------------------------------------------------------------------

    def _fail(self, digest: str, exc: Exception) -> None:
        """A release could not be loaded: not again before a pause is over."""
        first = digest not in self._failures
        self._failures[digest] = failed_again(
            self._failures.get(digest),
            now_ns=self._clock.monotonic_ns(),
            jitter=self._random.random(),
            pause_s=self._poll_s,
        )
        self._move("failed", f"{digest[:12]}: {type(exc).__name__}: {exc}", news=first)

    def _move(self, state: State, why: str, *, news: bool = False) -> None:
        before, self._state, self._why = self._state, state, "" if state == "ok" else why
        if state != before or news:
            self._tell(f"follow {self._name}", before, state, why)

    def _tell(self, part: str, before: str, after: str, why: str) -> None:
        door = self._door()
        if door is not None:
            door._tell_change(part, before, after, clip(why, 400)[1:-1])

    def report(self, *, running: str, moved: Sequence[Moved]) -> Following:
        """What is known, for people and probes."""
        now_ns = self._clock.monotonic_ns()
        pointer = self._shown
        step = decide(pointer, running=running, rollback=self._rollback)
        canary = None if pointer is None else pointer.canary
        return Following(
            name=self._name,
            environment=self._registry.environment,
            epoch=0 if pointer is None else pointer.epoch,
            seq=0 if pointer is None else pointer.seq,
            champion=None if pointer is None else pointer.champion,
            roles={str(role): digest for role, digest in roles_of(pointer).items()},
            share=None if canary is None else canary.share,
            held=None if pointer is None else pointer.hold,
            running=running,
            skew=step.digest is not None and step.digest != running,
            state=self._state,
            why=self._why or self._disk or self._unlisted or self._thresholds.why,
            polled_s=None if self._tried_ns is None else (now_ns - self._tried_ns) / 1e9,
            ok_s=None if self._ok_ns is None else (now_ns - self._ok_ns) / 1e9,
            rolled_back=None if self._rollback is None else self._rollback.why,
            revoked=self._revoked == running,
            moved=tuple(map(str, moved)),
            failures={digest: failure.n for digest, failure in list(self._failures.items())},
        )


def follow(
    make: Callable[..., D],
    registry: Registry | str | os.PathLike[str],
    name: str,
    *,
    trust: str | os.PathLike[str] | Trust | None,
    environment: str | None,
    storage_options: Mapping[str, Any] | None,
    last_good: str | os.PathLike[str] | None,
    poll_s: float,
    on_revoked: Literal["serve", "degrade"],
    options: dict[str, Any],
) -> D:
    """A door that follows a registry. `make`: of its first pipeline and `settings=`; the rest as `Scorer.follow` takes it.

    Raises: as `Follower.open`; ConfigError.
    """
    if isinstance(registry, Registry):
        if (trust, environment, storage_options) != (None, None, None):
            raise ConfigError(
                "trust=, environment= and storage_options= are those of the registry that is given",
                hint="give them to ri.Registry, or give its place instead of it",
            )
    else:
        registry = Registry(registry, trust=trust, environment=environment, storage_options=storage_options)
    follower = Follower(registry, name, last_good=last_good, poll_s=poll_s, on_revoked=on_revoked)

    def build(incoming: Incoming) -> Pipeline:
        from retailinfer.serving.loading import load_incoming  # noqa: PLC0415 - the door has it

        return load_incoming(incoming, **options)

    pipeline, problems = follower.open(build)
    try:
        trusted = "unsigned" if registry.trust is None else registry.trust
        door = make(pipeline, settings={"trust": trusted, **options})
    except BaseException:
        pipeline.close()
        raise
    door._follower = follower
    for change in problems:
        door._tell_change(*change)
    follower.start(door)
    return door


def _run(ref: Callable[[], Follower | None], wake: threading.Event, stop: threading.Event) -> None:
    """The thread: it holds the follower while there is something to do, and not while it sleeps."""
    follower = ref()
    while follower is not None:
        wait_s = follower.pause_s()
        del follower
        wake.wait(wait_s)
        wake.clear()
        if stop.is_set():
            return
        follower = ref()
        if follower is not None:
            follower.round()


def _that_is(digest: str, made: Any) -> Any:
    """A pipeline, or a live release, that was asked for by its digest. Raises: IntegrityError for another one."""
    pipeline: Pipeline = getattr(made, "pipeline", made)
    if pipeline.manifest.digest != digest:
        pipeline.close()
        raise IntegrityError(
            f"Expected the release `{digest[:12]}...`, got `{pipeline.manifest.digest[:12]}...`",
            hint="who else writes where releases are kept?",
        )
    return made


def _state_of(exc: RetailInferError) -> State:
    return "unreachable" if isinstance(exc, RegistryError) else "refused"


def _as_ours(exc: Exception, before: RetailInferError | None) -> RetailInferError:
    """The first problem is the one to tell; what is not of ours becomes a BundleError."""
    if before is not None:
        return before
    if isinstance(exc, RetailInferError):
        return exc
    made = BundleError(f"the release could not be loaded: {type(exc).__name__}: {clip(str(exc), 200)}")
    made.__cause__ = exc
    return made
