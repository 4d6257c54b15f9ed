"""Figures of what hooks of the library's own add to a call: the decision log, log lines; in nanoseconds.

Rules:
  * The same calls of the same scorer, with a hook that keeps the event and with the hook that is measured, in turns.
  * The hooks' threads are held meanwhile, and their queues emptied outside the clock: what is measured is the request's part.
"""

from __future__ import annotations

import logging
import tempfile
from collections import deque
from collections.abc import Callable
from typing import Any

from benchmarks.harness import Figure, alternate, check_answers
from benchmarks.lab import Figures, Lab, measures
from benchmarks.measures.budgets import QUANTILE, differences_ns, own_structs, switched

__all__: list[str] = []


@measures("decision_log_ns", "log_line_ns")
def hooks(lab: Lab) -> Figures:
    """fraud-lean from a Struct through trees; the log holds two fields and one key."""
    from retailinfer import DecisionLog, LogHook
    from retailinfer._native.trees import levels
    from retailinfer.deadline import FOREVER_NS

    scorer = lab.tree_scorer(levels()[-1])
    engine, structs = scorer._live.engine, own_structs(lab, scorer)
    fields = list(scorer.request_type.__struct_fields__[:3])
    heard: deque[Any] = deque(maxlen=1)
    logger = logging.getLogger("retailinfer.benchmarks")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    lines = LogHook(logger.name, max_queue=1_000_000)
    with tempfile.TemporaryDirectory() as folder:
        log = DecisionLog(
            folder, keep_days=1, fields=fields[:2], entities={"key": fields[2]}, max_queue=1_000_000
        )
        score = engine.score

        def call(request: Any) -> object:
            return score(request, None, 0, FOREVER_NS)

        def tells(hook: Callable[[Any], object]) -> Callable[[], object]:
            def switch() -> None:
                for outbox in (log._outbox, lines._outbox):
                    outbox._queue.clear()
                engine.set_hook(hook)

            return switch

        bare = [call(request).score for request in structs[:200]]  # type: ignore[attr-defined]
        engine.set_hook(log.on_event)
        check_answers(
            "fraud-lean with a decision log",
            [call(request).score for request in structs[:200]],  # type: ignore[attr-defined]
            bare,
        )
        rows = list(log.rows())
        assert [row["score"] for row in rows] == bare  # in its files
        assert rows[0][f"request.{fields[0]}"] == getattr(structs[0], fields[0])
        cases = [
            switched("event", call, structs, tells(heard.append)),
            switched("log", call, structs, tells(log.on_event)),
            switched("line", call, structs, tells(lines.on_event)),
        ]
        log._outbox.hold(10.0)
        lines._outbox.hold(10.0)
        try:
            times = alternate(cases, lab.scaled(0.5))
        finally:
            tells(heard.append)()
            engine.set_hook(None)
            log._outbox.release()
            lines._outbox.release()
            log.close()
            lines.close()
    found = {}
    for name, top in (("decision_log_ns", "log"), ("log_line_ns", "line")):
        note = f"{times[top].us(QUANTILE):.4g} us over {times['event'].us(QUANTILE):.4g} us"
        found[name] = Figure.of(differences_ns(times[top], times["event"]), lower_is_better=True, note=note)
    return found
