"""Checks over rows: is the data what the model learned from, are the scores sane, which decisions are others?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import msgspec
import numpy as np

from retailinfer.authoring.check_bounds import Bound, Findings
from retailinfer.authoring.check_measures import histograms, profile, psi, psi_of_scores, worse_than_chance
from retailinfer.authoring.compare import Answers, flips
from retailinfer.errors import FeatureError
from retailinfer.features.arrow import value_counts
from retailinfer.features.canonical import Columns
from retailinfer.features.fit import raw_values
from retailinfer.release.report import Chart, Check

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retailinfer.authoring.loading import Loaded

__all__ = ["Rows", "check_data", "check_decisions", "check_scores", "check_season"]

FEW_ROWS = 200  # fewer give no distribution
FEW_IN_COHORT = 50
COHORTS_SHOWN = 20
Bounds = Mapping[str, Bound]


@dataclass(frozen=True)
class Rows:
    """Rows as a release reads them, and what it answers. `table`: the pyarrow Table that they come from."""

    table: Any
    columns: Columns
    answers: Answers

    @property
    def n(self) -> int:
        """How many."""
        return self.columns.n_rows


# ---- data ------------------------------------------------------------------------------------------------------------


def check_data(loaded: Loaded, rows: Rows | None, why_not: str | None, bounds: Bounds) -> Check:
    """Types, refused rows, missing values and distributions against what `fit` saw."""
    found = Findings("data", bounds)
    if rows is None:
        if why_not is None:
            return found.not_applicable("no rows were given")
        found.fail(why_not)
        return found.verdict("the rows cannot be read as the release's features")
    n, made = rows.n, rows.answers
    found.figures |= {"rows": n, "refused": made.refused, "outside": made.outside}
    found.hold("refused", made.refused / n, "share of rows that the release refuses")
    found.notes += [f"refused: {why}" for why in made.why]
    if made.absent:
        found.warn(f"the rows do not have {', '.join(made.absent)}, which was null")
    for column, count in made.outside.items():
        found.hold("outside", count / n, f"share of `{column}` outside the range of training")
    columns = _columns_beside_training(loaded, rows, found)
    found.figures["columns"] = columns
    for column, one in columns.items():
        found.hold("column_psi", one["psi"], f"PSI of `{column}` against training", only_warn=True)
        found.hold(
            "nulls", abs(one["nulls"] - one["nulls_then"]), f"change of the missing share of `{column}`"
        )
    if columns:
        names = sorted(columns, key=lambda c: -columns[c]["psi"])[:COHORTS_SHOWN]
        values = [columns[c]["psi"] for c in names]
        found.charts.append(
            Chart(
                title="PSI by column, against training",
                labels=names,
                series={"PSI": values},
                line=bounds["column_psi"][0],
            )
        )
    text = f"{n:,} rows, {made.refused} refused"
    if columns:
        text += f", {len(columns)} columns beside training"
    else:
        found.notes.append("the release has no baseline.json: its spec was not fitted")
    return found.verdict(text)


def _columns_beside_training(loaded: Loaded, rows: Rows, found: Findings) -> dict[str, dict[str, float]]:
    """Column -> PSI and the shares of missing values, now and in training."""
    baseline = loaded.bundle.read("baseline", msgspec.json.decode)
    if baseline is None or rows.n == 0:
        return {}
    spec = loaded.pipeline.spec
    try:
        raw = raw_values(spec.body, rows.columns)
    except FeatureError as exc:  # a row that no program takes; the others are judged by what is counted above
        found.notes.append(f"numbers were not compared with training: {exc}")
        raw = {}
    refs = {c.name: c.refs[0] for c in spec.columns if len(c.refs) == 1}
    absent = set(rows.answers.absent)  # null because nobody brought it, which was told
    lost = {c.name for c in spec.columns if absent & set(c.refs)}
    made: dict[str, dict[str, float]] = {}
    for name, then in baseline["columns"].items():
        if name in lost:
            continue
        if then["kind"] == "number":
            if name not in raw:
                continue
            seen = raw[name][~np.isnan(raw[name])]
            edges = np.asarray(then["edges"])
            counts = np.bincount(np.searchsorted(edges, seen, side="left"), minlength=len(edges) + 1)
            expected = np.asarray(then["counts"])
            n_seen = len(seen)
        else:
            if refs.get(name) not in rows.table.column_names:
                continue
            counted = {str(v): c for v, c in value_counts(rows.table.column(refs[name]))}
            n_seen = sum(counted.values())
            listed = [counted.get(value, 0) for value in then["values"]]
            counts = np.array([*listed, n_seen - sum(listed)])
            expected = np.array([*then["counts"], then["other"]])
        apart = psi(expected, counts) if n_seen >= FEW_ROWS else 0.0
        made[name] = {
            "psi": apart if np.isfinite(apart) else 0.0,
            "nulls": 1 - n_seen / rows.n,
            "nulls_then": then["nulls"] / max(baseline["rows"], 1),
        }
    return made


# ---- scores ----------------------------------------------------------------------------------------------------------


def check_scores(loaded: Loaded, rows: Rows | None, old: Rows | None, bounds: Bounds) -> Check:
    """A distribution at all, within its bounds, and how far it is from the other release's."""
    found = Findings("scores", bounds)
    if rows is None:
        return found.not_applicable("no rows were scored")
    scores = rows.answers.scores[np.isfinite(rows.answers.scores)].astype(np.float64)
    if not scores.size:
        found.fail("no row has a score")
        return found.verdict("no row has a score")
    quantiles = {f"p{q}": float(np.quantile(scores, q / 100)) for q in (1, 5, 25, 50, 75, 95, 99)}
    found.figures |= {
        "n": int(scores.size),
        "mean": float(scores.mean()),
        "std": float(scores.std()),
        **quantiles,
    }
    _, counts = np.unique(scores, return_counts=True)
    found.figures["most_frequent"] = share = float(counts.max() / scores.size)
    if scores.size > 1:
        found.hold("constant", share, "share of the rows with one and the same score")
    manifest = loaded.bundle.manifest
    if (
        manifest.task == "classification"
        and (scores.min() < 0 or scores.max() > 1)
        and manifest.score is not None
    ):
        found.warn(f"scores from {scores.min():.4g} to {scores.max():.4g} are no probabilities")
    text = f"{scores.size:,} scores, median {quantiles['p50']:.4g}, 99 of 100 below {quantiles['p99']:.4g}"
    before = None if old is None else old.answers.scores[np.isfinite(old.answers.scores)].astype(np.float64)
    if before is not None and before.size:
        labels, (new, then) = histograms(scores, before)
        found.charts.append(
            Chart(title="Scores: share of the rows", labels=labels, series={"this": new, "other": then})
        )
        if min(before.size, scores.size) >= FEW_ROWS:
            found.figures["psi"] = apart = psi_of_scores(before, scores)
            found.hold("score_psi", apart, "PSI of the scores against the other release")
            text += f", PSI {apart:.3g}"
        else:
            found.notes.append(f"fewer than {FEW_ROWS} rows: distributions were not compared")
    else:
        labels, (new,) = histograms(scores)
        found.charts.append(Chart(title="Scores: share of the rows", labels=labels, series={"this": new}))
    return found.verdict(text)


# ---- seasons ---------------------------------------------------------------------------------------------------------


def check_season(
    loaded: Loaded, rows: Rows | None, old: Rows | None, labels: NDArray[np.float64] | None, bounds: Bounds
) -> Check:
    """Weekdays and hours of a forecast beside those of what happened, or of the other release."""
    found = Findings("seasonality", bounds)
    manifest, body = loaded.bundle.manifest, loaded.pipeline.spec.body
    if manifest.task not in ("forecast", "regression"):
        return found.not_applicable(f"a {manifest.task} has no season")
    moments = None if rows is None or body.event_time is None else rows.columns.by_name.get(body.event_time)
    if rows is None or moments is None:
        return found.not_applicable("no rows with a time of their own")
    scores = rows.answers.scores.astype(np.float64)
    other = labels if labels is not None else None if old is None else old.answers.scores.astype(np.float64)
    if other is None:
        return found.not_applicable("neither labels nor another release to compare with")
    whose = "what happened" if labels is not None else "the other release"
    held = np.isfinite(scores) & np.isfinite(other)
    if moments.valid is not None:
        held &= moments.valid.astype(bool)
    days, hours = _calendar(moments.values[held], body.tz)
    worst = 0.0
    for name, buckets, label in (("weekday", days, _DAYS), ("hour", hours, [str(h) for h in range(24)])):
        ours, theirs = profile(scores[held], buckets), profile(other[held], buckets)
        common = sorted(ours.keys() & theirs.keys())
        if len(common) < 2:
            continue
        found.figures[name] = {label[b]: [ours[b], theirs[b]] for b in common}
        gaps = {b: abs(ours[b] - theirs[b]) for b in common}
        worst = max(worst, *gaps.values())
        at = max(gaps, key=lambda b: gaps[b])
        found.hold("season", gaps[at], f"{name} {label[at]}: how far its share is from that of {whose}")
        found.charts.append(
            Chart(
                title=f"By {name}: mean over the mean of all",
                labels=[label[b] for b in common],
                series={"this": [ours[b] for b in common], whose: [theirs[b] for b in common]},
            )
        )
    if not found.charts:
        return found.not_applicable("too few rows of each weekday and hour")
    return found.verdict(f"at most {worst:.3g} from {whose}")


_DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


def _calendar(ns: NDArray[np.int64], tz: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Weekday (0 = Monday) and hour of moments, on the clocks of a zone."""
    import datetime as dt  # noqa: PLC0415 - beside its only use

    zone = ZoneInfo(tz)
    hours_since, index = np.unique(ns // 3_600_000_000_000, return_inverse=True)
    local = [dt.datetime.fromtimestamp(int(h) * 3600, zone) for h in hours_since]
    days = np.array([one.weekday() for one in local], np.int64)
    hours = np.array([one.hour for one in local], np.int64)
    return days[index], hours[index]


# ---- decisions -------------------------------------------------------------------------------------------------------


def check_decisions(
    loaded: Loaded,
    rows: Rows | None,
    old: Rows | None,
    *,
    labels: NDArray[np.float64] | None,
    cohorts: Sequence[str],
    positive: Sequence[str],
    bounds: Bounds,
) -> Check:
    """Decisions that are others, good rows that are acted upon and bad ones that are caught; whole and by cohort."""
    found = Findings("decisions", bounds)
    if loaded.pipeline.policy is None:
        return found.not_applicable("the release has no policy")
    if rows is None:
        return found.not_applicable("no rows were decided")
    after = rows.answers.actions
    n = sum(one is not None for one in after)
    shares = {a: after.count(a) / max(n, 1) for a in loaded.pipeline.policy.actions}
    found.figures["shares"] = shares
    text = ", ".join(f"{action} {share:.2%}" for action, share in shares.items())
    groups = {"all": np.ones(rows.n, bool), **_cohorts(rows.table, cohorts, found)}
    before = None if old is None else old.answers.actions
    if before is not None:
        text += f"; {_held_flips(found, before, after, groups)}"
    if labels is not None:
        _held_errors(found, before, after, labels, groups, set(positive))
    elif before is not None:
        found.notes.append("no labels: false positives are not known")
    return found.verdict(text)


def _cohorts(table: Any, names: Sequence[str], found: Findings) -> dict[str, NDArray[np.bool_]]:
    """Name -> its rows; the most frequent values of each column, with enough rows."""
    made: dict[str, NDArray[np.bool_]] = {}
    for name in names:
        if name not in table.column_names:
            found.warn(f"the rows have no column `{name}` to make cohorts of")
            continue
        values = np.array([str(v) for v in table.column(name).to_pylist()], object)
        kinds, counts = np.unique(values.astype(str), return_counts=True)
        for at in np.argsort(-counts, kind="stable")[:COHORTS_SHOWN]:
            if counts[at] >= FEW_IN_COHORT:
                made[f"{name} = {kinds[at]}"] = values == kinds[at]
    return made


def _held_flips(
    found: Findings,
    before: list[str | None],
    after: list[str | None],
    groups: Mapping[str, NDArray[np.bool_]],
) -> str:
    both = np.array([a is not None and b is not None for a, b in zip(before, after, strict=True)])
    other = np.array([a != b for a, b in zip(before, after, strict=True)]) & both
    shares = {name: float(other[rows].sum() / max(both[rows].sum(), 1)) for name, rows in groups.items()}
    found.figures["flips"] = {f"{a} -> {b}": count for (a, b), count in flips(before, after).items()}
    found.figures["flipped"] = shares
    for name, share in shares.items():
        bound, what = (
            ("flips", "share of other decisions")
            if name == "all"
            else ("cohort_flips", f"the same where {name}")
        )
        found.hold(bound, share, what)
    if len(shares) > 1:
        found.charts.append(
            Chart(
                title="Share of other decisions, by cohort",
                labels=list(shares),
                series={"flips": list(shares.values())},
            )
        )
    return f"{int(other.sum()):,} of {int(both.sum()):,} are others than before"


def _held_errors(
    found: Findings,
    before: list[str | None] | None,
    after: list[str | None],
    labels: NDArray[np.float64],
    groups: Mapping[str, NDArray[np.bool_]],
    positive: set[str],
) -> None:
    acts = np.array([a in positive for a in after])
    acted = None if before is None else np.array([a in positive for a in before])
    decided = np.array([a is not None for a in after]) & np.isfinite(labels)
    if before is not None:
        decided &= np.array([b is not None for b in before])
    bad, good = decided & (labels > 0.5), decided & (labels <= 0.5)
    rates: dict[str, dict[str, float]] = {}
    for name, rows in groups.items():
        fine = good & rows
        if fine.sum() < FEW_IN_COHORT:
            continue
        rates[name] = {"rows": int(fine.sum()), "this": float(acts[fine].mean())}
        if acted is None:
            continue
        rates[name]["other"] = float(acted[fine].mean())
        new, gone = int((acts & ~acted & fine).sum()), int((acted & ~acts & fine).sum())
        if worse_than_chance(new, gone):
            rise = (new - gone) / float(fine.sum())
            found.hold(
                "false_positives", rise, f"rise of false positives{'' if name == 'all' else f' where {name}'}"
            )
    found.figures["positive"] = sorted(positive)
    found.figures["false_positives"] = rates
    found.figures["caught"] = caught = {
        "rows": int(bad.sum()),
        "this": float(acts[bad].mean()) if bad.any() else None,
    }
    if acted is not None and bad.any():
        caught["other"] = float(acted[bad].mean())
        new, gone = int((acts & ~acted & bad).sum()), int((acted & ~acts & bad).sum())
        if worse_than_chance(gone, new):
            found.hold(
                "caught", (gone - new) / float(bad.sum()), "fall of the share of bad rows that are caught"
            )
    if rates:
        series = {"this": [one["this"] for one in rates.values()]}
        if acted is not None:
            series["other"] = [one["other"] for one in rates.values()]
        found.charts.append(Chart(title="False positives, by cohort", labels=list(rates), series=series))
