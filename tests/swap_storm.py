"""Releases are swapped while threads score: no error, and no answer that is of two releases.

    python tests/swap_storm.py --swaps 10000 --seed 7 --report build/soak/swaps.json       as fast as they go
    python tests/swap_storm.py --seconds 60 --every 1                                       one a second: what callers notice

Rules:
  * Release number n gives n times the amount, decides `act-n`, and says that it is version n: an answer of two does not fit.
  * Odd releases have a field more than even ones, so that their request types differ; every third one is of trees.
  * Threads call every entry there is. A swap may be followed by a rollback, and by a swap of another thread.
  * Memory is read when garbage was collected and the heap was trimmed.
test_swap.py runs a sample.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
import releases

import retailinfer as ri
from retailinfer import columns as c
from retailinfer._native import ort
from retailinfer.contracts import Decision

N_RELEASES = 6
FIELDS = {"card": str, "amount": float}


@functools.cache
def release(number: int, kinds: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Release number n; see above."""
    more = {"country": str | None} if number % 2 else {}
    spec = ri.FeatureSpec(
        request=FIELDS | more,
        entities={"card": "card"},
        columns=[c.numeric("amount"), *(c.hashed("country", buckets=8) for _ in more)],
    )
    return releases.packed(
        "fraud",
        releases.weighted(float(number), *(0.0 for _ in more)),
        spec,
        policy=ri.Policy([(f"act-{number}", 0.0)]),
        contract=ri.Contract(ladder=tuple(ri.Rung(kind=kind) for kind in kinds)),
        info={"version": str(number)},
    )


def mixed(answer: Decision, amount: float) -> str | None:
    """What does not fit in an answer; None: it is of one release."""
    number = int(answer.release.partition(":")[2])
    want = (float(np.float32(np.float32(number) * np.float32(amount))), f"act-{number}")
    return None if (answer.score, answer.action) == want and answer.rung == 0 else f"{answer}, not {want}"


def callers(scorer: Any) -> list[Callable[[float], list[Decision]]]:
    """Every way in, amount -> answers."""
    read_json = msgspec.json.Decoder(Decision).decode
    read_msgpack = msgspec.msgpack.Decoder(Decision).decode
    own = scorer.request_type  # of the release that answers now: an old one for those that come later

    def body(amount: float) -> dict[str, Any]:
        return {"card": "c", "amount": amount}

    return [
        lambda amount: [scorer.score(body(amount))],
        lambda amount: [read_json(scorer.score_json(msgspec.json.encode(body(amount))))],
        lambda amount: [read_msgpack(scorer.score_msgpack(msgspec.msgpack.encode(body(amount))))],
        lambda amount: [scorer.score(own(**body(amount)))],
        lambda amount: scorer.score_batch([body(amount)] * 3),
    ]


class Storm:
    """Threads that score until they are stopped.

    Attributes:
        answers: how many there were. wrong: what should not have happened. seen: releases that answered.
        took_ns: what each call took, a list for each thread.
    """

    def __init__(self, scorer: Any, n_threads: int, seed: int, *, timed: bool = False) -> None:
        self.answers = 0
        self.wrong: list[str] = []
        self.seen: set[str] = set()
        self.took_ns: list[list[int]] = [[] for _ in range(n_threads)]
        self._stop = threading.Event()
        self._timed = timed
        self._threads = [
            threading.Thread(
                target=self._run, args=(callers(scorer), random.Random(seed + i), self.took_ns[i])
            )
            for i in range(n_threads)
        ]

    def _run(self, calls: list[Any], rng: random.Random, took_ns: list[int]) -> None:
        counted = 0
        while not self._stop.is_set() and len(self.wrong) < 10:
            amount = rng.randrange(1, 1 << 12) / 16
            call = rng.choice(calls)
            began = time.perf_counter_ns()
            try:
                answers = call(amount)
            except Exception as exc:
                self.wrong.append(f"{type(exc).__name__}: {exc}")
                continue
            if self._timed:
                took_ns.append(time.perf_counter_ns() - began)
            for answer in answers:
                self.seen.add(answer.release)
                if (found := mixed(answer, amount)) is not None:
                    self.wrong.append(found)
            counted += len(answers)
        self.answers += counted

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def rss_kb() -> int:
    """Memory of this process, less what could be given back."""
    gc.collect()
    ort.drain()
    ort.trim_heap()
    with Path("/proc/self/status").open() as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def swap_all(n_swaps: int, seed: int, *, n_threads: int = 4, kinds: tuple[str, ...] = ()) -> dict[str, Any]:
    """As many swaps as were asked for, at full speed; what was seen. Raises: AssertionError."""
    rng = random.Random(seed)
    scorer = releases.scorer_of(release(1, kinds))
    back = 0
    begun, interval = time.monotonic(), sys.getswitchinterval()
    sys.setswitchinterval(
        1e-4
    )  # threads take turns fifty times as often: there are more places to be interrupted in
    with Storm(scorer, n_threads, seed) as storm:
        for _ in range(n_swaps):
            scorer.swap(release(rng.randrange(1, N_RELEASES + 1), kinds))
            if rng.random() < 0.1:
                scorer.roll_back(why="storm")
                back += 1
            if storm.wrong:
                break
    sys.setswitchinterval(interval)
    took = time.monotonic() - begun
    assert not storm.wrong, storm.wrong[:3]
    assert storm.answers > 0
    scorer.close()
    return {
        "swaps": n_swaps,
        "rollbacks": back,
        "answers": storm.answers,
        "releases": len(storm.seen),
        "seconds": round(took, 1),
    }


def memory_of(n_swaps: int, *, warm_up: int = 200) -> dict[str, Any]:
    """Memory before and after so many swaps, in kB; `warm_up` of them until caches and the heap are as large as they get."""
    scorer = releases.scorer_of(release(1))
    for number in range(warm_up):
        scorer.swap(release(1 + number % N_RELEASES))
    before = rss_kb()
    for number in range(n_swaps):
        scorer.swap(release(1 + number % N_RELEASES))
        scorer.score({"card": "c", "amount": 1.0})
    after = rss_kb()
    scorer.close()
    return {"swaps": n_swaps, "before_kb": before, "after_kb": after, "grown": round(after / before - 1, 4)}


def one_each(seconds: float, every_s: float, seed: int) -> dict[str, Any]:
    """What a caller notices of a swap every so often: p99 and the longest call, beside the same without swaps."""
    for number in range(1, N_RELEASES + 1):
        release(number)
    scorer = releases.scorer_of(release(1))
    found: dict[str, Any] = {"every_s": every_s, "seconds": seconds}
    for name, swaps in (("warm", False), ("steady", False), ("swapping", True)):
        with Storm(scorer, 1, seed, timed=True) as storm:
            end, number = time.monotonic() + (2.0 if name == "warm" else seconds), 0
            while (left := end - time.monotonic()) > 0:
                if swaps:
                    number += 1
                    scorer.swap(release(1 + number % N_RELEASES))
                time.sleep(min(every_s, left))
        assert not storm.wrong, storm.wrong[:3]
        took = np.sort(np.concatenate([np.array(one) for one in storm.took_ns]))
        found[name] = {
            "calls": len(took),
            "p50_us": round(float(took[len(took) // 2]) / 1e3, 2),
            "p99_us": round(float(took[int(0.99 * len(took))]) / 1e3, 2),
            "worst_ms": round(float(took[-1]) / 1e6, 3),
        }
    scorer.close()
    return found


def main() -> int:
    """Command line; see above."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--swaps", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--every", type=float, default=1.0)
    parser.add_argument("--report", type=Path)
    given = parser.parse_args()
    if given.seconds:
        found = one_each(given.seconds, given.every, given.seed)
    else:
        found = {
            "seed": given.seed,
            "storm": swap_all(given.swaps, given.seed),
            "storm_with_ladder": swap_all(given.swaps // 10, given.seed, kinds=("previous", "last_score")),
            "memory": memory_of(min(1_000, given.swaps)),
        }
    text = json.dumps(found, indent=1) + "\n"
    if given.report is not None:
        given.report.parent.mkdir(parents=True, exist_ok=True)
        given.report.write_text(text)
    sys.stdout.write(text)
    return 0 if given.seconds or found["memory"]["grown"] <= 0.02 else 1


if __name__ == "__main__":
    sys.exit(main())
