"""The whole demo, short: its promises, what it writes and where, and what it says when a package is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("pyarrow", reason="`pyarrow` is not installed (pip install retailinfer[test])")

from retailinfer.demo import NEEDED

PROMISES = ["velocity", "own_history", "fraud_parity", "recommend_parity"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.requires(*NEEDED)
def test_short_demo_keeps_its_promises_and_to_its_folder(tmp_path):
    """From data to report in a process of its own: exit code 0, every figure told, nothing written elsewhere."""
    out, home, temporary, elsewhere = (tmp_path / name for name in ("out", "home", "temporary", "elsewhere"))
    for folder in (home, temporary, elsewhere):
        folder.mkdir()
    places = {"HOME": home, "TMPDIR": temporary, "XDG_CACHE_HOME": home / "c", "XDG_CONFIG_HOME": home / "d"}
    kept = {name: value for name, value in os.environ.items() if name != "MPLCONFIGDIR"}
    done = subprocess.run(
        [sys.executable, "-m", "retailinfer", "demo", "--short", "--out", str(out)],
        env={**kept, **{name: str(place) for name, place in places.items()}},
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=False,
        timeout=540,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["cache", "releases", "report.html", "results.json"]
    assert [path for folder in (home, temporary, elsewhere) for path in folder.rglob("*")] == []

    found = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert found["short"] is found["kept"] is True
    assert [promise["name"] for promise in found["promises"]] == PROMISES
    assert all(promise["kept"] is True and promise["got"] for promise in found["promises"])
    for part, rows in (("fraud", 1), ("recommend", 500)):
        times = found[part]
        assert times["rows_per_request"] == rows
        assert 0 < times["bare_us"]["p50"] <= times["bare_us"]["p99"]
        assert 0 < times["whole_us"]["p50"] <= times["whole_us"]["p95"] <= times["whole_us"]["p99"]
        assert list(times["stages_us"]["p50"]) == ["decode", "resolve", "fill", "run", "decide", "encode"]
    assert found["recommend"]["parity_float32"]["n"] == 500 * found["recommend"]["requests"]
    assert found["recommend"]["parity_float32"]["flips"] == found["fraud"]["parity"]["flips"] == 0

    # the same booster through both engines: trees have LightGBM's bits, ONNX Runtime is near them
    assert found["fraud"]["engine"] == "trees"
    assert found["fraud"]["parity"]["max_difference"] == 0
    assert found["fraud"]["parity_onnx"]["max_difference"] < 2e-6
    assert 0 < found["fraud"]["onnx_us"]["p50"] <= found["fraud"]["onnx_us"]["p99"]
    assert found["fraud"]["declined"]
    assert all(one["score"] >= 0.6 and 1 <= len(one["reasons"]) <= 3 for one in found["fraud"]["declined"])

    # answers on stdout, progress on stderr with a line for each step
    assert done.stdout.count("kept ") == len(PROMISES)
    assert str(out / "report.html") in done.stdout
    assert all(name in done.stderr for name in found["seconds"])
    assert "4 of 4 promises kept" in (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["lightgbm", "matplotlib"])
def test_missing_package_is_one_line(name, monkeypatch, tmp_path):
    """Before anything is read or written, an error says what is missing and what to install."""
    from retailinfer.demo import run
    from retailinfer.errors import ConfigError

    real = run.find_spec
    monkeypatch.setattr(run, "find_spec", lambda module: None if module == name else real(module))
    with pytest.raises(ConfigError, match=rf"the demo needs {name}.*pip install 'retailinfer\[demo\]'"):
        run.run(tmp_path / "out", short=True)
    assert not (tmp_path / "out").exists()
