"""Strict mode: a release is tried in a process of its own first, and whatever happens there is an error here."""

from __future__ import annotations

import os
import sys
import time

import numpy as np
import pytest
import releases
from onnx import TensorProto, helper
from signed_releases import signed, statement_of, trust
from test_acceptance_release_files import replaced

import retailinfer as ri
from retailinfer.errors import ConfigError, ModelError
from retailinfer.release import limited
from retailinfer.release.limited import Limits, try_release

pytestmark = pytest.mark.requires("cryptography", "onnx", "pyarrow")

FILES = releases.payment_files()


def tried(files, **limits):
    """Tried in a child."""
    files = dict(files)
    try_release(files.pop("manifest.json"), files, limits=Limits(**limits))


def memory_kb():
    """Of this process."""
    with open("/proc/self/statm") as file:  # noqa: PTH123 - one line
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def signed_by_both(files):
    """With a signature that a host believes."""
    return files | {"manifest.sig": signed(statement_of(files), "ci", "lead")}


def test_a_good_release_loads_in_strict_mode():
    """From the front door, and the child's work changes nothing here."""
    strict = trust(names=("payments",), strict=Limits())
    plain = ri.Scorer.load(FILES, trust="unsigned").score(releases.payment()).score
    assert ri.Scorer.load(signed_by_both(FILES), trust=strict).score(releases.payment()).score == plain


@pytest.mark.parametrize("files", [releases.item_files, releases.value_files], ids=["ranker", "one column"])
def test_releases_of_other_kinds_pass(files):
    """With stand-ins for the tables that they read."""
    tried(files())


def test_windows_arrays_tables_and_int8_pass(tmp_path):
    """What packing lets through, strict mode does."""
    import pyarrow as pa
    import small_releases

    for folder in (
        small_releases.pack_windows(tmp_path),
        small_releases.pack_arrays(tmp_path),
        small_releases.pack_payments(tmp_path),
    ):
        tried({path.name: path.read_bytes() for path in folder.iterdir()})
    rows = pa.Table.from_pylist([releases.payment(amount=float(i), at=releases.AT) for i in range(200)])
    tried(
        releases.packed(
            "int8",
            releases.deep_network(15),
            releases.payment_spec(),
            golden=rows,
            quantize="static",
            tolerance=1.0,
        )
    )


@pytest.mark.requires("lightgbm")
def test_trees_pass(tmp_path):
    """Which are no ONNX."""
    import lightgbm

    rows = np.random.default_rng(1).normal(size=(300, 4))
    data = lightgbm.Dataset(rows, (rows[:, 0] > 0).astype(int))
    booster = lightgbm.train({"objective": "binary", "verbose": -1, "num_threads": 1}, data, 5)
    ri.pack("forest", model=booster, golden={"features": rows.astype(np.float32)}, out=tmp_path / "forest")
    tried({path.name: path.read_bytes() for path in (tmp_path / "forest").iterdir()})


def bomb(node, **constants):
    """A model that asks for more memory than there is."""
    return releases.onnx_bytes(
        [
            node,
            helper.make_node("ReduceSum", ["b"], ["s"], keepdims=0),
            helper.make_node("Add", ["x", "s"], ["y"]),
        ],
        {"x": (TensorProto.FLOAT, [None, 1])},
        **constants,
    )


BOMBS = {
    "ConstantOfShape": bomb(helper.make_node("ConstantOfShape", ["n"], ["b"]), n=np.array([2**45])),
    "Expand": bomb(helper.make_node("Expand", ["x", "n"], ["b"]), n=np.array([2**31, 2**10])),
    "Tile": bomb(helper.make_node("Tile", ["x", "n"], ["b"]), n=np.array([2**31, 2**10])),
}


@pytest.mark.parametrize("name", BOMBS)
def test_c37_a_bomb_that_was_signed_goes_off_in_the_child(name):
    """An error here, within the time that a child takes, and no memory."""
    before = memory_kb()
    with pytest.raises(ModelError, match=name):
        tried(replaced("model.onnx", BOMBS[name]), memory_mb=512)
    assert memory_kb() - before < 50_000


def test_c37_a_run_that_never_ends_is_ended():
    """A loop of a million rounds over large products passes the check of graphs, and not the limit of time."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["carried", "w"], ["product"]),
            helper.make_node("Tanh", ["product"], ["next"]),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", TensorProto.FLOAT, [None, 512]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [None, 512]),
        ],
    )
    rng = np.random.default_rng(1)
    model = releases.onnx_bytes(
        [
            helper.make_node("MatMul", ["x", "first"], ["h"]),
            helper.make_node("Loop", ["rounds", "true", "h"], ["out"], body=body),
            helper.make_node("MatMul", ["out", "last"], ["y"]),
        ],
        {"x": (TensorProto.FLOAT, [None, 15])},
        first=rng.normal(size=(15, 512)).astype(np.float32),
        w=rng.normal(size=(512, 512)).astype(np.float32),
        last=rng.normal(size=(512, 1)).astype(np.float32),
        rounds=np.array(1_000_000),
        true=np.array(True),
    )
    with pytest.raises(ModelError, match=r"SIGKILL|SIGXCPU"):
        tried(replaced("model.onnx", model), cpu_seconds=2)


def test_a_release_that_answers_otherwise_is_refused_there():
    """The golden rows are replayed in the child too."""
    with pytest.raises(ModelError, match="GoldenMismatchError"):
        tried(replaced("model.onnx", releases.deep_network(15, seed=4)))


@pytest.mark.parametrize("name", ["model.onnx", "features.json", "golden.msgpack"])
def test_garbage_is_refused_there(name):
    """With the words of the parser."""
    with pytest.raises(ModelError, match="refused by the process that tries it"):
        tried(replaced(name, b"hello"))


def child(code):
    """A process that does something else than trying."""
    return [sys.executable, "-c", f"import os, signal, sys\nsys.stdin.buffer.read()\n{code}"]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGABRT)", "SIGABRT"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("sys.exit(3)", "code 3"),
        ("print('hello')", "code 0"),
        ("print('{\"ok\": true}'); sys.stdout.flush(); os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("print('{\"ok\": true}'); sys.exit(1)", "code 1"),
        ("print('x' * 10_000_000)", "code 0"),
        ('print(\'{"ok": false, "error": "E", "message": "m"}\')', "E: m"),
    ],
)
def test_c38_a_child_that_crashes_is_an_error_here(code, says):
    """Whatever it said before; this process goes on."""
    with pytest.raises(ModelError, match=says):
        try_release(b"{}", {}, command=child(code))


def test_c38_a_child_that_hangs_or_does_not_listen_is_ended():
    """In the time that it was given."""
    began = time.monotonic()
    for command in (child("signal.pause()"), [sys.executable, "-c", "import signal; signal.pause()"]):
        with pytest.raises(ModelError, match=r"within 0\.5 s"):
            try_release(b"x" * 1_000_000, {}, limits=Limits(seconds=0.5), command=command)
    assert time.monotonic() - began < 20
    with pytest.raises(ModelError, match="code 7"):
        try_release(b"x" * 1_000_000, {}, command=[sys.executable, "-c", "raise SystemExit(7)"])


def test_a_child_that_cannot_be_started_is_a_setting_that_is_wrong(monkeypatch):
    """No interpreter, or none that runs."""
    with pytest.raises(ConfigError, match="cannot start"):
        try_release(b"", {}, command=["/nowhere/python3"])
    monkeypatch.setattr(limited.sys, "executable", "/usr/sbin/uwsgi")
    found = limited._interpreter()
    assert found.endswith("python3")
    monkeypatch.setattr(limited.sys, "prefix", "/nowhere")
    with pytest.raises(ConfigError, match="needs a Python interpreter"):
        limited._interpreter()


def test_the_child_knows_nothing_of_the_environment(monkeypatch):
    """Passwords of the service are not handed on."""
    monkeypatch.setenv("DATABASE_PASSWORD", "secret")
    code = 'print(\'{"ok": false, "error": "E", "message": "%s"}\' % sorted(set(os.environ) & {\'DATABASE_PASSWORD\'}))'
    with pytest.raises(ModelError, match=r"E: \[\]"):
        try_release(b"", {}, command=child(code))
