"""Processes that follow a registry, killed at random instants of looking, loading, publishing and keeping.

    python tests/follow_kills.py --kills 10000 --seed 7 --report build/soak/follow-kills.json

test_follow.py does it some dozens of times, `make soak` ten thousand. A seed gives the same instants; what the machine has
done by then is its own affair.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from pathlib import Path

from following import Hidden, answer, follow, registry
from kill_runs import run

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


if __name__ == "__main__":
    sys.exit(run(__doc__, kill_followers))
