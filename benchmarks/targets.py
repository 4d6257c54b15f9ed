"""Reads targets.toml: the figures that retailinfer promises.

A figure that nothing measures yet is in the list all the same, and counts as missed.
"""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Literal

import msgspec

__all__ = ["Target", "load_targets"]


class Target(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One figure; the fields are explained at the top of targets.toml."""

    name: str
    what: str
    unit: Literal["x", "x faster", "us", "ns", "ms", "MB", "points"]
    better: Literal["lower", "higher"]
    target: float
    issue: int
    how: str
    aim: float | None = None
    not_before: int | None = None

    @property
    def lower_is_better(self) -> bool:
        return self.better == "lower"

    def reached(self, value: float | None) -> bool:
        """Whether a value fulfils the promise; what was not measured does not."""
        if value is None:
            return False
        return value <= self.target if self.lower_is_better else value >= self.target

    @property
    def bound(self) -> str:
        """As people write it: `<= 1.3`."""
        sign = "<=" if self.lower_is_better else ">="
        return f"{sign} {self.target:g}" + (f" (aim {self.aim:g})" if self.aim is not None else "")


class _File(msgspec.Struct, forbid_unknown_fields=True):
    figure: tuple[Target, ...]


@cache
def load_targets() -> dict[str, Target]:
    """All figures by name, in the order of the file. Raises: ValidationError, ValueError for a name given twice."""
    data = tomllib.loads(Path(__file__).with_name("targets.toml").read_text(encoding="utf-8"))
    figures = msgspec.convert(data, _File).figure
    by_name = {figure.name: figure for figure in figures}
    if len(by_name) != len(figures):
        raise ValueError("targets.toml names a figure twice")
    return by_name
