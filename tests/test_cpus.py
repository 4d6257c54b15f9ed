"""CPUs that a process may use: affinity, and quotas of control groups in every place where systems keep them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from retailinfer.cpus import cpu_quota, usable_cpus


@pytest.fixture
def groups(tmp_path):
    """Write files of a control group tree; returns the arguments that point there."""

    def write(listed: str, files: dict[str, str]) -> dict[str, str]:
        (tmp_path / "cgroup").write_text(listed)
        for name, text in files.items():
            path = tmp_path / "mount" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return {"groups": str(tmp_path / "cgroup"), "mount": str(tmp_path / "mount")}

    return write


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("150000 100000\n", 1.5),
        ("50000 100000", 0.5),
        ("max 100000\n", None),
        ("", None),
        ("100000", None),
        ("-1 100000", None),
        ("1 0", None),
        ("0 100000", None),
        ("a b", None),
    ],
)
def test_quota_of_version_2(groups, text, expected):
    """`cpu.max` of the process's group, in a container its root."""
    assert cpu_quota(**groups("0::/\n", {"cpu.max": text})) == expected


def test_the_least_of_a_group_and_those_above_counts(groups):
    """A pod of 4 CPUs with a container of 2 in it, and the other way round."""
    four, two = "400000 100000", "200000 100000"
    assert cpu_quota(**groups("0::/pod/one\n", {"pod/cpu.max": four, "pod/one/cpu.max": two})) == 2
    assert cpu_quota(**groups("0::/pod/one\n", {"pod/cpu.max": two, "pod/one/cpu.max": four})) == 2


def test_a_group_that_cannot_be_seen_from_here(groups):
    """Without a namespace the listed path is the host's, and only the root is mounted."""
    listed = "0::/system.slice/docker-1.scope\n"
    assert cpu_quota(**groups(listed, {"cpu.max": "300000 100000"})) == 3


@pytest.mark.parametrize("mounted", ["cpu", "cpu,cpuacct", "cpuacct,cpu"])
def test_quota_of_version_1(groups, mounted):
    """Quota and period are files of their own; -1 is no limit."""
    for quota, expected in (("250000\n", 2.5), ("-1\n", None)):
        files = {f"{mounted}/a/cpu.cfs_quota_us": quota, f"{mounted}/a/cpu.cfs_period_us": "100000\n"}
        assert cpu_quota(**groups("3:cpuset:/\n1:cpuacct,cpu:/a\n0::/\n", files)) == expected


def test_no_control_groups_limit_nothing(tmp_path):
    """Other systems, and a process that may not look."""
    assert cpu_quota(groups=str(tmp_path / "none"), mount=str(tmp_path)) is None


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="platform: no affinity")
def test_affinity_counts():
    """A process that is bound to one CPU uses one, whatever the machine has."""
    code = """
import os
from retailinfer.cpus import usable_cpus
assert 1 <= usable_cpus() <= os.cpu_count()
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
print(usable_cpus())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_at_least_one_and_no_more_than_the_quota(monkeypatch):
    """Half a CPU is one thread; one and a half are two."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for quota, expected in ((0.5, 1), (1.5, 2), (16.0, 8), (None, 8)):
        monkeypatch.setattr("retailinfer.cpus.cpu_quota", lambda quota=quota: quota)
        assert usable_cpus() == expected
