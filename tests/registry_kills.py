"""Writers of a registry killed at random instants, and what must be true after each kill.

    python tests/registry_kills.py --kills 10000 --seed 7 --report build/soak/registry-kills.json

test_registry_crashes.py does it some hundreds of times, `make soak` ten thousand. A seed gives the same instants; what the
machine has done by then is its own affair.
"""

from __future__ import annotations

import datetime as dt
import os
import random
import select
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kill_runs import run
from registries import check, digest, release, report_of

import retailinfer as ri
from retailinfer.clock import ManualClock

OLD, NEW, NEXT = release("1.0"), release("1.1"), release("1.2")


def soon(registry: ri.Registry) -> dt.datetime:
    """An hour from now."""
    return dt.datetime.fromtimestamp(registry.clock.wall_ns() / 1e9 + 3_600, dt.UTC)


# Name -> what is done, and what is then true of a registry.
ACTIONS: dict[str, tuple[Callable[[ri.Registry], Any], Callable[[ri.Registry], bool]]] = {
    "publish": (
        lambda registry: registry.publish(NEXT),
        lambda registry: "1.2" in {one.version for one in registry.releases()},
    ),
    "promote": (
        lambda registry: registry.promote("fraud:1.1", why="better"),
        lambda registry: registry.pointer("fraud").champion == digest(NEW),
    ),
    "hold": (
        lambda registry: registry.hold("fraud", why="stop"),
        lambda registry: registry.pointer("fraud").hold is not None,
    ),
    "override": (
        lambda registry: registry.override("fraud", {"decline": 0.95}, until=soon(registry), why="attack"),
        lambda registry: len(registry.overrides("fraud")) > 0,
    ),
    "approve": (
        lambda registry: registry.approve("fraud:1.1", why="good", report=report_of(NEW)),
        lambda registry: len(registry.approvals("fraud:1.1")) == 1,
    ),
    "collect": (
        lambda registry: registry.collect_garbage(keep=0, unused_days=1),
        lambda registry: registry.releases()[0].collected,
    ),
}


def open_registry(folder: Path, clock: ManualClock | None = None, who: str = "anna") -> ri.Registry:
    """The registry as a process of its own would see it."""
    return ri.Registry(folder, trust="unsigned", who=who, clock=clock or ManualClock())


def late() -> ManualClock:
    """Long after what `prepare` did, so that there is garbage."""
    clock = ManualClock()
    clock.advance_ns(50 * 86_400 * 10**9)
    return clock


def prepare(folder: Path) -> Path:
    """A registry with a champion, its successor, and one that nobody needs; to be copied."""
    registry = open_registry(folder)
    for files in (release("0.9"), OLD, NEW):
        registry.publish(files)
    registry.promote("fraud:1.0", why="first")
    return folder


def kill_writers(folder: Path, kills: int, seed: int) -> int:
    """Start writers, kill them, look, repeat what they did; returns how many were still at it when they were killed."""
    rng = random.Random(seed)
    template, place = prepare(folder / "template"), folder / "0"
    killed, window_s = 0, 0.03
    for i in range(kills):
        if i % 20 == 0:
            shutil.rmtree(place, ignore_errors=True)
            place = folder / f"registry-{i}"
            shutil.copytree(template, place)
        action = rng.choice(list(ACTIONS))
        pid = os.fork()
        if pid == 0:  # pragma: no cover - in the child
            code = 1
            try:
                registry = open_registry(place, late())
                _deploy(registry, f"2.{i}")
                ACTIONS[action][0](registry)
                code = 0
            finally:
                os._exit(code)
        select.select([], [], [], rng.uniform(0, window_s))
        os.kill(pid, signal.SIGKILL)
        at_work = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        killed += at_work
        window_s *= 1.1 if at_work else 0.9  # half of them are at work, on a quick machine and on a busy one
        registry = open_registry(place, late())
        check(registry)
        _deploy(registry, f"2.{i}")
        assert registry.read("fraud") == release(f"2.{i}")
    return killed


def _deploy(registry: ri.Registry, version: str) -> None:
    """What a deployment does; once more after an accident it finds done what was done."""
    registry.publish(release(version))
    registry.resume("fraud", why="on")
    registry.promote(f"fraud:{version}", why="next")


if __name__ == "__main__":
    sys.exit(run(__doc__, kill_writers))
