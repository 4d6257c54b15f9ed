"""The charts of the report: latency, stages, quality.

Rules:
  * Charts are made without pyplot: nothing global, no window, no back end to choose.
  * One colour for ours, grey for what it is compared with; readable without colour as well.
Where they go: `report.py`.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from retailinfer.demo.recommend import RankingQuality
    from retailinfer.demo.replay import Replay
    from retailinfer.demo.report import FraudResult

__all__ = [
    "by_length_chart",
    "engines_chart",
    "fraud_curve_chart",
    "fraud_kinds_chart",
    "hit_rate_chart",
    "latency_chart",
    "stages_chart",
    "svg",
    "us",
]

OURS: Final = "#0f766e"
THEIRS: Final = "#94a3b8"
ACCENT: Final = "#b45309"
INK: Final = "#0f172a"
SOFT: Final = "#475569"
GRID: Final = "#e2e8f0"
STAGE_COLOURS: Final = ("#7dd3c8", "#5eb5aa", "#2f978b", "#0f766e", "#b45309", "#e0a458")


def latency_chart(replay: Replay) -> Figure:
    """Distribution of the whole call and of the bare run, on a logarithmic axis, with the median and p99."""
    figure, axes = _figure()
    low = min(np.quantile(replay.whole, 0.001), np.quantile(replay.bare, 0.001)) / 1e3
    # A few requests met a busy machine and took a hundred times as long: drawn, they would squeeze all the others.
    high = 1.4 * max(replay.whole_us(0.99), replay.bare_us(0.99))
    bins = np.geomspace(max(low * 0.92, 0.1), high, 90)
    for values, colour, name in ((replay.bare, THEIRS, "bare run"), (replay.whole, OURS, "whole call")):
        p50, p99 = np.quantile(values, [0.5, 0.99]) / 1e3
        axes.hist(
            values / 1e3,
            bins=bins.tolist(),
            weights=np.full(len(values), 100.0 / len(values)),
            color=colour,
            alpha=0.6,
            linewidth=0,
            label=f"{name}: median {us(p50)}, p99 {us(p99)} µs",
        )
        axes.axvline(p50, color=colour, linewidth=1.4)
        axes.axvline(p99, color=colour, linewidth=1.4, linestyle=(0, (3, 2)))
    axes.set_xscale("log")
    axes.set_xlim(bins[0], bins[-1])
    axes.set_ylim(0, axes.get_ylim()[1] * 1.06)
    _plain_ticks(axes)
    axes.set_xlabel("duration of one request (µs, logarithmic)")
    axes.set_ylabel("share of requests (%)")
    beyond = float((replay.whole / 1e3 > high).mean())
    if beyond:
        text = f"{beyond:.1%} of calls took longer, up to {us(replay.whole_us(1.0))} µs"
        axes.text(
            0.99, 0.97, text, transform=axes.transAxes, ha="right", va="top", color=SOFT, fontsize=8,
            bbox={"facecolor": "white", "linewidth": 0, "pad": 2},
        )  # fmt: skip
    _legend_above(axes, columns=1)
    return figure


def stages_chart(replay: Replay) -> Figure:
    """Median of each stage as parts of one bar, beside the bare run."""
    figure, axes = _figure()
    left = 0.0
    stages = replay.stage_us(0.5)
    total, bare = sum(stages.values()), replay.bare_us(0.5)
    limit = max(total, bare) * 1.18
    for (name, value), colour in zip(stages.items(), STAGE_COLOURS, strict=True):
        axes.barh(1, value, left=left, color=colour, height=0.6, label=f"{name} {us(value)} µs")
        if value > 0.15 * total and value > 0.09 * limit:  # the name fits in
            ink = INK if colour == STAGE_COLOURS[0] else "white"
            axes.text(left + value / 2, 1, name, ha="center", va="center", color=ink, fontsize=9)
        left += value
    axes.barh(0, bare, color=THEIRS, height=0.6)
    for at, value in ((1, left), (0, bare)):
        axes.text(value, at, f"  {us(value)} µs", va="center", color=INK, fontsize=9)
    axes.set_yticks([0, 1], ["bare run", "whole call"])
    axes.set_xlim(0, limit)
    axes.set_ylim(-0.5, 1.5)
    axes.set_xlabel("median of each stage (µs)")
    axes.grid(visible=False, axis="y")
    _legend_above(axes, columns=3)
    return figure


def engines_chart(replay: Replay) -> Figure:
    """Median of the whole call through trees and through ONNX Runtime, and of the model alone; a line up to each p99."""
    figure, axes = _figure(height=2.3)
    bars = [
        ("bare run", replay.bare_us(0.5), replay.bare_us(0.99), THEIRS),
        ("ONNX Runtime", replay.beside_us(0.5), replay.beside_us(0.99), THEIRS),
        ("trees", replay.whole_us(0.5), replay.whole_us(0.99), OURS),
    ]
    widest = max(median for _, median, _, _ in bars)
    for at, (_, median, p99, colour) in enumerate(bars):
        axes.barh(at, median, color=colour, height=0.58, alpha=0.6 if at == 0 else 1.0)
        axes.plot([median, p99], [at, at], color=INK, linewidth=1, clip_on=True)
        axes.text(median, at + 0.33, f" {us(median)} µs", va="bottom", color=INK, fontsize=9)
    axes.set_yticks(range(len(bars)), [name for name, *_ in bars])
    axes.set_xlim(0, min(max(p99 for _, _, p99, _ in bars) * 1.05, 2.5 * widest))
    axes.set_ylim(-0.5, 2.75)
    axes.set_xlabel("duration of one request (µs)")
    axes.grid(visible=False, axis="y")
    return figure


def fraud_curve_chart(fraud: FraudResult) -> Figure:
    """Precision over recall, with and without velocity columns."""
    from sklearn.metrics import precision_recall_curve

    figure, axes = _figure()
    for score, colour, name, quality in (
        (fraud.score_without, THEIRS, "without velocity", fraud.without_velocity),
        (fraud.score_with, OURS, "with velocity", fraud.with_velocity),
    ):
        precision, recall, _ = precision_recall_curve(fraud.label, score)
        grid = np.linspace(0, 1, 400)
        # recall falls along the curve, and interp wants it to rise
        axes.plot(
            grid,
            np.interp(grid, recall[::-1], precision[::-1]),
            color=colour,
            linewidth=2,
            label=f"{name}: average precision {quality.average_precision:.3f}",
        )
    axes.axhline(fraud.label.mean(), color=ACCENT, linewidth=1, linestyle=(0, (3, 2)))
    axes.text(
        0.005, fraud.label.mean() + 0.015, f"chance, {fraud.label.mean():.2%}", color=ACCENT, fontsize=9
    )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.03)
    axes.set_xlabel("recall: share of the fraud that is found")
    axes.set_ylabel("precision: share of alarms that are fraud")
    axes.xaxis.set_major_formatter(_percent)
    axes.yaxis.set_major_formatter(_percent)
    _legend_above(axes, columns=1)
    return figure


def hit_rate_chart(quality: RankingQuality) -> Figure:
    """Hit rates at 10 of the baselines and the ranker, with 95 % intervals."""
    figure, axes = _figure()
    bars = [
        ("popular ever", quality.popularity, THEIRS),
        ("popular, 4 weeks", quality.popularity_4w, THEIRS),
        ("own history", quality.own_history, THEIRS),
        ("this ranker", quality.hit_rate, OURS),
    ]
    for at, (_, value, colour) in enumerate(bars):
        half = 1.96 * (value * (1 - value) / quality.n_households) ** 0.5
        axes.barh(at, value, color=colour, height=0.62)
        axes.errorbar(value, at, xerr=half, color=INK, linewidth=1, capsize=3)
        axes.text(value + half + 0.012, at, f"{value:.3f}", va="center", color=INK, fontsize=9)
    axes.set_yticks(range(len(bars)), [name for name, _, _ in bars])
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of households with a hit among ten products")
    axes.grid(visible=False, axis="y")
    return figure


def fraud_kinds_chart(fraud: FraudResult) -> Figure:
    """How much of each kind of fraud is found by looking at few payments."""
    figure, axes = _figure()
    kinds = ("large amounts", "compromised\nterminals", "stolen cards")
    for offset, found, colour, name in (
        (0.19, fraud.found_with, OURS, "with velocity"),
        (-0.19, fraud.found_without, THEIRS, "without velocity"),
    ):
        for at in range(len(kinds)):
            value = found.get(at + 1, 0.0)
            axes.barh(-at + offset, value, color=colour, height=0.34, label=name if at == 0 else None)
            axes.text(value + 0.012, -at + offset, f"{value:.0%}", va="center", color=INK, fontsize=9)
    axes.set_yticks([-at for at in range(len(kinds))], kinds)
    axes.set_xlim(0, 1.12)
    axes.xaxis.set_major_formatter(_percent)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_xlabel(f"share found among the {fraud.looked_at:.0%} of payments with the highest scores")
    axes.grid(visible=False, axis="y")
    _legend_above(axes)
    return figure


def by_length_chart(quality: RankingQuality) -> Figure:
    """Hit rate of the first 1, 2 .. 10 recommendations."""
    figure, axes = _figure()
    styles = {
        "this ranker": (OURS, "-"),
        "own history": (SOFT, "-"),
        "popular, 4 weeks": (THEIRS, (0, (3, 2))),
    }
    for name, (colour, dashes) in styles.items():
        rates = quality.by_length[name]
        axes.plot(range(1, len(rates) + 1), rates, color=colour, linestyle=dashes, linewidth=2, label=name)
    axes.set_xlim(1, 10)
    axes.set_ylim(0, 1)
    axes.set_xticks(range(1, 11))
    axes.set_xlabel("number of products recommended")
    axes.set_ylabel("share of households with a hit")
    _legend_above(axes, columns=3)
    return figure


def _figure(*, height: float = 2.9) -> tuple[Figure, Axes]:
    """An empty chart in the page's style. Made without pyplot: nothing global, no window."""
    from matplotlib.figure import Figure as NewFigure

    figure = NewFigure(figsize=(5.4, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    axes.grid(visible=True, color=GRID, linewidth=0.8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(THEIRS)
    axes.tick_params(colors=SOFT, labelsize=9, length=0)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(SOFT)
        label.set_fontsize(9)
    return figure, axes


def _legend_above(axes: Axes, *, columns: int = 2) -> None:
    """A legend over the chart, where it hides nothing."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncol=columns,
        frameon=False,
        fontsize=9,
        handlelength=1.2,
        columnspacing=1.4,
    )


def _plain_ticks(axes: Axes) -> None:
    """1, 2, 5, 10, 20 ... instead of powers of ten; more of them on a short axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()
    steps = (1.0, 2.0, 5.0) if high > 20 * low else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 10 else f"{value:g}")
    )
    axes.xaxis.set_minor_formatter(NullFormatter())


def _percent(value: float, _: object) -> str:
    return f"{value:.0%}"


def us(value: float) -> str:
    """Microseconds with as many digits as mean something."""
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def svg(figure: Figure) -> bytes:
    """The chart as SVG; text becomes outlines, so that it looks the same everywhere."""
    import matplotlib as mpl

    buffer = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "retailinfer"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
