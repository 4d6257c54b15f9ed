"""A report of checks for people: lines for a terminal, and one HTML file that needs nothing else.

Rules:
  * Charts are SVG inside the page: no script that runs, no request to anywhere. Every text is escaped.
  * The page carries the report's JSON, so that the page that was read is what is handed over for an approval.
"""

from __future__ import annotations

import html
from typing import Final

from retailinfer.release.report import PAGE_BEGINS, PAGE_ENDS, Chart, Check, CheckReport, encode_report

__all__ = ["html_page", "text_lines"]

MARKS: Final = {"passed": "ok", "warned": "warned", "failed": "FAILED", "not applicable": "-"}
COLOURS: Final = ("#0f766e", "#94a3b8", "#b45309")
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 560, 240, 52, 64, 12


def text_lines(report: CheckReport) -> list[str]:
    """The report in lines, every check with what bears on it."""
    against = f", against {report.against}" if report.against else ""
    lines = [f"{report.release} {report.digest[:12]}{against}; {report.rows:,} rows"]
    for one in report.checks:
        allowed = " (allowed)" if one.state == "failed" and one.name in report.allowed else ""
        lines.append(f"  {MARKS[one.state]:<7} {one.name:<13} {one.text}{allowed}")
        lines += [f"{'':24}{note}" for note in one.notes]
    lines.append(_ending(report))
    return lines


def _ending(report: CheckReport) -> str:
    states = [one.state for one in report.checks]
    counted = ", ".join(f"{states.count(state)} {state}" for state in MARKS if state in states)
    return f"{'passed' if report.passed else 'NOT PASSED'}: {counted}"


# ---- HTML ------------------------------------------------------------------------------------------------------------

STYLE: Final = """
:root { color-scheme: light; --ink: #0f172a; --soft: #52606f; --line: #e2e8f0; }
* { box-sizing: border-box; }
body { margin: 0; background: #f8fafc; color: var(--ink); font: 15px/1.55 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 28px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 0; }
.lead { color: var(--soft); margin: 4px 0 20px; overflow-wrap: anywhere; }
section { background: #fff; border: 1px solid var(--line); border-left: 4px solid #94a3b8; border-radius: 10px;
  padding: 16px 24px; margin-top: 16px; }
.passed { border-left-color: #0f766e; } .warned { border-left-color: #b45309; } .failed { border-left-color: #b91c1c; }
.state { float: right; font-size: 13px; color: var(--soft); }
section p { margin: 4px 0; overflow-wrap: anywhere; } ul { margin: 6px 0; padding-left: 20px; color: var(--soft); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 20px; margin-top: 12px; }
figure { margin: 0; } figcaption { font-size: 13px; color: var(--soft); } svg { width: 100%; height: auto; display: block; }
"""


def html_page(report: CheckReport) -> str:
    """The report as one page."""
    against = f", against {report.against} {report.against_digest[:12]}" if report.against_digest else ""
    title = f"{report.release}: {_ending(report)}"
    inside = encode_report(report).decode().replace("<", "\\u003c")  # no text can end the block
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f"<h1>{html.escape(title)}</h1>"
        f'<p class="lead">Release {html.escape(report.digest)}{html.escape(against)}; {report.rows:,} rows; '
        f"{html.escape(report.made)}, on {html.escape(report.cpu)}</p>"
        f"{''.join(_section(report, one) for one in report.checks)}"
        f"</main>{PAGE_BEGINS.decode()}{inside}{PAGE_ENDS.decode()}</body></html>\n"
    )


def _section(report: CheckReport, one: Check) -> str:
    allowed = ", allowed" if one.state == "failed" and one.name in report.allowed else ""
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in one.notes)
    charts = "".join(
        f"<figure><figcaption>{html.escape(chart.title)}</figcaption>{svg(chart)}</figure>"
        for chart in one.charts
    )
    return (
        f'<section class="{one.state.replace(" ", "-")}"><span class="state">{one.state}{allowed}</span>'
        f"<h2>{html.escape(one.name)}</h2><p>{html.escape(one.text)}</p>"
        f"{f'<ul>{notes}</ul>' if notes else ''}{f'<div class=charts>{charts}</div>' if charts else ''}</section>"
    )


def svg(chart: Chart) -> str:
    """Bars side by side, one group a label, with the bound as a line."""
    n, m = len(chart.labels), len(chart.series)
    values = [v for series in chart.series.values() for v in series]
    top = max([*values, chart.line or 0.0, 0.0]) or 1.0
    height, width = HEIGHT - BOTTOM - TOP, WIDTH - LEFT - 8
    group = width / max(n, 1)
    bar = min(28.0, group * 0.8 / max(m, 1))
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-size="11" '
            f'font-family="system-ui, sans-serif" fill="#52606f"><title>{html.escape(chart.title)}</title>'
        )
    ]
    for share in (0.0, 0.5, 1.0):
        y = TOP + height * (1 - share)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - 8}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e2e8f0"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{top * share:.3g}</text>')
    for k, series in enumerate(chart.series.values()):
        for i, value in enumerate(series):
            tall = max(0.0, value) / top * height
            x = LEFT + group * i + (group - bar * m) / 2 + bar * k
            parts.append(
                f'<rect x="{x:.1f}" y="{TOP + height - tall:.1f}" width="{max(bar - 1, 0.5):.1f}" height="{tall:.1f}" '
                f'fill="{COLOURS[k % len(COLOURS)]}"><title>{html.escape(chart.labels[i])}: {value:.4g}</title></rect>'
            )
    every = max(1, -(-n // 12))
    for i in range(0, n, every):
        x, y = LEFT + group * (i + 0.5), HEIGHT - BOTTOM + 14
        label = chart.labels[i] if len(chart.labels[i]) <= 14 else chart.labels[i][:13] + "…"
        parts.append(
            f'<text x="{x:.1f}" y="{y}" text-anchor="end" transform="rotate(-30 {x:.1f} {y})">{html.escape(label)}</text>'
        )
    if chart.line is not None:
        y = TOP + height * (1 - chart.line / top)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - 8}" y1="{y:.1f}" y2="{y:.1f}" stroke="#b91c1c" stroke-dasharray="4 3"/>'
        )
    for k, name in enumerate(chart.series):
        x = LEFT + 120 * k
        parts.append(
            f'<rect x="{x}" y="{HEIGHT - 11}" width="10" height="10" fill="{COLOURS[k % len(COLOURS)]}"/>'
        )
        parts.append(f'<text x="{x + 14}" y="{HEIGHT - 2}">{html.escape(name)}</text>')
    return "".join([*parts, "</svg>"])
