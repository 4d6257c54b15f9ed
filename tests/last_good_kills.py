"""Processes that keep what they loaded, killed at random instants, and what must be true after each kill.

    python tests/last_good_kills.py --kills 10000 --seed 7 --report build/soak/last-good-kills.json

test_last_good.py does it some hundreds of times, `make soak` ten thousand. A seed gives the same instants; what the machine
has done by then is its own affair.
"""

from __future__ import annotations

import functools
import os
import random
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

from kill_runs import run
from registries import digest, release

from retailinfer.release.following import LocalRollback
from retailinfer.release.last_good import Kept, LastGood
from retailinfer.release.statements import moment_text

VERSIONS = [f"1.{i}" for i in range(5)]
BY_DIGEST = {digest(release(version)): version for version in VERSIONS}
MOMENT = moment_text(1_795_953_600)


def last_good(folder: Path) -> LastGood:
    """As a process of its own would see it."""
    return LastGood(folder, environment="production", name="fraud")


def keep(folder: Path, version: str) -> bool:
    """What a process does after it has loaded a release."""
    files = release(version)
    return last_good(folder).keep(
        files, digest=digest(files), version=version, pointer=f"pointer {version}".encode(), verified=MOMENT
    )


def go_back(folder: Path, version: str) -> None:
    """What it does after an operator went back."""
    last_good(folder).set_rollback(
        LocalRollback(
            left=digest(release(VERSIONS[0])),
            to=digest(release(version)),
            epoch=1,
            seq=1,
            why="3 a.m.",
            at=MOMENT,
        )
    )


ACTIONS = {
    **{f"keep {version}": functools.partial(keep, version=version) for version in VERSIONS},
    "go back": functools.partial(go_back, version=VERSIONS[1]),
    "go on": lambda folder: last_good(folder).set_rollback(None),
}


def check(folder: Path) -> tuple[Kept, ...]:
    """What holds whatever happened: every release that is named is there, whole, and is the one that is named."""
    place = last_good(folder)
    kept = place.kept()
    assert len(kept) <= 2
    assert len({one.digest for one in kept}) == len(kept)
    for one in kept:
        version = BY_DIGEST[one.digest]
        assert place.files(one.digest) == release(version)
        assert (one.version, one.pointer) == (version, f"pointer {version}".encode())
    rollback = place.rollback()
    assert rollback is None or rollback.why == "3 a.m."
    return kept


def in_child(folder: Path, action: str, before: Any = None) -> int:
    """Start a process that does it; returns its id. Exit code 0 when it came to the end."""
    pid = os.fork()
    if pid:
        return pid
    code = 1  # pragma: no cover - in the child
    try:
        if before is not None:
            before()
        ACTIONS[action](folder)
        code = 0
    finally:
        os._exit(code)


def kill_keepers(folder: Path, kills: int, seed: int) -> int:
    """Start processes, kill them, look, repeat what they did; returns how many were still at it when they were killed."""
    rng = random.Random(seed)
    killed = 0
    for i in range(kills):
        action = rng.choice(list(ACTIONS))
        wait_s = rng.random() * 0.004
        ready_read, ready_write = os.pipe()
        pid = in_child(folder, action, functools.partial(os.write, ready_write, b"."))
        os.close(ready_write)
        select.select([ready_read], [], [], 30)
        os.close(ready_read)
        end = time.perf_counter() + wait_s
        while time.perf_counter() < end:
            pass
        os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code in (0, -signal.SIGKILL), code
        killed += code != 0
        check(folder)
        if i % 3 == 0:  # somebody finishes it; else accidents pile up
            ACTIONS[action](folder)
            kept = check(folder)
            if action.startswith("keep "):
                assert BY_DIGEST[kept[0].digest] == action.removeprefix("keep ")
    keep(folder, VERSIONS[0])
    keep(folder, VERSIONS[1])  # whoever writes last sweeps what the others left
    names = {path.name for path in last_good(folder).folder.iterdir()}
    wanted = {one.folder for one in check(folder)} | {"last-good.json", "rollback.json", "lock"}
    assert names <= wanted, names - wanted
    return killed


if __name__ == "__main__":
    sys.exit(run(__doc__, kill_keepers))
