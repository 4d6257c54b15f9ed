"""The manifest: one encoding, strict fields, names that stay inside the directory, a digest that notices every change."""

from __future__ import annotations

import hashlib
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retailinfer.errors import ManifestError
from retailinfer.release.manifest import (
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    DatasetInfo,
    FileEntry,
    Info,
    InputSource,
    Machine,
    Manifest,
    ModelEntry,
    Output,
    PolicyOf,
    QuantizationReport,
    QuantizationTrial,
    Read,
    ScoreRef,
    Tolerance,
    decode_manifest,
    encode_manifest,
    seal,
)

SHA = hashlib.sha256(b"").hexdigest()


def file(name: str, role: str | None = None, size: int = 0) -> FileEntry:
    """An entry of an empty file."""
    return FileEntry(role=role or name, file=name, size=size, sha256=SHA)


def manifest(**changes) -> Manifest:
    """A small manifest without contradictions."""
    given = {
        "name": "fraud",
        "version": "1.0",
        "task": "classification",
        "created": "2026-11-22T13:00:00Z",
        "files": (
            file("contract.json", "contract"),
            file("features.json", "features"),
            file("model.onnx", "model:model"),
        ),
        "models": (
            ModelEntry(
                role="model",
                file="model.onnx",
                inputs={"x": InputSource(kind="tensor", name="features")},
                outputs=(Output(name="y", dtype="float32", shape=(None, 2), classes=("no", "yes")),),
            ),
        ),
        "score": ScoreRef(role="model", output="y", column=1, label="yes"),
        "spec_fingerprint": SHA,
        "machine": Machine(cpu="linux-x86_64"),
    }
    return Manifest(**{**given, **changes})


def rewritten(change, **fields) -> bytes:
    """A manifest whose JSON was changed by hand, with a digest that fits."""
    document = json.loads(encode_manifest(seal(manifest(**fields))))
    change(document)
    document["digest"] = "0" * 64
    document["digest"] = hashlib.sha256(canonical(document)).hexdigest()
    return canonical(document)


def canonical(document: dict[str, object]) -> bytes:
    """JSON in the manifest's own layout."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def test_what_is_written_is_read_back_equal():
    """Encoding and decoding a full manifest changes nothing."""
    full = manifest(
        row_difference=0.0,
        thresholds={"decline": 0.92, "approve": None},
        tolerance=Tolerance(score=0.01),
        quantization=QuantizationReport(
            asked="auto",
            trials=(QuantizationTrial(role="model", method="static", times_us={"1": 3.5}, kept=True),),
        ),
        reads=(Read(kind="table", name="card", columns=("mean",), owner="payments", digest=SHA),),
        redacted=("card_id",),
        info=Info(
            version="1.0",
            owner="risk",
            hypothesis="fewer false declines",
            dataset=DatasetInfo(sha256=SHA, start="2026-01-01", end="2026-06-30T00:00:00Z", rows=10),
            metrics={"ap": 0.71},
            fallbacks=(SHA,),
        ),
        envelope={"decline": (0.85, 0.97)},
        policy_of=PolicyOf(name="fraud", version="0.9", digest=SHA),
    )
    sealed = seal(full)
    assert decode_manifest(encode_manifest(sealed)) == sealed
    assert msgspec.structs.replace(sealed, digest=full.digest) == full
    assert sealed.release == "fraud:1.0"
    assert sealed.inputs == {"model": {"x": InputSource(kind="tensor", name="features")}}
    assert (sealed.engine, sealed.file_of("features"), sealed.file_of("golden")) == (
        "onnx",
        "features.json",
        None,
    )


def test_hand_rewritten_manifest_with_fitting_digest_is_accepted_when_nothing_is_wrong():
    """The helper of the following tests makes valid manifests, so what they see refused is the change itself."""
    assert decode_manifest(rewritten(lambda d: None)).name == "fraud"


def test_every_changed_byte_is_refused():
    """No bit of a sealed manifest can be flipped."""
    data = encode_manifest(seal(manifest()))
    for at in range(len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 1 << (at % 8)
        with pytest.raises(ManifestError):
            decode_manifest(bytes(flipped))


@given(st.data())
def test_truncated_and_extended_manifests_are_refused(data):
    """A manifest that was cut, or has anything behind it, is not one."""
    whole = encode_manifest(seal(manifest()))
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ManifestError):
        decode_manifest(whole[:cut])
    with pytest.raises(ManifestError):
        decode_manifest(whole + data.draw(st.binary(min_size=1, max_size=8)))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_with_the_typed_error(data):
    """Whatever bytes come, the answer is a ManifestError."""
    with pytest.raises(ManifestError):
        decode_manifest(data)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.update(extra=1), "unknown field"),
        (lambda d: d["models"][0].update(pickle="yes"), "unknown field"),
        (lambda d: d.update(format=2), "format 1"),
        (lambda d: d.update(task="magic"), "task"),
        (lambda d: d.update(created="yesterday"), "created"),
        (lambda d: d.update(spec_fingerprint="zz"), "spec_fingerprint"),
        (lambda d: d["files"][0].update(size=-1), "size"),
        (lambda d: d["files"][0].update(size=1 << 40), "size"),
        (lambda d: d["files"][0].update(sha256="00"), "sha256"),
        (lambda d: d.pop("machine"), "machine"),
        (lambda d: d.update(models=[]), "models"),
        (lambda d: d.update(name="../fraud"), "name"),
        (lambda d: d.update(version="1 0"), "version"),
        (lambda d: d["models"][0].update(engine="python"), "engine"),
        (lambda d: d["models"][0].update(file="other.onnx"), "other.onnx"),
        (lambda d: d["score"].update(output="z"), "score"),
        (lambda d: d["models"][0]["inputs"]["x"].update(kind="output"), "role"),
        (lambda d: d["models"][0]["inputs"]["x"].update(kind="output", role="model"), "no earlier model"),
        (
            lambda d: d["files"].append({**d["files"][2], "role": "model:two", "file": "two.onnx"}),
            "does not describe",
        ),
        (lambda d: d["files"].append({**d["files"][0], "file": "again.json"}), "same role"),
        (lambda d: d["files"].pop(1), "features"),
        (lambda d: d["models"].append(d["models"][0]), "two models"),
    ],
)
def test_manifest_that_contradicts_itself_is_refused(change, says):
    """Each wrong field is refused, and the message names it."""
    with pytest.raises(ManifestError, match=says):
        decode_manifest(rewritten(change))


@pytest.mark.parametrize(
    "name",
    [
        "../model.onnx",
        "/etc/passwd",
        "a/../b",
        "a/b",
        "a\\b",
        ".hidden",
        "..",
        "",
        "Golden.msgpack",
        "mödel.onnx",
        "x" * 65,
        "a b",
        "nul\0byte",
        "model.onnx\n",
        "-rf",
    ],
)
def test_file_names_that_could_leave_the_directory_are_refused(name):
    """Only flat lower-case ASCII names of at most 64 characters can be listed."""
    with pytest.raises(ManifestError, match="file names"):
        seal(manifest(files=(*manifest().files, file(name, "golden"))))


@pytest.mark.parametrize("twin", ["MODEL.ONNX", "model.onnx", "Model.onnx"])
def test_twins_of_a_file_name_are_refused(twin):
    """Two names that one file system could hold as one file are refused."""
    with pytest.raises(ManifestError, match="two files"):
        seal(manifest(files=(*manifest().files, file(twin, "golden"))))


def test_unicode_twins_are_refused():
    """Names that differ only in their normal form are taken for the same."""
    names = ("e\u0301.json", "\u00e9.json")
    with pytest.raises(ManifestError):
        seal(manifest(files=tuple(file(n, f"r{i}") for i, n in enumerate(names))))


def test_the_manifest_cannot_list_itself():
    """manifest.json is never one of its own files."""
    with pytest.raises(ManifestError, match="two files"):
        seal(manifest(files=(*manifest().files, file("manifest.json", "golden"))))


def test_too_many_files_and_too_many_bytes_are_refused():
    """Counts and sizes are capped before any file is read."""
    many = tuple(file(f"f{i}.json", f"r{i}") for i in range(MAX_FILES + 1))
    with pytest.raises(ManifestError):
        seal(manifest(files=many))
    with pytest.raises(ManifestError, match="at most"):
        decode_manifest(b" " * (MAX_MANIFEST_BYTES + 1))
    huge = tuple(file(f"f{i}.bin", f"r{i}", size=(1 << 31) - 1) for i in range(3))
    with pytest.raises(ManifestError, match="bytes in a release"):
        seal(manifest(files=(*manifest().files, *huge)))


def test_numbers_that_are_not_finite_are_refused():
    """1e999 is valid JSON and no number."""
    data = encode_manifest(seal(manifest(info=Info(metrics={"ap": 0.5}))))
    with pytest.raises(ManifestError):
        decode_manifest(data.replace(b"0.5", b"1e999"))


@pytest.mark.parametrize("variant", ["spaces", "order", "duplicate"])
def test_other_encodings_of_the_same_manifest_are_refused(variant):
    """White space, the order of fields and repeated fields are part of what the digest covers."""
    data = encode_manifest(seal(manifest()))
    document = json.loads(data)
    if variant == "spaces":
        other = json.dumps(document, separators=(",", ":")).encode()
    elif variant == "order":
        other = canonical(dict(reversed(document.items())))
    else:
        other = data.replace(b'"name": "fraud",', b'"name": "other",\n  "name": "fraud",', 1)
    with pytest.raises(ManifestError):
        decode_manifest(other)
