"""What a run says: the table of figures, build/bench.json, and what got slower than the committed record.

Rules:
  * Every target is in the table and in the file. One without a value counts as missed, whatever the reason.
  * A run fails on a wrong answer, or when a figure that can be measured was not. Never on being slow: machines differ.
  * The record belongs to a model of CPU; a run on another one compares with nothing and says so.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.harness import Figure
from benchmarks.targets import Target

__all__ = [
    "NOISE",
    "PeerRow",
    "Record",
    "Result",
    "StageRow",
    "cpu_model",
    "print_report",
    "slower",
    "versions",
    "write_json",
]

NOISE = 0.15  # a figure this much worse than the record is reported, or more if its own rounds differ by more
RECORD = Path(__file__).with_name("record.json")
_PACKAGES = (
    "retailinfer",
    "onnxruntime",
    "numpy",
    "msgspec",
    "lightgbm",
    "scikit-learn",
    "fastapi",
    "uvicorn",
    "uvloop",
    "httptools",
)


@dataclass(frozen=True)
class Result:
    """One target and what became of it. `why` says why there is no figure."""

    target: Target
    figure: Figure | None
    why: str = ""

    @property
    def value(self) -> float | None:
        return None if self.figure is None else self.figure.value

    @property
    def reached(self) -> bool:
        return self.target.reached(self.value)

    @property
    def state(self) -> str:
        return "reached" if self.reached else "MISSED" if self.figure is not None else "not measured"


@dataclass(frozen=True)
class PeerRow:
    """One peer beside the library: what it did, how long it took, and how many times as long as the library did."""

    what: str
    name: str
    p50_us: float
    p99_us: float
    library_us: float | None = None


@dataclass(frozen=True)
class StageRow:
    """The median of one stage of a call, in ns."""

    what: str
    stage: str
    p50_ns: float


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    versions: dict[str, str]
    figures: dict[str, float]


class Record:
    """The committed figures, by model of CPU."""

    def __init__(self, path: Path = RECORD) -> None:
        self._path = path
        data = path.read_bytes() if path.exists() else b"{}"
        self._entries = msgspec.json.decode(data, type=dict[str, _Entry])

    def figures(self, cpu: str) -> dict[str, float] | None:
        """What this model of CPU reached when the record was written, or None."""
        entry = self._entries.get(cpu)
        return None if entry is None else entry.figures

    def update(self, cpu: str, results: Sequence[Result]) -> None:
        """Replace the figures that this run measured, keep the others, write the file."""
        figures = dict(self.figures(cpu) or {})
        figures |= {r.target.name: float(f"{r.value:.4g}") for r in results if r.value is not None}
        self._entries[cpu] = _Entry(versions(), figures)
        data = msgspec.json.encode(self._entries, order="deterministic")
        self._path.write_bytes(msgspec.json.format(data, indent=2) + b"\n")


@dataclass(frozen=True)
class Slower:
    """A figure that got worse than the record by more than noise."""

    name: str
    before: float
    now: float
    factor: float = field(compare=False)


def slower(results: Sequence[Result], record: Mapping[str, float], *, noise: float = NOISE) -> list[Slower]:
    """Figures worse than the record by more than `noise`, or than the spread of their own rounds if that is more."""
    out = []
    for result in results:
        before = record.get(result.target.name)
        if result.figure is None or before is None or before <= 0 or result.figure.value <= 0:
            continue
        now, worst = result.figure.value, result.figure.worst
        lower = result.target.lower_is_better
        factor = now / before if lower else before / now
        spread = abs(worst - now) / now
        if factor > 1 + max(noise, spread):
            out.append(Slower(result.target.name, before, now, factor))
    return sorted(out, key=lambda s: -s.factor)


def cpu_model() -> str:
    """The name that the system gives its processor, with family and model: clouds give one name to several."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0].splitlines()
        facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        if "model name" in facts:
            return f"{facts['model name']}, family {facts.get('cpu family')}, model {facts.get('model')}"
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Python and the packages that decide the figures, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_json(
    path: Path, results: Sequence[Result], peers: Sequence[PeerRow], stages: Sequence[StageRow], *, cpu: str
) -> None:
    """The figures as {name, value, unit, target, reached}; everything else goes to <name>-details.json beside it."""
    rows = [
        {
            "name": r.target.name,
            "value": r.value,
            "unit": r.target.unit,
            "target": r.target.target,
            "reached": r.reached,
        }
        for r in results
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(rows), indent=2) + b"\n")
    details: dict[str, Any] = {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "versions": versions(),
        "figures": [
            {
                "name": r.target.name,
                "what": r.target.what,
                "state": r.state,
                "why": r.why,
                "worst": r.figure.worst if r.figure else None,
                "rounds": r.figure.rounds if r.figure else [],
                "note": r.figure.note if r.figure else "",
            }
            for r in results
        ],
        "peers": list(peers),
        "stages": list(stages),
    }
    beside = path.with_name(f"{path.stem}-details.json")
    beside.write_bytes(msgspec.json.format(msgspec.json.encode(details), indent=2) + b"\n")


def print_report(
    results: Sequence[Result],
    peers: Sequence[PeerRow],
    stages: Sequence[StageRow],
    record: Mapping[str, float] | None,
    *,
    cpu: str,
) -> None:
    """Figures, peers, and what got slower, for people."""
    print(f"\n{cpu}, {os.cpu_count()} cores; " + ", ".join(f"{k} {v}" for k, v in versions().items()))
    print("value: median of the rounds; worst: the worst round\n")
    print(f"{'figure':<32}{'value':>10}{'worst':>10}  {'unit':<9}{'target':<20}{'state':<14}notes")
    for r in results:
        value, worst = (f"{r.figure.value:.4g}", f"{r.figure.worst:.4g}") if r.figure else ("-", "-")
        note = r.figure.note if r.figure else r.why.splitlines()[0]
        print(
            f"{r.target.name:<32}{value:>10}{worst:>10}  {r.target.unit:<9}{r.target.bound:<20}{r.state:<14}{note}"
        )
    n_reached = sum(r.reached for r in results)
    n_measured = sum(r.figure is not None for r in results)
    print(
        f"\n{n_reached} of {len(results)} figures reached; {n_measured - n_reached} measured and missed, "
        f"{len(results) - n_measured} not measured (counted as missed)"
    )
    if peers:
        print(
            f"\n{'beside the library':<34}{'peer':<38}{'p50 us':>10}{'p99 us':>10}{'library us':>12}{'times':>8}"
        )
        for p in peers:
            library, times = (
                (f"{p.library_us:.4g}", f"{p.p50_us / p.library_us:.1f}") if p.library_us else ("-", "-")
            )
            print(f"{p.what:<34}{p.name:<38}{p.p50_us:>10.4g}{p.p99_us:>10.4g}{library:>12}{times:>8}")
    if stages:
        print("\nstages, p50 in ns")
        for what in dict.fromkeys(row.what for row in stages):
            parts = [f"{row.stage} {row.p50_ns:,.0f}" for row in stages if row.what == what]
            print(f"{what:<34}" + ", ".join(parts))
    print()
    if record is None:
        print("record: none for this CPU; `python -m benchmarks --update-record` adds this run")
        return
    worse = slower(results, record)
    for s in worse:
        print(
            f"SLOWER than the record: {s.name} was {s.before:.4g}, is {s.now:.4g} ({s.factor:.2f} times as bad)"
        )
    if not worse:
        print(f"record: nothing got slower by more than {NOISE:.0%} or its own spread")
