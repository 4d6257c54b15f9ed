"""`ri.check`: each check with a release that is good and one that is not, the whole report, and the command."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from releases import deep_network, weighted
from small_releases import (
    BANDS,
    logistic,
    pack_arrays,
    pack_payments,
    pack_ranking,
    payment_spec,
    payment_store,
    payments,
)

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.authoring.check import CHECKS, _rows, _users
from retailinfer.authoring.check_bounds import bounds_of
from retailinfer.authoring.check_page import html_page, text_lines
from retailinfer.authoring.check_rankings import check_rankings
from retailinfer.authoring.check_requests import check_schema
from retailinfer.authoring.check_rows import check_data, check_decisions, check_scores, check_season
from retailinfer.authoring.check_speed import check_int8, check_latency
from retailinfer.authoring.loading import build
from retailinfer.cli.main import main
from retailinfer.errors import ConfigError
from retailinfer.release.bundle import read_bundle
from retailinfer.release.report import decode_report, passing_report

pytestmark = pytest.mark.requires("onnx", "pyarrow")
HELD = bounds_of(None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where releases of this file go."""
    return tmp_path_factory.mktemp("check")


@pytest.fixture(scope="module")
def champion(folder):
    """The release that answers today."""
    return pack_payments(folder / "champion", info={"version": "1"})


@pytest.fixture
def opened():
    """Build releases, and close them when the test is over."""
    made = []

    def go(path: Any) -> Any:
        made.append(build(read_bundle(path)))
        return made[-1]

    yield go
    for one in made:
        one.door.close()


def rows_of(loaded, table):
    """Rows with the answers of a release."""
    rows, why = _rows(loaded, table)
    assert rows is not None, why
    return rows


def spec_with(fields=None, **changes):
    """The payments' spec with other fields or columns."""
    given = {
        "request": {"card_id": str, "channel": str, "amount": float, "at": ri.Timestamp, "gift": bool | None},
        "event_time": "at",
        "tz": "Europe/London",
        "entities": {"card": "card_id"},
        "columns": [c.numeric("amount", transform="log1p"), c.categorical("channel", encoding="onehot")],
    } | changes
    given["request"] = given["request"] | (fields or {})
    return ri.FeatureSpec(**given)


def packed(folder, name, spec, table=None, **options):
    """A release of that spec, fitted to the payments."""
    table = payments() if table is None else table
    fitted = spec.fit(table)
    folder = folder / name
    return pack_payments(folder, features=fitted, model=logistic(len(fitted.names)), golden=table, **options)


# ---- schema ----------------------------------------------------------------------------------------------------------


def test_schema_of_the_same_request_passes(champion, opened):
    """And says that there is nothing to compare with when there is not."""
    one = opened(champion)
    assert check_schema(one, one, HELD).state == "passed"
    assert check_schema(one, None, HELD).state == "not applicable"


@pytest.mark.parametrize(
    ("name", "fields", "changes", "state", "note"),
    [
        ("optional", {"device": str | None}, {}, "passed", "new and optional: `device` (str)"),
        ("demands", {"device": str}, {}, "failed", "it demands `device` (str), which callers do not send"),
        (
            "type",
            {"amount": int},
            {"columns": [c.numeric("amount")]},
            "failed",
            "`amount` was float, it is int",
        ),
        ("needed", {"gift": bool}, {}, "failed", "it demands `gift`, which callers may leave out"),
        ("time", {}, {"event_time": None}, "failed", "the event time was at, it is none"),
        ("zone", {}, {"tz": "UTC"}, "warned", "the time zone was Europe/London, it is UTC"),
    ],
)
def test_schema_says_what_callers_would_meet(folder, champion, opened, name, fields, changes, state, note):
    """Each kind of change alone, with the field that it is about."""
    import pyarrow as pa

    table = payments().append_column("device", pa.array(["a", "b"] * 200))
    if name == "type":
        table = table.set_column(2, "amount", pa.array(range(400)))
    if name == "needed":
        table = table.set_column(4, "gift", pa.array([True, False] * 200))
    path = packed(folder, f"schema-{name}", spec_with(fields, **changes), table)
    found = check_schema(opened(path), opened(champion), HELD)
    assert (found.state, note in found.notes) == (state, True), found.notes


def test_schema_names_fields_tables_and_actions(folder, champion, opened):
    """A field that is refused now, a table that it reads anew, an action that callers have not seen."""
    import pyarrow as pa

    table = payments().append_column("card.n", pa.array(np.arange(400.0)))
    spec = ri.FeatureSpec(
        request={"card_id": str, "amount": float, "at": ri.Timestamp},
        event_time="at",
        entities={"card": "card_id"},
        columns=[c.numeric("amount"), c.stored("card.n", null=0.0, unknown=0.0)],
    )
    policy = ri.Policy([("approve", 0.0), ("block", 0.9)])
    found = check_schema(opened(packed(folder, "fewer", spec, table, policy=policy)), opened(champion), HELD)
    text = "\n".join(found.notes)
    assert found.state == "failed"
    for part in ("callers send `channel`, which it refuses", "it reads `card.n`", "it may answer `block`"):
        assert part in text


# ---- data ------------------------------------------------------------------------------------------------------------


def test_data_like_that_of_training_passes(champion, opened):
    """PSI near zero for the very rows, and for others of the same kind."""
    one = opened(champion)
    for seed in (3, 4):
        found = check_data(one, rows_of(one, payments(seed=seed)), None, HELD)
        assert found.state in ("passed", "warned")
        assert found.figures["columns"]["amount"]["psi"] < (1e-9 if seed == 3 else 0.2)
        assert found.figures["columns"]["channel"]["psi"] < 0.1


def test_data_that_moved_is_told_by_column(champion, opened):
    """Amounts ten times as large warn, with the column; a column that is missing all of a sudden fails."""
    import pyarrow as pa
    import pyarrow.compute as pc

    one = opened(champion)
    table = payments()
    moved = table.set_column(2, "amount", pc.multiply(table["amount"], 10))
    found = check_data(one, rows_of(one, moved), None, HELD)
    assert found.state == "warned"
    assert found.figures["columns"]["amount"]["psi"] > 0.25
    assert any("PSI of `amount`" in note for note in found.notes)
    assert found.figures["outside"]["amount"] > 0
    gone = table.set_column(4, "gift", pa.nulls(400, pa.bool_()))
    found = check_data(one, rows_of(one, gone), None, HELD)
    assert (found.state, found.figures["columns"]["gift"]["nulls"]) == ("failed", 1.0)


def test_data_that_cannot_be_read_or_scored_fails(folder, champion, opened):
    """A type that is no number, a column that is not there, rows that the release refuses."""
    import pyarrow as pa

    one = opened(champion)
    table = payments()
    for broken in (table.set_column(2, "amount", pa.array(["much"] * 400)), table.drop_columns(["channel"])):
        rows, why = _rows(one, broken)
        assert rows is None
        assert check_data(one, rows, why, HELD).state == "failed"
    spec = spec_with(columns=[c.numeric("amount"), c.boolean("gift", null="refuse")])
    strict = opened(packed(folder, "strict", spec))
    rows = rows_of(strict, table)
    missing = table["gift"].null_count
    found = check_data(strict, rows, None, HELD)
    assert (found.state, found.figures["refused"]) == ("failed", missing)
    assert np.isnan(rows.answers.scores).sum() == missing
    assert any(note.startswith("refused: ") for note in found.notes)


def test_many_refused_rows_are_counted_without_an_end(folder, opened):
    """Each of the first 2,000 by itself; where more are refused, blocks of them, so that a wrong column takes no hour."""
    import pyarrow as pa

    spec = spec_with(columns=[c.numeric("amount"), c.boolean("gift", null="refuse")])
    strict = opened(packed(folder, "refusing", spec))
    table = payments(60_000)
    broken = table.set_column(4, "gift", pa.array([None if i % 2 else True for i in range(60_000)]))
    rows = rows_of(strict, broken)
    assert 30_000 <= rows.answers.refused <= 60_000
    assert np.isnan(rows.answers.scores).sum() == rows.answers.refused
    assert "counted with them" in rows.answers.why[-1]


def test_rows_without_looked_up_values_say_so(champion, opened):
    """A stored value that the rows do not have was null, and is told."""
    one = opened(champion)
    rows = rows_of(one, payments().drop_columns(["card.mean_amount"]))
    assert rows.answers.absent == ("card.mean_amount",)
    assert check_data(one, rows, None, HELD).state == "warned"


# ---- scores ----------------------------------------------------------------------------------------------------------


def test_scores_are_those_that_serving_gives(champion, opened):
    """The comparison rests on the release's own answers, bit for bit."""
    one = opened(champion)
    rows = rows_of(one, payments())
    with ri.Scorer.load(champion, store=payment_store(), trust="unsigned") as scorer:
        served = scorer.score_table(payments())
    assert served["score"].to_numpy().astype(np.float32).tobytes() == rows.answers.scores.tobytes()
    assert served["action"].to_pylist() == rows.answers.actions


def test_constant_and_shifted_scores_fail(folder, champion, opened):
    """A model that says one thing of everybody; one whose scores moved."""
    old = opened(champion)
    table = payments(2_000)
    before = rows_of(old, table)
    assert check_scores(old, before, before, HELD).state == "passed"
    constant = opened(packed(folder, "constant", spec_with(columns=[c.boolean("gift", null=0.0)])))
    assert check_scores(constant, rows_of(constant, table), None, HELD).state == "warned"
    width = len(payment_spec().names)
    blind = opened(pack_payments(folder / "blind", model=weighted(*[0.0] * width, then=("Sigmoid",))))
    found = check_scores(blind, rows_of(blind, table), None, HELD)
    assert (found.state, found.figures["most_frequent"], found.figures["std"]) == ("failed", 1.0, 0.0)
    other = pack_payments(folder / "other", model=logistic(len(payment_spec().names), seed=9))
    new = opened(other)
    found = check_scores(new, rows_of(new, table), before, HELD)
    assert found.figures["psi"] > 0.25
    assert found.state == "failed"


# ---- rankings --------------------------------------------------------------------------------------------------------


def ranking_rows(n_users=30, n_items=12):
    """Rows with the same candidates for each user."""
    import pyarrow as pa

    rng = np.random.default_rng(2)
    spend = np.repeat(rng.lognormal(4, 1, n_users), n_items)
    return pa.table(
        {
            "user_id": np.repeat([f"u{i}" for i in range(n_users)], n_items),
            "sku": [f"s{i}" for i in range(n_items)] * n_users,
            "user.spend": spend,
            "item.price": np.tile(rng.lognormal(2, 1, n_items), n_users),
        }
    )


def test_rankings_of_golden_users_are_compared(folder, opened):
    """The same model keeps every place; one that prefers the opposite turns all of them round."""
    from retailinfer.authoring.check_measures import rbo

    old = opened(pack_ranking(folder / "ranking"))
    table = ranking_rows()
    before = rows_of(old, table)
    same = check_rankings(old, old, before, before, None, k=5, bounds=HELD)
    assert (same.state, same.figures["users"], same.figures["rbo"]) == ("passed", 30, pytest.approx(1.0))
    turned = type(before)(
        table, before.columns, type(before.answers)(-before.answers.scores, before.answers.actions)
    )
    found = check_rankings(old, old, turned, before, None, k=5, bounds=HELD)
    items = list(range(12))
    assert found.figures["rbo"] == pytest.approx(rbo(items, items[::-1]))
    assert found.state == "failed"
    assert found.figures["overlap"] == 0


def test_golden_users_may_be_requests(folder, opened):
    """Ranked by both with the store's tables; one that is refused is told."""
    import pyarrow as pa

    table = ranking_rows()
    users = pa.table({"user_id": ["u0", "u1"], "spend": [10.0, 20.0]})
    items = pa.table({"sku": [f"s{i}" for i in range(12)], "price": table["item.price"][:12]})
    store = ri.Store(
        tables={
            "user": ri.Snapshot.from_arrow(users, key="user_id", name="user"),
            "item": ri.Snapshot.from_arrow(items, key="sku", name="item"),
        }
    )
    one = build(read_bundle(pack_ranking(folder / "requests")), store=store)
    golden = [
        {"context": {"user_id": "u0"}, "candidates": ["s0", "s1", "s2"]},
        {"context": {}, "candidates": ["s0"]},
    ]
    found = check_rankings(one, one, None, None, golden, k=2, bounds=HELD)
    one.door.close()
    assert (found.state, found.figures["users"], found.figures["overlap"]) == ("warned", 1, 1.0)
    assert "golden user 1" in found.notes[0]


def test_golden_users_come_from_a_file_too(tmp_path):
    """One JSON object a line; what is no request is told by its number, before anything is loaded."""
    path = tmp_path / "users.jsonl"
    path.write_text('{"context":{"user_id":"u0"},"candidates":["s0"]}\n\n{"context":{},"candidates":[]}\n')
    store = ri.Store(tables={})
    assert _users(path, store) == [
        {"context": {"user_id": "u0"}, "candidates": ["s0"]},
        {"context": {}, "candidates": []},
    ]
    path.write_text('{"context":{}}\n')
    with pytest.raises(ConfigError, match="as number 0"):
        _users(path, store)
    path.write_text("{")
    with pytest.raises(ConfigError, match="cannot read golden users"):
        _users(str(path), store)
    with pytest.raises(ConfigError, match="cannot read golden users"):
        _users(tmp_path / "nothing", store)


# ---- seasons ---------------------------------------------------------------------------------------------------------


def test_a_forecast_is_held_against_the_weeks_that_were(folder, opened):
    """A model that says the same of every day misses the weekend; labels of its own scores fit."""
    spec = spec_with()
    fitted = spec.fit(payments())
    path = packed(folder, "demand", spec, policy=None, task="regression")
    one = opened(path)
    assert fitted.names
    table = payments(3_000)
    rows = rows_of(one, table)
    own = rows.answers.scores.astype(np.float64)
    assert check_season(one, rows, None, own, HELD).figures["weekday"].keys() >= {"Monday", "Sunday"}
    assert check_season(one, rows, None, own, HELD).state == "passed"
    weekend = np.array([at.weekday() >= 5 for at in table["at"].to_pylist()])
    found = check_season(one, rows, None, np.where(weekend, 10.0, 1.0), HELD)
    assert found.state == "failed"
    assert any("weekday" in note for note in found.notes)


def test_what_has_no_season_says_so(champion, opened):
    """Fraud is no forecast."""
    found = check_season(opened(champion), None, None, None, HELD)
    assert (found.state, found.text) == ("not applicable", "a classification has no season")


# ---- decisions -------------------------------------------------------------------------------------------------------


def decisions(opened, champion, path, table, labels=None, cohorts=()):
    """The check of decisions of a release against the champion."""
    old, new = opened(champion), opened(path)
    return check_decisions(
        new,
        rows_of(new, table),
        rows_of(old, table),
        labels=labels,
        cohorts=cohorts,
        positive=("decline",),
        bounds=HELD,
    )


def test_flips_and_false_positives_by_cohort(folder, champion, opened):
    """A threshold that one segment alone gets lower: that cohort fails, with the rows counted by hand."""
    table = payments(2_000)
    old = rows_of(opened(champion), table)
    policy = ri.Policy(BANDS, segment_by="channel", segments={"web": [("approve", 0.0), ("decline", 0.1)]})
    path = pack_payments(folder / "segment", policy=policy)
    found = decisions(opened, champion, path, table, labels=np.zeros(2_000), cohorts=["channel", "nothing"])
    web = np.array(table["channel"].to_pylist()) == "web"
    new = ["decline" if is_web and s >= np.float32(0.1) else a
           for is_web, s, a in zip(web, old.answers.scores, old.answers.actions, strict=True)]  # fmt: skip
    other = np.array([a != b for a, b in zip(new, old.answers.actions, strict=True)])
    assert found.figures["flipped"]["channel = web"] == pytest.approx(other[web].mean())
    assert found.figures["flipped"]["channel = app"] == 0
    assert found.state == "failed"
    assert any("rise of false positives where channel = web" in note for note in found.notes)
    assert not any("false positives where channel = app" in note for note in found.notes)
    assert any("no column `nothing`" in note for note in found.notes)
    declined = np.array([a == "decline" for a in new])
    assert found.figures["false_positives"]["channel = web"]["this"] == pytest.approx(declined[web].mean())


def test_bad_rows_that_are_no_longer_caught_fail(folder, champion, opened):
    """Nothing is declined any more: every bad row that was caught is lost."""
    low = ri.Policy([("approve", 0.0), ("decline", 0.3)])
    strict = pack_payments(folder / "low", policy=low)
    none = pack_payments(folder / "high", policy=ri.Policy([("approve", 0.0), ("decline", 1.0)]))
    table = payments(1_000)
    labels = np.ones(1_000)
    found = decisions(opened, strict, none, table, labels=labels)
    assert found.figures["caught"]["this"] < found.figures["caught"]["other"]
    assert any("fall of the share of bad rows" in note for note in found.notes)
    assert found.state == "failed"


# ---- speed -----------------------------------------------------------------------------------------------------------


def test_latency_is_held_against_the_contract(champion, opened):
    """What was promised holds; what no machine can hold fails, stage and deadline included."""
    one = opened(champion)
    found = check_latency(one, one, one.pipeline.contract, 0.05, HELD)
    assert found.state in ("passed", "warned")
    assert 0.2 < found.figures["slower"] < 5
    hard = ri.Contract(p50_ms=1e-6, deadline_ms=1e-6, stages_ms={"run": 1e-6}, throughput=1e12)
    found = check_latency(one, None, hard, 0.05, HELD)
    assert found.state == "failed"
    text = "\n".join(found.notes)
    for part in ("p50 is", "the deadline", "p99 of run", "requests a second"):
        assert part in text


def test_int8_is_timed_beside_float32(folder, opened):
    """A small model: the check says what int8 takes here, and warns unless it is less than float32 takes."""
    spec = payment_spec()
    model = deep_network(len(spec.names))
    one = opened(pack_payments(folder / "int8", model=model, quantize="static"))
    found = check_int8(one, {"model": model}, HELD)
    assert found.figures["model"]["against"] == "float32 beside it"
    assert found.state == ("warned" if found.figures["model"]["here"] > 0.95 else "passed")
    alone = check_int8(one, {}, HELD)
    assert alone.figures["model"]["against"] == "float32 where it was packed"
    assert any("float_model=" in note for note in alone.notes)


# ---- the whole -------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags of a page, and what it would load."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loads, self.scripts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        """Note the tag and every address in it."""
        self.tags.append(tag)
        self.loads += [v for k, v in attrs if k in ("src", "href", "action", "data")]
        if tag == "script":
            self.scripts.append(dict(attrs).get("type"))


@pytest.fixture(scope="module")
def report(champion):
    """The champion against itself."""
    return ri.check(champion, against=champion, on=payments(), cohorts=["channel"], seconds=0.05)


def test_a_release_passes_against_itself(champion, report):
    """Every check is there once; nothing failed; memory was measured in a process of its own."""
    assert tuple(one.name for one in report.checks) == CHECKS
    assert report.passed
    assert report["decisions"].figures["flips"] == {}
    assert 0 < report["memory"].figures["mb"] < 500
    assert (report.rows, report.against_digest) == (400, report.digest)
    assert text_lines(report)[-1].startswith("passed")


def test_report_and_page_carry_the_same(report):
    """JSON round trip; the page holds the very report, loads nothing and runs nothing."""
    assert decode_report(report.to_json()) == report
    page = html_page(report)
    assert decode_report(page.encode()) == report
    found = Page(page)
    assert found.loads == []
    assert found.scripts == ["application/json"]
    assert found.tags.count("section") == len(CHECKS)
    assert found.tags.count("svg") >= 3


def test_the_page_escapes_what_others_wrote(report):
    """Names of cohorts come from data: none becomes markup, none ends the block with the report."""
    import msgspec

    bad = "</script><script>alert(1)</script><img src=x>"
    check = msgspec.structs.replace(report.checks[0], notes=[bad], text=bad)
    chart = msgspec.structs.replace(report["scores"].charts[0], title=bad, series={bad: [1.0]}, labels=[bad])
    scores = msgspec.structs.replace(report["scores"], charts=[chart])
    evil = msgspec.structs.replace(report, checks=[check, scores])
    page = html_page(evil)
    found = Page(page)
    assert found.scripts == ["application/json"]
    assert "img" not in found.tags
    assert decode_report(page.encode()) == evil


def test_reports_of_others_and_failed_ones_let_nothing_pass(report):
    """Another digest, a failed check, something that is no report; what was allowed passes and stays."""
    import msgspec

    data = report.to_json()
    assert passing_report(data, report.digest, report.release) == report
    with pytest.raises(ConfigError, match="the report is about payments:1"):
        passing_report(data, "0" * 64, "fraud:2")
    failed = msgspec.structs.replace(
        report, checks=[msgspec.structs.replace(report.checks[0], state="failed"), *report.checks[1:]]
    )
    with pytest.raises(ConfigError, match="does not let payments:1 pass: schema"):
        passing_report(failed.to_json(), report.digest, report.release)
    allowed = msgspec.structs.replace(failed, allowed=("schema",))
    assert passing_report(allowed.to_json(), report.digest, report.release).allowed == ("schema",)
    for broken in (
        b"",
        b"all good",
        b"{}",
        b"<html></html>",
        data[:-1],
        data.replace(b'"format":1', b'"format":2'),
    ):
        with pytest.raises(ConfigError):
            passing_report(broken, report.digest, report.release)
    empty = msgspec.structs.replace(report, checks=[])
    with pytest.raises(ConfigError, match="nothing was looked at"):
        passing_report(empty.to_json(), report.digest, report.release)


def test_arrays_are_checked_as_far_as_that_goes(folder):
    """No rows, no policy: what is left is latency and memory."""
    found = ri.check(pack_arrays(folder / "arrays"), seconds=0.05)
    states = {one.name: one.state for one in found.checks}
    assert (states["latency"], states["memory"], states["decisions"]) == (
        "passed",
        "passed",
        "not applicable",
    )
    assert found.passed


def test_arguments_that_mean_nothing_are_refused(champion):
    """Each with what was expected, before anything takes time."""
    for wrong in (
        {"allow": ["everything"]},
        {"bounds": {"speed": 1}},
        {"golden_users": [{"context": {}, "candidates": []}]},
        {"on": payments(), "labels": "fraud"},
        {"positive": ["block"]},
        {"contract": {"p99": 1}},
        {"float_model": {"tower": "x.onnx"}},
    ):
        with pytest.raises(ConfigError):
            ri.check(champion, seconds=0.01, **wrong)


def test_the_command_writes_the_report_and_ends_with_a_code_for_ci(champion, folder, tmp_path, capsys):
    """A failure is 1, the same one allowed is 0; the files are what `approve` takes."""
    import pyarrow.parquet as pq

    rows = tmp_path / "rows.parquet"
    pq.write_table(payments(), rows)
    other = pack_payments(
        folder / "command", model=logistic(len(payment_spec().names), seed=9), info={"version": "2"}
    )
    given = [
        "check",
        str(other),
        "--against",
        str(champion),
        "--on",
        str(rows),
        "--seconds",
        "0.05",
        "--quiet",
    ]
    assert main([*given, "--bound", "flips=0.001", "--report", str(tmp_path / "report.json")]) == 1
    out = capsys.readouterr().out
    assert "FAILED  decisions" in out
    assert "NOT PASSED" in out
    failed = decode_report((tmp_path / "report.json").read_bytes())
    assert not failed.passed
    allow = [part for name in failed.failed for part in ("--allow", name)]
    page = tmp_path / "report.html"
    assert main([*given, "--bound", "flips=0.001", *allow, "--json", "--html", str(page)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["passed"], found["failed"]) == (True, [])
    assert decode_report(page.read_bytes()).passed
    assert main([*given, "--bound", "flips"]) == 1
    assert "Expected --bound NAME=FAILS" in capsys.readouterr().err
