"""Hours instead of seconds: kernels under sanitisers and a fuzzer, compilers against each other, every entry by coverage.

    python tests/soak.py --seconds 3600 --seed 7 --report build/soak/report.json        every part gets its share of the time
    python tests/soak.py --seconds 600 --only xgboost --only forest-fuzzed

Rules:
  * A seed gives the same cases; what a fuzzer makes of them also depends on what it found before, which is kept in build/soak.
  * A part that fails leaves the case behind, and the report says where; the others go on. One failure fails the whole.
  * A tool that is missing is a part that did not run, and is reported as that.
`make soak` runs it behind the property tests. What the parts do: native_programs.py, fuzzing.py.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fuzz_models
import fuzz_releases
import fuzz_replies
import fuzz_requests
import fuzz_signatures
import fuzz_state
import pytest
from native_programs import (
    ARM64,
    FOREST_FUZZ,
    FUZZED,
    LINUX_X86,
    MEMORY_SANITISED,
    ROOT,
    SANITISED,
    forest_program,
    run,
    tool,
    windows_program,
)
from test_native_windows import write_seeds

FOLDER = ROOT / "build/soak"
BUILDING = 600  # seconds beyond a part's share, for what it has to build and for a slow last case


def _ended(command: list, seconds: float, **settings: str) -> tuple[bool, str]:
    """Whether a program ended well, and the end of what it said."""
    try:
        done = run(command, timeout=seconds + BUILDING, **settings)
    except subprocess.TimeoutExpired as exc:
        return False, f"did not end: {exc}"
    said = done.stdout + done.stderr
    units = re.search(r"stat::number_of_executed_units:\s+(\d+)", said)
    if done.returncode != 0:
        return False, said.strip()[-6000:]
    if units:
        return True, f"{units[1]} files"
    return True, "; ".join(line for line in said.splitlines() if not line.startswith("ran "))


def _sanitised(
    name: str, flags: tuple, compiler: str, levels: bool, seconds: float, seed: int
) -> tuple[bool, str]:
    program = forest_program(name, compiler, flags, levels=levels)
    return _ended([program, "run", seed, 0, seconds], seconds, FOREST_CASE=str(FOLDER / f"{name}.bin"))


def _forest_fuzzed(seconds: float, seed: int) -> tuple[bool, str]:
    program = forest_program("forest-fuzzed", "clang", FUZZED, main=FOREST_FUZZ)
    folder = FOLDER / "forest-fuzzed"
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={int(seconds)}",
        f"-seed={seed}",
        "-max_len=512",
        "-timeout=60",
        "-rss_limit_mb=4000",
    ]
    return _ended(
        [program, *options, "-print_final_stats=1", f"-artifact_prefix={folder}/", folder / "corpus"], seconds
    )


def _windows_fuzzed(seconds: float, seed: int) -> tuple[bool, str]:
    program = windows_program("windows-fuzzed")
    folder = FOLDER / "windows-fuzzed"
    write_seeds(folder / "corpus")
    options = [f"-max_total_time={int(seconds)}", f"-seed={seed}", "-max_len=8192", "-timeout=60"]
    return _ended(
        [program, *options, "-print_final_stats=1", f"-artifact_prefix={folder}/", folder / "corpus"], seconds
    )


def _same_bits(seconds: float, seed: int) -> tuple[bool, str]:
    """Corpora of new seeds until the time is up: -O0, clang and arm64 against the build that ships."""
    programs = [
        [forest_program("forest-gcc-o0", "gcc", ("-O0",))],
        [forest_program("forest-clang-o3", "clang", ("-O3",))],
        [tool("qemu-aarch64"), forest_program(**ARM64)],
    ]
    path = FOLDER / "forests.bin"
    end, rounds = time.monotonic() + seconds, 0
    while rounds == 0 or time.monotonic() < end:
        fine, said = _ended([forest_program("forest-shipped"), "write", path, seed + rounds, 400], seconds)
        for program in programs if fine else ():
            fine, said = _ended([*program, "check", path], seconds)
            if not fine:
                break
        if not fine:
            return False, f"seed {seed + rounds}: {said}"
        rounds += 1
    return True, f"{rounds} corpora of 400 forests; of arm64 the last: {said}"


def _guided(file: str, name: str, seconds: float, seed: int) -> tuple[bool, str]:
    pytest.importorskip("atheris", reason="`atheris` is not installed")
    folder = FOLDER / name
    command = [
        sys.executable,
        ROOT / "tests" / file,
        name,
        "--seconds",
        seconds,
        "--seed",
        seed,
        "--folder",
        folder,
    ]
    path = os.pathsep.join([str(ROOT / "tests"), *filter(None, sys.path)])
    return _ended(command, seconds, PYTHONPATH=path)


def _forks(seconds: float, seed: int) -> tuple[bool, str]:
    """10,000 forks over the matrix, however long they take; fewer in a run of minutes."""
    forks = 10_000 if seconds >= 60 else 480
    program = ROOT / "tests/fork_matrix.py"
    report = FOLDER / "forks.json"
    return _ended(
        [sys.executable, program, "--forks", forks, "--seed", seed, "--report", report],
        max(seconds, forks),
        PYTHONPATH=_TESTS,
    )


def _kills(what: str, few: int, seconds: float, seed: int) -> tuple[bool, str]:
    """10,000 kills of the processes that `WHAT_kills.py` starts, however long they take; a few in a run of minutes."""
    kills = 10_000 if seconds >= 60 else few
    program = ROOT / f"tests/{what.replace('-', '_')}_kills.py"
    command = [sys.executable, program, "--kills", kills, "--seed", seed]
    report = ["--report", FOLDER / f"{what}-kills.json"]
    return _ended([*command, *report], max(seconds, kills), PYTHONPATH=_TESTS)


def _swaps(seconds: float, seed: int) -> tuple[bool, str]:
    """10,000 swaps under four threads, and memory over a thousand of them; fewer in a run of minutes."""
    swaps = 10_000 if seconds >= 60 else 300
    command = [sys.executable, ROOT / "tests/swap_storm.py", "--swaps", swaps, "--seed", seed]
    report = ["--report", FOLDER / "swaps.json"]
    return _ended([*command, *report], max(seconds, swaps), PYTHONPATH=_TESTS)


def _overload(seconds: float, seed: int) -> tuple[bool, str]:
    """A minute of ten times as much as fits. Another part may use the other processor: goodput is for the figures to say."""
    report = FOLDER / "overload.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.prefork.overload",
        "--seconds",
        min(seconds, 60),
        "--report",
        report,
    ]
    fine, said = _ended(command, seconds, PYTHONPATH=_TESTS)
    if not fine:
        return False, said
    found = json.loads(report.read_text())
    failed = sum(phase["failed"] for phase in found["phases"].values())
    fine = failed == 0 and found["recovered_s"] <= 2 and found["grown_mb"] <= 8 and found["in_flight"] == 0
    return fine, f"goodput {found['goodput']:.2f}, p99 {found['p99_ms']:.0f} ms, {failed} failed; {report}"


_TESTS = os.pathsep.join([str(ROOT / "tests"), *filter(None, sys.path)])


def _deadlines(clock: str, requests: int, seconds: float, seed: int) -> tuple[bool, str]:
    """None late on the simulated clock, in a million requests or more; how late on the real one is reported."""
    more = ["--seconds", seconds] if clock == "simulated" else []
    command = [
        sys.executable,
        ROOT / "tests/deadline_faults.py",
        clock,
        "--requests",
        requests,
        "--seed",
        seed,
        *more,
    ]
    path = os.pathsep.join([str(ROOT / "tests"), *filter(None, sys.path)])
    return _ended(command, max(seconds, 3_000), PYTHONPATH=path)


PARTS: dict[str, Callable[[float, int], tuple[bool, str]]] = {
    "forest-sanitised": functools.partial(_sanitised, "forest-sanitised", SANITISED, "cc", LINUX_X86),
    "forest-uninitialised": functools.partial(
        _sanitised, "forest-uninitialised", MEMORY_SANITISED, "clang", False
    ),
    "forest-fuzzed": _forest_fuzzed,
    "forest-same-bits": _same_bits,
    "windows-fuzzed": _windows_fuzzed,
    "forks": _forks,
    "registry-kills": functools.partial(_kills, "registry", 400),
    "follow-kills": functools.partial(_kills, "follow", 100),
    "last-good-kills": functools.partial(_kills, "last-good", 400),
    "swaps": _swaps,
    "decision-kills": functools.partial(_kills, "decision", 300),
    "overload": _overload,
    "deadlines-simulated": functools.partial(_deadlines, "simulated", 1_000_000),
    "deadlines-real": functools.partial(_deadlines, "real", 100_000),
    **{
        name: functools.partial(_guided, f"{module.__name__}.py", name)
        for module in (fuzz_models, fuzz_requests, fuzz_releases, fuzz_replies, fuzz_signatures, fuzz_state)
        for name in module.TARGETS
    },
}


def _part(name: str, seconds: float, seed: int) -> dict[str, object]:
    start = time.monotonic()
    try:
        fine, said = PARTS[name](seconds, seed)
        end = "fine" if fine else "FAILED"
    except pytest.skip.Exception as exc:
        end, said = "not run", str(exc)
    took = round(time.monotonic() - start, 1)
    sys.stdout.write(
        f"== {time.strftime('%T')}  {name}: {end} after {took} s; {said if end != 'FAILED' else ''}\n"
    )
    sys.stdout.flush()
    return {"part": name, "end": end, "seconds": took, "said": said}


def main() -> int:
    """Command line; see above."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3600, help="for all parts together, by the clock")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 1_000_000)
    parser.add_argument("--report", type=Path, default=FOLDER / "report.json")
    parser.add_argument("--only", action="append", choices=list(PARTS))
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    names = given.only or list(PARTS)
    share = max(5.0, given.seconds * given.workers / len(names))
    with ThreadPoolExecutor(given.workers) as pool:
        ends = list(pool.map(lambda name: _part(name, share, given.seed), names))
    failed = [one["part"] for one in ends if one["end"] == "FAILED"]
    report = {
        "seed": given.seed,
        "seconds": given.seconds,
        "at": time.strftime("%FT%TZ", time.gmtime()),
        "failed": failed,
        "parts": ends,
    }
    given.report.parent.mkdir(parents=True, exist_ok=True)
    given.report.write_text(json.dumps(report, indent=1) + "\n")
    for one in ends:
        if one["end"] == "FAILED":
            sys.stdout.write(f"\n{one['part']}\n{one['said']}\n")
    sys.stdout.write(
        f"seed {given.seed}: {len(names)} parts, failed: {', '.join(failed) or 'none'}; {given.report}\n"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
