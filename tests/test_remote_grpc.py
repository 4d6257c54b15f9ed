"""One model server over gRPC: MLServer, and those of acceptance case 58 that speak HTTP/2 badly, or TLS with the wrong name.

Rules:
  * Raw servers send frames that are written here byte by byte: GOAWAY, RST_STREAM, a window that never opens.
  * Whatever a server does, what comes out is a RemoteError of the kind that docs/remote.md names, within the deadline.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent import futures

import numpy as np
import pytest
from model_servers import HostileServer, certificate, mean_model
from services import free_port, until

from retailinfer.errors import ConfigError, RemoteError
from retailinfer.resilience.remote import Backend, Cancel
from retailinfer.resilience.remote.endpoint import parse_url

pytestmark = pytest.mark.requires("grpc")

ROWS = np.array([[0.1, -2.5, 3.0, 1e-7], [4.0, 5.0, -6.0, 0.25]], np.float32)
SCORES = mean_model({"features": ROWS})["score"]
SLACK_S = 1.0
MADE: list = []


@pytest.fixture(autouse=True)
def closed():
    """Channels are closed when a test is over."""
    yield
    while MADE:
        MADE.pop().close()


def backend(url: str, model: str = "fraud", **settings):
    """A back end over gRPC."""
    from retailinfer.resilience.remote.grpc import GrpcBackend

    MADE.append(GrpcBackend(parse_url(url), model=model, **settings))
    return MADE[-1]


def ask(one, *, timeout_s: float = 5.0, rows: np.ndarray = ROWS, **more):
    """The scores of two rows."""
    return one.infer({"features": rows}, ["score"], timeout_s=timeout_s, **more)["score"]


def kind_of(one, *, timeout_s: float = 5.0, **more) -> str:
    """The kind of error that a call ends in, in time."""
    begin_s = time.monotonic()
    with pytest.raises(RemoteError) as caught:
        ask(one, timeout_s=timeout_s, **more)
    assert time.monotonic() - begin_s < timeout_s + SLACK_S
    return caught.value.kind


# --- MLServer ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [None, "1", "2"])
def test_scores_are_those_of_the_model(mlserver, version):
    """Raw bytes both ways: the same bits."""
    one = backend(mlserver.grpc_url, version=version)
    assert isinstance(one, Backend)
    for _ in range(3):
        np.testing.assert_array_equal(ask(one).view(np.uint32), SCORES.view(np.uint32))


def test_metadata_is_what_the_model_declares(mlserver):
    """Names, types and shapes."""
    found = backend(mlserver.grpc_url).metadata(timeout_s=5)
    assert found.inputs == (("features", "FP32", (-1, 4)),)
    assert found.outputs == (("score", "FP32", (-1, 1)),)


def test_errors_are_typed(mlserver):
    """No such model is our mistake; nobody there, or no such name, is nobody's answer."""
    assert kind_of(backend(mlserver.grpc_url, "missing")) == "rejected"
    assert kind_of(backend(f"grpc://127.0.0.1:{free_port()}")) == "connect"
    assert kind_of(backend("grpc://no-such-host.invalid:8001"), timeout_s=20) == "connect"
    assert kind_of(backend(mlserver.grpc_url), timeout_s=1e-9) == "timeout"


def test_server_that_hangs_dies_and_returns(own_mlserver):
    """Paused: a timeout. Killed: nobody there. Started again on its port: found within seconds."""
    one = backend(own_mlserver.grpc_url)
    ask(one)
    own_mlserver.pause()
    assert kind_of(one, timeout_s=0.3) == "timeout"
    own_mlserver.resume()
    ask(one)
    own_mlserver.kill()
    assert kind_of(one) in ("connect", "unavailable", "reset")
    own_mlserver.start()

    def answers() -> bool:
        try:
            return bool((ask(one, timeout_s=1) == SCORES).all())
        except RemoteError:
            return False

    until(answers, what="the channel to find the server")


def test_many_threads_share_one_channel(mlserver):
    """Scores do not mix."""
    one, wrong = backend(mlserver.grpc_url), []

    def work(seed: int) -> None:
        chance = np.random.default_rng(seed)
        for _ in range(25):
            rows = chance.normal(size=(3, 4)).astype(np.float32)
            if not np.array_equal(ask(one, rows=rows), mean_model({"features": rows})["score"]):
                wrong.append(rows)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- hostile servers --------------------------------------------------------------------------------------------------


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    """One frame of HTTP/2."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


SETTINGS = frame(4)
NO_WINDOW = frame(
    4, struct.pack(">HI", 4, 0)
)  # SETTINGS_INITIAL_WINDOW_SIZE = 0: nothing of a body may be sent
ACK = frame(4, flags=1)


def speaks(*frames: bytes, first: bytes = SETTINGS + ACK, then_wait: bool = True):
    """A server that says this once it has seen a request."""

    def behave(sock: socket.socket, _: bytes, stop: threading.Event) -> None:
        sock.sendall(first)
        data = b""
        while b"\x01\x04\x00\x00\x00\x01" not in data:  # HEADERS, END_HEADERS, stream 1
            more = sock.recv(65536)
            if not more:
                return
            data += more
        for one in frames:
            sock.sendall(one)
        if then_wait:
            stop.wait(5)

    return behave


def silent(sock: socket.socket, _: bytes, stop: threading.Event) -> None:
    """A server that takes the connection and says nothing."""
    stop.wait(5)


# HPACK, literal fields without indexing: what a plain answer of gRPC consists of.
def headers(*fields: tuple[str, str]) -> bytes:
    """A header block."""
    return b"".join(
        b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields
    )


OK = frame(1, headers((":status", "200"), ("content-type", "application/grpc")), flags=4, stream=1)
HTML = frame(1, headers((":status", "200"), ("content-type", "text/html")), flags=4, stream=1)
FOUND = frame(1, headers((":status", "302"), ("location", "http://169.254.169.254/")), flags=5, stream=1)
END = frame(1, headers(("grpc-status", "0")), flags=5, stream=1)


def message(body: bytes, length: int | None = None) -> bytes:
    """A message of gRPC in a DATA frame."""
    return frame(0, struct.pack(">BI", 0, len(body) if length is None else length) + body, stream=1)


LONG = headers(("x" * 100, "y" * 100)) * 80
MANY = frame(1, LONG, stream=1)  # no END_HEADERS: CONTINUATION frames follow

HOSTILE = {
    "GOAWAY": (speaks(frame(7, struct.pack(">II", 0, 0)), then_wait=False), {"unavailable", "reset", "connect"}),
    "GOAWAY with an error": (speaks(frame(7, struct.pack(">II", 0, 11) + b"enough")), {"unavailable", "overloaded"}),
    "RST_STREAM": (speaks(frame(3, struct.pack(">I", 2), stream=1)), {"server", "reset", "unavailable"}),
    "RST_STREAM refused": (speaks(frame(3, struct.pack(">I", 7), stream=1)), {"unavailable"}),
    "RST_STREAM in the body": (
        speaks(OK, message(b"123", 99), frame(3, struct.pack(">I", 2), stream=1)),
        {"server", "reset", "unavailable"},
    ),
    "stuck window": (speaks(first=NO_WINDOW + ACK), {"timeout"}),
    "silence": (silent, {"timeout", "connect"}),
    "silence after the settings": (speaks(), {"timeout"}),
    "half a message": (speaks(OK, message(b"123", 99)), {"timeout"}),
    "end in a message": (speaks(OK, message(b"123", 99), END), {"truncated"}),
    "connection ends": (speaks(OK, message(b"123", 99), then_wait=False), {"unavailable", "reset"}),
    "2 GB announced": (speaks(OK, message(b"", 2 << 30)), {"too_large"}),
    "empty message": (speaks(OK, message(b""), END), {"ok"}),
    "garbage message": (speaks(OK, message(b"\xff" * 40), END), {"malformed"}),
    "HTML": (speaks(HTML, message(b"<html>"), END), {"server", "malformed", "ok"}),
    "redirect": (speaks(FOUND), {"server", "unavailable"}),
    "no HTTP/2": (speaks(first=b"HTTP/1.1 400 Bad Request\r\n\r\n", then_wait=False), {"unavailable", "connect", "timeout"}),
    "garbage": (speaks(first=bytes(range(256)) * 8, then_wait=False), {"unavailable", "connect", "timeout"}),
    "endless headers": (speaks(MANY, *[frame(9, LONG, stream=1)] * 60), {"server", "overloaded", "unavailable", "reset"}),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_c58_hostile_server_gives_a_typed_error_in_time(name):
    """GOAWAY, RST_STREAM, a stuck window, silence, garbage: a RemoteError, within the deadline and the cap."""
    behave, kinds = HOSTILE[name]
    with HostileServer(behave, reads=False) as server:
        one = backend(f"grpc://127.0.0.1:{server.port}", max_reply_bytes=1_000_000)
        begin_s, kind = time.monotonic(), "ok"
        try:
            got = one.infer({"features": ROWS}, ["score"], timeout_s=1.0)
            assert (
                got == {}
            )  # a message without outputs is well formed: what is missing is seen by whoever asked
        except RemoteError as exc:
            kind = exc.kind
        assert kind in kinds
        assert time.monotonic() - begin_s < 1.0 + SLACK_S


class Answers:
    """A server of grpcio itself that answers ModelInfer by a function of (bytes, context)."""

    def __init__(self, function, credentials=None) -> None:
        import grpc

        handler = grpc.unary_unary_rpc_method_handler(function)
        service = grpc.method_handlers_generic_handler(
            "inference.GRPCInferenceService", {"ModelInfer": handler}
        )
        self.server = grpc.server(
            futures.ThreadPoolExecutor(4), options=[("grpc.max_send_message_length", -1)]
        )
        self.server.add_generic_rpc_handlers((service,))
        if credentials is None:
            self.port = self.server.add_insecure_port("127.0.0.1:0")
        else:
            self.port = self.server.add_secure_port("127.0.0.1:0", credentials)

    def __enter__(self):
        self.server.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.server.stop(0).wait()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("INVALID_ARGUMENT", "rejected"),
        ("UNAUTHENTICATED", "rejected"),
        ("UNAVAILABLE", "unavailable"),
        ("RESOURCE_EXHAUSTED", "overloaded"),
        ("INTERNAL", "server"),
        ("UNKNOWN", "server"),
        ("DATA_LOSS", "server"),
        ("CANCELLED", "reset"),
        ("DEADLINE_EXCEEDED", "timeout"),
    ],
)
def test_status_says_whose_fault_it_was(code, kind):
    """INVALID_ARGUMENT and RESOURCE_EXHAUSTED are not the same thing; pushback is read; nothing said is repeated."""
    import grpc

    def refuses(body, context):
        context.set_trailing_metadata([("grpc-retry-pushback-ms", "250")])
        context.abort(getattr(grpc.StatusCode, code), "planted-secret")

    with Answers(refuses) as server, pytest.raises(RemoteError) as caught:
        ask(backend(f"grpc://127.0.0.1:{server.port}"))
    assert caught.value.kind == kind
    assert caught.value.retry_after_s == 0.25
    assert "planted-secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_metadata_of_the_call_and_the_cap_on_replies():
    """A token is sent; a reply above the cap is refused."""
    seen = {}

    def answers(body, context):
        seen.update(context.invocation_metadata())
        return bytes(3_000_000)

    with Answers(answers) as server:
        url = f"grpc://me:pass@127.0.0.1:{server.port}"
        one = backend(url, headers={"X-Token": "t"}, max_reply_bytes=1_000_000)
        assert kind_of(one) == "too_large"
        assert (seen["x-token"], seen["authorization"]) == ("t", "Basic bWU6cGFzcw==")


def test_nan_is_sent():
    """Unlike JSON, raw bytes carry it."""
    seen = []
    with Answers(lambda body, context: seen.append(body) or b"") as server:
        rows = np.array([[np.nan, 1, 2, 3]], np.float32)
        backend(f"grpc://127.0.0.1:{server.port}").infer({"features": rows}, [], timeout_s=5)
    assert seen[0].endswith(rows.tobytes())


def test_call_that_is_cancelled_ends_at_once():
    """Another thread ends it."""
    with HostileServer(speaks(), reads=False) as server:
        one, cancel = backend(f"grpc://127.0.0.1:{server.port}"), Cancel()
        threading.Timer(0.2, cancel.set).start()
        begin_s = time.monotonic()
        assert kind_of(one, timeout_s=10, cancel=cancel) == "cancelled"
        assert time.monotonic() - begin_s < 3


def test_c58_tls_is_verified_and_never_downgraded(tmp_path):
    """A trusted certificate works; an unknown, an expired, one of another name, none at all do not."""
    import grpc

    def secured(cert):
        return grpc.ssl_server_credentials([((cert.parent / "key.pem").read_bytes(), cert.read_bytes())])

    asked = []

    def answers(body, context):
        asked.append(body)
        return b""

    good, _ = certificate(tmp_path, "127.0.0.1")
    with Answers(answers, secured(good)) as server:
        url = f"grpcs://127.0.0.1:{server.port}"
        assert backend(url, ca_certs=str(good)).infer({"features": ROWS}, [], timeout_s=5) == {}
        assert kind_of(backend(url)) == "tls"
        assert len(asked) == 1
    for name, expired in (("another.example", False), ("127.0.0.1", True)):
        cert, _ = certificate(tmp_path, name, expired=expired)
        with Answers(answers, secured(cert)) as server:
            assert kind_of(backend(f"grpcs://127.0.0.1:{server.port}", ca_certs=str(cert))) == "tls"
    with Answers(answers) as server:
        assert kind_of(backend(f"grpcs://127.0.0.1:{server.port}", ca_certs=str(good))) in (
            "tls",
            "unavailable",
            "connect",
        )
    assert len(asked) == 1
    with pytest.raises(ConfigError, match="certificates that can be read"):
        backend("grpcs://models:1", ca_certs=str(tmp_path / "missing"))


# --- forks ------------------------------------------------------------------------------------------------------------

FORKS = """
import os, sys
import numpy as np
from retailinfer.errors import RemoteError
from retailinfer.resilience.remote.endpoint import parse_url
from retailinfer.resilience.remote.grpc import GrpcBackend

url, first = sys.argv[1:]
one = GrpcBackend(parse_url(url), model="fraud")
rows = np.zeros((2, 4), np.float32)
ask = lambda: float(one.infer({"features": rows}, ["score"], timeout_s=10)["score"][0, 0])
if first == "parent":
    ask()
for _ in range(10):
    pid = os.fork()
    if pid == 0:
        one.begin_in_child()
        try:
            said = f"{ask()}"
        except RemoteError as exc:
            said = exc.kind
        print(said, flush=True)
        one.close()
        sys.exit(7)  # with everything that the interpreter does at its end
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
if first == "parent":
    print("parent", ask())
    one.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="platform: no fork")
@pytest.mark.parametrize(
    ("first", "support", "says"),
    [
        ("child", "", ["0.5"] * 10),
        ("parent", "", ["forked"] * 10 + ["parent 0.5"]),
        ("parent", "1", ["0.5"] * 10 + ["parent 0.5"]),
    ],
)
def test_channels_are_made_after_the_fork(mlserver, first, support, says):
    """Children of a parent that never called work; of one that did they say so, at once, and end; or work, if gRPC is told."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    if support:
        environment["GRPC_ENABLE_FORK_SUPPORT"] = support
    done = subprocess.run(
        [sys.executable, "-c", FORKS, mlserver.grpc_url, first],
        capture_output=True, text=True, check=False, timeout=60, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:-1] == says
