"""Acceptance under load (case 64): ten times as much as fits is offered to a real server, from another process."""

from __future__ import annotations

import sys
import threading
import time

import pytest
from services import until

import retailinfer as ri
from benchmarks.prefork import overload_app
from benchmarks.prefork.overload import measure

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="platform: reads /proc")

REJECTION_US = 20.0


@pytest.mark.slow
def test_c64_ten_times_overload_leaves_goodput_latency_and_memory_as_they_were(tmp_path):
    """Nothing fails, memory stays, all is calm again within 2 s; at least once in three tries, as others use this machine too,
    the server answers 90 % of what it can, and those whom it answers within the contract's objective.
    """
    tries = []
    for n in range(3):
        (folder := tmp_path / str(n)).mkdir()
        report = measure(folder, 4.0)
        assert [phase["failed"] for phase in report["phases"].values()] == [0] * 4
        assert report["phases"]["over"]["refused"] > report["phases"]["over"]["answered"]
        assert report["in_flight"] == 0
        assert report["grown_mb"] <= 8
        assert report["recovered_s"] <= 2
        tries.append((report["goodput"], report["p99_ms"], report["offered_per_s"] / report["peak_per_s"]))
        if report["goodput"] >= 0.9 and report["p99_ms"] <= overload_app.OBJECTIVE_MS:
            return
    raise AssertionError(f"goodput, p99 in ms, times the peak: {tries}")


def test_c64_a_refusal_costs_at_most_20_us(tmp_path):
    """Before the body is read by `permits.check`, and before it is decoded by the call itself."""
    ranker = overload_app.load(overload_app.write_release(tmp_path / "heavy"), max_in_flight=1)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            ranker.rank_json(overload_app.BODY)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for call in (ranker.permits.check, lambda: ranker.rank_json(overload_app.BODY)):
            took_ns = []
            while len(took_ns) < 2_000:
                until(lambda: ranker.permits.in_flight == 1, what="the one permit to be taken")
                start = time.perf_counter_ns()
                try:
                    call()
                except ri.OverloadedError:
                    took_ns.append(time.perf_counter_ns() - start)
            assert sorted(took_ns)[1_000] <= REJECTION_US * 1e3
    finally:
        stop.set()
        thread.join()
