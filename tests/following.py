"""Releases that can be told apart by one answer, a registry that has them, and doors that follow it. Everything is real."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import msgspec
from releases import packed, weighted
from signed_releases import digest_of, key, record, statement_of, trust_file

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.release.manifest import FileEntry, decode_manifest, encode_manifest, seal, sha256_hex
from retailinfer.release.trust import encode_trust

REQUEST = {"amount": 0.125}
WEIGHTS = {"1.0": 1.0, "1.1": 2.0, "1.2": 3.0, "1.3": 4.0, "1.4": 5.0}
SCORES = {f"fraud:{version}": weight * REQUEST["amount"] for version, weight in WEIGHTS.items()}
NEVER_S = 3600.0  # rounds come when they are asked for
RUNGS: dict[str, Any] = {
    "fallback": ri.Fallback(score=0.5),
    "contract": ri.Contract(ladder=(ri.Rung(kind="static"),)),
}


@functools.cache
def release(version: str, ladder: bool = False, **info: Any) -> dict[str, bytes]:
    """Score = the amount times a weight of the version's own."""
    spec = ri.FeatureSpec(request={"amount": float}, columns=[c.numeric("amount")])
    golden = {"amount": [0.0, 0.25, 1.5]}
    import pyarrow as pa

    return packed(
        "fraud",
        weighted(WEIGHTS[version]),
        spec.fit(pa.table(golden)),
        policy=ri.Policy(
            [("approve", 0.0), ("review", 0.3), ("decline", 0.6)], envelope={"decline": (0.5, 0.9)}
        ),
        golden=pa.table(golden),
        info={"version": version, **info},
        **(RUNGS if ladder else {}),
    )


@functools.cache
def bad(version: str) -> dict[str, bytes]:
    """Whole, and signed as well as any: its golden rows are those of another model."""
    files = dict(release(version))
    other = release("1.0" if version != "1.0" else "1.1")
    files["golden.msgpack"] = other["golden.msgpack"]
    manifest = decode_manifest(files["manifest.json"])
    data = files["golden.msgpack"]
    entries = tuple(
        FileEntry(role=one.role, file=one.file, size=len(data), sha256=sha256_hex(data))
        if one.file == "golden.msgpack"
        else one
        for one in manifest.files
    )
    files["manifest.json"] = encode_manifest(seal(msgspec.structs.replace(manifest, files=entries)))
    return files


def registry(place: Any, *versions: str, **settings: Any) -> ri.Registry:
    """With these versions published, and the first one promoted."""
    made = ri.Registry(place, **({"trust": "unsigned", "who": "anna"} | settings))
    for version in versions:
        made.publish(release(version))
    if versions:
        made.promote(f"fraud:{versions[0]}", why="first")
    return made


def follow(place: Any, **settings: Any) -> Any:
    """A scorer that follows, and looks when it is asked to."""
    given = {"poll_s": NEVER_S} | settings
    if not isinstance(place, ri.Registry):
        given = {"trust": "unsigned"} | given
    return ri.Scorer.follow(place, "fraud", **given)


def answer(scorer: Any) -> str:
    """Which release answers; its score is its own."""
    decision = scorer.score(REQUEST)
    assert decision.rung or decision.score == SCORES[decision.release], decision
    return str(decision.release)


class Hidden:
    """A registry that is out of reach for a while: its folder has another name."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.away = folder, folder.with_name("away")

    def __enter__(self) -> None:
        self.folder.rename(self.away)
        self.folder.write_bytes(b"")  # a file where the folder was: every read of it fails

    def __exit__(self, *_: object) -> None:
        self.folder.unlink()
        self.away.rename(self.folder)


class Heard:
    """A hook that keeps what changed."""

    def __init__(self) -> None:
        self.changes: list[Any] = []

    def on_event(self, event: Any) -> None:
        if type(event).__name__ == "Changed":
            self.changes.append(event)

    def of(self, part: str) -> list[tuple[str, str]]:
        """From what to what a part went."""
        return [(one.before, one.after) for one in self.changes if one.part == part]

    def why(self, part: str) -> str:
        """What was said of it last."""
        return str([one.why for one in self.changes if one.part == part][-1])


# ---- signed ------------------------------------------------------------------------------------------------------------


def signed_by(names: Any, statement: Any) -> bytes:
    """An envelope."""
    from retailinfer.release.signature import sign_statement

    return sign_statement(statement, [key(name) for name in names])


def signed_release(files: dict[str, bytes], **changes: Any) -> dict[str, bytes]:
    """By ci and lead, as the trust file asks for."""
    return files | {"manifest.sig": signed_by(("ci", "lead"), statement_of(files, **changes))}


def write_trust(folder: Path, **changes: Any) -> Path:
    """A trust file on disk."""
    path = folder / "trust.json"
    path.write_bytes(encode_trust(trust_file(**changes)))
    return path


__all__ = [
    "NEVER_S",
    "REQUEST",
    "SCORES",
    "Heard",
    "Hidden",
    "answer",
    "bad",
    "digest_of",
    "follow",
    "record",
    "registry",
    "release",
    "signed_by",
    "signed_release",
    "write_trust",
]
