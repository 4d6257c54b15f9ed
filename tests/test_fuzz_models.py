"""Thousands of hostile model files of every kind: refused in words, or run; never another end, nor much time or memory.

The same mutants every time; `make soak` looks for others, by coverage and for hours. What they are: fuzz_models.py.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_models import TARGETS, mutants

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="platform: memory is bounded by what Linux says of a process"
)
HERE = Path(__file__).resolve().parent


def fuzzed(*arguments, timeout=170):
    """A run of fuzz_models.py in a process of its own."""
    return subprocess.run(
        [sys.executable, HERE / "fuzz_models.py", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)])},
    )


def marks(target):
    """The checks of the debug build are in what runs *.trees; parsers are Python, and need no second run."""
    needs = pytest.mark.requires(*target.needs)
    return [needs] if target.name == "trees" else [needs, pytest.mark.slow]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=marks(target)) for name, target in TARGETS.items()]
)
def test_mutants_are_refused_or_run(name):
    """Bytes, numbers, keys, attributes and cells made hostile: Unfit, ModelError, or a forest that answers."""
    done = fuzzed(name, "--mutants", TARGETS[name].sample, "--seed", 1)
    assert done.returncode == 0, done.stderr[-6000:]
    said = json.loads(done.stdout)
    assert said["answered"] + said["unfit"] + said["refused"] == said["mutants"]
    assert said["answered"] > said["mutants"] // 200, (
        "some are harmless, else little was looked at behind the first check"
    )
    assert said["refused"] + said["unfit"] > said["mutants"] // 4


def test_mutants_are_the_same_for_the_same_seed():
    """A finding can be made again from its seed and number."""
    target = TARGETS["trees"]
    assert list(mutants(target, 20, 5)) == list(mutants(target, 20, 5))
    assert list(mutants(target, 20, 5)) != list(mutants(target, 20, 6))


def test_a_parser_that_fails_in_another_way_is_found(tmp_path):
    """An exception out of a parser, and memory without bound, end a run with what happened and the file that did it."""
    for line, what in (("raise KeyError('x')", "KeyError"), ("np.ones(1 << 29)", "MemoryError")):
        code = (
            "import sys, numpy as np, fuzz_models as f\n"
            "target = f.TARGETS['trees']\n"
            f"def door(data, dtype, known=set(target.seeds()), door=target.door):\n    if data not in known: {line}\n"
            "    return door(data, dtype)\n"
            "f.LEFT = f.Path(sys.argv[1])\n"
            "f.TARGETS['trees'] = f.replace(target, door=door)\n"
            "sys.argv = ['fuzz_models.py', 'trees', '--mutants', '3']\n"
            "sys.exit(f.main())\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path],
            check=False, capture_output=True, text=True, timeout=100,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)])},
        )  # fmt: skip
        assert done.returncode == 1, done.stderr
        assert what in done.stderr
    assert list(tmp_path.glob("trees-*.bin"))


@pytest.mark.skipif(
    platform.machine() != "x86_64" or sys.version_info >= (3, 15),
    reason="platform: atheris, as pyproject.toml says, is not to be had here",
)
@pytest.mark.requires("atheris")
def test_run_by_coverage_works(tmp_path):
    """atheris counts the branches of the parsers, keeps what reaches new ones, and ends in time."""
    done = fuzzed("trees", "--seconds", 2, "--seed", 3, "--folder", tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "DONE" in done.stderr
    assert len(list((tmp_path / "corpus").iterdir())) > len(TARGETS["trees"].seeds())
