"""What a host has accepted already, in one small file: so that nothing older is accepted after a restart.

Rules:
  * Written last, after everything else has succeeded, by one rename: a file is the old one or the new one, never half.
  * Numbers in it only grow, whoever writes: processes take turns by a lock, and each keeps what others have seen.
  * What is there and cannot be read is refused; a missing file means that nothing was seen yet.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Literal

import msgspec

from retailinfer.errors import BundleError, clip
from retailinfer.release.trust import Mark
from retailinfer.whole_file import close_lock, write_new

__all__ = ["State", "raise_marks", "read_state"]

MAX_STATE_BYTES = 1 << 20


class State(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Name of a release -> its pointer's mark, and that of its overrides; and the mark of the list of revocations."""

    format: Literal[1] = 1
    names: dict[str, Mark] = {}
    revocations: Mark | None = None
    overrides: dict[str, Mark] = {}


def read_state(path: str) -> State:
    """What was accepted; nothing, when there is no such file. Raises: BundleError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return State()
    except OSError as exc:
        raise _failed("read", path, exc) from exc
    try:
        with os.fdopen(fd, "rb") as file:
            data = file.read(MAX_STATE_BYTES + 1)
    except OSError as exc:
        raise _failed("read", path, exc) from exc
    try:
        if len(data) > MAX_STATE_BYTES:
            raise ValueError("it is too large")  # noqa: TRY301 - told like what the decoder says
        return msgspec.json.decode(data, type=State)
    except (ValueError, RecursionError) as exc:
        raise BundleError(
            f"{clip(path, 200)} does not say what was accepted before: {clip(str(exc), 200)}",
            hint="find out who changed it; without it, older releases could come back unseen",
        ) from exc


def raise_marks(
    path: str,
    names: dict[str, Mark],
    revocations: Mark | None,
    overrides: dict[str, Mark] | None = None,
) -> State:
    """Remember what was accepted; returns what stands there now.

    A mark that is lower than the one that stands there changes nothing but which release was loaded last.
    Raises: BundleError when the disk refuses; the file is then the old one or the new one.
    """
    with _turn(path):
        there = read_state(path)
        new = State(
            names=_raised(there.names, names),
            revocations=there.revocations if revocations is None else _higher(there.revocations, revocations),
            overrides=_raised(there.overrides, overrides or {}),
        )
        if new != there:  # a restart writes nothing
            _write(path, msgspec.json.encode(new, order="deterministic") + b"\n")
        return new


def _raised(there: dict[str, Mark], new: dict[str, Mark]) -> dict[str, Mark]:
    return there | {name: _higher(there.get(name), mark) for name, mark in new.items()}


def _higher(there: Mark | None, new: Mark) -> Mark:
    if there is None:
        return new
    highest = max(there, new, key=lambda mark: (mark.epoch, mark.seq))
    last = there if new.loaded is None else new
    return msgspec.structs.replace(highest, loaded=last.loaded, issued=last.issued, fallbacks=last.fallbacks)


@contextlib.contextmanager
def _turn(path: str) -> Iterator[None]:
    """One process at a time."""
    import fcntl  # noqa: PLC0415 - POSIX; imported where a state is kept

    try:
        fd = os.open(path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise _failed("lock", path, exc) from exc
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        except OSError as exc:
            raise _failed("lock", path, exc) from exc
        yield
    finally:
        close_lock(fd)


def _write(path: str, data: bytes) -> None:
    folder = os.path.dirname(os.path.abspath(path))  # noqa: PTH100, PTH120 - pathlib costs 4 ms of a cold start
    beside = f"{path}.{os.getpid()}.{os.urandom(4).hex()}.partial"
    try:
        _sweep(folder, os.path.basename(path))  # noqa: PTH119 - as above
        write_new(beside, data, 0o600)
        os.rename(beside, path)  # noqa: PTH104 - as above
        fd = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as exc:
        raise _failed("write", path, exc) from exc
    finally:
        with contextlib.suppress(OSError):
            os.unlink(beside)  # noqa: PTH108 - as above; after the rename there is none


def _sweep(folder: str, name: str) -> None:
    """Take away what processes that were killed left beside the file; nobody writes now but us."""
    with os.scandir(folder) as entries:
        left = [e.path for e in entries if e.name.startswith(f"{name}.") and e.name.endswith(".partial")]
    for path in left:
        os.unlink(path)  # noqa: PTH108 - as above


def _failed(what: str, path: str, exc: OSError) -> BundleError:
    return BundleError(
        f"cannot {what} the state of what was accepted, {clip(path, 200)}: {exc.strerror or type(exc).__name__}",
        hint="the folder must be writable for this process",
    )
