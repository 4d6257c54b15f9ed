"""How many CPUs this process may use: what the machine has, less what affinity and the quota of its control group take away.

Rules:
  * Wherever threads or permits are counted, they are counted from here: `os.cpu_count` is the machine's, also inside a
    container that may use half a CPU of it.
  * Read anew at each call, because affinity and quota can change while a process runs; nothing is kept.
  * What cannot be read limits nothing.
  * Paths are text: pathlib costs several ms of a load that needs it for nothing else.
Used by serving/threads.py and for the permits that calls in flight take; memory.py walks the same groups.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

__all__ = ["GROUPS", "MOUNT", "cpu_quota", "read_text", "upwards", "usable_cpus"]

GROUPS = "/proc/self/cgroup"
MOUNT = "/sys/fs/cgroup"


def usable_cpus() -> int:
    """Whole CPUs, at least 1: those of the affinity mask, and no more than the quota of the control group, rounded up."""
    n_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return max(1, n_cpus if quota is None else min(n_cpus, math.ceil(quota)))


def cpu_quota(*, groups: str = GROUPS, mount: str = MOUNT) -> float | None:
    """CPUs that the control groups of this process may use, the least of them and of all above; None without a limit.

    Args:
        groups: the file that lists the groups, of version 1 and 2.
        mount: where they are mounted; inside a container its own group may be the root.
    """
    limits = []
    for line in read_text(groups).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            limits += [_limit_v2(folder) for folder in upwards(mount, path)]
        elif "cpu" in (names := controllers.split(",")):
            for mounted in {controllers, "cpu", ",".join(sorted(names))}:
                limits += [_limit_v1(folder) for folder in upwards(f"{mount}/{mounted}", path)]
    return min((limit for limit in limits if limit is not None), default=None)


def upwards(mount: str, path: str) -> Iterator[str]:
    """A group's folder and all above it, as far as they can be seen from here."""
    parts = [part for part in path.split("/") if part]
    for n in range(len(parts), -1, -1):
        yield "/".join((mount, *parts[:n]))


def _limit_v2(folder: str) -> float | None:
    """`cpu.max` is "quota period" in microseconds, or "max period"."""
    return _ratio(*read_text(f"{folder}/cpu.max").split()[:2])


def _limit_v1(folder: str) -> float | None:
    return _ratio(
        *read_text(f"{folder}/cpu.cfs_quota_us").split()[:1],
        *read_text(f"{folder}/cpu.cfs_period_us").split()[:1],
    )


def _ratio(*texts: str) -> float | None:
    """CPUs out of a quota and its period; None for "max", -1, and what is no pair of numbers."""
    if len(texts) != 2 or not all(text.isdecimal() for text in texts):
        return None
    quota, period = map(int, texts)
    return quota / period if quota and period else None


def read_text(path: str) -> str:
    """A small file of the kernel's; empty where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - see above
            return file.read()
    except OSError:
        return ""
