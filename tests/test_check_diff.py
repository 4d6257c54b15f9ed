"""`diff`: what changed between two releases, and what it does to the golden decisions."""

from __future__ import annotations

import json

import numpy as np
import pytest
from small_releases import (
    BANDS,
    logistic,
    pack_arrays,
    pack_payments,
    pack_ranking,
    pack_windows,
    payment_spec,
    payments,
)

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.authoring.diff import diff
from retailinfer.cli.main import main
from retailinfer.release.bundle import read_bundle
from retailinfer.release.golden import decode_golden

pytestmark = pytest.mark.requires("onnx", "pyarrow")


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """The champion."""
    return pack_payments(tmp_path_factory.mktemp("before"), info={"version": "1"})


def changes(found):
    """(part, what) -> change."""
    return {(one.part, one.what): one for one in found.changes}


def test_a_release_is_the_same_as_itself(before):
    """Nothing is told, every golden score has the same bits, and the rows were really compared."""
    found = diff(before, before)
    assert found.same
    assert found.changes == []
    assert [(one.of, one.same_bits, one.compared > 30, one.flips) for one in found.golden] == [
        ("before", True, True, {}),
        ("after", True, True, {}),
    ]


def test_a_threshold_alone_flips_the_decisions_that_lie_between(before, tmp_path):
    """Scores are the same bits; the flips are those of the rows whose scores lie between the two thresholds."""
    bands = [("approve", 0.0), ("review", 0.4), ("decline", 0.9)]
    after = pack_payments(tmp_path, policy=ri.Policy(bands), info={"version": "2"})
    found = diff(before, after)
    assert {one.part for one in found.changes} == {"facts", "policy"}
    assert changes(found)["facts", "thresholds.review"].after == 0.4
    first = found.golden[0]
    assert first.same_bits
    recorded = read_bundle(before).read("golden", decode_golden).score_values()
    between = int(((recorded >= np.float32(0.4)) & (recorded < np.float32(0.5))).sum())
    assert between > 0
    assert first.flips == {"approve -> review": between}
    assert [row[3:] for row in first.rows_flipped] == [("approve", "review")] * min(between, 20)
    assert not found.same


def test_another_model_is_told_with_how_far_its_scores_are(before, tmp_path):
    """The differences are those of the two models, row by row."""
    spec = payment_spec()
    after = pack_payments(tmp_path, model=logistic(len(spec.names), seed=2), info={"version": "2"})
    found = diff(before, after)
    assert ("models", "model: content") in changes(found)
    assert not found.golden[0].same_bits
    assert found.golden[0].max_difference >= found.golden[0].mean_difference > 0.001


def test_a_new_column_field_table_and_contract_are_named(before, tmp_path):
    """Each part says what came, what went, and what is other; rows that lack the new value say so."""
    import pyarrow as pa

    rows = payments().append_column("card.n", pa.array(np.arange(400.0)))
    rows = rows.append_column("device", pa.array(["a", "b"] * 200))
    spec = ri.FeatureSpec(
        request={
            "card_id": str,
            "channel": str,
            "amount": float,
            "at": ri.Timestamp,
            "device": str | None,
        },
        event_time="at",
        entities={"card": "card_id"},
        columns=[
            c.numeric("amount"),
            c.categorical("channel", encoding="onehot"),
            c.stored("card.n", null=0.0, unknown=0.0),
            c.categorical("device", encoding="onehot"),
        ],
    ).fit(rows)
    after = pack_payments(
        tmp_path,
        features=spec,
        model=logistic(len(spec.names)),
        golden=rows,
        contract=ri.Contract(p99_ms=5),
        fallback=ri.Fallback(action="review"),
    )
    found = changes(diff(before, after))
    assert found["request", "device"].before is None
    assert found["request", "gift"].after is None
    assert found["tables", "card.n"].before is None
    assert found["tables", "card.mean_amount"].after is None
    assert found["features", "gift"].after is None
    assert found["features", "amount"].before != found["features", "amount"].after
    assert found["contract", "p99_ms"].after == 5
    assert found["fallback", "action"].before is None
    golden = diff(before, after).golden[0]
    assert set(golden.absent_after) == {"device", "card.n"}
    assert golden.compared > 0


def test_vocabularies_tell_what_came_and_what_went(before, tmp_path, capsys):
    """Retrained on other rows: the new category is named, not the whole list."""
    import pyarrow as pa

    rows = payments()
    channel = pa.array(["kiosk" if i % 9 == 0 else v for i, v in enumerate(rows["channel"].to_pylist())])
    rows = rows.set_column(1, "channel", channel)
    after = pack_payments(
        tmp_path, features=(spec := _refit(rows)), model=logistic(len(spec.names)), golden=rows
    )
    assert main(["diff", str(before), str(after), "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "+kiosk" in out
    assert "-web" not in out


def _refit(rows):
    return ri.FeatureSpec(
        request={"card_id": str, "channel": str, "amount": float, "at": ri.Timestamp, "gift": bool | None},
        event_time="at",
        tz="Europe/London",
        entities={"card": "card_id"},
        columns=payment_spec().columns,
    ).fit(rows)


def test_rankings_windows_and_arrays_are_compared_too(tmp_path):
    """Every kind of release goes through, and two kinds that cannot be compared say why."""
    ranking, windows, arrays = pack_ranking(tmp_path), pack_windows(tmp_path), pack_arrays(tmp_path)
    for one in (ranking, windows, arrays):
        found = diff(one, one)
        assert found.same
        assert found.golden[0].compared > 0, one.name
    other = diff(windows, arrays)
    assert all("it takes arrays" in (one.why_not or "") for one in other.golden)
    assert any(one.part == "windows" and one.after is None for one in other.changes)


def test_rows_that_one_release_refuses_decide_nothing(before, tmp_path):
    """Where the new release demands a value that the old golden rows do not have, they are counted as refused."""
    spec = ri.FeatureSpec(
        request={"card_id": str, "channel": str, "amount": float, "at": ri.Timestamp, "gift": bool | None},
        event_time="at",
        entities={"card": "card_id"},
        columns=[c.numeric("amount"), c.boolean("gift", null="refuse")],
    ).fit(payments())
    after = pack_payments(tmp_path, features=spec, model=logistic(2), golden=None)
    first = diff(before, after).golden[0]
    assert 0 < first.refused_after < first.rows
    assert first.compared == first.rows - first.refused_after
    assert first.decided == first.compared


def test_the_command_tells_people_and_machines_the_same(before, tmp_path, capsys):
    """Exit code 0 whatever is different; `--json` is one value."""
    after = pack_payments(tmp_path, policy=ri.Policy([*BANDS[:2], ("decline", 0.8)]), info={"version": "2"})
    assert main(["diff", str(before), str(after), "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "payments:1" in out
    assert "payments:2" in out
    assert "thresholds.decline" in out
    assert "0.9 -> 0.8" in out
    assert main(["diff", str(before), str(after), "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["before"], found["after"], found["same"]) == ("payments:1", "payments:2", False)
    assert main(["diff", str(before), str(tmp_path / "nothing")]) == 1
    assert "cannot open the release" in capsys.readouterr().err
