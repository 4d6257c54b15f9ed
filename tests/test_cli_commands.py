"""The command line on good input: what `pack`, `verify`, `inspect` and `bench` say, for people and for machines.

Wrong input is test_cli_errors.py; arguments and exit codes as such are there too.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from small_releases import (
    BANDS,
    card_table,
    logistic,
    pack_arrays,
    pack_payments,
    pack_ranking,
    pack_windows,
    payment_spec,
    payment_store,
    payments,
)

import retailinfer as ri
from retailinfer.authoring import samples
from retailinfer.authoring.loading import golden_values, load
from retailinfer.authoring.timing import ROUNDS, measure
from retailinfer.cli.main import main

pytestmark = pytest.mark.requires("onnx", "pyarrow")


@pytest.fixture(scope="module")
def releases(tmp_path_factory) -> dict[str, Path]:
    """A release of each kind."""
    folder = tmp_path_factory.mktemp("releases")
    return {
        "payments": pack_payments(folder),
        "ranking": pack_ranking(folder),
        "arrays": pack_arrays(folder),
    }


@pytest.fixture(scope="module")
def windows_release(tmp_path_factory) -> Path:
    """A release that reads windows."""
    return pack_windows(tmp_path_factory.mktemp("windows"))


@pytest.fixture
def run(capsys):
    """Run a command in this process; returns (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def run_json(run):
    """Run a command with `--json`; returns (exit code, the value)."""

    def call(*arguments: object) -> tuple[int, Any]:
        code, out, _ = run(*arguments, "--json")
        return code, json.loads(out)

    return call


KINDS = ["payments", "ranking", "arrays"]


# ---- verify ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_verify_says_what_it_checked(releases, run, kind):
    """Each check has a line; the last one is `good`."""
    code, out, err = run("verify", releases[kind])
    assert code == 0, err
    lines = out.splitlines()
    checked = [line.split()[1] for line in lines if line.startswith("  ok")]
    assert checked[:4] == ["manifest", "files", "features", "models"]
    assert "golden" in checked
    assert lines[-1] == "good"
    assert "SHA-256" in out
    assert "replayed" in out


def test_verify_counts_windows_in_memory(windows_release, run, run_json, tmp_path):
    """Windows without events stand in, beside stand-in tables and beside given ones; golden rows bring their own values."""
    import pyarrow.parquet as pq

    code, out, err = run("verify", windows_release)
    assert code == 0, err
    assert "3 of chargeback, payment can be counted; here they hold no event" in out
    assert "stand-ins were made of golden rows" in out
    pq.write_table(card_table(), tmp_path / "cards.parquet")
    code, out, err = run("verify", windows_release, "--store", f"card={tmp_path}/cards.parquet:card_id")
    assert code == 0, err
    assert "keys and columns fit" in out
    code, found = run_json("bench", windows_release, "--n", 60, "--quiet")
    assert code == 0
    assert found["answers"]["same_bits"]
    assert found["requests"]["refused"] == 0


def test_verify_names_stand_in_tables_and_uses_given_ones(releases, run, tmp_path):
    """Without --store the tables are made of golden rows, and it is said; with it the given ones are checked."""
    import pyarrow.parquet as pq

    pq.write_table(card_table(), tmp_path / "cards.parquet")
    _, without, _ = run("verify", releases["payments"])
    code, given, _ = run("verify", releases["payments"], "--store", f"card={tmp_path}/cards.parquet:card_id")
    assert code == 0
    assert "stand-ins were made of golden rows" in without
    assert "keys and columns fit" in given


def test_verify_json_lists_the_checks(releases, run_json):
    """A machine gets the same checks, and whether all is well."""
    code, found = run_json("verify", releases["payments"])
    assert (code, found["ok"]) == (0, True)
    assert found["release"].startswith("payments:")
    assert [one["check"] for one in found["checks"]][-2:] == ["golden", "rows"]


# ---- inspect ---------------------------------------------------------------------------------------------------------


def test_inspect_shows_what_a_release_holds_and_needs(releases, run):
    """Files, models, score, GIL policy, request, tables, columns, policy, contract."""
    code, out, err = run("inspect", releases["payments"])
    assert code == 0, err
    for text in (
        "model.onnx",
        "score: model.probability[0]",
        "is predicted to take",
        "the GIL is given up where that is 100 us or more",
        "timestamp",
        "event time, read in Europe/London",
        "bool or null",
        "card, keyed by card_id: mean_amount float",
        "max_age=30d",
        "channel x4",
        "review   from 0.5",
        "p99_ms",
    ):
        assert text in out, text


def test_inspect_shows_windows_and_what_they_cost(windows_release, run, run_json):
    """Streams, definitions, panes, state and the bytes that an entity takes at most; the age that tables may have."""
    code, out, err = run("inspect", windows_release)
    assert code == 0, err
    for text in (
        "payment: the requests, dated by at",
        "chargeback: card_id, loss, dated when they arrive",
        "count on payment where amount > 100.0, over 1h",
        "30 x 2m",
        "528 bytes",
        "sum of loss on chargeback, over 28d up to 7d ago",
        "each card takes at most 1.2 kB beside its key: 3 window(s) over 2 state(s)",
        "mean_amount float (max_age 30d)",
    ):
        assert text in out, text
    _, found = run_json("inspect", windows_release)
    features = found["features"]
    assert [stream["name"] for stream in features["streams"]] == ["chargeback", "payment"]
    second, first, late = features["windows"]
    assert (first["name"], first["panes"], first["max_bytes"]) == ("card_count_1h_payment", 30, 528)
    assert first["state"] == second["state"] != late["state"]
    assert features["window_state"] == [
        {"entity": "card", "windows": 3, "accumulators": 2, "max_bytes": 528 + late["max_bytes"]}
    ]
    assert features["tables"][0]["max_age_ns"] == {"mean_amount": 30 * 86400 * 10**9}
    reads = {(read["kind"], read["name"]): read for read in found["manifest"]["reads"]}
    assert reads["window", "lost"]["digest"] == late["state"]
    assert reads["stream", "chargeback"]["columns"] == ["card_id", "loss"]


def test_inspect_json_has_the_manifest_and_the_measurement(releases, run_json):
    """Whoever wants to compute with it gets the manifest, the columns and the prediction in microseconds."""
    code, found = run_json("inspect", releases["ranking"])
    assert code == 0
    assert found["manifest"]["task"] == "ranking"
    assert [column["name"] for column in found["features"]["columns"]] == [
        "user.spend",
        "item.price",
        "item.price_over_user.spend",
    ]
    assert found["features"]["candidate"] == "item"
    assert found["here"]["runs"] is True
    assert found["here"]["run_us"]["fixed"] > 0
    assert found["size"] == sum(entry["size"] for entry in found["manifest"]["files"])


def test_inspect_shows_arrays(releases, run):
    """A release without features shows the arrays that the caller brings."""
    code, out, _ = run("inspect", releases["arrays"])
    assert code == 0
    assert "features  float32  (?, 4)" in out


# ---- bench -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_bench_times_whole_calls_stages_and_a_bare_run(releases, run_json, kind):
    """All quantiles ascend, the ratio is that of the rounds, and answers were compared first."""
    code, found = run_json("bench", releases[kind], "--n", 60, "--quiet")
    assert code == 0
    assert found["calls"] >= 60
    stages = ["decode", "resolve", "fill", "run", "decide", "encode"]
    assert list(found["stages_us"]) == ([] if kind == "arrays" else stages)
    for times in (found["whole_us"], found["bare_us"], *found["stages_us"].values()):
        assert list(times) == ["p50", "p95", "p99", "p99.9"]
        assert list(times.values()) == sorted(times.values())
    assert len(found["ratio"]["rounds"]) == ROUNDS
    assert found["ratio"]["median"] == pytest.approx(float(np.median(found["ratio"]["rounds"])))
    assert found["ratio"]["worst"] == max(found["ratio"]["rounds"])
    assert found["answers"]["compared"] > 0
    assert found["answers"]["same_bits"] is True


def test_bench_makes_many_different_requests_of_few_golden_rows(releases, run_json):
    """Golden rows are mixed into hundreds of requests, so that nothing is learned by heart."""
    _, found = run_json("bench", releases["payments"], "--n", 20, "--quiet")
    assert found["requests"]["source"] == "golden rows"
    assert found["requests"]["distinct"] > 500
    assert found["requests"]["tables"] == "stand-ins"


def test_bench_ranks_as_many_candidates_as_the_contract_says(releases, run_json):
    """`batch_sizes` of the contract decides, `--candidates` overrides it."""
    _, found = run_json("bench", releases["ranking"], "--n", 20, "--quiet")
    _, fewer = run_json("bench", releases["ranking"], "--n", 20, "--candidates", 7, "--quiet")
    assert found["requests"]["rows"] == 100
    assert fewer["requests"]["rows"] == 7


def test_bench_replays_requests_of_a_file(releases, run_json, tmp_path):
    """One JSON object a line; empty lines do not count."""
    requests = [
        {"card_id": "c1", "channel": "web", "amount": 12.5, "at": "2024-01-02T03:04:05Z"},
        {"card_id": "c2", "channel": "app", "amount": 99, "at": 1.7e9, "gift": True},
    ]
    path = tmp_path / "requests.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in requests) + "\n\n")
    code, found = run_json("bench", releases["payments"], "--requests", path, "--n", 20, "--quiet")
    assert code == 0
    assert found["requests"]["source"] == str(path)
    assert found["requests"]["distinct"] == 2


def test_bench_fails_when_a_limit_is_exceeded(releases, run):
    """The limit, the value and the verdict are told; the exit code is 1."""
    code, out, _ = run("bench", releases["payments"], "--n", 20, "--fail-if", "p50_us=0.001", "--quiet")
    assert code == 1
    assert "EXCEEDED" in out
    assert "FAILED: p50_us" in out


def test_bench_keeps_limits_that_are_kept(releases, run_json):
    """Whole call, stage, ratio and the contract's own promise are judged in their own units."""
    limits = ["p99_ms=1e6", "run.p95_us=1e9", "ratio=1e6", "contract"]
    arguments = [part for limit in limits for part in ("--fail-if", limit)]
    code, found = run_json("bench", releases["payments"], "--n", 20, "--quiet", *arguments)
    assert code == 0
    assert [(one["name"], one["limit"]) for one in found["limits"]] == [
        ("p99_ms", 1e6),
        ("run.p95_us", 1e9),
        ("ratio", 1e6),
        ("p99_ms", 50.0),
    ]
    assert all(one["kept"] for one in found["limits"])
    whole = found["limits"][0]
    assert whole["value"] == pytest.approx(found["whole_us"]["p99"] / 1e3)


def test_bench_tells_people_the_same(releases, run):
    """The table has a line for the whole call, each stage and the bare run; progress is on stderr only."""
    code, out, err = run("bench", releases["payments"], "--n", 20)
    assert code == 0
    for text in ("whole call", "  decode", "  encode", "bare run", "times a bare run", "the same bits as"):
        assert text in out, text
    assert "timing 20 calls of each" in err
    assert "timing 20 calls" not in out


def test_contestants_take_turns_and_none_is_favoured():
    """Every contestant is called equally often, in rounds, and each number of a call comes once."""
    seen: dict[str, list[int]] = {"a": [], "b": []}
    order: list[str] = []

    def contestant(name):
        def call(i: int) -> tuple[None, tuple[int, int]]:
            seen[name].append(i)
            order.append(name)
            return None, (1, 2)

        return call

    times = measure([contestant("a"), contestant("b")], 100, parts=[0, 2])
    assert seen["a"] == seen["b"] == list(range(100))
    assert times[0].ns.shape == (ROUNDS, 20)
    assert times[1].ns.shape == (ROUNDS, 20, 2)
    assert (times[1].ns == [1, 2]).all()
    assert order[:5] == ["a"] * 5
    assert order[5:15] == ["b"] * 10  # who goes first turns


# ---- requests out of golden rows ---------------------------------------------------------------------------------------


def test_golden_values_are_the_values_that_were_packed(releases):
    """What is read back from golden.msgpack is what stood in the table, null for null."""
    loaded = load(str(releases["payments"]))
    assert loaded.golden is not None
    values = golden_values(loaded.golden, loaded.pipeline.spec)
    rows = payments().to_pylist()
    packed = {(r["card_id"], r["amount"], r["channel"], r["gift"], r["card.mean_amount"]) for r in rows}
    names = ("card_id", "amount", "channel", "gift", "card.mean_amount")
    found = set(zip(*(values[name] for name in names), strict=True))
    assert len(found & packed) > 30


def test_made_requests_are_the_same_in_every_run(releases):
    """Two runs send the same bytes, or their times could not be compared."""
    one = samples.of_golden(load(str(releases["payments"])))
    two = samples.of_golden(load(str(releases["payments"])))
    assert one.bodies == two.bodies
    assert len(set(one.bodies)) == len(one.bodies)


# ---- pack ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    """What `pack` reads, as files."""
    import pyarrow.parquet as pq
    from pyarrow import feather

    spec = payment_spec()
    paths = {
        "model": tmp_path / "model.onnx",
        "features": tmp_path / "features.json",
        "policy": tmp_path / "policy.toml",
        "policy_json": tmp_path / "policy.json",
        "contract": tmp_path / "contract.json",
        "golden": tmp_path / "golden.parquet",
        "golden_arrow": tmp_path / "golden.arrow",
        "info": tmp_path / "info.toml",
        "out": tmp_path / "release",
    }
    paths["model"].write_bytes(logistic(len(spec.names)))
    paths["features"].write_bytes(spec.to_json())
    paths["policy"].write_text('bands = [["approve", -inf], ["review", 0.5], ["decline", 0.9]]\n')
    paths["policy_json"].write_text('{"bands": [["approve", null], ["review", 0.5], ["decline", 0.9]]}')
    paths["contract"].write_text('{"p95_ms": 2, "max_rows": 100}')
    pq.write_table(payments(), paths["golden"])
    feather.write_feather(payments(), paths["golden_arrow"])
    paths["info"].write_text('version = "7"\nowner = "risk"\n[metrics]\nauc = 0.91\n')
    return paths


def pack_arguments(files: dict[str, Path]) -> list[object]:
    """All that `pack` takes from files."""
    return [
        "pack", "payments", "--model", files["model"], "--features", files["features"], "--policy", files["policy"],
        "--contract", files["contract"], "--golden", files["golden"], "--info", files["info"], "--out", files["out"],
    ]  # fmt: skip


def test_pack_makes_a_release_that_answers(files, run):
    """Files in, a release out that a Scorer loads, with policy, contract and info as they were written."""
    code, out, err = run(*pack_arguments(files))
    assert code == 0, err
    assert out.startswith("payments:7 is in")
    assert "reading the model" in err  # progress
    with ri.Scorer.load(files["out"], store=payment_store(), trust="unsigned") as scorer:
        decision = scorer.score({"card_id": "c1", "channel": "web", "amount": 3.0, "at": 1.7e9, "gift": None})
        assert scorer.policy.actions == ("approve", "review", "decline")
        assert scorer.contract == ri.Contract(p95_ms=2, max_rows=100)
        assert scorer.manifest.info.metrics == {"auc": 0.91}
    assert 0 <= decision.score <= 1
    assert decision.release == "payments:7"


def test_pack_reads_arrow_files_and_json_policies_alike(files, run, tmp_path):
    """Parquet or Arrow, TOML or JSON: the same content, so the same model, golden rows and policy."""
    assert run(*pack_arguments(files))[0] == 0
    other = files | {
        "policy": files["policy_json"],
        "golden": files["golden_arrow"],
        "out": tmp_path / "other",
    }
    assert run(*pack_arguments(other))[0] == 0
    for name in ("policy.json", "golden.msgpack", "model.onnx"):
        assert (files["out"] / name).read_bytes() == (other["out"] / name).read_bytes()


def test_pack_json_gives_the_manifest(files, run_json):
    """A pipeline reads digest and files from stdout, and nothing else is there."""
    code, found = run_json(*pack_arguments(files))
    assert (code, found["ok"]) == (0, True)
    manifest = msgspec.json.decode((files["out"] / "manifest.json").read_bytes())
    assert found["manifest"]["digest"] == manifest["digest"]


def test_pack_takes_several_models_with_their_roles(files, run, tmp_path):
    """`--model role=file` names each; without features they take arrays."""
    two = tmp_path / "two.onnx"
    two.write_bytes(logistic(1, seed=2, name="probability", output="calibrated"))
    code, _, err = run(
        "pack",
        "chain",
        "--model",
        f"first={files['model']}",
        "--model",
        f"second={two}",
        "--out",
        files["out"],
    )
    assert code == 0, err
    with ri.Scorer.load(files["out"], trust="unsigned") as scorer:
        assert [model.role for model in scorer.manifest.models] == ["first", "second"]


def test_pack_says_the_policy_of_a_policy_written_in_python(files, run):
    """The TOML file means what ri.Policy means."""
    assert run(*pack_arguments(files))[0] == 0
    expected = ri.Policy([(BANDS[0][0], float("-inf")), *BANDS[1:]])
    assert (files["out"] / "policy.json").read_bytes() == expected.to_json()


# ---- as a program ----------------------------------------------------------------------------------------------------


def test_module_runs_as_a_program(releases):
    """`python -m retailinfer` is the command line; stdout holds one JSON value."""
    done = subprocess.run(
        [sys.executable, "-m", "retailinfer", "verify", str(releases["payments"]), "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ok"] is True


def test_help_is_quick_and_needs_no_extra():
    """`--help` loads no model engine, no pyarrow and no onnx."""
    code = (
        "import sys\nfrom retailinfer.cli.main import main\n"
        "try:\n    main(['bench', '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'onnx', 'onnxruntime', 'pyarrow', 'pandas', 'retailinfer._native.ort'} & set(sys.modules)\n"
        "print('loaded', sorted(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "loaded []"
    assert "--fail-if" in done.stdout


def test_demo_is_called_with_its_options(run, monkeypatch, tmp_path):
    """`--out` and `--short` reach the demo; the exit code says whether its promises were kept."""
    pytest.importorskip("matplotlib")
    import retailinfer.demo.run as demo

    calls = []

    class Outcome:
        kept = True

    def fake(out: str, *, short: bool, say: Any, show: Any) -> Outcome:
        calls.append((out, short))
        return Outcome()

    monkeypatch.setattr(demo, "run", fake)
    assert run("demo", "--out", tmp_path, "--short")[0] == 0
    monkeypatch.setattr(Outcome, "kept", False)
    assert run("demo")[0] == 1
    assert calls == [(str(tmp_path), True), ("build/demo", False)]
