"""Packing tree models: whose file it is, which engine runs it and why, and that whatever is packed was compared."""

from __future__ import annotations

import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.authoring.convert import convert
from retailinfer.authoring.trees.files import kind_of
from retailinfer.authoring.trees.use import hard_rows
from retailinfer.cli.main import main
from retailinfer.errors import ConfigError, ModelError, SchemaMismatchError

pytestmark = pytest.mark.requires("lightgbm", "xgboost", "sklearn", "catboost", "pyarrow")

NAMES = ["amount", "age", "velocity", "risk"]
RNG = np.random.default_rng(8)
ROWS = np.round(RNG.normal(size=(600, 4)), 2)
FRAUD = (ROWS[:, 0] + ROWS[:, 1] * ROWS[:, 2] > 0.3).astype(int)
POLICY = ri.Policy([("approve", 0.0), ("review", 0.5), ("decline", 0.8)])


def spec(dtype: str = "float32") -> ri.FeatureSpec:
    """Four numbers as they are, some of them missing."""
    columns = [c.numeric(name, null="use") for name in NAMES]
    return ri.FeatureSpec(
        request=dict.fromkeys(NAMES, float | None), tensors={"features": ri.Tensor(columns, dtype=dtype)}
    )


def table() -> Any:
    """The rows as an Arrow table."""
    import pyarrow as pa

    return pa.table({name: ROWS[:, i] for i, name in enumerate(NAMES)})


def booster() -> Any:
    """A LightGBM booster of two classes."""
    import lightgbm

    data = lightgbm.Dataset(ROWS, FRAUD, feature_name=NAMES)
    return lightgbm.train({"objective": "binary", "verbose": -1, "num_threads": 1}, data, 12)


def fitted(kind: str) -> Any:
    """A small fitted classifier of each trainer."""
    import catboost
    import lightgbm
    import sklearn.ensemble as sk
    import xgboost

    made = {
        "lightgbm": lambda: lightgbm.LGBMClassifier(n_estimators=9, verbose=-1, n_jobs=1),
        "xgboost": lambda: xgboost.XGBClassifier(n_estimators=9, n_jobs=1),
        "catboost": lambda: catboost.CatBoostClassifier(
            iterations=9, verbose=0, thread_count=1, allow_writing_files=False
        ),
        "forest": lambda: sk.RandomForestClassifier(9, random_state=0),
        "gradient": lambda: sk.GradientBoostingClassifier(n_estimators=9, random_state=0),
        "histogram": lambda: sk.HistGradientBoostingClassifier(max_iter=9),
        "extra": lambda: sk.ExtraTreesClassifier(9, random_state=0),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return made[kind]().fit(ROWS, FRAUD)


def own_file(kind: str, folder: Path) -> Path:
    """A file that the trainer itself writes."""
    if kind == "lightgbm.txt":
        booster().save_model(str(folder / "model.txt"))
        return folder / "model.txt"
    if kind == "lightgbm.json":
        (folder / "model.json").write_text(json.dumps(booster().dump_model()))
        return folder / "model.json"
    model = fitted(kind.partition(".")[0])
    if kind == "catboost.json":
        model.save_model(str(folder / "cat.json"), format="json")
        return folder / "cat.json"
    path = folder / f"xgb.{kind.partition('.')[2]}"
    model.save_model(str(path))
    return path


FILES = ["lightgbm.txt", "lightgbm.json", "xgboost.json", "xgboost.ubj", "catboost.json"]


def scores_of(release: Path, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Scores of rows through the front door."""
    requests = [dict(zip(NAMES, row, strict=True)) for row in rows.tolist()]
    with ri.Scorer.load(release, trust="unsigned") as scorer:
        return np.array([decision.score for decision in scorer.score_batch(requests)], np.float32)


# ---- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("as_bytes", [False, True])
def test_trainers_file_packs_as_it_is(kind, as_bytes, tmp_path):
    """A path or the bytes of a trainer's own file become a release of trees that answers as the trainer does."""
    path = own_file(kind, tmp_path)
    assert kind_of(path.read_bytes()) == {"lightgbm.txt": "lightgbm", "lightgbm.json": "lightgbm-json"}.get(
        kind, kind.partition(".")[0]
    )
    manifest = ri.pack(
        "fraud",
        model=path.read_bytes() if as_bytes else path,
        features=spec(),
        names="ignore",
        policy=POLICY,
        golden=table(),
        out=tmp_path / "r",
    )
    entry = manifest.models[0]
    assert (entry.engine, entry.file, entry.why) == ("trees", "model.trees", "")
    assert entry.parity == ("unchecked" if kind == "lightgbm.json" else "exact")
    rows = ROWS[:200].astype(np.float32)
    want = (
        booster().predict(rows.astype(float))
        if "light" in kind
        else fitted(kind.partition(".")[0]).predict_proba(rows)[:, 1]
    )
    np.testing.assert_array_equal(scores_of(tmp_path / "r", rows), want.astype(np.float32))


@pytest.mark.parametrize("kind", ["lightgbm.txt", "xgboost.ubj", "catboost.json"])
def test_trainer_need_not_be_installed_where_its_file_is_packed(kind, tmp_path, monkeypatch):
    """Without the trainer there is nothing to compare with, and the manifest says so."""
    path = own_file(kind, tmp_path)
    for name in ("lightgbm", "xgboost", "catboost", "onnxmltools"):
        monkeypatch.setitem(sys.modules, name, None)
    manifest = ri.pack("fraud", model=path, features=spec(), names="ignore", out=tmp_path / "r")
    assert (manifest.models[0].engine, manifest.models[0].parity) == ("trees", "unchecked")
    assert np.isfinite(scores_of(tmp_path / "r", ROWS[:5])).all()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"{}",
        b"[1, 2]",
        b'{"trees": []}',
        b"tree",
        b"tree\nversion",
        b"\x08\x07",
        b"{" * 100_000,
        b"\xef\xbb\xbf{}",
    ],
    ids=repr,
)
def test_anything_else_is_taken_for_onnx_and_refused_as_that(data, tmp_path):
    """What no trainer writes gets the error of a file that is no model."""
    assert kind_of(data) is None
    with pytest.raises(ModelError, match=r"is empty|is not an ONNX file|is damaged"):
        ri.pack("m", model=data, out=tmp_path / "m")


def test_json_of_lightgbm_cannot_become_onnx(tmp_path):
    """LightGBM does not read its own JSON, so no other engine can run it."""
    with pytest.raises(SchemaMismatchError, match="give the model's text"):
        convert(own_file("lightgbm.json", tmp_path), input_name="x", engine="onnx")


@pytest.mark.parametrize("kind", ["lightgbm.txt", "xgboost.json", "xgboost.ubj", "catboost.json"])
def test_trainers_file_becomes_onnx_where_it_must(kind, tmp_path):
    """engine="onnx" loads the file with its trainer and converts it."""
    manifest = ri.pack(
        "m",
        model=own_file(kind, tmp_path),
        features=spec(),
        names="ignore",
        engine="onnx",
        out=tmp_path / "m",
    )
    assert (manifest.models[0].engine, manifest.models[0].parity) == ("onnx", "close")


# ---- fitted models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "kind", ["lightgbm", "xgboost", "catboost", "forest", "gradient", "histogram", "extra"]
)
def test_fitted_model_runs_as_trees_with_its_own_probabilities(kind, dtype, tmp_path):
    """Whatever the matrix's dtype, the packed score is the trainer's probability as a float32."""
    model = fitted(kind)
    manifest = ri.pack(
        "m", model=model, features=spec(dtype), policy=POLICY, golden=table(), out=tmp_path / "m"
    )
    entry = manifest.models[0]
    assert (entry.engine, entry.parity) == ("trees", "exact")
    assert manifest.score is not None
    assert (manifest.score.output, manifest.score.column, manifest.score.label) == ("probabilities", 1, 1)
    rows = ROWS if dtype == "float64" else ROWS.astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = model.predict_proba(rows)[:, 1].astype(np.float32)
    np.testing.assert_array_equal(scores_of(tmp_path / "m", rows), want)


def test_words_stay_the_labels_of_the_classes(tmp_path):
    """A forest knows numbers only; the fitted model knows what they are called."""
    import lightgbm

    words = np.array(["good", "bad", "odd"])[np.digitize(ROWS[:, 0], [-0.5, 0.5])]
    model = lightgbm.LGBMClassifier(n_estimators=4, verbose=-1, n_jobs=1).fit(ROWS, words)
    manifest = ri.pack("m", model=model, features=spec(), score="probabilities[bad]", out=tmp_path / "m")
    assert manifest.models[0].outputs[0].classes == ("bad", "good", "odd")
    assert manifest.score is not None
    assert manifest.score.label == "bad"


def test_model_without_an_exact_forest_runs_in_onnx_runtime_and_says_why(tmp_path):
    """engine="auto" never refuses what ONNX Runtime can run; engine="trees" refuses it with the same reason."""
    import sklearn.ensemble as sk

    model = sk.AdaBoostClassifier(n_estimators=4, random_state=0).fit(ROWS, FRAUD)
    features = ri.FeatureSpec(
        request=dict.fromkeys(NAMES, float), columns=[c.numeric(name, null=0.0) for name in NAMES]
    )
    manifest = ri.pack("m", model=model, features=features, tolerance={"parity": 1e-3}, out=tmp_path / "m")
    assert manifest.models[0].engine == "onnx"
    assert "AdaBoost" in manifest.models[0].why
    with pytest.raises(SchemaMismatchError, match=r"no exact form as a forest: .*AdaBoost"):
        ri.pack("m", model=model, features=features, engine="trees", out=tmp_path / "t")


def test_model_whose_trees_differ_in_a_bit_is_not_replaced(tmp_path, monkeypatch):
    """The comparison with the trainer decides: one number that is off by one ulp, and ONNX Runtime runs the model."""
    from retailinfer.authoring.convert import lightgbm as door

    honest = door.predictor

    def off_by_an_ulp(model, *, dtype):
        predict = honest(model, dtype=dtype)
        return lambda rows: np.nextafter(predict(rows).astype(np.float32), np.float32(2)).astype(np.float64)

    monkeypatch.setattr(door, "predictor", off_by_an_ulp)
    manifest = ri.pack("m", model=booster(), features=spec(), out=tmp_path / "m")
    assert (manifest.models[0].engine, manifest.models[0].parity) == ("onnx", "close")
    assert "bits" in manifest.models[0].why
    with pytest.raises(SchemaMismatchError, match="where their source answers"):
        ri.pack("m", model=booster(), features=spec(), engine="trees", out=tmp_path / "t")


def test_release_of_arrays_takes_a_fitted_forest(tmp_path):
    """Who builds arrays gets the same numbers; the input is called as the converters call it."""
    model = fitted("lightgbm")
    ri.pack("m", model=model, out=tmp_path / "m")
    with ri.Scorer.load(tmp_path / "m", trust="unsigned") as scorer:
        assert scorer.manifest.models[0].engine == "trees"
        got = scorer.score_arrays({"features": ROWS.astype(np.float32)})["probabilities"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = model.predict_proba(ROWS.astype(np.float32)).astype(np.float32)
    np.testing.assert_array_equal(got, want)


def test_release_of_arrays_keeps_every_output_of_an_onnx_file(tmp_path):
    """An ONNX file with labels beside its probabilities stays whole, because somebody may read them."""
    data = convert(fitted("lightgbm"), input_name="features").data
    manifest = ri.pack("m", model=data, out=tmp_path / "m")
    assert manifest.models[0].engine == "onnx"
    assert len(manifest.models[0].outputs) == 2


def test_trees_are_not_quantised(tmp_path):
    """Asking for int8 of what has no weights is a mistake; leaving it to "auto" is not."""
    with pytest.raises(ConfigError, match="not quantised"):
        ri.pack("m", model=booster(), features=spec(), engine="trees", quantize="static", out=tmp_path / "m")
    manifest = ri.pack(
        "m", model=booster(), features=spec(), golden=table(), quantize="auto", out=tmp_path / "m"
    )
    assert manifest.models[0].engine == "trees"
    assert "never quantised" in manifest.quantization.why


def test_trees_that_answer_otherwise_than_their_golden_rows_do_not_load(tmp_path):
    """A release whose trees were replaced, hashes and all, is found by the rows that it carries."""
    import msgspec

    from retailinfer.release.manifest import decode_manifest, encode_manifest, seal, sha256_hex
    from retailinfer.runtime.trees import decode_forest, encode_forest

    ri.pack("m", model=booster(), features=spec(), golden=table(), out=tmp_path / "m")
    files = {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}
    forest = decode_forest(files["model.trees"])
    values = forest.arrays["values"].copy()
    values[0] = np.nextafter(values[0], 9.0) + 1e-3
    files["model.trees"] = encode_forest(
        msgspec.structs.replace(forest, arrays={**forest.arrays, "values": values})
    )
    manifest = decode_manifest(files["manifest.json"])
    entries = tuple(
        msgspec.structs.replace(entry, sha256=sha256_hex(files[entry.file])) for entry in manifest.files
    )
    files["manifest.json"] = encode_manifest(seal(msgspec.structs.replace(manifest, files=entries)))
    with pytest.raises(ri.GoldenMismatchError):
        ri.Scorer.load(files, trust="unsigned")


@pytest.mark.parametrize("engine", ["auto", "onnx"])
@pytest.mark.parametrize("kind", ["lightgbm", "sklearn"])
def test_labels_that_are_floats_are_the_whole_numbers_that_they_mean(tmp_path, kind, engine):
    """A target read from a file is often 0.0 and 1.0: the manifest says 0 and 1."""
    import lightgbm
    from sklearn.tree import DecisionTreeClassifier

    one = (
        lightgbm.LGBMClassifier(n_estimators=2, verbose=-1, n_jobs=1)
        if kind == "lightgbm"
        else DecisionTreeClassifier(max_depth=3)
    )
    model = one.fit(ROWS, FRAUD.astype(float))
    manifest = ri.pack("m", model=model, out=tmp_path / "r", features=spec(), golden=table(), engine=engine)
    assert manifest.models[0].outputs[0].classes == (0, 1)
    assert manifest.score is not None
    assert manifest.score.label == 1
    assert ri.Scorer.load(tmp_path / "r", trust="unsigned").score(dict.fromkeys(NAMES, 0.5)).score >= 0


@pytest.mark.parametrize("odd", ["lines of Windows", "sizes that lie"])
def test_a_text_whose_trees_are_elsewhere_than_it_says_does_not_end_the_process(tmp_path, odd):
    """LightGBM reads by `tree_sizes` in threads, and dies where these are wrong, as after a change of line ends."""
    text = booster().model_to_string()
    if odd == "lines of Windows":
        data = text.replace("\n", "\r\n").encode()
    else:
        data = re.sub(r"tree_sizes=.*", "tree_sizes=" + " ".join(["7"] * 12), text).encode()
    manifest = ri.pack("m", model=data, out=tmp_path / "r")
    assert (manifest.models[0].engine, manifest.models[0].parity) == ("trees", "exact")
    assert ri.pack("m", model=data, out=tmp_path / "o", engine="onnx").models[0].engine == "onnx"


def test_a_path_that_no_system_has_is_no_model(tmp_path):
    """A zero byte in a path is told like a file that is not there."""
    with pytest.raises(ModelError, match="cannot read the model"):
        ri.pack("m", model="a\0b", out=tmp_path / "r")


def test_a_forest_of_very_many_features_is_compared_on_fewer_rows():
    """A small file may say that it has a million features: the rows that it is compared on fit into memory."""
    forest = convert(booster(), input_name="features", engine="trees").forest
    assert forest is not None
    assert len(hard_rows(forest)) == 2_000
    assert hard_rows(msgspec.structs.replace(forest, n_features=1 << 18)).shape == (128, 1 << 18)


# ---- command line ------------------------------------------------------------------------------------------------------


def test_command_line_packs_a_trainers_file_and_inspect_shows_the_kernels(tmp_path, capsys):
    """From a file of LightGBM's to a release, and what runs it on this machine."""
    path = own_file("lightgbm.txt", tmp_path)
    (tmp_path / "features.json").write_bytes(spec().to_json())
    given = [
        "pack",
        "fraud",
        "--model",
        str(path),
        "--features",
        str(tmp_path / "features.json"),
        "--out",
        str(tmp_path / "r"),
    ]
    assert main([*given, "--engine", "trees"]) == 0
    assert "engine: trees" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "r"), "--json"]) == 0
    here = json.loads(capsys.readouterr().out)["here"]
    assert here["models"]["model"]["backend"] == "trees"
    shown = here["models"]["model"]
    assert shown["plan"], "a plan was timed"
    assert {kernel for pieces in shown["plan"].values() for kernel in pieces} <= set(shown["kernels"])
    assert main(["inspect", str(tmp_path / "r")]) == 0
    assert "native kernels for trees" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "r")]) == 0
    assert "native kernels for trees" in capsys.readouterr().out


def test_bench_times_a_forest_beside_the_forest_alone(tmp_path, capsys):
    """A release of trees holds nothing that ONNX Runtime could run: its measure is the kernels' own call."""
    ri.pack("m", model=booster(), features=spec(), golden=table(), policy=POLICY, out=tmp_path / "m")
    assert main(["bench", str(tmp_path / "m"), "--n", "200", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["answers"]["same_bits"] is True
    assert found["bare"] == ["the forest alone, called from Python"]
    assert found["machine"]["onnxruntime"] == ""
    ri.pack("a", model=booster(), out=tmp_path / "a")
    assert main(["bench", str(tmp_path / "a"), "--n", "200"]) == 0
    assert "the forest alone" in capsys.readouterr().out
