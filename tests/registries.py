"""Small releases for tests of the registry, made in memory in a millisecond, and what is true of every registry.

They are whole to `read_bundle`; no engine ever opens their models. Tests that load what comes out pack releases of their own.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import retailinfer as ri
from retailinfer.errors import RegistryError
from retailinfer.release.bundle import read_bundle
from retailinfer.release.manifest import (
    MANIFEST,
    FileEntry,
    Info,
    InputSource,
    Machine,
    Manifest,
    ModelEntry,
    Output,
    ScoreRef,
    encode_manifest,
    seal,
    sha256_hex,
)
from retailinfer.release.report import Check, CheckReport

DAY_NS = 86_400 * 10**9
POLICY = ri.Policy([("approve", 0.0), ("decline", 0.9)], envelope={"decline": (0.8, 0.97)})


@functools.cache
def release(
    version: str, content: str = "", *, name: str = "fraud", fallbacks: tuple[str, ...] = ()
) -> dict[str, bytes]:
    """A release as files by name; another `content` makes another digest under the same version."""
    files = {
        "features.json": ("features", b'{"format":1}'),
        "contract.json": ("contract", b"{}"),
        "model.onnx": ("model:model", f"{name} {version} {content}".encode() * 20),
        "policy.json": ("policy", POLICY.to_json()),
    }
    manifest = seal(
        Manifest(
            name=name,
            version=version,
            task="classification",
            created="2026-11-22T13:00:00Z",
            files=tuple(
                FileEntry(role=role, file=file, size=len(data), sha256=sha256_hex(data))
                for file, (role, data) in sorted(files.items())
            ),
            models=(
                ModelEntry(
                    role="model",
                    file="model.onnx",
                    inputs={"x": InputSource(kind="tensor", name="features")},
                    outputs=(Output(name="y", dtype="float32"),),
                ),
            ),
            score=ScoreRef(role="model", output="y"),
            spec_fingerprint="0" * 64,
            machine=Machine(cpu="linux-x86_64"),
            info=Info(version=version, fallbacks=fallbacks),
        )
    )
    return {MANIFEST: encode_manifest(manifest)} | {file: data for file, (_, data) in files.items()}


def digest(files: dict[str, bytes]) -> str:
    """Of a release."""
    return read_bundle(files).manifest.digest


def report_of(files: Any, state: Any = "passed") -> bytes:
    """A report of checks about a release, as approvals ask for it; what checks find is tested elsewhere."""
    manifest = read_bundle(files).manifest
    report = CheckReport(
        release=manifest.release,
        digest=manifest.digest,
        made="2026-11-22T13:00:00Z",
        cpu="linux-x86_64",
        onnxruntime="",
        checks=[Check(name="schema", state=state, text="looked at")],
    )
    return report.to_json()


def check(registry: ri.Registry) -> None:
    """What holds whatever happened: everything listed can be read, every pointer follows and names what is there."""
    listed = {one.digest: one for one in registry.releases()}
    assert len(listed) == len(registry.releases())
    for one in listed.values():
        if not one.collected:
            assert digest(registry.read(one.digest)) == one.digest
    for name in {one.name for one in listed.values()}:
        history = registry.history(name)
        assert [pointer.seq for pointer in history] == list(range(1, len(history) + 1))
        assert registry.pointer(name) == (history[-1] if history else None)
        for role in history[-1].digests if history else ():
            assert not listed[role].collected


def all_files(files: Any) -> set[str]:
    """Every file of a registry below its root."""
    found: set[str] = set()
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        for one in files.names(folder):
            path = f"{folder}/{one}".lstrip("/")
            if files.names(path):
                waiting.append(path)
                continue
            with contextlib.suppress(RegistryError):  # an empty folder
                found.update([path] if files.read(path, 1 << 20) is not None else [])
    return found
