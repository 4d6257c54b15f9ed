"""Lineage: every table, window, stream and source that a spec reads, by the digest of its definition.

Rules:
  * It follows from the spec alone, so that a release cannot read what its manifest does not list: loading compares the two.
  * The digest of a table is of its key and of the columns that are read, that of a stream of its fields, that of a window is
    its state's (two releases that show the same one share what is counted), that of a source of what its owner declared.
  * Owners and sources are for people. They are no part of a spec's fingerprint: no answer depends on them.
Who writes it into the manifest: authoring/describe.py. Who asks whether it may be read: store/access.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from retailinfer.features.streams import accumulator_of, stream_fields

if TYPE_CHECKING:
    from retailinfer.features.spec import Body, Source

__all__ = ["Reading", "lineage"]


class Reading(NamedTuple):
    """One thing that is read.

    kind, name: of it; a source's name is that which its owner gave it. columns: what is read of it; of a window, the fields of
    the stream. digest: SHA-256 (hex) of its definition; None where nobody gave one. owner: as declared in the spec.
    """

    kind: Literal["table", "window", "stream", "source"]
    name: str
    columns: tuple[str, ...]
    digest: str | None
    owner: str | None


def lineage(body: Body) -> tuple[Reading, ...]:
    """What a spec reads: tables, windows, the streams that they count, the sources of all of them."""
    if body.arrays:  # the caller brings everything, and whatever else stands there was never checked
        return ()
    tables, streams = list(_tables(body)), list(_streams(body))
    sources = [body.entities[one.name].source for one in tables]
    sources += [body.streams[one.name].source for one in streams]
    return (*tables, *_windows(body), *streams, *_sources(sources))


def _tables(body: Body) -> Iterator[Reading]:
    for name, entity in body.entities.items():
        columns = sorted(ref.partition(".")[2] for ref in body.stored if ref.partition(".")[0] == name)
        # A ranking may ask `available=` of any column of its candidates.
        if not columns and name != body.candidate:
            continue
        kinds = {column: body.stored[f"{name}.{column}"] for column in columns}
        digest = _sha256({"key": entity.key, "columns": kinds})
        yield Reading("table", name, tuple(columns), digest, entity.owner)


def _windows(body: Body) -> Iterator[Reading]:
    for name, window in body.windows.items():
        used = dict.fromkeys([*([] if window.of is None else [window.of]), *(t.field for t in window.where)])
        digest = accumulator_of(body, window).digest.hex()
        yield Reading("window", name, tuple(used), digest, body.streams[window.on].owner)


def _streams(body: Body) -> Iterator[Reading]:
    for name in sorted({window.on for window in body.windows.values()}):
        fields = stream_fields(body, name)
        yield Reading(
            "stream", name, tuple(f.name for f in fields), _sha256(fields), body.streams[name].owner
        )


def _sources(declared: list[Source | None]) -> Iterator[Reading]:
    named = {source.name: source for source in declared if source is not None}
    for name in sorted(named):
        yield Reading("source", name, (), named[name].sha256, named[name].owner)


def _sha256(definition: object) -> str:
    import hashlib  # noqa: PLC0415 - brings OpenSSL's library; importing the package need not

    return hashlib.sha256(msgspec.json.encode(definition, order="deterministic")).hexdigest()
