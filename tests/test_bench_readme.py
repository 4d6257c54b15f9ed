"""Numbers in README and docs come from a run, and only from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks import __main__ as command
from benchmarks.readme import UnknownNumberError, fill

VALUES: dict[str, float | None] = {"fraud_lean_ort": 0.9478, "http_ort_p50": 21.04, "lookups_warm": None}
DETAILS: dict[str, Any] = {
    "cpu": "some CPU",
    "cores": 2,
    "versions": {"python": "3.12.1", "numpy": "2.1"},
    "figures": [
        {"name": "fraud_lean_ort", "worst": 0.9611, "note": "16 us over 17 us", "state": "reached"},
        {"name": "http_ort_p50", "worst": 19.5, "note": "", "state": "reached"},
        {"name": "lookups_warm", "worst": None, "note": "", "state": "not measured"},
    ],
}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fraud_lean_ort", "0.948 times"),
        ("fraud_lean_ort.value", "0.948"),
        ("fraud_lean_ort.worst", "0.961"),
        ("fraud_lean_ort.note", "16 us over 17 us"),
        ("fraud_lean_ort.state", "reached"),
        ("fraud_lean_ort.target", "<= 1 (aim 0.95)"),
        ("http_ort_p50", "21 times as fast"),
        ("lookups_warm", "not measured"),
        ("import_ms.value", "not measured"),
        ("cpu", "some CPU, 2 cores"),
        ("versions", "python 3.12.1, numpy 2.1"),
    ],
)
def test_a_marker_gets_the_number_of_the_run(name: str, words: str) -> None:
    """What stood there before is gone, what stands around stays."""
    text = f"a <!-- bench:{name} -->old\nnumber<!-- /bench --> b <!-- other -->"
    want = f"a <!-- bench:{name} -->{words}<!-- /bench --> b <!-- other -->"
    assert fill(text, VALUES, DETAILS) == want
    assert fill(want, VALUES, DETAILS) == want


def test_the_table_leaves_no_figure_out() -> None:
    """Reached, missed and not measured all have a line."""
    text = fill("<!-- bench:table --><!-- /bench -->", VALUES, DETAILS)
    lines = text.splitlines()
    assert sum(line.startswith("| ") for line in lines) == 1 + len(command.load_targets())
    assert any("| <= 1 (aim 0.95) | 0.948 (0.961) times | reached |" in line for line in lines)
    assert sum("| - | not measured |" in line for line in lines) == len(command.load_targets()) - 2


def test_an_unknown_name_is_an_error() -> None:
    """A renamed figure must not leave an old number standing."""
    for name in ("fraud_mean_ort", "fraud_lean_ort.best"):
        with pytest.raises(UnknownNumberError, match=name):
            fill(f"<!-- bench:{name} -->1<!-- /bench -->", VALUES, DETAILS)


def test_the_command_fills_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--readme` measures nothing, and says which file it could not fill."""
    source, readme = tmp_path / "bench.json", tmp_path / "README.md"
    readme.write_text("<!-- bench:fraud_lean_ort.value -->?<!-- /bench -->")
    assert command.main(["--json", str(source), "--readme", str(readme)]) == 1
    source.write_bytes(msgspec.json.encode([{"name": name, "value": v} for name, v in VALUES.items()]))
    source.with_name("bench-details.json").write_bytes(msgspec.json.encode(DETAILS))
    assert command.main(["--json", str(source), "--readme", str(readme)]) == 0
    assert readme.read_text() == "<!-- bench:fraud_lean_ort.value -->0.948<!-- /bench -->"
    readme.write_text("<!-- bench:nothing -->?<!-- /bench -->")
    assert command.main(["--json", str(source), "--readme", str(readme)]) == 1
    assert "README.md" in capsys.readouterr().err
