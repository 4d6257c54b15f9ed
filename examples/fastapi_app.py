"""A FastAPI service around one Scorer: bytes in, bytes out, errors with the status they carry.

    python examples/train_and_pack_lightgbm.py build/example
    RELEASE=build/example/fraud CARDS=build/example/cards.parquet uvicorn --app-dir examples fastapi_app:app

The request is not declared a second time as a model of FastAPI: the release's own features check it. Needs
`pip install 'retailinfer[arrow]' fastapi uvicorn`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pyarrow.parquet as pq
from fastapi import FastAPI, Request, Response

import retailinfer as ri


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """One store and one scorer per process, loaded before the first request and verified while loading."""
    cards = ri.Snapshot.from_arrow(pq.read_table(os.environ["CARDS"]), key="card_id")
    with ri.Scorer.load(
        os.environ["RELEASE"], store=ri.Store(tables={"card": cards}), trust="unsigned"
    ) as scorer:
        app.state.scorer = scorer
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/score")
async def score(request: Request) -> Response:
    """A payment -> a decision. One score takes microseconds, so it is computed in the event loop."""
    answer = request.app.state.scorer.score_json(await request.body())
    return Response(answer, media_type="application/json")


@app.exception_handler(ri.RetailInferError)
async def refuse(request: Request, exc: ri.RetailInferError) -> Response:
    """400, 413, 422: mend the request. 429: come back. 503, 504: try elsewhere. The text says what was expected, and where."""
    return Response(str(exc), status_code=exc.http_status, media_type="text/plain")
