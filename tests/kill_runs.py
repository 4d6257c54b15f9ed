"""The command line of programs that kill processes at random instants: how often, by which seed, where the report goes.

Used by follow_kills.py, last_good_kills.py and registry_kills.py; soak.py starts them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["run"]


def run(about: str | None, kill: Callable[[Path, int, int], int]) -> int:
    """Kill as often as asked, and report; 0 when every state that was left could be used, else the error of `kill` ends it.

    Args:
        about: the program's own docstring.
        kill: in a folder, so many times, by a seed; returns how many were killed while they were at work.
    """
    parser = argparse.ArgumentParser(description=(about or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--kills", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        at_work = kill(Path(folder), options.kills, options.seed)
    report = {
        "kills": options.kills,
        "seed": options.seed,
        "at_work": at_work,
        "seconds": round(time.monotonic() - began, 1),
    }
    sys.stdout.write(json.dumps(report) + "\n")
    if options.report is not None:
        options.report.parent.mkdir(parents=True, exist_ok=True)
        options.report.write_text(json.dumps(report) + "\n", encoding="utf-8")
    return 0
