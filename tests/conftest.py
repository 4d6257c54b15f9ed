"""What all tests share: which build they run against, hypothesis profiles, what may be skipped.

Rules:
  * Tests run against the installed wheel; `RETAILINFER_DEV=1` allows the source tree with an in-place build.
  * A skip is a failure when `CI=true`, whatever called it, except for the reasons in `ALLOWED_SKIPS`.
  * Warnings are errors; the few exceptions stand in pyproject.toml with their reasons.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from mlservers import mlserver, own_mlserver
from object_stores import object_store
from services import own_postgres, own_redis, postgres_server, redis_server

__all__ = [
    "mlserver",
    "object_store",
    "own_mlserver",
    "own_postgres",
    "own_redis",
    "postgres_server",
    "redis_server",
]  # fixtures, known to every test by being here

# Before any test file imports onnxruntime, lightgbm's converter or anything else that brings it along.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

ROOT = Path(__file__).resolve().parents[1]

# Folders of tests lie in memory where there is room: what is asked of a disk most is fsync, and in a test it proves nothing.
MEMORY = Path("/dev/shm")
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 4 << 30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

CI = os.environ.get("CI", "").lower() in ("1", "true")
DEV = os.environ.get("RETAILINFER_DEV", "") not in ("", "0")

# The start of a skip's reason, for what CI cannot have: data beside the project, another operating system.
ALLOWED_SKIPS = ("shared data:", "platform:")

# `HYPOTHESIS_PROFILE` chooses; else CI takes "ci", which draws the same examples every time, and people "dev".
_QUIET = {
    "deadline": None,
    "suppress_health_check": [hypothesis.HealthCheck.too_slow],
}  # a busy machine is no bug
hypothesis.settings.register_profile("dev", max_examples=60, **_QUIET)
hypothesis.settings.register_profile("ci", max_examples=80, derandomize=True, print_blob=True, **_QUIET)
hypothesis.settings.register_profile("debug", max_examples=30, derandomize=True, print_blob=True, **_QUIET)
hypothesis.settings.register_profile("soak", max_examples=5_000, print_blob=True, **_QUIET)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if CI else "dev"))


def pytest_sessionstart(session: pytest.Session) -> None:
    """Refuse to test the source tree by accident: a file missing from the wheel would go unnoticed."""
    spec = importlib.util.find_spec("retailinfer")
    if spec is None or not spec.submodule_search_locations:
        pytest.exit(
            "retailinfer is not installed; run `make test`, or set RETAILINFER_DEV=1 and PYTHONPATH=.", 4
        )
    location = Path(next(iter(spec.submodule_search_locations))).resolve()
    if not DEV and location == ROOT / "retailinfer":
        pytest.exit(
            f"the tests found retailinfer in the source tree, {location}, not installed from the wheel; "
            "run `make test`, or set RETAILINFER_DEV=1 if that is what you want",
            4,
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn the skip of a test into a failure in CI."""
    report = yield
    if not hasattr(report, "wasxfail"):
        _forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn the skip of a whole file (`importorskip` at its top) into a failure in CI."""
    report = yield
    _forbid_skip(report)
    return report


def _forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not CI or not report.skipped:
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not reason.removeprefix("Skipped: ").startswith(ALLOWED_SKIPS):
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be (CI=true): {reason}"


_frozen_for: list[Path] = []


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Honour the marker `requires`, as in `@pytest.mark.requires("lightgbm")`; spare the garbage collector other files.

    A worker holds millions of objects of libraries, and a test that collects garbage looks for its own.
    """
    if _frozen_for != [item.path]:
        _frozen_for[:] = [item.path]
        gc.collect()
        gc.freeze()
    for marker in item.iter_markers("requires"):
        for name in marker.args:
            _require(name)


def _require(name: str) -> Any:
    """Import an optional package, or skip, which CI turns into a failure."""
    return pytest.importorskip(name, reason=f"`{name}` is not installed (pip install retailinfer[test])")


@pytest.fixture
def retailinfer_required() -> Callable[[str], Any]:
    """Give a function that imports an optional package by its name, or skips the test."""
    return _require


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of data sets beside the project, too large or not ours to commit; absent for most people."""
    path = Path(os.environ.get("RETAILINFER_SHARED_DATA") or ROOT.parent / "shared" / "data")
    if not path.is_dir():
        pytest.skip(f"shared data: no folder {path}; set RETAILINFER_SHARED_DATA")
    return path
