"""The model service: FastAPI (async def) on uvicorn, msgspec, onnxruntime, called over loopback on one kept connection.

In its favour: the body is read raw and decoded by msgspec instead of pydantic, the answer is encoded by msgspec, there
is no access log, uvloop and httptools are used where they are installed, and the caller is a raw socket that parses the
minimum of HTTP. The server has all cores of the machine; the library is measured on one.

The server is a child process (`python -m benchmarks.peers.fastapi_app MODEL CODES`) that ends when its standard input
is closed, and by itself after ten minutes.
"""

# No `from __future__ import annotations`: FastAPI reads the annotations of the handler, whose types live in `main`.
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["HttpClient", "serve"]

LIFETIME_S = 600
START_S = 60
TIMEOUT_S = 10


class HttpClient:
    """POST of JSON over one kept connection; enough of HTTP/1.1 for a server that sends Content-Length."""

    def __init__(self, port: int, path: str = "/score") -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = (
            f"POST {path} HTTP/1.1",
            "Host: localhost",
            "Content-Type: application/json",
            "Content-Length: ",
        )
        self._head = "\r\n".join(head).encode()

    def post(self, body: bytes) -> bytes:
        self._socket.sendall(b"%b%d\r\n\r\n%b" % (self._head, len(body), body))
        data = self._socket.recv(65_536)
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._more()
        head = data[:end].lower()
        if not head.startswith(b"http/1.1 200"):
            raise RuntimeError(f"the peer answered {data[:200]!r}")
        size = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        while len(data) < end + 4 + size:
            data += self._more()
        return data[end + 4 :]

    def _more(self) -> bytes:
        data = self._socket.recv(65_536)
        if not data:
            raise RuntimeError("the peer closed the connection")
        return data

    def close(self) -> None:
        self._socket.close()


@contextlib.contextmanager
def serve(model: bytes, codes: Mapping[str, Mapping[str, int]]) -> Iterator[HttpClient]:
    """Start the server with this model, give a connected client, stop both."""
    with TemporaryDirectory() as folder:
        model_path, codes_path = Path(folder, "model.onnx"), Path(folder, "codes.json")
        model_path.write_bytes(model)
        codes_path.write_text(json.dumps(codes))
        root = Path(__file__).resolve().parents[2]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [env.get("PYTHONPATH"), str(root)]))
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peers.fastapi_app", str(model_path), str(codes_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        watchdog = threading.Timer(
            START_S, process.kill
        )  # a server that does not come up must not hang the run
        watchdog.start()
        try:
            line = process.stdout.readline()
            watchdog.cancel()
            if not line.strip():
                raise RuntimeError(
                    f"the FastAPI peer did not start (exit code {process.wait(5)}); its errors are above"
                )
            client = HttpClient(int(line))
            try:
                yield client
            finally:
                client.close()
        finally:
            watchdog.cancel()
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
            process.stdout.close()


def main(model_path: str, codes_path: str) -> None:
    """Run the server until standard input ends."""
    if hasattr(os, "sched_setaffinity"):  # the parent is pinned to one core; the server shall have all
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    import uvicorn
    from fastapi import FastAPI, Request, Response

    from benchmarks.peers.bare_run import BareRun
    from benchmarks.peers.handwritten import HandwrittenFraud

    run = BareRun(Path(model_path).read_bytes(), "probabilities")
    fraud = HandwrittenFraud(run, json.loads(Path(codes_path).read_text()))
    app = FastAPI(openapi_url=None)

    @app.post("/score")
    async def score(request: Request) -> Response:
        return Response(fraud.with_msgspec(await request.body()), media_type="application/json")

    # With the protocol named: asyncio turns Nagle's algorithm off only then, and 40 us would become 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen()  # before the port is told: the client may connect at once
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))

    def stop_at_end_of_input() -> None:
        sys.stdin.buffer.read()
        server.should_exit = True

    threading.Thread(target=stop_at_end_of_input, daemon=True).start()
    lifetime = threading.Timer(LIFETIME_S, os._exit, [3])
    lifetime.daemon = True
    lifetime.start()
    print(listener.getsockname()[1], flush=True)
    server.run(sockets=[listener])


if __name__ == "__main__":
    main(*sys.argv[1:])
