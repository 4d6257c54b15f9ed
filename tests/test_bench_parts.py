"""The benchmarks of the parts run, and what they time is right."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.requires("lightgbm", "onnx", "onnxmltools", "pyarrow", "pytest_benchmark")
def test_benchmarks_of_the_parts_run_and_check_their_answers() -> None:
    """`pytest benchmarks` passes with timing off, so that nobody finds it broken when it is needed."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--benchmark-disable", "benchmarks"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
