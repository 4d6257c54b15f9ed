"""pack, the whole way: what is recorded, what NaN may do, golden rows that replay, and arguments that cannot mean anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from small_releases import pack_windows

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.errors import (
    BundleError,
    ConfigError,
    FeatureError,
    FeatureMissingError,
    GoldenMismatchError,
    IntegrityError,
    ManifestError,
    SchemaMismatchError,
    SpecError,
)
from retailinfer.release.bundle import read_bundle, write_bundle
from retailinfer.release.golden import decode_golden, encode_golden
from retailinfer.release.manifest import Info, Tolerance

onnx = pytest.importorskip("onnx")
helper = pytest.importorskip("onnx.helper")

RNG = np.random.default_rng(8)
N = 300
TABLE = pa.table(
    {
        "card": [f"card {i % 40}" for i in range(N)],
        "amount": RNG.lognormal(3, 1, N),
        "channel": RNG.choice(["web", "app", "pos"], N),
        "note": pa.array([None if i % 7 == 0 else f"note {i}" for i in range(N)]),
        "at": pa.array(1_700_000_000_000_000 + np.arange(N) * 60_000_000, pa.timestamp("us", tz="UTC")),
        "card.mean": pa.array([None if i % 11 == 0 else float(i % 5) for i in range(N)]),
    }
)
REQUEST = {"card": str, "amount": float, "channel": str, "note": str | None, "at": ri.Timestamp}


def spec(**changes: Any) -> ri.FeatureSpec:
    """Six columns over the table; `card.mean` is null now and then."""
    given: dict[str, Any] = {
        "request": REQUEST,
        "event_time": "at",
        "entities": {"card": "card"},
        "columns": [
            c.numeric("amount", transform="log1p"),
            c.categorical("channel", encoding="onehot"),
            c.hashed("note", buckets=16),
            c.time("at", "hour_sin"),
            c.stored("card.mean", null=0.0, unknown=0.0),
        ],
    }
    return ri.FeatureSpec(**{**given, **changes}).fit(TABLE)


def linear(n: int, *, last: str = "Sigmoid", name: str = "features") -> bytes:
    """sigmoid(x @ w): a model that is no tree."""
    w = (np.arange(n, dtype=np.float32).reshape(n, 1) - n / 2) / (4 * n)
    nodes = [helper.make_node("MatMul", [name, "w"], ["h"]), helper.make_node(last, ["h"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, 1, ["n", n])],
        [helper.make_tensor_value_info("y", 1, ["n", 1])],
        [onnx.numpy_helper.from_array(w, "w")],
    )
    return bytes(
        helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
        ).SerializeToString()
    )


def trees(features: ri.FeatureSpec) -> Any:
    """A fitted booster on the spec's matrix."""
    lightgbm = pytest.importorskip("lightgbm")
    matrix = np.asarray(features.transform(TABLE))
    model = lightgbm.LGBMClassifier(n_estimators=5, min_child_samples=5, verbose=-1, n_jobs=1)
    return model.fit(matrix, np.asarray(TABLE["amount"]) > 20)


def store() -> ri.Store:
    """The table that `card.mean` is read from."""
    rows = {f"card {i}": {"mean": None if i % 3 == 0 else float(i)} for i in range(30)}
    return ri.Store(tables={"card": ri.Snapshot.from_rows(rows)})


def pack(out: Path, **changes: Any) -> Any:
    """The linear model over the spec."""
    features = changes.pop("features", None) or spec()
    given = {"model": linear(len(features.names)), "features": features, "golden": TABLE}
    return ri.pack("fraud", out=out, **{**given, **changes})


def golden_of(folder: Path) -> Any:
    """The golden rows of a release."""
    return decode_golden((folder / "golden.msgpack").read_bytes())


# ---- what is recorded --------------------------------------------------------------------------------------------------


def test_the_manifest_says_what_an_auditor_asks(tmp_path):
    """Names, hashes, lineage, thresholds, versions and what people said stand in one file."""
    policy = ri.Policy(
        [("approve", 0.0), ("review", 0.6), ("decline", 0.9)], envelope={"decline": (0.85, 0.97)}
    )
    features = spec()
    info = {
        "version": "2026.11",
        "owner": "risk",
        "dataset": {"rows": N, "start": "2023-11-14"},
        "metrics": {"ap": np.float64(0.4), "n": np.int64(3)},
        "owners": {"card": "cards team"},
        "expires": "2027-01-01T00:00:00Z",
    }
    manifest = pack(tmp_path / "r", features=features, policy=policy, info=info, tolerance={"golden": 1e-5})
    assert read_bundle(tmp_path / "r").manifest == manifest
    assert manifest.release == "fraud:2026.11"
    assert manifest.task == "classification"
    assert manifest.spec_fingerprint == features.fingerprint
    assert manifest.thresholds == {"approve": 0.0, "review": 0.6, "decline": 0.9}
    assert manifest.tolerance == Tolerance(golden=1e-5)
    assert manifest.info.metrics == {"ap": 0.4, "n": 3.0}
    assert manifest.envelope == {"decline": (0.85, 0.97)}
    assert [(r.name, r.columns, r.owner) for r in manifest.reads] == [("card", ("mean",), "cards team")]
    assert manifest.machine.onnxruntime
    assert (manifest.score.low, manifest.score.high) == (0.0, 1.0)
    assert manifest.row_independent is True
    assert {e.role for e in manifest.files} == {
        "features",
        "contract",
        "policy",
        "baseline",
        "background",
        "golden",
        "model:model",
    }
    document = json.loads((tmp_path / "r" / "manifest.json").read_text())
    assert document["tolerance"]["score"] == 0.02  # what decides is written out, defaults too


def test_a_release_loads_and_answers_as_the_matrix_says(tmp_path):
    """Requests give the scores that the packed model has for the training matrix, bit for bit."""
    features = spec()
    pack(tmp_path / "r", features=features)
    scorer = ri.Scorer.load(tmp_path / "r", store=store(), trust="unsigned")
    known = {f"card {i}": None if i % 3 == 0 else float(i) for i in range(30)}
    rows = [{**row, "card.mean": known[row["card"]]} for row in TABLE.to_pylist() if row["card"] in known]
    matrix = np.asarray(features.transform(pa.Table.from_pylist(rows, schema=TABLE.schema)))
    expected = scorer.score_arrays({"features": matrix})["y"][:, 0]
    got = [scorer.score({k: v for k, v in row.items() if "." not in k}).score for row in rows]
    assert np.array(got, np.float32).tobytes() == expected.tobytes()


def test_packing_twice_changes_nothing(tmp_path):
    """The same model, spec and rows give the same files; the second call leaves the first release as it is."""
    first = pack(tmp_path / "r")
    assert pack(tmp_path / "r") == first
    other = pack(tmp_path / "other")
    assert [(e.file, e.sha256) for e in other.files] == [(e.file, e.sha256) for e in first.files]
    with pytest.raises(BundleError, match="never change"):
        pack(tmp_path / "r", contract=ri.Contract(max_rows=7))


def test_nothing_is_written_when_anything_fails(tmp_path):
    """A refused release leaves no directory."""
    with pytest.raises(SchemaMismatchError):
        pack(tmp_path / "deep" / "r", model=linear(3))
    assert list(tmp_path.iterdir()) == []


def test_golden_rows_hold_windows_and_the_states_of_what_is_looked_up(tmp_path):
    """Their values as the table had them, and rows in which everything looked up is unknown, stale, unavailable."""
    golden = golden_of(pack_windows(tmp_path))
    assert {"card_count_1h_payment", "before", "lost", "card.mean_amount"} <= set(golden.columns)
    assert set(golden.states) == {"card_count_1h_payment", "before", "lost", "card.mean_amount"}
    by_row = np.stack([np.frombuffer(one, np.uint8) for one in golden.states.values()], axis=1)
    assert {tuple(row) for row in by_row.tolist()} == {(state,) * 4 for state in (0, 2, 3, 4)}


@pytest.mark.parametrize(
    ("name", "states", "error"),
    [
        ("amount", b"\x03", "'amount', which the feature spec does not look up"),
        ("card.mean", b"\x04", "golden rows have SHA-256"),
    ],
)
def test_golden_states_of_another_release_do_not_load(tmp_path, name, states, error):
    """States of a field that requests bring, and states that lead to other features."""
    features = spec(columns=[c.numeric("amount"), c.stored("card.mean", null=0.0, on_unavailable=9.0)])
    pack(tmp_path / "r", features=features)
    bundle = read_bundle(tmp_path / "r")
    golden = golden_of(tmp_path / "r")
    changed = msgspec.structs.replace(golden, states={name: states * golden.n_rows})
    roles = {entry.file: entry.role for entry in bundle.manifest.files}
    files = {file: (roles[file], data) for file, data in bundle.files.items()}
    files["golden.msgpack"] = ("golden", encode_golden(changed))
    write_bundle(tmp_path / "changed", files, bundle.manifest)
    ri.Scorer.load(tmp_path / "r", store=store(), trust="unsigned").close()
    with pytest.raises(GoldenMismatchError, match=error):
        ri.Scorer.load(tmp_path / "changed", store=store(), trust="unsigned")


def test_progress_is_told_in_words(tmp_path):
    """Whoever waits for a large table sees what is going on."""
    said: list[str] = []
    pack(tmp_path / "r", progress=said.append)
    assert said[0] == "reading the model"
    assert said[-1] == "writing the release"


# ---- NaN ---------------------------------------------------------------------------------------------------------------


def test_columns_that_are_nan_in_golden_rows_are_refused_for_models_that_are_no_trees(tmp_path):
    """The message names the columns; the pack fails, not a request at night."""
    features = spec(columns=[c.numeric("amount"), c.stored("card.mean"), c.stored("card.mean", name="again")])
    with pytest.raises(SchemaMismatchError, match=r"`card\.mean`, `again`.*null=0\.0"):
        pack(tmp_path / "r", features=features)


def test_a_model_that_is_no_tree_never_receives_nan(tmp_path):
    """Where golden rows had no gap, a gap in a request is refused by name instead of scored."""
    features = spec(
        request={**REQUEST, "amount": float | None},
        columns=[c.numeric("amount"), c.hashed("note", buckets=4)],
    )
    manifest = pack(tmp_path / "r", features=features)
    assert manifest.nan_inputs is False
    scorer = ri.Scorer.load(tmp_path / "r", trust="unsigned")
    request = {"card": "c", "channel": "web", "note": None, "at": 0.0}
    with pytest.raises(FeatureMissingError, match="amount"):
        scorer.score({**request, "amount": None})
    assert scorer.score({**request, "amount": 3.0}).score > 0


def test_trees_receive_nan_and_mean_it_as_the_trainer_does(tmp_path):
    """Gaps reach a booster, and golden rows have some."""
    features = spec(columns=[c.numeric("amount"), c.stored("card.mean"), c.hashed("note", buckets=4)])
    manifest = pack(tmp_path / "r", features=features, model=trees(features))
    assert manifest.nan_inputs is True
    assert manifest.models[0].trees_only is True
    mean = golden_of(tmp_path / "r").columns["card.mean"]
    assert mean.valid is not None


def test_trees_that_mean_something_else_by_nan_do_not_receive_it(tmp_path):
    """skl2onnx loses where a random forest sends missing values; so NaN is not let in."""
    pytest.importorskip("sklearn")
    from sklearn.ensemble import RandomForestClassifier

    features = spec()
    matrix = np.asarray(features.transform(TABLE))
    model = RandomForestClassifier(5, random_state=0).fit(matrix, np.asarray(TABLE["amount"]) > 20)
    manifest = pack(tmp_path / "r", features=features, model=model, engine="onnx")
    assert manifest.models[0].trees_only is True
    assert manifest.nan_inputs is False


# ---- policy ------------------------------------------------------------------------------------------------------------


def test_columns_that_send_to_review_need_an_action_for_it(tmp_path):
    """A column may say "review" only where the policy knows what that is."""
    features = spec(columns=[c.numeric("amount"), c.stored("card.mean", null=0.0, unknown="review")])
    for policy in (None, ri.Policy([("approve", 0.0), ("decline", 0.9)])):
        with pytest.raises(SchemaMismatchError, match=r"`card\.mean` says \"review\""):
            pack(tmp_path / "r", features=features, policy=policy)


def test_segments_are_read_from_a_text_field(tmp_path):
    """The field must be there, and text; golden actions follow each row's segment."""
    bands = [("approve", 0.0), ("decline", 0.9)]
    for field in ("nowhere", "amount", "card.mean"):
        policy = ri.Policy(bands, segment_by=field, segments={"web": [("decline", 0.0)]})
        with pytest.raises(SchemaMismatchError, match="no request field of type str"):
            pack(tmp_path / "r", policy=policy)
    policy = ri.Policy(bands, segment_by="channel", segments={"web": [("decline", 0.0)]})
    pack(tmp_path / "r", policy=policy)
    golden = golden_of(tmp_path / "r")
    assert set(golden.actions) == {"approve", "decline"}
    ri.Scorer.load(tmp_path / "r", store=store(), trust="unsigned")  # replays them


def test_scores_below_the_lowest_band_are_refused_when_packing(tmp_path):
    """A policy that starts above real scores would fail at night."""
    policy = ri.Policy([("approve", 0.9999)])
    with pytest.raises(SchemaMismatchError, match="below the lowest threshold"):
        pack(tmp_path / "r", policy=policy)


# ---- golden rows -------------------------------------------------------------------------------------------------------


def test_golden_rows_are_few_and_include_what_is_rare(tmp_path):
    """Real rows with extremes and gaps, then edge rows: everything missing, unknown categories, tiny numbers."""
    pack(tmp_path / "r")
    golden = golden_of(tmp_path / "r")
    assert 40 <= golden.n_rows <= 64
    amounts = np.frombuffer(golden.columns["amount"].values, "<f8")
    assert amounts.max() >= np.asarray(TABLE["amount"]).max()
    assert ((amounts > 0) & (amounts < 1e-38)).any()  # a denormal of float32
    assert (amounts == 1.0 + 2.0**-24).any()  # half a unit in the last place
    words = bytes(golden.columns["channel"].values).decode()
    assert "édge" in words
    assert golden.columns["note"].valid is not None
    assert golden.scores == golden_of(tmp_path / "r").scores


def test_redacted_fields_leave_no_trace(tmp_path):
    """No file of the release holds a value of a redacted field, and the rows still replay."""
    manifest = pack(tmp_path / "r", redact=["card", "note", "card.mean"])
    assert manifest.redacted == ("card", "note", "card.mean")
    for path in (tmp_path / "r").iterdir():
        if path.name != "baseline.json":
            assert b"card 1" not in path.read_bytes()
            assert b"note 1" not in path.read_bytes()
    ri.Scorer.load(tmp_path / "r", store=store(), trust="unsigned")
    means = np.frombuffer(golden_of(tmp_path / "r").columns["card.mean"].values, "<f8")
    assert not np.isin(
        means, [2.0, 3.0, 4.0]
    ).any()  # what the table holds; edge rows have numbers of their own


@pytest.mark.parametrize(("field", "says"), [("nobody", "does not read"), ("at", "event time")])
def test_redacting_what_cannot_be_redacted_is_refused(field, says, tmp_path):
    """A misspelt name would leave the real values in."""
    with pytest.raises(ConfigError, match=says):
        pack(tmp_path / "r", redact=[field])


def test_rows_are_drawn_where_no_table_is_given(tmp_path):
    """A release without a golden table still replays rows that its spec knows how to make."""
    pack(tmp_path / "r", golden=None)
    assert golden_of(tmp_path / "r").n_rows > 20
    ri.Scorer.load(tmp_path / "r", store=store(), trust="unsigned")
    with pytest.raises(ConfigError, match="redact"):
        pack(tmp_path / "other", golden=None, redact=["card"])


def test_rows_that_the_spec_refuses_are_left_out(tmp_path):
    """A row that serving would refuse never reaches the model, so it is no golden row; a table of such rows is an error."""
    features = spec(columns=[c.numeric("amount"), c.stored("card.mean", null="refuse", unknown="refuse")])
    pack(tmp_path / "r", features=features)
    valid = golden_of(tmp_path / "r").columns["card.mean"].valid
    assert valid is None
    gaps = TABLE.filter(pa.compute.is_null(TABLE["card.mean"]))
    with pytest.raises(FeatureError, match=r"card\.mean"):
        pack(tmp_path / "other", features=features, golden=gaps)


@pytest.mark.parametrize("golden", [pa.table({"amount": [1.0]}), TABLE.slice(0, 0)])
def test_tables_without_columns_or_rows_are_refused(golden, tmp_path):
    """The table must have what the spec reads."""
    with pytest.raises((SpecError, ConfigError), match=r"lacks|no rows"):
        pack(tmp_path / "r", golden=golden)


@pytest.mark.parametrize("change", ["score", "tensor", "action", "column"])
def test_golden_rows_that_do_not_replay_stop_the_load(change, tmp_path):
    """Scores, tensors, actions and rows are compared when loading; one that differs refuses the release."""
    policy = ri.Policy([("approve", 0.0), ("decline", 0.9)])
    manifest = pack(tmp_path / "r", policy=policy)
    bundle = read_bundle(tmp_path / "r")
    golden = golden_of(tmp_path / "r")
    from msgspec.structs import replace

    if change == "score":
        golden = replace(golden, scores=golden.scores[4:] + golden.scores[:4])
    elif change == "tensor":
        golden = replace(golden, tensors_sha256="1" * 64)
    elif change == "action":
        golden = replace(golden, actions=("decline", *golden.actions[1:]))
    else:
        amount = replace(golden.columns["amount"], values=bytes(8 * golden.n_rows))
        golden = replace(golden, columns={**golden.columns, "amount": amount})
    roles = {entry.file: entry.role for entry in manifest.files}
    files = {name: (roles[name], data) for name, data in bundle.files.items()}
    files["golden.msgpack"] = ("golden", encode_golden(golden))
    write_bundle(tmp_path / "changed", files, manifest)
    with pytest.raises(GoldenMismatchError):
        ri.Scorer.load(tmp_path / "changed", store=store(), trust="unsigned")


def test_a_changed_release_does_not_load(tmp_path):
    """Every file, changed by one bit at a sample of places, is refused by the front door."""
    pack(tmp_path / "r")
    files = {path.name: path.read_bytes() for path in (tmp_path / "r").iterdir()}
    rng = np.random.default_rng(0)
    for name, data in files.items():
        for at in rng.integers(0, len(data), 25):
            changed = bytearray(data)
            changed[at] ^= 1 << int(rng.integers(8))
            with pytest.raises((IntegrityError, ManifestError)):
                ri.Scorer.load({**files, name: bytes(changed)}, store=store(), trust="unsigned")


# ---- rows that depend on each other --------------------------------------------------------------------------------------


def test_a_model_that_couples_rows_is_recognised_and_run_row_by_row(tmp_path):
    """A model that subtracts the batch mean gives a row the same score alone and in a batch of requests."""
    nodes = [
        helper.make_node("ReduceMean", ["features"], ["m"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["features", "m"], ["centred"]),
        helper.make_node("Add", ["centred", "features"], ["both"]),
        helper.make_node("ReduceSum", ["both", "axis"], ["y"], keepdims=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("features", 1, ["n", 2])],
        [helper.make_tensor_value_info("y", 1, ["n", 1])],
        [onnx.numpy_helper.from_array(np.array([1]), "axis")],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()
    features = ri.FeatureSpec(request={"a": float, "b": float}, columns=[c.numeric("a"), c.numeric("b")])
    table = pa.table({"a": np.arange(20.0), "b": np.arange(20.0) ** 2})
    manifest = ri.pack("coupled", model=model, features=features, golden=table, out=tmp_path / "r")
    assert manifest.row_independent is False
    assert manifest.row_difference > 1
    scorer = ri.Scorer.load(tmp_path / "r", trust="unsigned")
    rows = table.to_pylist()
    assert [d.score for d in scorer.score_batch(rows)] == [scorer.score(row).score for row in rows]


def test_rows_that_only_edges_couple_are_recognised(tmp_path):
    """Edge rows are recorded beside the given ones, so they too are compared alone and in company, where it is packed."""
    nodes = [
        helper.make_node(
            "ReduceSum", ["features", "all"], ["missing"], keepdims=1
        ),  # how many of the batch lack `b`
        helper.make_node("Mul", ["features", "missing"], ["coupled"]),
        helper.make_node("Gather", ["coupled", "flag"], ["extra"], axis=1),
        helper.make_node("Gather", ["features", "amount"], ["own"], axis=1),
        helper.make_node("Add", ["own", "extra"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("features", 1, ["n", 2])],
        [helper.make_tensor_value_info("y", 1, ["n", 1])],
        [
            onnx.numpy_helper.from_array(np.array([0]), "all"),
            onnx.numpy_helper.from_array(np.array([1]), "flag"),
            onnx.numpy_helper.from_array(np.array([0]), "amount"),
        ],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()
    features = ri.FeatureSpec(
        request={"a": float, "b": float | None}, columns=[c.numeric("a"), c.missing("b")]
    )
    table = pa.table({"a": np.arange(20.0), "b": np.ones(20)})  # none of them lacks `b`
    manifest = ri.pack("coupled", model=model, features=features, golden=table, out=tmp_path / "r")
    assert manifest.row_independent is False
    assert golden_of(tmp_path / "r").rows_per_run == 1
    ri.Scorer.load(tmp_path / "r", trust="unsigned")


def test_a_context_tensor_has_one_row_for_all_candidates(tmp_path):
    """The model of a ranking is measured as it is used: one context, many rows."""
    nodes = [
        helper.make_node("ReduceSum", ["user", "axis"], ["u"], keepdims=1),
        helper.make_node("ReduceSum", ["item", "axis"], ["i"], keepdims=1),
        helper.make_node("Mul", ["u", "i"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("user", 1, [1, 2]),
            helper.make_tensor_value_info("item", 1, ["n", 1]),
        ],
        [helper.make_tensor_value_info("y", 1, ["n", 1])],
        [onnx.numpy_helper.from_array(np.array([1]), "axis")],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()
    features = ri.FeatureSpec(
        request={"age": float, "income": float, "sku": str},
        entities={"item": "sku"},
        candidate="item",
        tensors={
            "user": ri.Tensor((c.numeric("age"), c.numeric("income")), axis="context"),
            "item": ri.Tensor((c.stored("item.price", null=0.0, unknown=0.0),)),
        },
    )
    table = pa.table(
        {
            "age": np.arange(9.0),
            "income": np.ones(9),
            "sku": [f"s{i}" for i in range(9)],
            "item.price": np.arange(9.0),
        }
    )
    manifest = ri.pack("ranking", model=model, features=features, golden=table, out=tmp_path / "r")
    assert manifest.task == "ranking"
    assert manifest.row_independent is True
    assert golden_of(tmp_path / "r").rows_per_run == 1
    items = ri.Snapshot.from_rows({f"s{i}": {"price": float(i)} for i in range(9)})
    ranker = ri.Ranker.load(tmp_path / "r", store=ri.Store(tables={"item": items}), trust="unsigned")
    ranking = ranker.rank({"age": 2.0, "income": 1.0}, candidates=["s1", "s3", "s2"], k=2)
    assert ranking.items == ["s3", "s2"]
    assert ranking.scores == [9.0, 6.0]


# ---- arguments -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"names": "maybe"}, "names"),
        ({"engine": "gpu"}, "engine"),
        ({"engine": "trees", "quantize": "static"}, "not quantised"),
        ({"task": "magic"}, "task"),
        ({"quantize": "int4"}, "quantize"),
        ({"model": {}}, "at least one model"),
        ({"model": {"a/b": b""}}, "role"),
        ({"model": {"x" * 60: b""}}, "48 characters"),
        ({"tolerance": {"nothing": 1}}, "tolerance"),
        ({"tolerance": -1}, "tolerance"),
        ({"tolerance": "small"}, "tolerance"),
        ({"info": {"nothing": 1}}, "owner"),
        ({"info": {"version": "1/2"}}, "version"),
        ({"info": {"metrics": {"ap": "high"}}}, "info"),
        ({"features": 3}, "FeatureSpec"),
    ],
    ids=str,
)
def test_arguments_that_cannot_mean_anything_are_refused(changes, says, tmp_path):
    """Each is a ConfigError that names the argument."""
    with pytest.raises(ConfigError, match=says):
        ri.pack(
            "x", **{"model": linear(6), "features": spec(), "golden": TABLE, "out": tmp_path / "r", **changes}
        )


def test_a_spec_that_is_not_fitted_is_refused(tmp_path):
    """What is to be learned must be learned before packing."""
    features = ri.FeatureSpec(request=REQUEST, columns=[c.categorical("channel")])
    with pytest.raises(SpecError, match="not fitted"):
        ri.pack("x", model=linear(1), features=features, golden=TABLE, out=tmp_path / "r")


@pytest.mark.parametrize("name", ["Fraud", "fraud/1", "", "ü", "x" * 65])
def test_names_that_no_file_may_have_are_refused(name, tmp_path):
    """The name of a release follows the rule for its files."""
    with pytest.raises(ConfigError, match="name"):
        ri.pack(name, model=linear(6), features=spec(), golden=TABLE, out=tmp_path / "r")


def test_info_can_be_given_as_a_struct(tmp_path):
    """Both forms of `info` and `tolerance` mean the same."""
    one = pack(tmp_path / "a", info=Info(owner="risk"), tolerance=Tolerance(score=0.5))
    two = pack(tmp_path / "b", info={"owner": "risk"}, tolerance=0.5)
    assert (one.info, one.tolerance) == (two.info, two.tolerance)


# ---- arrays --------------------------------------------------------------------------------------------------------------


def test_a_release_of_arrays_replays_given_arrays(tmp_path):
    """Arrays given as golden are kept, and their outputs compared when loading."""
    rows = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    manifest = ri.pack("arrays", model=linear(4), golden={"features": rows}, out=tmp_path / "r")
    np.testing.assert_array_equal(golden_of(tmp_path / "r").feeds()["features"], rows)
    assert manifest.score.output == "y"
    scorer = ri.Scorer.load(tmp_path / "r", trust="unsigned")
    assert scorer.score_arrays({"features": rows})["y"].shape == (7, 1)


def test_a_spec_from_the_model_packs_the_same_release(tmp_path):
    """`FeatureSpec.from_model` says explicitly what no spec means."""
    data = linear(4)
    one = ri.pack("arrays", model=data, out=tmp_path / "a")
    two = ri.pack("arrays", model=data, features=ri.FeatureSpec.from_model(data), out=tmp_path / "b")
    assert [e.sha256 for e in one.files] == [e.sha256 for e in two.files]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"golden": {"other": np.zeros((1, 4), np.float32)}}, r"inputs \['features'\]"),
        ({"golden": TABLE}, "as arrays"),
        ({"redact": ["features"]}, "redact"),
        ({"quantize": "static"}, "feature spec"),
        ({"golden": {"features": np.zeros((1, 5), np.float32)}}, "does not run"),
        ({"golden": {"features": np.zeros((1, 4))}}, "float32, got float64"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes, says, tmp_path):
    """Names, dtypes and shapes of golden arrays are those of the model."""
    with pytest.raises((ConfigError, SchemaMismatchError, FeatureError), match=says):
        ri.pack("arrays", model=linear(4), out=tmp_path / "r", **changes)
