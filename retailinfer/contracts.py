"""What crosses the boundary: the contract of a use case, and the answers.

Rules:
  * All of these are frozen msgspec Structs: they encode to JSON and MessagePack as they stand.
  * Durations carry their unit in the name. A field that a later version enforces is already part of the contract.
Who builds answers: `_native.engine`. Who reads a contract: `pipeline` and `authoring.pack`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

__all__ = ["Contract", "Decision", "Explanation", "Freshness", "Ranking", "Reason", "Rung"]

PositiveFloat = Annotated[float, Meta(gt=0)]
PositiveInt = Annotated[int, Meta(ge=1)]


class Rung(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One step of the fallback ladder: who answers, for how long at most, and what it may decide."""

    kind: Literal["release", "previous", "remote", "last_score", "static"]
    max_ms: PositiveFloat | None = None
    max_concurrency: PositiveInt | None = None
    decisions: tuple[str, ...] = ()  # empty: all of the policy's


class Contract(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a use case promises and needs; part of the release.

    Args:
        deadline_ms: after so long an answer is worth nothing; waiting for sources and shared windows ends before it.
        p50_ms, p95_ms, p99_ms: latency objectives of the whole call.
        stages_ms: budget per stage (decode, resolve, fill, run, decide, encode).
        availability: share of requests that get an answer, such as 0.9995.
        throughput: requests a second and process that must fit.
        freshness: share of answers whose stored values were all within their `max_age`.
        max_rows: largest batch or candidate list; more is a LimitError before any work.
        batch_sizes: what production sends; `quantize="auto"` is measured on these.
        ladder: the rungs below the release itself, best first.
    Enforced now: `max_rows`, and `deadline_ms` by whoever waits. `retailinfer bench --fail-if contract` compares the
    latencies; the rest is recorded for later.
    """

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
        trace: which keys were looked up under another name, as "customer: guest-7 -> c-1".
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
