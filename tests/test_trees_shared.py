"""Forests in prefork workers: one copy for all of them, in memory that nothing can change."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from retailinfer._native.trees import TreeModel

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="platform: /proc of Linux")

FEATURES = 20


def large_forest(n_trees=600, depth=9):
    """Arrays of full trees: some 7 MB once they are built."""
    rng = np.random.default_rng(2)
    inner, leaves = 2**depth - 1, 2**depth
    at = np.arange(inner)
    nodes = n_trees * (inner + leaves)
    start = np.arange(n_trees)[:, None] * (inner + leaves)

    def every(part, rest, kind):
        return np.concatenate([np.broadcast_to(part, (n_trees, inner)), rest], axis=1).ravel().astype(kind)

    nothing = np.zeros((n_trees, leaves))
    return {
        "roots": start[:, 0].astype(np.int32),
        "feature": every(rng.integers(0, FEATURES, (n_trees, inner)), nothing - 1, np.int32),
        "threshold": every(rng.normal(size=(n_trees, inner)).astype(np.float32), nothing, np.float64),
        "left": every(start + 2 * at + 1, np.arange(n_trees * leaves).reshape(n_trees, leaves), np.int32),
        "right": every(start + 2 * at + 2, nothing, np.int32),
        "missing_left": np.zeros(nodes, np.uint8),
        "missing": np.zeros(nodes, np.uint8),
        "rule": np.zeros(nodes, np.uint8),
        "category": np.full(nodes, -1, np.int32),
        "set_ends": np.zeros(1, np.int64),
        "set_words": np.zeros(0, np.uint32),
        "values": rng.normal(size=n_trees * leaves).astype(np.float32).astype(np.float64),
        "targets": np.zeros(n_trees, np.int32),
        "base": np.zeros(1),
        "cover": np.zeros(0),
    }


def private_bytes():
    """Memory that this process alone has written."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))


def test_workers_of_a_prefork_server_share_a_forest():
    """A forked worker that answers has hardly a page of the forest to itself."""
    model = TreeModel(large_forest(), n_features=FEATURES)
    assert model.nbytes > 5_000_000
    rows = np.random.default_rng(3).normal(size=(300, FEATURES)).astype(np.float32)
    want = model.predict(rows)
    read, write = os.pipe()
    worker = os.fork()
    if worker == 0:
        before = private_bytes()
        same = all((model.predict(rows) == want).all() for _ in range(3))
        os.write(write, f"{int(same)} {private_bytes() - before}".encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        same, grown = answer.read().split()
    assert os.waitpid(worker, 0)[1] == 0
    assert same == b"1"
    assert int(grown) < 1_000_000, "the worker copied pages of the forest"


def test_a_stray_write_ends_the_process_instead_of_changing_a_score():
    """The pages of a forest are read-only once it is built, so no bug elsewhere can alter an answer."""
    code = (
        "import ctypes, re, sys\n"
        "sys.path[:0] = [sys.argv[1]]\n"
        "from test_trees_shared import FEATURES, large_forest\n"
        "from retailinfer._native.trees import TreeModel\n"
        "known = set(open('/proc/self/maps').read().splitlines())\n"
        "model = TreeModel(large_forest(), n_features=FEATURES)\n"
        "new = [l for l in open('/proc/self/maps').read().splitlines() if l not in known]\n"
        "sealed = [l for l in new if re.match(r'\\S+ r--p 00000000 00:00 0 *$', l)]\n"
        "sizes = [int(l.split()[0].split('-')[1], 16) - int(l.split()[0].split('-')[0], 16) for l in sealed]\n"
        "print(sum(sizes) >= model.nbytes, flush=True)\n"
        "ctypes.memset(int(sealed[0].split('-')[0], 16) + 4096, 1, 1)\n"
        "print('written')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout.split() == ["True"], done.stderr
    assert done.returncode < 0, "the write went through"
