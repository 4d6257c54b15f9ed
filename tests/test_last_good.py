"""What a host keeps of the releases that it has loaded: whole at every instant, whoever is killed and whatever fails.

`RETAILINFER_CRASHES` says how many random kills (make soak: thousands).
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from last_good_kills import ACTIONS, MOMENT, VERSIONS, check, go_back, in_child, keep, kill_keepers, last_good
from registries import digest, release

from retailinfer.errors import BundleError, ConfigError, IntegrityError, RegistryError
from retailinfer.release import last_good as module
from retailinfer.release.last_good import LastGood, host_turn

N_KILLS = int(os.environ.get("RETAILINFER_CRASHES", "240"))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a place: what is asked of the disk most is fsync, and kills and failures are the same."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path / "last-good"
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as found:
        yield Path(found, "last-good")


def test_nothing_is_kept_where_nothing_was(folder):
    """And looking makes nothing."""
    place = last_good(folder)
    assert place.kept() == ()
    assert place.rollback() is None
    assert place.files(digest(release("1.0"))) is None
    place.set_rollback(None)
    assert not folder.exists()


def test_the_last_two_are_kept(folder):
    """Newest first; the files of others go."""
    assert [keep(folder, version) for version in ("1.0", "1.1", "1.1", "1.2")] == [True, True, False, True]
    assert [one.version for one in check(folder)] == ["1.2", "1.1"]
    assert last_good(folder).files(digest(release("1.0"))) is None
    assert len([path for path in last_good(folder).folder.iterdir() if path.is_dir()]) == 2
    assert keep(folder, "1.1")  # back again: its files are there
    assert [one.version for one in check(folder)] == ["1.1", "1.2"]


def test_names_and_environments_are_kept_apart(folder):
    """One folder for all that a host runs."""
    keep(folder, "1.0")
    other = LastGood(folder, environment="staging", name="fraud")
    assert other.kept() == ()
    other.keep(release("1.1"), digest=digest(release("1.1")), version="1.1", pointer=b"", verified=MOMENT)
    assert [one.version for one in check(folder)] == ["1.0"]


def test_what_is_kept_is_for_its_owner(folder):
    """Models and pointers are nobody else's business."""
    keep(folder, "1.0")
    for path in [folder, *folder.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_rollback_is_kept_until_it_is_over(folder):
    """So that a process that starts in between knows of it."""
    go_back(folder, "1.1")
    found = last_good(folder).rollback()
    assert found is not None
    assert (found.to, found.why) == (digest(release("1.1")), "3 a.m.")
    last_good(folder).set_rollback(None)
    assert last_good(folder).rollback() is None


@pytest.mark.parametrize("damage", ["lost file", "flipped byte", "more", "lost folder"])
def test_damaged_files_are_written_again(folder, damage):
    """Whoever loads the same release again mends what was damaged; what is read meanwhile is for the verifier to refuse."""
    keep(folder, "1.0")
    keep(folder, "1.1")
    there = last_good(folder).folder / next(one.folder for one in check(folder) if one.version == "1.0")
    model = there / "model.onnx"
    if damage == "lost file":
        model.unlink()
    elif damage == "flipped byte":
        model.write_bytes(b"?" + model.read_bytes()[1:])
    elif damage == "more":
        (there / "more").write_bytes(b"")
    else:
        shutil.rmtree(there)
        with pytest.raises(RegistryError, match="read"):
            last_good(folder).files(digest(release("1.0")))
    keep(folder, "1.0")
    assert [one.version for one in check(folder)] == ["1.0", "1.1"]


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"format":2}', b"[" * 9000, b"\xff", b" " * (1 << 20) + b"{}"]
)
@pytest.mark.parametrize("name", ["last-good.json", "rollback.json"])
def test_records_that_cannot_be_read_are_told(folder, name, data):
    """By a typed error; the next release that is kept makes a new record."""
    keep(folder, "1.0")
    path = last_good(folder).folder / name
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=name.replace(".", r"\.")):
        last_good(folder).kept() if name == "last-good.json" else last_good(folder).rollback()
    if name == "last-good.json":
        keep(folder, "1.1")
        assert [one.version for one in check(folder)] == ["1.1"]
    else:
        go_back(folder, "1.1")
        check(folder)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "A"])
def test_no_file_is_written_elsewhere(folder, name):
    """Names come from releases that were verified; here they are looked at again."""
    with pytest.raises(RegistryError, match="no name"):
        last_good(folder).keep({name: b""}, digest="0" * 64, version="1.0", pointer=b"", verified=MOMENT)
    with pytest.raises(RegistryError, match="no name"):
        last_good(folder).keep({}, digest="0" * 64, version=name, pointer=b"", verified=MOMENT)
    assert not folder.exists()


@pytest.mark.parametrize("folder", [None, "", 7])
def test_a_folder_is_a_path(folder):
    """Said when the follower is made."""
    with pytest.raises(ConfigError, match="last_good"):
        LastGood(folder, environment="production", name="fraud")


def test_a_pipe_in_place_of_a_record_does_not_block(folder):
    """What is no file is refused, not waited for."""
    keep(folder, "1.0")
    path = last_good(folder).folder / "last-good.json"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises((IntegrityError, RegistryError)):
        last_good(folder).kept()


CALLS = (
    "open",
    "write",
    "fsync",
    "replace",
    "mkdir",
    "unlink",
    "rmdir",
    "scandir",
    "listdir",
    "fdopen",
    "close",
)


class Accidents:
    """Calls of `os` that are counted; one of them fails, is cut short, or is the last one of the process."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int, accident: Any) -> None:
        self.n, self.at, self.accident, self.hit = 0, at, accident, ""
        for name in CALLS:
            patch.setattr(os, name, self.watched(name, getattr(os, name)))

    def watched(self, name: str, real: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            self.n += 1
            if self.n == self.at:
                self.hit = name
                if name == "close":  # the descriptor is gone, whatever close says
                    real(*args)
                if self.accident == "short":
                    return real(args[0], args[1][:1]) if name == "write" else real(*args, **options)
                if self.accident == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError(self.accident, os.strerror(self.accident))
            return real(*args, **options)

        return call


@pytest.mark.parametrize("action", ["keep 1.1", "keep 1.2", "go back", "go on"])
@pytest.mark.parametrize(
    "accident",
    [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT, "short"],
    ids=lambda one: errno.errorcode.get(one, one),
)
def test_c42_each_call_of_the_file_system_fails_once(folder, monkeypatch, action, accident):
    """A full, broken or read-only disk, at every call: a typed error or success, old or new, and the next try works."""
    hit: set[str] = set()
    for n in range(1, 500):
        shutil.rmtree(folder, ignore_errors=True)
        keep(folder, "1.0")
        keep(folder, "1.1")
        if action == "go on":
            go_back(folder, "1.1")
        before = check(folder)
        failed = ""
        with monkeypatch.context() as patch:
            accidents = Accidents(patch, n, accident)
            try:
                ACTIONS[action](folder)
            except (RegistryError, BundleError) as exc:
                failed = str(exc)
        if not accidents.hit:
            break
        hit.add(accidents.hit)
        now = check(folder)
        if not failed and action.startswith("keep"):
            assert now[0].version == action.removeprefix("keep ")
        assert now[0].version in (before[0].version, action.removeprefix("keep "))
        if failed and accident != "short":
            assert os.strerror(accident) in failed
        ACTIONS[action](folder)
        keep(folder, "1.3")
        check(folder)
        assert len([path for path in last_good(folder).folder.iterdir() if path.is_dir()]) == 2
    assert n > 3
    assert "open" in hit
    if action == "keep 1.2":
        assert {"open", "write", "fsync", "replace", "mkdir", "unlink", "rmdir"} <= hit


@pytest.mark.parametrize("action", ["keep 1.2", "keep 1.1", "go back", "go on"])
def test_c41_killed_at_each_call_of_the_file_system(folder, action):
    """Before the n-th call, for every n: the state is old or new, and both happen."""
    seen: set[str] = set()
    for n in range(1, 500):
        shutil.rmtree(folder, ignore_errors=True)
        keep(folder, "1.1")
        keep(folder, "1.0")
        if action == "go on":
            go_back(folder, "1.1")
        pid = in_child(folder, action, lambda n=n: Accidents(pytest.MonkeyPatch(), n, "kill"))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kept, rollback = check(folder), last_good(folder).rollback()
        seen.add(f"{kept[0].version} {rollback is not None}")
        ACTIONS[action](folder)
        check(folder)
    assert n > 3
    assert len(seen) == 2


def test_c41_killed_at_random_instants(folder):
    """Hundreds of kills; one folder takes them all, and never needs a hand."""
    assert kill_keepers(folder, N_KILLS, seed=6) > N_KILLS // 5


def test_writers_and_readers_at_once(folder):
    """Whoever reads finds a whole release, while others replace it."""
    keep(folder, "1.0")
    stop, problems, reads = threading.Event(), [], [0]

    def look() -> None:
        place = last_good(folder)
        while not stop.is_set():
            try:
                for one in place.kept():
                    files = place.files(one.digest)
                    assert files is None or files == release(one.version)
                    reads[0] += files is not None
            except Exception as exc:
                problems.append(exc)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    versions = itertools.cycle(VERSIONS)
    until = monotonic() + 20.0
    for _ in range(40):
        keep(folder, next(versions))
    while (
        reads[0] <= 10 and not problems and monotonic() < until
    ):  # a busy machine lets writers win each race
        keep(folder, next(versions))
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == []
    assert reads[0] > 10


# ---- one after the other ---------------------------------------------------------------------------------------------


def no_wait(seconds: float) -> bool:
    """Waiting that takes no time."""
    assert 0 < seconds < 1
    return False


def test_one_has_the_turn_and_others_wait(folder):
    """As long as they were told to; then they go on nevertheless."""
    waited: list[float] = []

    def wait(seconds: float) -> bool:
        waited.append(seconds)
        return False

    with host_turn(folder, most_s=1, wait=no_wait, jitter=lambda: 0.5) as first:
        assert first
        with host_turn(folder, most_s=1, wait=wait, jitter=lambda: 0.5) as second:
            assert not second
    assert sum(waited) == pytest.approx(1.0, abs=0.1)
    with host_turn(folder, most_s=1, wait=no_wait, jitter=lambda: 0.5) as third:
        assert third


def test_who_is_to_stop_does_not_wait(folder):
    """A door that is closed meanwhile."""
    with host_turn(folder, most_s=100, wait=no_wait, jitter=lambda: 0.5):
        calls: list[float] = []

        def stopped(seconds: float) -> bool:
            calls.append(seconds)
            return True

        with host_turn(folder, most_s=100, wait=stopped, jitter=lambda: 0.5) as mine:
            assert not mine
        assert len(calls) == 1


@pytest.mark.parametrize("place", ["nowhere", "read-only"])
def test_without_a_folder_everybody_goes_on(tmp_path, place, monkeypatch):
    """Loading does not depend on a disk."""
    root: Path | None = None
    if place == "read-only":
        root = tmp_path / "turns"

        def refuse(*_: Any, **__: Any) -> int:
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr(module.os, "open", refuse)
    with host_turn(root, most_s=100, wait=no_wait, jitter=lambda: 0.5) as mine:
        assert not mine


def test_a_turn_ends_with_its_process(folder):
    """kill -9 in the middle of loading holds nobody up."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:  # pragma: no cover - in the child
        with host_turn(folder, most_s=1, wait=no_wait, jitter=lambda: 0.5):
            os.write(write, b".")
            signal.pause()
        os._exit(0)
    os.read(read, 1)
    with host_turn(folder, most_s=0.1, wait=no_wait, jitter=lambda: 0.5) as mine:
        assert not mine
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with host_turn(folder, most_s=0.1, wait=no_wait, jitter=lambda: 0.5) as mine:
        assert mine
    os.close(read)
    os.close(write)
