"""One model server over HTTP: a good one, and those of acceptance case 57 and 58 that do everything else.

Rules:
  * Every call has a deadline; that nothing takes longer is measured around it, with a second for a busy machine.
  * Whatever a server does, what comes out is a RemoteError of the kind that docs/remote.md names, and the next call works.
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import socket
import struct
import threading
import time
import traceback

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_servers import HostileServer, OipServer, certificate, mean_model
from processes import run_script
from services import Proxy, free_port

from retailinfer.errors import ConfigError, RemoteError
from retailinfer.resilience.outcome import KINDS
from retailinfer.resilience.remote import Backend, Cancel
from retailinfer.resilience.remote.endpoint import parse_url

pytestmark = pytest.mark.requires("urllib3")

ROWS = np.array([[0.1, -2.5, 3.0, 1e-7], [4.0, 5.0, -6.0, 0.25]], np.float32)
SCORES = mean_model({"features": ROWS})["score"]
SLACK_S = 1.0


MADE: list = []


@pytest.fixture(autouse=True)
def closed():
    """What a test made is closed when it is over, whatever tracebacks still hold it."""
    yield
    while MADE:
        MADE.pop().close()


def backend(url: str, **settings):
    """A back end for the model `fraud`."""
    from retailinfer.resilience.remote.http import HttpBackend

    MADE.append(HttpBackend(parse_url(url), model="fraud", **settings))
    return MADE[-1]


def ask(one, *, timeout_s: float = 5.0, rows: np.ndarray = ROWS, **more):
    """The scores of two rows."""
    return one.infer({"features": rows}, ["score"], timeout_s=timeout_s, **more)["score"]


def kind_of(one, *, timeout_s: float = 5.0, rows: np.ndarray = ROWS) -> str:
    """The kind of error that a call ends in, in time."""
    begin_s = time.monotonic()
    with pytest.raises(RemoteError) as caught:
        ask(one, timeout_s=timeout_s, rows=rows)
    assert time.monotonic() - begin_s < timeout_s + SLACK_S
    return caught.value.kind


# --- a good server ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("flat", [True, False])
def test_scores_are_the_models_own_to_the_bit(binary, flat):
    """With the binary extension, without it, with flat and with nested lists; on one connection."""
    with OipServer(binary=binary, flat=flat) as server:
        one = backend(server.url)
        assert isinstance(one, Backend)
        for _ in range(3):
            np.testing.assert_array_equal(ask(one).view(np.uint32), SCORES.view(np.uint32))
        assert one.connections == 1
        paths = [path for path, _, _ in server.asked]
        assert paths == ["/v2"] + ["/v2/models/fraud/infer"] * 3
        assert ("Inference-Header-Content-Length" in server.asked[1][1]) is binary


@pytest.mark.parametrize("binary", [True, False])
def test_every_type_of_number_comes_back_as_it_was_sent(binary):
    """Booleans, all integers at their bounds, three floats."""
    names = [
        "bool",
        *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)),
        "float16",
        "float32",
        "float64",
    ]
    sent = {}
    for name in names:
        dtype = np.dtype(name)
        if dtype.kind == "b":
            values = [False, True]
        elif dtype.kind == "f":
            values = [np.finfo(dtype).max, -np.finfo(dtype).tiny]
        else:
            values = [np.iinfo(dtype).min, np.iinfo(dtype).max]
        sent[name] = np.array([values], dtype)
    with OipServer(lambda inputs: inputs, binary=binary) as server:
        got = backend(server.url).infer(sent, names, timeout_s=5)
    for name in names:
        assert got[name].dtype == sent[name].dtype
        np.testing.assert_array_equal(got[name], sent[name])


def test_nan_goes_through_bytes_and_not_through_json():
    """Trees use NaN as an input; JSON has none, so it is not sent there, and the server is not blamed."""
    rows = np.array([[np.nan, 1, 2, 3]], np.float32)
    echo = {"seen": 0.0}

    def model(inputs):
        echo["seen"] = inputs["features"][0, 0]
        return {"score": np.zeros((1, 1), np.float32)}

    with OipServer(model) as server:
        ask(backend(server.url), rows=rows)
        assert np.isnan(echo["seen"])
    with OipServer(model, binary=False) as server:
        assert kind_of(backend(server.url), rows=rows) == "unsendable"
        assert server.n_inferred == 0


def test_big_endian_and_strided_inputs_are_sent_as_what_they_mean():
    """Any layout of an array gives the bytes of the plain one."""
    wide = np.zeros((2, 8), ">f4")
    wide[:, ::2] = ROWS
    with OipServer() as server:
        np.testing.assert_array_equal(ask(backend(server.url), rows=wide[:, ::2]), SCORES)


def test_version_credentials_and_headers_are_sent_and_shown_nowhere():
    """`user:password@` becomes a header; neither it nor a token is in a message, a repr or a traceback."""
    with OipServer() as server:
        url = server.url.replace("://", "://someone:s3cret@")
        one = backend(url + "/", version="3", headers={"X-Token": "t0ken"})
        ask(one)
        path, headers, _ = server.asked[-1]
        assert path == "/v2/models/fraud/versions/3/infer"
        assert headers["Authorization"] == "Basic c29tZW9uZTpzM2NyZXQ="
        assert headers["X-Token"] == "t0ken"
        server.refuse = (500, {})
        with pytest.raises(RemoteError) as caught:
            ask(one)
        shown = "".join(traceback.format_exception(caught.value)) + repr(one) + repr(parse_url(url))
        assert "s3cret" not in shown
        assert "t0ken" not in shown


@pytest.mark.parametrize("binary", [True, False])
def test_server_that_knows_of_timeouts_is_told_the_time_left(binary):
    """Triton's schedule_policy: nine tenths of what is left, in microseconds; others are told nothing."""
    for extensions, told in ((("schedule_policy",), True), ((), False)):
        with OipServer(binary=binary, extensions=extensions) as server:
            ask(backend(server.url), timeout_s=2.0)
            _, headers, body = server.asked[-1]
            head = json.loads(body[: int(headers.get("Inference-Header-Content-Length", len(body)))])
            assert ("parameters" in head) is told
            assert not told or 1_000_000 < head["parameters"]["timeout"] <= 1_800_000


def test_proxies_of_the_environment_are_not_used(monkeypatch):
    """A model server is named by its URL alone."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with OipServer() as server:
        ask(backend(server.url))


def test_connection_that_the_server_closed_is_not_used_again():
    """A server that was started anew is found again without an error."""
    with OipServer() as server:
        one = backend(server.url)
        ask(one)
        relay = Proxy(server.port)
        with relay:
            via = backend(f"http://127.0.0.1:{relay.port}")
            ask(via)
            assert via.n_idle == 1
            relay.cut()
            until_closed(via)
            ask(via)
            assert via.connections == 2


def until_closed(one) -> None:
    """Wait for the other side's end of connection to arrive."""
    from urllib3.util.wait import wait_for_read

    assert wait_for_read(one._idle[0].sock, timeout=5)


def test_many_threads_share_one_backend():
    """Each call has a connection of its own; all scores are right, and connections are kept."""
    wrong: list[object] = []
    with OipServer() as server:
        one = backend(server.url)

        def work(seed: int) -> None:
            chance = np.random.default_rng(seed)
            for _ in range(25):
                rows = chance.normal(size=(3, 4)).astype(np.float32)
                got = ask(one, rows=rows)
                if not np.array_equal(got, mean_model({"features": rows})["score"]):
                    wrong.append(got)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert one.connections <= 8
        assert one.n_idle == one.connections


def test_metadata_is_read():
    """Names, types and shapes of the model."""
    with OipServer() as server:
        found = backend(server.url).metadata(timeout_s=5)
    assert found.inputs == (("features", "FP32", (-1, 4)),)
    assert found.outputs == (("score", "FP32", (-1, 1)),)


@pytest.mark.parametrize(
    ("status", "headers", "kind", "wait_s"),
    [
        (400, {}, "rejected", None),
        (404, {}, "rejected", None),
        (422, {}, "rejected", None),
        (429, {}, "overloaded", None),
        (429, {"Retry-After": "2"}, "overloaded", 2.0),
        (429, {"Retry-After": "Wed, 21 Oct 2037 07:28:00 GMT"}, "overloaded", None),
        (429, {"Retry-After": "\xb2"}, "overloaded", None),
        (500, {}, "server", None),
        (502, {}, "server", None),
        (503, {"Retry-After": "1"}, "unavailable", 1.0),
        (204, {}, "malformed", None),
        (301, {"Location": "http://169.254.169.254/latest/meta-data"}, "redirect", None),
        (307, {"Location": "http://127.0.0.1:1/"}, "redirect", None),
        (308, {"Location": "file:///etc/passwd"}, "redirect", None),
    ],
)
def test_status_says_whose_fault_it_was(status, headers, kind, wait_s):
    """c57: also redirects to the metadata service of a cloud: refused, and nobody is asked."""
    with OipServer() as server:
        one = backend(server.url)
        ask(one)
        server.refuse = (status, headers)
        with pytest.raises(RemoteError) as caught:
            ask(one)
        assert (caught.value.kind, caught.value.retry_after_s) == (kind, wait_s)
        server.refuse = None
        np.testing.assert_array_equal(ask(one), SCORES)


# --- hostile servers --------------------------------------------------------------------------------------------------


def http(body: bytes, *, head: str = "HTTP/1.1 200 OK", length: int | None = None, more: str = "") -> bytes:
    """An answer as bytes."""
    return (
        f"{head}\r\nContent-Length: {len(body) if length is None else length}\r\n{more}\r\n".encode() + body
    )


def reply(**changes) -> bytes:
    """A reply with two scores, but for what is changed in its output."""
    output = {"name": "score", "datatype": "FP32", "shape": [2, 1], "data": [0.25, 0.75]} | changes
    return json.dumps({"model_name": "fraud", "outputs": [output]}).encode()


def says(answer: bytes):
    """A server that says this to everything, and nothing more."""

    def behave(sock: socket.socket, request: bytes, stop: threading.Event) -> None:
        sock.sendall(answer)
        stop.wait(5)

    return behave


def drip(piece: bytes, first: bytes = b""):
    """A server that sends a piece again and again, every 20 ms, for ever."""

    def behave(sock: socket.socket, request: bytes, stop: threading.Event) -> None:
        sock.sendall(first)
        while not stop.wait(0.02):
            sock.sendall(piece)

    return behave


def silent(sock: socket.socket, request: bytes, stop: threading.Event) -> None:
    """A server that never answers."""
    stop.wait(5)


def reset(first: bytes):
    """A server that sends something and then resets the connection."""

    def behave(sock: socket.socket, request: bytes, stop: threading.Event) -> None:
        sock.sendall(first)
        stop.wait(0.05)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()

    return behave


def ends(first: bytes):
    """A server that sends something and then ends."""

    def behave(sock: socket.socket, request: bytes, stop: threading.Event) -> None:
        sock.sendall(first)
        sock.shutdown(socket.SHUT_RDWR)

    return behave


def floods(first: bytes, piece: bytes):
    """A server that sends without end, as fast as it is read."""

    def behave(sock: socket.socket, request: bytes, stop: threading.Event) -> None:
        sock.sendall(first)
        while not stop.is_set():
            sock.sendall(piece)

    return behave


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
BOMB = gzip.compress(b"[" + b"0," * 5_000_000)
HOSTILE = {
    "slow headers": (drip(b"X"), "timeout"),
    "slow header lines": (drip(b"X: y\r\n", b"HTTP/1.1 200 OK\r\n"), "timeout"),
    "one byte at a time": (drip(b" ", b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n"), "timeout"),
    "one chunk at a time": (drip(b"1\r\n \r\n", CHUNKED), "timeout"),
    "endless continue": (drip(b"HTTP/1.1 100 Continue\r\n\r\n"), "timeout"),
    "silence": (silent, "timeout"),
    "half a body and silence": (says(http(reply(), length=len(reply()) + 9)), "timeout"),
    "reset before the answer": (reset(b""), "reset"),
    "reset in the body": (reset(http(reply()[:9], length=len(reply()))), "truncated"),
    "end before the answer": (ends(b""), "reset"),
    "end in the status": (ends(b"HTTP/1.1 2"), "malformed"),
    "end in the headers": (ends(b"HTTP/1.1 200 OK\r\nX: "), "malformed"),
    "end in the body": (ends(http(reply()[:9], length=len(reply()))), "truncated"),
    "end in a chunk": (ends(CHUNKED + b"ff\r\n{"), "truncated"),
    "end without a length": (ends(b"HTTP/1.1 200 OK\r\n\r\n" + reply()[:-9]), "malformed"),
    "chunk of no size": (says(CHUNKED + b"zz\r\n"), "truncated"),
    "2 GB announced": (says(http(b"{", length=2 << 30)), "too_large"),
    "more than announced": (floods(http(b"", length=900_000), b" " * 65536), "malformed"),
    "endless chunks": (floods(CHUNKED, b"10000\r\n" + b" " * 65536 + b"\r\n"), "too_large"),
    "endless body": (floods(b"HTTP/1.1 200 OK\r\n\r\n", b" " * 65536), "too_large"),
    "endless header": (floods(b"HTTP/1.1 200 OK\r\nX: ", b"y" * 65536), "malformed"),
    "ten thousand headers": (floods(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 1000), "malformed"),
    "HTML": (
        says(http(b"<html><body>It works!</body></html>", more="Content-Type: text/html\r\n")),
        "malformed",
    ),
    "no HTTP": (ends(b"SSH-2.0-OpenSSH_9.6\r\n"), "malformed"),
    "garbage": (ends(bytes(range(256)) * 4), "malformed"),
    "empty": (says(http(b"")), "malformed"),
    "null": (says(http(b"null")), "malformed"),
    "no UTF-8": (says(http(b'{"outputs": "\xff"}')), "malformed"),
    "depth": (says(http(b"[" * 200_000)), "malformed"),
    "depth in data": (says(http(reply().replace(b"[0.25, 0.75]", b"[" * 990 + b"]" * 990))), "malformed"),
    "quotes without end": (says(http(b'"' + b'\\"' * 300_000)), "malformed"),
    "compressed": (says(http(BOMB, more="Content-Encoding: gzip\r\n")), "malformed"),
    "NaN": (says(http(reply().replace(b"0.25", b"NaN"))), "malformed"),
    "null for a number": (says(http(reply(data=[None, 0.5]))), "malformed"),
    "infinity": (says(http(reply().replace(b"0.25", b"1e999"))), "malformed"),
    "too large for its type": (says(http(reply(data=[1e300, 0.5]))), "malformed"),
    "integer too large": (says(http(reply(datatype="INT8", data=[300, 1]))), "malformed"),
    "text for a number": (says(http(reply(data=["0.5", "0.5"]))), "malformed"),
    "fewer than declared": (says(http(reply(data=[0.5]))), "malformed"),
    "more than declared": (says(http(reply(data=[0.5] * 3))), "malformed"),
    "nested otherwise": (says(http(reply(data=[[0.25, 0.75]]))), "malformed"),
    "negative shape": (says(http(reply(shape=[-2, -1]))), "malformed"),
    "huge shape": (says(http(reply(shape=[1 << 62, 4]))), "malformed"),
    "fractional shape": (says(http(reply(shape=[2.5, 1]))), "malformed"),
    "many dimensions": (says(http(reply(shape=[1] * 65))), "malformed"),
    "bytes": (says(http(reply(datatype="BYTES", data=["a", "b"]))), "malformed"),
    "unknown type": (says(http(reply(datatype="FP8"))), "malformed"),
    "twice the same": (
        says(http(reply().replace(b'"outputs": [', b'"outputs": [' + reply()[37:-2] + b", "))),
        "malformed",
    ),
    "header longer than the body": (
        says(http(reply(), more="Inference-Header-Content-Length: 99999\r\n")),
        "malformed",
    ),
    "header of no size": (says(http(reply(), more="Inference-Header-Content-Length: -1\r\n")), "malformed"),
    "bytes that are not there": (
        says(
            http(
                reply(parameters={"binary_data_size": 8}),
                more=f"Inference-Header-Content-Length: {len(reply())}\r\n",
            )
        ),
        "malformed",
    ),
    "bytes after the end": (
        says(http(reply() + b"12345", more=f"Inference-Header-Content-Length: {len(reply())}\r\n")),
        "malformed",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_c57_hostile_server_gives_a_typed_error_in_time(name, caplog):
    """Slow, truncated, huge, malformed, reset: a RemoteError of its kind, within deadline and cap; nothing is logged."""
    behave, kind = HOSTILE[name]
    caplog.set_level(logging.ERROR)
    timeout_s = 0.4 if kind == "timeout" else 10.0
    with HostileServer(behave) as server:
        one = backend(server.url, binary=False, max_reply_bytes=1_000_000)
        assert kind_of(one, timeout_s=timeout_s) == kind
        assert kind == "malformed" or one.n_idle == 0
    assert caplog.records == []


@given(
    raw=st.binary(max_size=300) | st.just(b""),
    flips=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=5),
    cut=st.integers(0, 300),
    chunked=st.booleans(),
)
def test_c57_whatever_a_server_sends_is_read_or_refused(any_server, raw, flips, cut, chunked):
    """Any bytes, or a good answer with some bytes changed, cut anywhere: scores, or a RemoteError of a known kind."""
    if not raw:
        body = reply()
        whole = CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else http(body)
        damaged = bytearray(whole)
        for at, value in flips:
            damaged[at % len(damaged)] = value
        raw = bytes(damaged[: len(damaged) - cut % len(damaged)])
    any_server.answer = raw
    one, kind = backend(any_server.url, binary=False), "failed"
    try:
        assert ask(one).dtype.kind in "fiub"
    except RemoteError as exc:
        kind = exc.kind
    except KeyError:  # an output of another name: seen by whoever asked
        pass
    assert kind in KINDS
    one.close()


@pytest.fixture(scope="module")
def any_server():
    """A server that says `answer` to everything, and ends the connection."""

    def behave(sock: socket.socket, request: bytes, stop: threading.Event) -> None:
        sock.sendall(server.answer)
        sock.shutdown(socket.SHUT_WR)

    with HostileServer(behave) as server:
        yield server


def test_c57_connection_refused_and_names_that_do_not_exist():
    """Nobody listens; nobody has the name: kind "connect"."""
    assert kind_of(backend(f"http://127.0.0.1:{free_port()}")) == "connect"
    assert kind_of(backend("http://no-such-host.invalid:8080"), timeout_s=20.0) == "connect"


def test_c57_black_hole_takes_no_longer_than_it_may():
    """A port that takes no more connections, as one behind a firewall that drops SYN: kind "connect" in time."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = []
        for _ in range(4):  # what the kernel accepts for it
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
            waiting.append(sock)
        assert kind_of(backend(f"http://127.0.0.1:{full.getsockname()[1]}"), timeout_s=0.4) == "connect"
        for sock in waiting:
            sock.close()


def test_c57_body_of_two_gigabytes_costs_no_memory():
    """Nothing is set aside for what is announced, and what comes is dropped at the cap."""
    import resource

    with HostileServer(floods(b"HTTP/1.1 200 OK\r\n\r\n", b" " * (1 << 20))) as server:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert (
            kind_of(backend(server.url, binary=False, max_reply_bytes=4 << 20), timeout_s=20) == "too_large"
        )
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_request_that_is_not_read_ends_in_time():
    """A server that takes the connection and reads nothing cannot hold a large request up."""
    with HostileServer(silent, reads=False) as server:
        rows = np.zeros((1_000_000, 4), np.float32)
        one = backend(server.url, binary=True)
        assert kind_of(one, timeout_s=0.4, rows=rows) == "timeout"


def test_c57_wrong_shape_wrong_type_and_nan_are_found_in_well_formed_replies():
    """Well-formed replies that are not what was agreed: other rows, names, types, NaN."""
    from retailinfer.resilience.remote.tensors import TensorSpec, check_reply

    good = {"score": np.zeros((2, 1), np.float32)}
    assert check_reply(good, ["score"], n_rows=2)["score"].shape == (2, 1)
    declared = {"score": TensorSpec("score", "FP32", (-1, 1))}
    check_reply(good, ["score"], n_rows=2, declared=declared)
    wrong = [
        ({"other": good["score"]}, "mismatch"),
        ({"score": np.zeros((3, 1), np.float32)}, "mismatch"),
        ({"score": np.float32(1)}, "mismatch"),
        ({"score": np.array(["a", "b"])}, "mismatch"),
        ({"score": np.zeros((2, 2), np.float32)}, "mismatch"),
        ({"score": np.zeros((2, 1))}, "mismatch"),
        ({"score": [0.1, 0.2]}, "mismatch"),
        ([0.1], "mismatch"),
        ({"score": np.array([[0.5], [np.nan]], np.float32)}, "not_finite"),
        ({"score": np.array([[0.5], [np.inf]], np.float32)}, "not_finite"),
    ]
    for made, kind in wrong:
        with pytest.raises(RemoteError) as caught:
            check_reply(made, ["score"], n_rows=2, declared=declared)
        assert caught.value.kind == kind


# --- TLS --------------------------------------------------------------------------------------------------------------


def test_c58_tls_is_verified_and_never_downgraded(tmp_path):
    """A trusted certificate of this name works; an unknown, an expired, one of another name, none at all: kind "tls"."""
    cert, context = certificate(tmp_path, "127.0.0.1")
    with OipServer(tls=context) as server:
        one = backend(server.url, ca_certs=str(cert))
        for _ in range(2):
            np.testing.assert_array_equal(ask(one), SCORES)
        assert one.connections == 1
        assert kind_of(backend(server.url)) == "tls"  # nobody trusts it
        with pytest.raises(ConfigError, match="certificates that can be read"):
            backend(server.url, ca_certs=str(tmp_path / "missing.pem"))
    for name, expired in (("another.example", False), ("127.0.0.1", True)):
        cert, context = certificate(tmp_path, name, expired=expired)
        with OipServer(tls=context) as server:
            assert kind_of(backend(server.url, ca_certs=str(cert))) == "tls"
            assert server.asked == []
    with OipServer() as server:  # speaks no TLS
        plain = backend(server.url.replace("http:", "https:"), ca_certs=str(cert))
        assert kind_of(plain) == "tls"
        assert server.asked == []


def test_c58_old_tls_is_refused(tmp_path):
    """A server that has nothing newer than TLS 1.1 is not spoken to."""
    import ssl
    import warnings

    cert, context = certificate(tmp_path, "127.0.0.1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with OipServer(tls=context) as server:
        assert kind_of(backend(server.url, ca_certs=str(cert))) == "tls"


def test_c57_slow_tls_ends_in_time(tmp_path):
    """A handshake that never comes, and a body over TLS that comes one byte at a time."""
    cert, context = certificate(tmp_path, "127.0.0.1")
    with HostileServer(silent, reads=False) as server:
        one = backend(server.url.replace("http:", "https:"), ca_certs=str(cert))
        assert kind_of(one, timeout_s=0.4) == "connect"
    with HostileServer(drip(b" ", b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n"), tls=context) as server:
        assert kind_of(backend(server.url, ca_certs=str(cert), binary=False), timeout_s=0.4) == "timeout"
    with HostileServer(floods(b"HTTP/1.1 200 OK\r\n\r\n", b" " * 65536), tls=context) as server:
        one = backend(server.url, ca_certs=str(cert), binary=False, max_reply_bytes=1_000_000)
        assert kind_of(one, timeout_s=10) == "too_large"


def test_c58_name_that_moves_to_a_link_local_address_is_refused(monkeypatch):
    """DNS rebinding towards the metadata service of a cloud ends before a connection is tried."""
    tried = []

    def resolve(host, port, **_):
        tried.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    begin_s = time.monotonic()
    assert kind_of(backend("http://models.example:80")) == "connect"
    assert time.monotonic() - begin_s < 1.0
    assert tried == ["models.example"]


def test_c58_look_up_that_hangs_takes_no_longer_than_it_may(monkeypatch):
    """A resolver knows no limits; the call does, and the next call finds what came meanwhile."""
    go_on = threading.Event()
    with OipServer() as server:

        def resolve(host, port, **_):
            go_on.wait(10)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        one = backend(f"http://models.example:{server.port}")
        assert kind_of(one, timeout_s=0.2) == "connect"
        go_on.set()
        np.testing.assert_array_equal(ask(one), SCORES)


# --- cancelling, forking ----------------------------------------------------------------------------------------------


def test_call_that_is_cancelled_ends_at_once():
    """Another thread ends it; its connection is not used again."""
    with HostileServer(silent) as server:
        one, cancel = backend(server.url, binary=False), Cancel()
        threading.Timer(0.1, cancel.set).start()
        begin_s = time.monotonic()
        with pytest.raises(RemoteError) as caught:
            ask(one, timeout_s=10, cancel=cancel)
        assert time.monotonic() - begin_s < 2
        assert caught.value.kind == "cancelled"
        assert one.n_idle == 0


FORKS = """
import os, sys
import numpy as np
from model_servers import mean_model
from retailinfer.resilience.remote.endpoint import parse_url
from retailinfer.resilience.remote.http import HttpBackend

URL, CA = os.environ["SERVER_URL"], os.environ["SERVER_CA"] or None
one = HttpBackend(parse_url(URL), model="fraud", ca_certs=CA)
rows = {"features": np.ones((2, 4), np.float32)}
want = mean_model(rows)["score"]
ask = lambda: np.array_equal(one.infer(rows, ["score"], timeout_s=10)["score"], want)
assert ask()
for _ in range(5):
    pid = os.fork()  # tells the back end nothing: it notices by itself
    if pid == 0:
        well = ask() and (one.connections, one.n_idle) == (2, 1)
        os._exit(0 if well else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert ask() and one.connections == 1
one.close()
print("well")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="platform: no fork")
@pytest.mark.parametrize("tls", [False, True])
def test_forked_child_opens_connections_of_its_own(tls, tmp_path):
    """The parent's connection goes on working, also over TLS, after the child has closed its copy and asked on its own."""
    cert, context = certificate(tmp_path, "127.0.0.1")
    with OipServer(tls=context if tls else None) as server:
        assert run_script(FORKS, SERVER_URL=server.url, SERVER_CA=str(cert) if tls else "") == "well"


@pytest.mark.parametrize(
    "url",
    [
        7, "", "models:8080", "ftp://models/", "http://", "http://:80", "http://models:0", "http://models:99999",
        "http://a b/", "http://models/?x=s3cret", "http://models/#s3cret", "grpc://models:1/path", "http://[::1",
        "http://me:s3cret@mod els/",
    ],
)  # fmt: skip
def test_urls_that_mean_nothing_are_refused_without_being_shown(url):
    """The message says what was expected; a URL may hold a password."""
    with pytest.raises(ConfigError, match="Expected the URL of a model server") as caught:
        parse_url(url)
    assert "s3cret" not in str(caught.value)
