"""A whole table through a scorer: Arrow in, Arrow out, in slices as it streams in.

Rules:
  * A table that has every stored column and window of the spec is read as it is; of another one the rows are requests.
  * Scores, actions and reasons are those of single requests, bit for bit.
Who calls this: `Scorer.score_table`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from retailinfer.errors import ScoreError
from retailinfer.features.arrow import batches, read_table, require_pyarrow
from retailinfer.features.transform import fill
from retailinfer.pipeline import action_of, texts_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retailinfer.contracts import Reason
    from retailinfer.features.spec import Field
    from retailinfer.pipeline import Pipeline
    from retailinfer.policy import Policy
    from retailinfer.serving.live import Live

__all__ = ["TABLE_ROWS", "score_table"]

TABLE_ROWS = 8192


def score_table(live: Live, table: Any, now_ns: int) -> Any:
    """See `Scorer.score_table`; one release for the whole table, whatever is published meanwhile."""
    live.check()
    engine, pipe = live.engine, live.pipeline
    max_rows: int = engine.max_rows  # a closed scorer, and one of arrays, says so here
    pa = require_pyarrow()
    policy = pipe.policy_in_force
    scores: list[Any] = []
    actions: list[str | None] = []
    reasons: list[Any] = []
    first = 0
    for part in batches(table, TABLE_ROWS):
        if part.num_rows == 0:
            continue
        if all(ref in part.column_names for ref in (*pipe.spec.body.stored, *pipe.spec.body.windows)):
            columns = read_table(part, pipe.spec.body, first_row=first)
            reviews = np.zeros(columns.n_rows, np.uint8)
            values, some = _table_scores(pipe, columns, now_ns, first, reviews)
            reasons += some
            if policy is not None:
                actions += _table_actions(policy, columns, values, reviews, first)
        else:
            rows = _fields_of(part, pipe.spec.fields).to_pylist()
            decisions: list[Any] = []
            for start in range(0, len(rows), max_rows):
                some = rows[start : start + max_rows]
                decisions += engine.score_batch(some, False, now_ns, None, first + start)
            values = np.array([d.score for d in decisions], np.float32)
            actions += [d.action for d in decisions]
            reasons += [d.reasons for d in decisions]
        scores.append(values)
        first += part.num_rows
    made = {"score": np.concatenate(scores) if scores else np.zeros(0, np.float32)}
    out = pa.table(made)
    if policy is not None:
        out = out.append_column("action", pa.array(actions, pa.string()))
    if pipe.has_reasons:
        kind = pa.list_(pa.struct([("field", pa.string()), ("text", pa.string())]))
        plain = [[{"field": r.field, "text": r.text} for r in row] for row in reasons]
        out = out.append_column("reasons", pa.array(plain, kind))
    return out


def _fields_of(part: Any, fields: Iterable[Field]) -> Any:
    """The request's fields in a table, under their own names; a column may have a field's name on the wire, as in `fit`."""
    found = [
        (f.name, f.name if f.name in part.column_names else f.wire)
        for f in fields
        if f.name in part.column_names or (f.wire and f.wire in part.column_names)
    ]
    return part.select([column for _, column in found]).rename_columns([name for name, _ in found])


def _table_scores(
    pipe: Pipeline, columns: Any, now_ns: int, first: int, reviews: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], list[tuple[Reason, ...]]]:
    assert pipe.program is not None
    outs, masks, _ = fill(
        pipe.program, pipe.spec.body, columns, now_ns=now_ns, first_row=first, reviews=reviews
    )
    scores: NDArray[np.float32] = pipe.table_scores(outs, masks, first_row=first)
    return scores, pipe.table_reasons(outs, masks) if pipe.has_reasons else []


def _table_actions(
    policy: Policy, columns: Any, scores: NDArray[np.float32], reviews: NDArray[np.uint8], first: int
) -> list[str | None]:
    """As for single decisions: what a column sends to review is reviewed, whatever its score."""
    by = policy.body.segment_by
    segments = texts_of(columns.by_name[by], len(scores)) if by else [None] * len(scores)
    actions: list[str | None] = []
    for i, (score, segment, review) in enumerate(zip(scores, segments, reviews, strict=True)):
        if review and policy.body.review is not None:
            actions.append(policy.body.review)
            continue
        try:
            actions.append(action_of(policy, float(score), segment))
        except ScoreError as exc:
            raise ScoreError(f"{exc} - at `$[{first + i}]`") from exc
    return actions
