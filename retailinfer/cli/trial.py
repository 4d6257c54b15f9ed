"""The child of strict mode (release/limited.py): tries a release that comes over stdin, within limits, and says how it went.

Rules:
  * Limits hold before a byte of the release is read: memory, processor time, no core file, no file written.
  * ONNX graphs are parsed and checked as when packing; then everything is loaded as serving does, golden rows included, with
    stand-ins for tables.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import IO

from retailinfer.errors import ModelError, RetailInferError

__all__ = ["main"]

MAX_HEAD_BYTES = 1 << 16


def main() -> None:
    """Read, try, report; ends the process with 0 when a report was written."""
    # What is imported now is not counted against the release.
    from retailinfer.authoring.loading import build
    from retailinfer.authoring.preflight import inspect, require_onnx
    from retailinfer.release.bundle import read_bundle

    given = sys.stdin.buffer
    head = json.loads(given.readline(MAX_HEAD_BYTES))
    try:
        require_onnx()
        import retailinfer.ranker
        import retailinfer.scorer  # noqa: F401 - as above

        _limit(head["memory_mb"] << 20, head["cpu_seconds"])
        files = {name: _exactly(given, size) for name, size in head["files"]}
        bundle = read_bundle(files)
        for model in bundle.manifest.models:
            if model.engine == "onnx":
                inspect(bundle.files[model.file], where=model.file)
        loaded = build(bundle)
        loaded.door.close()
    except (RetailInferError, MemoryError, RecursionError) as exc:
        report = {"ok": False, "error": type(exc).__name__, "message": " ".join(str(exc).split())[:2000]}
    else:
        report = {"ok": True}
    print(json.dumps(report), flush=True)


def _limit(memory: int, cpu_seconds: int) -> None:
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - one line
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    for what, most in (
        (resource.RLIMIT_AS, mapped + memory),
        (resource.RLIMIT_CPU, int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2])) + cpu_seconds),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        _, hard = resource.getrlimit(what)
        ends = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (ends, ends))


def _exactly(given: IO[bytes], size: int) -> bytes:
    data = given.read(size)
    if len(data) != size:
        raise ModelError(f"Expected {size} bytes of a file, got {len(data)}")
    return data
