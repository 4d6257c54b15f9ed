"""`retailinfer publish`, `approve`, `promote`, `rollback`, `hold`, `history`, `releases`, `collect`: what they say and do."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest
from registries import digest, release, report_of
from test_registry_overrides import release as release_with_policy

import retailinfer as ri
from retailinfer.cli.main import main


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command beside a registry; returns exit code, stdout, stderr. Releases lie beside it by version."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RETAILINFER_TRUST", raising=False)
    for version in ("1.0", "1.1"):
        (tmp_path / version).mkdir()
        for name, data in release(version).items():
            (tmp_path / version / name).write_bytes(data)

    def go(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        out = capsys.readouterr()
        return code, out.out, out.err

    return go


def test_a_release_goes_in_and_comes_to_answer(run, tmp_path):
    """The whole way, each step told in a line or two."""
    assert run("publish", "registry", "1.0", "--by", "anna") == (
        0,
        f"fraud:1.0 published, digest {digest(release('1.0'))[:12]}\n",
        "",
    )
    assert "was there already" in run("publish", "registry", "1.0")[1]
    run("publish", "registry", "1.1")
    (tmp_path / "report.json").write_bytes(report_of(release("1.0")))
    code, out, _ = run(
        "approve", "registry", "fraud:1.0", "--why", "fine", "--by", "ben", "--report", "report.json"
    )
    assert (code, out.splitlines()[1]) == (0, "approved by 1 person")
    code, out, _ = run(
        "promote", "registry", "fraud:1.0", "--why", "first", "--by", "anna", "--approvals", "1"
    )
    assert code == 0
    assert "pointer 1 of fraud in production" in out
    code, out, _ = run(
        *(
            "promote",
            "registry",
            "fraud:1.1",
            "--why",
            "try",
            "--by",
            "ben",
            "--role",
            "canary",
            "--share",
            "0.05",
        )
    )
    assert "canary    fraud:1.1 (5.00%)" in out
    run("promote", "registry", digest(release("1.1"))[:10], "--why", "better", "--by", "ben", "--seq", "2")
    code, out, _ = run("rollback", "registry", "fraud", "--why", "worse", "--by", "carol", "--hold")
    assert (code, out.splitlines()[1:]) == (0, ["  champion  fraud:1.0", "  held      worse"])
    code, _, err = run("promote", "registry", "fraud:1.1", "--why", "again")
    assert code == 1
    assert "is held" in err
    assert run("resume", "registry", "fraud", "--why", "over")[0] == 0
    assert run("hold", "registry", "fraud", "--why", "freeze")[0] == 0
    code, out, _ = run("history", "registry", "fraud")
    rows = [line.split() for line in out.splitlines()]
    assert [row[0] for row in rows] == ["seq", "1", "2", "3", "4", "5", "6"]
    assert "champion fraud:1.0, canary fraud:1.1 (5.00%)" in out
    code, out, _ = run("releases", "registry")
    assert [line.split()[0] for line in out.splitlines()] == ["fraud:1.0", "fraud:1.1"]
    assert "champion" in out
    assert "1 approved" in out


def test_history_answers_who_decided(run):
    """`--at` gives one pointer, its releases by name, who and why."""
    run("publish", "registry", "1.0")
    run("promote", "registry", "fraud:1.0", "--why", "it is good", "--by", "anna")
    code, out, _ = run("history", "registry", "fraud", "--at", "2100-01-01T00:00Z")
    assert code == 0
    assert out.splitlines()[1:] == ["  champion  fraud:1.0", "decided by anna: it is good"]
    code, _, err = run("history", "registry", "fraud", "--at", "1999-01-01T00:00Z")
    assert (code, "nothing of `fraud` was promoted yet" in err) == (1, True)
    assert "time zone" in run("history", "registry", "fraud", "--at", "1999-01-01T00:00")[2]
    assert (
        "nothing of `fraud` was promoted in staging"
        in run("history", "registry", "fraud", "--environment", "staging")[1]
    )


def publish_with_envelope(run, tmp_path):
    """fraud:2.0 becomes champion; an operator may move `decline`."""
    (tmp_path / "2.0").mkdir()
    for name, data in release_with_policy("2.0").items():
        (tmp_path / "2.0" / name).write_bytes(data)
    run("publish", "registry", "2.0")
    run("promote", "registry", "fraud:2.0", "--why", "first", "--by", "anna")


def test_a_threshold_is_moved_and_put_back(run, tmp_path):
    """Who, what, until when; and the history of it."""
    publish_with_envelope(run, tmp_path)
    until = (dt.datetime.now(dt.UTC) + dt.timedelta(hours=6)).strftime("%Y-%m-%dT%H:%M:%SZ")
    move = (
        "override",
        "registry",
        "fraud",
        "decline=0.95",
        "--until",
        until,
        "--why",
        "card testing",
        "--by",
        "ben",
    )
    code, out, _ = run(*move)
    assert code == 0
    assert out.splitlines()[0].startswith("override 1 of fraud in production, from ")
    assert out.splitlines()[0].endswith(f"until {until}")
    assert out.splitlines()[1] == "  decline  from 0.95"
    code, _, err = run("override", "registry", "fraud", "decline=0.5", "--until", until, "--why", "x")
    assert (code, "from 0.85 to 0.97, its envelope" in err) == (1, True)
    for wrong in ("decline", "=0.9", "decline=high"):
        code, _, err = run("override", "registry", "fraud", wrong, "--until", until, "--why", "x")
        assert (code, "Expected ACTION=SCORE" in err) == (1, True)
    twice = ("decline=0.9", "decline=0.95")
    code, _, err = run("override", "registry", "fraud", *twice, "--until", until, "--why", "x")
    assert (code, "is given twice" in err) == (1, True)
    assert run("lift", "registry", "fraud", "--why", "over", "--by", "ben")[:2] == (
        0,
        "lifted in production: 1\n",
    )
    assert run("lift", "registry", "fraud", "--why", "over")[:2] == (0, "nothing to lift\n")
    code, out, _ = run("overrides", "registry", "fraud")
    rows = [line.split() for line in out.splitlines()]
    assert [row[0] for row in rows] == ["seq", "1", "2"]
    assert "decline from 0.95 until" in out
    assert "lifts 1" in out
    code, out, _ = run(*move, "--json")
    assert json.loads(out)["override"]["thresholds"] == {"decline": 0.95}
    assert json.loads(run("overrides", "registry", "fraud", "--json")[1])["overrides"][1]["kind"] == "lift"
    assert (
        json.loads(run("lift", "registry", "fraud", "--seq", "3", "--why", "over", "--json")[1])["lift"][
            "seq"
        ]
        == 4
    )
    assert "no threshold of `shop` was moved" in run("overrides", "registry", "shop")[1]


def test_collect_says_what_goes(run):
    """A dry run takes nothing away."""
    run("publish", "registry", "1.0")
    code, out, _ = run("collect", "registry", "--dry-run", "--keep", "0")
    assert (code, out) == (
        0,
        (
            "0 releases would be collected (0 bytes), 1 stay; "
            "0 unfinished uploads and 0 other files of interrupted writers would be collected\n"
        ),
    )
    assert run("collect", "registry", "--unused-days", "2", "--history-days", "10")[0] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("publish", "registry", "1.1"),
        ("approve", "registry", "fraud:1.0", "--why", "good", "--valid-days", "3", "--report", "report.json"),
        ("promote", "registry", "fraud:1.0", "--why", "again"),
        ("hold", "registry", "fraud", "--why", "stop"),
        ("resume", "registry", "fraud", "--why", "go"),
        ("history", "registry", "fraud"),
        ("history", "registry", "fraud", "--at", "2100-01-01T00:00Z"),
        ("releases", "registry", "fraud"),
        ("collect", "registry"),
    ],
    ids=lambda arguments: " ".join(arguments[:1]),
)
def test_json_is_one_value(run, arguments, tmp_path):
    """For machines: one JSON value, and nothing else on stdout."""
    (tmp_path / "report.json").write_bytes(report_of(release("1.0")))
    run("publish", "registry", "1.0", "--by", "anna")
    run("promote", "registry", "fraud:1.0", "--why", "first", "--by", "anna")
    code, out, _ = run(*arguments, "--json")
    value = json.loads(out)
    assert (code, value["ok"]) == (0, True)
    assert len(value) > 1


@pytest.mark.requires("cryptography")
def test_decisions_are_signed_with_keys(run, tmp_path):
    """A trust file, a key that may move pointers and one that may not."""
    import msgspec
    from signed_releases import key, record, signed, statement_of, trust_file

    from retailinfer.release.statements import moment_text
    from retailinfer.release.trust import Role, encode_trust

    keys = {name: record(name) for name in ("ci", "ops")}
    file = msgspec.structs.replace(
        trust_file(), keys=keys, release=Role(keys=("ci",)), pointer=Role(keys=("ops",)), trust=None
    )
    (tmp_path / "trust.json").write_bytes(encode_trust(file))
    for name in ("ci", "ops"):
        (tmp_path / f"{name}.pem").write_bytes(key(name).to_pem("secret"))
    (tmp_path / "password").write_text("secret\n")
    statement = statement_of(release("1.0"), issued=moment_text(1_700_000_000), expires=None)
    (tmp_path / "1.0" / "manifest.sig").write_bytes(signed(statement, "ci"))
    trusted, with_key = ("--trust", "trust.json"), ("--password-file", "password", "--key")
    assert run("publish", "registry", "1.0", *trusted)[0] == 0
    code, _, err = run("publish", "registry", "1.1", *trusted)
    assert (code, err.count("\n")) == (1, 1)
    promote = ("promote", "registry", "fraud:1.0", "--why", "first", *trusted)
    assert "Expected keys=" in run(*promote)[2]
    assert "Expected 1 signature(s)" in run(*promote, *with_key, "ci.pem")[2]
    assert run(*promote, *with_key, "ops.pem")[0] == 0
    assert "first" in run("history", "registry", "fraud", *trusted)[1]


def test_errors_are_one_line(run):
    """What is not there, and what somebody else was faster at, end with exit code 1 and a hint."""
    code, out, err = run("promote", "registry", "fraud:1.0", "--why", "first")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "is empty; is it the right place? publish a release first" in err
    run("publish", "registry", "1.0")
    run("promote", "registry", "fraud:1.0", "--why", "first")
    code, out, err = run("promote", "registry", "fraud:1.0", "--why", "second", "--seq", "7", "--json")
    assert (code, json.loads(out)["error"]["type"]) == (1, "ConflictError")
    assert "look at the history" in err


def test_a_registry_made_by_hand_is_one_for_programs(run, tmp_path):
    """The command line and Python share it."""
    run("publish", "registry", "1.0")
    registry = ri.Registry(tmp_path / "registry", trust="unsigned", who="anna")
    registry.promote("fraud:1.0", why="from Python")
    assert "from Python" in run("history", "registry", "fraud")[1]
