"""`from_mlflow` against servers that lie, dawdle or send too much, and models that would run code.

The server is a script: a path and what it answers. MLflow itself is test_mlflow_real.py.
"""

from __future__ import annotations

import json
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from model_servers import certificate
from small_releases import logistic

import retailinfer as ri
from retailinfer.cli.main import main
from retailinfer.errors import ConfigError, ModelError, RegistryError
from retailinfer.release.bundle import read_bundle

pytestmark = pytest.mark.requires("onnx", "yaml")

API = "/api/2.0/mlflow"
FILES = "/api/2.0/mlflow-artifacts/artifacts/0/m"
VERSION = {"name": "fraud", "version": "3", "status": "READY", "run_id": "r1"}
RUN = {"run": {"data": {"metrics": [{"key": "auc", "value": 0.5}]}}}
ONNX = logistic(3)


class Script:
    """What the server answers, by path without its query, and what it was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.answers: dict[str, Any] = {
            f"{API}/registered-models/alias": {"model_version": VERSION},
            f"{API}/model-versions/get": {"model_version": VERSION},
            f"{API}/model-versions/get-download-uri": {"artifact_uri": "mlflow-artifacts:/0/m"},
            f"{API}/runs/get": RUN,
            f"{FILES}/MLmodel": b"flavors:\n  onnx:\n    data: model.onnx\n",
            f"{FILES}/model.onnx": ONNX,
        }

    def logs(self, flavor: str, file: str, data: bytes = b"") -> None:
        """A model of one flavor."""
        self.answers[f"{FILES}/MLmodel"] = f"flavors:\n  {flavor}:\n    data: {file}\n".encode()
        self.answers[f"{FILES}/{file}"] = data

    def version(self, **changes: Any) -> None:
        """Another model version."""
        self.answers[f"{API}/model-versions/get"] = {"model_version": VERSION | changes}


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[ThreadingHTTPServer, list[Script]]]:
    """One server; its script is that of the test that runs."""
    current: list[Script] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            script = current[0]
            path = self.path.partition("?")[0]
            script.asked.append((self.path, dict(self.headers)))
            answer = script.answers.get(path)
            if callable(answer):
                answer(self)
                return
            body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(404 if answer is None else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

        def handle(self) -> None:
            try:
                super().handle()
            except ConnectionError:  # the other side has heard enough
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server, current
    server.shutdown()
    server.server_close()


@pytest.fixture
def script(served, monkeypatch) -> Script:
    """A server that does everything right, to be changed; and no settings of whoever runs the tests."""
    for name in (
        "MLFLOW_TRACKING_URI",
        "MLFLOW_TRACKING_TOKEN",
        "MLFLOW_TRACKING_USERNAME",
        "MLFLOW_TRACKING_PASSWORD",
    ):
        monkeypatch.delenv(name, raising=False)
    server, current = served
    made = Script()
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    current[:] = [made]
    return made


def fetch(script: Script, model: str = "models:/fraud/3", **settings: Any) -> ri.from_mlflow:
    """The call that all tests make."""
    return ri.from_mlflow(model, tracking_uri=script.url, **settings)


def raw(head: str, *parts: bytes, then: Callable[[], object] = lambda: None) -> Callable[[Any], None]:
    """An answer byte by byte, after which the connection ends."""

    def answer(handler: Any) -> None:
        handler.wfile.write(head.replace("\n", "\r\n").encode())
        for part in parts:
            handler.wfile.write(part)
            then()
        handler.close_connection = True

    return answer


def test_a_server_that_does_right(script):
    """What every other test changes one thing of."""
    found = fetch(script)
    assert (found.model, found.flavor, found.file, found.version) == (ONNX, "onnx", "model.onnx", "3")
    assert found.info["metrics"] == {"auc": 0.5}
    assert found.info["origin"]["uri"] == script.url
    assert fetch(script, "models:/fraud@champion").sha256 == found.sha256
    assert "alias=champion" in next(path for path, _ in script.asked if "alias" in path)
    del script.answers[f"{API}/runs/get"]  # a model outlives its run
    assert "metrics" not in fetch(script).info


def test_the_command_line_packs_from_mlflow(script, monkeypatch, tmp_path, capsys):
    """`--model models:/...`; what a file of info says goes before what MLflow says."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", script.url)
    (tmp_path / "info.toml").write_text('owner = "risk"\n[metrics]\nauc = 0.75\n')
    command = ["pack", "fraud", "--model", "models:/fraud@champion", "--info", str(tmp_path / "info.toml")]
    assert main([*command, "--out", str(tmp_path / "fraud")]) == 0
    assert "fraud:" in capsys.readouterr().out
    info = read_bundle(tmp_path / "fraud").manifest.info
    assert (info.owner, info.metrics, info.origin.version) == ("risk", {"auc": 0.75}, "3")
    assert main(["inspect", str(tmp_path / "fraud")]) == 0
    assert "origin uri" in capsys.readouterr().out
    script.answers[f"{API}/registered-models/alias"] = None
    assert main([*command, "--out", str(tmp_path / "other")]) != 0
    assert "answers 404" in capsys.readouterr().err


# ---- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        "", "fraud", "models:/", "models:/fraud", "models:/fraud/", "models:/fraud/latest", "models:/fraud@", "models:/@x",
        "models:/a/b/1", "models:/fraud/-1", "models:/fraud/1.0", "models:/fraud@../x", "runs:/1/model", "models:/m\n/1",
        7, None,
    ],
)  # fmt: skip
def test_what_names_no_model_is_refused(script, model):
    """An alias or a number; "latest" is another model tomorrow."""
    with pytest.raises(ConfigError, match="Expected models:/NAME@ALIAS"):
        fetch(script, model)
    assert script.asked == []


@pytest.mark.parametrize(
    "uri",
    [
        None, "sqlite:///m.db", "./mlruns", "file:///m", "https://", "http://h:99999", "http://h/?a=b", "http://h/#a",
        "databricks", 7,
    ],
)  # fmt: skip
def test_what_is_no_server_is_refused(script, uri):
    """Only http and https."""
    with pytest.raises(ConfigError, match=r"Expected the http\(s\) URL"):
        ri.from_mlflow("models:/fraud/3", tracking_uri=uri)


@pytest.mark.parametrize(
    "settings",
    [{"max_bytes": 0}, {"max_bytes": True}, {"max_bytes": 1 << 40}, {"timeout_s": 0}, {"timeout_s": "1"}],
)
def test_limits_are_checked(script, settings):
    """Before anybody is asked."""
    with pytest.raises(ConfigError):
        fetch(script, **settings)
    assert script.asked == []


# ---- credentials ---------------------------------------------------------------------------------------------------------


def test_credentials_are_sent_as_mlflow_has_them(script, monkeypatch):
    """A token, a user, or those of the URL, which go into no manifest."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "anna")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "p:w")
    fetch(script)
    assert {headers["Authorization"] for _, headers in script.asked} == {"Basic YW5uYTpwOnc="}
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret-token")
    script.asked.clear()
    fetch(script)
    assert {headers["Authorization"] for _, headers in script.asked} == {"Bearer secret-token"}
    script.asked.clear()
    found = ri.from_mlflow("models:/fraud/3", tracking_uri=script.url.replace("//", "//bob:pass@"))
    assert {headers["Authorization"] for _, headers in script.asked} == {"Basic Ym9iOnBhc3M="}
    assert "pass" not in str(found.info)


@pytest.mark.parametrize(
    "uri", ["http://mlflow.internal", "http://10.0.0.1:5000", "http://anna:secret@mlflow.internal"]
)
def test_credentials_never_travel_in_the_open(script, monkeypatch, uri):
    """And no message holds them."""
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    with pytest.raises(ConfigError, match="would travel in the open") as caught:
        ri.from_mlflow("models:/fraud/3", tracking_uri=uri)
    assert "secret" not in str(caught.value)


def test_a_token_cannot_bring_headers_of_its_own(script, monkeypatch):
    """A line end in a setting is a mistake, or worse."""
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a\r\nHost: evil")
    with pytest.raises(ConfigError, match="text of one line"):
        fetch(script)


def test_nobody_is_followed(script, monkeypatch):
    """A redirect would take the token along."""
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    script.answers[f"{API}/model-versions/get"] = raw(
        f"HTTP/1.1 302 Found\nLocation: {script.url}/elsewhere\nContent-Length: 0\n\n"
    )
    with pytest.raises(RegistryError, match=r"sends us to 'http://127\.0\.0\.1:"):
        fetch(script)
    assert len(script.asked) == 1


@pytest.fixture
def https(served, script, tmp_path) -> Iterator[tuple[str, Any]]:
    """The same server behind TLS, by a certificate for 127.0.0.1 that nobody knows: (URL, its certificate)."""
    file, context = certificate(tmp_path, "127.0.0.1")
    behind = ThreadingHTTPServer(("127.0.0.1", 0), served[0].RequestHandlerClass)
    behind.socket = context.wrap_socket(behind.socket, server_side=True, do_handshake_on_connect=False)
    behind.daemon_threads = True
    behind.handle_error = lambda *_: None  # who does not like the certificate hangs up
    thread = threading.Thread(target=behind.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"https://127.0.0.1:{behind.server_address[1]}", file
    behind.shutdown()
    behind.server_close()


def test_certificates_are_verified(script, https, monkeypatch):
    """A token goes to a server whose certificate this machine believes, and to no other."""
    url, file = https
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    with pytest.raises(RegistryError, match="certificate verify failed"):
        ri.from_mlflow("models:/fraud/3", tracking_uri=url)
    assert script.asked == []
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    assert ri.from_mlflow("models:/fraud/3", tracking_uri=url).model == ONNX
    assert {headers["Authorization"] for _, headers in script.asked} == {"Bearer secret"}
    with pytest.raises(RegistryError, match="certificate verify failed"):  # it is for another name
        ri.from_mlflow("models:/fraud/3", tracking_uri=url.replace("127.0.0.1", "localhost"))


def test_a_handshake_that_never_ends_costs_the_time_given(script, monkeypatch):
    """Connected is not yet answered."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        with pytest.raises(RegistryError, match="took too long"):
            ri.from_mlflow(
                "models:/fraud/3", tracking_uri=f"https://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.3
            )
        assert time.monotonic() - begun < 10


# ---- answers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"version": "4"},
        {"version": "../4"},
        {"version": ""},
        {"run_id": "../../x"},
        {"run_id": "a?b=c"},
    ],
)
def test_another_model_than_was_asked_for_is_refused(script, changes):
    """The name, the number, and no path where an id stands."""
    script.version(**changes)
    with pytest.raises(RegistryError, match="answered with another one"):
        fetch(script)


def test_a_version_that_is_not_ready_is_refused(script):
    """It has no files yet, or never will."""
    script.version(status="FAILED_REGISTRATION")
    with pytest.raises(RegistryError, match="not READY"):
        fetch(script)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "answers otherwise than MLflow"),
        (b"<html>", "answers otherwise than MLflow"),
        (b"[" * 100_000, "answers otherwise than MLflow"),
        (b'{"model_version": {"name": 7}}', "answers otherwise than MLflow"),
        (b'{"model_version": {"name": "\xff"}}', "answers otherwise than MLflow"),
        (raw("HTTP/1.1 500 No\nContent-Length: 4\n\n", b"oops"), "answers 500: 'oops'"),
        (raw("HTTP/1.1 401 No\nContent-Length: 0\n\n"), "refuses us \\(401\\).*MLFLOW_TRACKING_TOKEN"),
        (raw("HTTP/1.1 200 OK\nContent-Length: 99999999\n\n"), "Expected at most"),
        (raw("HTTP/1.1 200 OK\nContent-Length: 100\n\n", b"{}"), "ended in the middle"),
        (raw("HTTP/1.1 200 OK\n\n", b"{}"), "does not say where its answer ends"),
        (raw("HTTP/1.1 200 OK\nContent-Encoding: gzip\nContent-Length: 2\n\n", b"{}"), "compresses"),
        (raw("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n", b"zz\r\n"), "did not answer"),
        (raw("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n", *[b"100000\r\n" + b" " * 0x100000 + b"\r\n"] * 9), "at most"),
        (raw("nonsense\n\n"), "did not answer"),
        (raw("HTTP/1.1 200 OK\n" + "X: y\n" * 200 + "\n"), "did not answer"),
        (raw(""), "did not answer"),
    ],
    ids=lambda value: value.replace(" ", "-")[:30] if isinstance(value, str) else None,
)  # fmt: skip
def test_what_no_mlflow_says_is_an_error(script, answer, message):
    """Anything else than the answer that was asked for, of a size that was asked for."""
    script.answers[f"{API}/model-versions/get"] = answer
    with pytest.raises(RegistryError, match=message):
        fetch(script)


def test_nobody_listens(script):
    """An address without a server."""
    with pytest.raises(RegistryError, match="did not answer"):
        ri.from_mlflow("models:/fraud/3", tracking_uri="http://127.0.0.1:9")


@pytest.mark.parametrize("head", ["", "HTTP/1.1 200 OK\n", "HTTP/1.1 200 OK\nContent-Length: 100000\n\n"])
def test_time_is_limited_as_a_whole(script, head):
    """A byte now and then, in the head or in the body, gains nothing."""
    begun = time.monotonic()
    over = threading.Event()
    script.answers[f"{API}/model-versions/get"] = raw(head, *[b"x"] * 1_000, then=lambda: over.wait(0.02))
    try:
        with pytest.raises(RegistryError, match="took too long"):
            fetch(script, timeout_s=0.3)
    finally:
        over.set()
    assert time.monotonic() - begun < 10


def test_metrics_that_are_no_numbers_are_left_out(script):
    """What a run says is taken where a manifest can hold it."""
    script.answers[f"{API}/runs/get"] = {
        "run": {
            "data": {
                "metrics": [
                    {"key": "a", "value": "NaN"},
                    {"key": "b" * 999, "value": 1.0},
                    {"key": "c", "value": 2.0},
                ],
                "tags": [{"key": "mlflow.source.git.commit", "value": "x; rm -rf /"}],
            },
            "inputs": {"dataset_inputs": [{"dataset": {"name": "d" * 999, "digest": "1"}}]},
        }
    }
    info = fetch(script).info
    assert info["metrics"] == {"c": 2.0}
    assert "code" not in info
    assert "datasets" not in info["origin"]


# ---- places --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    [
        "mlflow-artifacts:/../m", "mlflow-artifacts:/0/../../m", "mlflow-artifacts:/0/%2e%2e/m", "mlflow-artifacts:/0//m",
        "mlflow-artifacts:/", "mlflow-artifacts:/0/m?x=y", "mlflow-artifacts:/0\\m", "mlflow-artifacts:/.ssh/id",
    ],
)  # fmt: skip
def test_a_way_out_of_the_folder_is_refused(script, uri):
    """Plain names only."""
    script.answers[f"{API}/model-versions/get-download-uri"] = {"artifact_uri": uri}
    with pytest.raises(RegistryError, match="Expected a path of plain names"):
        fetch(script)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil", "127.0.0.1:1"])
def test_another_host_is_refused(script, host):
    """Files come from the server that was named."""
    script.answers[f"{API}/model-versions/get-download-uri"] = {
        "artifact_uri": f"mlflow-artifacts://{host}/0/m"
    }
    with pytest.raises(RegistryError, match="sends us to another host"):
        fetch(script)


@pytest.mark.parametrize(
    "uri", ["/etc", "file:///etc", "s3://bucket/m", "http://evil/m", "runs:/1/model", "dbfs:/m", ""]
)
def test_a_place_that_nobody_named_is_refused(script, uri):
    """It would be read with the caller's own credentials."""
    script.answers[f"{API}/model-versions/get-download-uri"] = {"artifact_uri": uri}
    with pytest.raises(RegistryError, match="does not hand out the model itself"):
        fetch(script)


def test_models_in_a_store_that_was_named(script, tmp_path):
    """A folder, or anything that fsspec reaches; below it only."""
    fsspec = pytest.importorskip("fsspec")
    home = tmp_path / "models" / "m"
    home.mkdir(parents=True)
    (home / "MLmodel").write_bytes(b"flavors: {onnx: {data: model.onnx}}")
    (home / "model.onnx").write_bytes(ONNX)
    memory = fsspec.filesystem("memory")
    for name in ("MLmodel", "model.onnx"):
        memory.pipe_file(f"/lineage/models/m/{name}", (home / name).read_bytes())
    base = str(tmp_path / "models")
    for uri, artifacts in (
        (f"{base}/m", base),
        (f"file://{base}/m", f"{base}/"),
        (f"file://{base}/m", f"file://{base}"),
        ("memory://lineage/models/m", "memory://lineage/models"),
    ):
        script.answers[f"{API}/model-versions/get-download-uri"] = {"artifact_uri": uri}
        assert fetch(script, artifacts=artifacts).model == ONNX
    for uri in (f"{base}-evil/m", f"{base}/../m", f"{base}/m/../../x", base, "memory://lineage/models/m"):
        script.answers[f"{API}/model-versions/get-download-uri"] = {"artifact_uri": uri}
        with pytest.raises(RegistryError, match=r"Expected a model below|Expected a path of plain names"):
            fetch(script, artifacts=base)
    script.answers[f"{API}/model-versions/get-download-uri"] = {"artifact_uri": f"{base}/gone"}
    with pytest.raises(RegistryError, match="has no file 'MLmodel'"):
        fetch(script, artifacts=base)


# ---- MLmodel -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "../m/model.onnx", "/etc/passwd", "a/../../b", "..", ".", "", "a//b", "a\\b", "a%2fb", "https://evil/x", "~/x", "[a]",
        "{a: b}",
    ],
)  # fmt: skip
def test_a_file_outside_the_model_is_refused(script, path):
    """Plain names below the model's folder."""
    script.logs("onnx", path)
    with pytest.raises(RegistryError, match="Expected the path of a file inside the model"):
        fetch(script)


@pytest.mark.parametrize(
    "text",
    [
        b"", b"7", b"flavors: 7", b"flavors: [onnx]", b"flavors: {onnx: 7}", b"\xff", b"[" * 5_000, b"{" * 5_000, b"a: b: c",
        b"flavors: !!python/object/apply:os.system [id]", b"flavors: &a {onnx: *a", b"? [a]\n: b",
    ],
)  # fmt: skip
def test_what_is_no_mlmodel_is_refused(script, text):
    """Whatever it is, nothing of it is made into an object."""
    script.answers[f"{FILES}/MLmodel"] = text
    with pytest.raises(RegistryError, match="`MLmodel`"):
        fetch(script)


def test_a_bomb_of_aliases_costs_nothing(script):
    """Names that stand for each other ten times each, forty levels deep."""
    levels = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 40))
    script.answers[f"{FILES}/MLmodel"] = f"a0: &a0 x\n{levels}\nflavors: *a39\n".encode()
    begun = time.monotonic()
    with pytest.raises(RegistryError, match="lists no flavors"):
        fetch(script)
    assert time.monotonic() - begun < 10


def test_a_huge_mlmodel_is_refused(script):
    """It describes a model in a page."""
    script.answers[f"{FILES}/MLmodel"] = b"#" * 1_100_000
    with pytest.raises(RegistryError, match="Expected at most 1048576 bytes"):
        fetch(script)


# ---- the model's file ------------------------------------------------------------------------------------------------------


class Bomb:
    """Says when it is unpickled."""

    went_off = False

    def __reduce__(self) -> tuple[Any, ...]:
        return (setattr, (Bomb, "went_off", True))


@pytest.mark.parametrize("flavor", ["onnx", "lightgbm", "xgboost", "catboost"])
@pytest.mark.parametrize(
    "file", ["model.pkl", "model.skops", "model.joblib", "MODEL.PKL", "model.lgb", "data/model.bin", "model"]
)
def test_pickles_are_refused_whatever_they_are_called(script, flavor, file):
    """By name before they are fetched, else by what they hold."""
    script.logs(flavor, file, pickle.dumps(Bomb()))
    with pytest.raises(ModelError, match="is a pickle, which runs code when it is read"):
        fetch(script)
    assert not Bomb.went_off


@pytest.mark.parametrize(
    ("flavor", "data", "message"),
    [
        ("xgboost", b"PK\x03\x04zip", "is a pickle"),
        ("lightgbm", b"gibberish", "holds something else"),
        ("lightgbm", b"", "holds something else"),
        ("xgboost", b"tree\nversion=v4\n", "logged as xgboost, and holds lightgbm"),
        ("catboost", b'{"learner": {}}', "logged as catboost, and holds xgboost"),
        ("xgboost", b"binf....", "format that only its trainer reads"),
        ("lightgbm", b"CBM1....", "format that only its trainer reads"),
        ("onnx", b"gibberish", "is no ONNX file"),
    ],
)
def test_a_file_of_another_kind_is_refused(script, flavor, data, message):
    """What it holds must be what it is logged as."""
    script.logs(flavor, "model.file", data)
    with pytest.raises(ModelError, match=message):
        fetch(script)


@pytest.mark.requires("catboost")
def test_a_broken_file_of_catboost_is_refused(script):
    """Its own reader says so."""
    script.logs("catboost", "model.cb", b"CBM1" + b"\x00" * 100)
    with pytest.raises(ModelError, match="CatBoost cannot read its file"):
        fetch(script)


def test_a_file_larger_than_allowed_is_refused(script):
    """Whether it says so or not."""
    with pytest.raises(RegistryError, match=r"Expected at most 100 bytes.*max_bytes="):
        fetch(script, max_bytes=100)
    chunks = [b"100\r\n" + b"x" * 0x100 + b"\r\n"] * 100
    script.answers[f"{FILES}/model.onnx"] = raw("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n", *chunks)
    with pytest.raises(RegistryError, match="Expected at most 1000 bytes"):
        fetch(script, max_bytes=1000)


# ---- weights beside the graph ----------------------------------------------------------------------------------------------


def beside(script: Script, n: int = 1, width: int = 3, **where: str) -> bytes:
    """A graph of n matrices whose weights lie in `weights`, one over the other; the bytes of the first."""
    from onnx import TensorProto, helper

    weights = np.arange(max(4, width) * width, dtype=np.float32)
    nodes, tensors, name = [], [], "x"
    for i in range(n):
        rows = 4 if i == 0 else width
        tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[rows, width])
        tensor.data_location = TensorProto.EXTERNAL
        told = {"location": "weights", "offset": "16", "length": str(4 * rows * width)} | where
        for key, value in told.items():
            if value:
                tensor.external_data.add(key=key, value=value)
        tensors.append(tensor)
        nodes.append(helper.make_node("MatMul", [name, f"w{i}"], [f"y{i}"]))
        name = f"y{i}"
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", width])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    script.logs("onnx", "net/model.onnx", model.SerializeToString())
    script.answers[f"{FILES}/net/weights"] = b"\0" * 16 + weights.tobytes()
    return weights.tobytes()


def test_weights_beside_the_graph_come_in(script, tmp_path):
    """The release has the whole model in one file, and computes with it."""
    weights = np.frombuffer(beside(script), np.float32).reshape(4, 3)
    found = fetch(script)
    ri.pack("net", model=found.model, info=found.info, out=tmp_path / "net")
    rows = np.eye(4, dtype=np.float32)
    with ri.Scorer.load(tmp_path / "net", trust="unsigned") as scorer:
        np.testing.assert_array_equal(scorer.score_arrays({"x": rows})["y0"], weights)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"location": "../MLmodel"}, "Expected weights in a file beside the graph"),
        ({"location": "/etc/passwd"}, "Expected weights in a file beside the graph"),
        ({"location": ".."}, "Expected weights in a file beside the graph"),
        ({"location": ""}, "Expected weights in a file beside the graph"),
        ({"length": "49"}, "lies beyond the end"),
        ({"offset": "17"}, "lies beyond the end"),
        ({"offset": "99999999999"}, "lies beyond the end"),
        ({"offset": "-1"}, "Expected a place in a file"),
        ({"length": "1e9"}, "Expected a place in a file"),
    ],
)
def test_weights_that_lie_elsewhere_are_refused(script, where, message):
    """Beside the graph, inside their file."""
    beside(script, **where)
    with pytest.raises(ModelError, match=message):
        fetch(script)


def test_a_place_that_is_no_text_is_refused(script):
    """Bytes that are not UTF-8, which protobuf hands on as bytes; found by mutants (fuzz_replies.py)."""
    beside(script)
    model = f"{FILES}/net/model.onnx"
    script.answers[model] = script.answers[model].replace(b"weights", b"wei\xffhts")
    with pytest.raises(ModelError, match="Expected weights in a file beside the graph"):
        fetch(script)


def test_weights_that_lie_on_each_other_are_counted(script):
    """A small file could be a large model many times over."""
    beside(script, n=20, width=40)
    assert len(fetch(script).model) > 19 * 4 * 40 * 40
    with pytest.raises(ModelError, match="larger than max_bytes"):
        fetch(script, max_bytes=60_000)


def test_weights_that_are_not_there(script):
    """A file that was not logged."""
    beside(script)
    del script.answers[f"{FILES}/net/weights"]
    with pytest.raises(RegistryError, match="answers 404"):
        fetch(script)
