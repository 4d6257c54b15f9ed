"""Model servers for tests: a small one that speaks the Open Inference Protocol, and one that does whatever a test says.

Rules:
  * `OipServer` is written from the protocol's text with nothing of the library: http.server, json, struct. Its model is a
    function of arrays. It remembers what it was asked.
  * `HostileServer` gives each connection to a function, with the first request on it already read.
Both listen on a free port of 127.0.0.1 and end with their `with`. MLServer, which neither of us wrote, is in mlservers.py.
"""

from __future__ import annotations

import contextlib
import json
import math
import socket
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

SIZES = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1", "INT16": "<i2",
    "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
NAMES = {np.dtype(code): name for name, code in SIZES.items()}
Model = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


def mean_model(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """score = 1 / (1 + exp(-mean of a row)), as float32 of shape (n, 1)."""
    rows = inputs["features"].astype(np.float64)
    return {"score": (1 / (1 + np.exp(-rows.mean(axis=1, keepdims=True)))).astype(np.float32)}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes
    server: Any

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        owner: OipServer = self.server.owner
        owner.asked.append((self.path, dict(self.headers), b""))
        if self.path == "/v2":
            extensions = [*owner.extensions, *(["binary_tensor_data"] if owner.binary else [])]
            self._answer(
                200, json.dumps({"name": "small", "version": "1", "extensions": extensions}).encode()
            )
        elif self.path == f"/v2/models/{owner.model}":
            self._answer(
                200, json.dumps({"name": owner.model, "platform": "numpy", **owner.metadata}).encode()
            )
        else:
            self._answer(404, b'{"error": "no such model"}')

    def do_POST(self) -> None:
        owner: OipServer = self.server.owner
        body = self.rfile.read(int(self.headers["Content-Length"]))
        owner.asked.append((self.path, dict(self.headers), body))
        if not self.path.startswith(f"/v2/models/{owner.model}"):
            self._answer(404, b'{"error": "no such model"}')
            return
        if owner.delay_s:
            owner.stop.wait(owner.delay_s)
        if owner.refuse is not None:
            self._answer(owner.refuse[0], b'{"error": "refused"}', owner.refuse[1])
            return
        size = self.headers.get("Inference-Header-Content-Length")
        head = json.loads(body[: int(size)] if size else body)
        at = int(size) if size else len(body)
        inputs = {}
        for tensor in head["inputs"]:
            dtype = np.dtype(SIZES[tensor["datatype"]])
            n_bytes = tensor.get("parameters", {}).get("binary_data_size")
            if n_bytes is None:
                array = np.array(tensor["data"], dtype)
            else:
                assert n_bytes == math.prod(tensor["shape"]) * dtype.itemsize
                array = np.frombuffer(body[at : at + n_bytes], dtype)
                at += n_bytes
            inputs[tensor["name"]] = array.reshape(tensor["shape"])
        assert at == len(body)
        made = owner.function(inputs)
        outputs, blobs = [], []
        for asked in head.get("outputs", [{"name": name} for name in made]):
            array = made[asked["name"]]
            tensor = {"name": asked["name"], "datatype": NAMES[array.dtype], "shape": list(array.shape)}
            if asked.get("parameters", {}).get("binary_data"):
                blobs.append(array.tobytes())
                tensor["parameters"] = {"binary_data_size": len(blobs[-1])}
            else:
                tensor["data"] = array.ravel().tolist() if owner.flat else array.tolist()
            outputs.append(tensor)
        answer = json.dumps({"model_name": owner.model, "model_version": "1", "outputs": outputs}).encode()
        more = {"Inference-Header-Content-Length": str(len(answer))} if blobs else {}
        self._answer(200, b"".join([answer, *blobs]), more)


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are what is tested."""


class OipServer:
    """One model behind the protocol. `refuse`: a status and headers instead of answers; `delay_s`: before each answer."""

    def __init__(
        self,
        function: Model = mean_model,
        *,
        model: str = "fraud",
        binary: bool = True,
        flat: bool = True,
        metadata: dict[str, Any] | None = None,
        extensions: tuple[str, ...] = (),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.extensions = extensions
        self.function, self.model, self.binary, self.flat = function, model, binary, flat
        self.metadata = metadata or {
            "inputs": [{"name": "features", "datatype": "FP32", "shape": [-1, 4]}],
            "outputs": [{"name": "score", "datatype": "FP32", "shape": [-1, 1]}],
        }
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        self.refuse: tuple[int, dict[str, str]] | None = None
        self.delay_s = 0.0
        self.stop = threading.Event()
        self.scheme = "http" if tls is None else "https"
        self._tls = tls
        self._server: Any = None
        self.port = 0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        server = _Quiet(("127.0.0.1", self.port), _Handler)
        server.owner = self  # type: ignore[attr-defined]
        if self._tls is not None:
            server.socket = self._tls.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._server, self.port = server, server.server_address[1]
        self.stop.clear()
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def n_inferred(self) -> int:
        """How often the model was asked to run."""
        return sum(path.endswith("/infer") for path, _, _ in self.asked)


def read_request(sock: socket.socket) -> bytes:
    """One request with its body, or b"" when the client has gone."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(65536)
        if not more:
            return b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    size = 0
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            size = int(value)
    while len(body) < size:
        body += sock.recv(65536)
    return head + b"\r\n\r\n" + body


class HostileServer:
    """Each connection is given to `behave(sock, request, stop)`; what it raises then is its own affair."""

    def __init__(
        self,
        behave: Callable[[socket.socket, bytes, threading.Event], None],
        *,
        reads: bool = True,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.behave, self.reads, self._tls = behave, reads, tls
        self.stop = threading.Event()
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self.port}"

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), contextlib.ExitStack() as stack:
            stack.callback(sock.close)
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
                stack.callback(sock.close)
            sock.settimeout(20)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.behave(sock, read_request(sock) if self.reads else b"", self.stop)

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


CA = """
[ca]
default_ca = one
[one]
new_certs_dir = .
database = index.txt
serial = serial
default_md = sha256
policy = any
[any]
commonName = supplied
[more]
subjectAltName = {kind}:{name}
"""


def certificate(folder: Path, name: str, *, expired: bool = False) -> tuple[Path, ssl.SSLContext]:
    """A certificate for a host name that signs itself, and a server's context with it."""
    home = Path(tempfile.mkdtemp(dir=folder))
    (home / "ca.conf").write_text(CA.format(kind="IP" if name[0].isdigit() else "DNS", name=name))
    (home / "index.txt").touch()
    (home / "serial").write_text("01")
    dates = "-startdate 20200101000000Z -enddate 20200201000000Z" if expired else "-days 2"
    request = f"req -new -newkey rsa:2048 -nodes -subj /CN={name} -keyout key.pem -out request.pem"
    files = "-keyfile key.pem -in request.pem -out cert.pem"
    sign = f"ca -batch -notext -selfsign -config ca.conf -extensions more {files} {dates}"
    for command in (request, sign):
        made = subprocess.run(["openssl", *command.split()], capture_output=True, check=False, cwd=home)
        if made.returncode:
            pytest.skip("platform: no openssl to make a certificate with")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home / "cert.pem", home / "key.pem")
    return home / "cert.pem", context
