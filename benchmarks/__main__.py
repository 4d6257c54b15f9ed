"""`python -m benchmarks`: measure, print, write build/bench.json, compare with the record; `--readme` fills in its numbers.

Exit code 0: every figure that can be measured was, every answer was right. 1: not so. 2: the arguments mean nothing.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from benchmarks import readme, report
from benchmarks.harness import Effort, Figure, WrongAnswerError
from benchmarks.measures import MEASURES, Lab, Measure, UnmeasurableError
from benchmarks.targets import Target, load_targets

DEFAULT_JSON = Path(__file__).resolve().parent.parent / "build" / "bench.json"
SECONDS, SHORT_SECONDS = 8.0, 1.2  # of each contestant, over its five rounds


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure every promised figure."
    )
    parser.add_argument("--short", action="store_true", help="fewer calls: under 4 minutes on 2 cores")
    parser.add_argument("--only", metavar="NAME", help="only these figures or groups; * and ? are wildcards")
    parser.add_argument(
        "--json", type=Path, default=DEFAULT_JSON, metavar="PATH", help="default: build/bench.json"
    )
    parser.add_argument("--update-record", action="store_true", help="make this run the record of this CPU")
    parser.add_argument(
        "--readme",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="measure nothing: write the numbers of the last run between the markers of these files",
    )
    parser.add_argument("--list", action="store_true", help="list figures and the groups that measure them")
    options = parser.parse_args(arguments)
    if options.readme:
        return _fill(options.readme, options.json)
    targets = load_targets()
    if options.list:
        for target in targets.values():
            group = next((m.name for m in MEASURES if target.name in m.figures), f"issue {target.not_before}")
            print(f"{target.name:<32}{target.bound:<20}{group:<14}{target.what}")
        return 0
    chosen, measures = _select(targets, options.only)
    if not chosen and not measures:
        print(f"no figure or group is called {options.only!r}; --list shows them", file=sys.stderr)
        return 2
    effort = Effort(seconds=SHORT_SECONDS if options.short else SECONDS, short=options.short)
    with Lab(effort) as lab:
        figures, whys, failures = _measure(lab, measures)
        peers, stages = lab.peers, lab.stages
    results = [
        report.Result(
            target, figures.get(name), "" if name in figures else whys.get(name) or _waiting(target)
        )
        for name, target in chosen.items()
    ]
    cpu = report.cpu_model()
    record = report.Record()
    report.print_report(results, peers, stages, record.figures(cpu), cpu=cpu)
    report.write_json(options.json, results, peers, stages, cpu=cpu)
    print(f"written: {options.json}")
    if failures:
        print("\nFAILED:", *failures, sep="\n  ", file=sys.stderr)
        return 1
    if options.update_record:
        record.update(cpu, results)
        print(f"record updated for {cpu}")
    return 0


def _fill(paths: Sequence[Path], source: Path) -> int:
    """Numbers into texts; says what changed."""
    try:
        for path in paths:
            print(f"{path}: {readme.fill_file(path, source)} numbers")
    except (OSError, readme.UnknownNumberError) as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


def _waiting(target: Target) -> str:
    return f"nothing to measure before issue {target.not_before}"


def _select(targets: dict[str, Target], only: str | None) -> tuple[dict[str, Target], list[Measure]]:
    """The figures asked for, and the groups that have to run for them."""
    if only is None:
        return targets, list(MEASURES)
    groups = [m for m in MEASURES if fnmatch.fnmatch(m.name, only)]
    names = {name for name in targets if fnmatch.fnmatch(name, only)} | {
        name for m in groups for name in m.figures
    }
    wanted = [m for m in MEASURES if m in groups or names & set(m.figures)]
    return {name: target for name, target in targets.items() if name in names}, wanted


def _measure(lab: Lab, measures: Sequence[Measure]) -> tuple[dict[str, Figure], dict[str, str], list[str]]:
    """Run the groups. Returns figures, reasons for what is missing, and what makes the run fail."""
    figures: dict[str, Figure] = {}
    whys: dict[str, str] = {}
    failures: list[str] = []
    for number, measure in enumerate(measures, start=1):
        print(f"[{number}/{len(measures)}] {measure.name:<14}", end=" ", flush=True)
        start = time.perf_counter()
        try:
            found = measure.run(lab)
        except UnmeasurableError as exc:  # not this machine's fault either, but nobody's to mend
            whys |= dict.fromkeys(measure.figures, str(exc))
            print(f"not on this machine: {exc}")
            continue
        except Exception as exc:  # noqa: BLE001 - one broken group must not hide the figures of the others
            kind = "WRONG ANSWER" if isinstance(exc, WrongAnswerError) else "broken"
            failures.append(f"{measure.name}: {kind}: {type(exc).__name__}: {exc}")
            whys |= dict.fromkeys(measure.figures, f"{kind}: {exc}")
            print(kind, flush=True)
            traceback.print_exc()
            continue
        figures |= found
        failures += [
            f"{measure.name}: {name} was not measured" for name in measure.figures if name not in found
        ]
        print(f"{time.perf_counter() - start:6.1f} s", flush=True)
    return figures, whys, failures


if __name__ == "__main__":
    sys.exit(main())
