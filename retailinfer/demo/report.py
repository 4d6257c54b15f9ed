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
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retailinfer.demo import charts
from retailinfer.demo.fraud import FraudQuality
from retailinfer.demo.recommend import RankingQuality
from retailinfer.demo.replay import STAGES, Parity, Replay

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FraudResult", "Promise", "RecommendResult", "Results", "html_page", "terminal_summary"]


class Promise(NamedTuple):
    """Something the demo must show: in words, what came out, and whether it was kept."""

    text: str
    got: str
    kept: bool


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
    replay: Replay
    parity: Parity
    model: str


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

    def promises(self) -> list[Promise]:
        """What the demo is there to show."""
        fraud, recommend = self.fraud, self.recommend
        factor = fraud.with_velocity.average_precision / fraud.without_velocity.average_precision
        margin = recommend.quality.over_own_history
        return [
            Promise(
                "velocity features at least triple the average precision",
                f"{fraud.without_velocity.average_precision:.3f} to {fraud.with_velocity.average_precision:.3f}, "
                f"{factor:.1f} times",
                factor >= 3,
            ),
            Promise(
                "hit rate at 10 beats the household's own history",
                f"{recommend.quality.own_history:.3f} to {recommend.quality.hit_rate:.3f}, "
                f"95 % interval of the margin {margin.low:+.3f} to {margin.high:+.3f}",
                margin.low > 0,
            ),
            Promise(
                "no fraud decision differs from the training framework's",
                f"{fraud.parity.flips} of {fraud.parity.n:,}, scores within {fraud.parity.max_difference:.1e}",
                fraud.parity.flips == 0,
            ),
        ]


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


def _latency_lines(replay: Replay) -> list[str]:
    p50, p95, p99 = (replay.stage_us(q) for q in (0.5, 0.95, 0.99))
    rows = [
        ("", "p50", "p95", "p99", "us"),
        ("whole call", *(f"{replay.whole_us(q):,.1f}" for q in (0.5, 0.95, 0.99)), ""),
        *(
            (f"  {name}", f"{p50[name]:,.1f}", f"{p95[name]:,.1f}", f"{p99[name]:,.1f}", "")
            for name in STAGES
        ),
        ("bare run", *(f"{replay.bare_us(q):,.1f}" for q in (0.5, 0.95, 0.99)), ""),
    ]
    text = ["            " + _columns(row, width=12) for row in rows]
    text[0] = f"  latency   {text[0].strip():>{len(text[0]) - 12}}"
    text.append(
        f"            {len(replay.whole):,} requests, JSON bytes to JSON bytes; "
        f"{replay.ratio:.2f} of a bare run of the model on ready rows"
    )
    return text


def _columns(cells: Sequence[str], *, width: int) -> str:
    first, *others = cells
    return f"{first:<{width}}" + "".join(f"{cell:>{max(width - 2, 10)}}" for cell in others)


def _parity(parity: Parity) -> str:
    return (
        f"{parity.n:,} scores within {parity.max_difference:.1e} (mean {parity.mean_difference:.1e}), "
        f"{parity.flips:,} of {parity.n_decisions:,} decisions differ"
    )


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
    promises = "".join(
        f'<li class="{"kept" if p.kept else "broken"}"><b>{"kept" if p.kept else "broken"}</b> '
        f"{html.escape(p.text)}<span>{html.escape(p.got)}</span></li>"
        for p in results.promises()
    )
    steps = [(name, f"{seconds:,.1f} s") for name, seconds in results.seconds.items()]
    page = Template(files("retailinfer.demo").joinpath("page.html").read_text(encoding="utf-8"))
    return page.substitute(
        machine=html.escape(" · ".join(f"{name} {value}".strip() for name, value in results.machine.items())),
        promises=promises,
        sections=_fraud_section(results.fraud) + _recommend_section(results.recommend),
        steps=_table(steps),
        total=f"{sum(results.seconds.values()):,.0f}",
    )


def _fraud_section(fraud: FraudResult) -> str:
    replay, ours, theirs, parity = fraud.replay, fraud.with_velocity, fraud.without_velocity, fraud.parity
    return _section(
        "Fraud: card payments",
        f"{fraud.n_payments:,} generated payments after the design of the Fraud Detection Handbook, "
        f"{fraud.fraud_share:.2%} of them fraud. {fraud.model}",
        tiles=[
            ("whole call, p50", f"{replay.whole_us(0.5):,.1f} µs", f"p99 {replay.whole_us(0.99):,.1f} µs"),
            ("of a bare run", f"{replay.ratio:.2f}", "whole call over the model alone, medians"),
            (
                "average precision",
                f"{ours.average_precision:.3f}",
                f"{theirs.average_precision:.3f} without velocity",
            ),
            ("decisions that differ", f"{parity.flips:,}", f"of {parity.n:,}, against LightGBM"),
        ],
        figures=[
            ("Latency", "JSON bytes in, JSON bytes out, every check on.", charts.latency_chart(replay)),
            ("Where the time goes", "The same requests, stage by stage.", charts.stages_chart(replay)),
            (
                "Quality",
                "On days that come after all that was learned from.",
                charts.fraud_curve_chart(fraud),
            ),
            ("By kind of fraud", "What looking at few payments finds.", charts.fraud_kinds_chart(fraud)),
        ],
        rows=[
            *_latency_rows(replay),
            ("quality:", "with velocity", "without", ""),
            *((name, f"{a:.3f}", f"{b:.3f}", "") for name, a, b in _fraud_rows(fraud)),
            ("against LightGBM:", "largest difference", "mean", "decisions that differ"),
            _parity_row("scores as served", parity),
        ],
    )


def _recommend_section(recommend: RecommendResult) -> str:
    replay, quality, margin = recommend.replay, recommend.quality, recommend.quality.over_own_history
    return _section(
        f"Recommendations: {replay.rows} products ranked a request",
        f"{recommend.n_purchases:,} grocery purchases of {recommend.n_households:,} households. {recommend.model}",
        tiles=[
            ("whole call, p50", f"{replay.whole_us(0.5):,.0f} µs", f"p99 {replay.whole_us(0.99):,.0f} µs"),
            ("of a bare run", f"{replay.ratio:.2f}", "whole call over the model alone, medians"),
            (
                "hit rate at 10",
                f"{quality.hit_rate:.3f}",
                f"{quality.own_history:.3f} by the household's own history",
            ),
            ("margin", f"{margin.mean:+.3f}", f"95 % interval {margin.low:+.3f} to {margin.high:+.3f}"),
        ],
        figures=[
            ("Latency", "JSON bytes in, ten products out.", charts.latency_chart(replay)),
            ("Where the time goes", "The same requests, stage by stage.", charts.stages_chart(replay)),
            ("Quality", "In the week held out, with 95 % intervals.", charts.hit_rate_chart(quality)),
            ("By length", "Hit rate of the first 1 to 10 products.", charts.by_length_chart(quality)),
        ],
        rows=[
            *_latency_rows(replay),
            ("quality:", "as served, int8", "before quantising", ""),
            ("hit rate at 10", f"{quality.hit_rate:.3f}", f"{recommend.trained_hit_rate:.3f}", ""),
            ("against scikit-learn:", "largest difference", "mean", "first ten that differ"),
            _parity_row("scores as float32", recommend.parity_fp32),
            _parity_row("scores as served, int8", recommend.parity),
        ],
    )


def _section(
    title: str,
    text: str,
    *,
    tiles: Sequence[tuple[str, str, str]],
    figures: Sequence[tuple[str, str, Figure]],
    rows: Sequence[tuple[str, ...]],
) -> str:
    tile = "".join(
        f"<div class=tile><p>{html.escape(label)}</p><strong>{html.escape(value)}</strong>"
        f"<small>{html.escape(note)}</small></div>"
        for label, value, note in tiles
    )
    figure = "".join(
        f"<figure><figcaption><b>{html.escape(name)}</b> {html.escape(caption)}</figcaption>"
        f'<img alt="{html.escape(name)}" src="{_data_url(chart)}"></figure>'
        for name, caption, chart in figures
    )
    return (
        f"<section><h2>{html.escape(title)}</h2><p class=lead>{html.escape(text)}</p>"
        f"<div class=tiles>{tile}</div><div class=charts>{figure}</div>"
        f"<details><summary>All figures</summary><table>{_table(rows)}</table></details></section>"
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
        ("microseconds:", "p50", "p95", "p99"),
        ("whole call", *(f"{replay.whole_us(q):,.1f}" for q in quantiles)),
        *((f"… {name}", *(f"{of[name]:,.1f}" for of in stages)) for name in STAGES),
        ("bare run", *(f"{replay.bare_us(q):,.1f}" for q in quantiles)),
    ]


def _parity_row(name: str, parity: Parity) -> tuple[str, ...]:
    return (
        name,
        f"{parity.max_difference:.1e}",
        f"{parity.mean_difference:.1e}",
        f"{parity.flips:,} of {parity.n_decisions:,}",
    )
