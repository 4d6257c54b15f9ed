"""What answers: one loaded release with everything that belongs to it, behind one pointer.

Rules:
  * A call reads the pointer of its door once and takes every part from the `Live` that it found, also on its way down the
    ladder. So each answer is of one release, whatever is published meanwhile.
  * A `Live` never changes; another release, another policy, a closed door are another `Live`.
  * Whoever calls a part of it holds the `Live` itself until the call is over: so it can be seen when nobody does any more.
What outlives releases is lasting.py; who moves the pointer is door.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from retailinfer.contracts import Freshness, Health
from retailinfer.serving.answers import Rungs
from retailinfer.serving.standins import Refusal, Silenced

if TYPE_CHECKING:
    from collections.abc import Callable

    from retailinfer.pipeline import Pipeline
    from retailinfer.resilience.ladder import Call, Ladder
    from retailinfer.serving.lasting import Lasting
    from retailinfer.serving.primary import RemoteFirst

__all__ = ["Live"]

ARRAYS_ONLY = "this release brings no features: it takes arrays"
HINT_ARRAYS = "use score_arrays(feeds), or pack with features="


class Live(msgspec.Struct, frozen=True, kw_only=True, eq=False, weakref=True):
    """One release in one door, ready to answer. Made by `Live.of`.

    Attributes:
        pipeline: the loaded release. release: its name and version.
        engine: who is called: the pipeline's engine, the model server that stands before it, or a `Refusal`.
        first: that model server; None where the release answers first.
        rungs, ladder: below the release. previous: the release that its rung of that name asks; None: there is none.
        resident: the release before, whole and ready: where a rollback goes; None: nowhere. It has none itself.
        decode_msgpack, encode_msgpack: of a scorer's requests and answers.
        rules: of a ranker: the text of `available=` -> what its engine takes.
        since_ns: when it began to answer, ns since 1970.
    """

    pipeline: Pipeline
    release: str
    engine: Any
    first: RemoteFirst | None
    rungs: Rungs
    ladder: Ladder
    previous: Pipeline | None
    resident: Live | None
    decode_msgpack: Any
    encode_msgpack: Any
    rules: Any
    since_ns: int

    @classmethod
    def of(
        cls,
        pipeline: Pipeline,
        lasting: Lasting,
        *,
        ranks: bool,
        previous: Pipeline | None = None,
        resident: Live | None = None,
        rules: Callable[[str], Any] | None = None,
    ) -> Live:
        """Everything of a release in a door, except that nobody asks it yet. Arguments as the attributes."""
        rungs = Rungs(pipeline, lasting, ranks=ranks, previous=previous)
        engine: Any = pipeline.engine
        first: RemoteFirst | None = None
        decode: Any = None
        encode: Any = None
        if engine is None:
            engine = Refusal(ARRAYS_ONLY, HINT_ARRAYS)
        elif not ranks:
            decode = msgspec.msgpack.Decoder(pipeline.request_type).decode
            encode = msgspec.msgpack.Encoder().encode
        if lasting.remote_first and lasting.remote is not None:
            from retailinfer.serving.primary import RemoteFirst  # noqa: PLC0415 - for those who move

            engine = first = RemoteFirst(pipeline, lasting.remote)
        return cls(
            pipeline=pipeline,
            release=pipeline.manifest.release,
            engine=engine,
            first=first,
            rungs=rungs,
            ladder=rungs.ladder,
            previous=previous,
            resident=resident,
            decode_msgpack=decode,
            encode_msgpack=encode,
            rules=rules,
            since_ns=pipeline.clock.wall_ns(),
        )

    @property
    def digest(self) -> str:
        """Of the release."""
        return self.pipeline.manifest.digest

    @property
    def expires(self) -> str | None:
        """When the release ends, as it was signed, or as it says of itself; None = never."""
        verdict = self.pipeline.bundle.verdict
        if verdict is not None:
            return verdict.statement.expires
        if self.pipeline.manifest.info.expires is None:
            return None
        from retailinfer.release.trust import expiry_of  # noqa: PLC0415 - for releases that end

        return expiry_of(self.pipeline.manifest)

    def expired_s(self, wall_ns: int) -> int:
        """Seconds since then; 0 before it."""
        expires = self.expires
        if expires is None:
            return 0
        from retailinfer.release.statements import seconds_of  # noqa: PLC0415 - as above

        return max(0, wall_ns // 10**9 - seconds_of(expires))

    @property
    def is_silenced(self) -> bool:
        """Only the rungs below the release answer."""
        return isinstance(self.engine, Silenced)

    def silenced(self, why: str) -> Live:
        """The same, except that it does not answer itself."""
        return msgspec.structs.replace(self, engine=Silenced(self.engine, why))

    def restored(self) -> Live:
        """One that was silenced, as it was."""
        return msgspec.structs.replace(self, engine=self.engine.instead_of)

    def check(self) -> None:
        """For what no rung answers, and no engine. Raises: RevokedError where the release must not."""
        if isinstance(self.engine, Silenced):
            self.engine.refuse()

    def alone(self, lasting: Lasting, *, ranks: bool) -> Live:
        """The same as the place where a rollback goes: without a release before it, unless that was given for its rung."""
        if self.previous is None or not self.previous.is_twin:
            return msgspec.structs.replace(self, resident=None)
        rungs = Rungs(self.pipeline, lasting, ranks=ranks)
        return msgspec.structs.replace(self, resident=None, previous=None, rungs=rungs, ladder=rungs.ladder)

    def closed(self, door: str) -> Live:
        """The same, except that every call is refused."""
        refusal = Refusal(f"this {door} is closed", "load the release again")
        return msgspec.structs.replace(self, engine=refusal, first=None, resident=None)

    def __repr__(self) -> str:
        return f"<Live {self.release}>"

    # ---- what the ladder needs of calls that came as bytes ---------------------------------------------------------------

    def open_json(self, call: Call) -> None:
        """Decode a call's JSON."""
        call.request = self.engine.decode(call.request, "json")

    def open_msgpack(self, call: Call) -> None:
        """Decode a call's MessagePack."""
        call.request = self.engine.decode(call.request, "msgpack")

    def open_ranking(self, call: Call) -> None:
        """Decode the JSON of a ranking."""
        asked = self.engine.decode(call.request, "json")
        call.request = asked.context
        call.candidates = self.engine.ids_of(asked)
        call.k, call.exclude = asked.k, asked.exclude
        call.request_id = asked.request_id if call.request_id is None else call.request_id

    def as_json(self, answer: Any) -> bytes:
        """An answer as JSON."""
        made: bytes = self.engine.encode(answer, "json")
        return made

    def as_msgpack(self, answer: Any) -> bytes:
        """An answer as MessagePack."""
        made: bytes = self.engine.encode(answer, "msgpack")
        return made

    # ---- what it says of itself ------------------------------------------------------------------------------------------

    @property
    def waits(self) -> bool:
        """A call may have to wait for others."""
        return bool(self.engine.waits or self.ladder.waits)

    @property
    def freshness(self) -> Freshness:
        """How many answers were made without a stale and without an unavailable value. Raises: ConfigError."""
        engine = self.pipeline.need_engine()
        answers, fresh = engine.n_answers, engine.n_fresh
        if self.first is not None:
            answers, fresh = answers + self.first.n_answers, fresh + self.first.n_fresh
        return Freshness(answers=answers, fresh=fresh)

    def health(self, lasting: Lasting, *, ready: bool, refused: str) -> Health:
        """Everything that is known of how the door is doing."""
        report = self.ladder.report()
        permits, engine, drills = lasting.permits, self.pipeline.engine, lasting.drills
        states = getattr(lasting.remote, "breaker_states", None)
        return Health(
            ready=ready,
            release=self.release,
            rungs=report,
            degraded=sum(rung.answers for rung in report),
            unanswered=self.ladder.unanswered,
            in_flight=permits.in_flight,
            limit=permits.limit,
            rejected=permits.rejected,
            late=0 if engine is None else engine.n_late,
            refused_time=0 if engine is None else engine.n_refused_time,
            p99_ms={}
            if engine is None
            else {name: stage.p99_ns / 1e6 for name, stage in engine.stages.items() if stage.n},
            breakers=dict(states()) if callable(states) else {},
            hook_failures=lasting.hooks.failures + (0 if engine is None else engine.n_hook_failures),
            dropped_drills=0 if drills is None else drills.dropped,
            since_ns=self.since_ns,
            resident=None if self.resident is None else self.resident.release,
            refused=refused,
        )
