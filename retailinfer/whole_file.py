"""Files that are there whole or not at all: written beside, made to last, then put in the place of what was there.

Used by what releases, registries, stores and the decision log write. Loading a release with a trust file comes by here, so
`pathlib` and `tempfile` are for who writes dumps.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import BinaryIO

__all__ = ["close_lock", "replaced", "sync_folder", "write_new"]


@contextlib.contextmanager
def replaced(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write to, readable by its owner alone, which takes the place of `path` when the block ends well.

    Whatever goes wrong, what was there before is left as it is. Raises: OSError of the file system.
    """
    import tempfile  # noqa: PLC0415 - see above
    from pathlib import Path  # noqa: PLC0415 - see above

    target = Path(path)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
    sync_folder(target.parent)


def write_new(path: str | os.PathLike[str], data: bytes, mode: int) -> None:
    """A file that was not there, on disk. What a failure leaves of it is the caller's to take away. Raises: OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        left = memoryview(data)
        while left:  # a write may take a part only
            left = left[os.write(fd, left) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def close_lock(fd: int) -> None:
    """Let go of a file that was locked by `flock`, also where a child of fork has the descriptor still. Raises nothing."""
    import fcntl  # noqa: PLC0415 - POSIX

    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)
    with contextlib.suppress(OSError):
        os.close(fd)


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Make renames in it last; where folders cannot be opened there is no way to ask for it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
