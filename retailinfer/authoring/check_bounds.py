"""The bounds of checks, and the one way in which a figure becomes a verdict.

Rules:
  * A bound is (warns, fails), None = never. What lies beyond it is said with the figure and the bound.
  * Bounds of sameness (`rbo`, `overlap`) are lower bounds, all others upper ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from retailinfer.errors import ConfigError, clip
from retailinfer.release.report import Chart, Check, State

__all__ = ["BOUNDS", "Bound", "Findings", "bounds_of"]

Bound = tuple[float | None, float | None]

# name -> (warns, fails), and what it is about
BOUNDS: dict[str, tuple[float | None, float | None, str]] = {
    "refused": (0.0, 0.001, "share of the rows that the release refuses"),
    "nulls": (0.05, 0.5, "by how much the share of missing values of a column differs from training"),
    "outside": (0.01, None, "share of a column's values outside the range of training"),
    "column_psi": (0.25, None, "PSI of a column between training and the rows"),
    "constant": (0.5, 0.99, "share of the rows that get one and the same score"),
    "score_psi": (0.1, 0.25, "PSI of the scores between the two releases"),
    "rbo": (0.8, 0.5, "mean rank-biased overlap of rankings (p = 0.9)"),
    "overlap": (0.7, 0.4, "mean share of the first k that both rankings have"),
    "season": (0.15, 0.5, "how far a weekday's or an hour's share of the mean is from what it should be"),
    "flips": (0.05, 0.2, "share of decisions that are others"),
    "cohort_flips": (0.1, 0.4, "the same within a cohort"),
    "false_positives": (0.005, 0.02, "rise of the share of good rows that are acted upon, in any cohort"),
    "caught": (0.01, 0.05, "fall of the share of bad rows that are acted upon"),
    "slower": (1.5, None, "median time of a call over that of the other release"),
    "int8": (0.95, None, "time of the quantised model over that of float32"),
    "larger": (1.5, None, "memory of a process over that with the other release"),
    "memory_mb": (None, None, "memory that the release adds to a process"),
}
LOWER = frozenset({"rbo", "overlap"})


def bounds_of(given: Mapping[str, Any] | None) -> dict[str, Bound]:
    """The bounds with a caller's own: name -> what fails, or (warns, fails). Raises: ConfigError."""
    made: dict[str, Bound] = {name: (warns, fails) for name, (warns, fails, _) in BOUNDS.items()}
    for name, value in (given or {}).items():
        if name not in made:
            raise ConfigError(f"bounds has {clip(name)}, expected some of {', '.join(made)}")
        both = isinstance(value, (tuple, list))
        pair = tuple(value) if both else (made[name][0], value)
        if len(pair) != 2 or not all(_is_number(one) for one in pair):
            raise ConfigError(
                f"Expected bounds[{clip(name)}] as a number or (warns, fails), got {clip(value)}"
            )
        warns, fails = pair
        if not both and None not in pair and (warns < fails if name in LOWER else warns > fails):
            warns = None  # it would warn of nothing that does not fail
        made[name] = (warns, fails)
    return made


def _is_number(value: object) -> bool:
    if isinstance(value, bool):
        return False
    return value is None or (isinstance(value, (int, float)) and math.isfinite(value))


class Findings:
    """What one check finds, on its way to a verdict."""

    def __init__(self, name: str, bounds: Mapping[str, Bound]) -> None:
        self.name = name
        self.figures: dict[str, Any] = {}
        self.charts: list[Chart] = []
        self.notes: list[str] = []
        self._bounds = bounds
        self._used: dict[str, Bound] = {}
        self._state: State = "passed"

    def warn(self, note: str) -> None:
        """Something to look at."""
        self.notes.append(note)
        if self._state == "passed":
            self._state = "warned"

    def fail(self, note: str) -> None:
        """Something that must not be."""
        self.notes.append(note)
        self._state = "failed"

    def hold(self, bound: str, value: float, what: str, *, only_warn: bool = False) -> None:
        """Hold a figure against a bound; `what`: the figure in words. NaN is beyond none."""
        warns, fails = self._used[bound] = self._bounds[bound]
        lower = bound in LOWER

        def beyond(limit: float | None) -> bool:
            return limit is not None and (value < limit if lower else value > limit)

        side = "least" if lower else "most"
        if beyond(fails):
            (self.warn if only_warn else self.fail)(f"{what}: {value:.4g}, expected at {side} {fails:g}")
        elif beyond(warns):
            self.warn(f"{what}: {value:.4g}, more than usual: at {side} {warns:g}" if not lower else
                      f"{what}: {value:.4g}, less than usual: at least {warns:g}")  # fmt: skip

    def verdict(self, text: str) -> Check:
        """The check as it ends."""
        return Check(
            name=self.name,
            state=self._state,
            text=text,
            notes=self.notes,
            figures=self.figures,
            bounds=self._used,
            charts=self.charts,
        )

    def not_applicable(self, why: str) -> Check:
        """The check could not be made, and why."""
        return Check(name=self.name, state="not applicable", text=why, notes=self.notes, figures=self.figures)
