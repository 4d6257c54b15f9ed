"""The list of promised figures: complete, consistent, each measured or openly not yet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import report
from benchmarks.harness import Figure, WrongAnswerError
from benchmarks.measures import MEASURES, Lab, Measure, UnmeasurableError
from benchmarks.targets import Target, load_targets

# The figures of the architecture, by name and bound. One that is moved has to be moved here too: it shows in review.
PROMISED = {
    "fraud_lean_ort": "<= 1 (aim 0.95)",
    "fraud_lean_trees_avx512": "<= 0.25",
    "fraud_lean_trees_avx2": "<= 0.32",
    "fraud_lean_trees_deep": "<= 0.4",
    "fraud_full_ort": "<= 1.15",
    "fraud_full_trees": "<= 0.4",
    "fraud_full_redis": "<= 1.15",
    "busy_thread_p99": "<= 3",
    "vectorise_over_dict_vectorizer": ">= 80",
    "kernel_avx512_1": ">= 10",
    "kernel_avx512_10": ">= 12",
    "kernel_avx512_100": ">= 20",
    "kernel_avx512_500": ">= 28",
    "kernel_avx2_1": ">= 7",
    "kernel_avx2_10": ">= 6",
    "kernel_avx2_100": ">= 14",
    "kernel_avx2_500": ">= 16",
    "kernel_baseline_1": ">= 6",
    "kernel_baseline_10": ">= 5",
    "kernel_baseline_100": ">= 7",
    "kernel_baseline_500": ">= 8",
    "kernel_leaves63_1": ">= 6",
    "kernel_leaves63_500": ">= 25",
    "kernel_depth8_1": ">= 9",
    "kernel_depth8_500": ">= 12",
    "kernel_over_lleaves": ">= 5",
    "kernel_with_reasons": "<= 1.5",
    "load_forest_ms": "<= 30",
    "rank_500_list": "<= 1.3",
    "rank_500_json": "<= 1.45",
    "rank_gbdt_avx512": "<= 0.06",
    "rank_gbdt_avx2": "<= 0.09",
    "rank_5000_over_500": "<= 10.5",
    "ranking_threads": ">= 1.8",
    "gather_table": ">= 25",
    "gather_snapshot": ">= 30",
    "lookups_warm": "<= 1",
    "lookups_cold": "<= 1.5",
    "windows_warm": "<= 0.5",
    "windows_cold": "<= 1.3",
    "one_off_points": "<= 10",
    "windows_memory": "<= 1",
    "feast_redis": ">= 1000",
    "feast_redis_100": ">= 200",
    "feast_redis_1": ">= 500",
    "feast_sqlite_100": ">= 200",
    "feast_sqlite_1": ">= 500",
    "redis_mget": ">= 15",
    "http_ort_p50": ">= 20",
    "http_ort_p99": ">= 12",
    "http_trees_p50": ">= 80",
    "http_trees_p99": ">= 50",
    "import_ms": "<= 15",
    "load_ms": "<= 100",
    "load_trees_ms": "<= 30",
    "trees_only_saved_mb": ">= 10",
    "prefork_private_dirty_mb": "<= 12",
    "prefork_weights_mb": "<= 4",
    "overload_goodput": ">= 0.9",
    "breaker_ns": "<= 300",
    "remote_overrun_ms": "<= 5",
    "budget_deadline_ns": "<= 50",
    "budget_permit_ns": "<= 50",
    "budget_event_ns": "<= 150",
    "budget_pointer_ns": "<= 20",
    "budget_rung_ns": "<= 0",
    "decision_log_ns": "<= 1000",
    "log_line_ns": "<= 1000",
    "budget_rollout_ns": "<= 200",
}


def test_no_promised_figure_is_left_out_or_moved() -> None:
    """targets.toml has every figure with its bound."""
    assert {name: target.bound for name, target in load_targets().items()} == PROMISED


def test_every_figure_is_measured_or_says_which_issue_brings_it() -> None:
    """A figure has exactly one group that measures it, or `not_before`; never both, never neither."""
    measured = [name for group in MEASURES for name in group.figures]
    assert len(measured) == len(set(measured))
    assert set(measured) <= set(load_targets())
    for name, target in load_targets().items():
        assert (name in measured) != (target.not_before is not None), name


def target(**changes: Any) -> Target:
    """A target that says `<= 1`, with some fields changed."""
    fields: dict[str, Any] = {
        "name": "f", "what": "w", "unit": "x", "better": "lower", "target": 1.0, "issue": 2, "how": "h"
    }  # fmt: skip
    return Target(**fields | changes)


@pytest.mark.parametrize(
    ("better", "value", "reached"),
    [
        ("lower", 1.0, True),
        ("lower", 1.001, False),
        ("higher", 1.0, True),
        ("higher", 0.999, False),
        ("lower", None, False),
    ],
)
def test_a_bound_is_inclusive_and_nothing_is_reached_unmeasured(
    better: str, value: float | None, reached: bool
) -> None:
    """The bound itself counts as reached; a missing value never does."""
    assert target(better=better).reached(value) is reached


def figure(value: float, worst: float | None = None) -> Figure:
    """A figure of one round."""
    return Figure(value, value if worst is None else worst, (value,))


def test_slower_than_the_record_is_reported_beyond_noise_only() -> None:
    """15 % is noise, and so is what the rounds of this run differ by; better is never reported."""
    lower, higher = target(name="low"), target(name="high", better="higher")
    record = {"low": 1.0, "high": 10.0}

    def names(*results: report.Result) -> list[str]:
        return [s.name for s in report.slower(results, record)]

    assert names(report.Result(lower, figure(1.14)), report.Result(higher, figure(8.8))) == []
    assert names(report.Result(lower, figure(1.5)), report.Result(higher, figure(5.0))) == ["high", "low"]
    assert names(report.Result(lower, figure(1.3, worst=1.8))) == []
    assert names(report.Result(lower, None), report.Result(target(name="new"), figure(9.0))) == []


def test_the_record_keeps_what_a_run_did_not_measure(tmp_path: Path) -> None:
    """Updating replaces measured figures of this CPU and nothing else."""
    path = tmp_path / "record.json"
    report.Record(path).update("cpu", [report.Result(target(name="a"), figure(1.23456))])
    report.Record(path).update("other", [report.Result(target(name="a"), figure(9.0))])
    report.Record(path).update(
        "cpu", [report.Result(target(name="a"), None), report.Result(target(name="b"), figure(2.0))]
    )
    record = report.Record(path)
    assert record.figures("cpu") == {"a": 1.235, "b": 2.0}
    assert record.figures("other") == {"a": 9.0}
    assert record.figures("unknown") is None


def test_the_committed_record_names_figures_that_exist() -> None:
    """A renamed figure would silently be compared with nothing."""
    entries = json.loads(report.RECORD.read_bytes())
    assert entries
    for entry in entries.values():
        assert set(entry["figures"]) <= set(load_targets())


# ---- the command ----------------------------------------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, path: Path, *groups: Measure, only: str | None = None) -> int:
    """The command line over groups of our own, the figures being fraud_lean_ort and import_ms."""
    targets = {name: load_targets()[name] for name in ("fraud_lean_ort", "import_ms", "lookups_warm")}
    monkeypatch.setattr(command, "load_targets", lambda: targets)
    monkeypatch.setattr(command, "MEASURES", list(groups))
    arguments = ["--short", "--json", str(path)] + (["--only", only] if only else [])
    return command.main(arguments)


def lean(lab: Lab) -> dict[str, Figure]:
    """A group that reaches its figure."""
    return {"fraud_lean_ort": figure(0.9)}


def slow_import(lab: Lab) -> dict[str, Figure]:
    """A group that misses its figure."""
    return {"import_ms": figure(99.0)}


LEAN = Measure("lean", ("fraud_lean_ort",), lean)


def test_every_target_is_in_the_file_with_five_keys(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reached, missed and not measured all stand in bench.json, in the order of the targets; slow is no failure."""
    path = tmp_path / "build" / "bench.json"
    assert run(monkeypatch, path, LEAN, Measure("imports", ("import_ms",), slow_import)) == 0
    assert json.loads(path.read_bytes()) == [
        {"name": "fraud_lean_ort", "value": 0.9, "unit": "x", "target": 1.0, "reached": True},
        {"name": "import_ms", "value": 99.0, "unit": "ms", "target": 15.0, "reached": False},
        {"name": "lookups_warm", "value": None, "unit": "x", "target": 1.0, "reached": False},
    ]
    out = capsys.readouterr().out
    assert "1 of 3 figures reached; 1 measured and missed, 1 not measured (counted as missed)" in out
    assert (tmp_path / "build" / "bench-details.json").exists()


def broken(lab: Lab) -> dict[str, Figure]:
    """A group that fails."""
    raise RuntimeError("no such thing")


def wrong(lab: Lab) -> dict[str, Figure]:
    """A group that finds a wrong answer."""
    raise WrongAnswerError("0.5 is not 0.6")


def silent(lab: Lab) -> dict[str, Figure]:
    """A group that forgets its figure."""
    return {}


@pytest.mark.parametrize(
    ("function", "says"), [(broken, "broken"), (wrong, "WRONG ANSWER"), (silent, "not measured")]
)
def test_a_wrong_answer_or_a_missing_figure_fails_the_run(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    function: Any,
    says: str,
) -> None:
    """The other groups still run and are written."""
    path = tmp_path / "bench.json"
    assert run(monkeypatch, path, Measure("imports", ("import_ms",), function), LEAN) == 1
    assert says in capsys.readouterr().err
    assert json.loads(path.read_bytes())[0]["value"] == 0.9


def test_what_the_machine_cannot_have_is_missed_without_failing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A CPU without AVX-512 is not a broken library."""

    def unmeasurable(lab: Lab) -> dict[str, Figure]:
        raise UnmeasurableError("needs two cores")

    path = tmp_path / "bench.json"
    assert run(monkeypatch, path, LEAN, Measure("imports", ("import_ms",), unmeasurable)) == 0
    assert json.loads(path.read_bytes())[1]["reached"] is False


def test_only_runs_the_groups_that_a_name_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A figure, a group or a pattern can be asked for; an unknown one is an error of the caller."""
    path = tmp_path / "bench.json"
    groups = (LEAN, Measure("imports", ("import_ms",), broken))
    assert run(monkeypatch, path, *groups, only="fraud*") == 0
    assert [row["name"] for row in json.loads(path.read_bytes())] == ["fraud_lean_ort"]
    assert run(monkeypatch, path, *groups, only="lean") == 0
    assert run(monkeypatch, path, *groups, only="nothing") == 2
