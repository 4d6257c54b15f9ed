"""Forks over the whole matrix: what was made before, what other threads do meanwhile, how the child leaves (case 51).

    python tests/fork_matrix.py --forks 10000 --seed 7 --report forks.json

Each child answers, and leaves; one that does not within 20 s hangs, and fails the whole. The matrix:
    loaded      before the fork, with `ri.preload`; or in the child
    sessions    ours, which have no threads; or also one of onnxruntime's Python package with two
    meanwhile   nothing; or threads that run models without the GIL, read through to a source, and swap tables
    leaves by   sys.exit, os._exit, SIGTERM
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import releases
from releases import CONTEXT, payment
from rows_for_tests import Counting, Table

import retailinfer as ri
from retailinfer.store.readthrough import ReadThrough

HUNG_S = 20.0
LEAVES = ("sys.exit", "os._exit", "SIGTERM")
IDS = [f"sku-{i:03d}" for i in range(700)]


class Loaded:
    """A scorer, a ranker and a table that reads through, with what they must answer."""

    def __init__(self, files: dict[str, bytes], items: dict[str, bytes]) -> None:
        self.store = ri.Store(tables={"item": releases.items(700)})
        # native work gives up the GIL, so that threads are inside it when the fork comes
        self.scorer = releases.scorer_of(files, hold_gil_below_us=0.0)
        self.ranker = releases.ranker_of(items, store=self.store, hold_gil_below_us=0.0)
        self.table = Table()
        self.table.through = ReadThrough(Counting(), self.table, columns=self.table.columns)

    def answers(self) -> Any:
        """Of a payment, of a ranking, and of a key that nobody asked for before."""
        score = self.scorer.score(payment(), deadline_ms=None, priority="critical").score
        self.table.through.fetch(["fresh"], 10.0)
        return score, self.ranker.rank(CONTEXT, IDS).items, self.table.rows.pop("fresh")["x"]


def _busy(loaded: Loaded, foreign: Any, stop: threading.Event) -> list[threading.Thread]:
    """Threads that keep every part in use."""

    def score() -> None:
        while not stop.is_set():
            loaded.scorer.score_batch([payment()] * 50)

    def rank() -> None:
        while not stop.wait(0.001):
            loaded.ranker.rank(CONTEXT, IDS)

    def fetch() -> None:
        chance = random.Random(3)
        while not stop.wait(0.001):
            key = chance.randrange(1 << 30)
            loaded.table.through.fetch([key], 1.0)
            loaded.table.erase(key)

    def swap() -> None:
        while not stop.wait(0.001):
            loaded.store.swap("item", releases.items(700))

    def run() -> None:
        while not stop.is_set():
            foreign.run(None, {"x": np.zeros((256, 15), np.float32)})

    works = [score, rank, fetch, swap, *([run] if foreign is not None else [])]
    return [threading.Thread(target=work, daemon=True) for work in works]


def _child(answer: Callable[[], Any], want: Any, leave: str, writer: int, start: float) -> None:
    """Answer, say how long that took, leave."""
    fine = False
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        fine = answer() == want
        os.write(writer, b"%d %.6f" % (fine, time.monotonic() - start))
        os.close(writer)
    finally:
        if not fine:
            os._exit(3)
    if leave == "os._exit":
        os._exit(0)
    if leave == "SIGTERM":
        os.kill(os.getpid(), signal.SIGTERM)
    sys.exit(0)


def _one(answer: Callable[[], Any], want: Any, leave: str) -> tuple[str, float, float]:
    """How a child ended, seconds until it had answered, and from then until it was gone."""
    reader, writer = os.pipe()
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(answer, want, leave, writer, start)
    os.close(writer)
    said = os.read(reader, 100)  # ends with the child, at the latest
    os.close(reader)
    left = time.monotonic()
    status = (0, 0)
    while not (status := os.waitpid(pid, os.WNOHANG))[0] and time.monotonic() < left + HUNG_S:
        time.sleep(0.0005)
    if not status[0]:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return "hung at its end", 0.0, 0.0
    if not said.startswith(b"1 "):
        return f"answered {said!r}, exit status {status[1]}", 0.0, 0.0
    expected = -signal.SIGTERM if leave == "SIGTERM" else 0
    code = os.waitstatus_to_exitcode(status[1])
    return (
        ("" if code == expected else f"exit status {code}"),
        float(said.split()[1]),
        time.monotonic() - left,
    )


def run(forks: int, seed: int, *, sessions: str, meanwhile: str) -> list[dict[str, Any]]:
    """One master and its children, in an order of the seed."""
    files, items = releases.payment_files(), releases.item_files()
    foreign = None
    if sessions == "foreign":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        foreign = onnxruntime.InferenceSession(
            releases.deep_network(15), options, providers=["CPUExecutionProvider"]
        )
    loaded = Loaded(files, items)
    want = loaded.answers()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        ri.preload(loaded.scorer, loaded.ranker)
    stop = threading.Event()
    threads = _busy(loaded, foreign, stop) if meanwhile == "busy" else []
    for thread in threads:
        thread.start()
    cases = list(itertools.product(("before", "child"), LEAVES))
    chance = random.Random(seed)
    found = []
    for n in range(forks):
        if n % len(cases) == 0:
            chance.shuffle(cases)
        where, leave = cases[n % len(cases)]
        answer = loaded.answers if where == "before" else lambda: Loaded(files, items).answers()
        end, first_s, exit_s = _one(answer, want, leave)
        case = f"{where}/{sessions}/{meanwhile}/{leave}"
        found.append({"case": case, "end": end, "first_s": first_s, "exit_s": exit_s})
    stop.set()
    for thread in threads:
        thread.join()
    assert loaded.answers() == want
    return found


def summary(found: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """What came of all forks. Times are those of masters without busy threads: beside them who measures waits, too."""
    timed = [one for one in found if "/idle" in one["case"]]
    first, ends = (sorted(one[name] for one in timed) for name in ("first_s", "exit_s"))
    failed = [one for one in found if one["end"]]
    return {
        "seed": seed,
        "forks": len(found),
        "cases": len({one["case"] for one in found}),
        "failed": failed,
        "first_ms_p50": round(1e3 * first[len(first) // 2], 1),
        "first_ms_p99": round(1e3 * first[len(first) * 99 // 100], 1),
        "exit_ms_p99": round(1e3 * ends[len(ends) * 99 // 100], 1),
        "exit_ms_most": round(1e3 * ends[-1], 1),
    }


def main() -> int:
    """Command line; see above. The masters of the four kinds run one after the other, each in a child of this process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--forks", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path)
    given = parser.parse_args()
    found: list[dict[str, Any]] = []
    kinds = list(itertools.product(("own", "foreign"), ("idle", "busy")))
    for i, (sessions, meanwhile) in enumerate(kinds):
        reader, writer = os.pipe()
        pid = os.fork()  # before anything is loaded
        if pid == 0:
            os.close(reader)
            one = run(given.forks // len(kinds), given.seed + i, sessions=sessions, meanwhile=meanwhile)
            with os.fdopen(writer, "w") as out:
                json.dump(one, out)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as said:
            text = said.read()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        found += (
            json.loads(text)
            if code == 0 and text
            else [
                {"case": f"{sessions}/{meanwhile}", "end": f"master: {code}", "first_s": 0.0, "exit_s": 0.0}
            ]
        )
        gc.collect()
    report = summary(found, given.seed)
    if given.report is not None:
        given.report.write_text(json.dumps(report, indent=1) + "\n")
    sys.stdout.write(json.dumps(report) + "\n")
    return 1 if report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
