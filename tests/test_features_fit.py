"""What `fit` learns from a table, what `transform` gives, and when a spec's fingerprint changes.

Expected numbers are computed with NumPy from the plain values. The cells themselves are test_features_columns.py.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retailinfer import columns as c
from retailinfer.errors import FeatureError, FeatureMissingError, FeatureRangeError, SpecError
from retailinfer.features.spec import Entity, FeatureSpec, Tensor, Timestamp, Vocabulary

X = [4.0, 0.0, 1.0, 3.0, 2.0]


def fitted(*columns: Any, request: Any = None, **table: Any) -> FeatureSpec:
    """A spec over the columns of a small table, fitted to it."""
    types = {float: float, int: int, str: str, bool: bool}
    guessed = {name: types[type(next(v for v in values if v is not None))] for name, values in table.items()}
    spec = FeatureSpec(request=request or {n: t | None for n, t in guessed.items()}, columns=columns)
    return spec.fit(pa.table(table))


@pytest.mark.parametrize(
    ("center", "scale", "want_center", "want_scale"),
    [
        ("mean", "std", 2.0, math.sqrt(2.0)),
        ("median", "iqr", 2.0, 2.0),
        ("min", "range", 0.0, 4.0),
        (None, "max_abs", None, 4.0),
    ],
)
def test_centres_and_scales_are_those_of_the_values(center, scale, want_center, want_scale):
    """Mean, median, minimum; population deviation, quartiles, range, largest magnitude: nulls left out."""
    spec = fitted(c.numeric("x", center=center, scale=scale), x=[*X, None])
    learned = spec.body.fitted["x"]
    assert learned.center == want_center
    assert learned.scale == pytest.approx(want_scale, abs=1e-15)
    assert (learned.seen_low, learned.seen_high) == (0.0, 4.0)


def test_centres_are_learned_after_clip_and_transform():
    """What is centred in serving is what was centred in training."""
    spec = fitted(c.numeric("x", transform="sqrt", clip=(1.0, None), center="mean", scale="max_abs"), x=X)
    roots = np.sqrt(np.maximum(X, 1.0))
    learned = spec.body.fitted["x"]
    assert learned.center == roots.mean()
    assert learned.scale == roots.max()
    made = spec.transform(pa.table({"x": X}))
    assert np.array_equal(np.asarray(made)[:, 0], ((roots - roots.mean()) / roots.max()).astype(np.float32))


def test_a_constant_column_is_centred_and_left_alone():
    """A scale of zero becomes one."""
    for scale in ("std", "iqr", "range"):
        assert fitted(c.numeric("x", scale=scale), x=[3.0, 3.0]).body.fitted["x"].scale == 1.0
    assert fitted(c.numeric("x", scale="max_abs"), x=[0.0, -0.0]).body.fitted["x"].scale == 1.0


def test_clip_train_is_the_range_that_fit_saw():
    """Values beyond the training range become its ends; the range itself is of raw values."""
    spec = fitted(c.numeric("x", clip="train", transform="sqrt"), x=[1.0, 9.0, 4.0])
    assert np.asarray(spec.transform(pa.table({"x": [0.0, 100.0, 4.0]})))[:, 0].tolist() == [1.0, 3.0, 2.0]


def test_vocabularies_hold_the_most_frequent_values_first():
    """Ties go by value; rare values and those beyond max_size are out; nulls are no value."""
    values = ["b", "a", "c", "b", "a", "d", "b", None]
    for options, want in (
        ({}, ("b", "a", "c", "d")),
        ({"min_count": 2}, ("b", "a")),
        ({"max_size": 3}, ("b", "a", "c")),
        ({"max_size": 1, "min_count": 2}, ("b",)),
    ):
        assert fitted(c.categorical("x", **options), x=values).body.vocabularies["x"].values == want
    assert fitted(c.categorical("x"), x=[3, 1, 3, -2]).body.vocabularies["x"].values == (3, -2, 1)
    assert fitted(c.categorical("x"), x=[True, False, True]).body.vocabularies["x"].values == (1, 0)


def test_a_shared_vocabulary_counts_all_of_its_columns():
    """Two fields and a sequence that share a vocabulary are coded alike; a frozen one stays as it is."""
    spec = FeatureSpec(
        request={"a": str, "b": str, "h": list[str]},
        vocabularies={"v": Vocabulary(max_size=3), "fixed": Vocabulary(("z", "a"), frozen=True)},
        tensors={
            "t": Tensor(
                (
                    c.categorical("a", vocabulary="v"),
                    c.categorical("b", vocabulary="v"),
                    c.sequence("h", length=2, vocabulary="v"),
                    c.categorical("a", vocabulary="fixed", name="f"),
                ),
                "int64",
            )
        },
    )
    table = pa.table({"a": ["x", "y"], "b": ["y", "w"], "h": [["y", "x"], ["u"]]})
    made = spec.fit(table)
    assert made.body.vocabularies["v"].values == ("y", "x", "u")
    assert made.body.vocabularies["fixed"].values == ("z", "a")
    assert np.asarray(made.transform(table)).tolist() == [[2, 1, 1, 2, 0], [1, 0, 3, 0, 0]]


def smoothed(values: list[Any], labels: list[float], smoothing: float) -> dict[Any, float]:
    """Target means of each value, by the formula of Micci-Barreca 2001."""
    prior = float(np.mean(labels))
    out = {}
    for value in {v for v in values if v is not None}:
        own = [y for v, y in zip(values, labels, strict=True) if v == value]
        out[value] = (sum(own) + smoothing * prior) / (len(own) + smoothing)
    return out


def test_target_encoding_serves_smoothed_means():
    """A known value has its smoothed mean, an unknown or null one the overall mean."""
    values = ["a", "a", "b", "a", None, "b"]
    labels = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    spec = FeatureSpec(
        request={"x": str | None}, columns=[c.categorical("x", encoding="target", smoothing=2.0)]
    )
    made = spec.fit(pa.table({"x": values, "y": labels}), label="y")
    want = smoothed(values, labels, 2.0)
    cells = np.asarray(made.transform(pa.table({"x": ["a", "b", "never", None]})))[:, 0]
    assert cells == pytest.approx([want["a"], want["b"], 0.5, 0.5], abs=1e-7)
    assert made == spec.fit(pa.table({"x": values}), label=np.array(labels))


@given(
    rows=st.lists(
        st.tuples(st.sampled_from(["a", "b", "c", None]), st.integers(0, 1)), min_size=6, max_size=40
    )
)
def test_out_of_fold_values_never_hold_the_rows_own_label(rows):
    """`fit_transform` gives each training row the mean over the other folds; serving gives the mean over all."""
    values = [v for v, _ in rows]
    labels = [float(y) for _, y in rows]
    spec = FeatureSpec(
        request={"x": str | None}, columns=[c.categorical("x", encoding="target", smoothing=1.0, folds=3)]
    )
    made, training = spec.fit_transform(
        pa.table({"x": pa.array(values, pa.string()), "y": labels}), label="y"
    )
    serving = np.asarray(made.transform(pa.table({"x": pa.array(values, pa.string())})))[:, 0]
    for i, value in enumerate(values):
        cell = float(np.asarray(training)[i, 0])
        if value is None:
            assert cell == serving[i]
            continue
        rest = [j for j in range(len(rows)) if j % 3 != i % 3]
        others = smoothed([values[j] for j in rest], [labels[j] for j in rest], 1.0)
        prior = float(np.mean([labels[j] for j in rest]))
        assert cell == pytest.approx(others.get(value, prior), abs=1e-6)


def test_fit_transform_is_fit_and_transform_without_target_encodings():
    """Out-of-fold values are the only difference between the training matrix and serving."""
    table = pa.table({"x": X, "k": ["a", "b", "a", "c", "a"], "y": [0, 1, 0, 1, 0]})
    spec = FeatureSpec(
        request={"x": float, "k": str},
        columns=[c.numeric("x", center="mean"), c.categorical("k", encoding="onehot")],
    )
    made, training = spec.fit_transform(table, label="y")
    assert np.array_equal(training, made.transform(table))
    assert training.names == made.names == ("x", "k=(other)", "k=a", "k=b", "k=c")


def test_stored_columns_are_read_by_reference_and_typed_by_the_data():
    """A stored column that is coded or hashed is an integer if the table says so; vectors and floats are what they are."""
    spec = FeatureSpec(
        request={"u": str},
        entities={"user": "u"},
        columns=[
            c.stored("user.n", center="mean"),
            c.categorical("user.kind"),
            c.hashed("user.flag", buckets=10),
            c.hashed("user.raw", buckets=10),
            c.embedding("user.v", size=2, null=0),
        ],
    )
    table = pa.table(
        {
            "u": ["a", "b"],
            "user.n": [1.0, 3.0],
            "user.kind": [7, 8],
            "user.flag": [True, False],
            "user.raw": [b"x", b"y"],
            "user.v": [[1.0, 2.0], None],
        }
    )
    made = spec.fit(table)
    assert made.body.stored == {
        "user.n": "float",
        "user.kind": "int",
        "user.flag": "bool",
        "user.raw": "bytes",
        "user.v": "vector",
    }
    assert made.body.fitted["user.n"].center == 2.0
    assert made.body.vocabularies["user.kind"].values == (7, 8)


def test_wire_names_are_found_in_tables():
    """A training table may have the names that requests have on the wire."""

    class Payment(msgspec.Struct, rename="camel"):
        card_amount: float

    spec = FeatureSpec(request=Payment, columns=[c.numeric("card_amount", center="mean")])
    assert spec.fit(pa.table({"cardAmount": [1.0, 3.0]})).body.fitted["card_amount"].center == 2.0


def test_values_outside_the_training_range_are_counted_and_defaults_are_not():
    """The count per column that drift monitoring needs; a default is no observation."""
    from retailinfer.features.arrow import read_table
    from retailinfer.features.transform import fill

    spec = fitted(
        c.numeric("x", null=-99), c.ratio("x", "z", null=-99), x=[1.0, 2.0, None], z=[1.0, 1.0, 1.0]
    )
    table = pa.table({"x": [0.5, 1.5, 2.5, None], "z": [1.0, 0.0, 1.0, 1.0]})
    _, _, outside = fill(spec.program, spec.body, read_table(table, spec.body))
    assert outside == [2, 2]


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_fit_refuses_what_serving_would_refuse():
    """A value outside a transform's domain, and a null in a required field, name the row."""
    spec = FeatureSpec(request={"x": float}, columns=[c.numeric("x", transform="log1p", center="mean")])
    with pytest.raises(FeatureRangeError, match="log1p") as caught:
        spec.fit(pa.table({"x": [1.0, -1.0]}))
    assert caught.value.path == "$[1].x"
    with pytest.raises(FeatureMissingError) as caught:
        spec.fit(pa.table({"x": [1.0, None]}))
    assert caught.value.path == "$[1].x"


def test_fit_refuses_tables_that_teach_nothing():
    """No rows, no values for a mean, no label, a label of another length: each is a SpecError that says so."""
    mean = FeatureSpec(request={"x": float | None}, columns=[c.numeric("x", center="mean")])
    target = FeatureSpec(request={"x": str}, columns=[c.categorical("x", encoding="target")])
    for call, words in (
        (lambda: mean.fit(pa.table({"x": pa.array([], pa.float64())})), "no rows"),
        (lambda: mean.fit(pa.table({"x": pa.array([None], pa.float64())})), "no value to learn mean"),
        (lambda: target.fit(pa.table({"y": [1.0]}), label="y"), "lacks the column `x`"),
        (lambda: target.fit(pa.table({"x": ["a"]})), "label"),
        (lambda: target.fit(pa.table({"x": ["a"]}), label="y"), "label column `y`"),
        (lambda: target.fit(pa.table({"x": ["a"]}), label=np.array([1.0, 2.0])), "1 finite labels"),
        (lambda: target.fit(pa.table({"x": ["a"]}), label=np.array([np.nan])), "finite labels"),
        (lambda: mean.transform(pa.table({"x": [1.0]})), "not fitted"),
        (lambda: mean.program, "not fitted"),
    ):
        with pytest.raises(SpecError, match=words):
            call()


# ---- identity --------------------------------------------------------------------------------------------------------


def base(**changes: Any) -> FeatureSpec:
    """A spec of which one thing is changed."""
    options: dict[str, Any] = {
        "request": {"x": float | None, "k": str, "at": Timestamp},
        "event_time": "at",
        "tz": "Europe/London",
        "entities": {"user": Entity(("k",), {"n": "float"})},
        "columns": [c.numeric("x"), c.hashed("k", buckets=8), c.stored("user.n"), c.time("at", "hour")],
    }
    return FeatureSpec(**options | changes)


def test_the_fingerprint_changes_with_whatever_can_change_an_answer():
    """Each of these gives other cells for some request, so each has its own fingerprint; equal specs have equal ones."""
    columns = [c.numeric("x"), c.hashed("k", buckets=8), c.stored("user.n"), c.time("at", "hour")]
    variants = [
        base(),
        base(tz="Europe/Paris"),
        base(event_time=None),
        base(extra="ignore"),
        base(entities={"user": Entity(("k",), {"n": "int"})}),
        base(columns=[c.numeric("x", null=0), *columns[1:]]),
        base(columns=[c.numeric("x", clip=(0, None)), *columns[1:]]),
        base(columns=[columns[0], c.hashed("k", buckets=9), *columns[2:]]),
        base(columns=[columns[0], c.hashed("k", buckets=8, seed=1), *columns[2:]]),
        base(columns=[*columns[:2], c.stored("user.n", max_age="1h"), columns[3]]),
        base(columns=columns[::-1]),
        base(columns=(), tensors={"features": Tensor(tuple(columns), "float64")}),
        base(columns=(), tensors={"other": Tensor(tuple(columns))}),
    ]
    assert len({spec.fingerprint for spec in variants}) == len(variants)
    assert base().fingerprint == base().fingerprint
    assert base() == base()
    assert hash(base()) == hash(base())


def test_what_is_learned_is_part_of_the_fingerprint_and_the_baseline_is_not():
    """Another vocabulary or centre is another spec; the same numbers from other rows are the same spec."""
    spec = FeatureSpec(request={"k": str}, columns=[c.categorical("k")])
    one, two = spec.fit(pa.table({"k": ["a", "b", "a"]})), spec.fit(pa.table({"k": ["b", "a", "b"]}))
    same = spec.fit(pa.table({"k": ["a", "a", "a", "b", "b"]}))
    assert one.fingerprint != two.fingerprint
    assert one.fingerprint == same.fingerprint
    assert one.baseline != same.baseline
    assert spec.fingerprint != one.fingerprint


def test_fit_does_not_depend_on_chunks_or_the_maker_of_the_table():
    """The same rows in one chunk, in many, from polars or pandas, give the same spec."""
    polars = pytest.importorskip("polars", reason="`polars` is not installed (pip install retailinfer[test])")
    table = pa.table({"x": X, "k": ["a", "b", "a", "c", None]})
    spec = FeatureSpec(
        request={"x": float, "k": str | None},
        columns=[c.numeric("x", center="median", scale="iqr"), c.categorical("k")],
    )
    want = spec.fit(table).fingerprint
    chunks = pa.concat_tables([table.slice(i, 1) for i in range(5)])
    for form in (chunks, chunks.to_reader(), polars.from_arrow(table), table.to_pandas()):
        assert spec.fit(form).fingerprint == want


def test_features_json_is_read_back_or_refused():
    """`from_json` takes what `to_json` wrote, and nothing else: every damage is a SpecError."""
    spec = fitted(c.numeric("x", center="mean"), c.categorical("k", encoding="onehot"), x=X, k=[*"abcab"])
    data = spec.to_json()
    assert FeatureSpec.from_json(data) == spec
    good = msgspec.json.decode(data)
    for damage in (
        lambda b: b.update(format=2),
        lambda b: b.update(surprise=1),
        lambda b: b["fitted"].pop("x"),
        lambda b: b["fitted"]["x"].pop("center"),
        lambda b: b["vocabularies"].pop("k"),
        lambda b: b["vocabularies"]["k"].update(values=["a", "a"]),
        lambda b: b["vocabularies"]["k"].update(values=["a", 1]),
        lambda b: b["vocabularies"]["k"].update(values=[2**70]),
        lambda b: b["vocabularies"]["k"].update(oov="sideways"),
        lambda b: b["tensors"]["features"].update(dtype="float16"),
        lambda b: b["tensors"]["features"]["columns"][0].update(kind="window"),
        lambda b: b["tensors"]["features"]["columns"][0].update(refs=[]),
        lambda b: b["tensors"]["features"]["columns"][0].update(refs=["x"] * 20),
        lambda b: b["tensors"]["features"]["columns"][0].update(refs=["nowhere"]),
        lambda b: b["tensors"]["features"]["columns"][0].update(refs=["k"]),
        lambda b: b["tensors"]["features"]["columns"][0].update(encoding="onehot"),
        lambda b: b["tensors"]["features"]["columns"][0].update(scale=0),
        lambda b: b["tensors"]["features"]["columns"][0].update(null=None),
        lambda b: b["tensors"]["features"]["columns"][0].update(kind="sequence", size=2**40),
        lambda b: b["tensors"]["features"]["columns"][0].update(kind="embedding", size=4),
        lambda b: b["tensors"]["features"]["columns"][1].update(encoding="target"),
        lambda b: b["tensors"]["features"]["columns"][1].update(kind="hashed", encoding=None, buckets=0),
        lambda b: b.update(zone_at_s=[1, 2]),
        lambda b: b.update(zone_at_s=[2**70], zone_offset_s=[0, 0]),
        lambda b: b.update(zone_at_s=[0], zone_offset_s=[0, 2**40]),
        lambda b: b["fields"].append(b["fields"][0]),
        lambda b: b["fields"].append({"name": "not valid", "type": "int"}),
        lambda b: b["fields"].append({"name": "y", "type": "complex"}),
        lambda b: b.update(stored={"user.n": "float"}),
    ):
        bad = msgspec.json.decode(msgspec.json.encode(good))
        damage(bad)
        with pytest.raises(SpecError):
            _ = FeatureSpec.from_json(msgspec.json.encode(bad)).program
    for text in (b"", b"{}x", b"[]", b"\xff", b'{"format": "1"}', b"[" * 100_000):
        with pytest.raises(SpecError):
            FeatureSpec.from_json(text)


def test_a_target_list_of_another_length_is_refused():
    """Targets are read by code, so a list that does not fit its vocabulary must not get as far as the program."""
    spec = FeatureSpec(request={"k": str}, columns=[c.categorical("k", encoding="target")])
    data = msgspec.json.decode(spec.fit(pa.table({"k": ["a", "b"]}), label=np.array([0.0, 1.0])).to_json())
    for targets in ([], [0.5], [0.5] * 3, None):
        data["fitted"]["k"]["targets"] = targets
        with pytest.raises(SpecError, match="target"):
            _ = FeatureSpec.from_json(msgspec.json.encode(data)).program


def test_errors_of_features_are_caller_errors_with_a_path():
    """A service can tell its caller where the mistake is, whatever it was."""
    spec = FeatureSpec(request={"x": float}, columns=[c.numeric("x")])
    with pytest.raises(FeatureError) as caught:
        spec.transform(pa.table({"x": [1.0, None]}))
    assert caught.value.http_status == 422
    assert caught.value.path == "$[1].x"


def test_a_target_encoding_refuses_an_unknown_category_when_told_to():
    """oov="refuse" means the same for a target encoding as for a code: no prior instead of an error."""
    table = pa.table({"channel": ["web", "app", "web", "app"], "label": [1, 0, 1, 0]})
    spec = FeatureSpec(
        request={"channel": str}, columns=[c.categorical("channel", encoding="target", oov="refuse")]
    ).fit(table, label="label")
    assert np.asarray(spec.transform(table.slice(0, 1))).shape == (1, 1)
    with pytest.raises(FeatureRangeError, match="'fax'"):
        spec.transform(pa.table({"channel": ["fax"]}))
