"""The file that remembers what was accepted: only grows, whole at every instant, written last."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retailinfer.errors import BundleError
from retailinfer.release import highwater
from retailinfer.release.highwater import State, raise_marks, read_state
from retailinfer.release.trust import Mark

A, B = "a" * 64, "b" * 64


@pytest.fixture
def path(tmp_path):
    """Where the state stands."""
    return str(tmp_path / "state.json")


def beside(path):
    """Names of the files in its folder."""
    return sorted(one.name for one in Path(path).parent.iterdir())


def test_nothing_was_accepted_where_there_is_no_file(path):
    """And reading makes none."""
    assert read_state(path) == State()
    assert not Path(path).exists()


def test_marks_read_back(path):
    """Of names and of revocations."""
    raise_marks(path, {"fraud": Mark(epoch=1, seq=3, sha256=A, loaded=B)}, Mark(epoch=1, seq=1))
    raise_marks(path, {"shop": Mark(loaded=A)}, None)
    assert read_state(path) == State(
        names={"fraud": Mark(epoch=1, seq=3, sha256=A, loaded=B), "shop": Mark(loaded=A)},
        revocations=Mark(epoch=1, seq=1),
    )


def test_a_lower_mark_changes_only_what_was_loaded(path):
    """A process that is slow takes nothing back from one that was faster."""
    raise_marks(path, {"fraud": Mark(epoch=2, seq=3, sha256=A, loaded=A)}, Mark(epoch=1, seq=5))
    raise_marks(path, {"fraud": Mark(epoch=1, seq=9, sha256=B, loaded=B)}, Mark(epoch=1, seq=4))
    assert read_state(path) == State(
        names={"fraud": Mark(epoch=2, seq=3, sha256=A, loaded=B)}, revocations=Mark(epoch=1, seq=5)
    )


def test_what_was_loaded_last_is_told_whole(path):
    """Digest, moment and fallbacks are of one release; a mark without them keeps those that are there."""
    first = Mark(epoch=1, seq=3, sha256=A, loaded=A, issued="2026-11-29T12:00:00Z", fallbacks=(B,))
    raise_marks(path, {"fraud": first}, None)
    raise_marks(path, {"fraud": Mark(epoch=1, seq=4, sha256=B)}, None)
    assert read_state(path).names["fraud"] == Mark(
        epoch=1, seq=4, sha256=B, loaded=A, issued="2026-11-29T12:00:00Z", fallbacks=(B,)
    )
    raise_marks(path, {"fraud": Mark(epoch=1, loaded=B)}, None)
    assert read_state(path).names["fraud"] == Mark(epoch=1, seq=4, sha256=B, loaded=B)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9)), min_size=1, max_size=8))
def test_the_mark_is_the_highest_of_all(tmp_path_factory, marks):
    """In whatever order they came."""
    path = str(tmp_path_factory.mktemp("state") / "state.json")
    for epoch, seq in marks:
        raise_marks(path, {"fraud": Mark(epoch=epoch, seq=seq)}, None)
    found = read_state(path).names["fraud"]
    assert (found.epoch, found.seq) == max(marks)


def test_a_restart_writes_nothing(path):
    """The file is not even touched."""
    mark = Mark(epoch=1, seq=3, sha256=A, loaded=B)
    raise_marks(path, {"fraud": mark}, None)
    before = Path(path).stat()
    raise_marks(path, {"fraud": mark}, None)
    after = Path(path).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"names":1}', b'{"more":1}', b"[" * 5000, b"x" * (1 << 20) + b"xx", b"\xff"]
)
def test_what_cannot_be_read_is_refused(path, data):
    """Not taken for nothing: an older release could come back unseen."""
    Path(path).write_bytes(data)
    for use in (lambda: read_state(path), lambda: raise_marks(path, {"fraud": Mark(epoch=1, seq=1)}, None)):
        with pytest.raises(BundleError, match="accepted"):
            use()
    assert Path(path).read_bytes() == data


CALLS = ["open", "write", "fsync", "rename", "scandir"]


@pytest.mark.parametrize(
    "code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS], ids=errno.errorcode.get
)
@pytest.mark.parametrize("name", CALLS)
def test_c42_every_call_that_fails_leaves_the_old_state_or_the_new_one(path, monkeypatch, name, code):
    """Each call of the file system fails once, at each of its turns; nothing is left beside, and the next try succeeds."""
    old = raise_marks(path, {"fraud": Mark(epoch=1, seq=1)}, None)
    real, turn, seen = getattr(os, name), 0, 0
    new = {"fraud": Mark(epoch=1, seq=2)}
    failed = ""
    while turn == 0 or failed:
        left, failed = [turn], ""

        def failing(*args, _left=left, **options):
            _left[0] -= 1
            if _left[0] == -1:
                raise OSError(code, os.strerror(code))
            return real(*args, **options)

        monkeypatch.setattr(highwater.os, name, failing)
        try:
            raise_marks(path, new, None)
        except BundleError as exc:
            failed = str(exc)
        monkeypatch.setattr(highwater.os, name, real)
        turn += 1
        if failed:
            seen += 1
            assert os.strerror(code) in failed
            assert read_state(path).names["fraud"].seq in (1, 2)
            assert beside(path) == ["state.json", "state.json.lock"]
            Path(path).unlink()
            assert raise_marks(path, old.names, None) == old
    assert seen >= 1
    assert read_state(path).names["fraud"].seq == 2


def test_c42_short_writes_are_finished(path, monkeypatch):
    """One byte at a time."""
    real = os.write
    monkeypatch.setattr(highwater.os, "write", lambda fd, data: real(fd, data[:1]))
    raise_marks(path, {"fraud": Mark(epoch=1, seq=1, loaded=A)}, None)
    assert read_state(path).names["fraud"] == Mark(epoch=1, seq=1, loaded=A)


WRITER = textwrap.dedent("""
    import sys
    from retailinfer.release.highwater import raise_marks
    from retailinfer.release.trust import Mark
    path, name = sys.argv[1:]
    for seq in range(1, 1_000_000):
        raise_marks(path, {name: Mark(epoch=1, seq=seq, loaded=f"{seq:064x}")}, None)
        print(seq, flush=True)
""")


def writer(path, name):
    """A process that raises marks until it is killed."""
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, path, name],
        stdout=subprocess.PIPE,
        text=True,
        stderr=subprocess.DEVNULL,
    )


def test_c41_a_process_that_is_killed_leaves_a_whole_file(path):
    """Two at a time, killed at random instants: what each said is accepted stays accepted, and the next one goes on."""
    rng = random.Random(5)
    kills, told = 0, {"a": 0, "b": 0}
    for _ in range(12):
        both = {name: writer(path, name) for name in ("a", "b")}
        for process in both.values():
            assert process.stdout is not None
            process.stdout.readline()  # it is under way
        time.sleep(rng.random() * 0.05)
        for name, process in both.items():
            process.send_signal(signal.SIGKILL)
            out, _ = process.communicate(timeout=30)
            whole = [line for line in out.split("\n")[:-1] if line.isdigit()]
            told[name] = max(told[name], int(whole[-1]) if whole else 1)
            kills += 1
        marks = read_state(path).names
        for name, seq in told.items():
            assert marks[name].seq >= seq
            assert marks[name].loaded is not None
    assert kills == 24
    raise_marks(path, {"a": Mark(epoch=2, seq=1)}, None)  # what they left beside is swept
    assert beside(path) == ["state.json", "state.json.lock"]


def test_two_processes_lose_nothing_of_each_other(path):
    """Each raises its own name, both at once."""
    script = WRITER.replace("1_000_000", "150")
    both = [
        subprocess.Popen([sys.executable, "-c", script, path, name], stdout=subprocess.DEVNULL)
        for name in ("a", "b")
    ]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    assert {name: mark.seq for name, mark in read_state(path).names.items()} == {"a": 149, "b": 149}


def test_a_child_that_was_forked_meanwhile_keeps_nobody_out(path, monkeypatch):
    """It has the descriptor of the lock, and lives on: who writes lets go of the lock itself, not of the descriptor alone."""
    real, children = highwater._write, []

    def forking(*args):
        pid = os.fork()
        if pid == 0:
            time.sleep(30)
            os._exit(0)
        children.append(pid)
        real(*args)

    monkeypatch.setattr(highwater, "_write", forking)
    try:
        raise_marks(path, {"fraud": Mark(epoch=1, seq=3)}, None)
        fd = os.open(path + ".lock", os.O_RDWR)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(fd)
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
