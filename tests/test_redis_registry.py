"""The registry of windows in Redis as others may leave it: passed over or unavailable, never an error that escapes."""

from __future__ import annotations

import pytest

from retailinfer._native.windows import WindowGroup
from retailinfer.store.redis_link import LinkError
from retailinfer.store.windows_redis import _field, _registry, _set_since

DIGEST = b"\1" * 32
MINUTE_NS = 60 * 10**9


def read(name, *fields):
    """Since when the accumulator of a new group is complete, by a registry with these fields beside its id."""
    group = WindowGroup(name, "str", shared=True)
    group.register(DIGEST, "count", MINUTE_NS, 10, since_ns=5)
    _set_since(group, DIGEST, 10, _registry([b"id", b"12345678", *fields]))
    return group.since(DIGEST)


def test_entities_may_have_names_beyond_ascii():
    """Every identifier names an entity, in Redis as in memory."""
    assert read("k\u00e4ufer", _field("k\u00e4ufer", DIGEST, 10), b"77") == 77


@pytest.mark.parametrize("moment", [b"abc", b"", b"9999999999999999999", None])
def test_own_field_that_was_written_over_makes_the_windows_unavailable(moment):
    """A moment that is none is what a link reports: requests get the declared outcome, not a KeyError."""
    with pytest.raises(LinkError):
        read("card", _field("card", DIGEST, 10), moment)


def test_fields_of_others_are_passed_over():
    """More panes than there may be, odd names and odd bytes change nothing about our own."""
    odd = [
        _field("card", DIGEST, 9999),
        b"5",
        _field("card", DIGEST, 0),
        b"5",
        b"\xff:" + b"0" * 64 + b":7",
        b"1",
    ]
    assert read("card", _field("card", DIGEST, 10), b"77", *odd) == 77
