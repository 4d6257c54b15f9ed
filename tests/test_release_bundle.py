"""Reading and writing a release: every byte is verified, nothing but regular files is read, writing is all or nothing."""

from __future__ import annotations

import os
import random
import socket
import threading
from pathlib import Path

import msgspec
import pytest

from retailinfer.errors import BundleError, ConfigError, IntegrityError, ManifestError, SpecError
from retailinfer.release import bundle as bundle_module
from retailinfer.release.bundle import parse, parser_calls, read_bundle, resolve_trust, write_bundle
from retailinfer.release.manifest import Info, InputSource, Machine, Manifest, ModelEntry, Output, ScoreRef

FILES = {
    "features.json": ("features", b'{"format":1}'),
    "contract.json": ("contract", b"{}"),
    "model.onnx": ("model:model", bytes(range(256)) * 4),
    "golden.msgpack": ("golden", b""),
}


def manifest(**changes) -> Manifest:
    """A manifest for `FILES`."""
    given = {
        "name": "fraud",
        "version": "1.0",
        "task": "classification",
        "created": "2026-11-22T13:00:00Z",
        "files": (),
        "models": (
            ModelEntry(
                role="model",
                file="model.onnx",
                inputs={"x": InputSource(kind="tensor", name="features")},
                outputs=(Output(name="y", dtype="float32"),),
            ),
        ),
        "score": ScoreRef(role="model", output="y"),
        "spec_fingerprint": "0" * 64,
        "machine": Machine(cpu="linux-x86_64"),
        "info": Info(version="1.0"),
    }
    return Manifest(**{**given, **changes})


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A small release on disk."""
    folder = tmp_path / "releases" / "fraud"
    write_bundle(folder, FILES, manifest())
    return folder


def in_memory(folder: Path) -> dict[str, bytes]:
    """The files of a release, its manifest included."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- reading -------------------------------------------------------------------------------------------------------


def test_a_written_release_reads_back(release):
    """Manifest and files come back as they were given, from disk and from memory."""
    for source in (release, str(release), in_memory(release)):
        bundle = read_bundle(source)
        assert bundle.files == {name: data for name, (_, data) in FILES.items()}
        assert bundle.manifest.release == "fraud:1.0"
        assert [entry.file for entry in bundle.manifest.files] == sorted(FILES)


def test_every_flipped_byte_is_refused(release):
    """A release with one bit changed anywhere, in any file, does not load."""
    files = in_memory(release)
    for name, data in files.items():
        for at in range(len(data)):
            flipped = bytearray(data)
            flipped[at] ^= 1 << (at % 8)
            with pytest.raises((IntegrityError, ManifestError)):
                read_bundle({**files, name: bytes(flipped)})


def test_every_truncation_and_every_appended_byte_is_refused(release):
    """A file that is shorter or longer than listed does not load."""
    files = in_memory(release)
    for name, data in files.items():
        cuts = range(len(data)) if len(data) < 300 else random.Random(1).sample(range(len(data)), 100)
        for cut in cuts:
            with pytest.raises((IntegrityError, ManifestError)):
                read_bundle({**files, name: data[:cut]})
        for tail in (b"\0", b"\n", b" ", b"x" * 4096):
            with pytest.raises((IntegrityError, ManifestError)):
                read_bundle({**files, name: data + tail})


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_changed_on_disk_is_refused(release, name):
    """The same on disk: changed, cut, extended, gone or renamed."""
    path = release / name
    whole = path.read_bytes()
    for data in (b"x" + whole[1:] if whole else b"x", whole + b"\0", whole[:-1] if whole else b"\0"):
        path.write_bytes(data)
        with pytest.raises(IntegrityError, match=name):
            read_bundle(release)
    path.write_bytes(whole)
    path.rename(release / "other.bin")
    with pytest.raises(IntegrityError, match="lacks"):
        read_bundle(release)


def test_files_swapped_between_two_releases_are_refused(release, tmp_path):
    """Two valid releases cannot be mixed."""
    other = tmp_path / "other"
    write_bundle(other, {**FILES, "model.onnx": ("model:model", b"another model")}, manifest())
    mine, theirs = in_memory(release), in_memory(other)
    for name in ("manifest.json", "model.onnx"):
        with pytest.raises(IntegrityError):
            read_bundle({**mine, name: theirs[name]})


def test_an_unlisted_file_is_refused(release):
    """A release is never added to, not even by an empty file."""
    (release / "notes.txt").write_bytes(b"")
    with pytest.raises(IntegrityError, match=r"notes\.txt"):
        read_bundle(release)
    with pytest.raises(IntegrityError, match="extra"):
        read_bundle({**in_memory(release), "extra": b""})


def test_kubernetes_own_folders_do_not_disturb(release, tmp_path):
    """A mounted volume holds links into folders that start with two dots."""
    mount = tmp_path / "mount"
    data = mount / "..2026_11_22"
    data.mkdir(parents=True)
    (mount / "..data").symlink_to(data)
    for path in release.iterdir():
        (data / path.name).write_bytes(path.read_bytes())
        (mount / path.name).symlink_to(Path("..data") / path.name)
    assert read_bundle(mount).manifest.name == "fraud"
    with pytest.raises(BundleError):
        read_bundle(mount, strict_paths=True)


@pytest.mark.parametrize("kind", ["pipe", "folder", "socket", "dangling link", "device"])
def test_what_is_no_regular_file_is_refused_without_waiting(release, kind, tmp_path):
    """A pipe, a folder, a socket, a dead link or a device in place of a file is refused, and nothing blocks."""
    path = release / "model.onnx"
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(tmp_path / "s"))
        (tmp_path / "s").rename(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to(release / "nowhere")
    caught: list[BaseException] = []

    def read() -> None:
        try:
            read_bundle(release)
        except BundleError as exc:
            caught.append(exc)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(timeout=20)  # a read of the pipe would wait for ever
    assert not reader.is_alive()
    assert isinstance(caught[0], IntegrityError)
    assert "model.onnx" in str(caught[0])


def test_pipe_as_manifest_is_refused(release):
    """The manifest itself is looked at before it is opened, too."""
    (release / "manifest.json").unlink()
    os.mkfifo(release / "manifest.json")
    with pytest.raises(IntegrityError, match="a pipe"):
        read_bundle(release)


def test_links_are_followed_unless_paths_are_strict(release, tmp_path):
    """A link to the right bytes is fine by default; strict paths want plain files that only their owner can change."""
    real = tmp_path / "elsewhere.onnx"
    (release / "model.onnx").rename(real)
    (release / "model.onnx").symlink_to(real)
    assert read_bundle(release).files["model.onnx"] == FILES["model.onnx"][1]
    with pytest.raises(IntegrityError, match="a link"):
        read_bundle(release, strict_paths=True)


def test_strict_paths_refuse_hard_links_and_files_that_others_may_write(release, tmp_path):
    """A file with a second name or loose rights can change behind the release's back."""
    assert read_bundle(release, strict_paths=True).manifest.name == "fraud"
    os.link(release / "model.onnx", tmp_path / "second")
    with pytest.raises(IntegrityError, match="hard link"):
        read_bundle(release, strict_paths=True)
    (tmp_path / "second").unlink()
    (release / "model.onnx").chmod(0o666)
    with pytest.raises(IntegrityError, match="written by others"):
        read_bundle(release, strict_paths=True)
    assert read_bundle(release).manifest.name == "fraud"


def test_a_file_that_grows_while_it_is_read_is_refused(release, monkeypatch):
    """Endless data cannot be fed in after the size was looked at."""
    path = release / "model.onnx"
    real = os.fstat

    def late(fd: int) -> os.stat_result:
        found = real(fd)
        if found.st_size == len(FILES["model.onnx"][1]) and path.stat().st_size == found.st_size:
            with path.open("ab") as file:
                file.write(b"x" * 1000)
        return found

    monkeypatch.setattr(bundle_module.os, "fstat", late)
    with pytest.raises(IntegrityError, match=r"model\.onnx"):
        read_bundle(release)


def test_what_is_returned_does_not_change_with_the_source(release):
    """The bytes are read once: later changes of the file, or of a caller's buffer, do not reach the bundle."""
    files: dict[str, bytes | bytearray] = dict(in_memory(release))
    files["model.onnx"] = bytearray(files["model.onnx"])
    bundle = read_bundle(files)  # type: ignore[arg-type]
    on_disk = read_bundle(release)
    files["model.onnx"][0] ^= 255  # type: ignore[index]
    (release / "model.onnx").write_bytes(b"")
    assert bundle.files["model.onnx"] == on_disk.files["model.onnx"] == FILES["model.onnx"][1]


@pytest.mark.parametrize(
    ("source", "error"),
    [("nowhere", BundleError), ("", BundleError), ("a\0b", BundleError), ({}, ManifestError)],
)
def test_what_is_no_release_is_refused(source, error, tmp_path):
    """No directory, no manifest: a typed error that says so."""
    with pytest.raises(error):
        read_bundle(source)
    with pytest.raises(ManifestError, match=r"manifest\.json"):
        read_bundle(tmp_path)


@pytest.mark.parametrize(
    "broken", [{"manifest.json": "text"}, {"manifest.json": b"{}", 3: b""}, {"manifest.json": b"", "x": 1}]
)
def test_mappings_of_anything_but_bytes_are_refused(broken):
    """A release in memory is a mapping of names to bytes."""
    with pytest.raises(ManifestError):
        read_bundle(broken)


def test_too_many_files_are_refused_before_any_is_read(tmp_path, monkeypatch):
    """A directory of a million entries costs nothing but its listing, which stops early."""
    monkeypatch.setattr(bundle_module, "MAX_FILES", 5)
    for i in range(10):
        (tmp_path / f"f{i}").write_bytes(b"")
    with pytest.raises(ManifestError, match="at most 5"):
        read_bundle(tmp_path)
    with pytest.raises(ManifestError, match="at most 5"):
        read_bundle({f"f{i}": b"" for i in range(10)})


# ---- the seam ------------------------------------------------------------------------------------------------------


def test_parsers_are_counted_and_none_runs_before_the_hashes(release):
    """A changed file is refused before anything but the manifest was parsed."""
    parser_calls.clear()
    (release / "model.onnx").write_bytes(b"x" * len(FILES["model.onnx"][1]))
    with pytest.raises(IntegrityError):
        read_bundle(release)
    assert dict(parser_calls) == {"manifest.json": 1}
    (release / "model.onnx").write_bytes(FILES["model.onnx"][1])
    bundle = read_bundle(release)
    assert bundle.read("contract", msgspec.json.decode) == {}
    assert bundle.read("policy", msgspec.json.decode) is None
    assert dict(parser_calls) == {"manifest.json": 2, "contract.json": 1}


def test_a_malformed_part_of_a_release_is_the_releases_fault():
    """What a parser calls a mistake of the caller is one of the release, when a release holds it."""

    def parser(_: bytes) -> None:
        raise SpecError("two columns are named `a`")

    with pytest.raises(ManifestError, match=r"features\.json.*two columns"):
        parse("features.json", parser, b"")


# ---- trust ---------------------------------------------------------------------------------------------------------


def test_trust_must_be_said(monkeypatch):
    """A release without a signature loads only for those who say that they know."""
    monkeypatch.delenv("RETAILINFER_TRUST", raising=False)
    with pytest.raises(ConfigError, match="unsigned"):
        resolve_trust(None)
    assert resolve_trust("unsigned") is None
    monkeypatch.setenv("RETAILINFER_TRUST", "unsigned")
    assert resolve_trust(None) is None
    monkeypatch.setenv("RETAILINFER_TRUST", "keys.json")
    with pytest.raises(ConfigError, match="RETAILINFER_TRUST"):
        resolve_trust(None)
    with pytest.raises(ConfigError):
        resolve_trust("Unsigned")


# ---- writing -------------------------------------------------------------------------------------------------------


def test_the_same_content_is_written_once(release):
    """Packing the same again, at another moment, leaves the first release as it is."""
    before = in_memory(release)
    again = write_bundle(release, FILES, manifest(created="2027-01-01T00:00:00Z"))
    assert again.created == "2026-11-22T13:00:00Z"
    assert in_memory(release) == before


def test_another_release_in_the_same_place_is_refused(release):
    """A release is never overwritten."""
    before = in_memory(release)
    with pytest.raises(BundleError, match="never change"):
        write_bundle(release, {**FILES, "contract.json": ("contract", b'{"max_rows":1}')}, manifest())
    with pytest.raises(BundleError, match="never change"):
        write_bundle(release, FILES, manifest(info=Info(version="1.0", owner="somebody else")))
    assert in_memory(release) == before
    assert os.listdir(release.parent) == [release.name]  # noqa: PTH208 - names only


def test_a_place_that_is_taken_by_something_else_is_refused(tmp_path):
    """A file, a link, or a directory with other things in it, stays untouched."""
    taken = tmp_path / "taken"
    taken.write_bytes(b"mine")
    with pytest.raises(BundleError, match="not a directory"):
        write_bundle(taken, FILES, manifest())
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_bytes(b"mine")
    with pytest.raises(BundleError, match="not a whole release"):
        write_bundle(other, FILES, manifest())
    assert (other / "thesis.tex").read_bytes() == taken.read_bytes() == b"mine"


def test_an_empty_directory_is_filled(tmp_path):
    """A directory made beforehand, as by `mkdir -p`, is fine."""
    target = tmp_path / "a" / "b"
    target.mkdir(parents=True)
    write_bundle(target, FILES, manifest())
    assert read_bundle(target).manifest.name == "fraud"


@pytest.mark.parametrize("call", ["write", "fsync", "rename", "mkdir"])
def test_a_failing_disk_leaves_nothing_behind(tmp_path, monkeypatch, call):
    """Whichever step fails, there is no release and no rest of one."""
    target = tmp_path / "deep" / "fraud"

    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    if call in ("write", "fsync"):
        monkeypatch.setattr(bundle_module.os, call, fail)
    else:
        monkeypatch.setattr(f"pathlib.Path.{call}", fail)
    with pytest.raises(BundleError, match="No space left"):
        write_bundle(target, FILES, manifest())
    monkeypatch.undo()
    assert not target.exists()
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_two_writers_at_once_give_one_release(tmp_path):
    """Writers of the same content agree; none of them leaves anything behind."""
    target = tmp_path / "fraud"
    start = threading.Barrier(4)
    seen: list[str] = []

    def write() -> None:
        start.wait(timeout=20)
        seen.append(write_bundle(target, FILES, manifest()).digest)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(seen) == 4
    assert len(set(seen)) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["fraud"]
    assert read_bundle(target).manifest.digest == seen[0]


def test_names_that_are_not_allowed_are_never_written(tmp_path):
    """The rule for names holds when writing, too."""
    with pytest.raises(ManifestError):
        write_bundle(tmp_path / "fraud", {**FILES, "../escape": ("golden2", b"")}, manifest())
    assert list(tmp_path.iterdir()) == []
