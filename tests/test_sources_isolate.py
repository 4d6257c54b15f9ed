"""`isolate`: keys that a back end refuses fail alone, whatever their number and place, and never longer than there is time."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retailinfer.store.sources import isolate


class RefusedError(Exception):
    """What the back end says of a key."""


@given(n=st.integers(1, 200), bad=st.sets(st.integers(0, 199), max_size=6))
def test_only_bad_keys_get_the_exception(n: int, bad: set[int]):
    """All others get their rows, with few more calls than there are bad keys and halvings."""
    calls = []

    def fetch(keys):
        calls.append(list(keys))
        if bad & set(keys):
            raise RefusedError
        return {key: {"x": key} for key in keys}

    answer = isolate(fetch, list(range(n)), blames_key=(RefusedError,), time_is_up=lambda: False)
    assert list(answer) == list(range(n))
    for key, row in answer.items():
        assert isinstance(row, RefusedError) if key in bad else row == {"x": key}
    here = len(bad & set(range(n)))
    assert len(calls) <= 1 + 2 * here * math.ceil(math.log2(max(2, n)))


def test_nothing_is_tried_again_when_time_is_up():
    """Every key that is not answered by then has the exception; it is not raised, for it blames keys."""
    left = [3]

    def fetch(keys):
        left[0] -= 1
        if 5 in keys:
            raise RefusedError
        return dict.fromkeys(keys)

    answer = isolate(fetch, list(range(8)), blames_key=(RefusedError,), time_is_up=lambda: left[0] <= 0)
    assert [key for key, row in answer.items() if row is None] == [0, 1, 2, 3]
    assert [key for key, row in answer.items() if isinstance(row, RefusedError)] == [4, 5, 6, 7]
    assert left[0] == 0


def test_other_failures_are_raised():
    """A back end that is down blames no key."""

    def fetch(keys):
        raise ConnectionError

    with pytest.raises(ConnectionError):
        isolate(fetch, ["a", "b"], blames_key=(RefusedError,), time_is_up=lambda: False)
