"""What a release adds to a process: memory, in a fresh one that loads it and answers its golden rows.

Rules:
  * Everything that any release needs is imported before the first measurement; memory is what stands in RAM (resident).
  * Loading replays the golden rows, so what the first answers allocate is in it. Tables are stand-ins.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from retailinfer.authoring.loading import build
from retailinfer.errors import ModelError
from retailinfer.release.bundle import read_bundle
from retailinfer.release.manifest import MANIFEST, encode_manifest

if TYPE_CHECKING:
    from retailinfer.release.bundle import Bundle

__all__ = ["footprint_mb", "main"]

SECONDS = 120


def footprint_mb(bundle: Bundle) -> float:
    """Megabytes (10^6 bytes) that loading adds. Raises: ModelError when the process ends without an answer."""
    import subprocess  # noqa: PLC0415 - importing the package must not bring it

    files = {**bundle.files, MANIFEST: encode_manifest(bundle.manifest)}
    path = [entry or os.getcwd() for entry in sys.path]  # noqa: PTH109 - a string
    code = f"import sys; sys.path[:] = {path!r}; from retailinfer.authoring.footprint import main; main()"
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and code
            [sys.executable, "-c", code],
            input=msgspec.msgpack.encode(files),
            capture_output=True,
            timeout=SECONDS,
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        return float(json.loads(done.stdout)["mb"])
    except (OSError, subprocess.SubprocessError, ValueError, KeyError) as exc:
        raise ModelError(f"a fresh process did not load the release: {type(exc).__name__}") from exc


def main() -> None:
    """The fresh process: files by name (MessagePack) on stdin, {"mb": ...} on stdout."""
    files: Mapping[str, bytes] = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=dict[str, bytes])
    bundle = read_bundle(files)
    before = _resident()
    loaded = build(bundle)
    after = _resident()
    loaded.door.close()
    sys.stdout.write(json.dumps({"mb": (after - before) / 1e6}))


def _resident() -> int:
    """Bytes in RAM; where the system does not tell, the most that there ever was."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - one line
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource  # noqa: PLC0415 - not everywhere

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
