"""manifest.json: what a release says of itself, and the only file that says which other files exist.

Rules:
  * Strict: unknown fields, other names than `[a-z0-9][a-z0-9._-]{0,63}`, twins, too many entries are refused before any
    file is read.
  * Canonical: a manifest has one encoding. `digest` is the SHA-256 of that encoding with `digest` zeroed; signatures,
    approvals and registry pointers (detached) speak of this digest.
  * Everything that serving needs stands here, so that loading needs no ONNX parser: which input takes which tensor,
    which cell of which output is the score, whether NaN may enter, whether rows may be batched.
Reading and writing the directory is bundle.py; who fills a manifest is `authoring.pack`.
"""

# No `from __future__ import annotations` here: msgspec would compile every one of them when a release is loaded.

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from retailinfer.errors import ManifestError, clip

__all__ = [
    "CodeInfo",
    "DatasetInfo",
    "FileEntry",
    "Info",
    "InputSource",
    "Machine",
    "Manifest",
    "ModelEntry",
    "OriginInfo",
    "Output",
    "PolicyOf",
    "QuantizationReport",
    "QuantizationTrial",
    "Read",
    "ScoreRef",
    "Tolerance",
    "beside_policy",
    "decode_manifest",
    "encode_manifest",
    "same_but_policy",
    "seal",
    "sha256_hex",
]

FORMAT = 1  # raised when an older library could not read the manifest
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20
MAX_FILES = 128
MAX_FILE_BYTES = (1 << 31) - 1  # protobuf's own limit
MAX_TOTAL_BYTES = 1 << 32

_FIRST = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")  # letter of a name
_LATER = _FIRST | frozenset("._-")
# Fields that say which release it is, or speak of its policy.
_OF_ONE_POLICY = frozenset(
    ("digest", "version", "created", "files", "thresholds", "envelope", "policy_of", "info")
)
_UNSEALED = "0" * 64  # as long as a digest, so that sealing does not move a byte

Digest = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Text = Annotated[str, Meta(max_length=4096)]
Short = Annotated[str, Meta(max_length=256)]
Count = Annotated[int, Meta(ge=0, le=(1 << 53))]
Moment = Annotated[str, Meta(pattern=r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}:[0-9]{2}:[0-9]{2}Z)?\Z")]  # UTC


class FileEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A file of the release.

    `role`: "features", "policy", "contract", "baseline", "background", "fallback", "golden", or
    "model:<role>".
    """

    role: Short
    file: Short
    size: Annotated[int, Meta(ge=0, le=MAX_FILE_BYTES)]
    sha256: Digest


class InputSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where a model's input comes from.

    Attributes:
        kind: "tensor" or "mask" of the feature spec, "array" that the caller brings, or "output" of an earlier model.
        name: of the tensor, mask, array or output. role: of the earlier model, for an output.
    """

    kind: Literal["tensor", "mask", "array", "output"]
    name: Short
    role: Short | None = None


class Output(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """An output of a model. A None in `shape` is any size; `classes` are the labels of its columns, where known."""

    name: Short
    dtype: Short
    shape: Annotated[tuple[int | None, ...], Meta(max_length=64)] = ()
    classes: Annotated[tuple[str | int, ...], Meta(max_length=100_000)] = ()


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=False):
    """One model of the release; models are listed in the order in which they run.

    Attributes:
        source: what it was made from: "onnx", "lightgbm.LGBMClassifier", ...
        trees_only: every number it is given reaches tree ensembles only, so NaN means "missing" and nothing else.
        quantized: "none", "dynamic" or "static".
        parity: with its source when it was packed: "exact" = the same bits on rows chosen to be hard; "close" = within
            `tolerance.parity`; "unchecked" = an ONNX file that runs as it is, or a trainer's file whose trainer was not there.
        why: why ONNX Runtime runs a model that was looked at as a forest.
    """

    role: Short
    file: Short
    engine: Literal["onnx", "trees"] = "onnx"
    parity: Literal["exact", "close", "unchecked"] = "unchecked"
    why: Text = ""
    inputs: dict[Short, InputSource] = {}
    outputs: tuple[Output, ...] = ()
    source: Short = "onnx"
    trees_only: bool = False
    quantized: Literal["none", "dynamic", "static"] = "none"
    feature_names: Literal["matched", "ignored", "unknown"] = "unknown"


class ScoreRef(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which cell of a model's answer is the score of a row.

    Attributes:
        column: of the output's last axis; 0 for outputs of one cell.
        label: the class that this column is the probability of, where known.
        low, high: bounds that the score cannot leave, where the last operator guarantees them.
    """

    role: Short
    output: Short
    column: Count = 0
    label: str | int | None = None
    low: float | None = None
    high: float | None = None


class Tolerance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=False):
    """What differences are accepted, and where.

    Args:
        score: quantisation; largest difference of a probability.
        relative: quantisation; the same for other scores, in standard deviations of the scores.
        flips: quantisation; largest share of rows whose action changes.
        golden: golden rows on another CPU class or library version; largest difference of a score (relative above 1).
            No action may change.
        parity: conversion; largest difference between the trainer's own score and the converted model's.
    """

    score: Annotated[float, Meta(ge=0)] = 0.02
    relative: Annotated[float, Meta(ge=0)] = 0.1
    flips: Annotated[float, Meta(ge=0, le=1)] = 0.002
    golden: Annotated[float, Meta(ge=0)] = 1e-4
    parity: Annotated[float, Meta(ge=0)] = 1e-5


class Machine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where something was measured. Golden rows are bit-equal where `cpu` and `onnxruntime` are the same."""

    cpu: Short
    onnxruntime: Short = ""
    retailinfer: Short = ""
    python: Short = ""
    numpy: Short = ""
    libm: Short = ""
    system: Short = ""


class QuantizationTrial(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """One candidate as it was measured. `times_us`: batch size -> median of one run; differences are against `none`."""

    role: Short
    method: Literal["none", "dynamic", "static"]
    size: Count = 0
    times_us: dict[str, float] = {}
    max_difference: float = 0.0
    mean_difference: float = 0.0
    flips: float = 0.0
    kept: bool = False
    why: Text = ""


class QuantizationReport(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """What `quantize=` was asked for, and the comparison that decided."""

    asked: Literal["none", "dynamic", "static", "auto"] = "none"
    n_calibration_rows: Count = 0
    n_compared_rows: Count = 0
    trials: Annotated[tuple[QuantizationTrial, ...], Meta(max_length=256)] = ()
    why: Text = ""


class DatasetInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The training data: hash and the window of time it covers."""

    sha256: Digest | None = None
    start: Moment | None = None
    end: Moment | None = None
    rows: Count | None = None
    uri: Text | None = None


class CodeInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The code that trained the model."""

    commit: Short | None = None
    lock_sha256: Digest | None = None
    image: Short | None = None


class OriginInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The registry that the model was taken from, in its own words; `sha256` of the file was computed here.

    Attributes:
        registry: "mlflow". uri: of its server. name, version: of the model there. run: id of the run that made it.
        datasets: name -> digest of what the run said it was trained on, as that registry counts digests.
    """

    registry: Short
    uri: Text
    name: Short
    version: Short
    run: Short | None = None
    flavor: Short | None = None
    sha256: Digest | None = None
    datasets: dict[Short, Short] = {}


class Info(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What only people and their pipelines know; the argument `info` of `ri.pack`.

    Args:
        version: made of the time and the content where it is not given.
        expires: moment (UTC) after which a cold start refuses the release.
        origin: the registry that the model came from, as `ri.from_mlflow` tells it.
        fallbacks: digests of older releases that this one may fall back to.
        owners: table, stream or source -> who is responsible for it, where the spec does not say so itself.
    """

    version: Short | None = None
    description: Text | None = None
    owner: Short | None = None
    hypothesis: Text | None = None
    success: Text | None = None
    ends: Moment | None = None
    expires: Moment | None = None
    dataset: DatasetInfo | None = None
    code: CodeInfo | None = None
    origin: OriginInfo | None = None
    metrics: dict[Short, float] = {}
    fallbacks: Annotated[tuple[Digest, ...], Meta(max_length=64)] = ()
    owners: dict[Short, Short] = {}


class Read(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A table, window, stream or source that the release reads.

    Attributes:
        columns: what is read of it; of a window, the fields of its stream.
        digest: SHA-256 of its definition, as `features.lineage` makes it: equal digests, equal meaning.
    """

    kind: Literal["table", "window", "stream", "source"]
    name: Short
    columns: tuple[Short, ...] = ()
    owner: Short | None = None
    digest: Digest | None = None


class PolicyOf(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The release that this one takes everything from but its policy: `ri.repolicy`."""

    name: Short
    version: Short
    digest: Digest

    @property
    def release(self) -> str:
        """Name and version, as answers carry it."""
        return f"{self.name}:{self.version}"


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=False):
    """manifest.json.

    Attributes:
        digest: SHA-256 of the canonical bytes with this field zeroed (`seal`).
        models: in running order. score: None = the release answers `score_arrays` only.
        spec_fingerprint: of features.json.
        nan_inputs: NaN may enter the models; else the feature program refuses it.
        row_independent: a row's score does not depend on the rows beside it; else rows run one by one.
        row_difference: the largest difference that was seen between a row alone and in a batch.
        thresholds: action -> lowest score, for auditors; policy.json decides (null = minus infinity).
        envelope: action -> (lowest, highest) threshold to which an operator may move it without a new release; likewise.
        policy_of: what has the same models, features and golden rows, and another policy.
        machine: where golden rows and quantisation were measured.
        reads: lineage of the features.
    """

    format: int = FORMAT
    name: Short
    version: Short
    task: Literal["classification", "regression", "ranking", "forecast", "arrays"]
    created: Moment
    digest: Digest = _UNSEALED
    files: Annotated[tuple[FileEntry, ...], Meta(max_length=MAX_FILES)]
    models: Annotated[tuple[ModelEntry, ...], Meta(min_length=1, max_length=64)]
    score: ScoreRef | None = None
    spec_fingerprint: Digest
    nan_inputs: bool = False
    row_independent: bool = False
    row_difference: float | None = None
    thresholds: dict[Short, float | None] = {}
    tolerance: Tolerance = Tolerance()
    quantization: QuantizationReport = QuantizationReport()
    machine: Machine
    reads: Annotated[tuple[Read, ...], Meta(max_length=1024)] = ()
    redacted: tuple[Short, ...] = ()
    info: Info = Info()
    # Fields that came later are not written where they say nothing, so that older manifests keep their one encoding.
    envelope: dict[Short, tuple[float, float]] | msgspec.UnsetType = msgspec.UNSET
    policy_of: PolicyOf | msgspec.UnsetType = msgspec.UNSET

    @property
    def inputs(self) -> dict[str, dict[str, InputSource]]:
        """Role -> input of that model -> where it comes from."""
        return {model.role: model.inputs for model in self.models}

    @property
    def engine(self) -> str:
        """Which engine runs the models: "onnx", "trees", or "mixed"."""
        engines = {model.engine for model in self.models}
        return engines.pop() if len(engines) == 1 else "mixed"

    @property
    def release(self) -> str:
        """Name and version, as answers carry it."""
        return f"{self.name}:{self.version}"

    def file_of(self, role: str) -> str | None:
        """Name of the file with a role; None when the release has none."""
        return next((entry.file for entry in self.files if entry.role == role), None)


def same_but_policy(one: Manifest, other: Manifest) -> bool:
    """Whether two releases have the same name, models, features and contract, so that at most their policies differ.

    Golden rows are not compared: the actions that they led to are part of them.
    """
    return not beside_policy(one, other)


def beside_policy(one: Manifest, other: Manifest) -> list[str]:
    """What differs that `same_but_policy` is about: names of files, then fields, as people are told of them."""
    a, b = (
        {entry.file: entry for entry in manifest.files if entry.role not in ("policy", "golden")}
        for manifest in (one, other)
    )
    files = sorted(name for name in {**a, **b} if a.get(name) != b.get(name))
    fields = [
        field
        for field in Manifest.__struct_fields__
        if field not in _OF_ONE_POLICY and getattr(one, field) != getattr(other, field)
    ]
    return [*files, *(f"`{field}` of the manifest" for field in fields)]


def sha256_hex(data: bytes) -> str:
    """SHA-256 in hexadecimal, as manifests have it."""
    import hashlib  # noqa: PLC0415 - brings OpenSSL's library; importing the package need not

    return hashlib.sha256(data).hexdigest()


def encode_manifest(manifest: Manifest) -> bytes:
    """The one encoding of a manifest: JSON, two blanks deep, fields as declared, keys of mappings sorted."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=2) + b"\n"


def seal(manifest: Manifest) -> Manifest:
    """The manifest with its digest. Raises: ManifestError when it contradicts itself."""
    open_ = msgspec.structs.replace(manifest, digest=_UNSEALED)
    sealed = msgspec.structs.replace(manifest, digest=sha256_hex(encode_manifest(open_)))
    data = encode_manifest(sealed)
    if len(data) > MAX_MANIFEST_BYTES:
        raise ManifestError(f"Expected a manifest of at most {MAX_MANIFEST_BYTES} bytes, got {len(data)}")
    return decode_manifest(data)  # what is written can be read back, or fails here


def decode_manifest(data: bytes) -> Manifest:
    """The inverse of `encode_manifest` for sealed manifests, with every check that needs no other file.

    Raises: ManifestError, which names the field, what was expected and what came.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise ManifestError(f"Expected {MANIFEST} of at most {MAX_MANIFEST_BYTES} bytes, got {len(data)}")
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ManifestError(
            f"{MANIFEST} is not a manifest: {clip(str(exc), 300)}",
            hint=f"this version reads format {FORMAT}; is it a release of a newer one, or cut short?",
        ) from exc
    if manifest.format != FORMAT:
        raise ManifestError(
            f"Expected {MANIFEST} of format {FORMAT}, got {manifest.format}",
            hint="load it with the version of retailinfer that wrote it, or pack it again",
        )
    if encode_manifest(manifest) != data:
        raise ManifestError(
            f"{MANIFEST} is not in its canonical form: white space, the order of fields, or a repeated one",
            hint="never edit a manifest; pack the release again",
        )
    unsealed = encode_manifest(msgspec.structs.replace(manifest, digest=_UNSEALED))
    found = sha256_hex(unsealed)
    if found != manifest.digest:
        raise ManifestError(
            f"{MANIFEST} was changed: its digest should be `{found[:12]}...`, it says `{manifest.digest[:12]}...`",
            hint="never edit a manifest; pack the release again",
        )
    _check_names(manifest)
    _check_models(manifest)
    _check_numbers(manifest)
    return manifest


def check_file_names(names: Iterable[str]) -> None:
    """Refuse names that are no plain file names of a release, and twins. Raises: ManifestError."""
    seen: dict[str, str] = {}
    for name in names:
        folded = name.casefold()
        if not name.isascii():
            import unicodedata  # noqa: PLC0415 - for names that are refused all the same

            folded = unicodedata.normalize("NFC", name).casefold()
        if folded in seen:
            raise ManifestError(f"two files of the release are named {clip(seen[folded])} and {clip(name)}")
        seen[folded] = name
        if not _is_name(name):
            raise ManifestError(
                f"Expected file names [a-z0-9][a-z0-9._-]{{0,63}} without folders, got {clip(name)}"
            )


def check_name(label: str, value: object) -> None:
    """A release's name, version or role follows the rule for file names. Raises: ManifestError."""
    if not isinstance(value, str) or not _is_name(value):
        raise ManifestError(f"Expected [a-z0-9][a-z0-9._-]{{0,63}} as {label}, got {clip(value)}")


def _is_name(text: str) -> bool:
    return 1 <= len(text) <= 64 and text[0] in _FIRST and _LATER.issuperset(text)


def _check_names(manifest: Manifest) -> None:
    check_name("name", manifest.name)
    check_name("version", manifest.version)
    check_file_names([MANIFEST, *(entry.file for entry in manifest.files)])
    for entry in manifest.files:
        if entry.file.endswith(".sig"):  # signatures are beside a release, never in it
            raise ManifestError(f"Expected no file `*.sig` in {MANIFEST}, got {clip(entry.file)}")
    roles = [entry.role for entry in manifest.files]
    if len(set(roles)) != len(roles):
        raise ManifestError("two files of the release have the same role")
    total = sum(entry.size for entry in manifest.files)
    if total > MAX_TOTAL_BYTES:
        raise ManifestError(f"Expected at most {MAX_TOTAL_BYTES} bytes in a release, got {total}")
    for role in ("features", "contract"):
        if role not in roles:
            raise ManifestError(f"{MANIFEST} lists no file with the role `{role}`")


def _check_models(manifest: Manifest) -> None:
    by_role = {entry.role: entry.file for entry in manifest.files}
    listed = {role for role in by_role if role.startswith("model:")}
    outputs: dict[str, set[str]] = {}
    for model in manifest.models:
        check_name("role of a model", model.role)
        if model.role in outputs:
            raise ManifestError(f"two models have the role `{model.role}`")
        if by_role.get(f"model:{model.role}") != model.file:
            raise ManifestError(
                f"model `{model.role}` is in {clip(model.file)}, which is not listed with its role"
            )
        listed.discard(f"model:{model.role}")
        for name, source in model.inputs.items():
            if (source.kind == "output") != (source.role is not None):
                raise ManifestError(
                    f"input {clip(name)} of model `{model.role}` names a role for a {source.kind}"
                )
            if source.role is not None and source.name not in outputs.get(source.role, ()):
                raise ManifestError(
                    f"input {clip(name)} of model `{model.role}` reads {clip(source.name)} of model "
                    f"{clip(source.role)}, which no earlier model gives"
                )
        outputs[model.role] = {output.name for output in model.outputs}
    if listed:
        raise ManifestError(f"{MANIFEST} lists files of models that it does not describe: {sorted(listed)}")
    score = manifest.score
    if score is not None and score.output not in outputs.get(score.role, ()):
        raise ManifestError(
            f"the score is {clip(score.output)} of model {clip(score.role)}, which is not there"
        )


def _check_numbers(value: Any) -> None:
    """JSON has no NaN; infinite numbers come from 1e999 and mean nothing here."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ManifestError(f"{MANIFEST} holds a number that is not finite")
    if isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            _check_numbers(getattr(value, name))
    elif isinstance(value, dict):
        for one in value.values():
            _check_numbers(one)
    elif isinstance(value, tuple):
        for one in value:
            _check_numbers(one)
