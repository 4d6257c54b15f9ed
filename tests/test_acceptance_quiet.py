"""Acceptance: silence. What a process opens, writes, starts and sends from import to score, as the kernel sees it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import releases

import retailinfer

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="platform: strace is a program of Linux"
)

SCRIPT = """
import os, pathlib, sys
def mark(name):
    os.access("/mark-" + name, os.F_OK)    # a call that the trace shows and that does nothing

payment, ranking = (pathlib.Path(path).read_bytes() for path in sys.argv[3:5])
mark("import")
import retailinfer as ri
mark("load")
scorer = ri.Scorer.load(sys.argv[1], trust="unsigned")
rows = {f"sku-{i:03d}": {"weight": i, "stock": i, "age": i, "label": "l"} for i in range(100)}
store = ri.Store(tables={"item": ri.Snapshot.from_rows(rows, kinds={"weight": "f64"})})
ranker = ri.Ranker.load(sys.argv[2], store=store, trust="unsigned")
scorer.score_json(payment)
ranker.rank_json(ranking)
assert len(os.listdir("/proc/self/task")) == 1
mark("score")
for i in range(10_000):
    scorer.score_json(payment)
    if i % 10 == 0:
        ranker.rank_json(ranking)
mark("end")
"""
# What libraries, Python and we read of the system: where libraries are, which processor this is, how much of it we may use.
# ONNX Runtime also looks which devices there are.
SYSTEM = re.compile(
    r"/etc/ld\.so\.cache|/(usr/)?lib(64)?/.*\.so(\.\d+)*|/usr/(local/)?lib/ssl/openssl\.cnf|/etc/(pki|ssl)/.*openssl\.cnf"
    r"|/sys/devices/system/cpu.*|/sys/bus/pci/devices.*|/sys/fs/cgroup/.*|/proc/self/.*|/proc/(cpuinfo|meminfo|stat)|/dev/urandom"
)
OPENS = re.compile(r'(?:openat\((?P<folder>[^,]+), |open\()"(?P<path>[^"]*)", (?P<flags>[^,)]+)')
HARMLESS = ("access(", "faccessat", "stat", "newfstatat", "statx", "readlink", "getcwd", "statfs", "exit")


@pytest.fixture(scope="module")
def phases(tmp_path_factory) -> dict[str, list[str]]:
    """System calls that name a file, touch the network or start something, by phase: import, load, score."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("`strace` is not installed")
    folder = tmp_path_factory.mktemp("quiet")
    for name, files in (("payments", releases.payment_files()), ("items", releases.item_files())):
        (folder / name).mkdir()
        for file, data in files.items():
            (folder / name / file).write_bytes(data)
    (folder / "payment").write_text(json.dumps(releases.payment()))
    ids = [f"sku-{i:03d}" for i in range(50)]
    (folder / "ranking").write_text(json.dumps({"context": releases.CONTEXT, "candidates": ids}))
    (folder / "home").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(folder / "home"),
        "XDG_CACHE_HOME": str(folder / "home" / "cache"),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    done = subprocess.run(
        [
            strace, "-f", "-qq", "-e", "trace=%network,%file,memfd_create,fork,vfork,clone,clone3", "-o", folder / "trace",
            sys.executable, "-c", SCRIPT, *(folder / name for name in ("payments", "items", "payment", "ranking")),
        ],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, list[str]] = {}
    name = "before"
    for line in (folder / "trace").read_text().splitlines():
        call = line.partition(" ")[2].strip()
        if marked := re.search(r'"/mark-(\w+)"', call):
            name = marked[1]
        else:
            found.setdefault(name, []).append(call)
    assert list((folder / "home").iterdir()) == []
    found["folder"] = [str(folder)]
    return found


def _opened(calls: list[str]) -> list[re.Match[str]]:
    """Files that were opened, and folders for listing."""
    return [found for call in calls if (found := OPENS.match(call)) and " = -1 E" not in call]


def test_import_and_load_read_only_what_they_were_given(phases):
    """Modules of Python, libraries, and the files of the release, each of them once."""
    given = Path(phases["folder"][0])
    packages = [
        sys.base_prefix,
        sys.prefix,
        *sysconfig.get_paths().values(),
        str(Path(retailinfer.__file__).resolve().parent),
        *[str(Path(part).resolve()) for part in sys.path if part],
    ]
    others = []
    for one in _opened(phases["import"] + phases["load"]):
        path = one["path"]
        if one["folder"] not in (None, "AT_FDCWD"):
            continue  # of the release, below
        whole = Path(path).resolve()
        inside = any(whole.is_relative_to(folder) for folder in packages) or str(whole).startswith(str(given))
        if not inside and not SYSTEM.fullmatch(path) and not SYSTEM.fullmatch(str(whole)):
            others.append(one[0])
    assert others == []
    files = sorted(one["path"] for one in _opened(phases["load"]) if one["folder"] not in (None, "AT_FDCWD"))
    assert files == sorted([*releases.payment_files(), *releases.item_files()])


@pytest.mark.parametrize("phase", ["import", "load", "score", "end"])
def test_nothing_is_written_sent_or_started(phases, phase):
    """No socket, no file that is made or changed, no process, no thread.

    But for one thread of ONNX Runtime, which asks each processor what it is while the library begins, and then ends.
    """
    changed = [
        call for call in phases.get(phase, []) if not call.startswith(HARMLESS) and not OPENS.match(call)
    ]
    threads = [call for call in changed if "CLONE_THREAD" in call]
    assert [call for call in changed if call not in threads] == []
    assert len(threads) <= (phase == "load")
    written = [
        one[0] for one in _opened(phases.get(phase, [])) if one["flags"] and "O_RDONLY" not in one["flags"]
    ]
    assert written == []


def test_scores_ask_the_system_for_nothing(phases):
    """10,000 scores and 1,000 rankings open no file and look for none."""
    assert phases.get("score", []) == []
