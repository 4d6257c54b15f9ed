"""Strict mode: a release is tried in a process of its own, with limits, before this one opens anything of it.

Rules:
  * A signature says who, not that a file is harmless to what reads it: engines have had errors that a crafted model reaches.
    What crashes, hangs, or fills the memory does so in the child; this process gets an error.
  * The child is given the verified bytes over a pipe, never a path, and answers in one line of JSON.
  * It is a fresh interpreter, not a fork: threads and locks of this process do not reach it.
What the child does is cli/trial.py. Trust files ask for this (`strict`); it costs about a second a release.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from retailinfer.errors import ConfigError, ModelError, clip

__all__ = ["Limits", "try_release"]

MAX_REPORT_BYTES = 1 << 16


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the trial may use. `memory_mb`: beside what the interpreter itself has mapped."""

    seconds: Annotated[float, Meta(gt=0, le=3600)] = 60.0
    cpu_seconds: Annotated[int, Meta(ge=1, le=3600)] = 30
    memory_mb: Annotated[int, Meta(ge=64, le=1 << 20)] = 2048


class _Report(msgspec.Struct, frozen=True):
    ok: bool
    error: str = ""
    message: str = ""


def try_release(
    manifest: bytes,
    files: Mapping[str, bytes],
    *,
    limits: Limits | None = None,
    command: Sequence[str] | None = None,
) -> None:
    """Load a release in a child, with its golden rows, and see whether that ends well.

    Args:
        manifest: manifest.json. files: name -> bytes, verified.
        command: of the child; for tests of what ends badly.
    Raises: ModelError when the child refused, crashed, or used more than it may; ConfigError when it cannot be started.
    """
    import subprocess  # noqa: PLC0415 - strict mode only

    given = Limits() if limits is None else limits
    held = {"manifest.json": manifest, **files}
    head = msgspec.json.encode(
        {
            "files": [[name, len(data)] for name, data in held.items()],
            "cpu_seconds": given.cpu_seconds,
            "memory_mb": given.memory_mb,
        }
    )
    environ = {name: value for name, value in os.environ.items() if name in _ENVIRON}
    try:
        child = subprocess.Popen(  # noqa: S603 - our own interpreter and code
            list(command) if command is not None else _command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            close_fds=True,
        )
    except OSError as exc:
        raise ConfigError(f"strict mode cannot start a process: {exc.strerror or exc}") from exc
    try:
        out, _ = child.communicate(b"".join((head, b"\n", *held.values())), timeout=given.seconds)
    except subprocess.TimeoutExpired:
        raise ModelError(
            f"the release did not load within {given.seconds:g} s in the process that tries it",
            hint="it was not loaded here; the trust file's `strict` sets the time",
        ) from None
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what a dead child did not read
                    pipe.close()
    _judge(child.returncode, out)


def _judge(code: int, out: bytes) -> None:
    """Raises: ModelError, unless the child said that all is well and ended so."""
    try:
        report = msgspec.json.decode(out[:MAX_REPORT_BYTES], type=_Report)
    except (msgspec.DecodeError, UnicodeDecodeError):
        report = None
    if code == 0 and report is not None and report.ok:
        return
    if report is not None and not report.ok:
        raise ModelError(
            f"the release was refused by the process that tries it: {report.error}: {report.message}"
        )
    how = f"was ended by {_signal(-code)}" if code < 0 else f"ended with code {code}"
    raise ModelError(
        f"the process that tries the release {how}, and said nothing",
        hint="one of its files makes the engine crash or takes more than the limits of the trust file's `strict`",
    )


def _signal(number: int) -> str:
    import signal  # noqa: PLC0415 - for the message

    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# What an interpreter and the libraries below need to find themselves; nothing else of the service's environment.
_ENVIRON = frozenset(
    {"PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "HOME", "TMPDIR", "ORT_DISABLE_TELEMETRY"}
)


def _command() -> list[str]:
    """A fresh interpreter that finds the same packages as this one."""
    path = [entry or os.getcwd() for entry in sys.path]  # noqa: PTH109 - a string
    code = f"import sys; sys.path[:] = {path!r}; from retailinfer.cli.trial import main; main()"
    return [_interpreter(), "-I", "-c", code]


def _interpreter() -> str:
    """Python, also where another program has it inside, such as uWSGI. Raises: ConfigError."""
    prefix = os.path.join(sys.prefix, "bin", "python3")  # noqa: PTH118 - a string
    for path in (sys.executable, prefix):
        if path and os.path.basename(path).startswith("python") and os.access(path, os.X_OK):  # noqa: PTH119 - likewise
            return path
    raise ConfigError(
        f"strict mode needs a Python interpreter, and {clip(sys.executable, 100)} is none",
        hint="leave `strict` out of the trust file, or run under one",
    )
