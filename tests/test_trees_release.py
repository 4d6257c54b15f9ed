"""Releases whose model is a forest: the same answers as through ONNX Runtime, without its library."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from test_trees_onnx import FEATURES, ensemble

import retailinfer as ri
from retailinfer import columns as c

NAMES = [f"f{i}" for i in range(FEATURES)]
SPEC = ri.FeatureSpec(
    request=dict.fromkeys(NAMES, float | None), columns=[c.numeric(name, null="use") for name in NAMES]
)
MODEL = ensemble("TreeEnsembleClassifier", classlabels_int64s=[0, 1], post_transform="LOGISTIC")
POLICY = ri.Policy([("approve", 0.0), ("review", 0.5), ("decline", 0.8)])


def requests(n, seed=1):
    """Rows of a float field each, some null."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, FEATURES)) * 2
    return [
        {name: None if rng.random() < 0.1 else float(v) for name, v in zip(NAMES, row, strict=True)}
        for row in rows
    ]


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    """The same model under both engines."""
    folder = tmp_path_factory.mktemp("releases")
    for engine in ("onnx", "trees"):
        ri.pack(
            "fraud",
            model=MODEL.SerializeToString(),
            features=SPEC,
            policy=POLICY,
            engine=engine,
            out=folder / engine,
        )
    return folder


def test_both_engines_decide_alike_through_every_door(releases):
    """Score, action and bits agree for objects, JSON, batches of any size and arrays."""
    rows = requests(700)
    with (
        ri.Scorer.load(releases / "onnx", trust="unsigned") as onnx,
        ri.Scorer.load(releases / "trees", trust="unsigned") as trees,
    ):
        assert trees.manifest.models[0].engine == "trees"
        want = [(d.score, d.action) for d in onnx.score_batch(rows)]
        assert [(d.score, d.action) for d in trees.score_batch(rows)] == want
        assert [(d.score, d.action) for d in map(trees.score, rows)] == want
        decoded = [json.loads(trees.score_json(json.dumps(row).encode())) for row in rows[:50]]
        assert [(d["score"], d["action"]) for d in decoded] == want[:50]
        feeds = {"x": np.random.default_rng(3).normal(size=(9, FEATURES)).astype(np.float32)}
        np.testing.assert_array_equal(trees.score_arrays(feeds)["y"], onnx.score_arrays(feeds)["y"])


def test_release_of_trees_never_loads_onnx_runtime(releases):
    """A process that serves trees only has no library of ONNX Runtime in it."""
    code = (
        "import retailinfer as ri, sys\n"
        f"s = ri.Scorer.load({str(releases / 'trees')!r}, trust='unsigned')\n"
        f"s.score(dict.fromkeys({NAMES!r}, 1.0))\n"
        "assert 'onnxruntime' not in sys.modules\n"
        "maps = open('/proc/self/maps').read() if sys.platform == 'linux' else ''\n"
        "print('libonnxruntime' in maps)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.strip() == "False", done.stderr


def test_damaged_trees_do_not_load(releases, tmp_path):
    """One byte that differs is refused by its hash, before anything is parsed."""
    files = {path.name: path.read_bytes() for path in (releases / "trees").iterdir()}
    bad = bytearray(files["model.trees"])
    bad[-9] ^= 1
    with pytest.raises(ri.IntegrityError):
        ri.Scorer.load(files | {"model.trees": bytes(bad)}, trust="unsigned")


def test_model_that_is_no_forest_is_refused_with_the_reason(tmp_path):
    """engine="trees" says what stands in the way and what to do."""
    from onnx import helper

    model = ensemble(more=[helper.make_node("Abs", ["y"], ["z"])])
    with pytest.raises(
        ri.SchemaMismatchError, match="no exact form as a forest: its scores go through 'Abs'"
    ):
        ri.pack("m", model=model.SerializeToString(), features=SPEC, engine="trees", out=tmp_path / "m")


def test_trees_rank_candidates_as_onnx_runtime_does(tmp_path):
    """Rankings over tiles of candidates have the same items, scores and order."""
    fields = {"sku": str, "a": float, "b": float}
    spec = ri.FeatureSpec(
        request=fields,
        entities={"item": "sku"},
        candidate="item",
        columns=[c.numeric("a"), c.numeric("b"), *(c.stored(f"item.x{i}") for i in range(FEATURES - 2))],
    )
    rng = np.random.default_rng(5)
    rows = {f"s{i}": {f"x{j}": float(rng.normal()) for j in range(FEATURES - 2)} for i in range(900)}
    store = ri.Store(tables={"item": ri.Snapshot.from_rows(rows)})
    answers = []
    for engine in ("onnx", "trees"):
        ri.pack(
            "r", model=ensemble().SerializeToString(), features=spec, engine=engine, out=tmp_path / engine
        )
        with ri.Ranker.load(tmp_path / engine, store=store, trust="unsigned") as ranker:
            found = ranker.rank({"a": 0.3, "b": -0.7}, list(rows), k=50)
            answers.append((found.items, found.scores))
    assert answers[0] == answers[1]
