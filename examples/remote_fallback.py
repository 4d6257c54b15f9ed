"""A model server behind the release, then before it: what a checkout sees when the server is slow, lies and dies.

    python examples/remote_fallback.py

Starts a small server of the Open Inference Protocol in this process, with the model that the release has, and packs the
release into a temporary folder first. With a server of yours the URL is all that changes. Needs
`pip install 'retailinfer[sklearn,remote]'`. More: docs/remote.md.
"""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.linear_model import LogisticRegression

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.monitoring.events import Changed


def pack(folder: Path) -> Path:
    """A fraud release whose ladder has a model server, and a prior where nobody answers."""
    rng = np.random.default_rng(0)
    amount, hour = rng.lognormal(3, 1, 2_000), rng.integers(0, 24, 2_000)
    rows = pa.table({"amount": amount, "hour": hour.astype(np.float64)})
    spec = ri.FeatureSpec(
        request={"amount": float, "hour": float},
        columns=[c.numeric("amount", transform="log1p"), c.numeric("hour", center="mean", scale="std")],
    ).fit(rows)
    model = LogisticRegression().fit(np.asarray(spec.transform(rows)), (amount > 60) & (hour < 6))
    ri.pack(
        "fraud",
        model=model,
        features=spec,
        policy=ri.Policy([("approve", 0.0), ("review", 0.3), ("decline", 0.8)]),
        contract=ri.Contract(
            use_case="fraud",
            deadline_ms=500,
            ladder=(ri.Rung(kind="remote", max_ms=400), ri.Rung(kind="static")),
        ),
        fallback=ri.Fallback(score=0.5),
        golden=rows,
        out=folder / "fraud",
    )
    return folder / "fraud"


class ModelServer:
    """The release's model behind the protocol, and a switch for how it behaves: "well", "slow" or "lies"."""

    def __init__(self, release: Path) -> None:
        self.behaves = "well"
        self.model = ri.Scorer.load(release, trust="unsigned")
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                self.answer({"name": "small", "version": "1", "extensions": []})

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                feeds = {
                    one["name"]: np.array(one["data"], np.float32).reshape(one["shape"])
                    for one in asked["inputs"]
                }
                if owner.behaves == "slow":
                    time.sleep(2)
                found = owner.model.score_arrays(feeds)
                outputs = []
                for one in asked["outputs"]:
                    array = found[one["name"]]
                    data = [None] * array.size if owner.behaves == "lies" else array.ravel().tolist()
                    outputs.append(
                        {"name": one["name"], "datatype": "FP32", "shape": list(array.shape), "data": data}
                    )
                self.answer({"model_name": "fraud", "outputs": outputs})

            def answer(self, value: dict[str, Any]) -> None:
                body = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """Clients that had no time left are gone."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def die(self) -> None:
        """No longer there."""
        self.server.shutdown()
        self.server.server_close()


class Prints:
    """A hook that tells of breakers."""

    def on_event(self, event: object) -> None:
        if isinstance(event, Changed) and event.part.startswith("breaker"):
            print(f"   the breaker is {event.after}: {event.why}")


def main(folder: Path) -> None:
    """The four scenes, one after the other."""
    release = pack(folder)
    server = ModelServer(release)
    payment = {"amount": 120.0, "hour": 3.0}

    remote = ri.Remote(server.url, model="fraud", timeout_ms=300)
    scorer = ri.Scorer.load(
        release,
        trust="unsigned",
        remote=remote,
        primary="remote",
        hooks=[Prints()],
        contract={"deadline_ms": 1_000},
    )
    print("1. the server answers, the release scores beside it")
    for i in range(100):
        made = scorer.score(payment | {"amount": 1.0 + i})
    found = scorer.agreement()
    print(
        f"   {made.release} gave the last one; {found.equal_actions:.0%} of {found.compared} actions are the same"
    )

    print("2. the server is slow, then sends no numbers: the release decides")
    for server.behaves in ("slow", "lies"):
        made = scorer.score(payment)
        print(f"   {server.behaves}: {made.action} by {made.release.partition(':')[0]}, rung {made.rung}")
    print(f"   the server's failures: {scorer.agreement().remote_failures}")

    print(
        "3. the server dies: five refused connections (some are retries), then nobody waits for it any more"
    )
    server.die()
    remote.close()
    for _ in range(8):
        scorer.score(payment)
    print(f"   calls that it did not answer: {scorer.agreement().remote_failures}")

    print("4. the release alone, with the server as a rung: nothing is asked while the release answers")
    scorer = ri.Scorer.load(release, trust="unsigned", remote=remote)
    made = scorer.score(payment)
    print(f"   {made.action} by {made.release.partition(':')[0]}, rung {made.rung}")
    remote.close()


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        main(Path(folder))
