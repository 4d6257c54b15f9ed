"""The folder of a decision log: which files there are, who owns them, how they come to their end.

    live-TAG.jsonl                        being written by the process that holds its lock; whole lines, but for a kill
    sealed-TAG.jsonl                      written to its end; becomes a file of the next kind
    decisions-FIRST-LAST-TAG.jsonl|parquet   finished; FIRST and LAST are the times of its oldest and newest row, in UTC
    log-DECLARATION.json                  what the rows hold; the first part of TAG says which declaration is a file's own

Rules:
  * A process writes to files of its own alone. Its lock goes with it, however it ends: a live file without a lock is a dead
    process's, and whoever keeps the folder finishes it, without what may stand behind its last whole line.
  * One process at a time keeps the folder (`keeping`): finishes, converts, erases, deletes what is too old.
  * A file becomes another kind by one rename, or by a whole file under the new name before the old one goes. Of two files
    with the same TAG the further one counts, so that nothing is there twice, whenever a process was killed.
  * All files are for their owner alone: they hold what people did.
Who writes: decision_log.py. Parquet: decision_files.py. Erasing: decision_erasure.py.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import os
import re
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from retailinfer.whole_file import sync_folder

__all__ = [
    "Keeper",
    "Listing",
    "LogFile",
    "Segment",
    "ask_to_seal",
    "asked_to_seal",
    "expire",
    "finish_lines",
    "finished_name",
    "keeping",
    "listing",
    "make_last",
    "recover",
    "tidy",
    "times_of",
    "write_whole",
]

_KEEPER: Final = ".keeper.lock"
_SEAL: Final = ".seal"
_OLD_S: Final = 60.0  # a file that was not renamed into its place by now never will be
_STEP: Final = 1 << 20
_TAG = r"(?P<tag>(?P<declaration>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{12})"
_NAMES: Final = (
    re.compile(rf"(?P<kind>live|sealed)-{_TAG}\.(?P<format>jsonl)"),
    re.compile(
        r"(?P<kind>decisions)-(?P<first>\d{8}T\d{9}Z)-(?P<last>\d{8}T\d{9}Z)-"
        + _TAG
        + r"\.(?P<format>jsonl|parquet)"
    ),
)
_AT: Final = re.compile(rb'^\{"at_ns":(-?\d+)', re.MULTILINE)
_ORDER: Final = {"live": 0, "sealed": 1, "decisions": 2}
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class LogFile(NamedTuple):
    """A file with rows. Times are ns since 1970, to the millisecond outward; None where the name does not say them."""

    path: Path
    kind: str  # live, sealed, decisions
    tag: str
    declaration: str
    pid: int
    format: str  # jsonl, parquet
    first_ns: int | None = None
    last_ns: int | None = None


class Listing(NamedTuple):
    """The files of a folder: each row is in exactly one of `files`, ordered by time; `beaten` hold rows that others have."""

    files: tuple[LogFile, ...]
    beaten: tuple[LogFile, ...]


def _parsed(path: Path) -> LogFile | None:
    for pattern in _NAMES:
        found = pattern.fullmatch(path.name)
        if found is not None:
            part = found.groupdict()
            return LogFile(
                path,
                part["kind"],
                part["tag"],
                part["declaration"],
                int(part["pid"]),
                part["format"],
                _read_time(part["first"]) if "first" in part else None,
                _read_time(part["last"]) if "last" in part else None,
            )
    return None


def listing(folder: Path) -> Listing:
    """What is there now; nothing where there is no folder. Raises: OSError."""
    best: dict[str, LogFile] = {}
    beaten: list[LogFile] = []
    try:
        paths = sorted(folder.iterdir())
    except FileNotFoundError:
        paths = []
    for path in paths:
        file = _parsed(path)
        if file is None:
            continue
        other = best.get(file.tag)
        if other is None or _ORDER[file.kind] > _ORDER[other.kind]:
            best[file.tag] = file
            beaten += [] if other is None else [other]
        else:
            beaten.append(file)
    files = sorted(
        best.values(), key=lambda f: (f.first_ns is None, f.first_ns or 0, _ORDER[f.kind], f.path.name)
    )
    return Listing(tuple(files), tuple(beaten))


# ---- names -----------------------------------------------------------------------------------------------------------


def finished_name(tag: str, first_ns: int, last_ns: int, kind: str) -> str:
    """Name of a finished file."""
    return f"decisions-{_time(first_ns // 1_000_000)}-{_time(-(-last_ns // 1_000_000))}-{tag}.{kind}"


def _time(ms: int) -> str:
    ms = min(max(ms, 0), 253_402_300_799_000)  # years that four digits can write
    at = _EPOCH + dt.timedelta(milliseconds=ms)
    return f"{at:%Y%m%dT%H%M%S}{at.microsecond // 1000:03d}Z"


def _read_time(text: str) -> int | None:
    try:
        at = dt.datetime.strptime(text[:-4], "%Y%m%dT%H%M%S").replace(tzinfo=dt.UTC)
    except ValueError:  # not a name of ours, though it looks like one
        return None
    return ((at - _EPOCH) // dt.timedelta(milliseconds=1) + int(text[-4:-1])) * 1_000_000


def times_of(path: Path) -> tuple[int, int]:
    """Times of the oldest and newest row of a file of lines; (0, 0) for one without. Raises: OSError."""
    first, last, rest = 1 << 63, -1, b""
    with path.open("rb") as file:
        while data := file.read(_STEP):
            data = rest + data
            end = data.rfind(b"\n") + 1
            times = [int(found) for found in _AT.findall(data[:end])]
            first, last = min([first, *times]), max([last, *times])
            rest = data[end:]
    return (first, last) if last >= 0 else (0, 0)


# ---- one file of a process -------------------------------------------------------------------------------------------


class Segment:
    """The live file of this process. Not for several threads at once.

    Attributes:
        size: bytes. rows: lines. first_ns, last_ns: times of the oldest and the newest.
    """

    def __init__(self, folder: Path, declaration: str) -> None:
        """Make the file. Raises: OSError."""
        self._fd = -1
        self.folder = folder
        self.tag = f"{declaration}-{os.getpid()}-{secrets.token_hex(6)}"
        self.path = folder / f"live-{self.tag}.jsonl"
        self.size = self.rows = 0
        self._torn = False
        self.first_ns, self.last_ns = 1 << 63, -1
        # Locked before it has its name: nobody takes it for a dead process's file.
        begun = folder / f".new-{self.tag}"
        fd = os.open(begun, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._inode = os.fstat(fd).st_ino
            begun.rename(self.path)
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                begun.unlink()
            raise
        self._fd = fd

    def append(self, lines: bytes, rows: int, first_ns: int, last_ns: int) -> None:
        """Add whole lines; all of them or none. Raises: OSError."""
        self._cut_off()
        view, done = memoryview(lines), 0
        first_ns, last_ns = min(self.first_ns, first_ns), max(self.last_ns, last_ns)
        try:
            while done < len(view):
                done += os.write(self._fd, view[done:])
        except BaseException:
            self._torn = True
            with contextlib.suppress(OSError):
                self._cut_off()
            raise
        # No call from here on until the log knows of it: a signal could raise there, and the rows would be added again.
        self.size += done
        self.rows += rows
        self.first_ns, self.last_ns = first_ns, last_ns

    def _cut_off(self) -> None:
        """Take away a part of a line, behind which the next one would be lost. Raises: OSError."""
        if self._torn:
            os.ftruncate(self._fd, self.size)
            self._torn = False

    def is_here(self) -> bool:
        """Whether the file still stands under its name; somebody may have deleted the folder."""
        try:
            return os.stat(self.path).st_ino == self._inode  # noqa: PTH116 - the quick way; this is asked often
        except OSError:
            return False

    def seal(self, kind: str) -> LogFile | None:
        """Give the file its next name and let it go; None where it had no row. Raises: OSError; the file stays live then.

        It is not made to last a loss of power: `make_last` does that, and takes as long as the disk likes.
        """
        if self.rows == 0:
            self.path.unlink(missing_ok=True)
            self.let_go()
            return None
        name = (
            finished_name(self.tag, max(0, self.first_ns), self.last_ns, kind)
            if kind == "jsonl"
            else f"sealed-{self.tag}.jsonl"
        )
        self.path.rename(self.folder / name)
        self.let_go()
        return _parsed(self.folder / name)

    def let_go(self) -> None:
        """Close it, and do no more: a child does not touch its parent's file."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __del__(self) -> None:
        if hasattr(self, "_fd"):  # a signal may have come before it was made
            self.let_go()


def asked_to_seal(folder: Path) -> tuple[int, int]:
    """What changes when somebody asks all processes to seal their live files."""
    try:
        found = os.stat(folder / _SEAL)  # noqa: PTH116 - as above
    except OSError:
        return 0, 0
    return found.st_ino, found.st_mtime_ns


def ask_to_seal(folder: Path) -> None:
    """Ask all processes to seal their live files, which they do within half a second, and to let others keep the folder.

    Raises: OSError.
    """
    write_whole(folder / _SEAL, b"", mine=False)


# ---- keeping the folder ----------------------------------------------------------------------------------------------


class Keeper:
    """The right to keep a folder. A child of the process that has it lets go of the descriptor alone."""

    def __init__(self, folder: Path) -> None:
        self._fd = -1
        self._fd = os.open(folder / _KEEPER, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)

    def take(self) -> bool:
        """Whether nobody else has it."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def give_back(self) -> None:
        """For the next."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                fcntl.flock(self._fd, fcntl.LOCK_UN)  # in words: a child may still have the descriptor
            self.let_go()

    def let_go(self) -> None:
        """In a forked child."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __del__(self) -> None:
        self.let_go()


@contextlib.contextmanager
def keeping(folder: Path, *, wait_s: float = 0.0) -> Iterator[Keeper | None]:
    """Keep the folder for a while; None when somebody else does, and went on for `wait_s`. Raises: OSError."""
    keeper = Keeper(folder)
    try:
        taken = keeper.take()
        pause = threading.Event()
        for _ in range(int(wait_s / 0.02)):
            if taken:
                break
            pause.wait(0.02)
            taken = keeper.take()
        yield keeper if taken else None
    finally:
        keeper.give_back()


def tidy(folder: Path, *, now_s: float) -> int:
    """Remove what was left half done; how many files. Only who keeps the folder may. Raises: OSError."""
    gone = [file.path for file in listing(folder).beaten]
    for path in folder.glob(".[tn][me][pw]-*"):
        with contextlib.suppress(FileNotFoundError):
            # one that begins with .tmp- is the keeper's own, and there is no other keeper
            if path.name.startswith(".tmp-") or now_s - path.stat().st_mtime > _OLD_S:
                gone.append(path)
    for path in gone:
        path.unlink(missing_ok=True)
    return len(gone)


def recover(file: LogFile, kind: str) -> LogFile | None:
    """Finish a live file whose process is gone; None when it is not gone, or there was no row. Raises: OSError.

    Only who keeps the folder may.
    """
    try:
        fd = os.open(file.path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_ino != file.path.stat().st_ino:
            return None
        size = _whole_lines(fd)
        os.ftruncate(fd, size)
        os.fsync(fd)
    except (BlockingIOError, FileNotFoundError):  # it lives; it was sealed just now
        return None
    finally:
        os.close(fd)
    if size == 0:
        file.path.unlink(missing_ok=True)
        return None
    folder = file.path.parent
    sealed = file.path.rename(folder / f"sealed-{file.tag}.jsonl")
    sync_folder(folder)
    found = _parsed(sealed)
    return found if kind != "jsonl" or found is None else finish_lines(found)


def finish_lines(file: LogFile) -> LogFile | None:
    """Give a sealed file of lines the name of a finished one. Only who keeps the folder may. Raises: OSError."""
    name = finished_name(file.tag, *times_of(file.path), "jsonl")
    path = file.path.rename(file.path.parent / name)
    sync_folder(path.parent)
    return _parsed(path)


def _whole_lines(fd: int) -> int:
    """Size of a file up to its last whole line."""
    end = os.lseek(fd, 0, os.SEEK_END)
    while end > 0:
        start = max(0, end - _STEP)
        found = os.pread(fd, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def expire(folder: Path, before_ns: int) -> int:
    """Delete finished files whose newest row is older; how many. Only who keeps the folder may. Raises: OSError."""
    gone = [file for file in listing(folder).files if file.last_ns is not None and file.last_ns < before_ns]
    for file in gone:
        file.path.unlink(missing_ok=True)
    if gone:
        sync_folder(folder)
    return len(gone)


def make_last(file: LogFile) -> None:
    """Write a file that was sealed to the disk, and its name; nothing where it has become another since. Raises: OSError."""
    try:
        fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    sync_folder(file.path.parent)


def write_whole(path: Path, data: bytes | memoryview, *, mine: bool = True) -> None:
    """A file that is there whole or not at all, under its name. Only who keeps the folder may. Raises: OSError.

    `mine=False`: for others. What they begin is not tidied away while it is young, and it is not made to last.
    """
    begun = path.parent / f"{'.tmp' if mine else '.new'}-{secrets.token_hex(6)}"
    fd = os.open(begun, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            if mine:
                os.fsync(file.fileno())
        begun.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            begun.unlink()
        raise
    if mine:
        sync_folder(path.parent)
