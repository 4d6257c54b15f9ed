"""Thousands of hostile model files of every kind: refused in words, or run; never another end, nor much time or memory.

The same mutants every time; `make soak` looks for others, by coverage and for hours.
What they are: fuzz_models.py, fuzzing.py.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from fuzz_models import TARGETS
from fuzzing import mutants, settle

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


@functools.cache
def large_files():
    """Name of a target -> a file of about a megabyte, and one that claims much and holds little."""
    import lightgbm
    import xgboost
    from test_trees_onnx import grown, v3

    rng = np.random.default_rng(0)
    x = rng.normal(size=(3_000, 10))
    y = (x[:, 0] * x[:, 1] + rng.normal(size=3_000) > 0).astype(int)
    known = {"objective": "binary", "verbose": -1, "num_threads": 1, "num_leaves": 63, "min_data_in_leaf": 5}
    first = lightgbm.train(known, lightgbm.Dataset(x, y), num_boost_round=120)
    text = first.model_to_string().encode()
    second = xgboost.train({"nthread": 1, "max_depth": 7}, xgboost.DMatrix(x, y), num_boost_round=150)
    third = json.loads(TARGETS["catboost"].seeds()[2])
    third["trees"] *= 150
    nothing = b"{}," * 300_000 + b"{}"
    return {
        "lightgbm": [text, text.replace(b"\nend of trees", b"\nTree=9\n" * 100_000 + b"\nend of trees")],
        "lightgbm-json": [json.dumps(first.dump_model()).encode(), b'{"tree_info":[' + nothing + b"]}"],
        "xgboost": [bytes(second.save_raw("json")), b'{"learner":[' + nothing + b"]}"],
        "xgboost-ubjson": [bytes(second.save_raw("ubj")), b"{i\x07learner[" + b"{}" * 500_000 + b"]}"],
        "catboost": [json.dumps(third).encode(), b'{"features_info":{},"trees":[' + nothing + b"]}"],
        "onnx": [v3(grown(np.random.default_rng(3), n_trees=500, n_leaves=31)).SerializeToString()],
    }


@pytest.mark.slow
@pytest.mark.requires("lightgbm", "xgboost", "catboost", "onnx")
@pytest.mark.parametrize("name", [name for name in TARGETS if name != "trees"])
def test_large_files_cost_little_time_and_memory(name):
    """A megabyte takes a second at most and twelve times itself; one of empty objects, 40 times."""
    target = TARGETS[name]
    for data, factor in zip(large_files()[name], (12, 40), strict=False):
        start = time.process_time()
        end = settle(target, data)
        assert time.process_time() - start < 1.0 + len(data) / 1e6
        assert (end == "answered") == (factor == 12)
        tracemalloc.start()
        try:
            settle(target, data)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < factor * len(data) + (16 << 20), f"{peak / len(data):.1f} times {len(data)} bytes"


def test_mutants_are_the_same_for_the_same_seed():
    """A finding can be made again from its seed and number."""
    target = TARGETS["trees"]
    assert list(mutants(target, 20, 5)) == list(mutants(target, 20, 5))
    assert list(mutants(target, 20, 5)) != list(mutants(target, 20, 6))


def test_a_parser_that_fails_in_another_way_is_found(tmp_path):
    """An exception out of a parser, and memory without bound, end a run with what happened and the file that did it."""
    for line, what in (("raise KeyError('x')", "KeyError"), ("np.ones(1 << 29)", "MemoryError")):
        code = (
            "import sys, numpy as np, fuzzing as f, fuzz_models\n"
            "target = fuzz_models.TARGETS['trees']\n"
            f"def door(data, known=set(target.seeds()), door=target.door):\n    if data not in known: {line}\n"
            "    return door(data)\n"
            "f.LEFT = f.Path(sys.argv[1])\n"
            "sys.argv = ['fuzz_models.py', 'trees', '--mutants', '3']\n"
            "sys.exit(f.main({'trees': f.replace(target, door=door)}))\n"
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
