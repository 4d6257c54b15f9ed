"""The releases that a host has loaded last, on its own disk: what it starts from while its registry is out of reach.

    <folder>/state.json                                       what was accepted, unless the trust's state is elsewhere
    <folder>/loading.lock                                     one process at a time loads
    <folder>/production/fraud/last-good.json                  which releases are kept, newest first
    <folder>/production/fraud/rollback.json                   an operator went back here
    <folder>/production/fraud/overrides.json                  thresholds that operators have moved
    <folder>/production/fraud/1.2-<digest>-<random>/...       the files of a release, with its signatures

Rules:
  * A release is kept after it has answered here: loaded, its golden rows replayed. Of each name the last two are kept, so that
    a rollback outlives the process that made it.
  * A folder of files is on disk before last-good.json names it, and that file is replaced in one step: who is killed at any
    instant leaves the old state or the new one, and litter that the next writer takes away.
  * Nothing here is believed. What is read is verified like any release: signatures, digests, golden rows.
  * Workers of a host share the folder and take turns by locks that end with their process.
Every failure is a RegistryError or an IntegrityError; serving never depends on this folder. Who uses it: serving/follower.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from retailinfer.errors import ConfigError, IntegrityError, RegistryError, clip
from retailinfer.release.bundle import read_files
from retailinfer.release.following import LocalRollback
from retailinfer.release.statements import Digest, Moment, Short
from retailinfer.whole_file import close_lock, replaced, sync_folder, write_new

__all__ = ["STATE", "Kept", "LastGood", "host_turn"]

RECORD, ROLLBACK, LOCK, STATE = "last-good.json", "rollback.json", "lock", "state.json"
OVERRIDES = "overrides.json"
MAX_OVERRIDES_BYTES = 1 << 19  # of documents; in the file they are a third larger
LOADING = "loading.lock"
MAX_RECORD_BYTES = 1 << 20  # two envelopes of pointers and a few lines
KEEP = 2
LOCK_S = 20.0  # that a lock is waited for: whoever has it writes some megabytes, or has been stopped
LOOK_S, TURN_LOOK_S = 0.01, 0.05  # how often who stands in line looks whether it is their turn
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

T = TypeVar("T")


class Kept(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A release that was loaded here.

    Attributes:
        folder: where its files are. pointer: the document that named it, as the registry had it.
        verified: when it was loaded.
    """

    digest: Digest
    version: Short
    folder: Annotated[str, Meta(pattern=r"\A[a-z0-9][a-z0-9._-]{0,250}\Z")]
    pointer: bytes
    verified: Moment


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """last-good.json."""

    format: Literal[1] = 1
    kept: Annotated[tuple[Kept, ...], Meta(max_length=16)] = ()


class _Overrides(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """overrides.json."""

    format: Literal[1] = 1
    documents: Annotated[tuple[bytes, ...], Meta(max_length=1 << 16)] = ()


class LastGood:
    """What is kept of one name in one environment. Nothing is read or made before the first call."""

    def __init__(self, folder: str | os.PathLike[str], *, environment: str, name: str) -> None:
        """Raises: ConfigError."""
        if not isinstance(folder, (str, os.PathLike)) or not os.fspath(folder):
            raise ConfigError(f"Expected a folder for last_good=, got {clip(folder)}")
        if not isinstance(name, str):
            raise ConfigError(f"Expected the name of a release, got {clip(name)}")
        self.root = Path(folder)
        self.folder = self.root / environment / name

    def __repr__(self) -> str:
        return f"<LastGood {self.folder}>"

    def kept(self) -> tuple[Kept, ...]:
        """What is kept, newest first; nothing where nothing was. Raises: IntegrityError, RegistryError."""
        data = _read(self.folder / RECORD)
        return () if data is None else _decoded(self.folder / RECORD, data, _Record).kept

    def files(self, digest: str) -> dict[str, bytes] | None:
        """The files of a kept release by name, not verified; None when it is not kept. Raises: RegistryError, BundleError."""
        if not self.folder.is_dir():
            return None
        with self._locked(shared=True):  # nobody takes them away meanwhile
            one = next((kept for kept in self.kept() if kept.digest == digest), None)
            if one is None:
                return None
            return self._told("read", self.folder / one.folder, lambda: read_files(self.folder / one.folder))

    def keep(
        self, files: Mapping[str, bytes], *, digest: str, version: str, pointer: bytes, verified: str
    ) -> bool:
        """Keep a release that was loaded; False when it is the newest already, by the same pointer.

        Args:
            files: by name, with its signatures. pointer: the document that named it. verified: when it was loaded.
        Raises: RegistryError when the disk refuses; what was kept before is kept still.
        """
        if strange := [one for one in (version, *files) if not _NAME.fullmatch(one)]:
            raise RegistryError(f"{clip(strange[0])} is no name of a release's file")
        self._told("make", self.folder, lambda: _make(self.folder))
        with self._locked():
            before: tuple[Kept, ...] = ()
            with contextlib.suppress(IntegrityError):  # what cannot be read is worth nothing
                before = self.kept()
            there = next((one for one in before if one.digest == digest), None)
            whole = there is not None and self._is_whole(there, files)
            if whole and there is before[0] and there.pointer == pointer:
                return False
            if there is None or not whole:
                made = f"{version}-{digest[:16]}-{os.urandom(6).hex()}"
                self._told("write", self.folder / made, lambda: _write_folder(self.folder / made, files))
            else:
                made = there.folder
            newest = Kept(digest=digest, version=version, folder=made, pointer=pointer, verified=verified)
            record = _Record(kept=(newest, *(one for one in before if one.digest != digest))[:KEEP])
            self._replace(RECORD, record)
            self._sweep({one.folder for one in record.kept})
        return True

    def rollback(self) -> LocalRollback | None:
        """What an operator decided here. Raises: IntegrityError, RegistryError."""
        data = _read(self.folder / ROLLBACK)
        return None if data is None else _decoded(self.folder / ROLLBACK, data, LocalRollback)

    def set_rollback(self, rollback: LocalRollback | None) -> None:
        """Remember an operator's decision, or that it is over. Raises: RegistryError."""
        path = self.folder / ROLLBACK
        if rollback is None and not path.exists():
            return
        self._told("make", self.folder, lambda: _make(self.folder))
        with self._locked():
            if rollback is not None:
                self._replace(ROLLBACK, rollback)
                return
            self._told("delete", path, lambda: path.unlink(missing_ok=True))
            self._told("delete", path, lambda: sync_folder(self.folder))

    def overrides(self) -> tuple[bytes, ...]:
        """The documents of overrides that the registry had, the latest of them; nobody has looked at them.

        Raises: IntegrityError, RegistryError.
        """
        data = _read(self.folder / OVERRIDES)
        return () if data is None else _decoded(self.folder / OVERRIDES, data, _Overrides).documents

    def keep_overrides(self, documents: Sequence[bytes]) -> None:
        """Keep them, the latest that find room; nothing is written where nothing is new. Raises: RegistryError."""
        kept: list[bytes] = []
        room = MAX_OVERRIDES_BYTES
        for document in reversed(documents):
            room -= len(document) + 8
            if room < 0:
                break
            kept.append(document)
        made = _Overrides(documents=tuple(reversed(kept)))
        self._told("make", self.folder, lambda: _make(self.folder))
        with self._locked():
            with contextlib.suppress(IntegrityError):  # what cannot be read is worth nothing
                if self.overrides() == made.documents:
                    return
            self._replace(OVERRIDES, made)

    # ---- behind them -------------------------------------------------------------------------------------------------

    def _is_whole(self, one: Kept, files: Mapping[str, bytes]) -> bool:
        with contextlib.suppress(Exception):  # lost, damaged, or not readable: it is written again
            return read_files(self.folder / one.folder) == dict(files)
        return False

    def _replace(self, name: str, content: msgspec.Struct) -> None:
        def write() -> None:
            with replaced(self.folder / name) as file:
                file.write(msgspec.json.encode(content, order="deterministic") + b"\n")

        self._told("write", self.folder / name, write)

    def _sweep(self, wanted: set[str]) -> None:
        """Take away what no record names: nobody reads or writes now but us. What cannot go now goes next time."""
        with contextlib.suppress(OSError):
            for path in self.folder.iterdir():
                if path.name in wanted or path.name in (RECORD, ROLLBACK, OVERRIDES, LOCK):
                    continue
                with contextlib.suppress(OSError):
                    _delete(path)

    @contextlib.contextmanager
    def _locked(self, *, shared: bool = False) -> Iterator[None]:
        import fcntl  # noqa: PLC0415 - POSIX

        path = self.folder / LOCK
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            if not shared:
                raise self._failed("open", path, exc) from exc
            yield  # a disk that cannot be written to: nobody takes anything away
            return
        try:
            kind, ticks = fcntl.LOCK_SH if shared else fcntl.LOCK_EX, int(LOCK_S / LOOK_S)
            while True:
                try:
                    fcntl.flock(fd, kind | fcntl.LOCK_NB)
                    break
                except OSError as exc:
                    ticks -= 1
                    if exc.errno != errno.EWOULDBLOCK or ticks < 0:
                        raise self._failed("lock", path, exc) from exc
                threading.Event().wait(LOOK_S)
            yield
        finally:
            close_lock(fd)

    def _told(self, what: str, path: Path, call: Callable[[], T]) -> T:
        """What a call gives; an error of the disk tells what it was about to do. Raises: RegistryError."""
        try:
            return call()
        except OSError as exc:
            raise self._failed(what, path, exc) from exc

    def _failed(self, what: str, path: Path, exc: OSError) -> RegistryError:
        return RegistryError(
            f"cannot {what} {clip(str(path), 200)}: {exc.strerror or type(exc).__name__}",
            hint="last_good= is a folder that this process may write to",
        )


@contextlib.contextmanager
def host_turn(
    root: str | os.PathLike[str] | None,
    *,
    most_s: float,
    wait: Callable[[float], bool],
    jitter: Callable[[], float],
) -> Iterator[bool]:
    """One process of a host at a time, so that eight workers do not build the same release at once.

    Yields whether it is our turn: after `most_s`, and where there is no such folder or lock, we go on without.

    Args:
        root: the folder that the processes share; None = everybody goes on at once.
        wait: for so many seconds; True when there is no point in going on. jitter: 0 to 1.
    """
    fd = None if root is None else _open_lock(Path(root))
    if fd is None:
        yield False
        return
    import fcntl  # noqa: PLC0415 - POSIX

    try:
        left_s, mine = most_s, False
        while not mine:
            with contextlib.suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                mine = True
                break
            pause_s = TURN_LOOK_S * (0.5 + jitter())
            left_s -= pause_s
            if left_s < 0 or wait(pause_s):
                break
        yield mine
    finally:
        close_lock(fd)


def _open_lock(root: Path) -> int | None:
    with contextlib.suppress(OSError):
        _make(root)
        return os.open(root / LOADING, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    return None


def _make(folder: Path) -> None:
    """A folder with those above it, each made to last."""
    if folder.is_dir():
        return
    _make(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        sync_folder(folder.parent)


def _write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """A folder with files, all on disk; nothing of it is left when the disk refuses."""
    try:
        folder.mkdir(mode=0o700)
        for name, data in files.items():
            write_new(folder / name, data, 0o600)
        sync_folder(folder)
        sync_folder(folder.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            _delete(folder)
        raise


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        for inner in path.iterdir():
            inner.unlink()
        path.rmdir()
    else:
        path.unlink()


def _read(path: Path) -> bytes | None:
    """A small regular file; None when there is none. Raises: RegistryError, IntegrityError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            data = file.read(MAX_RECORD_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise RegistryError(
            f"cannot read {clip(str(path), 200)}: {exc.strerror or type(exc).__name__}"
        ) from exc
    if len(data) > MAX_RECORD_BYTES:
        raise IntegrityError(f"Expected at most {MAX_RECORD_BYTES} bytes - at {clip(str(path), 200)}")
    return data


K = TypeVar("K", bound=msgspec.Struct)


def _decoded(path: Path, data: bytes, kind: type[K]) -> K:
    try:
        return msgspec.json.decode(data, type=kind)
    except (ValueError, RecursionError) as exc:  # the decoder's errors are ValueErrors
        raise IntegrityError(
            f"{clip(str(path), 200)} cannot be read: {clip(str(exc), 200)}",
            hint="who else writes to last_good=? take the file away; it is made again",
        ) from exc
