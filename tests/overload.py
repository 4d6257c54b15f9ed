"""Ten times as much as a server can do, then half of it: what it answers, refuses and needs (case 64).

    python tests/overload.py --seconds 60 --report overload.json

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

import overload_app
from servers import TESTS, WebServer

COMMAND = [
    sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:{port}", "--workers", "1", "--worker-class", "gthread",
    "--threads", "16", "--worker-connections", "2000", "--keep-alive", "30", "--preload", "--log-level", "warning",
    "--no-control-socket", "overload_app:application",
]  # fmt: skip


def _load(port: int, **options: Any) -> dict[str, Any]:
    path = os.pathsep.join([str(TESTS), *[p for p in sys.path if p]])
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, str(TESTS / "load_generator.py"), "--port", str(port), *words],
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
    with WebServer(folder / "server", COMMAND, SERVED=str(release), **environment) as server:
        limit = server.get("/facts")["limit"]
        short = max(1.5, seconds / 4)
        _load(server.port, closed=limit, seconds=1.0)
        before = _load(server.port, closed=limit, seconds=short)
        peak = before["rate"]
        _load(server.port, rate=10 * peak, seconds=1.0)
        rss_kb = server.get("/facts")["rss_kb"]
        over = _load(server.port, rate=10 * peak, seconds=seconds)
        grown_kb = server.get("/facts")["rss_kb"] - rss_kb
        half = _load(server.port, rate=0.5 * peak, seconds=max(3.0, short))
        after = _load(server.port, closed=limit, seconds=short)
        facts = server.get("/facts")
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
