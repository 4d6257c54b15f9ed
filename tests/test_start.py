"""What a process pays before its first answer: the modules of an import and of a load, and annotations that are ready.

Rules:
  * The lists are whole: a module that comes to them is a decision, made here, with its milliseconds in the commit.
  * Modules of numpy, msgspec and of what they bring are there first: they are theirs.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from types import GenericAlias
from typing import Any

import msgspec
import pytest

from retailinfer.contracts import Contract
from retailinfer.features.spec import Body
from retailinfer.policy import PolicyBody
from retailinfer.release.background import Background
from retailinfer.release.fallback import FallbackBody
from retailinfer.release.golden import Golden
from retailinfer.release.manifest import Manifest
from retailinfer.runtime.trees import Header

# What a release brings as JSON or MessagePack, and is decoded when it is loaded.
DECODED = (Background, Body, Contract, FallbackBody, Golden, Header, Manifest, PolicyBody)


def structs_of(kind: Any) -> Iterator[type[msgspec.Struct]]:
    """The Struct types in a type, and in the annotations of those that it is made of."""
    if isinstance(kind, type) and not isinstance(kind, GenericAlias) and issubclass(kind, msgspec.Struct):
        yield kind
        for inner in kind.__annotations__.values():
            yield from structs_of(inner)
    for inner in typing.get_args(kind):
        yield from structs_of(inner)


@pytest.mark.parametrize("kind", DECODED, ids=lambda kind: kind.__name__)
def test_annotations_of_what_is_decoded_at_load_are_ready(kind: type[msgspec.Struct]):
    """msgspec compiles annotations that are text, one by one, in the first decoding: 4 ms of a load of 20."""
    late = [
        f"{one.__name__}.{name}"
        for one in structs_of(kind)
        for name, annotation in one.__annotations__.items()
        if isinstance(annotation, str)
    ]
    assert late == []
