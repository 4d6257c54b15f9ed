"""Documents of moved thresholds on a host's own disk: kept whole or not at all, the latest ones, believed by nobody."""

from __future__ import annotations

import errno
import os
import signal

import pytest
from last_good_kills import last_good
from test_last_good import Accidents, folder

from retailinfer.errors import BundleError, IntegrityError, RegistryError
from retailinfer.release.last_good import MAX_OVERRIDES_BYTES

__all__ = ["folder"]

OLD, NEW = (b"a", b"b"), (b"a", b"b", b"c" * 700)


def keep(place, documents=NEW):
    """The documents of a registry."""
    last_good(place).keep_overrides(documents)


def kept(place):
    """What another process finds."""
    return last_good(place).overrides()


def test_what_is_kept_is_found(folder):
    """Nothing where nothing was kept; the same again writes nothing."""
    assert kept(folder) == ()
    assert not folder.exists()
    keep(folder, OLD)
    assert kept(folder) == OLD
    path = last_good(folder).folder / "overrides.json"
    before = path.stat()
    keep(folder, OLD)
    assert path.stat().st_ino == before.st_ino
    assert before.st_mode & 0o077 == 0
    keep(folder, NEW)
    assert kept(folder) == NEW


def test_the_latest_are_kept_that_find_room(folder):
    """What holds now was decided lately; a file that grows for years would not be read one day."""
    many = tuple(b"%06d" % n + b"x" * 4_000 for n in range(1_000))
    keep(folder, many)
    found = kept(folder)
    assert found == many[-len(found) :]
    assert MAX_OVERRIDES_BYTES - 10_000 < sum(map(len, found)) <= MAX_OVERRIDES_BYTES
    keep(folder, (b"x" * (MAX_OVERRIDES_BYTES + 1),))
    assert kept(folder) == ()


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"documents":["?"]}', b"\xff" * 9, b"x" * ((1 << 20) + 1)]
)
def test_a_file_that_cannot_be_read_is_told_and_written_again(folder, data):
    """It is worth nothing, and stands in nobody's way."""
    keep(folder, OLD)
    (last_good(folder).folder / "overrides.json").write_bytes(data)
    with pytest.raises(IntegrityError):
        kept(folder)
    keep(folder, NEW)
    assert kept(folder) == NEW


@pytest.mark.parametrize(
    "accident", [errno.ENOSPC, errno.EIO, errno.EROFS, "short"], ids=lambda one: errno.errorcode.get(one, one)
)
def test_c42_each_call_of_the_file_system_fails_once(folder, monkeypatch, accident):
    """A typed error or success, the old documents or the new ones, and the next try works."""
    hit: set[str] = set()
    for n in range(1, 200):
        keep(folder, OLD)
        failed = False
        with monkeypatch.context() as patch:
            accidents = Accidents(patch, n, accident)
            try:
                keep(folder)
            except (RegistryError, BundleError):
                failed = True
        if not accidents.hit:
            break
        hit.add(accidents.hit)
        assert kept(folder) in ((OLD, NEW) if failed else (NEW,))
        keep(folder)
        assert kept(folder) == NEW
    assert n > 3
    assert {"open", "replace", "fsync"} <= hit


def test_c41_killed_at_each_call_of_the_file_system(folder):
    """Before the n-th call, for every n: the old documents or the new ones, and both happen."""
    seen = set()
    for n in range(1, 200):
        keep(folder, OLD)
        pid = os.fork()
        if pid == 0:  # pragma: no cover - in the child
            code = 1
            try:
                Accidents(pytest.MonkeyPatch(), n, "kill")
                keep(folder)
                code = 0
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code == 0:
            break
        assert code == -signal.SIGKILL
        seen.add(kept(folder))
    assert n > 3
    assert seen == {OLD, NEW}
