"""A Flask service around one Scorer, for gunicorn: loaded in the master, shared by its workers.

    python examples/train_and_pack_lightgbm.py build/example
    export RELEASE=$PWD/build/example/fraud CARDS=$PWD/build/example/cards.parquet
    gunicorn --preload --chdir examples flask_app:app

With `--preload` the release is loaded once, before the workers are forked; `ri.preload` keeps its memory shared by them. More
of gunicorn's settings: gunicorn_conf.py. Needs
`pip install 'retailinfer[arrow]' flask gunicorn`.
"""

from __future__ import annotations

import math
import os

import pyarrow.parquet as pq
from flask import Flask, Response, request

import retailinfer as ri

app = Flask(__name__)
cards = ri.Snapshot.from_arrow(pq.read_table(os.environ["CARDS"]), key="card_id")
scorer = ri.Scorer.load(
    os.environ["RELEASE"],
    store=ri.Store(tables={"card": cards}),
    trust="unsigned",
    max_in_flight=2,  # of gunicorn_conf.py's four threads; a worker has one processor there
)
ri.preload(scorer)  # last: what is loaded now is shared by all workers, for good


@app.post("/score")
def score() -> Response:
    """A payment -> a decision; while all permits are taken, 429 before a byte of the payment is read."""
    scorer.permits.check()
    return Response(scorer.score_json(request.get_data()), mimetype="application/json")


@app.errorhandler(ri.RetailInferError)
def refuse(exc: ri.RetailInferError) -> Response:
    """400, 413, 422: mend the request. 429: come back. 503, 504: try elsewhere."""
    headers = {}
    if isinstance(exc, ri.OverloadedError):
        headers["Retry-After"] = str(math.ceil(exc.retry_after_s))  # whole seconds; 0 would be at once
    return Response(str(exc), status=exc.http_status, mimetype="text/plain", headers=headers)
