"""Hostile requests: bytes and objects through every door that takes them; an answer or a CallerError, soon.

    python tests/fuzz_requests.py json --mutants 500 --seed 7       the same mutants every time; more in fuzzing.py

Rules:
  * Bytes of a request go to the door as they come. Objects, events and arguments are what MessagePack decodes to, which says
    NaN, infinities, bytes and keys of any type that JSON cannot say.
  * What is refused is the caller's: a CallerError with a status of 400, 413 or 422, and the same request as an object and as a
    row of a batch ends alike.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import random
import sys

import msgspec
from fuzzing import Target, bytes_mutant, document_mutant, main, number_mutant, packed_mutant

__all__ = ["TARGETS"]


class Nothing(Exception):  # noqa: N818 - an outcome
    """Bytes that say nothing that could be given to a door."""


# ---- doors -----------------------------------------------------------------------------------------------------------------


@functools.cache
def _scorer(extra: str = "forbid"):
    import releases

    return releases.payment_scorer(extra=extra)


@functools.cache
def _ranker(kind: type = str):
    import releases

    return releases.shared_ranker(kind)


@functools.cache
def _counting():
    """A scorer over windows of its own, whose clock stands."""
    import releases
    from test_serving_windows import files, windows_store

    return releases.scorer_of(files(), store=windows_store())


def _json(data: bytes):
    return [_scorer().score_json(data), *_also(_scorer("ignore").score_json, data)]


def _msgpack(data: bytes):
    return [_scorer().score_msgpack(data), *_also(_scorer("ignore").score_msgpack, data)]


def _rank(data: bytes):
    return [_ranker(str if b'"sku-' in data else int).rank_json(data)]


def _counted(data: bytes):
    return [_counting().score_json(data, observe=True, event_id=len(data) % 7)]


def _also(door, data: bytes) -> list[bytes]:
    from retailinfer.errors import CallerError

    try:
        return [door(data)]
    except CallerError:
        return []


def _value(data: bytes):
    """What the bytes say, to be given to a door as an object."""
    try:
        return msgspec.msgpack.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError, ValueError) as exc:
        raise Nothing(type(exc).__name__) from None


def _arguments(data: bytes, n: int) -> list:
    value = _value(data)
    if not isinstance(value, list):
        raise Nothing("no arguments")
    return [*value[:n], *[None] * (n - len(value))]


def _objects(data: bytes):
    """Request, deadline, id, moment: score, a batch and explain say the same of it."""
    from retailinfer.errors import CallerError

    request, deadline, request_id, at = _arguments(data, 4)
    more = {"deadline_ms": deadline, "at": at}
    said = None
    try:
        score = _scorer().score(request, request_id=request_id, **more).score
    except CallerError as exc:
        score, said = None, exc
    if said is None or said.http_status != 504:
        with contextlib.suppress(CallerError):
            (row,) = _scorer().score_batch([request], errors="row", **more)
            assert request_id is not None or getattr(row, "score", None) == score
    if said is not None:
        raise said
    return [msgspec.json.encode({"score": score})]


def _candidates(data: bytes):
    context, candidates, k, exclude, available, at = _arguments(data, 6)
    kind = int if isinstance(candidates, list) and candidates and isinstance(candidates[0], int) else str
    more = {} if available is None else {"available": available}
    answer = _ranker(kind).rank(context, candidates, k, exclude=exclude, at=at, **more)
    return [msgspec.json.encode(answer)]


def _events(data: bytes):
    stream, event, event_id, at, deadline = _arguments(data, 5)
    _counting().observe(stream, event, event_id=event_id, at=at, deadline_ms=deadline)
    return []


def _tables(data: bytes):
    """An Arrow stream, which pyarrow has found whole, scored and taken as a table of rows."""
    import pyarrow as pa

    from retailinfer.errors import CallerError
    from retailinfer.store.table import Snapshot

    try:
        table = pa.ipc.open_stream(io.BytesIO(data)).read_all()
        table.validate(full=True)
        if table.nbytes > 1 << 24:
            raise Nothing("a large table")
    except (pa.ArrowException, OSError, ValueError, KeyError, IndexError, RecursionError, MemoryError) as exc:
        raise Nothing(type(exc).__name__) from None
    with contextlib.suppress(CallerError):
        Snapshot.from_arrow(table, key=table.column_names[0] if table.column_names else "sku")
    scored = _scorer().score_table(table)
    assert scored.num_rows == table.num_rows
    return [msgspec.json.encode({"scores": scored["score"].to_pylist()})]


def _check(answers, data: bytes) -> None:
    """Every score is a finite number."""
    for answer in answers:
        decoded = msgspec.json.decode(answer) if answer[:1] == b"{" else msgspec.msgpack.decode(answer)
        scores = decoded["scores"] if "scores" in decoded else [decoded["score"]]
        assert all(isinstance(score, (float, int)) and math.isfinite(score) for score in scores)


def _refusals() -> dict[type[Exception], str]:
    from retailinfer.errors import CallerError

    return {CallerError: "refused", Nothing: "nothing"}


def _objects_refusals() -> dict[type[Exception], str]:
    from retailinfer.errors import DeadlineExceededError

    return _refusals() | {DeadlineExceededError: "over"}


# ---- examples --------------------------------------------------------------------------------------------------------------

pack = msgspec.msgpack.encode


def _payments() -> list[dict]:
    import releases

    return [
        releases.payment(),
        releases.payment(rate=None, note=None, tags=[], sizes=None),
        releases.payment(note="é\u0000\U0001f600", tags=["a"] * 9, amount=-1e308, count=2**53),
    ]


def _ranking(number) -> dict:
    import releases

    return {
        "context": releases.CONTEXT,
        "candidates": [number(1), number(2), number(99)],
        "k": 2,
        "exclude": [number(3)],
        "request_id": "r-1",
    }


def _sku(number: int) -> str:
    return f"sku-{number:03d}"


def _seeds_of_json() -> list[bytes]:
    return [msgspec.json.encode(one) for one in _payments()]


def _seeds_of_msgpack() -> list[bytes]:
    return [pack(one) for one in _payments()]


def _seeds_of_rank() -> list[bytes]:
    texts, numbers = _ranking(_sku), _ranking(int)
    return [
        msgspec.json.encode(one)
        for one in (texts, numbers, numbers | {"k": 1, "exclude": [], "candidates": []})
    ]


def _seeds_of_counted() -> list[bytes]:
    from test_serving_windows import payment

    return [
        msgspec.json.encode(payment()),
        msgspec.json.encode(payment(card=None, amount=99.99, at=1772366400.5)),
    ]


def _seeds_of_objects() -> list[bytes]:
    return [
        pack([_payments()[0], 5.0, "r", 1772366400.0]),
        pack([_payments()[1], None, None, None]),
        pack([_payments()[2]]),
    ]


def _seeds_of_candidates() -> list[bytes]:
    made = []
    for number in (_sku, int):
        one = _ranking(number)
        made += [
            pack([one["context"], one["candidates"], 2, one["exclude"], "item.stock > 0 and item.weight <= 3.5", 1.5e9]),
            pack([one["context"], one["candidates"], 3, [], None, None]),
        ]  # fmt: skip
    return made


def _seeds_of_events() -> list[bytes]:
    from test_serving_windows import payment

    return [
        pack(["chargeback", {"card": "c-1", "at": 1772366400.0}, "e-1", 1772366400.0, 50.0]),
        pack(["payment", payment(amount=2.5), b"\x00\xff", None, None]),
        pack(["chargeback", {"card": "c-2", "at": None}, 2**63 - 1, None, None]),
    ]


def _seeds_of_tables() -> list[bytes]:
    import pyarrow as pa

    made = []
    for rows in (_payments()[:2], _payments()[:1] * 5):
        table = pa.Table.from_pylist(rows)
        out = io.BytesIO()
        with pa.ipc.new_stream(out, table.schema) as stream:
            stream.write_table(table, max_chunksize=3)
        made.append(out.getvalue())
    return made


def _rows_mutant(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Whole columns of an Arrow stream become others: types, lengths, names."""
    import pyarrow as pa

    table = pa.ipc.open_stream(io.BytesIO(data)).read_all()
    table.validate(full=True)  # pyarrow reads whatever is not
    rows = table.to_pylist()
    names = [*rows[0]]
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(names)
        values = rng.choice((
            [None], [True], [1], [-(2**63)], [2**63 - 1], [1.5, math.nan], [math.inf], ["x", ""], [b"\xff"], [[1]], [["a"]],
            [[None]], [[]], [{"a": 1}], ["2026-03-01T00:00:00Z"], ["a" * 70_000],
        ))  # fmt: skip
        for i, row in enumerate(rows):
            row[name] = values[i % len(values)]
        if rng.random() < 0.2:
            for row in rows:
                row[rng.choice(("", "other", "amount", "x" * 300))] = row.pop(name)
            break
    table = pa.Table.from_pylist(rows)
    if rng.random() < 0.3:
        at = rng.randrange(table.num_columns)
        column = table.column(at)
        kind = rng.choice(
            (
                pa.float32(),
                pa.float16(),
                pa.int8(),
                pa.uint64(),
                pa.large_string(),
                pa.timestamp("us", "UTC"),
                pa.null(),
            )
        )
        with contextlib.suppress(pa.ArrowException):
            table = table.set_column(at, table.column_names[at], column.cast(kind, safe=False))
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as stream:
        stream.write_table(table)
    return out.getvalue()


_TEXT = (bytes_mutant, number_mutant, document_mutant, document_mutant, document_mutant)
_PACKED = (bytes_mutant, *[packed_mutant] * 5)
SOON = 1.0  # seconds; a body of some hundred bytes takes microseconds
TARGETS = {
    target.name: target
    for target in (
        Target("json", _seeds_of_json, _json, _TEXT, _refusals, _check, sample=8_000, slow=SOON),
        Target("msgpack", _seeds_of_msgpack, _msgpack, _PACKED, _refusals, _check, sample=8_000, slow=SOON),
        Target("rank", _seeds_of_rank, _rank, _TEXT, _refusals, _check, sample=6_000, slow=SOON),
        Target("counted", _seeds_of_counted, _counted, _TEXT, _refusals, _check, sample=6_000, slow=SOON),
        Target("objects", _seeds_of_objects, _objects, _PACKED, _objects_refusals, _check, sample=6_000, slow=SOON),
        Target("candidates", _seeds_of_candidates, _candidates, _PACKED, _refusals, _check, sample=6_000, slow=SOON),
        Target("events", _seeds_of_events, _events, _PACKED, _objects_refusals, _check, sample=6_000, slow=SOON),
        Target("tables", _seeds_of_tables, _tables, (bytes_mutant, _rows_mutant, _rows_mutant), _refusals, _check,
               needs=("pyarrow",), sample=1_500, slow=SOON),
    )
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(TARGETS))
