"""Random and mutated bodies: every door answers each, or refuses it with a CallerError; nothing else comes out.

The coverage-guided runs are elsewhere; here thousands of bodies per run keep the promise in everyday tests.
"""

from __future__ import annotations

import contextlib
import functools
import json

import hypothesis
import msgspec
import pytest
import releases
from hypothesis import given
from hypothesis import strategies as st
from releases import CONTEXT, payment

from retailinfer.errors import CallerError

pack = msgspec.msgpack.encode

# Bytes that decoders care about, beside those of good bodies.
TOKENS = [
    *(bytes([b]) for b in b'{}[]":,\\/-+.eE0123456789tfnu \n\r\t\0'),
    b"null", b"true", b"false", b"NaN", b"Infinity", b"1e999", b"-0.0", b"\\u", b"\\ud800", b"\\u0000", b"\xff", b"\xc3\xa9",
    b"\xed\xa0\x80", b"\xef\xbb\xbf", b"9" * 30, b"9" * 5000, b"[" * 40, b'{"a":' * 40, b'"amount":', b'"channel":', b'"at":',
    b'"candidates":', b'"k":', b'"exclude":', b"\x80", b"\x8f", b"\x90", b"\x91" * 40,
    b"\xa0", b"\xbf", b"\xc0", b"\xc1", b"\xc2",
    b"\xc3", b"\xc4\xff", b"\xc7\x08\xff", b"\xca\x7f\xc0\x00\x00", b"\xcb\x7f\xf8" + bytes(6), b"\xcb\x7f\xf0" + bytes(6),
    b"\xcf" + b"\xff" * 8, b"\xd3\x80" + bytes(7), b"\xd6\xff" + bytes(4), b"\xd7\xff" + b"\xff" * 8,
    b"\xd9\xff", b"\xdb\xff\xff\xff\xff",
    b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xde\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xff",
]  # fmt: skip

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["2026-01-01T00:00:00Z", "sku-001", "web", 12.5, 3, 1772366400.0, ["a"], [1.0], [1]]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


@functools.cache
def doors():
    """Name -> (door, a good body)."""
    strict, lenient = releases.payment_scorer(), releases.payment_scorer(extra="ignore")
    texts, numbers = releases.shared_ranker(), releases.shared_ranker(int)
    ranking = {
        "context": CONTEXT,
        "candidates": ["sku-001", "sku-002", "new"],
        "k": 2,
        "exclude": ["sku-003"],
    }
    integers = ranking | {"candidates": [1, 2, -5], "exclude": [3]}
    return {
        "score_json": (strict.score_json, msgspec.json.encode(payment())),
        "score_json, extra ignored": (lenient.score_json, msgspec.json.encode(payment(other=[{"a": [1]}]))),
        "score_msgpack": (strict.score_msgpack, pack(payment())),
        "score_msgpack, extra ignored": (lenient.score_msgpack, pack(payment(other=[{"a": [1]}]))),
        "rank_json": (texts.rank_json, msgspec.json.encode(ranking)),
        "rank_json of integers": (numbers.rank_json, msgspec.json.encode(integers)),
    }


NAMES = list(doors())
EXAMPLES = 350


def settle(door, body):
    """Answered, or refused by a CallerError with a status of the caller's and a short text."""
    refusal = None
    try:
        answer = door(body)
    except CallerError as exc:
        refusal = exc
    if refusal is not None:
        assert refusal.http_status in (400, 413, 422)
        assert len(str(refusal)) < 600
        return refusal
    decoded = msgspec.json.decode(answer) if answer[:1] == b"{" else msgspec.msgpack.decode(answer)
    scores = decoded.get("scores", [decoded.get("score")])
    assert all(isinstance(s, float) and -1e39 < s < 1e39 for s in scores)
    return decoded


def many(test):
    """More examples than other property tests: one takes microseconds."""
    scale = max(1, hypothesis.settings().max_examples // 60)
    return hypothesis.settings(max_examples=EXAMPLES * scale, deadline=None)(test)


@pytest.mark.parametrize("name", NAMES)
@many
@given(parts=st.lists(st.binary(max_size=40) | st.sampled_from(TOKENS), max_size=30))
def test_random_bytes(name, parts):
    """Noise, and noise made of what decoders care about."""
    door, _ = doors()[name]
    settle(door, b"".join(parts))


@pytest.mark.parametrize("name", NAMES)
@many
@given(data=st.data())
def test_mutated_good_bodies(name, data):
    """Bytes of a good body flipped, cut, doubled, moved and replaced by tokens, a few at a time."""
    door, body = doors()[name]
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body)))
        end = min(len(body), at + data.draw(st.integers(0, 8)))
        how = data.draw(st.sampled_from(["cut", "drop", "token", "bytes", "flip", "double"]))
        if how == "cut":
            body = body[:at]
        elif how == "drop":
            body = body[:at] + body[end:]
        elif how == "token":
            body = body[:at] + data.draw(st.sampled_from(TOKENS)) + body[end:]
        elif how == "bytes":
            body = body[:at] + data.draw(st.binary(max_size=8)) + body[end:]
        elif how == "flip" and at < len(body):
            body = body[:at] + bytes([body[at] ^ (1 << data.draw(st.integers(0, 7)))]) + body[at + 1 :]
        else:
            body = body[:at] + body[at:end] * 2 + body[end:]
    settle(door, body)


@pytest.mark.parametrize("name", NAMES)
@many
@given(data=st.data())
def test_well_formed_bodies_of_any_shape(name, data):
    """Fields replaced by values of any type, dropped, and joined by others."""
    door, body = doors()[name]
    if "msgpack" in name:
        decode, encode = msgspec.msgpack.decode, pack
    else:
        decode, encode = json.loads, lambda v: json.dumps(v).encode()
    request = decode(body)
    target = request
    if "rank" in name and data.draw(st.booleans()):
        target = request["context"]
    for field in data.draw(st.lists(st.sampled_from([*target]), max_size=3, unique=True)):
        if data.draw(st.booleans()):
            target[field] = data.draw(VALUES)
        else:
            del target[field]
    if data.draw(st.booleans()):
        target[data.draw(st.text(max_size=6))] = data.draw(VALUES)
    try:
        changed = encode(request)
    except (OverflowError, UnicodeEncodeError):  # integers that MessagePack cannot say
        return
    settle(door, changed)


@pytest.mark.parametrize("name", NAMES)
def test_every_byte_of_a_good_body_changed(name):
    """Each position in turn: dropped, doubled, all bits flipped, and set to what decoders care about."""
    door, body = doors()[name]
    assert not isinstance(settle(door, body), CallerError)
    for at in range(len(body)):
        head, byte, tail = body[:at], body[at : at + 1], body[at + 1 :]
        for changed in (b"", byte * 2, bytes([byte[0] ^ 0xFF]), b"\0", b'"', b"[", b"\xdd", b"9"):
            settle(door, head + changed + tail)


@many
@given(
    request=st.dictionaries(st.sampled_from([*payment(), "other"]) | st.text(max_size=3), VALUES, max_size=12)
    | VALUES,
    base=st.booleans(),
)
def test_any_python_request(request, base):
    """Dicts of anything through score, score_batch and rank: an answer or a typed error."""
    scorer, ranker = releases.payment_scorer(), releases.shared_ranker()
    if base and isinstance(request, dict):
        request = payment() | request
    try:
        one = scorer.score(request).score
    except CallerError:
        one = None
    (answer,) = scorer.score_batch([request], errors="row")
    assert getattr(answer, "score", None) == one
    with contextlib.suppress(CallerError):
        ranker.rank(request, ["sku-001"])


@many
@given(
    candidates=st.lists(VALUES, max_size=6),
    exclude=st.lists(VALUES, max_size=3),
    k=st.integers(-3, 2**65) | VALUES,
)
def test_any_python_candidates(candidates, exclude, k):
    """The same for what is ranked."""
    for ranker in (releases.shared_ranker(), releases.shared_ranker(int)):
        with contextlib.suppress(CallerError):
            ranker.rank(CONTEXT, candidates, k, exclude=exclude)
