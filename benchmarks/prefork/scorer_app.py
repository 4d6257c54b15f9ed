"""One scorer, loaded in gunicorn's master and shared by its workers: RELEASE names its folder; without it every score is 0."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

n_answers = 0
if "RELEASE" in os.environ:
    import retailinfer as ri

    scorer = ri.Scorer.load(os.environ["RELEASE"], trust="unsigned")
    ri.preload(scorer)
    score_json: Callable[[bytes], bytes] = scorer.score_json
else:
    gc.collect()
    gc.freeze()

    def score_json(body: bytes) -> bytes:
        """What a server needs by itself is measured with this."""
        return b'{"score":0.0}'


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """POST a request, GET what this worker has of its own after a garbage collection."""
    global n_answers  # noqa: PLW0603 - one thread a process
    if environ["REQUEST_METHOD"] == "POST":
        n_answers += 1
        answer = score_json(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
    else:
        gc.collect()
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        dirty_kb = next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))
        facts = {"pid": os.getpid(), "private_dirty_kb": dirty_kb, "answers": n_answers}
        answer = json.dumps(facts).encode()
    start_response("200 OK", [("Content-Length", str(len(answer)))])
    return [answer]
