"""Processes that follow a registry, killed at random instants of looking, loading, publishing and keeping.

    python tests/follow_kills.py --kills 10000 --seed 7 --report build/soak/follow-kills.json

test_follow.py does it some dozens of times, `make soak` ten thousand. A seed gives the same instants; what the machine has
done by then is its own affair.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from following import Hidden, answer, follow, registry

VERSIONS = ("1.1", "1.2", "1.0")


def kill_followers(folder: Path, kills: int, seed: int) -> int:
    """Start processes that follow, promote something, kill them; the next one always starts, also without the registry.

    Returns how many were killed while a new release was on its way to them.
    """
    rng = random.Random(seed)
    place, last_good = registry(folder / "registry", "1.0", *VERSIONS[:2]), folder / "last-good"
    follow(folder / "registry", last_good=last_good).close()
    under_way = 0
    for i in range(kills):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:  # pragma: no cover - in the child
            with contextlib.suppress(BaseException):
                scorer = follow(folder / "registry", last_good=last_good)
                os.write(write, b".")
                while scorer.health().release != f"fraud:{VERSIONS[i % 3]}":
                    scorer.refresh()
                os.write(write, b"!")
                signal.pause()
            os._exit(1)
        assert os.read(read, 1) == b"."
        place.promote(f"fraud:{VERSIONS[i % 3]}", why="next")
        time.sleep(rng.random() * 0.05)
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        os.close(write)
        under_way += os.read(read, 1) != b"!"
        os.close(read)
        if i % 4 == 0:
            with Hidden(folder / "registry"), follow(folder / "registry", last_good=last_good) as scorer:
                assert answer(scorer) in ("fraud:1.0", "fraud:1.1", "fraud:1.2")
        if i % 50 == 49:  # its history grows with every promotion, and every child reads it
            place = _anew(folder, i)
    with follow(folder / "registry", last_good=last_good) as scorer:
        assert answer(scorer) == f"fraud:{place.find('fraud').version}"
        assert scorer.following.state == "ok"
    return under_way


def _anew(folder: Path, i: int):
    (folder / "registry").rename(folder / f"registry-{i}")
    place = registry(folder / "registry", "1.0", *VERSIONS[:2])
    place.promote(f"fraud:{VERSIONS[i % 3]}", why="where we were")
    return place


def main() -> int:
    """Returns 0 when every process found its way."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--kills", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        under_way = kill_followers(Path(folder), options.kills, options.seed)
    report = {
        "kills": options.kills,
        "seed": options.seed,
        "under_way": under_way,
        "seconds": round(time.monotonic() - began, 1),
    }
    sys.stdout.write(json.dumps(report) + "\n")
    if options.report is not None:
        options.report.parent.mkdir(parents=True, exist_ok=True)
        options.report.write_text(json.dumps(report) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
