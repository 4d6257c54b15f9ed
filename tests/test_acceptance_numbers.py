"""Acceptance of numbers (cases 18, 19, 25, 26): missing, extreme and non-finite values, and arrays of every layout."""

from __future__ import annotations

import datetime as dt
import threading

import msgspec
import numpy as np
import pytest
import releases
from onnx import TensorProto, helper

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.errors import (
    CallerError,
    ConfigError,
    FeatureError,
    FeatureMissingError,
    FeatureRangeError,
    LimitError,
    SchemaMismatchError,
    ScoreError,
)

pack = msgspec.msgpack.encode


def bits(value):
    """The bits of a float32."""
    return int(np.float32(value).view(np.uint32))


def every_door(scorer, request):
    """The same request through each way in, as thunks that give the score."""
    yield "dict", lambda: scorer.score(request).score
    yield "struct", lambda: scorer.score(scorer.request_type(**request)).score
    yield "batch", lambda: scorer.score_batch([request])[0].score
    yield "msgpack", lambda: msgspec.msgpack.decode(scorer.score_msgpack(pack(request)))["score"]
    if not any(isinstance(value, float) and not np.isfinite(value) for value in request.values()):
        yield "json", lambda: msgspec.json.decode(scorer.score_json(msgspec.json.encode(request)))["score"]


# ---- 18: missing -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def missing():
    """One field with a default, one that is refused, one that is reviewed."""
    spec = ri.FeatureSpec(
        request={"a": float | None, "b": float | None, "c": float | None},
        columns=[
            c.numeric("a", null=-5.0),
            c.numeric("b", null="refuse"),
            c.numeric("c", name="third", null=9.0),
        ],
    )
    return releases.scorer_of(releases.packed("missing", releases.weighted(1.0, 10.0, 100.0), spec))


@pytest.mark.parametrize("null", [None, float("nan"), "absent"])
def test_c18_a_missing_value_gives_its_declared_default_and_is_reported(missing, null):
    """Null, NaN and nothing are the same; `missing` names the columns."""
    request = {"a": null, "b": 2.0, "c": null}
    request = {name: value for name, value in request.items() if not isinstance(value, str)}
    for call in (missing.score, lambda r: missing.score_batch([r])[0]):
        decision = call(request)
        assert decision.score == -5.0 + 20.0 + 900.0
        assert decision.missing == ("a", "third")
    answer = msgspec.msgpack.decode(missing.score_msgpack(pack(request)))
    assert (answer["score"], answer["missing"]) == (915.0, ["a", "third"])


def test_c18_nothing_missing_is_reported_after_something_was(missing):
    """What one call found missing is gone in the next one, which uses the same memory."""
    assert missing.score({"b": 2.0}).missing == ("a", "third")
    assert missing.score({"a": 1.0, "b": 2.0, "c": 3.0}).missing == ()
    first, second = missing.score_batch([{"b": 2.0}, {"a": 1.0, "b": 2.0, "c": 3.0}])
    assert (first.missing, second.missing) == (("a", "third"), ())


def test_c18_a_missing_value_that_its_column_refuses_is_a_422(missing):
    """The error names column and field; in a batch the other rows are answered."""
    for _, call in every_door(missing, {"a": 1.0, "b": None, "c": 1.0}):
        with pytest.raises(FeatureMissingError, match="`b`") as caught:
            call()
        assert caught.value.http_status == 422
    good = {"a": 1.0, "b": 1.0, "c": 1.0}
    answers = missing.score_batch([good, {"a": 1.0}, good], errors="row")
    assert [type(a).__name__ for a in answers] == ["Decision", "FeatureMissingError", "Decision"]
    assert "$[1].b" in str(answers[1])


# ---- 20: stale -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("on_stale", "want"), [("use", 7.0), (-1.0, -1.0), ("refuse", None)])
def test_c20_a_value_older_than_its_age_is_what_its_column_says(on_stale, want):
    """With the flag `stale`; a row from the future has age 0, one without a time is always stale."""
    spec = ri.FeatureSpec(
        request={"card": str},
        entities={"card": "card"},
        columns=[c.stored("card.n", max_age="1h", on_stale=on_stale, unknown=0.0, null=0.0)],
    )
    files = releases.packed("age", releases.first_column(1), spec)
    timed = ri.Snapshot.from_rows({"a": {"n": 7.0, "at": releases.AT}}, updated_at="at")
    scorer = releases.scorer_of(files, store=ri.Store(tables={"card": timed}))
    for minutes, stale in ((-10_000_000, False), (0, False), (60, False), (61, True), (10_000_000, True)):
        at = releases.AT + dt.timedelta(minutes=minutes)
        for moment in (at, at.timestamp()):
            if stale and want is None:
                with pytest.raises(FeatureMissingError, match="stale"):
                    scorer.score({"card": "a"}, at=moment)
                continue
            decision = scorer.score({"card": "a"}, at=moment)
            assert (decision.score, decision.stale) == (want if stale else 7.0, ("card.n",) if stale else ())
    assert scorer.score({"card": "new"}, at=releases.AT).missing == ("card.n",)
    untimed = releases.scorer_of(
        files, store=ri.Store(tables={"card": ri.Snapshot.from_rows({"a": {"n": 7.0}})})
    )
    if want is not None:
        decision = untimed.score({"card": "a"})
        assert (decision.score, decision.stale) == (want, ("card.n",))


def test_c20_the_epoch_itself_is_a_moment_and_not_now():
    """`at=0` is 1970, as `at=1` is."""
    spec = ri.FeatureSpec(
        request={"card": str},
        entities={"card": "card"},
        columns=[c.stored("card.n", max_age="1h", on_stale=-1.0, unknown=0.0, null=0.0)],
    )
    files = releases.packed("epoch", releases.first_column(1), spec)
    first = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    rows = {"a": {"n": 7.0, "at": first + dt.timedelta(seconds=1)}}
    store = ri.Store(tables={"card": ri.Snapshot.from_rows(rows, updated_at="at")})
    scorer = releases.scorer_of(files, store=store)
    assert [scorer.score({"card": "a"}, at=at).score for at in (0, 0.0, -0.0, first, 1)] == [7.0] * 5
    assert scorer.score({"card": "a"}).score == -1.0


# ---- 19: numbers of every kind in every slot -------------------------------------------------------------------------------

EXACT = [
    0.0,
    -0.0,
    1e-45,  # the smallest float32
    -1e-45,
    1.1754942e-38,  # the largest denormal float32
    1.17549435e-38,
    3.4028234663852886e38,  # the largest float32
    -3.4028234663852886e38,
    0.1,
    1 / 3,
    2.0**24 + 1,
]


@pytest.mark.parametrize("value", EXACT)
def test_c19_values_keep_their_bits_through_every_door(value):
    """-0.0 stays -0.0, denormals stay denormal: one rounding to float32 and nothing else."""
    scorer = releases.scorer_of(releases.value_files())
    for name, call in every_door(scorer, {"value": value}):
        assert bits(call()) == bits(value), name


@pytest.mark.parametrize("value", [7e-46, 1e-60, 5e-324, -5e-324])
def test_c19_values_below_the_smallest_float32_become_zero_with_their_sign(value):
    """Rounded, not refused."""
    scorer = releases.scorer_of(releases.value_files())
    for name, call in every_door(scorer, {"value": value}):
        assert bits(call()) == bits(np.float32(value)), name


@pytest.mark.parametrize("value", [3.4028236e38, 1e39, -1e39, 1.7976931348623157e308])
def test_c19_values_that_float32_cannot_hold_are_a_422(value):
    """float64 to float32 may not make an infinity."""
    scorer = releases.scorer_of(releases.value_files())
    for _, call in every_door(scorer, {"value": value}):
        with pytest.raises(FeatureRangeError, match=r"\$(\[0\])?\.value"):
            call()


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", [float, float | None])
def test_c19_infinity_is_a_422_in_every_slot(value, kind):
    """Infinity is never null."""
    scorer = releases.scorer_of(releases.value_files(kind, null=0.0))
    for _, call in every_door(scorer, {"value": value}):
        with pytest.raises(FeatureRangeError):
            call()


def test_c19_nan_in_a_required_field_is_a_422():
    """NaN counts as null."""
    scorer = releases.scorer_of(releases.value_files())
    for _, call in every_door(scorer, {"value": float("nan")}):
        with pytest.raises(FeatureError):
            call()


@pytest.mark.parametrize("field", ["amount", "rate", "at"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e39, 1e308])
def test_c19_every_numeric_field_of_a_payment(field, value):
    """No field lets a non-finite number through; only an optional one takes NaN, for null."""
    scorer = releases.payment_scorer()
    null = field == "rate" and np.isnan(value)
    fine = field == "amount" and np.isfinite(value)  # signed log1p brings it into the range
    for _, call in every_door(scorer, releases.payment(**{field: value})):
        if null or fine:
            assert 0.0 <= call() <= 1.0
        else:
            with pytest.raises(FeatureError):
                call()


@pytest.mark.parametrize("value", [-0.5, -1.0, -1.5])
def test_c19_outside_the_domain_of_a_transform_is_a_422(value):
    """log1p needs more than -1: no NaN, no minus infinity."""
    scorer = releases.scorer_of(releases.value_files(transform="log1p"))
    for _, call in every_door(scorer, {"value": value}):
        if value > -1.0:
            assert bits(call()) == bits(np.log1p(value))
        else:
            with pytest.raises(FeatureRangeError):
                call()


def test_c19_a_quantised_model_never_sees_a_nan():
    """Packing asks for a default first; with one, NaN and null are that default."""
    pa = pytest.importorskip("pyarrow")
    rng = np.random.default_rng(5)
    table = pa.table({"a": rng.normal(size=600), "b": rng.normal(size=600)})
    fields = {"a": float | None, "b": float}

    def files(spec):
        return releases.packed(
            "int8", releases.deep_network(2, hidden=32), spec, golden=table, quantize="static", tolerance=1.0
        )

    holes = pa.table({"a": [None, 0.5] * 300, "b": rng.normal(size=600)})
    with pytest.raises((SchemaMismatchError, FeatureError, CallerError)):
        releases.packed(
            "int8",
            releases.deep_network(2, hidden=32),
            ri.FeatureSpec(request=fields, columns=[c.numeric("a"), c.numeric("b")]),
            golden=holes,
            quantize="static",
            tolerance=1.0,
        )
    filled = releases.scorer_of(
        files(ri.FeatureSpec(request=fields, columns=[c.numeric("a", null=0.25), c.numeric("b")]))
    )
    bare = releases.scorer_of(files(ri.FeatureSpec(request=fields, columns=[c.numeric("a"), c.numeric("b")])))
    want = filled.score({"a": 0.25, "b": 1.0}).score
    for null in (None, float("nan")):
        assert filled.score({"a": null, "b": 1.0}).score == want
        with pytest.raises(FeatureMissingError):
            bare.score({"a": null, "b": 1.0})
        with pytest.raises(CallerError):
            bare.score({"a": 1.0, "b": null})


def tree(*, missing_goes_left):
    """1.0 where x <= 0.5, else 2.0; and where NaN goes."""
    node = helper.make_node(
        "TreeEnsembleRegressor",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        nodes_treeids=[0, 0, 0],
        nodes_nodeids=[0, 1, 2],
        nodes_featureids=[0, 0, 0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
        nodes_values=[0.5, 0.0, 0.0],
        nodes_truenodeids=[1, 0, 0],
        nodes_falsenodeids=[2, 0, 0],
        nodes_missing_value_tracks_true=[int(missing_goes_left), 0, 0],
        target_treeids=[0, 0],
        target_nodeids=[1, 2],
        target_ids=[0, 0],
        target_weights=[1.0, 2.0],
        n_targets=1,
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


@pytest.mark.parametrize("left", [True, False])
def test_c19_trees_take_nan_as_they_were_trained_to(left):
    """`null="use"` reaches a model of nothing but trees as NaN, which takes the branch that the model names."""
    spec = ri.FeatureSpec(request={"x": float | None}, columns=[c.numeric("x")])
    scorer = releases.scorer_of(releases.packed("tree", tree(missing_goes_left=left), spec))
    for null in (None, float("nan")):
        decision = scorer.score({"x": null})
        assert decision.score == (1.0 if left else 2.0)
        assert decision.missing == ("x",)
    assert [scorer.score({"x": x}).score for x in (0.5, 0.50001)] == [1.0, 2.0]


# ---- scores that are none ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def logarithm():
    """Score = log(x): NaN below zero, minus infinity at zero."""
    pa = pytest.importorskip("pyarrow")
    spec = ri.FeatureSpec(request={"x": float}, columns=[c.numeric("x")])
    golden = pa.table({"x": np.linspace(1.0, 9.0, 9)})
    files = releases.packed("log", releases.weighted(1.0, then=("Log",)), spec, golden=golden)
    return releases.scorer_of(files)


@pytest.mark.parametrize("backend", ["c", "python"])
@pytest.mark.parametrize("x", [-1.0, 0.0, -0.0, -1e30])
def test_a_score_that_is_not_finite_is_a_score_error(logarithm, x, backend):
    """NaN and infinity never leave: not as a score, not as JSON null, through neither session."""
    files = logarithm._live.pipeline.bundle.files
    scorer = releases.scorer_of({**files, "manifest.json": manifest_of(logarithm)}, backend=backend)
    body = msgspec.json.encode({"x": x})
    for call in (
        lambda: scorer.score({"x": x}),
        lambda: scorer.score_json(body),
        lambda: scorer.score_msgpack(pack({"x": x})),
        lambda: scorer.score_batch([{"x": 1.0}, {"x": x}]),
    ):
        with pytest.raises(ScoreError) as caught:
            call()
        assert caught.value.http_status == 503


def manifest_of(scorer):
    """The manifest's bytes."""
    from retailinfer.release.manifest import encode_manifest

    return encode_manifest(scorer.manifest)


def test_one_score_that_is_not_finite_leaves_the_other_rows_their_answers(logarithm):
    """With errors="row" it stands in its own row; with "raise" the error names the row."""
    rows = [{"x": float(x)} for x in [*range(1, 700), -1, *range(701, 900), 0]]
    answers = logarithm.score_batch(rows, errors="row")
    assert [i for i, a in enumerate(answers) if isinstance(a, ScoreError)] == [699, 899]
    assert "$[699]" in str(answers[699])
    for i, answer in enumerate(answers):
        if i not in (699, 899):
            assert answer.score == logarithm.score(rows[i]).score
    with pytest.raises(ScoreError, match=r"\$\[699\]"):
        logarithm.score_batch(rows)


# ---- 25: arrays ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["c", "python"])
def arrays(request):
    """A scorer without features, on both sessions: float rows, int rows and text."""
    from onnx import helper as h

    nodes = [
        h.make_node("Cast", ["n"], ["nf"], to=TensorProto.FLOAT),
        h.make_node("Add", ["x", "nf"], ["y"]),
        h.make_node("Identity", ["s"], ["t"]),
    ]
    graph = h.make_graph(
        nodes,
        "g",
        [
            h.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3]),
            h.make_tensor_value_info("n", TensorProto.INT64, [None, 3]),
            h.make_tensor_value_info("s", TensorProto.STRING, [None, 1]),
        ],
        [
            h.make_tensor_value_info("y", TensorProto.FLOAT, [None, 3]),
            h.make_tensor_value_info("t", TensorProto.STRING, [None, 1]),
        ],
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8).SerializeToString()
    return releases.scorer_of(releases.packed("arrays", model), backend=request.param)


def feeds(**changes):
    """Four canonical rows."""
    x = (np.arange(12, dtype=np.float32) / 8 - 1).reshape(4, 3)
    x[1, 1], x[2, 2], x[3, 0] = -0.0, 1e-45, np.float32(3.4e38)
    return {
        "x": x,
        "n": np.arange(12, dtype=np.int64).reshape(4, 3) - 5,
        "s": np.array([["a"], ["é\0b"], [""], ["日本"]], object),
    } | changes


class Loud(np.ndarray):
    """A subclass that runs code of its own when it is touched the Python way."""

    def __array_finalize__(self, obj):
        pass

    def __len__(self):
        raise RuntimeError("asked for its length")


def unaligned(a):
    """The same cells one byte off."""
    room = np.zeros(a.nbytes + 1, np.uint8)
    room[1:] = np.frombuffer(a.tobytes(), np.uint8)
    return room[1:].view(a.dtype).reshape(a.shape)


LAYOUTS = {
    "canonical": lambda a: a,
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "Fortran": np.asfortranarray,
    "strided rows": lambda a: np.repeat(a, 2, axis=0)[::2],
    "strided columns": lambda a: np.repeat(a, 3, axis=1)[:, ::3],
    "negative strides": lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
    "broadcast and back": lambda a: np.broadcast_to(a, (2, *a.shape))[1],
    "unaligned": unaligned,
    "memory of bytes": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "subclass": lambda a: a.view(np.recarray) if a.dtype.names else a.view(Loud),
    "big-endian Fortran": lambda a: np.asfortranarray(a.astype(a.dtype.newbyteorder(">"))),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["x", "n"])
def test_c25_layout_and_byte_order_do_not_change_an_answer(arrays, layout, name):
    """Converted, with the same bits as the canonical array; read-only memory stays as it is."""
    want = arrays.score_arrays(feeds())["y"]
    given = LAYOUTS[layout](feeds()[name])
    given.flags.writeable = False
    got = arrays.score_arrays(feeds(**{name: given}))["y"]
    assert got.tobytes() == want.tobytes()
    assert got.dtype == np.dtype("=f4")
    assert got.flags.writeable


def test_c25_texts_may_be_objects_or_fixed_width(arrays):
    """NULs inside, other scripts and empty texts come back."""
    want = feeds()["s"]
    assert arrays.score_arrays(feeds())["t"].tolist() == want.tolist()
    plain = np.array([["a"], ["bc"], [""], ["日本"]])
    assert arrays.score_arrays(feeds(s=plain))["t"].tolist() == plain.tolist()


REFUSED = {
    "float64": feeds()["x"].astype(np.float64),
    "float16": np.zeros((4, 3), np.float16),
    "int32 for float": np.zeros((4, 3), np.int32),
    "object": feeds()["x"].astype(object),
    "text": feeds()["x"].astype(str),
    "complex": feeds()["x"].astype(np.complex64),
    "datetime": np.zeros((4, 3), "M8[s]"),
    "masked": np.ma.masked_less(feeds()["x"], 0),
    "one dimension": feeds()["x"].ravel(),
    "three dimensions": feeds()["x"][None],
    "0-d": np.array(1.0, np.float32),
    "a NumPy number": np.float32(1.0),
    "another width": np.zeros((4, 4), np.float32),
    "no width": np.zeros((4, 0), np.float32),
    "a list": [[1.0, 2.0, 3.0]] * 4,
    "a number": 1.0,
    "None": None,
    "bytes": b"abc",
    "rows unlike the others": np.zeros((5, 3), np.float32),
    "9 dimensions": np.zeros((1,) * 9, np.float32),
}


@pytest.mark.parametrize("name", REFUSED)
def test_c25_another_dtype_or_shape_is_refused(arrays, name):
    """Never cast in silence, never broadcast: a typed error."""
    with pytest.raises((FeatureError, ri.errors.SessionError)):
        arrays.score_arrays(feeds(x=REFUSED[name]))


@pytest.mark.parametrize(
    "bad",
    [
        np.array([[1]] * 4, object),
        np.array([[b"a"]] * 4, object),
        np.array([["a\ud800"]] * 4, object),
        np.array([[None]] * 4, object),
        np.array([[b"a"]] * 4),
    ],
)
def test_c25_texts_that_are_none_are_refused(arrays, bad):
    """Bytes, numbers, None and lone surrogates are no texts."""
    with pytest.raises(FeatureError):
        arrays.score_arrays(feeds(s=bad))


def test_c25_no_rows_give_no_rows_or_a_typed_error(arrays):
    """An empty batch is not a crash."""
    empty = {name: value[:0] for name, value in feeds().items()}
    try:
        out = arrays.score_arrays(empty)
    except (FeatureError, ri.errors.SessionError):
        return
    assert {name: value.shape for name, value in out.items()} == {"y": (0, 3), "t": (0, 1)}


@pytest.mark.parametrize(
    "given", [None, 5, "x", [], [("x", 1)], {}, {"x": 1}, {"x": 1, "n": 2, "s": 3, "z": 4}, {1: 2}]
)
def test_c25_feeds_of_another_shape_are_refused(arrays, given):
    """What is no mapping of the model's inputs is a typed error."""
    with pytest.raises(CallerError):
        arrays.score_arrays(given)


def test_c25_too_many_rows_are_a_413_whatever_holds_them():
    """`max_rows` of the contract counts rows of arrays."""
    model = releases.weighted(1.0, 1.0)
    scorer = releases.scorer_of(releases.packed("rows", model, contract=ri.Contract(max_rows=8)))
    assert scorer.score_arrays({"x": np.ones((8, 2), np.float32)})["y"].shape == (8, 1)
    with pytest.raises(LimitError):
        scorer.score_arrays({"x": np.ones((9, 2), np.float32)})
    with pytest.raises(LimitError):
        scorer.score_arrays({"x": np.broadcast_to(np.float32(1), (1 << 40, 2))})


def test_c25_a_release_of_arrays_refuses_requests_with_a_hint(arrays):
    """Every other way in says what to do."""
    pa = pytest.importorskip("pyarrow")
    for call in (
        lambda: arrays.score({"x": 1.0}),
        lambda: arrays.score_json(b"{}"),
        lambda: arrays.score_msgpack(b"\x80"),
        lambda: arrays.score_batch([{}]),
        lambda: arrays.score_table(pa.table({"x": [1.0]})),
        lambda: arrays.request_type,
    ):
        with pytest.raises(ConfigError, match="score_arrays"):
            call()


def test_c25_arrays_of_a_release_with_features_are_the_models_own():
    """`score_arrays` passes features by: the same row gives the same bits as `score`."""
    scorer = releases.payment_scorer()
    (row,) = scorer._live.engine.vectorize(releases.payment())
    assert scorer.score_arrays({"x": row})["y"][0, 0] == scorer.score(releases.payment()).score


# ---- 26: buffers that change under our hands -------------------------------------------------------------------------------


def test_c26_a_bytearray_that_another_thread_resizes_is_old_or_new():
    """A body is copied before it is read: the answer is that of one state, or a typed error, and the resize may fail."""
    scorer = releases.scorer_of(releases.value_files())
    one, two = b'{"value":1.0}', b'{"value":2.0}' + b" " * 5000
    body = bytearray(one)
    stop = threading.Event()

    def change():
        while not stop.is_set():
            for text in (two, one, b""):
                try:
                    body[:] = text
                except BufferError:
                    continue

    thread = threading.Thread(target=change)
    thread.start()
    found = set()
    try:
        for _ in range(3000):
            try:
                found.add(msgspec.json.decode(scorer.score_json(body))["score"])
            except CallerError as exc:
                found.add(exc.http_status)
    finally:
        stop.set()
        thread.join()
    assert found <= {1.0, 2.0, 400}


def test_c26_an_array_that_another_thread_writes_is_old_or_new(arrays):
    """Each cell of the answer comes from a value that was there."""
    x = np.ones((2000, 3), np.float32)
    zeros, texts = np.zeros((2000, 3), np.int64), np.array([["a"]] * 2000, object)
    stop = threading.Event()

    def change():
        while not stop.is_set():
            x[:] = 2.0
            x[:] = 1.0

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(100):
            got = arrays.score_arrays({"x": x, "n": zeros, "s": texts})["y"]
            assert np.isin(got, (1.0, 2.0)).all()
    finally:
        stop.set()
        thread.join()


def test_c26_an_array_cannot_be_resized_while_it_is_read(arrays):
    """The buffer is held during the run; afterwards it is free again."""
    x = np.ones((4, 3), np.float32)
    arrays.score_arrays(feeds(x=x))
    x.resize((8, 3), refcheck=False)
    assert x.shape == (8, 3)
