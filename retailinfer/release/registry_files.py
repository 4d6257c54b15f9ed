"""Where a registry keeps its files: a local folder, or anything that fsspec reaches. The only file that knows fsspec.

Rules:
  * A file is written once and never changed; `put` alone replaces, for hints that may be lost. A file is there whole or not
    at all, also when the process is killed or the power goes.
  * `create` is where two writers meet: exactly one of them makes the file. Locally that is a hard link to a file that is
    already on disk; in an object store it is a conditional put.
  * A store that takes the condition and ignores it would let both win, so `create` proves once that it is kept. Where it is
    not, one writer at a time is all that can be promised, and it has to be asked for (`single_writer`). What fsspec reaches
    beside object stores (SFTP, HTTP) can be read: it can neither keep a condition nor write a file in one step.
  * Every failure is a RegistryError that names the file. Whether a failed write took effect is found out by looking.
Paths are names joined by "/", as registry.py makes them; what came from outside was checked there.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from retailinfer.errors import ConfigError, RegistryError, clip
from retailinfer.life import begin_again_in_children

__all__ = ["Files", "FsspecFiles", "LocalFiles", "open_files"]

TEMPORARY = (
    "temporary"  # files on their way, in a local registry; beside everything else, so that a link can be made
)

# Protocols whose file systems pass the condition on (fsspec: `pipe_file(mode="create")`).
CONDITIONAL = frozenset({"memory", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"})
_ATTEMPTS = 5  # a store may answer "another request is under way" (S3: 409) instead of yes or no
_OPEN = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)


class Files(Protocol):
    """What a registry needs of the place where it lies. All methods raise RegistryError."""

    origin: str

    def read(self, path: str, cap: int) -> bytes | None:
        """The bytes of a file; None when there is none. One of more than `cap` bytes is refused."""
        ...

    def create(self, path: str, data: bytes) -> bool:
        """Make a file, unless it is there. False when it is there with other bytes; True when it has these now."""
        ...

    def put(self, path: str, data: bytes) -> None:
        """Make or replace a file. Of several writers, one of them is the last."""
        ...

    def names(self, folder: str) -> list[str]:
        """Names of the files and folders in a folder, sorted; none when it is not there."""
        ...

    def delete(self, path: str) -> None:
        """Take a file away; it need not be there."""
        ...

    def delete_folder(self, folder: str) -> None:
        """Take a folder away that holds files only; it need not be there."""
        ...

    def sweep(self, before_s: float) -> int:
        """Take away what killed writers left on its way before a moment (seconds since 1970); how many files."""
        ...


def open_files(
    place: str | os.PathLike[str],
    *,
    single_writer: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Files:
    """The files of a registry at a path or a URL. Nothing is read or made yet. Raises: ConfigError."""
    text = os.fspath(place)
    protocol, separator, rest = text.partition("://")
    if separator and protocol not in ("file", "local"):
        return FsspecFiles(text, single_writer=single_writer, storage_options=storage_options or {})
    if storage_options:
        raise ConfigError("storage_options are for URLs such as s3://bucket/registry; a folder takes none")
    if not (rest if separator else text):
        raise ConfigError("Expected the folder or the URL of a registry, got an empty text")
    return LocalFiles(rest if separator else text)


# ---- a local folder --------------------------------------------------------------------------------------------------


class LocalFiles:
    """A folder, which may be on a shared file system that has hard links (NFS has)."""

    def __init__(self, root: str) -> None:
        self.origin = root
        self.root = Path(root).absolute()

    def read(self, path: str, cap: int) -> bytes | None:
        with _told(self.origin, "read", path):
            try:
                fd = os.open(self.root / path, _OPEN)
            except (FileNotFoundError, NotADirectoryError):
                return None
            try:
                found = os.fstat(fd)
                if not stat.S_ISREG(found.st_mode):
                    raise RegistryError(f"Expected a regular file - at {clip(path, 200)} of the registry")
                if found.st_size > cap:
                    raise _too_large(path, cap)
                parts: list[bytes] = []
                size = 0
                while size <= cap and (part := os.read(fd, min(cap + 1 - size, 1 << 24))):
                    parts.append(part)
                    size += len(part)
            finally:
                os.close(fd)
        if size > cap:
            raise _too_large(path, cap)
        return b"".join(parts)

    def create(self, path: str, data: bytes) -> bool:
        target = self.root / path
        with _told(self.origin, "write", path):
            temporary = self._write(data)
            try:
                self._make_folder(target.parent)
                with contextlib.suppress(FileExistsError):
                    _link(temporary, target)
                self._sync(
                    target.parent
                )  # also for who came second: the file that won must last before anybody relies on it
            finally:
                self._forget(temporary)
        return self.read(path, max(len(data), 1 << 20)) == data

    def put(self, path: str, data: bytes) -> None:
        target = self.root / path
        with _told(self.origin, "write", path):
            temporary = self._write(data)
            try:
                self._make_folder(target.parent)
                os.replace(temporary, target)  # noqa: PTH105 - one seam, `os`, for everything that touches the disk
            except BaseException:
                self._forget(temporary)
                raise
            self._sync(target.parent)

    def names(self, folder: str) -> list[str]:
        with _told(self.origin, "list", folder):
            try:
                return sorted(os.listdir(self.root / folder))  # noqa: PTH208 - as above
            except (FileNotFoundError, NotADirectoryError):
                return []

    def delete(self, path: str) -> None:
        with _told(self.origin, "delete", path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(self.root / path)  # noqa: PTH108 - as above

    def delete_folder(self, folder: str) -> None:
        for name in self.names(folder):
            self.delete(f"{folder}/{name}")
        with _told(self.origin, "delete", folder), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.rmdir(self.root / folder)  # noqa: PTH106 - as above
            self._sync((self.root / folder).parent)

    def sweep(self, before_s: float) -> int:
        n = 0
        for name in self.names(TEMPORARY):
            path = self.root / TEMPORARY / name
            with contextlib.suppress(OSError):  # its writer was faster
                if os.stat(path).st_mtime < before_s:  # noqa: PTH116 - as above
                    os.unlink(path)  # noqa: PTH108 - as above
                    n += 1
        return n

    def _write(self, data: bytes) -> Path:
        """A new file that is on disk under a name of its own."""
        folder = self.root / TEMPORARY
        self._make_folder(folder)
        temporary = folder / os.urandom(12).hex()
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            try:
                view = memoryview(data)
                while view:  # a write may take a part only
                    view = view[os.write(fd, view) :]
                os.fsync(fd)
            finally:
                os.close(fd)
        except BaseException:
            self._forget(temporary)
            raise
        return temporary

    def _make_folder(self, folder: Path) -> None:
        """Make a folder and those above it, each on disk before anything is put into it."""
        try:
            os.mkdir(folder, 0o755)  # noqa: PTH102 - as above
        except FileExistsError:
            return
        except FileNotFoundError:
            self._make_folder(folder.parent)
            with contextlib.suppress(FileExistsError):  # somebody else was faster
                os.mkdir(folder, 0o755)  # noqa: PTH102 - as above
        self._sync(folder.parent)

    def _sync(self, folder: Path) -> None:
        fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _forget(self, temporary: Path) -> None:
        """What cannot be taken away now is collected with the garbage."""
        with contextlib.suppress(OSError):
            os.unlink(temporary)  # noqa: PTH108 - as above


def _link(temporary: Path, target: Path) -> None:
    try:
        os.link(temporary, target)
    except PermissionError as exc:  # what Linux says of file systems that have no links
        raise RegistryError(
            f"cannot make {clip(str(target), 200)}: {exc.strerror}",
            hint="a registry needs a file system with hard links, and the right to write",
        ) from exc


# ---- fsspec ----------------------------------------------------------------------------------------------------------

_MEMORY = (
    threading.Lock()
)  # fsspec's memory looks and then writes; threads of one process are all who can meet there


class FsspecFiles:
    """Everything else: `s3://`, `gs://`, `abfs://`, `memory://`. The client is made when first used, anew after a fork."""

    def __init__(self, url: str, *, single_writer: bool = False, storage_options: Mapping[str, Any]) -> None:
        try:
            import fsspec  # noqa: PLC0415 - optional extra
        except ImportError as exc:
            raise ConfigError(
                f"a registry at {clip(url, 100)} needs the package fsspec",
                hint="pip install 'retailinfer[registry]', and the client of the store, such as s3fs",
            ) from exc
        self.origin = url
        self.single_writer = single_writer
        self._protocol = url.partition("://")[0]
        self._options = dict(storage_options)
        self._fs: Any = None
        self._root = ""
        self._proved = single_writer
        try:
            fsspec.get_filesystem_class(self._protocol)
        except (ImportError, ValueError) as exc:
            raise ConfigError(f"nothing here reads {clip(url, 100)}: {exc}") from exc
        begin_again_in_children(self)

    def begin_in_child(self) -> None:
        """Connections and the loop's thread belong to the parent."""
        self._fs = None

    def read(self, path: str, cap: int) -> bytes | None:
        with self._errors("read", path) as fs:
            try:
                # A range costs one request; a size would cost another, and could be a lie.
                data: bytes = fs.cat_file(self._at(path), start=0, end=cap + 1)
            except FileNotFoundError:
                return None
            except OSError:
                fs.invalidate_cache()
                if fs.info(self._at(path))["size"] != 0:  # an empty file has no range (HTTP 416)
                    raise
                data = b""
        if len(data) > cap:
            raise _too_large(path, cap)
        return data

    def create(self, path: str, data: bytes) -> bool:
        self._check_writable()
        self._prove()
        return self._create(path, data)

    def put(self, path: str, data: bytes) -> None:
        self._check_writable()
        with self._errors("write", path) as fs:
            fs.pipe_file(self._at(path), data)

    def names(self, folder: str) -> list[str]:
        with self._errors("list", folder) as fs:
            at = self._at(folder)
            fs.invalidate_cache()  # others write too
            try:
                found = fs.ls(at, detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
        names = {one.rstrip("/").rpartition("/")[2] for one in found if one.rstrip("/") != at.rstrip("/")}
        return sorted(names)

    def delete(self, path: str) -> None:
        with self._errors("delete", path) as fs, contextlib.suppress(FileNotFoundError):
            fs.rm_file(self._at(path))

    def delete_folder(self, folder: str) -> None:
        for name in self.names(folder):
            self.delete(f"{folder}/{name}")
        with contextlib.suppress(
            Exception
        ):  # where folders are things of their own; an object store has none
            self._fs.rmdir(self._at(folder))

    def sweep(self, before_s: float) -> int:
        n = 0
        for name in self.names(TEMPORARY):
            with contextlib.suppress(RegistryError, FileNotFoundError, NotImplementedError):
                with self._errors("look at", name) as fs:
                    old = fs.modified(self._at(f"{TEMPORARY}/{name}")).timestamp() < before_s
                if old:
                    self.delete(f"{TEMPORARY}/{name}")
                    n += 1
        return n

    def _create(self, path: str, data: bytes) -> bool:
        for attempt in range(_ATTEMPTS):
            try:
                with self._errors("write", path) as fs:
                    self._conditional(fs, self._at(path), data)
                    return True
            except RegistryError:
                # Refused, or the answer was lost, or the store could not tell: the file itself knows.
                there = self.read(path, max(len(data), 1 << 20))
                if there is not None:
                    return there == data
                if attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")

    def _conditional(self, fs: Any, at: str, data: bytes) -> None:
        if not self.single_writer:
            with _MEMORY if self._protocol == "memory" else contextlib.nullcontext():
                fs.pipe_file(at, data, mode="create")
            return
        fs.invalidate_cache()
        if fs.exists(at):
            raise FileExistsError(at)
        fs.pipe_file(at, data)

    def _check_writable(self) -> None:
        if self._protocol not in CONDITIONAL:
            raise RegistryError(
                f"{clip(self.origin, 100)} can only be read: it has no way to let exactly one of two writers win",
                hint=f"a registry is written to in a folder, or at {', '.join(sorted(CONDITIONAL))}",
            )

    def _prove(self) -> None:
        """Write a file twice, conditionally; the second time must be refused. Raises: RegistryError."""
        if self._proved:
            return
        probe = f"{TEMPORARY}/{os.urandom(12).hex()}"
        try:
            self._create(probe, b"1")
            kept = self._create(probe, b"2") is False
        finally:
            with contextlib.suppress(RegistryError):
                self.delete(probe)
        if not kept:
            raise RegistryError(
                f"{clip(self.origin, 100)} ignores the condition of a conditional write: two writers could both win",
                hint="use a store that keeps it; if only one process ever writes there, say single_writer=True",
            )
        self._proved = True

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"

    @contextlib.contextmanager
    def _errors(self, verb: str, path: str) -> Iterator[Any]:
        """The client, whose errors of whatever type become a RegistryError; what is not there stays FileNotFoundError."""
        try:
            if self._fs is None:
                self._connect()
            yield self._fs
        except RegistryError:
            raise
        except Exception as exc:
            if isinstance(exc, FileNotFoundError) and verb != "write":
                raise
            raise RegistryError(
                f"cannot {verb} {clip(path, 200)} of the registry {clip(self.origin, 100)}: {_reason(exc)}",
                hint=_HINT,
            ) from exc

    def _connect(self) -> None:
        import fsspec  # noqa: PLC0415 - optional extra

        fs, root = fsspec.core.url_to_fs(self.origin, **self._options)
        self._fs, self._root = fs, root.rstrip("/")


# ---- what both say ---------------------------------------------------------------------------------------------------

_HINT = "no file that was there has changed; the same call can be made again"


@contextlib.contextmanager
def _told(origin: str, verb: str, path: str) -> Iterator[None]:
    """Failures of the file system as RegistryErrors."""
    try:
        yield
    except OSError as exc:
        raise RegistryError(
            f"cannot {verb} {clip(path, 200)} of the registry {clip(origin, 100)}: {_reason(exc)}", hint=_HINT
        ) from exc


def _too_large(path: str, cap: int) -> RegistryError:
    return RegistryError(f"Expected at most {cap} bytes - at {clip(path, 200)} of the registry")


def _reason(exc: Exception) -> str:
    text = (exc.strerror if isinstance(exc, OSError) else None) or " ".join(str(exc).split())
    return clip(text, 200).strip("'\"") if text else type(exc).__name__
