"""Acceptance of untrusted bytes (cases 1 to 17): an answer or a typed error that an HTTP adapter can show.

Each case runs against every door that takes bytes: score_json, score_msgpack and rank_json. 400 = no request, 413 = too
much of it, 422 = well-formed, but not what the spec declares.
"""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

import msgspec
import pytest
import releases
from releases import AT, CONTEXT, payment

from retailinfer.errors import (
    CallerError,
    ConfigError,
    FeatureError,
    FeatureRangeError,
    LimitError,
    RequestError,
)

pack = msgspec.msgpack.encode
WELL = {"context": CONTEXT, "candidates": ["sku-001", "sku-002"], "k": 2}


@pytest.fixture(scope="module")
def scorer():
    """A scorer of payments."""
    return releases.payment_scorer()


@pytest.fixture(scope="module")
def lenient():
    """The same, with unknown fields ignored."""
    return releases.payment_scorer(extra="ignore")


@pytest.fixture(scope="module")
def ranker():
    """A ranker of items with text ids."""
    return releases.item_ranker()


@pytest.fixture(scope="module")
def number_ranker():
    """A ranker of items with integer ids."""
    return releases.item_ranker(int)


def text(**changes):
    """A payment in JSON; bytes stand as they are in the place of a value."""
    values = payment() | changes
    parts = [
        json.dumps(name).encode() + b":" + (value if isinstance(value, bytes) else msgspec.json.encode(value))
        for name, value in values.items()
    ]
    return b"{" + b",".join(parts) + b"}"


def refused(call, body, *, status, error=CallerError):
    """The error that a body gives, checked for its family, its status and its size."""
    with pytest.raises(error) as caught:
        call(body)
    assert caught.value.http_status == status, caught.value
    assert len(str(caught.value)) < 600
    return caught.value


def answers(call, body):
    """The decoded answer to a good body, JSON or MessagePack."""
    answer = call(body)
    return msgspec.json.decode(answer) if answer[:1] == b"{" else msgspec.msgpack.decode(answer)


# ---- 1 to 3: not JSON, not UTF-8 -----------------------------------------------------------------------------------------

GOOD = text()
BROKEN_JSON = {
    "empty": b"",
    "blank": b" \n",
    "truncated": GOOD[:-1],
    "cut in a text": GOOD[: GOOD.index(b"web") + 1],
    "cut in a number": b'{"amount":1',
    "trailing bytes": GOOD + b" x",
    "two documents": GOOD + GOOD,
    "NUL after the end": GOOD + b"\0",
    "BOM": b"\xef\xbb\xbf" + GOOD,
    "UTF-16": GOOD.decode().encode("utf-16"),
    "UTF-16-LE without BOM": GOOD.decode().encode("utf-16-le"),
    "UTF-32": GOOD.decode().encode("utf-32"),
    "invalid UTF-8": text(channel=b'"\xff"'),
    "overlong UTF-8": text(channel=b'"\xc0\xaf"'),
    "cut UTF-8": text(channel=b'"\xe2\x82"'),
    "encoded surrogate": text(channel=b'"\xed\xa0\x80"'),
    "beyond Unicode": text(channel=b'"\xf4\x90\x80\x80"'),
    "lone high surrogate": text(channel=b'"\\ud800"'),
    "lone low surrogate": text(channel=b'"\\udc00x"'),
    "surrogates swapped": text(channel=b'"\\udc00\\ud800"'),
    "invalid UTF-8 in a key": GOOD.replace(b"note", b"no\xffe"),
    "control character": text(channel=b'"a\x01"'),
    "bad escape": text(channel=b'"\\x41"'),
    "NaN": text(amount=b"NaN"),
    "Infinity": text(amount=b"Infinity"),
    "-Infinity": text(amount=b"-Infinity"),
    "leading zero": text(amount=b"01"),
    "hexadecimal": text(amount=b"0x10"),
    "single quotes": b"{'amount':1}",
    "comment": b"/**/" + GOOD,
    "trailing comma": GOOD[:-1] + b",}",
}


@pytest.mark.parametrize("name", BROKEN_JSON)
def test_c01_c02_c03_c07_bytes_that_are_no_json_are_a_400(scorer, name):
    """Empty, cut, trailing, BOM, UTF-16, broken UTF-8, lone surrogates, NaN: a RequestError, in every encoding of bytes."""
    body = BROKEN_JSON[name]
    for sent in (body, bytearray(body), memoryview(body)):
        refused(scorer.score_json, sent, status=400, error=RequestError)


@pytest.mark.parametrize("end", range(0, len(GOOD), 7))
def test_c01_every_cut_of_a_body_is_a_400(scorer, end):
    """A request cut anywhere is no request."""
    refused(scorer.score_json, GOOD[:end], status=400, error=RequestError)


def test_c01_every_cut_of_a_msgpack_body_is_a_400(scorer):
    """A MessagePack request cut anywhere is no request, nor is one with bytes behind its end."""
    whole = pack(payment())
    for end in range(len(whole)):
        refused(scorer.score_msgpack, whole[:end], status=400, error=RequestError)
    for tail in (b"\0", b"\xc1", whole):
        refused(scorer.score_msgpack, whole + tail, status=400, error=RequestError)
    refused(scorer.score_msgpack, b"\xc1", status=400, error=RequestError)


@pytest.mark.parametrize("bad", [b"\xa1\xff", b"\xa2\xc0\xaf", b"\xa3\xed\xa0\x80", b"\xd9\x01\xff"])
def test_c02_broken_utf8_in_msgpack_is_a_400(scorer, bad):
    """The same bytes that JSON refuses."""
    body = pack(payment(channel="@")).replace(b"\xa1@", bad)
    refused(scorer.score_msgpack, body, status=400, error=RequestError)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        msgspec.json.encode(WELL)[:-1],
        msgspec.json.encode(WELL) + b"x",
        b"\xef\xbb\xbf" + msgspec.json.encode(WELL),
        json.dumps(WELL).encode("utf-16"),
        json.dumps(WELL).encode().replace(b"sku-001", b"sku-\xff01"),
        json.dumps(WELL).encode().replace(b"sku-001", b"\xed\xa0\x80"),
        json.dumps(WELL).encode().replace(b"sku-001", b"\\ud800"),
        json.dumps(WELL).encode().replace(b"sku-001", b"sku\x01"),
        json.dumps(WELL).encode().replace(b'"sku-001"', b"01"),
        json.dumps(WELL).encode().replace(b'"sku-002"]', b'"sku-002",]'),
        json.dumps(WELL).encode().replace(b"u-1", b"\xff"),
        json.dumps(WELL).encode().replace(b"1.0", b"NaN"),
    ],
)
def test_c01_c02_c03_c07_a_ranking_request_that_is_no_json_is_a_400(ranker, body):
    """The candidates are scanned in place; what is no JSON there is refused as anywhere else."""
    refused(ranker.rank_json, body, status=400, error=RequestError)


@pytest.mark.parametrize("door", ["score_json", "score_msgpack"])
@pytest.mark.parametrize("body", ["{}", None, 1, 1.5, [], {}, object()])
def test_bytes_of_another_type_are_refused_with_a_hint(scorer, door, body):
    """Text is not bytes: a caller who passes `request.text` is told so."""
    error = refused(getattr(scorer, door), body, status=422, error=FeatureError)
    assert "bytes" in str(error)


def test_a_released_memoryview_is_a_typed_error(scorer):
    """A view whose buffer is gone cannot be read."""
    view = memoryview(bytearray(GOOD))
    view.release()
    with pytest.raises(CallerError):
        scorer.score_json(view)


# ---- 4, 5: depth -----------------------------------------------------------------------------------------------------------


def nested(depth, kind):
    """A value of `depth` levels."""
    if kind == "array":
        return b"[" * depth + b"]" * depth
    if kind == "object":
        return b'{"a":' * depth + b"1" + b"}" * depth
    return b'[{"a":' * (depth // 2) + b"1" + b"}]" * (depth // 2)


def nested_msgpack(depth, kind):
    """The same in MessagePack."""
    unit = {
        "array": b"\x91",
        "object": b"\x81\xa1a",
        "array16": b"\xdc\x00\x01",
        "map32": b"\xdf\0\0\0\x01\xa1a",
    }[kind]
    return unit * depth + b"\xc0"


@pytest.mark.parametrize("kind", ["array", "object", "both"])
def test_c04_depth_32_is_read_and_33_refused(scorer, lenient, kind):
    """The limit of 32 levels holds at the top, in a field, and in an unknown field (case 5)."""
    refused(scorer.score_json, nested(34, kind), status=400, error=RequestError)
    refused(scorer.score_json, text(tags=nested(34, kind)), status=400, error=RequestError)
    assert answers(lenient.score_json, text(other=nested(30, kind)))["score"] > 0
    refused(lenient.score_json, text(other=nested(34, kind)), status=400, error=RequestError)
    refused(lenient.score_json, text(other=nested(100_000, kind)), status=400, error=RequestError)


@pytest.mark.parametrize("kind", ["array", "object", "array16", "map32"])
def test_c04_c05_depth_of_msgpack_is_limited(scorer, lenient, kind):
    """The same for MessagePack, whole or cut short."""
    body = pack(payment(other=0))[:-1]
    assert answers(lenient.score_msgpack, body + nested_msgpack(30, kind))["score"] > 0
    for depth in (32, 33, 1000, 100_000 // len(nested_msgpack(1, kind))):
        refused(lenient.score_msgpack, body + nested_msgpack(depth, kind), status=400, error=RequestError)
        refused(
            lenient.score_msgpack, body + nested_msgpack(depth, kind)[:-1], status=400, error=RequestError
        )
        refused(scorer.score_msgpack, nested_msgpack(depth + 1, kind), status=400, error=RequestError)


def test_c05_a_false_length_does_not_hide_depth(lenient):
    """An array that claims more items than there are bytes is refused before anything is decoded."""
    for claim in (b"\xdd\xff\xff\xff\xff", b"\xdc\xff\xff", b"\xdf\xff\xff\xff\xff"):
        body = pack(payment(other=0))[:-1] + claim + nested_msgpack(50_000, "array")
        refused(lenient.score_msgpack, body, status=400, error=RequestError)


def test_c05_brackets_in_texts_are_not_depth(lenient):
    """Text may hold brackets, escaped quotes and backslashes."""
    for note in ("[" * 500, '\\"[' * 100, "\\" * 99 + '"' + "{" * 99, "]" * 100 + "[" * 100):
        assert answers(lenient.score_json, text(note=note))["score"] > 0
    for value in (b'["\\\\"' + b",[" * 40, b'["\\"' + b"[" * 90):
        refused(lenient.score_json, text(other=value), status=400, error=RequestError)
    refused(lenient.score_json, text(other=b"]" * 500 + b"[" * 500), status=400, error=RequestError)


@pytest.mark.parametrize("where", ["context", "candidates", "exclude", "unknown"])
def test_c04_c05_depth_in_a_ranking_request(ranker, where):
    """No part of a ranking request may nest deeply, the raw list of candidates least of all."""
    for depth in (34, 100_000):
        body = json.dumps(WELL | {where: "@"}).encode().replace(b'"@"', nested(depth, "array"))
        refused(ranker.rank_json, body, status=400, error=RequestError)


@pytest.mark.parametrize("max_depth", [0, -1, 64, 10**6])
def test_c04_the_limit_of_depth_has_limits_itself(max_depth):
    """Deeper than 63 levels would be more than a small stack can decode."""
    with pytest.raises(ConfigError, match="63"):
        releases.scorer_of(releases.payment_files(), max_depth=max_depth)


def test_c04_depth_in_a_thread_with_a_small_stack(lenient):
    """The deepest body that passes the limit, and far deeper ones, in a thread of 64 KiB: no crash (own process)."""
    from processes import run_script

    out = run_script("""
        import threading
        import releases
        from retailinfer.errors import CallerError
        from test_acceptance_request_bytes import nested, nested_msgpack, text, pack, payment, WELL
        import json
        def envelope(where, value):
            return json.dumps(WELL | {where: "@"}).encode().replace(b'"@"', value)
        files = releases.payment_files(extra="ignore")
        ranker = releases.item_ranker()
        found = []
        def work(scorer):
            for depth in (1, 30, 31, 32, 33, 63, 64, 65, 990, 100_000):
                for kind in ("array", "object", "both"):
                    for call, body in (
                        (scorer.score_json, nested(depth, kind)),
                        (scorer.score_json, text(other=nested(depth, kind))),
                        (scorer.score_json, text(other=nested(depth, kind))[:-200]),
                        (scorer.score_json, text(tags=nested(depth, kind))),
                        (ranker.rank_json, envelope("exclude", nested(depth, kind))),
                        (ranker.rank_json, envelope("candidates", nested(depth, kind))),
                    ):
                        try:
                            call(body)
                            found.append("answer")
                        except CallerError:
                            found.append("error")
                for kind in ("array", "object", "array16", "map32"):
                    for claim in (b"", b"\\xdd\\xff\\xff\\xff\\xff"):
                        body = pack(payment(other=0))[:-1] + claim + nested_msgpack(depth, kind)
                        for cut in (0, 1):
                            try:
                                scorer.score_msgpack(body[: len(body) - cut])
                                found.append("answer")
                            except CallerError:
                                found.append("error")
        threading.stack_size(64 * 1024)
        for max_depth in (32, 63):  # the default, and the largest that can be set
            thread = threading.Thread(target=work, args=(releases.scorer_of(files, max_depth=max_depth),))
            thread.start()
            thread.join()
        print(len(found), found.count("answer") > 0)
    """)
    assert out == f"{2 * 10 * (3 * 6 + 4 * 2 * 2)} True"


# ---- 6: size -------------------------------------------------------------------------------------------------------------


def test_c06_a_body_over_the_cap_is_a_413_before_it_is_read():
    """Size is looked at first: whatever the bytes are, and without a copy of them."""
    scorer = releases.scorer_of(releases.payment_files(), max_bytes=500)
    for call in (scorer.score_json, scorer.score_msgpack):
        for body in (
            b" " * 501,
            b"[" * 1000,
            bytearray(501),
            memoryview(bytes(501)),
            memoryview(bytes(4008)).cast("d"),
        ):
            refused(call, body, status=413, error=LimitError)
    assert answers(scorer.score_json, GOOD + b" " * (500 - len(GOOD)))["score"] > 0
    ranker = releases.ranker_of(
        releases.item_files(), store=releases.ri.Store(tables={"item": releases.items()}), max_bytes=100
    )
    refused(ranker.rank_json, json.dumps(WELL).encode() + b" " * 100, status=413, error=LimitError)


def test_c06_a_huge_bytearray_over_the_cap_is_not_copied(scorer):
    """64 MB that are refused cost no 64 MB."""
    import tracemalloc

    body = bytearray(64 << 20)
    tracemalloc.start()
    refused(scorer.score_json, body, status=413, error=LimitError)
    refused(scorer.score_msgpack, memoryview(body), status=413, error=LimitError)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


# ---- 7 to 9: numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number", [b"1e999", b"-1e999", b"1e309", b"9" * 400, b"9" * 4301, b"-" + b"9" * 10_000]
)
@pytest.mark.parametrize("field", ["amount", "rate", "at"])
def test_c07_numbers_that_float64_cannot_hold_are_a_422(scorer, field, number):
    """Too large is not infinity."""
    refused(scorer.score_json, text(**{field: number}), status=422)


@pytest.mark.parametrize(
    "number", [b"1e-400", b"-1e-400", b"0." + b"0" * 500 + b"1", b"4.9e-324", b"1E-99999"]
)
def test_c07_numbers_that_are_too_small_are_zero(scorer, number):
    """1e-400 is 0.0, as everywhere."""
    exact = float(number)
    assert answers(scorer.score_json, text(rate=number))["score"] == scorer.score(payment(rate=exact)).score


@pytest.mark.parametrize("field", ["count", "level"])
@pytest.mark.parametrize("number", [2**63, 2**64, -(2**63) - 1, -(2**64), int("9" * 4300)])
def test_c08_integers_beyond_64_bits_are_a_422(scorer, field, number):
    """In JSON, in MessagePack where it can say them, in a dict and in a batch."""
    import sys

    limit = sys.get_int_max_str_digits()
    refused(scorer.score_json, text(**{field: str(number).encode()}), status=422)
    refused(scorer.score, payment(**{field: number}), status=422, error=FeatureRangeError)
    if 0 <= number < 2**64:
        refused(scorer.score_msgpack, pack(payment(**{field: number})), status=422)
    (error,) = scorer.score_batch([payment(**{field: number})], errors="row")
    assert isinstance(error, FeatureRangeError)
    assert limit == sys.get_int_max_str_digits()


@pytest.mark.parametrize("digits", [4300, 4301, 100_000])
@pytest.mark.parametrize("field", ["count", "codes", "at", "amount"])
def test_c08_integers_of_thousands_of_digits_are_a_422(scorer, field, digits):
    """Around Python's own limit of 4,300 digits for int(text), nothing but a typed error."""
    number = b"[" + b"7" * digits + b"]" if field == "codes" else b"7" * digits
    refused(scorer.score_json, text(**{field: number}), status=422)


def test_c08_integers_of_thousands_of_digits_in_a_dict_are_a_422(scorer):
    """An int that Python would not even print."""
    for field in ("count", "level", "amount", "rate", "at"):
        refused(scorer.score, payment(**{field: 10**5000}), status=422, error=FeatureRangeError)
    refused(scorer.score, payment(codes=[10**5000]), status=422, error=FeatureRangeError)
    refused(scorer.score, payment(sizes=[10**5000]), status=422, error=FeatureRangeError)


@pytest.mark.parametrize("number", [2**63 - 1, -(2**63), 2**53 + 1])
def test_c08_integers_that_the_tensor_would_round_are_a_422(scorer, number):
    """64 bits fit the field, but not a float32 column: never rounded in silence."""
    for call, body in (
        (scorer.score_json, text(count=number)),
        (scorer.score_msgpack, pack(payment(count=number))),
    ):
        refused(call, body, status=422, error=FeatureRangeError)


@pytest.mark.parametrize("number", [2**63, 2**64, -(2**63) - 1, int("9" * 4300)])
def test_c08_integers_in_a_ranking_request(ranker, number_ranker, number):
    """k, candidates and exclusions beyond 64 bits are a 422."""
    digits = str(number).encode()
    for where in ("k", "candidates", "exclude"):
        value = digits if where == "k" else b"[" + digits + b"]"
        body = json.dumps(WELL | {"candidates": [1, 2], where: "@"}).encode().replace(b'"@"', value)
        refused(number_ranker.rank_json, body, status=422)
    body = json.dumps(WELL | {"k": "@"}).encode().replace(b'"@"', digits)
    refused(ranker.rank_json, body, status=422)


@pytest.mark.parametrize(
    "number",
    [
        b"1" * 1_000_000,
        b"0." + b"1" * 1_000_000,
        b"1e" + b"1" * 1_000_000,
        b"-" + b"0." * 1,
        b"1" * 999_999 + b".5",
    ],
)
@pytest.mark.parametrize("field", ["amount", "count", "at", "codes", "other"])
def test_c09_a_number_of_a_megabyte_is_settled_in_5_ms(lenient, field, number):
    """Read or refused, but never slowly."""
    body = text(**{field: b"[" + number + b"]" if field == "codes" else number})
    best = 1.0
    for _ in range(3):
        start = time.perf_counter()
        with contextlib.suppress(CallerError):
            lenient.score_json(body)
        best = min(best, time.perf_counter() - start)
    assert best < 0.005


# ---- 10 to 12: shape -------------------------------------------------------------------------------------------------------


def test_c10_of_duplicate_keys_the_last_one_counts(scorer):
    """As the documentation of score_json says."""
    body = b'{"amount":1e6,' + text(amount=12.5)[1:-1] + b',"channel":"app"}'
    assert answers(scorer.score_json, body)["score"] == scorer.score(payment(channel="app")).score
    assert "last" in type(scorer).score_json.__doc__


def test_c11_an_unknown_field_is_a_422_or_ignored_as_declared(scorer, lenient):
    """`extra="forbid"` refuses it in every encoding, `extra="ignore"` reads over it, whatever it holds."""
    more = payment(other=1)
    for call, body in (
        (scorer.score, more),
        (scorer.score_json, msgspec.json.encode(more)),
        (scorer.score_msgpack, pack(more)),
    ):
        assert "other" in str(refused(call, body, status=422))
    plain = scorer.score(payment()).score
    for value in (1, None, "x" * 1000, [1, {"a": [None]}], {"amount": 3}):
        assert lenient.score(payment(other=value)).score == plain
        assert answers(lenient.score_json, text(other=value))["score"] == plain
        assert answers(lenient.score_msgpack, pack(payment(other=value)))["score"] == plain


def test_c11_an_unknown_name_of_a_megabyte_is_not_repeated(scorer):
    """Messages stay short, and so do the messages of their causes, which logs print too."""
    name = "x" * 1_000_000
    for call, body in (
        (scorer.score, payment(**{name: 1})),
        (scorer.score_json, msgspec.json.encode(payment(**{name: 1}))),
        (scorer.score_msgpack, pack(payment(**{name: 1}))),
    ):
        error = refused(call, body, status=422)
        while error is not None:
            assert len(str(error)) < 1000
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def test_c11_unknown_fields_of_a_ranking_request(ranker):
    """The envelope is strict, the context as the spec says; `available` is never the client's."""
    for body in (
        WELL | {"other": 1},
        WELL | {"available": "item.stock > 0"},
        WELL | {"context": CONTEXT | {"other": 1}},
        WELL | {"context": CONTEXT | {"sku": "sku-001"}},
    ):
        refused(ranker.rank_json, msgspec.json.encode(body), status=422)


WRONG_TYPES = {
    "bool for int": {"count": True},
    "text for int": {"count": "3"},
    "float for int": {"count": 1.0},
    "null for required int": {"count": None},
    "null for required float": {"amount": None},
    "null for required text": {"channel": None},
    "null for required bool": {"known": None},
    "null for required time": {"at": None},
    "text for float": {"amount": "1.5"},
    "the text nan for float": {"amount": "nan"},
    "bool for float": {"amount": True},
    "int for bool": {"known": 1},
    "text for bool": {"known": "true"},
    "int for text": {"channel": 1},
    "list for text": {"channel": ["web"]},
    "list for float": {"amount": [1.0]},
    "object for float": {"amount": {"value": 1.0}},
    "bool for time": {"at": True},
    "words for time": {"at": "yesterday"},
    "float in a list of int": {"codes": [1, 2.0]},
    "null in a list": {"tags": ["a", None]},
    "bool in a list of int": {"codes": [True]},
    "text for a list": {"tags": "ab"},
    "object for a list": {"tags": {"a": 1}},
}


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_c12_values_of_another_type_are_a_422_that_names_the_field(scorer, name):
    """No value is converted in silence; JSON, MessagePack and dict agree."""
    changed = WRONG_TYPES[name]
    (field,) = changed
    for call, body in (
        (scorer.score, payment(**changed)),
        (scorer.score_json, text(**changed)),
        (scorer.score_msgpack, pack(payment(**changed))),
    ):
        assert f"$.{field}" in str(refused(call, body, status=422))


@pytest.mark.parametrize(
    "field", [f for f in payment() if f not in ("rate", "level", "note", "tags", "sizes", "codes")]
)
def test_c12_a_required_field_that_is_absent_is_a_422_that_names_it(scorer, field):
    """Also in a batch, where the error stands in its row."""
    less = {name: value for name, value in payment().items() if name != field}
    for call, body in (
        (scorer.score, less),
        (scorer.score_json, msgspec.json.encode(less)),
        (scorer.score_msgpack, pack(less)),
    ):
        assert field in str(refused(call, body, status=422))
    good, bad, after = scorer.score_batch([payment(), less, payment()], errors="row")
    assert isinstance(bad, FeatureError)
    assert f"$[1].{field}" in str(bad)
    assert good.score == after.score


@pytest.mark.parametrize(
    "changed",
    [
        {"context": None},
        {"context": []},
        {"context": {}},
        {"context": CONTEXT | {"boost": "1"}},
        {"context": CONTEXT | {"user": 1}},
        {"candidates": None},
        {"candidates": "sku-001"},
        {"candidates": {"sku-001": 1}},
        {"candidates": [1]},
        {"candidates": ["sku-001", None]},
        {"candidates": ["sku-001", ["sku-002"]]},
        {"k": "3"},
        {"k": 1.0},
        {"k": True},
        {"k": None},
        {"k": 0},
        {"k": -1},
        {"exclude": None},
        {"exclude": "sku-001"},
        {"exclude": [1]},
        {"request_id": 5},
    ],
)
def test_c12_a_ranking_request_of_another_shape_is_a_422(ranker, changed):
    """Every field of the envelope has one type."""
    refused(ranker.rank_json, msgspec.json.encode(WELL | changed), status=422)


def test_c12_integer_candidates_are_exact_integers(number_ranker):
    """1.0, true and "1" are no ids of an integer table."""
    for candidate in (b"1.0", b"true", b'"1"', b"null", b"1e0"):
        body = b'{"context":{"user":"u","boost":1.0},"candidates":[2,' + candidate + b"]}"
        refused(number_ranker.rank_json, body, status=422)


# ---- 13, 14: false lengths, hash floods ------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9"])
def test_c13_msgpack_that_claims_four_billion_items_is_refused_without_memory(scorer, lenient, head):
    """array32, map32, str32, bin32 and ext32, as the whole body, in a field and in an unknown one."""
    claim = head + b"\xff\xff\xff\xff"
    before = rss_kb()
    for _ in range(20):
        for tail in (b"", b"\0" * 100, b"\xc0" * 100):
            refused(scorer.score_msgpack, claim + tail, status=400, error=RequestError)
            for field in ("tags", "channel", "amount", "other"):
                body = pack(payment(**{field: 0}))
                at = body.index(pack(field)) + len(pack(field))
                refused(
                    lenient.score_msgpack,
                    body[:at] + claim + body[at + 1 :] + tail,
                    status=400,
                    error=RequestError,
                )
    assert rss_kb() - before < 1024


def rss_kb():
    """Resident memory of this process."""
    import os

    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def test_c14_a_flood_of_unknown_keys_is_cheap(scorer, lenient):
    """20,000 text keys, and exclusions made to collide in a Python set, are settled in milliseconds."""
    body = msgspec.json.encode(payment(**{f"k{i}": i for i in range(20_000)}))
    assert fastest(lambda: lenient.score_json(body)) < 0.010
    assert fastest(lambda: refused(scorer.score_json, body, status=422)) < 0.010


def test_c14_integers_cannot_be_made_to_collide(number_ranker):
    """Python hashes integers modulo 2**61 - 1, unseeded: 20,000 multiples of it would take seconds in a set."""
    step = 2**61 - 1
    flood = [i * step for i in range(1, 20_000)]
    for where in ("exclude", "candidates"):
        body = msgspec.json.encode({"context": CONTEXT, "candidates": [1, 2], where: "@"}).replace(
            b'"@"', str(flood).encode()
        )
        assert fastest(lambda body=body: refused(number_ranker.rank_json, body, status=422)) < 0.050


def fastest(call, rounds=3):
    """Seconds of the fastest of a few calls."""
    best = 1e9
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


# ---- 15 to 17 --------------------------------------------------------------------------------------------------------------

ODD_TEXTS = {
    "NUL": "a\0b",
    "only NUL": "\0",
    "empty": "",
    "bidi controls": "\u202eabc\u2066",
    "combining marks": "e" + "\u0301" * 1000,
    "noncharacter": "\ufffe\uffff",
    "astral": "\U0010ffff" * 10,
    "line breaks": "\r\n\u2028\u2029",
    "largest allowed": "x" * 65_536,
}


@pytest.mark.parametrize("name", ODD_TEXTS)
def test_c15_odd_texts_are_hashed_as_they_are(scorer, name):
    """JSON, MessagePack, dict and batch give the same bits; different texts stay different."""
    value = ODD_TEXTS[name]
    want = scorer.score(payment(channel=value, note=value, tags=[value])).score
    changed = {"channel": value, "note": value, "tags": [value]}
    assert answers(scorer.score_json, text(**changed))["score"] == want
    assert answers(scorer.score_msgpack, pack(payment(**changed)))["score"] == want
    assert scorer.score_batch([payment(), payment(**changed)])[1].score == want


def test_c15_text_of_a_megabyte_is_capped(scorer):
    """A text longer than 64 KiB is no category; the error does not repeat it."""
    for field, value in (
        ("channel", "x" * 65_537),
        ("note", "ü" * 500_000),
        ("tags", ["a", "y" * 1_000_000]),
    ):
        for call, body in (
            (scorer.score, payment(**{field: value})),
            (scorer.score_json, text(**{field: value})),
            (scorer.score_msgpack, pack(payment(**{field: value}))),
        ):
            status = 413 if len(body) > 1 << 20 else 422
            refused(call, body, status=status)


def test_c15_a_lone_surrogate_in_python_text_is_a_422(scorer, ranker):
    """It has no UTF-8 form, wherever it stands."""
    bad = "a\ud800"
    for changed in ({"channel": bad}, {"note": bad}, {"tags": ["x", bad]}):
        refused(scorer.score, payment(**changed), status=422, error=FeatureRangeError)
    refused(lambda _: ranker.rank(CONTEXT | {"user": bad}, ["sku-001"]), None, status=422)
    refused(lambda _: ranker.rank(CONTEXT, ["sku-001", bad]), None, status=422)
    refused(lambda _: ranker.rank(CONTEXT, ["sku-001"], exclude=[bad]), None, status=422)


@pytest.mark.parametrize(
    "moment",
    [
        b'"9999-99-99T00:00:00Z"',
        b'"2026-02-30T00:00:00Z"',
        b'"2026-01-01"',
        b'"2026-01-01T00:00:00"',
        b'"9999-12-31T23:59:59Z"',
        b'"0001-01-01T00:00:00Z"',
        b'"2026-01-01T24:00:00Z"',
        b'"2026-01-01T00:00:00+99:00"',
        b"1e15",
        b"1772366400000",
        b"-1e300",
    ],
)
def test_c16_moments_that_are_none_are_a_422(scorer, moment):
    """Impossible dates, no zone, milliseconds for seconds, years that nanoseconds cannot count."""
    assert "$.at" in str(refused(scorer.score_json, text(at=moment), status=422))


def test_c16_decimals_and_dates_of_python_that_are_out_of_range_are_a_422(scorer):
    """Decimal("1e999999999") takes neither memory nor time."""
    import datetime as dt
    from decimal import Decimal

    for value in (
        Decimal("1e999999999"),
        Decimal("-1e400"),
        Decimal("Infinity"),
        Decimal("NaN"),
        Decimal("sNaN"),
    ):
        refused(scorer.score, payment(amount=value), status=422)
        refused(scorer.score, payment(at=value), status=422)
        refused(scorer.score, payment(sizes=[value]), status=422)
    for value in (
        dt.datetime.max.replace(tzinfo=dt.UTC),
        dt.datetime.min.replace(tzinfo=dt.UTC),
        AT.replace(tzinfo=None),
    ):
        refused(scorer.score, payment(at=value), status=422)
    assert scorer.score(payment(amount=Decimal("12.5"), at=AT)).score == scorer.score(payment()).score


def test_c17_a_batch_over_max_rows_is_a_413_before_any_request_is_read():
    """Neither the requests nor the candidates are looked at; an endless iterator ends."""
    scorer = releases.payment_scorer(max_rows=256)
    ranker = releases.item_ranker(max_rows=256)
    read = []

    class Watched(dict):
        def __getitem__(self, key):
            read.append(key)
            raise AssertionError

    refused(scorer.score_batch, [Watched()] * 257, status=413, error=LimitError)
    refused(scorer.score_batch, iter([Watched()] * 10_000), status=413, error=LimitError)
    refused(scorer.score_batch, endless(payment()), status=413, error=LimitError)
    refused(lambda ids: ranker.rank(CONTEXT, ids), ["sku-001"] * 257, status=413, error=LimitError)
    refused(lambda ids: ranker.rank(CONTEXT, ids), endless("sku-001"), status=413, error=LimitError)
    body = msgspec.json.encode(WELL | {"candidates": ["sku-001"] * 257})
    refused(ranker.rank_json, body, status=413, error=LimitError)
    escaped = body.replace(b"sku-001", b"sku\\u002d001")
    refused(ranker.rank_json, escaped, status=413, error=LimitError)
    assert not read
    assert len(scorer.score_batch([payment()] * 256)) == 256
    assert len(ranker.rank(CONTEXT, ["sku-001"] * 256).items) == 1


def endless(value):
    """The same value for ever."""
    while True:
        yield value


def test_c17_the_limits_hold_for_integer_ids_and_arrays():
    """The slow way through decoded ids counts them too, as do arrays."""
    import numpy as np

    ranker = releases.item_ranker(int, max_rows=256)
    body = msgspec.json.encode({"context": CONTEXT, "candidates": list(range(257))})
    refused(ranker.rank_json, body, status=413, error=LimitError)
    scorer = releases.payment_scorer(max_rows=256)
    refused(scorer.score_arrays, {"x": np.zeros((257, 15), np.float32)}, status=413, error=LimitError)
