"""What crosses the boundary: the contract of a use case, and the answers.

Rules:
  * All of these are frozen msgspec Structs: they encode to JSON and MessagePack as they stand.
  * Durations carry their unit in the name. A field that a later version enforces is already part of the contract.
Who builds answers: `_native.engine`. Who reads a contract: `pipeline` and `authoring.pack`.
"""

# No `from __future__ import annotations` here: msgspec would compile every one of them when a release is loaded.

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

__all__ = [
    "RUNGS",
    "Agreement",
    "Contract",
    "Decision",
    "Explanation",
    "Following",
    "Freshness",
    "Health",
    "Ranking",
    "Reason",
    "Rung",
    "RungHealth",
]

PositiveFloat = Annotated[float, Meta(gt=0)]
PositiveInt = Annotated[int, Meta(ge=1, le=(1 << 31) - 1)]  # what native code counts rows in


# The kinds of rungs by the number that answers carry; 0 is the release itself, which no ladder lists.
RUNGS = ("release", "previous", "remote", "last_score", "static")


class Rung(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One step of the fallback ladder: who answers, for how long at most, and what it may decide.

    Args:
        kind: "previous" = a release loaded before, kept in memory; "remote" = a model server; "last_score" = what the entity
            got last; "static" = what the release itself brings for bad days (`ri.Fallback`).
        max_ms: what a call gives it at most; also what must be left of the deadline while nothing is known of its speed.
        max_concurrency: calls at the same time, 10 where nothing is said; one more goes to the next rung.
        decisions: actions that it may decide; another one becomes the policy's review action where that is among them, else
            the next rung answers. Empty: all of the policy's; for the last two rungs of the use case "fraud" the review
            action alone.
        entity: of last_score: whose scores are remembered; may be left out where the spec has one entity.
        max_age_s: of last_score: how long a score is remembered, 15 minutes where nothing is said.
        max_entities: of last_score: how many are remembered, 10,000 where nothing is said.
        scale: of last_score: a name for what scores mean. Releases that say the same one share remembered scores; where
            nothing is said, a score is used by the release with the very same model only.
    """

    kind: Literal["release", "previous", "remote", "last_score", "static"]
    max_ms: PositiveFloat | None = None
    max_concurrency: PositiveInt | None = None
    decisions: tuple[str, ...] = ()
    entity: str | None = None
    max_age_s: PositiveFloat | None = None
    max_entities: PositiveInt | None = None
    scale: str | None = None


class Contract(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a use case promises and needs; part of the release.

    Args:
        use_case: "fraud", "recommendation" or "demand": rules that go with it. Fraud degrades to manual review only: what its
            last_score and static rungs decide is the policy's review action.
        deadline_ms: after so long an answer is worth nothing: it is dropped, and the call ends in a DeadlineExceededError.
        p50_ms, p95_ms, p99_ms: latency objectives of the whole call.
        stages_ms: budget per stage: decode, resolve, fill, run, decide, encode; remote.
        availability: share of requests that get an answer, such as 0.9995.
        throughput: requests a second and process that must fit.
        freshness: share of answers whose stored values were all within their `max_age`.
        max_rows: largest batch or candidate list; more is a LimitError before any work.
        batch_sizes: what production sends; `quantize="auto"` is measured on these.
        ladder: the rungs below the release itself, best first.
    Enforced by every call: `deadline_ms`, `max_rows`, `ladder`. `retailinfer bench --fail-if contract` compares the latencies,
    the deadline and the stages with what is measured; the rest is a promise that monitoring holds against what happens.
    """

    use_case: Literal["fraud", "recommendation", "demand"] | None = None
    deadline_ms: PositiveFloat | None = None
    p50_ms: PositiveFloat | None = None
    p95_ms: PositiveFloat | None = None
    p99_ms: PositiveFloat | None = None
    stages_ms: dict[str, PositiveFloat] = {}
    availability: Annotated[float, Meta(gt=0, le=1)] | None = None
    throughput: PositiveFloat | None = None
    freshness: Annotated[float, Meta(gt=0, le=1)] | None = None
    max_rows: PositiveInt = 10_000
    batch_sizes: tuple[PositiveInt, ...] = (1,)
    ladder: tuple[Rung, ...] = ()


class Reason(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a score is as high as it is: a field that pushes it up, and the policy's text for it.

    `field` is a field of the request, a stored value ("card.mean_amount_30d"), a window, or a column of several of these.
    """

    field: str
    text: str = ""


class Decision(msgspec.Struct, frozen=True):
    """The answer to one request.

    Attributes:
        id: the caller's `request_id`, or one of ours: unique across processes and forks.
        score: the model's score, a float32 value.
        action: what the policy says; None for a release without a policy.
        reasons: what pushes the score up the most, strongest first; none unless the policy asks for them (`n_reasons`).
        release: name and version of the release that answered.
        arm: which arm of a rollout; "default" when none runs.
        rung: step of the fallback ladder; 0 is the release itself.
        stale: columns whose stored value was older than its `max_age` or its table's time to live, or whose window did not
            cover its time yet.
        missing: columns whose value was null, unknown or unavailable.
        trace: what else led to it: "release: unsigned" where no signature was verified; a threshold that an operator moved;
            which keys were looked up under another name, as "customer: guest-7 -> c-1".
    """

    id: str
    score: float
    action: str | None = None
    reasons: tuple[Reason, ...] = ()
    release: str = ""
    arm: str = "default"
    rung: int = 0
    stale: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    trace: tuple[str, ...] = ()


class Explanation(msgspec.Struct, frozen=True):
    """How much each field adds to one score. For people who may see it: with enough of these a model can be copied.

    Attributes:
        score: the model's score, a float32 value.
        raw: what the contributions are about. By the trees: the sum of the leaves, before its last step (log-odds, mostly),
            turned round where a larger sum means a lower score. By occlusion: the score.
        base: `raw` of a row of which nothing is known.
        contributions: field -> what it adds; every group of cells that the model reads has one. By the trees, they and
            `base` add up to `raw`, but for the rounding of the trees' own sums (float32 in most formats, 1e-6 of it).
        method: "path" (the way through the trees), "treeshap" (Shapley values over the same expectations), or "occlusion"
            (the score less that of the row without the field; these need not add up, and are NaN where the model gives no
            score without it).
    """

    score: float
    raw: float
    base: float
    contributions: dict[str, float]
    method: Literal["path", "treeshap", "occlusion"]


class Ranking(msgspec.Struct, frozen=True):
    """The best candidates, best first.

    Attributes:
        id, release, arm, rung, trace: as in `Decision`.
        items: ids of the candidates, as they were given.
        scores: float32 values, aligned with `items`, never ascending; equal scores are ordered by id.
        stale, missing: columns that were so for the context or for any of the candidates.
        suppressed: candidate -> why it was left out: "excluded", "unavailable", "unknown" or "refused".
    """

    id: str
    items: list[str | int]
    scores: list[float]
    release: str = ""
    arm: str = "default"
    rung: int = 0
    stale: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    suppressed: dict[str | int, str] = {}
    trace: tuple[str, ...] = ()


class Freshness(msgspec.Struct, frozen=True):
    """How many answers were made from fresh values alone: none stale, none unavailable.

    Attributes:
        answers: decisions and rankings since the release was loaded.
        fresh: those without a stale and without an unavailable value.
    """

    answers: int
    fresh: int

    @property
    def share(self) -> float:
        """`fresh` of `answers`; 1.0 before the first answer."""
        return self.fresh / self.answers if self.answers else 1.0


class RungHealth(msgspec.Struct, frozen=True, kw_only=True):
    """How one rung of the ladder is, in this process.

    Attributes:
        kind, rung: of it, and the number that its answers carry.
        state: "untried" since the start; "ready"; "failing" = its last drill failed, or most of its last calls; "cold" =
            nothing has exercised it for a day; "absent" = the contract names it, and `load` was not given it.
        answers, failures: calls that it answered, or could not. refused: it was full, or too slow for what was left.
        drills, failed_drills: copies of calls that it answered in the shadow, to see whether it still can.
        exercised_s: seconds since it last answered a call or a drill; None before the first.
        p99_ms: of its recent answers; 0 before the first.
    """

    kind: str
    rung: int
    state: str
    answers: int = 0
    failures: int = 0
    refused: int = 0
    drills: int = 0
    failed_drills: int = 0
    exercised_s: float | None = None
    p99_ms: float = 0.0


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """How a model server and the release that scores beside it compare, in this process: `Scorer.agreement()`.

    Attributes:
        answers: calls that were answered, or failed. compared: those that both scored.
        equal_actions: share of the compared ones that both decide alike; None without any.
        largest_difference: of two scores of one request.
        local_answers: that the release gave because the server had none. local_failures: where it had none itself.
        remote_failures: by kind (docs/remote.md), or by the error's class.
        remote_p50_ms, remote_p99_ms, local_p50_ms, local_p99_ms: of the last 1,024 calls, features included; None before 64.
    """

    answers: int
    compared: int
    equal_actions: float | None
    largest_difference: float | None
    local_answers: int
    local_failures: int
    remote_failures: dict[str, int]
    remote_p50_ms: float | None
    remote_p99_ms: float | None
    local_p50_ms: float | None
    local_p99_ms: float | None


class Following(msgspec.Struct, frozen=True, kw_only=True):
    """How a scorer or a ranker follows a registry, in this process: `Scorer.following`.

    Attributes:
        name, environment: what is followed.
        epoch, seq: of the newest pointer that was seen and may be followed; 0 before the first.
        champion: digest of the release that it lets answer. roles: role -> digest. share: of the canary. held: why the pointer
            is held; None = it is not.
        running: digest of the release that answers here. skew: it is not the one that should.
        state: "ok"; "unreachable" = the registry; "refused" = its pointer must not be followed; "failed" = the release that
            should answer could not be loaded. why: of that, or what else is wrong, such as a disk that is full.
        polled_s, ok_s: seconds since the last look, and since the last one that found a pointer; None before it.
        rolled_back: why an operator went back here; until the pointer's number moves on, what they chose answers.
        moved: thresholds that operators have moved for a while, one text each, as decisions have them in their trace.
        revoked: what answers was revoked.
        failures: digest -> how often it could not be loaded.
    """

    name: str
    environment: str
    epoch: int
    seq: int
    champion: str | None
    roles: dict[str, str]
    share: float | None
    held: str | None
    running: str
    skew: bool
    state: str
    why: str
    polled_s: float | None
    ok_s: float | None
    rolled_back: str | None
    moved: tuple[str, ...]
    revoked: bool
    failures: dict[str, int]


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """How a scorer or a ranker is, in this process: for a readiness probe and for people.

    Attributes:
        ready: it has not been closed. release: name and version.
        rungs: of the ladder, best first. degraded: answers that a rung below the release gave.
        unanswered: calls that ended in a ServingError, or in the caller's `otherwise`.
        in_flight, limit: calls that hold a permit, and how many may; 0 = no limit.
        rejected: calls that were refused a permit, by priority.
        late: answers that came after their deadline and were dropped.
        refused_time: calls that were not begun because too little was left of their deadline.
        p99_ms: of recent calls of the release: "run" without waiting, "run/64" and so on by rows; "wait" and "whole" where
            it has waited for sources or shared windows.
        breakers: of the remote: endpoint -> state.
        hook_failures: what hooks raised. dropped_drills: drills that found no place in the queue.
        expired_s: seconds since the release expired; 0 = it has not, or never does. It answers on.
        following: of a door that follows a registry; None for others.
        since_ns: since when this release answers here, ns since 1970. resident: the release that `roll_back` would go to.
        refused: why the last swap was refused; "" where it was not.
    Counts of rungs and stages are of this release and begin with it; permits, hooks and drills are counted for the door.
    """

    ready: bool
    release: str
    rungs: tuple[RungHealth, ...] = ()
    degraded: int = 0
    unanswered: int = 0
    in_flight: int = 0
    limit: int = 0
    rejected: dict[str, int] = {}
    late: int = 0
    refused_time: int = 0
    p99_ms: dict[str, float] = {}
    breakers: dict[str, str] = {}
    hook_failures: int = 0
    dropped_drills: int = 0
    expired_s: int = 0
    following: Following | None = None
    since_ns: int = 0
    resident: str | None = None
    refused: str = ""
