"""Reading and writing the directory of a release.

Rules:
  * Every file is read once, into memory, after its size was capped; size and SHA-256 are checked on the very bytes that
    are handed on. Nothing is mapped, nothing is opened again by its path.
  * What the manifest does not list is refused, and so is what is not a regular file: folders, pipes, devices. A pipe
    does not block. Links are followed unless `strict_paths` (Kubernetes mounts and installers use them).
  * Writing goes to a folder beside, is flushed to disk, and appears under its name by one rename.
  * Of a release that must be signed, the signature holds before anything is parsed, and the manifest's bytes are those that
    were signed. `manifest.sig`, `approval-*.sig` and `model.sig` are beside the release: no manifest lists them.
What the files mean is decided by those who own the formats: features.spec, policy, contracts, runtime, golden.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, TypeVar

import msgspec

from retailinfer.errors import BundleError, ConfigError, IntegrityError, ManifestError, TrustError, clip
from retailinfer.release.manifest import (
    MANIFEST,
    MAX_FILE_BYTES,
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    FileEntry,
    Manifest,
    check_file_names,
    decode_manifest,
    encode_manifest,
    seal,
    sha256_hex,
)
from retailinfer.release.parsing import parse, parser_calls

if TYPE_CHECKING:
    from pathlib import Path

    from retailinfer.release.trust import ReleaseVerdict
    from retailinfer.release.trust_files import Trust

__all__ = [
    "SIGNATURE",
    "Bundle",
    "assemble",
    "check_fallback",
    "is_detached",
    "parse",
    "parser_calls",
    "read_bundle",
    "read_detached",
    "read_files",
    "resolve_trust",
    "write_bundle",
]

T = TypeVar("T")
PathLike = str | os.PathLike[str]

TRUST_VARIABLE = "RETAILINFER_TRUST"
STATE_VARIABLE = "RETAILINFER_TRUST_STATE"
SIGNATURE = "manifest.sig"
MODEL_SIGNING = "model.sig"  # the OpenSSF's format, which `retailinfer verify` reads
MAX_APPROVALS = 32
MAX_SIGNATURE_BYTES = 1 << 16
_DETACHED = r"manifest\.sig|model\.sig|approval-[a-z0-9][a-z0-9_-]{0,47}\.sig"
_OPEN = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


# ---- what is handed on ---------------------------------------------------------------------------------------------


class Bundle:
    """A release in memory: its manifest, and the verified bytes of every file that it lists.

    Attributes:
        manifest: what the release says of itself.
        files: name -> bytes, without the manifest.
        origin: where it was read, for messages.
        verdict: by whom it was signed and approved; None for a release that was read as unsigned.
    """

    __slots__ = ("files", "manifest", "origin", "verdict")

    def __init__(
        self,
        manifest: Manifest,
        files: dict[str, bytes],
        origin: str,
        verdict: ReleaseVerdict | None = None,
    ) -> None:
        self.manifest = manifest
        self.files = files
        self.origin = origin
        self.verdict = verdict

    @property
    def signed_by(self) -> tuple[str, ...]:
        """Names of the keys whose signatures were verified, as the trust file has them; empty = unsigned."""
        return () if self.verdict is None else self.verdict.signed_by

    def read(self, role: str, parser: Callable[[bytes], T]) -> T | None:
        """Parse the file with a role; None when the release has none. Raises: what the parser does, see `parse`."""
        file = self.manifest.file_of(role)
        return None if file is None else parse(file, parser, self.files[file])

    def __repr__(self) -> str:
        return f"<Bundle {self.manifest.release} {self.manifest.digest[:12]} from {self.origin}>"


def resolve_trust(
    trust: str | os.PathLike[str] | Trust | None, environ: Mapping[str, str] | None = None
) -> Trust | None:
    """What `trust=` means: whom to believe, or None for "unsigned".

    None reads the setting RETAILINFER_TRUST. A path is that of a trust file; RETAILINFER_TRUST_STATE then names the file
    that remembers what was accepted. Raises: ConfigError.
    """
    environ = os.environ if environ is None else environ
    source = "trust="
    if trust is None:
        source = TRUST_VARIABLE
        trust = environ.get(TRUST_VARIABLE)
        if not trust:
            raise ConfigError(
                "Expected trust=, got nothing",
                hint=f'give the path of a trust file; for a release that is not signed say trust="unsigned", or set '
                f"{TRUST_VARIABLE}",
            )
    if isinstance(trust, str) and trust == "unsigned":
        return None
    from retailinfer.release.trust_files import Trust  # noqa: PLC0415 - unsigned releases need none of it

    if isinstance(trust, Trust):
        return trust
    if not isinstance(trust, (str, os.PathLike)):
        raise ConfigError(
            f'Expected trust="unsigned", the path of a trust file or a Trust, got `{type(trust).__name__}`'
        )
    try:
        return Trust(trust, state=environ.get(STATE_VARIABLE) or None)
    except ConfigError as exc:
        raise ConfigError(f"{source} cannot be used: {exc}") from exc


def check_fallback(manifest: Manifest, current: Manifest) -> None:
    """A signed release names those that may answer in its place; nothing older comes back otherwise. Raises: TrustError."""
    if manifest.digest not in (*current.info.fallbacks, current.digest):
        raise TrustError(
            f"{current.release} does not allow {manifest.release} to answer in its place",
            hint=f"pack it with info=Info(fallbacks=({manifest.digest[:12]}...,)), and sign that",
        )


# ---- reading -------------------------------------------------------------------------------------------------------


def read_bundle(
    source: PathLike | Mapping[str, bytes],
    *,
    strict_paths: bool = False,
    trust: Trust | None = None,
    expected: str | None = None,
    chosen: bool = True,
) -> Bundle:
    """Read and verify a release.

    Args:
        source: its directory, or its files by name.
        strict_paths: also refuse links, files with a second name, files that others own or may write.
        trust: whom to believe; None reads the release as unsigned, whatever is beside it.
        expected: the digest that a pointer named, for a release that must be that one.
        chosen: files by name were chosen by the caller, and do not come from a place where others may have put an older one.
    Raises: SignatureError, TrustError, RollbackError, ManifestError, IntegrityError, BundleError when there is no such
        directory. Only the signed statement and the manifest are parsed, after the signature held.
    """
    if isinstance(source, Mapping):
        return _from_memory(source, trust, expected, chosen=chosen)
    origin = os.fspath(source)
    flags = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_DIRECTORY", 0) | (_NO_LINK if strict_paths else 0)
    try:
        folder = os.open(origin, flags)
    except (OSError, ValueError) as exc:
        raise BundleError(
            f"cannot open the release {clip(origin, 200)}: {_reason(exc)}",
            hint="expected a directory with a manifest.json",
        ) from exc
    try:
        return _from_folder(folder, origin, trust, expected, strict_paths=strict_paths)
    finally:
        os.close(folder)


def read_detached(source: PathLike | Mapping[str, bytes]) -> dict[str, bytes]:
    """The signatures and approvals beside a release: bytes that nobody has verified. Raises: IntegrityError, OSError."""
    if isinstance(source, Mapping):
        return {name: bytes(data) for name, data in source.items() if is_detached(name)}
    folder = os.open(os.fspath(source), os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_DIRECTORY", 0))
    try:
        names = [name for name in _list(folder, os.fspath(source), strict_paths=False) if is_detached(name)]
        return {
            name: _read_file(folder, name, None, MAX_MANIFEST_BYTES, strict_paths=False) for name in names
        }
    finally:
        os.close(folder)


def read_files(directory: PathLike) -> dict[str, bytes]:
    """Everything that lies in the directory of a release: bytes that nobody has verified. Raises: BundleError, OSError."""
    origin = os.fspath(directory)
    folder = os.open(origin, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_DIRECTORY", 0))
    try:
        names = _list(folder, origin, strict_paths=False)
        caps = {name: MAX_MANIFEST_BYTES if is_detached(name) else MAX_FILE_BYTES for name in names}
        return {name: _read_file(folder, name, None, cap, strict_paths=False) for name, cap in caps.items()}
    finally:
        os.close(folder)


def is_detached(name: str) -> bool:
    """Whether a file is beside a release, and not of it: a signature, an approval."""
    return name.endswith(".sig") and re.fullmatch(_DETACHED, name) is not None


def _from_folder(
    folder: int, origin: str, trust: Trust | None, expected: str | None, *, strict_paths: bool
) -> Bundle:
    names = _list(folder, origin, strict_paths=strict_paths)
    if MANIFEST not in names:
        raise ManifestError(
            f"{clip(origin, 200)} has no {MANIFEST}", hint="is it the directory of a release?"
        )

    def read(name: str, size: int | None, cap: int) -> bytes:
        return _read_file(folder, name, size, cap, strict_paths=strict_paths)

    return assemble(names, read, origin, trust, expected)


def _from_memory(
    source: Mapping[str, bytes], trust: Trust | None, expected: str | None, *, chosen: bool
) -> Bundle:
    if not all(isinstance(name, str) for name in source):
        raise ManifestError("Expected names of type str in a release in memory")
    _count(source, "memory")
    if MANIFEST not in source:
        raise ManifestError(f"the release in memory has no {MANIFEST}")
    # A copy: the caller may still hold a writable view of what was verified.
    held = {name: _as_bytes(name, value) for name, value in source.items()}

    def read(name: str, size: int | None, cap: int) -> bytes:
        data = held[name]
        if len(data) > cap:
            raise IntegrityError(f"Expected at most {cap} bytes, got {len(data)} - at file {clip(name)}")
        if size is not None and len(data) != size:
            raise _wrong_size(name, size, str(len(data)))
        return data

    return assemble(set(held), read, "memory", trust, expected, chosen=chosen)


def assemble(
    names: set[str],
    read: Callable[[str, int | None, int], bytes],
    origin: str,
    trust: Trust | None,
    expected: str | None,
    *,
    chosen: bool = False,
) -> Bundle:
    """A release out of any source. The order is the point: signature, manifest, names, files.

    Args:
        names: of everything that is there. read: (name, size or None, cap) -> bytes; raises IntegrityError.
        chosen: as `Rules.release` takes it.
    Raises: as `read_bundle`.
    """
    detached = {name for name in names if is_detached(name)}
    data = read(MANIFEST, None, MAX_MANIFEST_BYTES)
    verdict = None
    if trust is not None:
        signature = read(SIGNATURE, None, MAX_SIGNATURE_BYTES) if SIGNATURE in detached else None
        approvals = []
        if trust.file.approval is not None:
            approving = sorted(detached - {SIGNATURE, MODEL_SIGNING})
            approvals = [(name, read(name, None, MAX_SIGNATURE_BYTES)) for name in approving]
        verdict = trust.check_release(signature, data, approvals=approvals, expected=expected, chosen=chosen)
    manifest = parse(MANIFEST, decode_manifest, data)
    if verdict is not None:
        from retailinfer.release.trust import check_manifest  # noqa: PLC0415 - for signed releases

        check_manifest(verdict.statement, manifest)
    elif expected is not None and manifest.digest != expected:
        raise IntegrityError(f"Expected the release `{expected[:12]}...`, got `{manifest.digest[:12]}...`")
    _compare_names({entry.file for entry in manifest.files}, names - detached - {MANIFEST})
    files = {}
    for entry in manifest.files:
        found = read(entry.file, entry.size, MAX_FILE_BYTES)
        _verify(entry, found)
        files[entry.file] = found
    return Bundle(manifest, files, origin, verdict)


def _as_bytes(name: str, value: object) -> bytes:
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise ManifestError(f"Expected bytes, got `{type(value).__name__}` - at file {clip(name)}")
    size = value.nbytes if isinstance(value, memoryview) else len(value)
    cap = MAX_MANIFEST_BYTES if name == MANIFEST else MAX_FILE_BYTES
    if size > cap:
        raise IntegrityError(f"Expected at most {cap} bytes, got {size} - at file {clip(name)}")
    return bytes(value)


def _list(folder: int, origin: str, *, strict_paths: bool) -> set[str]:
    names: set[str] = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            # Kubernetes puts its own folders `..data`, `..2026_11_22` beside the links to files.
            if entry.name.startswith("..") and not strict_paths:
                continue
            names.add(entry.name)
            if len(names) > MAX_FILES + 1:
                _count(names, origin)
    return names


def _count(names: Collection[str], origin: str) -> None:
    """Raises: ManifestError for more files, or more signatures beside them, than a release has."""
    n_detached = sum(map(is_detached, names))
    if len(names) - n_detached > MAX_FILES + 1:
        raise ManifestError(f"Expected at most {MAX_FILES} files in a release - at {clip(origin, 200)}")
    if n_detached > MAX_APPROVALS + 2:
        raise ManifestError(
            f"Expected at most {MAX_APPROVALS} approvals beside a release - at {clip(origin, 200)}"
        )


def _compare_names(listed: set[str], found: set[str]) -> None:
    missing = sorted(listed - found)
    if missing:
        raise IntegrityError(
            f"the release lacks {clip(missing[0])}, which its manifest lists",
            hint="copy the whole directory again",
        )
    unlisted = sorted(found - listed)
    if unlisted:
        raise IntegrityError(
            f"the release holds {clip(unlisted[0])}, which its manifest does not list",
            hint="a release is never added to; take the file away",
        )


def _read_file(folder: int, name: str, expected: int | None, cap: int, *, strict_paths: bool) -> bytes:
    """The bytes of a regular file, at most `cap` of them; exactly `expected`, where that is known."""
    try:
        # Looked at before it is opened: opening a device can already do something.
        found = os.stat(name, dir_fd=folder, follow_symlinks=not strict_paths)
        _check_kind(name, found, strict_paths=strict_paths)
        fd = os.open(name, _OPEN | (_NO_LINK if strict_paths else 0), dir_fd=folder)
        with os.fdopen(fd, "rb", buffering=0) as file:
            found = os.fstat(fd)
            _check_kind(name, found, strict_paths=strict_paths)
            if found.st_size > cap:
                raise IntegrityError(
                    f"Expected at most {cap} bytes, got {found.st_size} - at file {clip(name)}"
                )
            if expected is not None and found.st_size != expected:
                raise _wrong_size(name, expected, str(found.st_size))
            limit = found.st_size
            parts: list[bytes] = []
            size = 0
            while size <= limit and (part := file.read(limit + 1 - size)):
                parts.append(part)
                size += len(part)
    except OSError as exc:
        raise IntegrityError(
            f"cannot read {clip(name)} of the release: {_reason(exc)}", hint="copy the whole directory again"
        ) from exc
    if size != limit:  # it grew or shrank while it was read
        raise _wrong_size(name, limit, f"{'more' if size > limit else size}")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _check_kind(name: str, found: os.stat_result, *, strict_paths: bool) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise IntegrityError(f"Expected a regular file, got {_kind(found.st_mode)} - at file {clip(name)}")
    if not strict_paths:
        return
    if found.st_nlink != 1:
        raise IntegrityError(
            f"file {clip(name)} has {found.st_nlink} names (hard links)", hint="strict_paths forbids it"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise IntegrityError(
            f"file {clip(name)} can be written by others", hint="chmod go-w; strict_paths asks for it"
        )
    if hasattr(os, "geteuid") and found.st_uid not in (0, os.geteuid()):
        raise IntegrityError(
            f"file {clip(name)} belongs to user {found.st_uid}", hint="strict_paths asks for root or you"
        )


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISLNK, "a link"),
        (stat.S_ISSOCK, "a socket"),
    )
    return next((text for test, text in kinds if test(mode)), "a device")


def _verify(entry: FileEntry, data: bytes) -> None:
    found = sha256_hex(data)
    if found != entry.sha256:
        raise IntegrityError(
            f"Expected SHA-256 `{entry.sha256[:12]}...`, got `{found[:12]}...` - at file {clip(entry.file)}",
            hint="the file was changed or damaged; copy the whole directory again",
        )


def _wrong_size(name: str, expected: int, got: str) -> IntegrityError:
    return IntegrityError(
        f"Expected {expected} bytes, got {got} - at file {clip(name)}",
        hint="the file was changed or cut; copy the whole directory again",
    )


def _reason(exc: OSError | ValueError) -> str:
    return (exc.strerror if isinstance(exc, OSError) else None) or type(exc).__name__


# ---- writing -------------------------------------------------------------------------------------------------------


def write_bundle(directory: PathLike, files: Mapping[str, tuple[str, bytes]], manifest: Manifest) -> Manifest:
    """Write a release; it appears whole or not at all.

    Args:
        directory: of the release; its parent must be on the same file system, and is made where it is missing.
        files: name -> (role, bytes); the manifest's list of them is made here.
    Returns: the sealed manifest. If `directory` already holds a release with the same content (made at another moment),
        that one stays and its manifest is returned.
    Raises: BundleError when it holds another one, or when the disk refuses; nothing is left behind then.
    """
    from pathlib import Path  # noqa: PLC0415 - only authors write; a service starts without it

    from retailinfer.whole_file import write_new  # noqa: PLC0415 - likewise

    check_file_names([MANIFEST, *files])
    entries = tuple(
        FileEntry(role=role, file=name, size=len(data), sha256=sha256_hex(data))
        for name, (role, data) in sorted(files.items())
    )
    sealed = seal(msgspec.structs.replace(manifest, files=entries))
    target = Path(directory).absolute()
    if (there := _existing(target)) is not None:
        return _same_or_refuse(target, there, sealed)
    beside = target.parent / f".{target.name}.{os.urandom(6).hex()}.partial"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside.mkdir(mode=0o755)
        for name, data in [*((n, d) for n, (_, d) in files.items()), (MANIFEST, encode_manifest(sealed))]:
            write_new(beside / name, data, 0o644)
        _sync_folder(beside)
        beside.rename(target)
        _sync_folder(target.parent)
    except OSError as exc:
        _remove(beside)
        if exc.errno in (errno.ENOTEMPTY, errno.EEXIST) and (there := _existing(target)) is not None:
            return _same_or_refuse(target, there, sealed)  # somebody else was faster
        raise BundleError(f"cannot write the release {clip(str(target), 200)}: {_reason(exc)}") from exc
    except BaseException:
        _remove(beside)
        raise
    return sealed


def _existing(target: Path) -> Manifest | None:
    """The manifest that stands at `target`; None when nothing or an empty directory does. Raises: BundleError."""
    if not os.path.lexists(target):
        return None
    if not target.is_dir() or target.is_symlink():
        raise BundleError(
            f"{clip(str(target), 200)} exists and is not a directory", hint="choose another `out`"
        )
    with os.scandir(target) as entries:
        if next(entries, None) is None:
            return None
    try:
        return read_bundle(target).manifest
    except BundleError as exc:
        raise BundleError(
            f"{clip(str(target), 200)} exists and is not a whole release ({exc})", hint="choose another `out`"
        ) from exc


def _same_or_refuse(target: Path, there: Manifest, new: Manifest) -> Manifest:
    if _content(there) == _content(new):
        return there
    raise BundleError(
        f"{clip(str(target), 200)} already holds another release, `{there.release}`; releases never change",
        hint="choose another `out`, such as one with the version in it, or take the old one away",
    )


def _content(manifest: Manifest) -> bytes:
    """What makes two releases the same one: all but when they were made and what follows from that."""
    info = msgspec.structs.replace(manifest.info, version=None)
    same = {"created": "1970-01-01T00:00:00Z", "version": manifest.info.version or "-", "digest": "0" * 64}
    return encode_manifest(msgspec.structs.replace(manifest, info=info, **same))


def _remove(folder: Path) -> None:
    """Take away what was written so far; it holds files only."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # some file systems cannot
            os.fsync(fd)
    finally:
        os.close(fd)
