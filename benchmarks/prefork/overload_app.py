"""The application of the overload test: a ranking that takes tens of ms of a processor, refused before its body is read.

SERVED=<folder> gunicorn --worker-class gthread --threads 16 benchmarks.prefork.overload_app:application
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import retailinfer as ri
from retailinfer import columns as c

N_ITEMS = 400
OBJECTIVE_MS = (
    500.0  # 50 ms of a processor, twice as many at once as there are processors, and others on the machine
)
IDS = [f"sku-{i:03d}" for i in range(N_ITEMS)]


def write_release(folder: Path) -> Path:
    """A ranker with a network of three layers and 17 MB."""
    from benchmarks import models

    spec = ri.FeatureSpec(
        request={"user": str, "boost": float, "sku": str},
        entities={"item": ri.Entity(key=("sku",), columns={"weight": "float"})},
        candidate="item",
        columns=[c.numeric("boost"), c.stored("item.weight", unknown=0.0)],
    )
    contract = ri.Contract(p99_ms=OBJECTIVE_MS)
    ri.pack(
        "heavy", model=models.dense(2, 2_048), features=spec, contract=contract, names="ignore", out=folder
    )
    return folder


def load(folder: Path, **settings: Any) -> Any:
    """The ranker, with its items."""
    items = ri.Snapshot.from_rows(
        {sku: {"weight": i % 97} for i, sku in enumerate(IDS)}, kinds={"weight": "f64"}
    )
    return ri.Ranker.load(folder, store=ri.Store(tables={"item": items}), trust="unsigned", **settings)


BODY = json.dumps({"context": {"user": "u", "boost": 1.0}, "candidates": IDS, "k": 10}).encode()


def _facts() -> bytes:
    status = Path("/proc/self/status").read_text()
    rss_kb = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
    permits = ranker.permits
    facts = {"pid": os.getpid(), "rss_kb": rss_kb, "limit": permits.limit, "in_flight": permits.in_flight}
    return json.dumps(facts | {"rejected": sum(permits.rejected.values())}).encode()


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """WSGI: whoever comes while all permits are taken is told to come back, before a byte of the body is read."""
    status, headers = "200 OK", []
    try:
        if environ["PATH_INFO"] == "/facts":
            answer = _facts()
        else:
            ranker.permits.check()
            answer = ranker.rank_json(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
    except ri.OverloadedError as exc:
        status, answer = "429 Too Many Requests", b"come back later"
        headers = [("Retry-After", f"{exc.retry_after_s:.0f}")]
    except ri.RetailInferError as exc:
        status, answer = f"{exc.http_status} Refused", str(exc).encode()
    start_response(status, [("Content-Length", str(len(answer))), *headers])
    return [answer]


if "SERVED" in os.environ:
    _most = os.environ.get("MAX_IN_FLIGHT")
    ranker = load(Path(os.environ["SERVED"]), max_in_flight=None if _most is None else int(_most))
    ri.preload(ranker)
