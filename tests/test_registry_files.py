"""Where a registry keeps its files: one of two writers wins, a reader sees whole files, what a store cannot do is said."""

from __future__ import annotations

import os
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest
from object_stores import ObjectStore
from registries import release

import retailinfer as ri
from retailinfer.errors import ConfigError, RegistryError
from retailinfer.release import registry_files
from retailinfer.release.registry_files import FsspecFiles, LocalFiles, open_files


@pytest.fixture(params=["folder", "memory", "object store"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """An empty place of each kind."""
    if request.param == "folder":
        return open_files(tmp_path / "registry")
    pytest.importorskip("fsspec", reason="`fsspec` is not installed (pip install retailinfer[test])")
    if request.param == "memory":
        return open_files(f"memory://{uuid.uuid4().hex}")
    store: ObjectStore = request.getfixturevalue("object_store")
    return open_files(f"{store.bucket(f'b-{uuid.uuid4().hex}')}/registry", storage_options=store.options)


def test_files_are_made_once(files):
    """The first makes it; the same bytes are welcome again, others are not."""
    assert files.read("a/b/c", 10) is None
    assert files.create("a/b/c", b"first")
    assert files.create("a/b/c", b"first")
    assert not files.create("a/b/c", b"other")
    assert files.read("a/b/c", 5) == b"first"
    with pytest.raises(RegistryError, match="at most 4 bytes"):
        files.read("a/b/c", 4)


def test_hints_are_replaced(files):
    """`put` is for what may be lost; empty files exist."""
    files.put("hint", b"1")
    files.put("hint", b"")
    assert files.read("hint", 0) == b""
    files.put("hint", b"2")
    assert files.read("hint", 10) == b"2"


def test_folders_are_listed_and_go(files):
    """Names only, sorted; nothing for what is not there; deleting what is gone is fine."""
    for name in ("x/b", "x/a", "y"):
        files.put(name, b"1")
    assert files.names("x") == ["a", "b"]
    assert files.names("nothing") == []
    files.delete("x/nothing")
    files.delete("nothing/x")
    files.delete_folder("nothing")
    files.delete_folder("x")
    assert files.names("x") == []
    assert files.read("x/a", 10) is None
    assert files.read("y", 10) == b"1"


def test_of_many_writers_one_wins(files):
    """Eight threads make the same file; the one that was told so finds its bytes there."""
    won: list[bytes] = []
    start = threading.Barrier(8)

    def write(mine: bytes) -> None:
        start.wait()
        for i in range(3):
            if files.create(f"race/{i}", mine):
                won.append(b"%d %b" % (i, mine))

    threads = [threading.Thread(target=write, args=(b"writer %d" % i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [b"%d %b" % (i, files.read(f"race/{i}", 100)) for i in range(3)]


# ---- a folder --------------------------------------------------------------------------------------------------------


def test_a_reader_sees_whole_files_only(tmp_path):
    """While a hint is replaced and files are made, every read gives all of one write."""
    files, stop = LocalFiles(str(tmp_path)), threading.Event()

    def write() -> None:
        for i in range(200):
            files.put("hint", b"%04d" % i * 1000)
            files.create(f"made/{i}", b"%04d" % i * 1000)
        stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    n = 0
    while not stop.is_set():
        for path in ["hint", *(f"made/{name}" for name in files.names("made")[-3:])]:
            data = files.read(path, 1 << 20)
            assert data is None or (len(data) == 4000 and data == data[:4] * 1000)
            n += 1
    writer.join()
    assert n > 100
    assert files.names("temporary") == []


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_refused_without_waiting(tmp_path, kind):
    """A pipe in the place of a pointer blocks nobody."""
    path = tmp_path / "thing"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(RegistryError):
        LocalFiles(str(tmp_path)).read("thing", 100)


def test_a_file_in_the_place_of_a_folder_is_told(tmp_path):
    """Nothing is there below it, and nothing can be made."""
    (tmp_path / "names").write_bytes(b"")
    files = LocalFiles(str(tmp_path))
    assert files.names("names") == []
    assert files.read("names/x", 10) is None
    with pytest.raises(RegistryError, match="cannot write 'names/x'"):
        files.create("names/x", b"1")
    assert files.names("temporary") == []


def test_a_file_system_without_links_is_told(tmp_path, monkeypatch):
    """The promise rests on hard links; where there are none it is not given."""

    def link(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    registry = ri.Registry(tmp_path, trust="unsigned", who="anna")
    with pytest.raises(RegistryError, match="needs a file system with hard links"):
        registry.publish(release("1.0"))
    assert registry.releases() == ()
    assert list((tmp_path / "releases").iterdir()) == []
    assert list((tmp_path / "temporary").iterdir()) == []


def test_what_killed_writers_left_is_swept(tmp_path):
    """Old ones only."""
    files = LocalFiles(str(tmp_path))
    for name, age_s in (("old", 100), ("young", 0)):
        files.put(f"temporary/{name}", b"")
        os.utime(tmp_path / "temporary" / name, (1_000 - age_s, 1_000 - age_s))
    assert files.sweep(950.0) == 1
    assert files.names("temporary") == ["young"]


def test_a_url_of_a_folder_is_the_folder(tmp_path):
    """`file://` needs no package."""
    files = open_files(f"file://{tmp_path}/registry")
    assert isinstance(files, LocalFiles)
    assert files.root == tmp_path / "registry"


# ---- what a store cannot do ------------------------------------------------------------------------------------------


def test_a_store_that_ignores_conditions_is_found_out(tmp_path):
    """It answers 200 to both writers: said before the first pointer is made, and allowed for one writer who says so."""
    pytest.importorskip("moto", reason="`moto` is not installed (pip install retailinfer[test])")
    with ObjectStore(tmp_path, "If-None-Match") as store:
        url, given = (
            store.bucket("tests-1"),
            {"storage_options": store.options, "trust": "unsigned", "who": "anna"},
        )
        registry = ri.Registry(f"{url}/r", **given)
        with pytest.raises(RegistryError, match="ignores the condition of a conditional write"):
            registry.publish(release("1.0"))
        assert registry.releases() == ()
        assert registry._records.files.names("releases") == []
        alone = ri.Registry(f"{url}/r", single_writer=True, **given)
        alone.publish(release("1.0"))
        assert alone.promote("fraud:1.0", why="first").seq == 1
        assert registry.read("fraud") == release("1.0")


def test_a_place_without_conditions_can_only_be_read(tmp_path):
    """fsspec's `dir` over a folder has none: what is there is read, writing is refused."""
    pytest.importorskip("fsspec", reason="`fsspec` is not installed (pip install retailinfer[test])")
    ri.Registry(tmp_path / "r", trust="unsigned", who="anna").publish(release("1.0"))
    options = {"target_protocol": "file", "path": str(tmp_path)}
    for single_writer in (False, True):
        registry = ri.Registry(
            "dir://r", trust="unsigned", who="anna", storage_options=options, single_writer=single_writer
        )
        assert registry.read("fraud:1.0") == release("1.0")
        with pytest.raises(RegistryError, match="can only be read: it has no way to let exactly one"):
            registry.publish(release("1.1"))
        with pytest.raises(RegistryError, match="can only be read"):
            registry.promote("fraud:1.0", why="first")


def test_a_store_out_of_reach_is_told(tmp_path, object_store):
    """A typed error that names the file; nothing hangs."""
    options = {
        **object_store.options,
        "endpoint_url": "http://127.0.0.1:9",
        "config_kwargs": {"retries": {"max_attempts": 0}},
    }
    registry = ri.Registry("s3://tests/r", trust="unsigned", storage_options=options)
    with pytest.raises(RegistryError, match="cannot list 'pointers/production/fraud'"):
        registry.pointer("fraud")
    with pytest.raises(RegistryError, match="cannot list"):
        registry.releases()


def test_a_bucket_that_is_not_there_is_told(object_store):
    """Writing says so; there is nothing to read."""
    registry = ri.Registry(
        "s3://no-such-bucket/r", trust="unsigned", who="anna", storage_options=object_store.options
    )
    assert registry.releases() == ()
    with pytest.raises(RegistryError, match="cannot write"):
        registry.publish(release("1.0"))


def test_a_lost_answer_of_a_store_is_looked_up(object_store, monkeypatch):
    """The write took effect and its answer was lost: the retry is refused, and yet it was ours."""
    files = FsspecFiles(
        f"{object_store.bucket(f'b-{uuid.uuid4().hex}')}/r", storage_options=object_store.options
    )
    write, lost = files._conditional, []

    def lose(fs: Any, at: str, data: bytes) -> None:
        write(fs, at, data)
        lost.append(at)
        raise TimeoutError("no answer")

    assert files.create("warm", b"up")
    monkeypatch.setattr(files, "_conditional", lose)
    assert files.create("pointer", b"mine") is True
    assert files.create("pointer", b"theirs") is False
    assert len(lost) == 1


def test_a_store_that_cannot_tell_yet_is_asked_again(object_store, monkeypatch):
    """S3 answers 409 while two requests meet: neither yes nor no."""
    files = FsspecFiles(
        f"{object_store.bucket(f'b-{uuid.uuid4().hex}')}/r", storage_options=object_store.options
    )
    write, asked = files._conditional, []

    def conflict(fs: Any, at: str, data: bytes) -> None:
        asked.append(at)
        if len(asked) < 3:
            raise OSError(16, "ConditionalRequestConflict")
        write(fs, at, data)

    assert files.create("warm", b"up")
    monkeypatch.setattr(files, "_conditional", conflict)
    assert files.create("pointer", b"mine") is True
    assert len(asked) == 3
    asked.clear()
    monkeypatch.setattr(registry_files, "_ATTEMPTS", 2)
    with pytest.raises(RegistryError, match=r"ConditionalRequestConflict|Device or resource busy"):
        files.create("another", b"mine")


def test_a_forked_child_reaches_the_store_anew(object_store):
    """The parent's connections and loop stay the parent's."""
    files = FsspecFiles(
        f"{object_store.bucket(f'b-{uuid.uuid4().hex}')}/r", storage_options=object_store.options
    )
    files.put("x", b"1")
    pid = os.fork()
    if pid == 0:  # pragma: no cover - in the child
        code = 1
        try:
            code = 0 if files.read("x", 10) == b"1" and files.create("y", b"2") else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert files.read("y", 10) == b"2"


def test_fsspec_that_is_not_installed_is_told(monkeypatch):
    """What to install, in one line."""
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(ConfigError, match=r"pip install 'retailinfer\[registry\]'"):
        open_files("s3://bucket/registry")
