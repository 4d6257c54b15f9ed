"""Scripts of tests that must run in a process of their own: small stacks, forks, exits, memory measured alone."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

WAIT_S = 120


def run_script(script: str, *, stderr: str = "", code: int = 0, **environment: str) -> str:
    """Run a script beside the tests; the last line that it prints. Anything else on stderr is a failure."""
    path = os.pathsep.join([str(Path(__file__).parent), *[p for p in sys.path if p]])
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", **environment},
        capture_output=True, text=True, timeout=WAIT_S, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (code, stderr), (
        done.returncode,
        done.stderr[-3000:],
        done.stdout[-2000:],
    )
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""
