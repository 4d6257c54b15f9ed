"""Ten times as much as a server can do, then half of it: what it answers, refuses and needs (case 64).

    python -m benchmarks.prefork.overload --seconds 60 --report overload.json

gunicorn with threads around overload_app.py, load from load_generator.py in another process: the peak first, by as many
connections as there are permits, each waiting for its answer; then the overload; then the peak once more; then half of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.prefork import overload_app
from benchmarks.prefork.server import get, gunicorn

APPLICATION = "benchmarks.prefork.overload_app:application"
OPTIONS = ["--workers", "1", "--worker-class", "gthread", "--threads", "16", "--worker-connections", "2000"]


def _load(port: int, **options: Any) -> dict[str, Any]:
    path = os.pathsep.join(filter(None, sys.path))
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.prefork.load_generator", "--port", str(port), *words],
        env={k: v for k, v in os.environ.items() if k != "SERVED"} | {"PYTHONPATH": path},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-3000:])
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def measure(folder: Path, seconds: float, **environment: str) -> dict[str, Any]:
    """All phases against one server. `folder` is empty."""
    release = overload_app.write_release(folder / "heavy")
    (folder / "server").mkdir()
    with gunicorn(folder / "server", APPLICATION, OPTIONS, SERVED=str(release), **environment) as port:
        limit = get(port, "/facts")["limit"]
        short = max(1.5, seconds / 4)
        _load(port, closed=limit, seconds=1.0)
        before = _load(port, closed=limit, seconds=short)
        peak = before["rate"]
        _load(port, rate=10 * peak, seconds=1.0)
        rss_kb = get(port, "/facts")["rss_kb"]
        over = _load(port, rate=10 * peak, seconds=seconds)
        grown_kb = get(port, "/facts")["rss_kb"] - rss_kb
        half = _load(port, rate=0.5 * peak, seconds=max(3.0, short))
        after = _load(port, closed=limit, seconds=short)
        facts = get(port, "/facts")
    peak = (before["rate"] + after["rate"]) / 2
    return {
        "permits": limit,
        "peak_per_s": peak,
        "offered_per_s": (over["answered"] + over["refused"] + over["failed"] + over["not sent"])
        / over["seconds"],
        "goodput": over["rate"] / peak,
        "p99_ms": over["p99_ms"],
        "p99_ms_at_peak": max(before["p99_ms"], after["p99_ms"]),
        "recovered_s": half["last_refused_s"],
        "grown_mb": grown_kb / 1024,
        "in_flight": facts["in_flight"],
        "phases": {"before": before, "over": over, "half": half, "after": after},
    }


def main() -> int:
    """Command line; see above."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--report", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = measure(Path(folder), given.seconds)
    if given.report is not None:
        given.report.write_text(json.dumps(report, indent=1) + "\n")
    sys.stdout.write(json.dumps(report) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
