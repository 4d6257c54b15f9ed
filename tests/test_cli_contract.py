"""What the command line says and checks of contracts: the ladder and the fallback, packed, shown, held against the clock."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_releases import logistic, pack_payments, payment_spec

import retailinfer as ri
from retailinfer.cli.bench import limits_of
from retailinfer.cli.main import main
from retailinfer.errors import ConfigError

pytestmark = pytest.mark.requires("onnx", "pyarrow")

CONTRACT = ri.Contract(
    use_case="fraud",
    deadline_ms=1_000,
    p50_ms=900,
    stages_ms={"run": 800, "remote": 5},
    ladder=(ri.Rung(kind="previous", max_ms=5), ri.Rung(kind="last_score"), ri.Rung(kind="static")),
)
FALLBACK = ri.Fallback(score=0.6, action="review", rules=[("amount > 500 and channel == 'web'", "review")])


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    """Payments with a contract that says everything."""
    return pack_payments(tmp_path_factory.mktemp("contract"), contract=CONTRACT, fallback=FALLBACK)


@pytest.fixture
def run(capsys) -> Any:
    """Run a command in this process; returns (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(a) for a in arguments])
        return (code, *capsys.readouterr())

    return call


def test_inspect_shows_who_answers_when_the_release_cannot(release, run):
    """Each rung with its limits and with what it may decide; the fallback in words."""
    code, out, err = run("inspect", release)
    assert code == 0, err
    shown = [" ".join(line.split()) for line in out.splitlines()]
    for line in (
        "1 previous 5 ms 10 approve, review, decline",
        "3 last_score the deadline 10 review",
        "4 static the deadline 10 review",
        "amount > 500 and channel == 'web' -> review",
        "else -> review",
        "score 0.6",
        "use_case fraud",
        "deadline_ms 1000",
    ):
        assert line in shown, line


def test_inspect_tells_machines_the_same(release, run):
    """`--json` has the rungs with their numbers and effective decisions."""
    _, out, _ = run("inspect", release, "--json")
    found = json.loads(out)
    assert [(r["rung"], r["kind"], r["decisions"]) for r in found["ladder"]] == [
        (1, "previous", ["approve", "review", "decline"]),
        (3, "last_score", ["review"]),
        (4, "static", ["review"]),
    ]
    assert found["fallback"]["score"] == 0.6


def test_bench_holds_deadline_and_stages_against_what_is_measured(release, run):
    """`--fail-if contract`: the whole call's quantiles, the deadline, and stages that can be timed here."""
    code, out, _ = run("bench", release, "--n", 20, "--quiet", "--json", "--fail-if", "contract")
    assert code == 0
    assert [(one["name"], one["limit"], one["kept"]) for one in json.loads(out)["limits"]] == [
        ("p50_ms", 900.0, True),
        ("deadline_ms", 1000.0, True),
        ("run.p99_ms", 800.0, True),
    ]


def test_bench_fails_for_a_deadline_that_is_not_kept(tmp_path, run):
    """A deadline of a microsecond is nobody's."""
    release = pack_payments(tmp_path, contract=ri.Contract(deadline_ms=0.001))
    limits = limits_of(["contract"], ri.Contract(deadline_ms=0.001))
    assert [(one.name, one.quantile, one.limit_us) for one in limits] == [("deadline_ms", "p99.9", 1.0)]
    code, _, err = run("bench", release, "--n", 20, "--quiet", "--fail-if", "contract")
    assert code != 0, err


def test_contract_without_any_time_promises_nothing():
    """Stages that cannot be timed here are no promise of this machine's."""
    with pytest.raises(ConfigError, match="promises no latency"):
        limits_of(["contract"], ri.Contract(stages_ms={"remote": 5}))


@pytest.mark.parametrize("suffix", ["json", "toml"])
def test_pack_reads_a_ladder_and_its_fallback_from_files(tmp_path, run, suffix):
    """Conditions stand in the file as text, as they do in Python."""
    paths = {name: tmp_path / name for name in ("model.onnx", "features.json", "policy.json", "out")}
    paths["model.onnx"].write_bytes(logistic(len(payment_spec().names)))
    paths["features.json"].write_bytes(payment_spec().to_json())
    paths["policy.json"].write_text('{"bands": [["approve", 0.0], ["review", 0.5]]}')
    contract, fallback = tmp_path / f"contract.{suffix}", tmp_path / f"fallback.{suffix}"
    if suffix == "json":
        contract.write_text('{"ladder": [{"kind": "static", "max_ms": 3}]}')
        fallback.write_text('{"score": 0.6, "rules": [["amount > 500", "review"]]}')
    else:
        contract.write_text('ladder = [{kind = "static", max_ms = 3}]\n')
        fallback.write_text('score = 0.6\nrules = [["amount > 500", "review"]]\n')
    arguments = ["pack", "payments", "--model", paths["model.onnx"], "--features", paths["features.json"]]
    arguments += ["--policy", paths["policy.json"], "--contract", contract, "--fallback", fallback]
    code, _, err = run(*arguments, "--out", paths["out"])
    assert code == 0, err
    assert b'"rules":[[[["amount",">",500]],"review"]]' in (paths["out"] / "fallback.json").read_bytes()
    fallback.write_text('{"scroe": 1}' if suffix == "json" else "scroe = 1")
    code, _, err = run(*arguments, "--out", tmp_path / "other")
    assert code != 0
    assert "unknown field 'scroe'" in err
    fallback.write_text('{"rules": [["amount", "review"]]}' if suffix == "json" else 'action = ""')
    code, _, err = run(*arguments, "--out", tmp_path / "other")
    assert code != 0
    assert "not a fallback" in err
