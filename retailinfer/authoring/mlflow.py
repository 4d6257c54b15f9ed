"""from_mlflow: a model of an MLflow registry, as `pack` takes it, with what MLflow knows of it.

The way: model version (by alias or number) -> where its files lie -> `MLmodel`, which says what they are -> the one file of
the model -> its run: figures, commit, data sets.
Rules:
  * No pickle, and nothing that could hold one: only ONNX, and what LightGBM, XGBoost and CatBoost write themselves. What is in
    the file decides, not what it is called.
  * MLflow's own REST interface, without its package: sizes, time and names are checked here, byte by byte, before anything is
    kept; no file is written, and importing the client would bring forty packages.
  * The server is believed about its own files only. It cannot send us to another host, to a file of this machine, or to a
    bucket that the caller did not name; nobody is redirected; credentials go to the tracking server and nowhere else.
  * Whatever the server says is checked like any input: a RegistryError says what it was, a ModelError what cannot be packed.
HTTP is mlflow_server.py's; what `pack` does with the model pack.py's; reading object stores is release/registry_files.py's.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from retailinfer.authoring.convert.onnx_file import FOREIGN, PICKLES
from retailinfer.authoring.facts import inner_graphs
from retailinfer.authoring.trees.files import kind_of
from retailinfer.errors import ConfigError, ModelError, RegistryError, clip
from retailinfer.release.manifest import MAX_FILE_BYTES, sha256_hex
from retailinfer.release.registry_files import Files, open_files

if TYPE_CHECKING:
    from retailinfer.authoring.mlflow_server import Server

__all__ = ["MlflowModel", "from_mlflow"]

MAX_MLMODEL = 1 << 20  # it lists every column of a wide model
MAX_EXTERNAL = 1_000  # files of one ONNX model's weights
MAX_FACTS = 500  # figures and data sets of a run that are taken
FLAVORS = ("onnx", "lightgbm", "xgboost", "catboost")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._ -]{0,254}")  # of a file, or a folder on the way to it
_VERSION = re.compile(r"[0-9]{1,18}")
_RUN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HEX = re.compile(r"[0-9a-f]{7,64}")


class MlflowModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model out of MLflow.

    Attributes:
        model: what `pack(model=...)` takes. info: what `pack(info=...)` takes: description, metrics, commit, origin.
        name, version: in MLflow's registry. run: id of the run that made it, where there was one.
        flavor: "onnx", "lightgbm", "xgboost" or "catboost". file: that was read. sha256: of that file.
    """

    model: Any
    info: dict[str, Any]
    name: str
    version: str
    run: str | None
    flavor: str
    file: str
    sha256: str


def from_mlflow(
    model: str,
    *,
    tracking_uri: str | None = None,
    artifacts: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    max_bytes: int = 1 << 30,
    timeout_s: float = 300.0,
) -> MlflowModel:
    """Fetch a registered model; nothing of it runs.

        found = ri.from_mlflow("models:/fraud@champion", tracking_uri="https://mlflow.internal")
        ri.pack("fraud", model=found.model, info=found.info | {"owner": "risk"}, ...)

    Args:
        model: "models:/NAME@ALIAS" or "models:/NAME/VERSION".
        tracking_uri: http or https; by default MLFLOW_TRACKING_URI. MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and
            MLFLOW_TRACKING_PASSWORD, are sent where they are set, and over https only, except to this machine.
        artifacts: where models lie, if the server does not hand them out itself: "s3://bucket/models", or a folder that both
            machines see. It is read with your own credentials, so a model that says it lies elsewhere is refused.
        storage_options: for the client of that store (fsspec).
        max_bytes: of all files that are fetched. timeout_s: for everything.
    Needs `retailinfer[mlflow]`. Raises: ConfigError for an argument; RegistryError where the server, or a store,
        does not do it; ModelError for a model that cannot be packed, with what to do.
    """
    name, alias, version = _parse(model)
    if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or not 0 < max_bytes <= MAX_FILE_BYTES:
        raise ConfigError(f"Expected max_bytes from 1 to {MAX_FILE_BYTES}, got {clip(max_bytes)}")
    if not isinstance(timeout_s, (int, float)) or not 0 < timeout_s <= 86_400:
        raise ConfigError(f"Expected timeout_s above 0, at most a day, got {clip(timeout_s)}")
    from retailinfer.authoring.mlflow_server import Server  # noqa: PLC0415 - HTTP and TLS, for those who fetch

    server = Server(
        tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", ""), ends_s=monotonic() + float(timeout_s)
    )
    found = _version(server, name, alias, version)
    said = server.ask("model-versions/get-download-uri", _DownloadUri, name=name, version=found.version)
    folder = _folder(server, said.artifact_uri, artifacts, storage_options)
    flavors = _flavors(folder.read("MLmodel", MAX_MLMODEL))
    flavor, path = _file_of(flavors)
    budget = _Budget(folder, max_bytes)
    data = budget.read(path)
    made = _checked(flavor, path, data, budget)
    run = found.run_id or None
    info = _info(server, found, run)
    info["origin"] = info["origin"] | {"flavor": flavor, "sha256": sha256_hex(data)}
    return MlflowModel(
        model=made,
        info=info,
        name=name,
        version=found.version,
        run=run,
        flavor=flavor,
        file=path,
        sha256=info["origin"]["sha256"],
    )


def _parse(model: str) -> tuple[str, str | None, str | None]:
    """(name, alias, version); one of the two is None."""
    text = model[len("models:/") :] if isinstance(model, str) and model.startswith("models:/") else ""
    name, at, alias = text.rpartition("@")
    version = None
    if not at:
        name, _, version = text.rpartition("/")
        alias = ""
    good = 0 < len(name) <= 256 and "/" not in name and name.isprintable()
    if (
        not good
        or (at and not _NAME.fullmatch(alias))
        or (version is not None and not _VERSION.fullmatch(version))
    ):
        raise ConfigError(
            f"Expected models:/NAME@ALIAS or models:/NAME/VERSION, got {clip(model, 80)}",
            hint='"latest" is another model tomorrow: name the version, or give it an alias',
        )
    return name, alias or None, version


# ---- what the server says ----------------------------------------------------------------------------------------------


class _Version(msgspec.Struct):
    name: str
    version: str
    status: str = "READY"
    description: str = ""
    run_id: str = ""


class _VersionAnswer(msgspec.Struct):
    model_version: _Version


class _DownloadUri(msgspec.Struct):
    artifact_uri: Annotated[str, Meta(max_length=4096)]


class _Metric(msgspec.Struct):
    key: str
    value: float | str = 0.0  # protobuf writes "NaN" and "Infinity" as texts


class _Tag(msgspec.Struct):
    key: str
    value: str = ""


class _RunData(msgspec.Struct):
    metrics: list[_Metric] = []
    tags: list[_Tag] = []


class _Dataset(msgspec.Struct):
    name: str
    digest: str


class _DatasetInput(msgspec.Struct):
    dataset: _Dataset


class _RunInputs(msgspec.Struct):
    dataset_inputs: list[_DatasetInput] = []


class _Run(msgspec.Struct):
    data: _RunData = msgspec.field(default_factory=_RunData)
    inputs: _RunInputs = msgspec.field(default_factory=_RunInputs)


class _RunAnswer(msgspec.Struct):
    run: _Run


def _version(server: Server, name: str, alias: str | None, version: str | None) -> _Version:
    if alias is not None:
        found = server.ask("registered-models/alias", _VersionAnswer, name=name, alias=alias).model_version
    else:
        found = server.ask("model-versions/get", _VersionAnswer, name=name, version=version).model_version
    if (
        found.name != name
        or not _VERSION.fullmatch(found.version)
        or (version is not None and int(found.version) != int(version))
        or (found.run_id and not _RUN.fullmatch(found.run_id))
    ):
        raise RegistryError(f"{server} was asked for model {clip(name)} and answered with another one")
    if found.status != "READY":
        raise RegistryError(
            f"version {found.version} of model {clip(name)} is {clip(found.status)}, not READY - at {server}"
        )
    return found


def _info(server: Server, found: _Version, run: str | None) -> dict[str, Any]:
    """What the manifest can say of it; all of it is the server's word, and origin says whose."""
    origin: dict[str, Any] = {
        "registry": "mlflow",
        "uri": server.origin,
        "name": found.name,
        "version": found.version,
    }
    info: dict[str, Any] = {"origin": origin}
    if found.description.strip():
        info["description"] = found.description.strip()[:4096]
    if run is None:
        return info
    from retailinfer.authoring.mlflow_server import NotFoundError  # noqa: PLC0415 - as above

    origin["run"] = run
    try:
        told = server.ask("runs/get", _RunAnswer, run_id=run).run
    except NotFoundError:  # a model outlives its run
        return info
    metrics = {
        one.key: float(one.value)
        for one in told.data.metrics[:MAX_FACTS]
        if len(one.key) <= 256 and isinstance(one.value, float) and math.isfinite(one.value)
    }
    if metrics:
        info["metrics"] = metrics
    commits = [one.value for one in told.data.tags if one.key == "mlflow.source.git.commit"]
    if commits and _HEX.fullmatch(commits[0]):
        info["code"] = {"commit": commits[0]}
    datasets = {
        one.dataset.name: one.dataset.digest
        for one in told.inputs.dataset_inputs[:MAX_FACTS]
        if max(len(one.dataset.name), len(one.dataset.digest)) <= 256
    }
    if datasets:
        origin["datasets"] = datasets
    return info


# ---- which file ----------------------------------------------------------------------------------------------------------


def _flavors(data: bytes) -> dict[str, dict[str, Any]]:
    """What `MLmodel` lists. Texts only: no number, date or object is made of what it says."""
    try:
        import yaml  # noqa: PLC0415 - optional extra
    except ImportError as exc:
        raise ConfigError(
            "reading MLflow's `MLmodel` needs PyYAML", hint="pip install 'retailinfer[mlflow]'"
        ) from exc
    try:
        document = yaml.load(data.decode(), Loader=yaml.BaseLoader)  # noqa: S506 - the one that makes texts only
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError, TypeError) as exc:
        raise RegistryError(f"`MLmodel` is no YAML: {clip(str(exc), 100)}") from exc
    flavors = document.get("flavors") if isinstance(document, dict) else None
    if not isinstance(flavors, dict) or not all(isinstance(one, dict) for one in flavors.values()):
        raise RegistryError(f"`MLmodel` lists no flavors, but {clip(document)}")
    return flavors


def _file_of(flavors: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """The flavor to take, and the path of its file. Raises: ModelError, RegistryError."""
    flavor = next((one for one in FLAVORS if one in flavors), None)
    if flavor is None:
        known = ", ".join(clip(one) for one in sorted(map(str, flavors))[:10]) or "nothing"
        raise ModelError(
            f"the model is logged as {known}; of these none is a file that can be read without running code",
            hint="log it as ONNX (mlflow.onnx.log_model), or the booster itself (mlflow.lightgbm, .xgboost, .catboost); "
            "or load it where you trust it and give the fitted model to pack",
        )
    path = flavors[flavor].get("data")
    if not isinstance(path, str) or not all(_NAME.fullmatch(part) for part in path.split("/")):
        raise RegistryError(
            f"Expected the path of a file inside the model, got {clip(path, 80)} - at `MLmodel`, {flavor}.data"
        )
    if path.lower().endswith((*PICKLES, ".skops", ".cloudpickle")):
        raise _pickled(flavor, path)
    return flavor, path


def _pickled(flavor: str, path: str) -> ModelError:
    mend = {
        "lightgbm": "log the booster: mlflow.lightgbm.log_model(model.booster_, ...)",
        "xgboost": "log it with mlflow.xgboost of MLflow 2 or newer, which writes XGBoost's own file",
    }.get(flavor, "log it as ONNX: mlflow.onnx.log_model")
    return ModelError(
        f"the model's file {clip(path, 80)} is a pickle, which runs code when it is read", hint=mend
    )


def _checked(flavor: str, path: str, data: bytes, budget: _Budget) -> Any:
    """What `pack` is given, after a look at what the file holds."""
    # A pickle; a zip of pickles, or of what skops writes.
    if data[:1] == b"\x80" or data[:4] == b"PK\x03\x04":
        raise _pickled(flavor, path)
    if flavor == "onnx":
        return _whole_onnx(path, data, budget)
    if flavor == "catboost" and data[:4] == b"CBM1":
        from retailinfer.authoring.convert.catboost import read_cbm  # noqa: PLC0415 - with its trainer

        return read_cbm(data)
    if data[:4] in FOREIGN:
        raise ModelError(
            f"{clip(path, 80)} is in a format that only its trainer reads", hint=FOREIGN[data[:4]]
        )
    kind = kind_of(data)
    if kind is None or not kind.startswith(flavor):
        raise ModelError(
            f"{clip(path, 80)} is logged as {flavor}, and holds {kind or 'something else'}",
            hint="log the model again, or give its file to pack by hand",
        )
    return data


def _whole_onnx(path: str, data: bytes, budget: _Budget) -> bytes:
    """The graph with its weights inside. MLflow saves tensors of 1 KB and more beside the graph."""
    import onnx  # noqa: PLC0415 - packing needs it
    from onnx.external_data_helper import uses_external_data  # noqa: PLC0415

    try:
        model = onnx.load_model_from_string(data)
    except Exception as exc:
        raise ModelError(f"{clip(path, 80)} is no ONNX file: {clip(str(exc), 100)}") from exc
    beside = path.rpartition("/")[0]
    files: dict[str, bytes] = {}
    outside = [tensor for tensor in _tensors(model) if uses_external_data(tensor)]
    for tensor in outside:
        where = {_text(entry.key): _text(entry.value) for entry in tensor.external_data}
        name = where.get("location", "")
        if not _NAME.fullmatch(name):
            raise ModelError(
                f"Expected weights in a file beside the graph, got {clip(name, 80)} - at tensor {clip(tensor.name)}"
            )
        if name not in files:
            if len(files) >= MAX_EXTERNAL:
                raise ModelError(f"Expected at most {MAX_EXTERNAL} files of weights - at {clip(path, 80)}")
            files[name] = budget.read(f"{beside}/{name}" if beside else name)
        offset, length = (_whole_number(where.get(key, "")) for key in ("offset", "length"))
        whole = files[name]
        start = offset or 0
        end = len(whole) if length is None else start + length
        if start > end or end > len(whole):
            raise ModelError(f"tensor {clip(tensor.name)} lies beyond the end of its file {clip(name, 80)}")
        budget.keep(end - start)
        tensor.raw_data = whole[start:end]
        tensor.ClearField("external_data")
        tensor.data_location = onnx.TensorProto.DEFAULT
    if not outside:
        return data
    try:
        inside: bytes = model.SerializeToString()
    except Exception as exc:  # protobuf's own, by version
        raise ModelError(f"{clip(path, 80)} with its weights is too large for one file") from exc
    return inside


def _text(given: str | bytes) -> str:
    """A text of a graph; protobuf gives bytes where it is not UTF-8."""
    return given if isinstance(given, str) else given.decode("utf-8", "replace")


def _whole_number(text: str) -> int | None:
    """Of offsets and lengths; None where nothing is said."""
    if not text:
        return None
    if not _VERSION.fullmatch(text):
        raise ModelError(f"Expected a place in a file of weights, got {clip(text)}")
    return int(text)


def _tensors(model: Any) -> Iterator[Any]:
    for graph, _ in inner_graphs(model.graph):
        yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors


# ---- where files lie -----------------------------------------------------------------------------------------------------


class _Folder:
    """Files of the model: of the server, or of a store that the caller named."""

    def __init__(self, server: Server | None, files: Files | None, root: str) -> None:
        self._server, self._files, self._root = server, files, root

    def read(self, path: str, cap: int) -> bytes:
        whole = f"{self._root}/{path}" if self._root else path
        if self._server is not None:
            return self._server.file(whole, cap)
        assert self._files is not None
        found = self._files.read(whole, cap)
        if found is None:
            raise RegistryError(f"the model has no file {clip(path, 80)} - at {self._files.origin}")
        return found


class _Budget:
    """Bytes that may still be fetched, and kept."""

    def __init__(self, folder: _Folder, n: int) -> None:
        self._folder, self._left, self._kept = folder, n, n

    def read(self, path: str) -> bytes:
        data = self._folder.read(path, self._left)
        self._left -= len(data)
        return data

    def keep(self, n: int) -> None:
        """Weights may lie on top of each other in their file: what comes out is counted, too."""
        self._kept -= n
        if self._kept < 0:
            raise ModelError(
                "the weights of the model are larger than max_bytes",
                hint="raise max_bytes= if they are meant to be",
            )


def _folder(
    server: Server, uri: str, artifacts: str | None, storage_options: Mapping[str, Any] | None
) -> _Folder:
    """The folder that the server names, if it may. Raises: RegistryError, ConfigError."""
    scheme, colon, rest = uri.partition(":")
    if colon and scheme == "mlflow-artifacts":
        host = ""
        if rest.startswith("//"):
            host, _, rest = rest[2:].partition("/")
        if host and host.rpartition("@")[2] not in (server.host, f"{server.host}:{server.port}"):
            raise RegistryError(f"{server} sends us to another host for its models: {clip(host, 80)}")
        return _Folder(server, None, _inside(rest, uri))
    if artifacts is None:
        raise RegistryError(
            f"{server} does not hand out the model itself: it lies at {clip(uri, 200)}",
            hint="say that models lie there: artifacts='s3://bucket/models'; or start the server with --serve-artifacts",
        )
    artifacts = artifacts.removeprefix("file://")
    base = artifacts.rstrip("/")
    prefixes = [base] if "://" in base else [base, f"file://{base}", f"file:{base}"]
    inside = next((uri[len(one) :] for one in prefixes if base and uri.startswith(f"{one}/")), None)
    if inside is None:
        raise RegistryError(
            f"Expected a model below {clip(artifacts, 200)}, got {clip(uri, 200)} - at {server}",
            hint="it is read with your own credentials, so the server does not choose the place",
        )
    return _Folder(None, open_files(artifacts, storage_options=storage_options), _inside(inside, uri))


def _inside(path: str, uri: str) -> str:
    """A path of plain names. Raises: RegistryError."""
    parts = path.strip("/").split("/")
    if not all(_NAME.fullmatch(part) for part in parts):
        raise RegistryError(f"Expected a path of plain names, got {clip(uri, 200)}")
    return "/".join(parts)
