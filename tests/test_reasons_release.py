"""Reasons through a whole release: what a policy asks for, groups and texts, every door, forests and any other model."""

from __future__ import annotations

import asyncio
import datetime as dt
import json

import msgspec
import numpy as np
import pyarrow as pa
import pytest
import releases
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.authoring.background import covered, make_background
from retailinfer.clock import ManualClock
from retailinfer.errors import ConfigError, ManifestError, SchemaMismatchError, ScoreError, SpecError
from retailinfer.features.groups import groups_of
from retailinfer.release.background import decode_background, encode_background
from retailinfer.runtime.trees import decode_forest

BANDS = [("approve", float("-inf")), ("review", 0.5), ("decline", 0.9)]
GROUPS = ("amount", "fee", "channel", "merchant", "at", "guest", "share", "new")


def table(n=600, seed=0):
    """Payments: an amount, a fee that may be missing, a channel, a merchant, a moment, two truths."""
    rng = np.random.default_rng(seed)
    seconds = 1_700_000_000 + rng.integers(0, 1_000_000, n)
    return pa.table(
        {
            "amount": rng.lognormal(3, 1, n),
            "fee": pa.array(rng.normal(size=n), mask=rng.random(n) < 0.2),
            "channel": rng.choice(["web", "app", "pos"], n, p=[0.5, 0.3, 0.2]),
            "merchant": [f"m{i}" for i in rng.integers(0, 40, n)],
            "at": pa.array(seconds * 10**6, pa.timestamp("us", tz="UTC")),
            "guest": rng.random(n) < 0.3,
            "new": rng.random(n) < 0.2,
        }
    )


ROWS = table(40, seed=7).to_pylist()
SPEC = ri.FeatureSpec(
    request={
        "amount": float,
        "fee": float | None,
        "channel": str,
        "merchant": str,
        "at": ri.Timestamp,
        "guest": bool,
        "new": bool,
    },
    event_time="at",
    columns=[
        c.numeric("amount", transform="log1p"),
        c.numeric("fee"),
        c.categorical("channel", encoding="onehot"),
        c.hashed("merchant", buckets=16),
        c.time("at", "hour_sin"),
        c.time("at", "hour_cos"),
        c.boolean("guest"),
        c.ratio("fee", "amount", name="share"),
        c.numeric("amount", name="raw_amount"),
        c.boolean("new"),
    ],
).fit(table())

PLAIN = ri.FeatureSpec(
    request={"amount": float, "channel": str, "merchant": str, "guest": bool},
    extra="ignore",
    columns=[
        c.numeric("amount", transform="log1p"),
        c.categorical("channel", encoding="onehot", oov="zeros"),
        c.hashed("merchant", buckets=16),
        c.boolean("guest"),
    ],
).fit(table())
WEIGHTS = (2.0, -1.0, 3.0, 0.5, 0.25, 1.5)


def fitted(kind="gradient"):
    """A forest that was trained on the columns of SPEC."""
    from sklearn.ensemble import (
        HistGradientBoostingClassifier,
        RandomForestClassifier,
        RandomForestRegressor,
    )

    rows = table()
    x = np.asarray(SPEC.transform(rows))
    rng = np.random.default_rng(1)
    risk = 1.2 * (x[:, 0] - 3) + np.nan_to_num(x[:, 1]) + 2.0 * (np.asarray(rows["channel"]) == "pos")
    risk += np.asarray(rows["guest"]) + rng.normal(size=len(x))
    y = (risk > 2).astype(int)
    if kind == "gradient":
        return HistGradientBoostingClassifier(max_iter=30, max_leaf_nodes=12, random_state=0).fit(x, y)
    if kind == "several":
        model = RandomForestClassifier(n_estimators=12, max_depth=5, random_state=0)
        return model.fit(x, y + 2 * (risk < 0))
    return RandomForestRegressor(n_estimators=9, max_depth=5, random_state=0).fit(x, risk)


def policy(**options):
    """Bands, two texts, one field that is never named, and 3 reasons, unless told otherwise."""
    texts = {"amount": "Unusual amount", "channel": "Payment channel", "guest": None}
    return ri.Policy(BANDS, **({"reasons": texts, "n_reasons": 3} | options))


@pytest.fixture(scope="module")
def files():
    """A release that is a forest, and one that is a scalar product."""
    return {
        "forest": releases.packed("forest", fitted(), SPEC, policy=policy(), golden=table()),
        "linear": releases.packed(
            "linear", releases.weighted(*WEIGHTS), PLAIN, policy=policy(), golden=table()
        ),
    }


def strongest(explanation, given_policy, most=3):
    """What a decision has to name, by the amounts of an explanation."""
    texts = given_policy.body.reasons
    ranked = sorted(
        (-amount, place, name)
        for place, (name, amount) in enumerate(explanation.contributions.items())
        if amount > 0 and texts.get(name, "") is not None
    )
    return tuple(ri.Reason(name, texts.get(name, "")) for _, _, name in ranked[:most])


# ---- policies ----------------------------------------------------------------------------------------------------------


def test_policy_with_reasons_survives_json():
    """Texts, silence and number come back; a policy without reasons has the bytes that it always had."""
    made = policy()
    again = ri.Policy.from_json(made.to_json())
    assert again.body == made.body
    assert again.body.reasons == {"amount": "Unusual amount", "channel": "Payment channel", "guest": None}
    assert "3 reasons" in repr(again)
    plain = ri.Policy(BANDS).to_json()
    assert b"reasons" not in plain
    assert ri.Policy.from_json(plain).body.n_reasons == 0


@pytest.mark.parametrize(
    ("options", "n"),
    [
        ({}, 0),
        ({"reasons": {}}, 4),
        ({"reasons": {"amount": "x"}}, 4),
        ({"n_reasons": 2}, 2),
        ({"reasons": {"amount": "x"}, "n_reasons": 0}, 0),
        ({"n_reasons": 64}, 64),
    ],
)
def test_number_of_reasons_follows_what_is_given(options, n):
    """Whoever maps texts wants reasons, four by default; 0 switches them off."""
    assert ri.Policy(BANDS, **options).body.n_reasons == n


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_reasons": -1}, "n_reasons from 0 to 64, got -1"),
        ({"n_reasons": 65}, "n_reasons from 0 to 64, got 65"),
        ({"n_reasons": True}, "n_reasons from 0 to 64, got True"),
        ({"n_reasons": 2.0}, "n_reasons from 0 to 64, got 2.0"),
        ({"reasons": ["amount"]}, "field -> text, got `list`"),
        ({"reasons": {1: "x"}}, "names of fields in reasons=, got 1"),
        ({"reasons": {"": "x"}}, "names of fields in reasons="),
        ({"reasons": {"amount": 3}}, "or None, got 3 - at reasons"),
        ({"reasons": {"amount": "x" * 5000}}, "at most 4096 characters"),
    ],
)
def test_policy_refuses_reasons_that_cannot_be(options, message):
    """Numbers, names and texts are checked where the policy is made."""
    with pytest.raises(SpecError, match=message):
        ri.Policy(BANDS, **options)


# ---- groups ------------------------------------------------------------------------------------------------------------


def test_cells_go_back_to_the_declared_field():
    """One-hot, hashed and time cells, and two columns of one field, are that field; a ratio is its own."""
    groups = groups_of(SPEC.body)
    assert groups.names == GROUPS
    names = [groups.names[g] for g in groups.cells["features"]]
    assert dict(zip(SPEC.names, names, strict=True)) == {
        "amount": "amount",
        "fee": "fee",
        "channel=(other)": "channel",
        "channel=web": "channel",
        "channel=app": "channel",
        "channel=pos": "channel",
        "merchant": "merchant",
        "at_hour_sin": "at",
        "at_hour_cos": "at",
        "guest": "guest",
        "share": "share",
        "raw_amount": "amount",
        "new": "new",
    }


def test_a_column_of_several_values_is_not_taken_for_the_field_that_has_its_name():
    """A ratio called like a field that another column reads says which values it is made of."""
    spec = ri.FeatureSpec(
        request={"amount": float, "fee": float, "limit": float},
        columns=[
            c.numeric("amount", name="raw"),
            c.ratio("fee", "limit", name="amount"),
            c.ratio("fee", "amount", name="share"),
        ],
    )
    groups = groups_of(spec.body)
    assert groups.names == ("amount", "amount (fee, limit)", "share")
    assert groups.cells["features"].tolist() == [0, 1, 2]


def test_policy_refuses_reasons_that_utf8_cannot_hold():
    """Half a surrogate pair, in a field or its text, is told where the policy is made, not when it is written."""
    for reasons in ({"amount": "\ud800"}, {"\ud800": "text"}):
        with pytest.raises(SpecError, match="UTF-8"):
            policy(reasons=reasons)


def test_stored_values_windows_vectors_and_lists_are_fields_too():
    """A stored value goes by its reference, a window by its name, and so do all cells of a vector or a list."""
    spec = ri.FeatureSpec(
        request={"card": str, "amount": float, "tags": list[str], "at": ri.Timestamp},
        event_time="at",
        entities={"holder": "card"},
        streams={"payment": None},
        columns=[
            c.stored("holder.mean", name="mean"),
            c.window("holder", "sum", on="payment", of="amount", scale=100, over="1h", name="spent"),
            c.embedding("holder.vector", size=3),
            c.sequence("tags", length=2, encoding="hashed", buckets=8),
            c.difference("amount", "holder.mean"),
            c.elapsed("at", name="age"),
        ],
    )
    groups = groups_of(spec.body)
    assert [groups.names[g] for g in groups.cells["features"]] == [
        "holder.mean",
        "spent",
        *["holder.vector"] * 3,
        *["tags"] * 2,
        "amount_minus_holder.mean",
        "at",
    ]


@pytest.mark.parametrize("name", ["raw_amount", "channel=web", "no such field", "hour"])
def test_pack_refuses_texts_for_what_no_reason_names(name):
    """The names that there are, are listed."""
    with pytest.raises(
        SchemaMismatchError, match=r"a reason for .*reasons are named after amount, fee, channel"
    ):
        releases.packed("r", releases.first_column(len(SPEC.names)), SPEC, policy=policy(reasons={name: "x"}))


def test_load_refuses_texts_for_what_no_reason_names(files):
    """A policy that somebody exchanged is checked again."""
    broken = replaced(files["forest"], "policy.json", policy(reasons={"other": "x"}).to_json())
    with pytest.raises(SchemaMismatchError, match="a reason for `'other'`, which the features do not read"):
        releases.scorer_of(broken)


def replaced(given_files, name, data):
    """The same release with another file, under a manifest that says so."""
    from retailinfer.release.manifest import decode_manifest, encode_manifest, seal, sha256_hex

    made = dict(given_files)
    made[name] = data
    manifest = decode_manifest(made["manifest.json"])
    entries = tuple(
        msgspec.structs.replace(e, size=len(data), sha256=sha256_hex(data)) if e.file == name else e
        for e in manifest.files
    )
    made["manifest.json"] = encode_manifest(seal(msgspec.structs.replace(manifest, files=entries)))
    return made


def without(given_files, name):
    """The same release without a file."""
    from retailinfer.release.manifest import decode_manifest, encode_manifest, seal

    made = {n: data for n, data in given_files.items() if n != name}
    manifest = decode_manifest(made["manifest.json"])
    entries = tuple(e for e in manifest.files if e.file != name)
    made["manifest.json"] = encode_manifest(seal(msgspec.structs.replace(manifest, files=entries)))
    return made


# ---- decisions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["forest", "linear"])
def test_every_door_gives_the_same_reasons(files, which):
    """Objects, JSON, MessagePack, coroutines, batches of any size and tables name the same fields, in the same order."""
    scorer = releases.scorer_of(files[which])
    want = [scorer.score(row).reasons for row in ROWS]
    assert want == [strongest(scorer.explain(row), policy()) for row in ROWS]
    assert len({len(reasons) for reasons in want}) > 1
    assert {r.field for reasons in want for r in reasons} <= set(GROUPS) - {"guest"}
    for size in (1, 3, 40):
        parts = [scorer.score_batch(ROWS[i : i + size]) for i in range(0, len(ROWS), size)]
        assert [d.reasons for part in parts for d in part] == want
    plain = [json.loads(json.dumps(row, default=str)) for row in ROWS]
    for row, reasons in zip(plain, want, strict=True):
        row["at"] = dt.datetime.fromisoformat(row["at"]).timestamp()
        answer = msgspec.json.decode(scorer.score_json(msgspec.json.encode(row)), type=ri.Decision)
        assert answer.reasons == reasons
        answer = msgspec.msgpack.decode(scorer.score_msgpack(msgspec.msgpack.encode(row)), type=ri.Decision)
        assert answer.reasons == reasons
    assert asyncio.run(scorer.ascore(ROWS[0])).reasons == want[0]
    found = scorer.score_table(table(40, seed=7))
    assert found.column_names == ["score", "action", "reasons"]
    assert found["reasons"].to_pylist() == [
        [{"field": r.field, "text": r.text} for r in reasons] for reasons in want
    ]


def test_without_reasons_in_the_policy_nothing_is_named_or_kept(files):
    """The default: no reasons in any answer, no column in tables, and no memory for them in the engine."""
    for options in ({"reasons": None, "n_reasons": None}, {"n_reasons": 0}):
        made = replaced(files["forest"], "policy.json", policy(**options).to_json())
        scorer = releases.scorer_of(made)
        engine = scorer._live.engine
        assert (engine.most, engine.reasons, engine.occlusion, engine.rows_each) == (0, None, None, 1)
        assert [d.reasons for d in scorer.score_batch(ROWS)] == [()] * len(ROWS)
        assert scorer.score(ROWS[0]).reasons == ()
        assert scorer.score_table(table(5)).column_names == ["score", "action"]
    assert scorer.score_batch(ROWS)[0].score == releases.scorer_of(files["forest"]).score(ROWS[0]).score


def test_where_no_field_may_be_named_nothing_is_worked_out(files):
    """A policy that silences every field is one that asks for nothing."""
    made = replaced(
        files["forest"], "policy.json", policy(reasons=dict.fromkeys(GROUPS), n_reasons=4).to_json()
    )
    scorer = releases.scorer_of(made)
    assert scorer._live.engine.most == 0
    assert scorer.score(ROWS[0]).reasons == ()
    assert scorer.explain(ROWS[0]).contributions.keys() == set(GROUPS)


def test_reasons_are_shared_objects(files):
    """A decision builds a tuple of objects that are there already."""
    scorer = releases.scorer_of(files["forest"])
    found = {}
    for decision in scorer.score_batch(ROWS):
        for reason in decision.reasons:
            assert found.setdefault(reason.field, reason) is reason


def test_number_of_reasons_is_a_bound_and_a_prefix(files):
    """Fewer reasons are the first ones of more; there are never more than push up."""
    few, many = (
        releases.scorer_of(replaced(files["forest"], "policy.json", policy(n_reasons=n).to_json()))
        for n in (1, 64)
    )
    for row in ROWS:
        whole = many.score(row).reasons
        assert few.score(row).reasons == whole[:1]
        positive = [name for name, amount in many.explain(row).contributions.items() if amount > 0]
        assert {r.field for r in whole} == set(positive) - {"guest"}


def test_segments_bands_and_golden_rows_are_as_without(files):
    """Asking for reasons changes no score, no action, and nothing about what is replayed."""
    plain = releases.scorer_of(
        replaced(files["forest"], "policy.json", policy(reasons=None, n_reasons=0).to_json())
    )
    scorer = releases.scorer_of(files["forest"])
    got, want = scorer.score_batch(ROWS), plain.score_batch(ROWS)
    assert [(d.score, d.action) for d in got] == [(d.score, d.action) for d in want]
    assert {d.action for d in want} == {"approve", "review", "decline"} or len(want) > 1


@pytest.mark.parametrize("kind", ["several", "averaged"])
def test_forests_of_several_classes_and_averages_explain_their_own_column(kind):
    """The score's class is what is explained; averages are divided as the forest divides."""
    score = {"score": "probabilities[1]"} if kind == "several" else {}
    made = releases.packed("r", fitted(kind), SPEC_WITHOUT_NAN, policy=policy(), golden=table(), **score)
    scorer = releases.scorer_of(made)
    assert scorer.manifest.models[0].engine == "trees"
    for row in ROWS[:10]:
        for method in ("path", "treeshap"):
            explanation = scorer.explain(row, method=method)
            total = explanation.base + sum(explanation.contributions.values())
            assert total == pytest.approx(explanation.raw, abs=1e-6)
        assert explanation.raw == pytest.approx(explanation.score, abs=1e-6)  # nothing follows an average
        assert scorer.score(row).reasons == strongest(scorer.explain(row), policy())


SPEC_WITHOUT_NAN = ri.FeatureSpec(
    request={
        f.name: float | None if f.name == "fee" else t
        for f, t in zip(SPEC.fields, (float, float, str, str, ri.Timestamp, bool, bool), strict=True)
    },
    event_time="at",
    columns=[
        msgspec.structs.replace(col, null=0.0) if col.name in ("fee", "share") else col
        for col in SPEC.columns
    ],
).fit(table())


def test_first_of_two_columns_is_explained_turned_round(files):
    """Score = what is left of the probability: what pushed down pushes up."""
    made = releases.packed(
        "r", fitted(), SPEC, policy=policy(reasons={}), golden=table(), score="probabilities[0]"
    )
    turned, straight = releases.scorer_of(made), releases.scorer_of(files["forest"])
    for row in ROWS[:10]:
        a, b = turned.explain(row), straight.explain(row)
        assert a.score == pytest.approx(1 - b.score, abs=1e-6)
        assert (a.raw, a.base) == (-b.raw, -b.base)
        assert a.contributions == {name: -amount for name, amount in b.contributions.items()}


# ---- explanations ------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31))
def test_explanations_of_a_forest_add_up(seed):
    """Base and contributions are the raw score, by either method, to the rounding of a float32 sum."""
    scorer = test_explanations_of_a_forest_add_up.scorer
    row = table(1, seed=seed).to_pylist()[0]
    answers = [scorer.explain(row, method=method) for method in ("auto", "path", "treeshap")]
    assert answers[0] == answers[1]
    for answer in answers:
        assert answer.score == scorer.score(row).score
        total = answer.base + sum(answer.contributions.values())
        assert total == pytest.approx(answer.raw, rel=1e-6, abs=1e-6)
        assert 1 / (1 + np.exp(-answer.raw)) == pytest.approx(answer.score, abs=1e-6)
        assert tuple(answer.contributions) == GROUPS
    assert answers[2].method == "treeshap"


@pytest.fixture(autouse=True, scope="module")
def _scorer_of_properties(files):
    test_explanations_of_a_forest_add_up.scorer = releases.scorer_of(files["forest"])


def test_occlusion_of_a_scalar_product_is_weight_times_distance(files):
    """With pen and paper: the weight times how far the cell is from the mean, or from the most frequent cells."""
    scorer = releases.scorer_of(files["linear"])
    x = np.asarray(PLAIN.transform(table()), np.float64)
    typical = np.r_[x[:, 0].mean(), [1, 0, 0], most_frequent(x[:, 4]), most_frequent(x[:, 5])]
    assert PLAIN.names[1] == "channel=web"
    for row in ROWS[:10]:
        cells = np.asarray(PLAIN.transform(pa.Table.from_pylist([row])), np.float64)[0]
        each = np.array(WEIGHTS) * (cells - typical)
        want = {"amount": each[0], "channel": each[1:4].sum(), "merchant": each[4], "guest": each[5]}
        answer = scorer.explain(row)
        assert answer.method == "occlusion"
        assert answer.raw == answer.score == scorer.score(row).score
        assert answer.base == pytest.approx(typical @ np.array(WEIGHTS), rel=1e-5)
        assert answer.contributions == pytest.approx(want, abs=1e-5)


def most_frequent(values):
    """The value that comes most often, the first of equal ones."""
    found, counts = np.unique(values, return_counts=True)
    most = found[counts == counts.max()]
    return next(v for v in values if v in most)


def test_methods_that_a_release_cannot_do_are_named(files):
    """Trees alone have ways; an unknown method lists those that there are."""
    scorer = releases.scorer_of(files["linear"])
    for method in ("path", "treeshap"):
        with pytest.raises(
            ConfigError, match=r'needs a release that is one forest.*method="occlusion" takes any model'
        ):
            scorer.explain(ROWS[0], method=method)
    with pytest.raises(ConfigError, match="Expected method out of"):
        scorer.explain(ROWS[0], method="shap")
    bare = releases.scorer_of(
        replaced(without(files["linear"], "background.msgpack"), "policy.json", ri.Policy(BANDS).to_json())
    )
    with pytest.raises(ConfigError, match="keeps no background"):
        bare.explain(ROWS[0])
    forest = releases.scorer_of(without(files["forest"], "background.msgpack"))
    assert forest.explain(ROWS[0]).method == "path"
    assert releases.scorer_of(files["forest"]).explain(ROWS[0], method="occlusion").method == "occlusion"


def test_release_without_background_cannot_have_reasons_by_occlusion(files):
    """It says so when it is loaded, not at the first request."""
    with pytest.raises(SchemaMismatchError, match="keeps no background for them; pack it again"):
        releases.scorer_of(without(files["linear"], "background.msgpack"))


def test_closed_scorers_and_releases_of_arrays_explain_nothing():
    """The same words as for every other call; a policy that asks for reasons of arrays is refused when packing."""
    feeds = {"x": np.zeros((2, 3), np.float32)}
    made = releases.packed("r", releases.first_column(3), golden=feeds)
    scorer = releases.scorer_of(made)
    with pytest.raises(ConfigError, match="takes arrays"):
        scorer.explain({})
    scorer.close()
    with pytest.raises(ConfigError, match="closed"):
        scorer.explain({})
    with pytest.raises(ConfigError, match="a release of arrays has no fields to name"):
        releases.packed("r", releases.first_column(3), golden=feeds, policy=policy(reasons={}))


def test_explaining_counts_nothing(files):
    """No answer is counted, and no id is used."""
    scorer = releases.scorer_of(files["forest"])
    scorer.explain(ROWS[0])
    assert scorer.freshness.answers == 0


# ---- occlusion in the engine ---------------------------------------------------------------------------------------------


def test_occlusion_is_one_run_of_groups_and_one_rows(files):
    """The model runs once a decision, over the row itself and one row for each group that may be named."""
    engine = releases.scorer_of(files["linear"])._live.engine
    assert engine.rows_each == 1 + 3  # guest is never named
    assert engine.one_us == pytest.approx(engine.fixed_us + 4 * engine.row_us)


def counting_model():
    """Score = the first column plus a thousandth of the number of rows in the run."""
    return releases.onnx_bytes(
        [
            helper.make_node("Shape", ["x"], ["shape"]),
            helper.make_node("Slice", ["shape", "zero", "one"], ["rows"]),
            helper.make_node("Cast", ["rows"], ["n"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["n", "small"], ["plus"]),
            helper.make_node("Slice", ["x", "zero", "one", "one"], ["first"]),
            helper.make_node("Add", ["first", "plus"], ["y"]),
        ],
        {"x": (TensorProto.FLOAT, [None, 2])},
        zero=np.array([0]),
        one=np.array([1]),
        small=np.array([1e-3], np.float32),
    )


def test_rows_that_influence_each_other_are_taken_away_one_by_one():
    """A model whose answers depend on the batch sees one row at a time, with reasons too."""
    spec = ri.FeatureSpec(request={"a": float, "b": float}, columns=[c.numeric("a"), c.numeric("b")])
    rows = pa.table({"a": [1.0, 2.0, 3.0], "b": [0.0, 1.0, 5.0]})
    made = releases.packed("r", counting_model(), spec, policy=policy(reasons={}), golden=rows)
    scorer = releases.scorer_of(made)
    assert not scorer.manifest.row_independent
    decision = scorer.score({"a": 5.0, "b": 7.0})
    assert decision.score == pytest.approx(5.001)
    assert decision.reasons == (ri.Reason("a"),)
    assert [d.reasons for d in scorer.score_batch([{"a": 5.0, "b": 7.0}, {"a": 0.0, "b": 1.0}])] == [
        (ri.Reason("a"),),
        (),
    ]


def test_groups_that_do_not_fit_a_tile_are_run_in_several():
    """More groups than rows of a tile: the model runs as often as it has to, and no group is lost."""
    n = 600
    names = [f"f{i:03d}" for i in range(n)]
    spec = ri.FeatureSpec(request=dict.fromkeys(names, float), columns=[c.numeric(name) for name in names])
    weights = np.zeros(n)
    weights[[5, 510, 511, 512, 599]] = [5.0, 1.0, 2.0, 3.0, 4.0]
    golden = pa.table({name: [0.0, 0.0] for name in names})
    scorer = releases.scorer_of(
        releases.packed(
            "r", releases.weighted(*weights), spec, policy=policy(reasons={}, n_reasons=9), golden=golden
        )
    )
    assert scorer._live.engine.rows_each == n + 1
    found = scorer.score(dict.fromkeys(names, 1.0)).reasons
    assert [r.field for r in found] == ["f005", "f599", "f512", "f511", "f510"]


def test_equal_contributions_stand_in_the_order_of_the_columns():
    """Ties are broken by the place of the column, in the engine and in tables."""
    spec = ri.FeatureSpec(request=dict.fromkeys("dcba", float), columns=[c.numeric(name) for name in "dcba"])
    golden = pa.table({name: [0.0, 0.0] for name in "dcba"})
    scorer = releases.scorer_of(
        releases.packed(
            "r", releases.weighted(1.0, 2.0, 1.0, 1.0), spec, policy=policy(reasons={}), golden=golden
        )
    )
    rows = [dict.fromkeys("dcba", 1.0)]
    assert [r.field for r in scorer.score(rows[0]).reasons] == ["c", "d", "b"]
    found = scorer.score_table(pa.Table.from_pylist(rows))["reasons"].to_pylist()
    assert [r["field"] for r in found[0]] == ["c", "d", "b"]


def reciprocal():
    """Score = 1 / (first column) + second: infinite where the first is 0."""
    return releases.onnx_bytes(
        [
            helper.make_node("Slice", ["x", "zero", "one", "one"], ["a"]),
            helper.make_node("Slice", ["x", "one", "two", "one"], ["b"]),
            helper.make_node("Div", ["unit", "a"], ["c"]),
            helper.make_node("Add", ["b", "c"], ["y"]),
        ],
        {"x": (TensorProto.FLOAT, [None, 2])},
        zero=np.array([0]),
        one=np.array([1]),
        two=np.array([2]),
        unit=np.array([1.0], np.float32),
    )


def test_group_without_which_there_is_no_score_costs_no_answer():
    """The background would make the score infinite: that group has no contribution, the others keep theirs."""
    spec = ri.FeatureSpec(request={"a": float, "b": float}, columns=[c.numeric("a"), c.numeric("b")])
    golden = pa.table({"a": [1.0, -1.0], "b": [0.0, 0.0]})  # their mean is 0
    made = releases.packed("r", reciprocal(), spec, policy=policy(reasons={}), golden=golden)
    scorer = releases.scorer_of(made)
    row = {"a": 2.0, "b": 3.0}
    assert scorer.score(row).reasons == (ri.Reason("b"),)
    assert scorer.score(row).score == 3.5
    assert np.isnan(scorer.explain(row).contributions["a"])
    assert scorer.score_table(pa.Table.from_pylist([row]))["reasons"].to_pylist() == [
        [{"field": "b", "text": ""}]
    ]
    bad = {"a": 0.0, "b": 1.0}
    with pytest.raises(ScoreError, match="finite"):
        scorer.score(bad)
    with pytest.raises(ScoreError, match="finite"):
        scorer.explain(bad)
    first, second = scorer.score_batch([bad, row], errors="row")
    assert isinstance(first, ScoreError)
    assert second.reasons == (ri.Reason("b"),)


class Ticking(ManualClock):
    """A clock on which every look costs the same."""

    def __init__(self, *, step_ns):
        super().__init__()
        self.step_ns = step_ns

    def monotonic_ns(self):
        self.advance_ns(self.step_ns)
        return super().monotonic_ns()


def test_deadline_that_is_too_near_leaves_out_the_reasons(files):
    """An answer without reasons is better than one that comes too late; with time there are reasons."""
    clock = Ticking(step_ns=1_000_000)
    scorer = releases.scorer_of(files["linear"], store=ri.Store(tables={}, clock=clock))
    assert scorer._live.engine.one_us >= 1_000.0  # what the models seemed to take while the clock ticked
    clock.step_ns = 0
    row = next(row for row in ROWS if scorer.score(row).reasons)
    want = scorer.score(row)
    for _ in range(40):  # admission learns that calls take no time
        assert scorer.score(row, deadline_ms=10_000).reasons == want.reasons
    rushed = scorer.score(row, deadline_ms=0.5)
    assert (rushed.score, rushed.action, rushed.reasons) == (want.score, want.action, ())
    for _ in range(40):
        scorer.score_batch([row], deadline_ms=10_000)
    assert [d.reasons for d in scorer.score_batch([row], deadline_ms=0.5)] == [()]


def test_chain_of_models_is_explained_through_all_of_them():
    """Several models: a group is taken away in front of the first, and the last one's score is looked at."""
    spec = ri.FeatureSpec(
        request={"a": float, "b": float},
        tensors={"x": ri.Tensor((c.numeric("a"), c.numeric("b")))},
    )
    tower = helper.make_model(
        helper.make_graph(
            [helper.make_node("Neg", ["x"], ["hidden"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2])],
            [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, [None, 2])],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    ).SerializeToString()
    head = helper.make_model(
        helper.make_graph(
            [helper.make_node("ReduceSum", ["hidden", "axis"], ["y"], keepdims=1)],
            "g",
            [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, [None, 2])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])],
            [helper.make_tensor("axis", TensorProto.INT64, [1], [1])],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    ).SerializeToString()
    golden = pa.table({"a": [1.0, 3.0], "b": [0.0, 0.0]})
    made = releases.packed(
        "r", {"tower": tower, "head": head}, spec, policy=policy(reasons={}), golden=golden, score="head.y"
    )
    scorer = releases.scorer_of(made)
    answer = scorer.explain({"a": -5.0, "b": 1.0})
    assert answer.contributions == {"a": 7.0, "b": -1.0}
    assert (answer.score, answer.base) == (4.0, -2.0)
    assert scorer.score({"a": -5.0, "b": 1.0}).reasons == (ri.Reason("a"),)


def test_python_api_gives_the_same_reasons(files):
    """ONNX Runtime's Python API, where the C API is not there, names the same fields."""
    native, python = (releases.scorer_of(files["linear"], backend=b) for b in ("c", "python"))
    assert [d.reasons for d in python.score_batch(ROWS)] == [d.reasons for d in native.score_batch(ROWS)]


# ---- what a release keeps --------------------------------------------------------------------------------------------------


def test_background_is_mean_or_most_frequent_and_survives_its_file(files):
    """Numbers by their mean over rows that have one, categories and truths by what is most frequent."""
    background = decode_background(files["forest"]["background.msgpack"])
    assert encode_background(background) == files["forest"]["background.msgpack"]
    assert background.n_rows == 600
    row = dict(zip(SPEC.names, background.tensor("features").tolist(), strict=True))
    x = dict(zip(SPEC.names, np.asarray(SPEC.transform(table()), np.float64).T, strict=True))
    for name in ("amount", "fee", "share", "raw_amount", "at_hour_sin"):
        assert row[name] == pytest.approx(np.nanmean(x[name]), rel=1e-5)
    assert (row["channel=web"], row["channel=app"], row["channel=pos"]) == (1, 0, 0)
    assert (row["guest"], row["new"]) == (0, 0)
    assert row["merchant"] == most_frequent(x["merchant"])


def test_background_knows_masks_texts_and_columns_without_values():
    """Lists and their masks go together, texts stay texts, and a number that no row has stays missing."""
    from retailinfer.authoring.trial import Filled
    from retailinfer.features.arrow import read_table

    spec = ri.FeatureSpec(
        request={"tags": list[str] | None, "name": str, "gone": float | None, "n": int},
        tensors={
            "list": ri.Tensor(
                (c.sequence("tags", length=3, encoding="hashed", buckets=8),), dtype="int64", mask="list_mask"
            ),
            "text": ri.Tensor((c.raw("name"),), dtype="string"),
            "numbers": ri.Tensor((c.numeric("gone"), c.numeric("n"))),
        },
    )
    rows = pa.table(
        {
            "tags": pa.array([["a"], ["a", "b"], ["a", "b"]]),
            "name": ["x", "\u00e9", "\u00e9"],
            "gone": pa.array([None, None, None], pa.float64()),
            "n": [1, 2, 6],
        }
    )
    filled = Filled(spec.program, spec.body, read_table(rows, spec.body))
    made = decode_background(encode_background(make_background(spec, filled.arrays)))
    assert made.mask("list").tolist() == [True, True, False]
    assert made.tensor("list").tolist() == filled.arrays["tensor", "list"][1].tolist()
    assert made.tensor("text").tolist() == ["\u00e9"]
    gone, n = made.tensor("numbers").tolist()
    assert np.isnan(gone)
    assert n == 3.0
    assert (made.tensor("other"), made.mask("text")) == (None, None)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode({"n_rows": 1}),
        msgspec.msgpack.encode({"n_rows": 0, "tensors": {}}),
        msgspec.msgpack.encode({"n_rows": 1, "tensors": {}, "more": 1}),
        msgspec.msgpack.encode(
            {"n_rows": 1, "tensors": {"x": {"dtype": "float32", "shape": [3], "values": b"123"}}}
        ),
        msgspec.msgpack.encode(
            {"n_rows": 1, "tensors": {"x": {"dtype": "object", "shape": [1], "values": b"1"}}}
        ),
        msgspec.msgpack.encode(
            {"n_rows": 1, "tensors": {"x": {"dtype": "bool", "shape": [1, 1], "values": b"1"}}}
        ),
        msgspec.msgpack.encode(
            {"n_rows": 1, "tensors": {}, "masks": {"x": {"dtype": "string", "shape": [2], "texts": ["a"]}}}
        ),
    ],
)
def test_damaged_backgrounds_are_refused(files, data):
    """Whatever it does not write itself is a ManifestError, also inside of a release."""
    with pytest.raises(ManifestError, match=r"background\.msgpack"):
        decode_background(data)
    with pytest.raises(ManifestError, match=r"background\.msgpack"):
        releases.scorer_of(replaced(files["linear"], "background.msgpack", data))


def test_background_of_other_features_is_refused(files):
    """Cells and dtypes are compared with the features when a release is loaded."""
    other = files["forest"]["background.msgpack"]
    with pytest.raises(SchemaMismatchError, match="no row of 6 cells of float32 for `features`"):
        releases.scorer_of(replaced(files["linear"], "background.msgpack", other))


def test_redacted_fields_do_not_reach_the_background():
    """What is replaced in golden rows is replaced before the background is made of them."""
    made = releases.packed(
        "r", releases.weighted(*WEIGHTS), PLAIN, policy=policy(), golden=table(), redact=["amount"]
    )
    row = decode_background(made["background.msgpack"]).tensor("features")
    assert row[0] == 0.0


def test_forests_from_onnx_get_their_covers_from_rows():
    """The graph keeps no weights: the golden table's rows are counted, so that expectations are means of real rows."""
    graph = stump_graph()
    spec = ri.FeatureSpec(request={"a": float, "b": float}, columns=[c.numeric("a"), c.numeric("b")])
    golden = pa.table({"a": [-1.0, 1.0, 1.0, 1.0], "b": [0.0, 0.0, 0.0, 0.0]})
    made = releases.packed("r", graph, spec, policy=policy(reasons={}), golden=golden, engine="trees")
    forest = decode_forest(made["model.trees"])
    assert forest.arrays["cover"].tolist() == [4.0, 1.0, 3.0]
    scorer = releases.scorer_of(made)
    answer = scorer.explain({"a": 1.0, "b": 0.0})
    assert (answer.base, answer.contributions) == (0.75, {"a": 0.25, "b": 0.0})
    assert covered(forest, np.zeros((0, 1), np.int32)).arrays["cover"].tolist() == [0.0, 0.0, 0.0]


def stump_graph():
    """A regressor of one node: 0 where the first feature is at most 0, else 1."""
    node = helper.make_node(
        "TreeEnsembleRegressor",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        nodes_treeids=[0, 0, 0],
        nodes_nodeids=[0, 1, 2],
        nodes_featureids=[0, 0, 0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
        nodes_values=[0.0, 0.0, 0.0],
        nodes_truenodeids=[1, 0, 0],
        nodes_falsenodeids=[2, 0, 0],
        target_treeids=[0, 0],
        target_nodeids=[1, 2],
        target_ids=[0, 0],
        target_weights=[0.0, 1.0],
        n_targets=1,
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
