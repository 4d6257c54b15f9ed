"""The application that follows a registry in the tests of servers; WSGI.

    FOLLOWED=<folder> gunicorn --preload followed_app:application

The folder has the registry; what the host keeps goes beside it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import retailinfer as ri


def _facts() -> dict[str, Any]:
    following = scorer.following
    return {"pid": os.getpid(), "running": following.running, "state": following.state, "seq": following.seq}


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The decision about a body, or what this worker follows."""
    status, body = "200 OK", environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    try:
        answer = (
            scorer.score_json(body) if environ["PATH_INFO"] == "/score" else json.dumps(_facts()).encode()
        )
    except ri.RetailInferError as exc:
        status, answer = f"{exc.http_status} Refused", str(exc).encode()
    start_response(status, [("Content-Length", str(len(answer))), ("X-Worker", str(os.getpid()))])
    return [answer]


if "FOLLOWED" in os.environ:
    _folder = Path(os.environ["FOLLOWED"])
    scorer = ri.Scorer.follow(
        _folder / "registry", "fraud", trust="unsigned", last_good=_folder / "last-good", poll_s=0.1
    )
    if os.environ.get("PRELOAD") == "1":
        ri.preload(scorer)
