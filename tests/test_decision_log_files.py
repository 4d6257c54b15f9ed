"""The folder of a decision log: rotation, retention, faults of the disk, several writers, readers meanwhile.

Processes that end, fork or are killed are test_decision_log_processes.py; erasing is test_decision_log_erasure.py.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from decisions import AT_NS, DAY_NS, answered, decision, ids, kinds, log_of, until
from processes import run_script

from retailinfer.clock import ManualClock
from retailinfer.monitoring import decision_folder as folder_module
from retailinfer.monitoring.decision_folder import (
    Segment,
    expire,
    finished_name,
    keeping,
    listing,
    recover,
    tidy,
    times_of,
)
from retailinfer.monitoring.events import Changed

FORMATS = pytest.mark.parametrize("kind", ["jsonl", "parquet"])


class Hears:
    """Keeps the changes it hears of."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, str]] = []

    def on_event(self, event: object) -> None:
        assert isinstance(event, Changed)
        assert event.part == "decision log"
        self.changes.append((event.before, event.after))


def put(log, *numbers: int) -> None:
    """Answers with these numbers."""
    for i in numbers:
        log.on_event(answered(i))


# ---- rotation --------------------------------------------------------------------------------------------------------


@FORMATS
def test_a_file_that_is_large_enough_is_finished(tmp_path, kind):
    """And the next begun; nothing is lost or doubled between them."""
    log = log_of(tmp_path, format=kind, rotate_mb=0.02)
    for start in range(0, 2_000, 100):
        put(log, *range(start, start + 100))
        log.flush()
        time.sleep(0.02)
    assert until(lambda: kinds(tmp_path).count(f"decisions.{kind}") > 3), kinds(tmp_path)
    assert ids(log) == [f"order-{i}" for i in range(2_000)]
    log.close()
    assert ids(log) == [f"order-{i}" for i in range(2_000)]
    assert log.table().column("id").to_pylist() == [f"order-{i}" for i in range(2_000)]


@FORMATS
def test_a_file_that_is_old_enough_is_finished(tmp_path, kind):
    """By the monotonic clock, though nothing more is written."""
    clock = ManualClock()
    log = log_of(tmp_path, format=kind, rotate_minutes=10, clock=clock)
    put(log, 1)
    log.flush()
    assert until(lambda: kinds(tmp_path) == ["live.jsonl"])
    clock.advance_ns(599_000_000_000)
    time.sleep(0.6)
    assert kinds(tmp_path) == ["live.jsonl"]
    clock.step_wall_ns(100 * DAY_NS)
    time.sleep(0.6)
    assert kinds(tmp_path) == ["live.jsonl"]
    clock.advance_ns(2_000_000_000)
    assert until(lambda: kinds(tmp_path) == [f"decisions.{kind}"]), kinds(tmp_path)
    put(log, 2)
    assert ids(log) == ["order-1", "order-2"]
    log.close()


def test_names_say_which_time_a_file_covers(tmp_path):
    """To the millisecond outward, so that a reader can leave files out."""
    log = log_of(tmp_path)
    log.on_event(answered(1, at_ns=AT_NS + 1_500_000))
    log.on_event(answered(2, at_ns=AT_NS + 7_000_000_001))
    log.close()
    (file,) = listing(tmp_path).files
    assert file.path.name.startswith("decisions-20260921T141320001Z-20260921T141327001Z-")
    assert (file.first_ns, file.last_ns) == (AT_NS + 1_000_000, AT_NS + 7_001_000_000)
    assert times_of(file.path) == (AT_NS + 1_500_000, AT_NS + 7_000_000_001)


@pytest.mark.parametrize("at_ns", [0, 1, -5, 4_000_000_000_000_000_000, 1 << 62])
@FORMATS
def test_clocks_that_are_wrong_make_files_that_are_read(tmp_path, at_ns, kind):
    """1970, before it, and years that nobody has seen."""
    log = log_of(tmp_path, format=kind)
    log.on_event(answered(1, at_ns=at_ns))
    log.close()
    assert [row["at_ns"] for row in log.rows()] == [at_ns]
    again = log_of(tmp_path, format=kind)
    again.on_event(answered(2))
    assert until(lambda: f"decisions.{kind}" in kinds(tmp_path)), kinds(tmp_path)
    assert sorted(row["at_ns"] for row in again.rows()) == sorted([at_ns, AT_NS + 2_000_000_000])
    again.close()


def test_an_hour_of_silence_wakes_nobody_often(tmp_path):
    """A log without a live file sleeps."""
    log = log_of(tmp_path, rotate_minutes=0.001)
    put(log, 1)
    assert until(lambda: kinds(tmp_path) == ["decisions.jsonl"])
    calls = []
    idle = log._outbox._idle
    log._outbox._idle = lambda: calls.append(1) or idle()
    time.sleep(1.0)
    assert len(calls) <= 1
    put(log, 2)
    assert until(lambda: len(ids(log)) == 2)
    log.close()


# ---- retention -------------------------------------------------------------------------------------------------------


@FORMATS
def test_files_whose_newest_row_is_too_old_are_deleted(tmp_path, kind):
    """A file with one younger row stays whole."""
    for days in ((40, 35), (40, 29), (5, 1)):
        log = log_of(tmp_path, format=kind)
        for day in days:
            log.on_event(answered(day, at_ns=AT_NS - day * DAY_NS))
        thread = log._outbox._thread
        log.close()
        if thread is not None:
            thread.join(60)  # it may still keep the folder, and a clock that stands still asks for that once
    clock = ManualClock(wall_ns=AT_NS)
    log = log_of(tmp_path, format=kind, keep_days=30, clock=clock)
    put(log, 0)
    if kind == "parquet":  # files of lines become Parquet first, and are judged when the folder is kept again
        # by this log, or by one that was closed: then the oldest file may be judged, and gone, already
        assert until(lambda: "sealed.jsonl" not in kinds(tmp_path) and "decisions.parquet" in kinds(tmp_path))
        clock.advance_ns(60_000_000_000)
    assert until(lambda: ids(log) == ["order-0", "order-1", "order-5", "order-29", "order-40"]), ids(log)
    assert until(lambda: log.stats().expired == 1)
    log.close()


def test_a_wall_clock_that_is_set_forward_deletes_nothing_early(tmp_path):
    """Ten years ahead, while the process runs: what is judged is how long it ran."""
    clock = ManualClock(wall_ns=AT_NS)
    old = log_of(tmp_path)
    old.on_event(answered(1, at_ns=AT_NS - DAY_NS))
    old.close()
    log = log_of(tmp_path, keep_days=30, clock=clock)
    put(log, 2)
    log.flush()
    clock.step_wall_ns(3_650 * DAY_NS)
    for _ in range(3):
        clock.advance_ns(60_000_000_000)
        time.sleep(0.5)
    assert ids(log) == ["order-1", "order-2"]
    clock.step_wall_ns(-3_650 * DAY_NS)
    clock.advance_ns(30 * DAY_NS)
    assert until(lambda: "order-1" not in ids(log))
    log.close()


def test_files_of_others_are_left_alone(tmp_path):
    """Whatever else lies in the folder, and whatever it is called."""
    names = [
        "notes.txt",
        "decisions.jsonl",
        "decisions-20260101T000000000Z-x.parquet",
        "live-1.jsonl",
        "log-zz.json",
        "log-00000000.json",
        "decisions-99999999T999999999Z-99999999T999999999Z-00000000-1-000000000000.jsonl",
    ]
    for name in names:
        (tmp_path / name).write_bytes(b"not ours\n")
    (tmp_path / "folder").mkdir()
    clock = ManualClock(wall_ns=AT_NS)
    log = log_of(tmp_path, keep_days=1, clock=clock)
    put(log, 1)
    log.flush()
    clock.advance_ns(100 * DAY_NS)
    assert until(lambda: log.stats().expired >= 0)
    time.sleep(0.5)
    assert ids(log) in (["order-1"], [])
    log.close()
    assert {path.name for path in tmp_path.iterdir()} >= {*names, "folder"}


# ---- recovery --------------------------------------------------------------------------------------------------------


@FORMATS
@pytest.mark.parametrize("tail", [b"", b'{"at_ns":17', b"\x00" * 5_000, b'{"at_ns":1}' * 200_000])
def test_a_dead_processs_file_is_finished_without_its_last_half_line(tmp_path, kind, tail):
    """By the next process that comes."""
    dead = log_of(tmp_path, format=kind)
    put(dead, *range(50))
    dead.flush()
    with dead._held():  # as a kill leaves it
        with dead._segment.path.open("ab") as file:
            file.write(tail)
        dead._segment.let_go()
        dead._segment = None
    assert kinds(tmp_path) == ["live.jsonl"]
    log = log_of(tmp_path, format=kind)
    assert ids(log) == [f"order-{i}" for i in range(50)]
    put(log, 50)
    assert until(lambda: kinds(tmp_path) == [f"decisions.{kind}", "live.jsonl"]), kinds(tmp_path)
    assert ids(log) == [f"order-{i}" for i in range(51)]
    assert until(lambda: log.stats().recovered == 1)
    log.close()
    dead.close()


def test_a_live_file_of_a_living_process_is_left_alone(tmp_path):
    """Its lock says so, also to other logs of the same process."""
    first = log_of(tmp_path)
    put(first, 1)
    first.flush()
    (file,) = listing(tmp_path).files
    with keeping(tmp_path, wait_s=10) as keeper:  # the log's own thread may be at it
        assert keeper is not None
        assert recover(file, "jsonl") is None
    put(first, 2)
    assert ids(first) == ["order-1", "order-2"]
    first.close()


def test_one_process_at_a_time_keeps_the_folder(tmp_path):
    """The others do not wait for it."""
    with keeping(tmp_path) as first, keeping(tmp_path) as second:
        assert first is not None
        assert second is None
    with keeping(tmp_path, wait_s=1.0) as third:
        assert third is not None


@pytest.mark.parametrize("where", ["finished and sealed", "sealed and live", "finished and live"])
def test_two_files_of_one_tag_are_read_once_and_tidied(tmp_path, where):
    """As a kill leaves them, between a new file and the removal of the old one."""
    log = log_of(tmp_path)
    put(log, *range(10))
    log.close()
    (file,) = listing(tmp_path).files
    data = file.path.read_bytes()
    if "finished" not in where:
        file.path.unlink()
        (tmp_path / f"sealed-{file.tag}.jsonl").write_bytes(data)
    other = "live" if "live" in where else "sealed"
    (tmp_path / f"{other}-{file.tag}.jsonl").write_bytes(data)
    assert ids(log) == [f"order-{i}" for i in range(10)]
    assert tidy(tmp_path, now_s=time.time()) == 1
    assert ids(log) == [f"order-{i}" for i in range(10)]


def test_what_was_left_half_done_is_tidied_when_it_is_old(tmp_path):
    """What a process begins this moment is not."""
    for name in (".tmp-1", ".new-1", ".new-2"):
        (tmp_path / name).write_bytes(b"x")
    os.utime(tmp_path / ".new-1", (1, 1))
    tidy(tmp_path, now_s=time.time())
    assert [path.name for path in tmp_path.iterdir()] == [".new-2"]


# ---- faults of the disk ------------------------------------------------------------------------------------------------


@pytest.fixture
def faulty(monkeypatch):
    """Make a call of the operating system fail, from now on, as often as said."""

    def call(name: str, code: int, times: int = 1, *, half: bool = False) -> list[int]:
        left, real = [times], getattr(os, name)

        def fails(*args, **kwargs):
            if left[0] > 0 and threading.current_thread().name in (
                "retailinfer-decisions",
                "MainThread",
            ):
                left[0] -= 1
                if half:  # half of the data goes out before the disk is full
                    real(args[0], bytes(args[1])[: max(1, len(args[1]) // 2)])
                raise OSError(code, os.strerror(code))
            return real(*args, **kwargs)

        monkeypatch.setattr(folder_module.os, name, fails)
        return left

    return call


@pytest.mark.filterwarnings("ignore:the decision log cannot be written:RuntimeWarning")
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", ["open", "write", "fsync", "fstat", "stat", "ftruncate"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@FORMATS
def test_every_call_that_fails_once_costs_nothing(tmp_path, faulty, name, code, kind, half):
    """The disk is full, or broken, for a moment: every row is there once, afterwards."""
    if half and name != "write":
        half = False
        name = "write"
    log = log_of(tmp_path, format=kind, rotate_mb=0.01)
    put(log, *range(30))
    log.flush()
    left = faulty(name, code, 2, half=half)
    for i in range(30, 120):
        put(log, i)
        if i % 10 == 0:
            time.sleep(0.02)
    assert until(lambda: log.flush() and log.stats().written == 120), log.stats()
    assert ids(log) == [f"order-{i}" for i in range(120)]
    log.close()
    assert left[0] < 2 or name == "ftruncate"  # which is not called while all else is well
    assert ids(log) == [f"order-{i}" for i in range(120)]
    assert log.stats().dropped == 0


@pytest.mark.filterwarnings("ignore:the decision log cannot be written:RuntimeWarning")
@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_log_that_could_not_be_opened_at_first_declares_itself_later(tmp_path, faulty, times):
    """Rows without a word on what they are could not be erased."""
    faulty("open", errno.ENOSPC, times)
    log = log_of(tmp_path)
    put(log, 1, 2)
    assert until(lambda: log.flush() and log.stats().written == 2)
    (file,) = listing(tmp_path).files
    assert [path.name for path in tmp_path.glob("log-*.json")] == [f"log-{file.declaration}.json"]
    assert log.erase("card", "c-1").rows == 1
    log.close()


@pytest.mark.parametrize("fsize", [4_096, 20_000])
def test_a_full_disk_costs_rows_and_no_answer(tmp_path, fsize):
    """Rows wait, then they are dropped and counted; whoever is in `hooks` hears of it once. When there is room, it goes on."""
    out = run_script(f"""
import resource, sys, time, warnings
warnings.simplefilter("ignore")
from pathlib import Path
from decisions import answered, ids, log_of, until
from test_decision_log_files import Hears
hears = Hears()
log = log_of(Path({str(tmp_path)!r}), max_queue=200, hooks=[hears])
log.start()
resource.setrlimit(resource.RLIMIT_FSIZE, ({fsize}, resource.RLIM_INFINITY))
slowest = 0.0
for i in range(5_000):
    start = time.perf_counter()
    log.on_event(answered(i))
    slowest = max(slowest, time.perf_counter() - start)
    if i % 100 == 0:
        time.sleep(0.005)
assert slowest < 0.5, slowest
assert until(lambda: log.stats().state == "failing"), log.stats()
stats = log.stats()
assert stats.dropped > 4_000 and stats.failures > 0 and "File too large" in stats.last_error, stats
assert stats.waiting >= 200, stats
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert until(lambda: log.stats().waiting == 0)
log.on_event(answered(5_000))
log.flush()
stats = log.stats()
assert stats.written + stats.dropped == 5_001, stats
got = ids(log)
assert len(got) == stats.written and len(set(got)) == len(got) and got[-1] == "order-5000"
log.close()
# "dropping" is told only where nothing worse is: failing came first or after it
assert hears.changes in (
    [("ready", "failing"), ("failing", "ready")],
    [("ready", "dropping"), ("dropping", "failing"), ("failing", "ready")],
    [("ready", "failing"), ("failing", "ready"), ("ready", "dropping")],
    [("ready", "dropping"), ("dropping", "failing"), ("failing", "ready"), ("ready", "dropping")],
), hears.changes
print("ok")
""")
    assert out == "ok"


def test_warnings_that_are_errors_do_not_end_the_log(tmp_path):
    """A folder that cannot be: said once, and serving goes on."""
    (tmp_path / "file").write_bytes(b"")
    hears = Hears()
    log = log_of(tmp_path / "file" / "decisions", hooks=[hears])
    put(log, 1)
    assert until(lambda: log.stats().state == "failing")
    assert log.stats().waiting == 1
    (tmp_path / "file").unlink()
    assert until(lambda: log.stats().state == "ready")
    assert ids(log) == ["order-1"]
    assert hears.changes == [("ready", "failing"), ("failing", "ready")]
    log.close()


def test_start_says_at_once_what_is_wrong(tmp_path):
    """For those who do not want to serve without their log."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        log_of(tmp_path / "file" / "decisions").start()


@FORMATS
def test_a_folder_that_disappears_is_made_again(tmp_path, kind):
    """What was in it is gone, as whoever removed it wanted; what comes later is kept."""
    folder = tmp_path / "decisions"
    log = log_of(folder, format=kind)
    put(log, *range(10))
    log.flush()
    shutil.rmtree(folder)
    time.sleep(0.6)
    put(log, *range(10, 20))
    assert until(lambda: log.flush() and folder.exists() and len(ids(log)) == 10)
    assert ids(log) == [f"order-{i}" for i in range(10, 20)]
    assert len(list(folder.glob("log-*.json"))) == 1
    log.close()


def test_an_overflow_is_told_once_and_forgotten_after_a_quiet_minute(tmp_path):
    """Drops are counted."""
    clock, hears = ManualClock(), Hears()
    log = log_of(tmp_path, max_queue=10, hooks=[hears], clock=clock)
    for _ in range(3):
        with log._held():
            put(log, *range(1_000))
        assert until(lambda: log.stats().waiting == 0)
    assert until(lambda: hears.changes == [("ready", "dropping")])
    assert log.stats().dropped >= 2_900
    assert log.stats().dropped + log.stats().written == 3_000
    clock.advance_ns(61_000_000_000)
    assert until(lambda: log.stats().state == "ready")
    assert hears.changes == [("ready", "dropping"), ("dropping", "ready")]
    log.close()


# ---- several at once ---------------------------------------------------------------------------------------------------


@FORMATS
def test_readers_see_every_row_once_while_files_are_finished(tmp_path, kind):
    """What was written before the read began is in it, once, whatever happens meanwhile."""
    log = log_of(tmp_path, format=kind, rotate_mb=0.02)
    stop = threading.Event()
    n = [0]

    def work() -> None:
        while not stop.is_set():
            put(log, n[0])
            n[0] += 1
            if n[0] % 20 == 0:
                time.sleep(0.003)

    writer = threading.Thread(target=work)
    writer.start()
    try:
        for k in range(25):
            sure = n[0]
            log.flush()
            got = [row["id"] for row in log.rows()] if k % 2 else log.table().column("id").to_pylist()
            assert len(set(got)) == len(got)
            assert set(got) >= {f"order-{i}" for i in range(sure)}
    finally:
        stop.set()
        writer.join()
    log.close()
    assert ids(log) == [f"order-{i}" for i in range(n[0])]


@FORMATS
def test_logs_with_one_folder_mix_nothing_up(tmp_path, kind):
    """As the processes of a server do; here in one, so that each sees the others' files all the time."""
    logs = [log_of(tmp_path, format=kind, rotate_mb=0.01) for _ in range(4)]

    def work(k: int) -> None:
        for i in range(k, 2_000, 4):
            put(logs[k], i)
            if i % 50 == 0:
                time.sleep(0.005)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for log in logs:
        log.close()
        assert log.stats().dropped == 0
    assert ids(logs[0]) == [f"order-{i}" for i in range(2_000)]
    assert sum(log.stats().written for log in logs) == 2_000
    assert "live.jsonl" not in kinds(tmp_path)


def test_segments_write_whole_lines_or_nothing(tmp_path, monkeypatch):
    """A write that stops half way is taken back."""
    segment = Segment(tmp_path, "00000000")
    segment.append(b'{"at_ns":1}\n', 1, 1, 1)
    real = os.write

    def half(fd: int, data: bytes) -> int:
        real(fd, bytes(data)[:5])
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(folder_module.os, "write", half)
    with pytest.raises(OSError, match="full"):
        segment.append(b'{"at_ns":2}\n', 1, 2, 2)
    monkeypatch.setattr(folder_module.os, "write", lambda fd, data: real(fd, bytes(data)[:3]))
    segment.append(b'{"at_ns":3}\n', 1, 3, 3)
    assert segment.path.read_bytes() == b'{"at_ns":1}\n{"at_ns":3}\n'
    segment.let_go()


def test_expire_goes_by_the_names(tmp_path):
    """A file goes when its newest row is older than asked for, to the millisecond."""
    names = [finished_name(f"00000000-1-{i:012x}", 0, AT_NS + i * 1_000_000, "jsonl") for i in range(10)]
    for name in names:
        (tmp_path / name).write_bytes(b"x\n")
    assert expire(tmp_path, AT_NS + 5_000_000) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[5:])


def test_decisions_of_both_kinds_stand_side_by_side(tmp_path):
    """A log whose format was changed is read whole; what waits is finished in the new format."""
    for k, kind in enumerate(["jsonl", "parquet", "jsonl"]):
        log = log_of(Path(tmp_path), format=kind)
        log.on_event(answered(k, answer=decision(k)))
        log.close()
        assert ids(log) == [f"order-{i}" for i in range(k + 1)]
    log = log_of(tmp_path)
    put(log, 3)
    assert until(lambda: kinds(tmp_path) == ["decisions.jsonl"] * 3 + ["live.jsonl"]), kinds(tmp_path)
    assert len(log.table()) == 4
    log.close()
