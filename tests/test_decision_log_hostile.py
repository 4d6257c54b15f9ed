"""Folders with damaged and hostile files: typed errors or rows, never a crash; what is whole is read, kept and erased."""

from __future__ import annotations

import errno
import itertools
import os
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
from decisions import answered, ids, kinds, listing, log_of, until
from hypothesis import example, given, settings
from hypothesis import strategies as st

from retailinfer.errors import IntegrityError, RetailInferError
from retailinfer.monitoring import decision_erasure
from retailinfer.monitoring.decision_files import ToParquet, read_rows, read_table
from retailinfer.monitoring.decision_folder import keeping, recover, tidy, times_of

LINE = b'{"at_ns":1790000000000000000,"kind":"decision","id":"a","release":"r","took_us":1.5,"priority":"critical","rung":0}\n'
PIECES = [
    LINE,
    LINE[:-1],
    LINE.replace(b'"a"', b'"\xff"'),
    LINE.replace(b":0}", b":18446744073709551616}"),
    LINE.replace(b":0}", b':"text"}'),
    LINE.replace(b":0}", b":" + b"[" * 2_000 + b"]" * 2_000 + b"}"),
    LINE.replace(b"1790000000000000000", b"99999999999999999999999"),
    LINE.replace(b"1790000000000000000", b"true"),
    LINE.replace(b"1790000000000000000", b'"1"'),
    LINE.replace(b":0}", b':0,"request.x":{"a":[1,{"b":null}]},"entity.card":7}'),
    LINE.replace(b":0}", b':0,"request.x":1,"request.x":"twice"}'),
    LINE.replace(b":0}", b':0,"stale":["a",7],"scores":"no"}'),
    b"\n",
    b"{}\n",
    b"null\n",
    b"[" * 100_000 + b"\n",
    b'{"at_ns":\n',
    b'{"at_ns":1}\r\n',
    b"\x00" * 100,
    b'{"at_ns":-5,"id":"b"}\n',
]
hostile = st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=60)), max_size=8).map(b"".join)
COUNT = itertools.count()


def named(folder: Path, kind: str, data: bytes, ending: str = "jsonl") -> Path:
    """A file as a log would call it."""
    tag = f"00000000-1-{next(COUNT):012x}"
    span = "20260921T141320001Z-20260921T141327001Z-" if kind == "decisions" else ""
    path = folder / f"{kind}-{span}{tag}.{ending}"
    path.write_bytes(data)
    return path


@settings(max_examples=60, deadline=None)
@given(data=hostile, kind=st.sampled_from(["live", "sealed", "decisions"]))
@example(data=b"".join(PIECES), kind="live")
@example(data=b"".join(reversed(PIECES)), kind="sealed")
def test_lines_of_any_bytes_are_read_finished_and_erased(tmp_path_factory, data, kind):
    """Rows and tables agree on which lines are rows; a file that becomes Parquet has the same."""
    import pyarrow as pa

    folder = tmp_path_factory.mktemp("hostile")
    named(folder, kind, data)
    rows = list(read_rows(folder))
    assert len(read_table(folder)) == len(rows)
    with keeping(folder):
        for file in listing(folder).files:
            if file.kind == "live":
                recover(file, "parquet")
        for file in listing(folder).files:
            times_of(file.path)
            if file.kind == "sealed":
                whole = ToParquet(file)
                try:
                    while not whole.step():
                        pass
                except pa.ArrowException:
                    pass  # then it stays a file of lines
        tidy(folder, now_s=time.time())
    assert sorted(row["at_ns"] for row in read_rows(folder)) == sorted(row["at_ns"] for row in rows)


@settings(max_examples=30, deadline=None)
@given(place=st.integers(0, 10_000), what=st.sampled_from(["flip", "cut", "zero", "garbage"]))
def test_damaged_parquet_is_a_typed_error_or_rows(tmp_path_factory, place, what):
    """Never anything else; and erasing says which file it could not read."""
    data = parquet_of(tmp_path_factory)
    place %= len(data)
    damaged = {
        "flip": data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :],
        "cut": data[:place],
        "zero": data[:place] + bytes(len(data) - place),
        "garbage": bytes((i * 37 + place) % 256 for i in range(200)),
    }[what]
    folder = tmp_path_factory.mktemp("damaged")
    log = log_of(folder)
    log.on_event(answered(1))
    log.close()
    named(folder, "decisions", damaged, "parquet")
    for read in (lambda: list(read_rows(folder)), lambda: read_table(folder)):
        try:
            read()
        except IntegrityError as exc:
            assert ".parquet" in str(exc)  # noqa: PT017 - what it says is tested where it comes
        except RetailInferError as exc:
            raise AssertionError(exc) from exc
    with mock.patch.object(decision_erasure, "QUEUED_S", 0.0):  # nobody writes here
        report = decision_erasure.erase(folder, "card", "c-1", now_s=time.time())
    assert report.rows >= 1
    assert len(report.not_reached) <= 1
    assert list(folder.glob("decisions-*.jsonl")) == []  # the whole file's only row is gone


MADE: list[bytes] = []


def parquet_of(tmp_path_factory) -> bytes:
    """A Parquet file of a log."""
    if not MADE:
        folder = tmp_path_factory.mktemp("made")
        log = log_of(folder, format="parquet")
        for i in range(50):
            log.on_event(answered(i))
        log.close()
        again = log_of(folder, format="parquet")
        again.on_event(answered(50))
        assert until(lambda: "decisions.parquet" in kinds(folder))
        again.close()
        MADE.append(next(folder.glob("*.parquet")).read_bytes())
    return MADE[0]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_log_serves_in_a_folder_full_of_rubbish(tmp_path, kind):
    """It finishes what it can, leaves what it cannot, and writes its own."""
    for i, piece in enumerate(PIECES):
        named(tmp_path, ("live", "sealed", "decisions")[i % 3], piece * (i % 2 + 1))
    named(tmp_path, "live", b"".join(PIECES))
    (tmp_path / "log-00000000.json").write_bytes(b"\xff not JSON")
    before = len(list(read_rows(tmp_path)))
    log = log_of(tmp_path, format=kind)
    for i in range(20):
        log.on_event(answered(i))
    assert until(lambda: kinds(tmp_path).count("sealed.jsonl") == 0 and log.stats().written == 20), kinds(
        tmp_path
    )
    assert len(ids_of(log)) == 20
    assert len(list(log.rows())) == before + 20
    assert log.stats().state == "ready"
    log.close()


def ids_of(log) -> list[str]:
    """The ids of the rows of this test."""
    return [row["id"] for row in log.rows() if str(row["id"]).startswith("order-")]


def test_a_link_in_place_of_a_file_is_not_followed_out_of_the_folder(tmp_path):
    """Erasing replaces the link, not what it leads to."""
    folder = tmp_path / "decisions"
    log = log_of(folder)
    log.on_event(answered(1))
    log.on_event(answered(2))
    log.close()
    (file,) = listing(folder).files
    outside = tmp_path / "outside"
    file.path.rename(outside)
    file.path.symlink_to(outside)
    before = outside.read_bytes()
    assert log.erase("card", "c-1").rows == 1
    assert outside.read_bytes() == before
    assert ids(log) == ["order-2"]


class Signalled(BaseException):
    """What a handler of a signal raises."""


def interrupted(log, at: int) -> bool:
    """Flush, with an exception where the `at`-th call begins or ends, as signals raise theirs; whether it came so far."""
    n = 0

    def step(frame, event, _):
        nonlocal n
        if "retailinfer" in frame.f_code.co_filename and event in ("call", "c_return"):
            n += 1
            if n == at:
                sys.setprofile(None)
                raise Signalled

    sys.setprofile(step)
    try:
        log.flush()
    except Signalled:
        return True
    finally:
        sys.setprofile(None)
    return False


def test_signals_in_the_middle_of_a_flush_lose_no_row_and_double_none(tmp_path):
    """SIGTERM becomes SystemExit in the main thread, which may be delivering just then: at every place where it can."""
    for at in range(1, 1_000):
        log = log_of(tmp_path / str(at), fields=())
        log._outbox._start_after_ns = 1 << 62  # no thread can be had: nobody else delivers
        for i in range(5):
            log.on_event(answered(i))
        came = interrupted(log, at)
        log.close()
        assert sorted(row["id"] for row in log.rows()) == [f"order-{i}" for i in range(5)]
        if not came:
            break
    assert 20 < at < 999


def test_part_of_a_line_that_stays_on_a_failing_disk_costs_no_other_row(tmp_path):
    """Neither can the rest be written, nor what was written be taken back: not before it can is the next line added."""
    log = log_of(tmp_path, fields=())
    log._outbox._start_after_ns = 1 << 62  # no thread can be had: nobody else delivers
    log.on_event(answered(0))
    log.flush()
    write = os.write

    def torn(fd: int, data: memoryview) -> int:
        write(fd, data[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    log.on_event(answered(1))
    with mock.patch("os.ftruncate", side_effect=OSError(errno.EIO, "Input/output error")):
        with mock.patch("os.write", torn), pytest.warns(RuntimeWarning, match="cannot be written"):
            assert not log.flush()
        assert not log.flush()
    assert log.flush()
    assert [row["id"] for row in log.rows()] == ["order-0", "order-1"]
    log.close()
