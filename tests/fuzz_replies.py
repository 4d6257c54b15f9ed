"""Hostile answers of a model server, of MLflow, and hostile files of a decision log: read as meant, or refused in words.

    python tests/fuzz_replies.py http-reply --mutants 500 --seed 7       the same mutants every time; more in fuzzing.py

Rules:
  * Answers over HTTP come over a connection: status line, headers, chunks, body are the mutant's. Messages come as they are.
  * Whatever came is arrays in the machine's byte order, with finite numbers where they are floats, or a RemoteError.
  * A log whose files were made hostile is kept, read, erased in: rows that are none are left out, and nothing else is lost.
"""

from __future__ import annotations

import contextlib
import functools
import json
import random
import socket
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
from fuzzing import Target, bytes_mutant, cells_mutant, document_mutant, likely_mutant, main, number_mutant

__all__ = ["TARGETS"]


# ---- over a connection -----------------------------------------------------------------------------------------------------


class Server:
    """Answers each connection with the bytes that it was given last, and ends it."""

    def __init__(self) -> None:
        self.answer = b""
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                connection, _ = self.listener.accept()
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(self.answer)
                    connection.shutdown(socket.SHUT_WR)
                    connection.settimeout(0.02)  # the client may keep it while it opens the next one
                    while connection.recv(1 << 16):
                        pass


@functools.cache
def _connected():
    from retailinfer.resilience.remote.endpoint import parse_url
    from retailinfer.resilience.remote.http import HttpBackend

    server = Server()
    endpoint = parse_url(f"http://127.0.0.1:{server.port}")
    return server, HttpBackend(endpoint, model="fraud", binary=True, max_reply_bytes=1 << 20)


def _reply(data: bytes):
    server, backend = _connected()
    server.answer = data
    backend.close()  # what is idle has been ended by the server
    try:
        return _checked(backend.infer({"x": np.ones((1, 3), np.float32)}, ["y"], timeout_s=5.0))
    finally:
        backend.close()


# ---- messages --------------------------------------------------------------------------------------------------------------


def _message(data: bytes):
    """The body of a reply, whole JSON or JSON with bytes behind it; and the other things that a server says."""
    from retailinfer.errors import RemoteError
    from retailinfer.resilience.remote import http_messages

    for read in (http_messages.decode_metadata, http_messages.extensions_of):
        with contextlib.suppress(RemoteError):
            read(data)
    end = data.rfind(b"}") + 1
    return _checked(http_messages.decode_reply(data, end if 0 < end < len(data) else None))


def _grpc(data: bytes):
    from retailinfer.errors import RemoteError
    from retailinfer.resilience.remote import grpc_messages

    with contextlib.suppress(RemoteError):
        grpc_messages.decode_metadata(data)
    return _checked(grpc_messages.decode_reply(data))


def _checked(reply):
    """As who asked does: all outputs that came, whatever their rows."""
    from retailinfer.resilience.remote.tensors import check_reply

    return check_reply(reply, list(reply), n_rows=None)


def _check(arrays, data: bytes) -> None:
    for name, array in arrays.items():
        assert isinstance(name, str)
        assert isinstance(array, np.ndarray)
        assert array.dtype.isnative
        assert array.nbytes < 64 * len(data) + 4096, "an array out of nothing"
        if array.dtype.kind == "f":
            assert np.isfinite(array).all()


def _refusals() -> dict[type[Exception], str]:
    from retailinfer.errors import RemoteError

    return {RemoteError: "refused"}


def _tensors() -> list[dict[str, np.ndarray]]:
    return [
        {"y": np.array([[0.25]], np.float32)},
        {"y": np.array([[1, 2], [3, 4]], np.int64), "flags": np.array([True, False])},
        {"label": np.array([0.5, 0.75]), "y": np.zeros((0, 3), np.float32)},
    ]


def _seeds_of_messages() -> list[bytes]:
    from test_remote_messages import http_reply

    made = [http_reply(one, how)[0] for one in _tensors() for how in ("flat", "nested", "binary")]
    made.append(
        json.dumps(
            {"name": "fraud", "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}], "outputs": []}
        ).encode()
    )
    return [one for one in made if _is_reply(one)]


def _is_reply(data: bytes) -> bool:
    from retailinfer.errors import RemoteError

    try:
        _message(data)
    except RemoteError:
        return False
    return True


def _seeds_of_replies() -> list[bytes]:
    from test_remote_messages import http_reply

    made = []
    for one in _tensors():
        for how in ("flat", "binary"):
            body, size = http_reply(one, how)
            more = b"" if size is None else b"Inference-Header-Content-Length: %d\r\n" % size
            made.append(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s\r\n%s" % (len(body), more, body))
    body = http_reply(_tensors()[0], "flat")[0]
    half = len(body) // 2
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:half], body[half:], b""))
    made.append(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + chunks)
    return made


HEADERS = (
    b"Content-Length: 0\r\n", b"Content-Length: -1\r\n", b"Content-Length: 9999999999999999\r\n", b"Content-Length: 5, 6\r\n",
    b"Content-Encoding: gzip\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"Location: http://x\r\n",
    b"Inference-Header-Content-Length: 7\r\n", b"Inference-Header-Content-Length: \xb2\r\n", b"X: " + b"a" * 70_000 + b"\r\n",
    b"X: 1\r\n" * 200, b": \r\n", b"X\r\n", b" folded\r\n", b"Retry-After: 1e9\r\n", b"\x00: \xff\r\n", b"\n\n", b"\r",
)  # fmt: skip
STATUS = (
    b"200",
    b"100",
    b"101",
    b"204",
    b"206",
    b"302",
    b"304",
    b"404",
    b"429",
    b"500",
    b"503",
    b"999",
    b"-1",
    b"0",
    b"20",
    b"abc",
    b"",
)


def _head_mutant(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Another status, more headers, fewer, two answers in one."""
    line, _, rest = data.partition(b"\r\n")
    how = rng.randrange(5)
    if how == 0:
        parts = line.split(b" ", 2)
        parts[min(1, len(parts) - 1)] = rng.choice(STATUS)
        line = b" ".join(parts)
    elif how == 1:
        line = rng.choice(
            (b"HTTP/1.0 200 OK", b"HTTP/0.9 200", b"HTTP/2 200", b"ICY 200 OK", b"<html>", b"", line * 300)
        )
    elif how == 2:
        rest = rng.choice(HEADERS) + rest
    elif how == 3:
        head, split, body = rest.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        del lines[rng.randrange(len(lines))]
        rest = b"\r\n".join(lines) + split + body
    else:
        rest += rng.choice(others)
    return line + b"\r\n" + rest


def _body_mutant(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Another body, and the length that belongs to it."""
    body = data.partition(b"\r\n\r\n")[2]
    body = rng.choice((bytes_mutant, number_mutant))(body, rng, [body])
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def _seeds_of_grpc() -> list[bytes]:
    from retailinfer.resilience.remote.grpc_messages import _block, _text, _varint
    from retailinfer.resilience.remote.tensors import datatype_of

    made = []
    for one in _tensors():
        parts, raw = [_text(1, "fraud"), _text(2, "1")], []
        for name, array in one.items():
            shape = b"".join(map(_varint, array.shape))
            kind = datatype_of(array.dtype)
            parts.append(_block(5, _text(1, name) + _text(2, kind) + _block(3, shape)))
            raw.append(_block(6, array.tobytes()))
        made.append(b"".join([*parts, *raw]))
    typed = (
        _text(1, "y")
        + _text(2, "FP32")
        + _block(3, b"\x02")
        + _block(5, _block(6, np.array([0.5, 1], np.float32).tobytes()))
    )
    return [*made, _block(5, typed)]


# ---- decision logs ---------------------------------------------------------------------------------------------------------


@functools.cache
def _log() -> tuple[bytes, bytes, str]:
    """Lines of a finished file, the declaration, and its name."""
    import releases

    import retailinfer as ri
    from retailinfer.monitoring.events import Answered

    with tempfile.TemporaryDirectory() as folder:
        log = ri.DecisionLog(
            folder, format="jsonl", fields=("amount", "note"), entities={"card": "channel"}, keep_days=None
        )
        scorer = releases.payment_scorer()
        for i in range(5):
            request = releases.payment(amount=i / 2, channel=f"c-{i % 2}", note=None if i % 2 else "é")
            log.on_event(Answered(scorer.score(request), request, 1_700_000_000 * 10**9 + i, 1_000))
        log.close()
        (path,) = Path(folder).glob("decisions-*.jsonl")
        (declared,) = Path(folder).glob("log-*.json")
        return path.read_bytes(), declared.read_bytes(), declared.name


def _decisions(data: bytes):
    """Lines that a killed process left: finished by the next one, read as rows and as a table, erased in."""
    import retailinfer as ri

    _, declared, name = _log()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, name).write_bytes(declared)
        Path(folder, f"live-{name[4:12]}-1-0123456789ab.jsonl").write_bytes(data)
        kind = "parquet" if len(data) % 2 else "jsonl"
        log = ri.DecisionLog(
            folder, format=kind, fields=("amount", "note"), entities={"card": "channel"}, keep_days=None
        )
        before = [*log.rows()]
        log.table()
        is_erased = len(data) % 8 == 0  # which takes its time: others might be writing
        if is_erased:
            log.erase("card", "c-1")
        rows = [*log.rows()]
        log.close()
        assert len(rows) <= len(before)
        assert not is_erased or all(row.get("entity.card") != "c-1" for row in rows)
    return {}


def _lines_mutant(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """One line is made hostile, the others stand."""
    lines = data.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    line = lines[at].rstrip(b"\n")
    lines[at] = (
        rng.choice((likely_mutant, likely_mutant, document_mutant, number_mutant))(line, rng, [line]) + b"\n"
    )
    return b"".join(lines)


def _nothing() -> dict[type[Exception], str]:
    return {_NeverError: "refused"}


class _NeverError(Exception):
    """A log is never refused."""


_TEXT = (bytes_mutant, number_mutant, document_mutant, document_mutant, likely_mutant, likely_mutant)
# ---- models of MLflow ------------------------------------------------------------------------------------------------------


def _seeds_of_mlmodels() -> list[bytes]:
    flavors = {
        "onnx": {"data": "model.onnx", "code": None},
        "lightgbm": {"data": "model.lgb", "lgb_version": "4.6.0"},
        "xgboost": {"data": "data/model.ubj"},
        "catboost": {"data": "model.cb", "model_type": "CatBoostClassifier"},
    }
    written = [
        f"flavors:\n  {name}:\n" + "".join(f"    {key}: {value}\n" for key, value in said.items())
        for name, said in flavors.items()
    ]
    more = "mlflow_version: 3.1.0\nutc_time_created: '2026-01-01'\n"
    return [f"artifact_path: model\n{one}{more}".encode() for one in written] + [
        json.dumps({"flavors": flavors}).encode()
    ]


def _mlmodel(data: bytes):
    from retailinfer.authoring.mlflow import _file_of, _flavors

    return _file_of(_flavors(data))


def _check_mlmodel(made, data: bytes) -> None:
    flavor, path = made
    assert flavor in ("onnx", "lightgbm", "xgboost", "catboost")
    assert not path.startswith(("/", ".", "~"))
    assert not {".", "..", ""} & set(path.split("/"))


class _Beside:
    """A folder in which every file holds the same."""

    def read(self, path: str, cap: int) -> bytes:
        assert path.count("/") == 1
        assert path.startswith("model/")
        assert ".." not in path
        return bytes(range(256)) * 4


def _seeds_of_weights() -> list[bytes]:
    from onnx import TensorProto, helper

    tensors = []
    for i, told in enumerate(({"location": "w"}, {"location": "w", "offset": "64", "length": "48"})):
        tensor = TensorProto(
            name=f"w{i}", data_type=TensorProto.FLOAT, dims=[4, 3], data_location=TensorProto.EXTERNAL
        )
        for key, value in told.items():
            tensor.external_data.add(key=key, value=value)
        tensors.append(tensor)
    node = helper.make_node("MatMul", ["x", "w0"], ["y"])
    graph = helper.make_graph([node], "net", [], [], tensors)
    return [helper.make_model(graph, ir_version=8).SerializeToString()]


def _weights(data: bytes):
    from retailinfer.authoring.mlflow import _Budget, _whole_onnx

    return _whole_onnx("model/net.onnx", data, _Budget(_Beside(), 1 << 20))


def _check_weights(made, data: bytes) -> None:
    import onnx
    from onnx.external_data_helper import uses_external_data

    model = onnx.load_model_from_string(made)
    assert not any(uses_external_data(one) for one in model.graph.initializer)


def _not_packed():
    from retailinfer.errors import ModelError, RegistryError

    return {ModelError: "model", RegistryError: "registry"}


TARGETS = {
    target.name: target
    for target in (
        Target("mlmodel", _seeds_of_mlmodels, _mlmodel, (bytes_mutant,), _not_packed, _check_mlmodel, needs=("yaml",),
               sample=1_500),
        Target("mlflow-weights", _seeds_of_weights, _weights, (bytes_mutant,), _not_packed, _check_weights, needs=("onnx",),
               sample=1_500),
        Target("http-reply", _seeds_of_replies, _reply, (bytes_mutant, _head_mutant, _head_mutant, _body_mutant, _body_mutant),
               _refusals, _check, needs=("urllib3",), sample=2_000, slow=2.0),
        Target("http-message", _seeds_of_messages, _message, _TEXT, _refusals, _check, needs=("urllib3",),
               sample=6_000, slow=2.0),
        Target("grpc-message", _seeds_of_grpc, _grpc, (bytes_mutant, cells_mutant), _refusals, _check, sample=8_000, slow=2.0),
        Target("decision-lines", lambda: [_log()[0]], _decisions, (bytes_mutant, _lines_mutant, _lines_mutant), _nothing,
               needs=("pyarrow",), sample=150, slow=4.0),
    )
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(TARGETS))
