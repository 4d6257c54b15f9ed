"""How much memory this process may still take: what the machine has, or what the limits of its control groups leave, if less.

Rules:
  * Pages of files that a group could give back at once count as free, as the kernel counts them on the machine.
  * Read anew at each call; what cannot be read limits nothing. None: nothing is known, as on systems without /proc.
Asked before a release is loaded beside another one, by serving/loading.py. Control groups are walked as cpus.py does.
"""

from __future__ import annotations

from retailinfer.cpus import GROUPS, MOUNT, read_text, upwards

__all__ = ["available_bytes"]

_MACHINE = "/proc/meminfo"
_NO_LIMIT = 1 << 60  # version 1 writes "none" as a number near 2^63


def available_bytes(*, machine: str = _MACHINE, groups: str = GROUPS, mount: str = MOUNT) -> int | None:
    """Bytes that may be taken before something is swapped out or killed.

    Args:
        machine: the file with the machine's `MemAvailable`.
        groups, mount: as of `cpus.cpu_quota`.
    """
    found = [_of_machine(read_text(machine))]
    for line in read_text(groups).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            found += [
                _left(folder, "memory.max", "memory.current", "inactive_file")
                for folder in upwards(mount, path)
            ]
        elif "memory" in controllers.split(","):
            found += [
                _left(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
                for folder in upwards(f"{mount}/memory", path)
            ]
    return min((left for left in found if left is not None), default=None)


def _of_machine(text: str) -> int | None:
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        kib = rest.split()[:1]
        if name == "MemAvailable" and kib and kib[0].isdecimal():
            return int(kib[0]) * 1024
    return None


def _left(folder: str, limit: str, used: str, reclaimable: str) -> int | None:
    """What one group leaves; None where it limits nothing."""
    most, now = _number(read_text(f"{folder}/{limit}")), _number(read_text(f"{folder}/{used}"))
    if most is None or now is None or most >= _NO_LIMIT:
        return None
    again = 0
    for line in read_text(f"{folder}/memory.stat").splitlines():
        name, _, text = line.partition(" ")
        if name == reclaimable:
            again = _number(text) or 0
    return max(0, most - max(0, now - again))


def _number(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isdecimal() else None
