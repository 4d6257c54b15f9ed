"""Numbers into README and docs: what stands between `<!-- bench:NAME -->` and `<!-- /bench -->` is written by the machine.

    fraud-lean takes <!-- bench:fraud_lean_ort -->0.95 times<!-- /bench --> the model alone

NAME is a figure of targets.toml, with what is asked of it after a dot: nothing = value and unit, "value", "worst", "note",
"state", "target". "cpu", "versions" and "table" (all figures as a Markdown table) stand for themselves.
Rules:
  * Only build/bench.json and the details beside it are read: a text never says what no run has measured.
  * A figure that was not measured becomes "not measured", an unknown name is an error.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.targets import Target, load_targets

__all__ = ["UnknownNumberError", "fill", "fill_file"]

_MARK = re.compile(r"(<!-- bench:([a-z0-9_.]+) -->).*?(<!-- /bench -->)", re.DOTALL)
_UNITS = {"x": "times", "x faster": "times as fast"}


class UnknownNumberError(Exception):
    """A marker asks for what no run writes."""


def fill_file(path: Path, source: Path) -> int:
    """Write the numbers of `source` (build/bench.json) into a text. Returns how many markers it has."""
    values = {row["name"]: row["value"] for row in msgspec.json.decode(source.read_bytes())}
    details = msgspec.json.decode(source.with_name(f"{source.stem}-details.json").read_bytes())
    text = path.read_text(encoding="utf-8")
    try:
        path.write_text(fill(text, values, details), encoding="utf-8")
    except UnknownNumberError as exc:
        raise UnknownNumberError(f"{path}: {exc}") from exc
    return len(_MARK.findall(text))


def fill(text: str, values: dict[str, float | None], details: dict[str, Any]) -> str:
    """The text with every marked place written anew. Raises: UnknownNumberError."""
    told = {row["name"]: row for row in details["figures"]}

    def write(match: re.Match[str]) -> str:
        name = match[2]
        if name == "cpu":
            words = f"{details['cpu']}, {details['cores']} cores"
        elif name == "versions":
            words = ", ".join(f"{key} {value}" for key, value in details["versions"].items())
        elif name == "table":
            words = f"\n{_table(values, told)}\n"
        else:
            words = _words(name, values, told)
        return f"{match[1]}{words}{match[3]}"

    return _MARK.sub(write, text)


def _words(asked: str, values: dict[str, float | None], told: dict[str, Any]) -> str:
    name, _, part = asked.partition(".")
    target = load_targets().get(name)
    if target is None or part not in ("", "value", "worst", "note", "state", "target"):
        raise UnknownNumberError(
            f"no number is called {asked!r}; `python -m benchmarks --list` shows the figures"
        )
    if part == "target":
        return target.bound
    value, row = values.get(name), told.get(name, {})
    if value is None:
        return "not measured"
    if part in ("note", "state"):
        return str(row[part])
    number = f"{row['worst'] if part == 'worst' else value:.3g}"
    return number if part in ("value", "worst") else f"{number} {_unit(target)}"


def _unit(target: Target) -> str:
    return _UNITS.get(target.unit, target.unit)


def _table(values: dict[str, float | None], told: dict[str, Any]) -> str:
    """Every figure, also those not measured, in the order of the targets."""
    lines = ["| What | Promised | Measured (worst round) | |", "|---|---|---|---|"]
    for target in load_targets().values():
        value = values.get(target.name)
        row = told.get(target.name, {})
        measured = "-" if value is None else f"{value:.3g} ({row['worst']:.3g}) {_unit(target)}"
        state = row.get("state", "not measured").lower()
        lines.append(f"| {target.what} | {target.bound} | {measured} | {state} |")
    return "\n".join(lines)
