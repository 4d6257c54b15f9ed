"""What a release answers to rows of a table, beside what another one answers: the ground of `diff` and `check`.

Rules:
  * Rows are canonical columns, with everything already looked up: the models and the policy alone are compared.
  * A row that a release refuses, or has no score for, is counted with the reason, and has the score NaN and no action. After
    2,000 of them, rows that come in one block with a refused one are counted as refused with it, which is said.
  * A column that the rows do not have, or have in another type, is null; its name is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from retailinfer.authoring.golden import take
from retailinfer.errors import FeatureError, ScoreError
from retailinfer.features.arrow import as_table, read_table
from retailinfer.features.canonical import Canonical, Columns
from retailinfer.features.program import slot_types
from retailinfer.features.transform import fill
from retailinfer.pipeline import action_of, texts_of
from retailinfer.release.golden import slot_kind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retailinfer.pipeline import Pipeline
    from retailinfer.release.golden import Golden

__all__ = ["Answers", "answers", "columns_of_golden", "columns_of_table", "flips"]

REASONS_KEPT = 5
MAX_SINGLE = 2_000  # refused rows that are looked for one by one


@dataclass(frozen=True)
class Answers:
    """What one release makes of some rows.

    Attributes:
        scores: float32 (n_rows,), NaN where it has none. actions: None for those rows, and without a policy.
        outside: column -> how many values were outside the range that `fit` saw.
        refused: number of rows without a score. why: of the first of them.
        absent: columns that the rows do not have, which were null.
    """

    scores: NDArray[np.float32]
    actions: list[str | None]
    outside: dict[str, int] = field(default_factory=dict)
    refused: int = 0
    why: list[str] = field(default_factory=list)
    absent: tuple[str, ...] = ()


def columns_of_golden(golden: Golden, of: Pipeline, pipeline: Pipeline) -> tuple[Columns, tuple[str, ...]]:
    """Golden rows of one release as another one reads them.

    Args:
        of: whose golden rows they are. pipeline: who will read them.
    Returns: the rows; and the names that were not recorded, or in another type.
    """
    known, wanted = slot_types(of.spec.body), slot_types(pipeline.spec.body)
    recorded = golden.canonical(list(known))
    by_name = {
        name: None if column is None else Canonical(*column)
        for name, column in zip(known, recorded, strict=True)
        if name in wanted and slot_kind(known[name]) == slot_kind(wanted[name])
    }
    looked_up = {*pipeline.spec.body.stored, *pipeline.spec.body.windows}
    states = {
        name: state
        for name, state in golden.state_arrays({*of.spec.body.stored, *of.spec.body.windows}).items()
        if name in looked_up and name in by_name
    }
    absent = tuple(name for name in wanted if name not in by_name)
    return Columns(golden.n_rows, {n: by_name.get(n) for n in wanted}, states or None), absent


def columns_of_table(table: Any, pipeline: Pipeline) -> tuple[Columns, tuple[str, ...]]:
    """A table as a release reads it, stored values and windows by their names. Raises: SpecError, FeatureError."""
    table = as_table(table)
    body = pipeline.spec.body
    absent = tuple(name for name in (*body.stored, *body.windows) if name not in table.column_names)
    for name in absent:
        import pyarrow as pa  # noqa: PLC0415 - the extra that `as_table` has asked for

        table = table.append_column(name, pa.nulls(table.num_rows))
    return read_table(table, body), absent


def answers(pipeline: Pipeline, columns: Columns, *, now_ns: int = 0, absent: Sequence[str] = ()) -> Answers:
    """Score rows, one by one where some are refused. The pipeline must have a score."""
    program, body = pipeline.program, pipeline.spec.body
    assert program is not None
    n = columns.n_rows
    scores = np.full(n, np.nan, np.float32)
    reviews = np.zeros(n, np.uint8)
    outside = np.zeros(len(program.column_names), np.int64)
    problems: dict[int, str] = {}

    def score(rows: NDArray[np.int64]) -> None:
        some = columns if len(rows) == n else take(columns, rows)
        asked = np.zeros(len(rows), np.uint8)
        try:
            outs, masks, beyond = fill(program, body, some, now_ns=now_ns, reviews=asked)
            scores[rows] = pipeline.table_scores(outs, masks)
        except (FeatureError, ScoreError) as exc:
            if len(rows) == 1 or len(problems) >= MAX_SINGLE:
                problems.update(dict.fromkeys(rows.tolist(), str(exc)))
                return
            half = len(rows) // 2
            score(rows[:half])
            score(rows[half:])
            return
        reviews[rows] = asked
        outside[:] += beyond

    if n:
        score(np.arange(n))
    beyond_count = len(problems) > MAX_SINGLE
    actions = _actions(pipeline, columns, scores, reviews, problems)
    why = list(dict.fromkeys(problems[row] for row in sorted(problems)))[:REASONS_KEPT]
    if beyond_count:
        why.append(f"more than {MAX_SINGLE:,} rows; some that stand beside them are counted with them")
    return Answers(
        scores,
        actions,
        {name: int(count) for name, count in zip(program.column_names, outside, strict=True) if count},
        len(problems),
        why,
        tuple(absent),
    )


def _actions(
    pipeline: Pipeline,
    columns: Columns,
    scores: NDArray[np.float32],
    reviews: NDArray[np.uint8],
    problems: dict[int, str],
) -> list[str | None]:
    """As serving decides: what a column sends to review is reviewed, whatever its score."""
    policy = pipeline.policy
    if policy is None:
        return [None] * len(scores)
    by = policy.body.segment_by
    segments = texts_of(columns.by_name.get(by), len(scores)) if by else [None] * len(scores)
    found: list[str | None] = []
    for row, (value, segment) in enumerate(zip(scores, segments, strict=True)):
        if row in problems:
            found.append(None)
        elif reviews[row] and policy.body.review is not None:
            found.append(policy.body.review)
        else:
            try:
                found.append(action_of(policy, float(value), segment))
            except ScoreError as exc:
                problems[row] = str(exc)
                found.append(None)
    return found


def flips(before: Sequence[str | None], after: Sequence[str | None]) -> Mapping[tuple[str, str], int]:
    """(action before, action after) -> number of rows, the most frequent first; rows without an action are left out."""
    counted: dict[tuple[str, str], int] = {}
    for a, b in zip(before, after, strict=True):
        if a is not None and b is not None and a != b:
            counted[a, b] = counted.get((a, b), 0) + 1
    return dict(sorted(counted.items(), key=lambda one: (-one[1], one[0])))


def refuse_nothing_to_compare(pipeline: Pipeline) -> str | None:
    """Why a release gives no scores of rows; None when it does."""
    if pipeline.spec.arrays:
        return "it takes arrays"
    return None if pipeline.manifest.score is not None else "it has no score"
