"""How each figure is measured: one function a group, which checks the answers and then takes the time.

Rules:
  * A function returns every figure that its group names, or raises. UnmeasurableError is for what this machine cannot
    have (an instruction set, a second core, a server); anything else fails the run.
  * Before anything is timed, the library's answers are compared with the peer's on the very inputs that rotate.
  * What groups share is made by `Lab` (lab.py). A module here registers its functions when it is imported.
"""

from __future__ import annotations

from benchmarks.lab import MEASURES, Lab, Measure, UnmeasurableError
from benchmarks.measures import (
    budgets,
    events,
    kernels,
    prefork,
    processes,
    rankings,
    remote,
    scores,
    services,
    tables,
    trees,
    windows,
)
from benchmarks.measures.rankings import checked_rankings

__all__ = [
    "MEASURES",
    "Lab",
    "Measure",
    "UnmeasurableError",
    "budgets",
    "checked_rankings",
    "events",
    "kernels",
    "prefork",
    "processes",
    "rankings",
    "remote",
    "scores",
    "services",
    "tables",
    "trees",
    "windows",
]
