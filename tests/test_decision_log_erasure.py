"""Erasing an entity from a decision log: all of its rows, in all files, whoever writes them, and nobody else's."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from decisions import AT_NS, answered, decision, ids, kinds, log_of, ranked, until
from hypothesis import given, settings
from hypothesis import strategies as st
from test_decision_log_processes import started

from retailinfer.errors import ConfigError, Unavailable
from retailinfer.monitoring.decision_erasure import ErasureReport, erase
from retailinfer.monitoring.decision_folder import keeping, listing

POSIX = pytest.mark.skipif(not hasattr(os, "fork"), reason="platform: no fork here")
FORMATS = pytest.mark.parametrize("kind", ["jsonl", "parquet"])


def bytes_of(folder: Path) -> bytes:
    """Everything in a folder."""
    return b"".join(path.read_bytes() for path in folder.iterdir())


def put(log, *numbers: int) -> None:
    """Answers with these numbers, for card c-<number % 10>."""
    for i in numbers:
        log.on_event(answered(i))


@FORMATS
def test_rows_of_the_entity_go_and_no_others(tmp_path, kind):
    """From finished, sealed and live files, and from the queue."""
    for start in (0, 100):
        log = log_of(tmp_path, format=kind)
        put(log, *range(start, start + 100))
        log.close()
    log = log_of(tmp_path, format=kind)
    put(log, *range(200, 250))
    log.flush()
    if kind == "parquet":
        assert until(lambda: kinds(tmp_path).count("decisions.parquet") == 2)
    put(log, *range(250, 300))  # in the queue, perhaps
    report = log.erase("card", "c-7")
    assert report == ErasureReport(rows=30, files=3)
    assert ids(log) == [f"order-{i}" for i in range(300) if i % 10 != 7]
    assert b"c-7" not in bytes_of(tmp_path) or kind == "parquet"
    assert log.erase("card", "c-7") == ErasureReport(rows=0, files=0)
    put(log, 307)
    assert "order-307" in ids(log)  # a new answer is a new row
    log.close()


@FORMATS
def test_files_that_held_nothing_else_are_gone(tmp_path, kind):
    """Not an empty file remains."""
    log = log_of(tmp_path, format=kind)
    for i in range(20):
        log.on_event(answered(i, card_id="only"))
    log.close()
    assert log.erase("card", "only") == ErasureReport(rows=20, files=1)
    assert kinds(tmp_path) == []
    assert b"only" not in bytes_of(tmp_path)


def test_a_key_within_another_text_is_another_thing(tmp_path):
    """Neither prefixes, nor fields that look like a row of the entity, nor text with quotes in it."""
    log = log_of(tmp_path, fields=["note"])
    tricky = '"entity.card":"c-1"'
    for i, (card, note) in enumerate(
        [
            ("c-1", ""),
            ("c-11", ""),
            ("xc-1", ""),
            ("c-2", tricky),
            (tricky, "c-1"),
            ("c-3", "c-1"),
            ("C-1", ""),
        ]
    ):
        log.on_event(answered(i, card_id=card, note=note))
    log.flush()
    assert log.erase("card", "c-1").rows == 1
    assert ids(log) == [f"order-{i}" for i in range(1, 7)]
    assert log.erase("card", tricky).rows == 1
    assert ids(log) == ["order-1", "order-2", "order-3", "order-5", "order-6"]
    log.close()


def test_rankings_and_failures(tmp_path):
    """Rankings have keys; failures have none, and stay."""
    from decisions import failed

    log = log_of(tmp_path)
    log.on_event(ranked(1))
    log.on_event(failed(2))
    log.flush()
    assert log.erase("card", "c-1").rows == 1
    assert [row["kind"] for row in log.rows()] == ["failed"]
    log.close()


def test_files_whose_declaration_is_gone_are_named(tmp_path):
    """Their keys may be hashed: that none was found under this key does not say that all is erased."""
    hashed = log_of(tmp_path, hash_key="0123456789abcdef")
    hashed.on_event(answered(1))
    hashed.close()
    (declared,) = tmp_path.glob("log-*.json")
    declared.unlink()
    log = log_of(tmp_path)
    log.on_event(answered(1))
    report = log.erase("card", "c-1")
    log.close()
    assert report.rows == 1
    assert len(report.not_reached) == 1
    assert declared.name in report.not_reached[0]


def test_entities_that_nobody_declared_are_refused(tmp_path):
    """A misspelt name must not look like a clean folder."""
    log = log_of(tmp_path)
    put(log, 1)
    log.flush()
    with pytest.raises(ConfigError, match=r"`card`.*'customer'"):
        log.erase("customer", "c-1")
    with pytest.raises(ConfigError, match="not hashed"):
        erase(tmp_path, "card", "c-1", hash_key="a secret of 16 bytes", now_s=0.0)
    log.close()


def test_a_log_that_was_hashed_later_says_what_it_did_not_reach(tmp_path):
    """Files of before need the call without the hash key."""
    secret = b"0123456789abcdef"
    for given_ in (None, secret):
        log = log_of(tmp_path, hash_key=given_)
        put(log, *range(20))
        log.close()
    report = erase(tmp_path, "card", "c-3", hash_key=secret, now_s=time.time())
    assert report.rows == 2
    assert len(report.not_reached) == 1
    assert "another hash key" in report.not_reached[0]
    report = erase(tmp_path, "card", "c-3", now_s=time.time())
    assert report.rows == 2
    assert not any(row["id"] in ("order-3", "order-13") for row in log.rows())


def test_while_another_process_keeps_the_folder(tmp_path):
    """It waits, and then gives up with an error that says so."""
    log = log_of(tmp_path)
    put(log, 1)
    log.flush()
    with keeping(tmp_path) as keeper:
        assert keeper is not None
        with pytest.raises(Unavailable, match="kept the decision log"):
            log.erase("card", "c-1", wait_s=0.1)
    assert log.erase("card", "c-1").rows == 1
    log.close()


WRITER = """
log = log_of(Path({folder!r}), format={kind!r}, rotate_mb={rotate_mb})
told = os.open({told!r}, os.O_CREAT | os.O_RDWR)
print("go", flush=True)
i = 0
while True:
    for card in ("erased", "kept"):
        log.on_event(answered(i, card_id=card, at_ns=time.time_ns(), answer=decision(id=f"{{card}}-{{i}}")))
    os.pwrite(told, b"%010d" % i, 0)
    i += 1
    if i % 10 == 0:
        time.sleep(0.01)
"""


def last_of(path: Path) -> int:
    """Number of the last answer that a writer gave before now."""
    return int(path.read_bytes() or b"-1")


@POSIX
@pytest.mark.slow
@FORMATS
def test_other_processes_write_meanwhile(tmp_path, kind):
    """What was answered before the call is gone; nothing of others is; and they never stop writing."""
    folder = tmp_path / "decisions"
    told = [tmp_path / f"told-{k}" for k in range(2)]
    processes = [
        started(WRITER.format(folder=str(folder), kind=kind, told=str(path), rotate_mb=0.3)) for path in told
    ]
    try:
        for process in processes:
            assert process.stdout.readline() == "go\n"
        log = log_of(folder, format=kind)
        for _ in range(3):
            time.sleep(0.5)
            before = {process.pid: last_of(path) for process, path in zip(processes, told, strict=True)}
            report = log.erase("card", "erased")
            assert report.not_reached == ()
            assert report.rows > 0
            left: list[str] = []
            for file in listing(folder).files:
                rows = read_rows_of(file)
                left += [
                    row["id"]
                    for row in rows
                    if row["entity.card"] == "erased" and int(row["id"][7:]) <= before[file.pid]
                ]
            assert left == []
        for process in processes:
            assert process.poll() is None
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    # of each process, every answer for the other card up to its last is there, once
    kept: dict[int, list[int]] = {process.pid: [] for process in processes}
    for file in listing(folder).files:
        for row in read_rows_of(file):
            if row["entity.card"] == "kept":
                kept[file.pid].append(int(row["id"][5:]))
    for numbers in kept.values():
        assert sorted(numbers) == list(range(len(numbers)))
        assert len(numbers) > 100


def read_rows_of(file) -> list[dict]:
    """The rows of one file, or of what became of it."""
    from retailinfer.monitoring import decision_files

    return list(decision_files._opened(file.path.parent, file, decision_files._rows_of) or ())


@POSIX
def test_a_process_that_stands_still_is_named(tmp_path):
    """Its live file cannot be taken from it; erase again when it runs."""
    folder, told = tmp_path / "decisions", tmp_path / "told"
    process = started(WRITER.format(folder=str(folder), kind="jsonl", told=str(told), rotate_mb=64))
    try:
        assert process.stdout.readline() == "go\n"
        assert until(lambda: any(file.kind == "live" for file in listing(folder).files))
        time.sleep(0.3)
        process.send_signal(signal.SIGSTOP)
        log = log_of(folder)
        report = log.erase("card", "erased")
        assert len(report.not_reached) == 1
        assert f"process {process.pid} did not seal it" in report.not_reached[0]
        before = last_of(told)
        process.send_signal(signal.SIGCONT)
        assert log.erase("card", "erased").not_reached == ()
        left = [r for r in log.rows() if r["entity.card"] == "erased" and int(r["id"][7:]) <= before]
        assert left == []
    finally:
        process.kill()
        process.communicate()


@POSIX
def test_what_a_dead_process_left_is_erased_too(tmp_path):
    """Its half line with it."""
    folder, told = tmp_path / "decisions", tmp_path / "told"
    process = started(WRITER.format(folder=str(folder), kind="jsonl", told=str(told), rotate_mb=64))
    assert process.stdout.readline() == "go\n"
    time.sleep(0.5)
    process.kill()
    process.communicate()
    for path in folder.glob("live-*"):
        with path.open("ab") as file:
            file.write(b'{"at_ns":1,"entity.card":"erased')
    report = erase(folder, "card", "erased", now_s=time.time())
    assert report.rows > 10
    assert b"erased" not in bytes_of(folder).replace(b'"id":"erased-', b"")
    assert not any(row["entity.card"] == "erased" for row in log_of(folder).rows())


def test_threads_answer_while_this_process_erases(tmp_path):
    """Nobody waits, nothing of others is lost."""
    log = log_of(tmp_path, max_queue=100_000)
    stop, n = threading.Event(), [0]

    def work() -> None:
        while not stop.is_set():
            log.on_event(answered(n[0], card_id="kept"))
            n[0] += 1
            if n[0] % 10 == 0:
                time.sleep(0.001)

    thread = threading.Thread(target=work)
    thread.start()
    for i in range(10):
        log.on_event(answered(0, card_id="erased", answer=decision(id=f"gone-{i}")))
        time.sleep(0.02)
        assert log.erase("card", "erased").rows == 1
    stop.set()
    thread.join()
    assert ids(log) == [f"order-{i}" for i in range(n[0])]
    log.close()


# ---- everything at once, against a list ------------------------------------------------------------------------------------

STEP = st.one_of(
    st.tuples(st.just("put"), st.integers(1, 30)),
    st.tuples(st.just("erase"), st.integers(0, 4)),
    st.tuples(st.just("kill"), st.integers(0, 3)),  # a dead process, with half a line of so many bytes
    st.tuples(st.just("close"), st.just(0)),
    st.tuples(st.just("seal"), st.just(0)),
    st.tuples(st.just("keep"), st.just(0)),
    st.tuples(st.just("twin"), st.just(0)),  # killed between a new file and the removal of the old one
)


@FORMATS
@settings(max_examples=25, deadline=None)
@given(steps=st.lists(STEP, max_size=12))
def test_whatever_happens_the_rows_are_those_of_a_list(tmp_path_factory, kind, steps):
    """Rotation, recovery, conversion, kills and erasures in any order: nothing twice, nothing lost, what is erased is gone."""
    folder = tmp_path_factory.mktemp("model")
    want: list[int] = []
    n = 0

    def opened():
        return log_of(folder, format=kind)

    log = opened()
    for step, size in steps:
        if step == "put":
            put(log, *range(n, n + size))
            want += range(n, n + size)
            n += size
        elif step == "erase":
            log.flush()
            if list(folder.glob("log-*.json")):
                report = log.erase("card", f"c-{size}")
                assert report.rows == sum(i % 10 == size for i in want)
                assert report.not_reached == ()
            want = [i for i in want if i % 10 != size]
        elif step == "kill":
            log.flush()
            with log._held():
                if log._segment is not None:
                    with log._segment.path.open("ab") as file:
                        file.write(b'{"at_ns":12,"entity.card":"c-1"'[:size])
                    log._segment.let_go()
                    log._segment = None
            log = opened()
        elif step == "close":
            log.close()
            log = opened()
        elif step == "seal":
            log.flush()
            with log._held():
                if log._segment is not None:
                    log._seal()
        elif step == "keep":
            log.flush()
            with log._held():
                log._keep_next_ns = -(1 << 62)
                while folder.exists() and log._chores() == 0.0:
                    pass
        elif step == "twin":
            finished = [file for file in listing(folder).files if file.kind == "decisions"]
            for file in finished[:1]:
                (folder / f"sealed-{file.tag}.jsonl").write_bytes(b'{"at_ns":1,"id":"order-99999"}\n')
        assert ids(log) == [f"order-{i}" for i in want]
    log.close()
    assert ids(log) == [f"order-{i}" for i in want]
    assert log.table().column("id").to_pylist() == [f"order-{i}" for i in want]
    assert all(row["at_ns"] >= AT_NS for row in log.rows())
