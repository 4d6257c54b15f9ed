"""Memory that a process may still take: the machine's, and the limits of control groups in both versions."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from retailinfer.memory import available_bytes

MB = 1 << 20


def system(folder: Path, listed: str, files: dict[str, str], machine: str) -> dict[str, str]:
    """Write what a kernel would show; the arguments that point there."""
    (folder / "cgroup").write_text(listed)
    (folder / "meminfo").write_text(machine)
    for name, text in files.items():
        path = folder / "mount" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return {
        "machine": str(folder / "meminfo"),
        "groups": str(folder / "cgroup"),
        "mount": str(folder / "mount"),
    }


MACHINE = "MemTotal: 16384000 kB\nMemFree: 100 kB\nMemAvailable:    1024000 kB\n"


@pytest.mark.parametrize(
    ("listed", "files", "machine", "expected"),
    [
        pytest.param("", {}, MACHINE, 1000 * MB, id="machine"),
        pytest.param("", {}, "MemTotal: 5 kB\n", None, id="nothing-known"),
        pytest.param("", {}, "MemAvailable: many kB\n", None, id="no-number"),
        pytest.param(
            "0::/a/b\n",
            {"a/b/memory.max": "max\n", "a/memory.max": f"{100 * MB}\n", "a/memory.current": f"{60 * MB}\n"},
            MACHINE,
            40 * MB,
            id="v2-above",
        ),
        pytest.param(
            "0::/a\n",
            {
                "a/memory.max": str(100 * MB),
                "a/memory.current": str(90 * MB),
                "a/memory.stat": f"anon {50 * MB}\ninactive_file {30 * MB}\n",
            },
            MACHINE,
            40 * MB,
            id="v2-pages-of-files",
        ),
        pytest.param(
            "0::/a\n", {"a/memory.max": "100", "a/memory.current": "300"}, MACHINE, 0, id="over-its-limit"
        ),
        pytest.param(
            "0::/a\n",
            {"a/memory.max": str(2000 * MB), "a/memory.current": "0"},
            MACHINE,
            1000 * MB,
            id="wide",
        ),
        pytest.param(
            "7:memory:/d\n3:cpu:/x\n",
            {
                "memory/d/memory.limit_in_bytes": str(64 * MB),
                "memory/d/memory.usage_in_bytes": str(20 * MB),
                "memory/d/memory.stat": f"inactive_file 1\ntotal_inactive_file {4 * MB}\n",
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "memory/memory.usage_in_bytes": "5",
            },
            MACHINE,
            48 * MB,
            id="v1",
        ),
        pytest.param("0::/gone\nnonsense\n", {}, MACHINE, 1000 * MB, id="no-such-group"),
    ],
)
def test_least_of_what_machine_and_groups_leave(tmp_path, listed, files, machine, expected):
    """Pages of files count as free; what cannot be read limits nothing."""
    assert available_bytes(**system(tmp_path, listed, files, machine)) == expected


def test_this_machine():
    """Something, and no more than any machine has; nothing where there is no /proc."""
    found = available_bytes()
    assert (found is None) == (not sys.platform.startswith("linux"))
    assert found is None or 0 <= found < 1 << 50
