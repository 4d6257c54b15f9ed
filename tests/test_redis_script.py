"""The script that adds to windows in Redis, against its twin: the same bytes for any operations, and nothing for rubbish."""

from __future__ import annotations

import itertools
import struct

import hypothesis.strategies as st
import pytest
import redis_twin as twin
from hypothesis import example, given
from redis_twin import COUNT, DISTINCT, MAX, MIN, SUM, Event, Step

from retailinfer.store.redis_link import ErrorReply, RedisLink, encode
from retailinfer.store.windows_redis import _ADD_SCRIPT

NAMES = itertools.count()
BIG = 2**53


@pytest.fixture(scope="module")
def link(redis_server):
    """A link to the session's server."""
    with_redis = RedisLink(redis_server.url)
    yield with_redis
    with_redis.close()


def run(link, keys, events, known=b"", registry=()):
    """One call of the script with its whole text."""
    arguments = [known, *(event if isinstance(event, bytes) else event.pack() for event in events)]
    command = _ADD_SCRIPT.call([*registry, *keys], arguments, whole=True)
    return link.request([(keys[0], command)], timeout_s=10)[0]


def get(link, key):
    """The raw value."""
    return link.request([(key, encode(b"GET", key))], timeout_s=10)[0]


DIGESTS = [(bytes([65 + i]) * 8, kind) for i, kind in enumerate((COUNT, SUM, MIN, MAX, DISTINCT, SUM))]


@st.composite
def usual_events(draw):
    """Events as requests of one release make them: the same accumulators, times that mostly go on."""
    chosen = draw(st.lists(st.sampled_from(DIGESTS[:4] + DIGESTS[5:]), min_size=1, max_size=5, unique=True))
    pane = 10
    made = []
    for i in range(draw(st.integers(1, 25))):
        pane += draw(st.sampled_from([0, 0, 1, 1, 2, 7, -1]))
        steps = [
            Step(
                digest, kind, draw(st.integers(0, 5)) > 0, 5, 20, pane, 2**32 - 1,
                0 if kind == COUNT else draw(st.sampled_from([1, 2, -2, 3, BIG, 1 - BIG])),
            )
            for digest, kind in chosen
        ]  # fmt: skip
        identity = struct.pack("<Q", i + 1) if draw(st.integers(0, 19)) == 0 else bytes(8)
        made.append([Event(2_000_000_000 + 5 * i, steps, identity, add=draw(st.integers(0, 19)) > 0)] * 2)
    return made


@st.composite
def events(draw):
    """Events of one entity whose panes, ids and values meet often."""
    now = 2_000_000_000 + draw(st.integers(0, 30))
    limit = draw(st.sampled_from([1 << 32, 1 << 32, 1 << 32, 30])) - 1
    steps = [
        Step(
            digest, kind, draw(st.booleans()) or draw(st.booleans()), draw(st.sampled_from([3, 5, 9])),
            draw(st.sampled_from([5, 20, 1_000])), draw(st.integers(10, 40)), limit,
            0 if kind == COUNT
            else draw(st.integers(0, 5)) if kind == DISTINCT
            else draw(st.one_of(st.integers(-5, 5), st.sampled_from([BIG, BIG - 1, -BIG, 1 - BIG]))),
        )
        for digest, kind in draw(st.lists(st.sampled_from(DIGESTS), min_size=1, max_size=6, unique=True))
    ]  # fmt: skip
    identity = draw(st.sampled_from([bytes(8), bytes(8), *(struct.pack("<Q", i) for i in range(1, 14))]))
    return Event(now, steps, identity, add=draw(st.integers(0, 9)) > 0)


@given(
    requests=usual_events() | st.lists(st.lists(events(), min_size=2, max_size=2), min_size=1, max_size=25)
)
@example(
    requests=[
        [Event(2_000_000_000, [Step(b"B" * 8, SUM, True, 3, 5, 10, 50, v)])] * 2 for v in (BIG, 1, -1, 1)
    ]
)
def test_script_leaves_the_values_that_its_twin_leaves(link, requests):
    """After every request Redis holds the twin's bytes for both entities, and gave the bytes of before."""
    keys = [b"script:%d" % next(NAMES) for _ in range(2)]
    want = [None, None]
    for request in requests:
        got = run(link, keys, request)
        assert got == [None, *want]
        want = twin.after_all(want, request)
        assert [get(link, key) for key in keys] == want


def test_distinct_keeps_64_of_one_pane(link):
    """The 65th different value of a pane changes nothing; another pane has room of its own."""
    key = b"script:%d" % next(NAMES)
    for i in [*range(80), *range(80)]:
        run(link, [key], [Event(9, [Step(b"d" * 8, DISTINCT, True, 5, 99, 7, 99, 2**32 - 1 - i)])])
    run(link, [key], [Event(9, [Step(b"d" * 8, DISTINCT, True, 5, 99, 8, 99, 1)])])
    entries = dict(twin.sections(get(link, key)))[b"d" * 8].entries
    assert [pane for pane, _ in entries] == [7] * 64 + [8]
    assert entries == sorted(entries)


def test_value_expires_when_nothing_of_it_can_matter(link):
    """The time to live is that of the section that lasts longest, another release's too, from each write on."""
    key = b"script:%d" % next(NAMES)
    run(link, [key], [Event(1_000, [Step(b"a" * 8, COUNT, True, 5, 500, 7, 99, 0)])])
    run(link, [key], [Event(1_100, [Step(b"b" * 8, COUNT, True, 5, 50, 7, 99, 0)])])
    ttl = link.request([(key, encode(b"TTL", key))], timeout_s=5)[0]
    assert 390 <= ttl <= 400


def test_sections_of_a_release_that_is_gone_are_dropped(link):
    """A section that nobody writes any more leaves the value once its time is over."""
    key = b"script:%d" % next(NAMES)
    run(link, [key], [Event(1_000, [Step(b"a" * 8, COUNT, True, 5, 50, 7, 99, 0)])])
    run(link, [key], [Event(1_050, [Step(b"b" * 8, COUNT, True, 5, 5_000, 7, 99, 0)])])
    assert set(twin.unpack(get(link, key)).sections) == {b"a" * 8, b"b" * 8}
    run(link, [key], [Event(1_051, [Step(b"b" * 8, COUNT, True, 5, 5_000, 7, 99, 0)])])
    assert set(twin.unpack(get(link, key)).sections) == {b"b" * 8}


VALUE = twin.Value(
    0,
    {
        b"B" * 8: twin.Section(SUM, 5, 2**32 - 1, [(7, 1, 5), (8, 2, 9)]),
        b"E" * 8: twin.Section(DISTINCT, 5, 2**32 - 1, [(7, 1), (7, 2)]),
    },
).pack()


@given(data=st.data())
def test_script_never_fails_on_a_damaged_value(link, data):
    """Whatever bytes stand under a key, the script answers; truncated and foreign bytes stay as they are."""
    key = b"script:%d" % next(NAMES)
    cut = data.draw(st.integers(0, len(VALUE) - 1))
    rubbish = data.draw(
        st.one_of(
            st.just(VALUE[:cut]),
            st.binary(max_size=60),
            st.just(VALUE[:cut] + bytes([VALUE[cut] ^ data.draw(st.integers(1, 255))]) + VALUE[cut + 1 :]),
        )
    )
    link.request([(key, encode(b"SET", key, rubbish))], timeout_s=5)
    event = Event(
        2_000_000_000,
        [Step(b"B" * 8, SUM, True, 5, 99, 9, 99, 4), Step(b"E" * 8, DISTINCT, True, 5, 99, 9, 99, 4)],
    )
    got = run(link, [key], [event])
    assert got == [None, rubbish]
    if len(rubbish) < len(VALUE) and not rubbish.startswith(VALUE[:8]):
        assert get(link, key) == rubbish


def test_foreign_types_spoil_only_their_own_entity(link):
    """A key that holds another type is answered by its error; the others are read and added to."""
    keys = [b"script:%d" % next(NAMES) for _ in range(2)]
    link.request([(keys[0], encode(b"LPUSH", keys[0], b"x"))], timeout_s=5)
    event = Event(9, [Step(b"a" * 8, COUNT, True, 5, 99, 7, 99, 0)])
    got = run(link, keys, [event, event])
    assert isinstance(got[1], ErrorReply)
    assert (got[1].code, got[2]) == ("WRONGTYPE", None)
    assert get(link, keys[1]) is not None


def test_another_registry_stops_the_script(link):
    """A caller who knows another registry gets its id and nothing is added."""
    key, registry = (b"script:%d" % next(NAMES) for _ in range(2))
    event = Event(9, [Step(b"a" * 8, COUNT, True, 5, 99, 7, 99, 0)])
    assert run(link, [key], [event], b"mine", [registry]) == [None]
    link.request([(registry, encode(b"HSET", registry, b"id", b"theirs"))], timeout_s=5)
    assert run(link, [key], [event], b"mine", [registry]) == [b"theirs"]
    assert get(link, key) is None
    assert run(link, [key], [event], b"theirs", [registry]) == [b"theirs", None]
    assert get(link, key) is not None
