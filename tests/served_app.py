"""The application that servers run in the tests: one scorer over a table that reads through, one ranker; WSGI and ASGI.

    SERVED=<folder of releases> gunicorn --preload served_app:application
    SERVED=<folder of releases> uvicorn --workers 2 served_app:asgi

`write_releases` makes the folder. The score of a request is its amount plus the number in its card's name, which comes from
a source through threads of the table, so that a wrong or missing answer shows.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

import retailinfer as ri
from retailinfer import columns as c

LOADED_IN = os.getpid()  # where this module was loaded: the master's with --preload


class Numbers:
    """A source: the mean of card-17 is 17."""

    def fetch(self, keys: Sequence[Any], *, timeout_s: float) -> Mapping[Any, Any]:
        return {key: {"mean": float(key.rpartition("-")[2])} for key in keys}


def write_releases(folder: Path) -> Path:
    """What the application loads."""
    import releases

    spec = ri.FeatureSpec(
        request={"card_id": str, "amount": float},
        entities={"card": ri.Entity(key=("card_id",), columns={"mean": "float"})},
        columns=[c.numeric("amount"), c.stored("card.mean", unknown=-1e6, on_unavailable=-2e6)],
    )
    for name, files in (
        ("cards", releases.packed("cards", releases.weighted(1.0, 1.0), spec)),
        ("items", releases.item_files()),
    ):
        (folder / name).mkdir(parents=True)
        for file, data in files.items():
            (folder / name / file).write_bytes(data)
    return folder


def _items() -> Any:
    rows = {
        f"sku-{i:03d}": {"weight": i % 7, "stock": i % 4, "age": i % 50, "label": f"l{i % 5}"}
        for i in range(200)
    }
    return ri.Snapshot.from_rows(rows, kinds={"weight": "f64"})


def _facts() -> dict[str, Any]:
    with Path("/proc/self/smaps_rollup").open() as lines:
        dirty = next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))
    return {
        "pid": os.getpid(),
        "loaded_in": LOADED_IN,
        "private_dirty_kb": dirty,
        "threads": threading.active_count(),
        "answers": scorer.freshness.answers,
    }


def _answer(path: str, body: bytes) -> bytes:
    if path == "/score":
        return scorer.score_json(body)
    if path == "/rank":
        return ranker.rank_json(body)
    return json.dumps(_facts()).encode()


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """WSGI."""
    status = "200 OK"
    try:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        answer = _answer(environ["PATH_INFO"], body)
    except ri.RetailInferError as exc:
        status, answer = f"{exc.http_status} Refused", str(exc).encode()
    start_response(status, [("Content-Length", str(len(answer))), ("X-Worker", str(os.getpid()))])
    return [answer]


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """ASGI; scores are waited for off the loop."""
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    body, more = b"", True
    while more:
        event = await receive()
        body += event.get("body", b"")
        more = event.get("more_body", False)
    status = 200
    try:
        if scope["path"] == "/score":
            answer = msgspec.json.encode(await scorer.ascore(msgspec.json.decode(body)))
        else:
            answer = _answer(scope["path"], body)
    except ri.RetailInferError as exc:
        status, answer = exc.http_status, str(exc).encode()
    headers = [(b"content-length", b"%d" % len(answer)), (b"x-worker", b"%d" % os.getpid())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


if "SERVED" in os.environ:
    _folder = Path(os.environ["SERVED"])
    _cards = ri.FeatureTable(
        {"mean": "f64"}, "str", source=Numbers(), ttl="1s", timeout_ms=5_000, name="card"
    )
    scorer = ri.Scorer.load(_folder / "cards", store=ri.Store(tables={"card": _cards}), trust="unsigned")
    ranker = ri.Ranker.load(_folder / "items", store=ri.Store(tables={"item": _items()}), trust="unsigned")
    if os.environ.get("PRELOAD") == "1":
        ri.preload(scorer, ranker)
