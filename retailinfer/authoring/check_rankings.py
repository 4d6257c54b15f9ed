"""Ranking stability: what golden users would see, beside what they see today.

Golden users are rankings that the rows hold (all rows with the same context are one), or requests, which both releases rank
with the store's own tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from retailinfer.authoring.check_bounds import Bound, Findings
from retailinfer.authoring.check_measures import overlap, rbo
from retailinfer.errors import CallerError, ServingError
from retailinfer.release.report import Chart, Check

if TYPE_CHECKING:
    from retailinfer.authoring.check_rows import Rows
    from retailinfer.authoring.loading import Loaded

__all__ = ["check_rankings"]

LEAST = 2  # candidates; one alone is always in its place
SHOWN = 5


def check_rankings(
    new: Loaded,
    old: Loaded | None,
    rows: Rows | None,
    before: Rows | None,
    users: Sequence[Mapping[str, Any]] | None,
    *,
    k: int,
    bounds: Mapping[str, Bound],
) -> Check:
    """Rank-biased overlap and overlap of the first k, over all golden users."""
    found = Findings("ranking", bounds)
    if not new.ranks:
        return found.not_applicable("the release ranks nothing")
    if old is None or not old.ranks:
        return found.not_applicable("no other ranking release to compare with")
    if users is not None:
        pairs, source = _of_requests(new, old, users, k, found), "requests"
    elif rows is not None and before is not None:
        pairs, source = _of_rows(new, rows, before), "contexts of the rows"
    else:
        return found.not_applicable("neither golden users nor rows were given")
    if not pairs:
        return found.not_applicable(f"no ranking of {LEAST} candidates or more that both releases answer")
    apart = {name: rbo(a, b) for name, (a, b) in pairs.items()}
    shared = {name: overlap(a, b, k) for name, (a, b) in pairs.items()}
    first = float(np.mean([a[:1] == b[:1] for a, b in pairs.values()]))
    found.figures |= {
        "users": len(pairs),
        "k": k,
        "rbo": (mean := float(np.mean(list(apart.values())))),
        "rbo_least": min(apart.values()),
        "overlap": (common := float(np.mean(list(shared.values())))),
        "overlap_least": min(shared.values()),
        "same_first": first,
    }
    found.hold("rbo", mean, f"mean rank-biased overlap of {len(pairs)} {source}")
    found.hold("overlap", common, f"mean share of the first {k} that stays")
    for name in sorted(apart, key=lambda one: apart[one])[:SHOWN]:
        if apart[name] < 1:
            found.notes.append(f"{name}: rank-biased overlap {apart[name]:.3f}, first {k} {shared[name]:.0%}")
    counts, _ = np.histogram(list(apart.values()), bins=10, range=(0, 1))
    labels = [f"{i / 10:.1f}" for i in range(10)]
    found.charts.append(
        Chart(
            title="Golden users by rank-biased overlap",
            labels=labels,
            series={"users": [float(n) for n in counts]},
        )
    )
    return found.verdict(f"{len(pairs)} {source}: overlap {mean:.3f} by rank, {common:.0%} of the first {k}")


Pairs = dict[str, tuple[list[Any], list[Any]]]


def _of_requests(
    new: Loaded, old: Loaded, users: Sequence[Mapping[str, Any]], k: int, found: Findings
) -> Pairs:
    pairs: Pairs = {}
    for number, user in enumerate(users):
        lists = []
        for loaded in (old, new):
            door: Any = loaded.door
            try:
                candidates = list(user["candidates"])
                lists.append(door.rank(user["context"], candidates, k=max(len(candidates), k)).items)
            except (CallerError, ServingError) as exc:
                found.warn(f"{loaded.bundle.manifest.release} does not rank golden user {number}: {exc}")
        if len(lists) == 2 and max(map(len, lists)) >= LEAST:
            pairs[f"golden user {number}"] = (list(lists[0]), list(lists[1]))
    return pairs


def _of_rows(new: Loaded, rows: Rows, before: Rows) -> Pairs:
    """Rows with the same values of all fields but the candidate's key are one ranking."""
    body = new.pipeline.spec.body
    own = body.entities[body.candidate or ""].key
    names = [f.name if f.name in rows.table.column_names else f.wire for f in body.fields]
    fields = dict(zip((f.name for f in body.fields), names, strict=True))
    context = [
        rows.table.column(c).to_pylist()
        for f, c in fields.items()
        if f not in own and c in rows.table.column_names
    ]
    keys = [rows.table.column(fields[f]).to_pylist() for f in own]
    groups: dict[Any, list[int]] = {}
    for row in range(rows.n):
        if np.isfinite(rows.answers.scores[row]) and np.isfinite(before.answers.scores[row]):
            groups.setdefault(tuple(map(repr, (c[row] for c in context))), []).append(row)
    pairs: Pairs = {}
    for name, members in groups.items():
        ids = [tuple(key[row] for key in keys) for row in members]
        if len(set(ids)) < LEAST:
            continue
        lists = []
        for scores in (before.answers.scores, rows.answers.scores):
            best: dict[Any, float] = {}
            for row, one in zip(members, ids, strict=True):
                best[one] = max(best.get(one, -np.inf), float(scores[row]))
            lists.append(sorted(best, key=lambda one: (-best[one], repr(one))))
        pairs[", ".join(name) or "all rows"] = (lists[0], lists[1])
    return pairs
