"""What the tests of the decision log share: events, logs with short times, waiting for another thread."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from retailinfer.contracts import Decision, Ranking, Reason
from retailinfer.monitoring.decision_folder import listing
from retailinfer.monitoring.decision_log import DecisionLog
from retailinfer.monitoring.events import Answered, Failed

AT_NS = 1_790_000_000_000_000_000
DAY_NS = 86_400_000_000_000


def decision(i: int = 0, **more: Any) -> Decision:
    """An answer with everything in it."""
    given = {
        "id": f"order-{i}",
        "score": 0.125,
        "action": "approve",
        "release": "fraud:41",
        "reasons": (Reason("amount", "amount is high"),),
        "stale": ("card.mean_amount_30d",),
        "missing": ("channel",),
        "trace": ("card: guest-7 -> c-1",),
    }
    return Decision(**given | more)


def answered(i: int = 0, *, at_ns: int | None = None, answer: Any = None, **request: Any) -> Answered:
    """An event; by default a payment of card c-<i % 10> at second i."""
    given = {"card_id": f"c-{i % 10}", "amount": 84.5 + i, "channel": "app", "email": "who@example.org"}
    return Answered(
        decision(i) if answer is None else answer,
        given | request,
        AT_NS + i * 1_000_000_000 if at_ns is None else at_ns,
        14_250,
    )


def ranked(i: int = 0, n: int = 50, **request: Any) -> Answered:
    """A ranking."""
    answer = Ranking(
        id=f"rank-{i}",
        items=[f"sku-{k}" for k in range(n)],
        scores=[1.0 / (k + 1) for k in range(n)],
        release="shop:2",
        suppressed={"sku-x": "unavailable"},
    )
    return Answered(answer, {"card_id": f"c-{i % 10}"} | request, AT_NS + i * 1_000_000_000, 20_000)


def failed(i: int = 0, **more: Any) -> Failed:
    """A call that failed."""
    return Failed("DeadlineExceededError", "fraud:41", f"order-{i}", AT_NS + i, 3_000_000, **more)


def log_of(folder: Path, **more: Any) -> DecisionLog:
    """A log of payments."""
    given: dict[str, Any] = {
        "keep_days": None,
        "fields": ["amount", "channel"],
        "entities": {"card": "card_id"},
    }
    return DecisionLog(folder, **given | more)


def ids(log: DecisionLog) -> list[str]:
    """The ids of all rows, in order of their numbers."""
    return sorted((row["id"] for row in log.rows()), key=lambda one: int(one.rpartition("-")[2]))


def kinds(folder: Path) -> list[str]:
    """What kinds of files there are, as "decisions.parquet"; without declarations and hidden ones."""
    return sorted(f"{file.kind}.{file.format}" for file in listing(folder).files)


def until(condition: Any, seconds: float = 60.0) -> bool:
    """Wait for another thread or process."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(condition())
