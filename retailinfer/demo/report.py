"""What the demo shows at its end: a summary for the terminal, and one HTML file with charts that needs nothing else.

Rules:
  * A figure is printed with what it is compared with, and whether the promise about it was kept.
  * Times are medians and tails of the very replay that is described, in microseconds.
  * Charts are vector images inside the page: no script, no request to anywhere.
What is measured: `replay.py`, `fraud.py`, `recommend.py`. Who fills these classes: `run.py`.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retailinfer.demo import charts
from retailinfer.demo.charts import us
from retailinfer.demo.fraud import FraudQuality
from retailinfer.demo.recommend import RankingQuality
from retailinfer.demo.replay import STAGES, Parity, Replay

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Declined",
    "FraudResult",
    "Promise",
    "RecommendResult",
    "Results",
    "html_page",
    "terminal_summary",
]


# Rounding in float32 adds up in another order than in the training framework; more than this is another model. Trees sum as
# their trainer does: there, one bit is too much.
SAME_SCORE: Final = 2e-6


class Promise(NamedTuple):
    """Something the demo must show: a name for machines, in words, what came out, and whether it was kept."""

    name: str
    text: str
    got: str
    kept: bool


@dataclass(frozen=True, slots=True)
class Declined:
    """A payment that was declined, and the texts of its reasons, strongest first."""

    amount: float
    score: float
    fraud: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FraudResult:
    """The fraud half. `label` and scores: one entry a held-out payment."""

    n_payments: int
    fraud_share: float
    n_train: int
    with_velocity: FraudQuality
    without_velocity: FraudQuality
    label: NDArray[np.bool_]
    score_with: NDArray[np.floating[Any]]
    score_without: NDArray[np.floating[Any]]
    found_with: dict[int, float]  # scenario -> share found among the `looked_at` highest scores
    found_without: dict[int, float]
    looked_at: float
    replay: Replay  # `beside`: the same model in ONNX Runtime
    parity: Parity  # of the trees with LightGBM's probabilities as float32
    parity_onnx: Parity  # of the same model in ONNX Runtime
    declined: list[Declined]
    kernel: str  # which one runs a row here
    model: str

    @property
    def times_as_fast(self) -> float:
        """Median of the whole call through ONNX Runtime over that through trees."""
        return self.replay.beside_us(0.5) / self.replay.whole_us(0.5)


@dataclass(frozen=True, slots=True)
class RecommendResult:
    """The recommendation half."""

    n_purchases: int
    n_households: int
    n_train: int
    quality: RankingQuality  # of the answers that were served
    trained_hit_rate: float  # of the training framework's scores
    replay: Replay
    parity: Parity  # of the release as served (int8)
    parity_fp32: Parity  # of the same model before it was quantised
    model: str


@dataclass(frozen=True, slots=True)
class Results:
    """All that the report tells."""

    fraud: FraudResult
    recommend: RecommendResult
    machine: dict[str, str]
    seconds: dict[str, float] = field(default_factory=dict)  # what the steps took
    short: bool = False  # fewer days and weeks than the real one

    def promises(self) -> list[Promise]:
        """What the demo is there to show."""
        fraud, recommend = self.fraud, self.recommend
        factor = fraud.with_velocity.average_precision / fraud.without_velocity.average_precision
        margin = recommend.quality.over_own_history
        return [
            Promise(
                "velocity",
                "velocity features at least triple the average precision",
                f"{fraud.without_velocity.average_precision:.3f} to {fraud.with_velocity.average_precision:.3f}, "
                f"{factor:.1f} times",
                factor >= 3,
            ),
            Promise(
                "own_history",
                "hit rate at 10 beats the household's own history",
                f"{recommend.quality.own_history:.3f} to {recommend.quality.hit_rate:.3f}, "
                f"95 % interval of the margin {margin.low:+.3f} to {margin.high:+.3f}",
                margin.low > 0,
            ),
            Promise(
                "fraud_parity",
                "every fraud score and decision is LightGBM's, to the last bit",
                _agreement(fraud.parity),
                _agrees(fraud.parity, within=0.0),
            ),
            Promise(
                "recommend_parity",
                "every float32 recommendation score and first ten is scikit-learn's",
                _agreement(recommend.parity_fp32),
                _agrees(recommend.parity_fp32),
            ),
        ]


def _agrees(parity: Parity, *, within: float = SAME_SCORE) -> bool:
    return parity.flips == 0 and parity.max_difference <= within


def _agreement(parity: Parity) -> str:
    return (
        f"{parity.flips:,} of {parity.n_decisions:,} decisions differ, {parity.n:,} scores {_within(parity)}"
    )


def _within(parity: Parity) -> str:
    return "are the same" if parity.max_difference == 0 else f"within {parity.max_difference:.1e}"


# --- terminal ---------------------------------------------------------------------------------------------------------


def terminal_summary(results: Results) -> str:
    """A page of text."""
    fraud, recommend = results.fraud, results.recommend
    quality = recommend.quality
    lines = [
        "",
        "Fraud: card payments, one score a request",
        (
            f"  data      {fraud.n_payments:,} generated payments, {fraud.fraud_share:.2%} fraud; "
            f"{fraud.n_train:,} to learn from, {len(fraud.label):,} held out by time"
        ),
        f"  model     {fraud.model}",
        "  quality   " + _columns(("", "with velocity", "without"), width=18),
        *(
            "            " + _columns((name, f"{ours:.3f}", f"{theirs:.3f}"), width=18)
            for name, ours, theirs in _fraud_rows(fraud)
        ),
        *_latency_lines(fraud.replay),
        f"  parity    with LightGBM: {_parity(fraud.parity)}",
        (
            f"  engines   trees ({fraud.kernel}) {us(fraud.replay.whole_us(0.5))} us, ONNX Runtime "
            f"{us(fraud.replay.beside_us(0.5))} us: {fraud.times_as_fast:.1f} times as fast, JSON bytes to JSON bytes"
        ),
        f"            ONNX Runtime with LightGBM: {_parity(fraud.parity_onnx)}",
        *_declined_lines(fraud.declined),
        "",
        f"Recommendations: {recommend.replay.rows} products ranked a request",
        (
            f"  data      {recommend.n_purchases:,} purchases of {recommend.n_households:,} households; "
            f"{recommend.n_train:,} rows to learn from, the last week held out"
        ),
        f"  model     {recommend.model}",
        (
            f"  quality   hit rate at 10: {quality.hit_rate:.3f}; own history {quality.own_history:.3f}, "
            f"popular in four weeks {quality.popularity_4w:.3f}, ever {quality.popularity:.3f}"
        ),
        (
            f"            margin over own history {quality.over_own_history.mean:+.3f} (95 % interval "
            f"{quality.over_own_history.low:+.3f} to {quality.over_own_history.high:+.3f}), "
            f"{quality.n_households:,} households"
        ),
        *_latency_lines(recommend.replay),
        f"  parity    with scikit-learn, float32: {_parity(recommend.parity_fp32)}",
        f"            the same, int8 as served: {_parity(recommend.parity)}",
        f"            hit rate at 10 before quantising {recommend.trained_hit_rate:.3f}",
        "",
        "Promises",
        *(f"  {'kept  ' if p.kept else 'BROKEN'}  {p.text}: {p.got}" for p in results.promises()),
        "",
    ]
    return "\n".join(lines)


def _declined_lines(declined: Sequence[Declined]) -> list[str]:
    return [
        f"{'' if at else '  declined':<12}{one.amount:>8,.2f}  {one.score:.3f}  {_found(one):<9}  {'; '.join(one.reasons)}"
        for at, one in enumerate(declined)
    ]


def _found(one: Declined) -> str:
    return "fraud" if one.fraud else "not fraud"


def _latency_lines(replay: Replay) -> list[str]:
    p50, p95, p99 = (replay.stage_us(q) for q in (0.5, 0.95, 0.99))
    rows = [
        ("us", "p50", "p95", "p99"),
        ("whole call", *(us(replay.whole_us(q)) for q in (0.5, 0.95, 0.99))),
        *((f"  {name}", us(p50[name]), us(p95[name]), us(p99[name])) for name in STAGES),
        ("bare run", *(us(replay.bare_us(q)) for q in (0.5, 0.95, 0.99))),
    ]
    text = ["            " + _columns(row, width=12) for row in rows]
    text[0] = f"  latency   {text[0].lstrip()}"
    text.append(
        f"            {len(replay.whole):,} requests, JSON bytes to JSON bytes; "
        f"the median is {replay.ratio:.2f} times a bare run's, of the model alone on ready rows"
    )
    return text


def _columns(cells: Sequence[str], *, width: int) -> str:
    first, *others = cells
    return f"{first:<{width}}" + "".join(f"{cell:>{max(width - 2, 10)}}" for cell in others)


def _parity(parity: Parity) -> str:
    mean = f" (mean {parity.mean_difference:.1e})" if parity.max_difference else ""
    return f"{parity.n:,} scores {_within(parity)}{mean}, {parity.flips:,} of {parity.n_decisions:,} decisions differ"


def _fraud_rows(fraud: FraudResult) -> list[tuple[str, float, float]]:
    ours, theirs = fraud.with_velocity, fraud.without_velocity
    return [
        ("average precision", ours.average_precision, theirs.average_precision),
        ("area under ROC", ours.auc, theirs.auc),
        ("card precision@100", ours.card_precision_100, theirs.card_precision_100),
    ]


# --- HTML -------------------------------------------------------------------------------------------------------------


def html_page(results: Results) -> str:
    """The report as one page."""
    made = results.promises()
    promises = "".join(
        f'<li class="{"kept" if p.kept else "broken"}"><b>{"✓ kept" if p.kept else "✗ broken"}</b> '
        f"{html.escape(p.text)}<span>{html.escape(p.got)}</span></li>"
        for p in made
    )
    steps = [("step:", "seconds"), *((name, f"{some:,.1f}") for name, some in results.seconds.items())]
    page = Template(files("retailinfer.demo").joinpath("page.html").read_text(encoding="utf-8"))
    return page.substitute(
        machine="".join(
            f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
            for name, value in results.machine.items()
        ),
        kept=f"{sum(p.kept for p in made)} of {len(made)} promises kept",
        short="<p class=short>A short run, on fewer days, weeks and households: quality and tails are rougher "
        "than those of the whole demo.</p>"
        if results.short
        else "",
        promises=promises,
        sections=_fraud_section(results.fraud)
        + _trees_section(results.fraud)
        + _recommend_section(results.recommend),
        steps=_table(steps),
        total=f"{sum(results.seconds.values()):,.0f}",
    )


LATENCY: Final = (
    "From JSON bytes to JSON bytes, every check on; lines mark the median (solid) and p99 (dashed)."
)
WHERE: Final = "The same requests stage by stage; reading the clock between stages is part of it."


def _fraud_section(fraud: FraudResult) -> str:
    replay, ours, theirs, parity = fraud.replay, fraud.with_velocity, fraud.without_velocity, fraud.parity
    return _section(
        "Fraud: one card payment a request",
        f"{fraud.n_payments:,} payments generated after the design of the Fraud Detection Handbook, "
        f"{fraud.fraud_share:.2%} of them fraud; {fraud.n_train:,} to learn from, {len(fraud.label):,} later ones held "
        "out and replayed. Velocity is declared once, as windows: counted over history to train, read and added to by each "
        f"request here. Model: {fraud.model}.",
        tiles=[
            _latency_tile(replay),
            _ratio_tile(replay),
            (
                "average precision",
                f"{ours.average_precision:.3f}",
                f"{theirs.average_precision:.3f} without velocity features",
            ),
            ("decisions that differ", f"{parity.flips:,}", f"of {parity.n:,}, from LightGBM's own"),
        ],
        figures=[
            ("Latency", LATENCY, charts.latency_chart(replay)),
            ("Where the time goes", WHERE, charts.stages_chart(replay)),
            (
                "Precision and recall",
                "On payments that came after all that the model learned from.",
                charts.fraud_curve_chart(fraud),
            ),
            (
                "Found by kind of fraud",
                f"When people look at {fraud.looked_at:.0%} of the payments.",
                charts.fraud_kinds_chart(fraud),
            ),
        ],
        rows=[
            *_latency_rows(replay),
            ("quality:", "with velocity", "without", ""),
            *((name, f"{a:.3f}", f"{b:.3f}", "") for name, a, b in _fraud_rows(fraud)),
            ("scores beside LightGBM's:", "largest difference", "mean difference", "decisions that differ"),
            _parity_row("as served", parity),
        ],
    )


def _trees_section(fraud: FraudResult) -> str:
    replay, parity, onnx = fraud.replay, fraud.parity, fraud.parity_onnx
    head = ("amount", "score", "", "why: strongest first")
    cells = [
        (f"{one.amount:,.2f}", f"{one.score:.3f}", _found(one), "; ".join(one.reasons))
        for one in fraud.declined
    ]
    declined = "".join(
        "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
        for tag, row in [("th", head), *(("td", row) for row in cells)]
    )
    return _section(
        "Trees beside ONNX Runtime",
        "The same booster, features and requests, packed twice. Packing reads LightGBM's own trees and compares them with "
        "LightGBM on rows that lie on thresholds, beside them, and that are missing; kernels were timed when the release was "
        f"loaded ({fraud.kernel} runs one row here). Each engine counts in windows of its own; the trees' call also names "
        "its reasons.",
        tiles=[
            (
                "through trees, median",
                f"{us(replay.whole_us(0.5))} µs",
                f"{us(replay.beside_us(0.5))} µs through ONNX Runtime",
            ),
            (
                "times as fast as ONNX Runtime",
                f"{fraud.times_as_fast:.1f}",
                "JSON bytes to JSON bytes, reasons included",
            ),
            (
                "largest difference from LightGBM",
                _small(parity.max_difference),
                f"{_small(onnx.max_difference)} through ONNX Runtime, of {parity.n:,} scores",
            ),
        ],
        figures=[
            (
                "Bytes to bytes",
                "The same requests through both engines, and the model alone in ONNX Runtime: median, and p99 as a line.",
                charts.engines_chart(replay),
            ),
        ],
        aside="<figure><figcaption><b>Why</b> Declined payments and what led to it; the policy gives each field its text."
        f"</figcaption><table class=why>{declined}</table></figure>",
        rows=[
            ("latency, µs:", "median", "p95", "p99"),
            ("whole call, trees", *(us(replay.whole_us(q)) for q in (0.5, 0.95, 0.99))),
            ("whole call, ONNX Runtime", *(us(replay.beside_us(q)) for q in (0.5, 0.95, 0.99))),
            ("bare run", *(us(replay.bare_us(q)) for q in (0.5, 0.95, 0.99))),
            ("scores beside LightGBM's:", "largest difference", "mean difference", "decisions that differ"),
            _parity_row("trees", parity),
            _parity_row("ONNX Runtime", onnx),
        ],
    )


def _recommend_section(recommend: RecommendResult) -> str:
    replay, quality, margin = recommend.replay, recommend.quality, recommend.quality.over_own_history
    int8 = recommend.parity
    return _section(
        f"Recommendations: {replay.rows} products ranked a request",
        f"{recommend.n_purchases:,} grocery purchases of {recommend.n_households:,} households; "
        f"{recommend.n_train:,} rows to learn from, the last week held out and replayed, a request for each of "
        f"{quality.n_households:,} households. Model: {recommend.model}.",
        tiles=[
            _latency_tile(replay),
            _ratio_tile(replay),
            (
                "hit rate at 10",
                f"{quality.hit_rate:.3f}",
                f"{recommend.trained_hit_rate:.3f} before quantising to int8",
            ),
            (
                "above own history",
                f"{margin.mean:+.3f}",
                f"95 % interval {margin.low:+.3f} to {margin.high:+.3f}",
            ),
        ],
        figures=[
            ("Latency", LATENCY, charts.latency_chart(replay)),
            ("Where the time goes", WHERE, charts.stages_chart(replay)),
            (
                "Hit rate at 10",
                "Households that bought one of ten products in the week held out, with 95 % intervals.",
                charts.hit_rate_chart(quality),
            ),
            (
                "Hit rate by length",
                "The same when only the first one, two .. ten products are shown.",
                charts.by_length_chart(quality),
            ),
        ],
        rows=[
            *_latency_rows(replay),
            ("quality:", "as served, int8", "before quantising", ""),
            ("hit rate at 10", f"{quality.hit_rate:.3f}", f"{recommend.trained_hit_rate:.3f}", ""),
            (
                "scores beside scikit-learn's:",
                "largest difference",
                "mean difference",
                "first ten that differ",
            ),
            _parity_row("before quantising, float32", recommend.parity_fp32),
            _parity_row("as served, int8", int8),
        ],
    )


def _latency_tile(replay: Replay) -> tuple[str, str, str]:
    return "whole call, median", f"{us(replay.whole_us(0.5))} µs", f"p99 {us(replay.whole_us(0.99))} µs"


def _ratio_tile(replay: Replay) -> tuple[str, str, str]:
    note = f"the model alone takes {us(replay.bare_us(0.5))} µs"
    return "compared with a bare run", f"{replay.ratio:.2f} ×", note


def _section(
    title: str,
    text: str,
    *,
    tiles: Sequence[tuple[str, str, str]],
    figures: Sequence[tuple[str, str, Figure]],
    rows: Sequence[tuple[str, ...]],
    aside: str = "",
) -> str:
    tile = "".join(
        f"<div class=tile><p>{html.escape(label)}</p><strong>{html.escape(value)}</strong>"
        f"<small>{html.escape(note)}</small></div>"
        for label, value, note in tiles
    )
    figure = "".join(
        f"<figure><figcaption><b>{html.escape(name)}</b> {html.escape(caption)}</figcaption>"
        f'<img alt="{html.escape(name)}: {html.escape(caption)}" src="{_data_url(chart)}"></figure>'
        for name, caption, chart in figures
    )
    return (
        f"<section><h2>{html.escape(title)}</h2><p class=lead>{html.escape(text)}</p>"
        f"<div class=tiles>{tile}</div><div class=charts>{figure}{aside}</div>"
        f"<details><summary>All figures as a table</summary><table>{_table(rows)}</table></details></section>"
    )


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows of a table; one whose first cell ends in a colon heads those below it."""
    made = []
    for name, *cells in rows:
        tag = "th" if name.endswith(":") else "td"
        numbers = "".join(f"<{tag} class=n>{html.escape(cell)}</{tag}>" for cell in cells)
        made.append(f"<tr><{tag}>{html.escape(name.removesuffix(':'))}</{tag}>{numbers}</tr>")
    return "".join(made)


def _data_url(chart: Figure) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(charts.svg(chart)).decode()


def _latency_rows(replay: Replay) -> list[tuple[str, ...]]:
    quantiles = (0.5, 0.95, 0.99)
    stages = [replay.stage_us(q) for q in quantiles]
    return [
        ("latency, µs:", "median", "p95", "p99"),
        ("whole call", *(us(replay.whole_us(q)) for q in quantiles)),
        *((f"– {name}", *(us(of[name]) for of in stages)) for name in STAGES),
        ("bare run", *(us(replay.bare_us(q)) for q in quantiles)),
    ]


def _small(difference: float) -> str:
    return f"{difference:.1e}" if difference else "0"


def _parity_row(name: str, parity: Parity) -> tuple[str, ...]:
    return (
        name,
        _small(parity.max_difference),
        _small(parity.mean_difference),
        f"{parity.flips:,} of {parity.n_decisions:,}",
    )
