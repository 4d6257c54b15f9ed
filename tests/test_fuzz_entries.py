"""Hostile bytes at every entry but models: requests, objects, events, tables, releases, signatures, dumps, answers of Redis.

Thousands of mutants, the same every time, and some seconds of coverage-guided fuzzing of each; `make soak` goes on for hours.
What they are: fuzz_requests.py, fuzz_releases.py, fuzz_signatures.py, fuzz_state.py, fuzzing.py; model
files: test_fuzz_models.py.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import fuzz_releases
import fuzz_replies
import fuzz_requests
import fuzz_signatures
import fuzz_state
import msgspec
import pytest
from fuzzing import mutants

from retailinfer.errors import IntegrityError, ManifestError, clip
from retailinfer.store import windows_redis
from retailinfer.store.redis_link import LinkError

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="platform: memory is bounded by what Linux says of a process"
)
HERE = Path(__file__).resolve().parent
FILES = {
    "fuzz_replies.py": fuzz_replies,
    "fuzz_requests.py": fuzz_requests,
    "fuzz_releases.py": fuzz_releases,
    "fuzz_signatures.py": fuzz_signatures,
    "fuzz_state.py": fuzz_state,
}
CASES = [
    pytest.param(file, name, marks=pytest.mark.requires(*target.needs), id=name)
    for file, module in FILES.items()
    for name, target in module.TARGETS.items()
]
SECONDS = 2  # of each, by coverage
# Starting one costs more than it runs. So only what strangers send is guided here: bytes of clients and of model servers, what
# lies in a shared Redis, envelopes; `make soak` guides all of them.
STRANGERS = {
    "json",
    "msgpack",
    "rank",
    "http-reply",
    "http-message",
    "grpc-message",
    "redis-value",
    "envelope",
}
GUIDED = [case for case in CASES if case.id in STRANGERS]


def fuzzed(file, *arguments, timeout=170):
    """A run of targets in a process of its own."""
    return subprocess.run(
        [sys.executable, HERE / file, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)])},
    )


@pytest.mark.parametrize(("file", "name"), CASES)
def test_mutants_are_answered_or_refused(file, name):
    """Whatever is wrong with the bytes: an answer, or a typed error with a short text, soon; never another end."""
    target = FILES[file].TARGETS[name]
    done = fuzzed(file, name, "--mutants", target.sample, "--seed", 1)
    assert done.returncode == 0, done.stderr[-6000:]
    said = json.loads(done.stdout)
    assert (
        said["mutants"]
        == target.sample
        == sum(said[end] for end in {"answered", *target.refusals().values()})
    )
    assert said["answered"] > said["mutants"] // 100, (
        "some are harmless, else only the first check is looked at"
    )
    assert (
        said["answered"] < said["mutants"] * 9 // 10 or name == "decision-lines"
    )  # whose bad lines are left out


@pytest.mark.skipif(
    platform.machine() != "x86_64" or sys.version_info >= (3, 15),
    reason="platform: atheris, as pyproject.toml says, is not to be had here",
)
@pytest.mark.slow
@pytest.mark.requires("atheris")
@pytest.mark.parametrize(("file", "name"), GUIDED)
def test_guided_run_finds_nothing(file, name, tmp_path):
    """Steered by the branches that are reached, from a seed that is another one for each target."""
    seed = 1 + sum(name.encode())
    done = fuzzed(file, name, "--seconds", SECONDS, "--seed", seed, "--folder", tmp_path)
    assert done.returncode == 0, done.stderr[-6000:]
    units = re.search(r"stat::number_of_executed_units:\s+(\d+)", done.stderr)
    assert units is not None
    assert int(units[1]) > 5


def test_mutants_of_entries_are_the_same_for_the_same_seed():
    """A finding can be made again from its seed and number."""
    target = fuzz_state.TARGETS["redis-value"]
    assert list(mutants(target, 20, 5)) == list(mutants(target, 20, 5))
    assert list(mutants(target, 20, 5)) != list(mutants(target, 20, 6))


def test_an_entry_that_fails_in_another_way_is_found(tmp_path):
    """An exception out of a door ends a run with what happened and the bytes that did it."""
    code = (
        "import sys, fuzzing as f, fuzz_state\n"
        "target = fuzz_state.TARGETS['redis-value']\n"
        "def door(data, known=set(target.seeds()), door=target.door):\n"
        "    if data not in known: raise KeyError('x')\n"
        "    return door(data)\n"
        "f.LEFT = f.Path(sys.argv[1])\n"
        "sys.argv = ['fuzz_state.py', 'redis-value', '--mutants', '3']\n"
        "sys.exit(f.main({'redis-value': f.replace(target, door=door)}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        check=False, capture_output=True, text=True, timeout=100,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)])},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "KeyError" in done.stderr
    assert list(tmp_path.glob("redis-value-*.bin"))


# ---- what fuzzing has found ------------------------------------------------------------------------------------------


def loaded(file, data):
    """A release of payments with this file."""
    return fuzz_releases.TARGETS[file.partition(".")[0]].door(data)


@pytest.mark.parametrize("file", ["features.json", "policy.json", "contract.json"])
def test_messages_of_release_files_are_short(file):
    """A field with a long name is not repeated whole."""
    good = fuzz_releases.TARGETS[file.partition(".")[0]].seeds()[0]
    with pytest.raises(ManifestError) as caught:
        loaded(file, b'{"' + b"x" * 100_000 + b'":1,' + good[1:])
    assert len(str(caught.value)) < 900


def test_row_limit_that_no_machine_holds_is_refused():
    """A contract's numbers of rows fit what counts rows."""
    for limit in (2**31, 2**64):
        with pytest.raises(ManifestError, match=r"contract\.json"):
            loaded("contract.json", msgspec.json.encode({"max_rows": limit}))


def test_unfitted_spec_in_a_release_is_the_release_s_fault():
    """Not a SpecError: nobody wrote a spec here."""
    features = fuzz_releases._releases()["payments"]["features.json"]
    spec = msgspec.json.decode(features)
    columns = spec["tensors"]["features"]["columns"]
    columns[0] = {"kind": "categorical", "name": "channel2", "refs": ["channel"]}
    with pytest.raises(ManifestError, match=r"features\.json"):
        loaded("features.json", msgspec.json.encode(spec))


def test_registry_of_lists_is_no_registry():
    """A server that answers with arrays for names is refused like one that answers with nothing."""
    with pytest.raises(LinkError):
        windows_redis._registry([[b"id"], b"x", b"other", [b"y"]])
    assert windows_redis._registry([[b"id"], b"x", b"id", b"12345678"]).id == b"12345678"


@pytest.mark.parametrize(
    "cells",
    [
        [[b"1"], b"7", b"x", b"", b"[1,2,3]"],
        [b"1", b"7", b"x", b"", b"[%s]" % (b"9" * 400)],
        [b"1", b"7", b"x", b"", b"[" * 5_000],
    ],
)
def test_hash_with_cells_of_anything_is_no_row(cells):
    """It is refused by itself, as text that the table refuses in turn; the other rows of a fetch are good."""
    source = fuzz_state._sources()[2]
    assert isinstance(source._row(cells), str)
    good = source._row([b"1", b"7", b"x", b"", b"[1e39, 2, 3]"])
    assert (good["n"], good["taste"].tolist()) == (7, [float("inf"), 2.0, 3.0])


def test_dumps_with_texts_that_are_none_are_refused():
    """Bytes that are no UTF-8 and heads of any depth inside of a sealed dump are an IntegrityError."""
    saved = msgspec.msgpack.decode(fuzz_state._parts()["aliases"])
    saved["entity"] = "\x00spoilt\x00"
    packed = msgspec.msgpack.encode(saved).replace(b"\x00spoilt\x00", b"\xffspoilt\xff")
    with pytest.raises(IntegrityError):
        fuzz_state.TARGETS["aliases-dump"].door(packed)
    head = b"[" * 100_000
    table = fuzz_state._parts()["table"]
    at = table.index(b"{") - 4
    with pytest.raises(IntegrityError):
        fuzz_state.TARGETS["table-dump"].door(table[:at] + len(head).to_bytes(4, "little") + head)


def test_values_of_a_megabyte_are_shown_at_once():
    """An error shows 40 characters of a value, and takes the time of 40 characters: lists in lists, and cycles."""
    deep: object = 1
    for _ in range(900):
        deep = {"a": [deep]}
    cycle: list = []
    cycle.append(cycle)
    wide = [deep] * 5_000
    start = time.process_time()
    for value in (wide, {"x": wide}, (wide,), cycle, [["y" * 10**6] * 1_000]):
        assert len(clip(value)) <= 40
    assert time.process_time() - start < 0.1


@pytest.mark.parametrize(
    "value",
    [
        [],
        (),
        {},
        set(),
        [1],
        (1,),
        {1},
        {"a": 1, "b": [2, (3,)]},
        [None, 1.5, "x", b"y"],
        ("é", {}),
        [[], [[]]],
        [set()],
    ],
)
def test_small_values_are_shown_as_python_does(value):
    """What fits is its repr."""
    assert clip(value, 80) == repr(value)
