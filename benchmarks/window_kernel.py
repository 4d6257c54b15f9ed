"""Six windows of one entity, driven as history is replayed: a native loop over events, without Python for each.

`python -m benchmarks.window_kernel N` adds one event of each of N entities, then three more of each, in a new process, and
prints what its resident memory grew by: for the figure about memory.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

import retailinfer as ri
from benchmarks import workloads
from retailinfer import columns as c
from retailinfer._native.windows import WindowGroup, WindowPlan, WindowReplay

__all__ = ["GAP_S", "WINDOWS", "Kernel", "resident_bytes"]

GAP_S = 20_160  # the widest pane, that of 7 days

# what, over
WINDOWS = (
    ("count", "1h"),
    ("sum", "1h"),
    ("count", "24h"),
    ("sum", "24h"),
    ("max", "24h"),
    ("mean", "7d"),
)


class Kernel:
    """The state of one group, and a spec's plan over it."""

    def __init__(self, n_entities: int) -> None:
        self.spec = ri.FeatureSpec(
            request={"card_id": str, "amount": float, "at": ri.Timestamp},
            event_time="at",
            entities={"card": "card_id"},
            streams={"payment": None},
            columns=[
                c.window("card", what, on="payment", over=over)  # type: ignore[arg-type]  # a literal above
                if what == "count"
                else c.window("card", what, on="payment", of="amount", scale=100, over=over)  # type: ignore[arg-type]
                for what, over in WINDOWS
            ],
        )
        (layout,) = self.spec.window_layout()
        self.group = WindowGroup(
            layout.entity, layout.key_kind, max_entities=2 * n_entities, max_bytes=1 << 33
        )
        numbers = [
            self.group.register(a.digest, a.kind, a.pane_ns, a.keep_panes, calendar=a.calendar, since_ns=0)
            for a in layout.accumulators
        ]
        slots = dict(zip(layout.names, (read.slot for read in layout.reads), strict=True))
        self._slots = tuple(slots[name] for name in self.spec.names)
        self._plan = WindowPlan(
            self.group,
            self.spec.program,
            stream="payment",
            keys=layout.keys,
            adds=tuple((numbers[a.accumulator], a.where, a.of, float(a.scale)) for a in layout.adds),
            reads=tuple(
                (
                    r.slot,
                    numbers[r.accumulator],
                    r.what,
                    r.n_panes,
                    r.delay_ns,
                    r.include,
                    r.lag,
                    float(r.scale),
                )
                for r in layout.reads
            ),
        )
        self._words = pa.array([workloads.word("card_id", i) for i in range(n_entities)])

    def events(
        self, entity: NDArray[np.int64], at_s: NDArray[np.float64], amount: NDArray[np.float64]
    ) -> Any:
        """Events ready to run, in the order given: one call of what this returns runs them once."""
        micros = np.rint(at_s * 1e6).astype(np.int64)
        table = pa.table(
            {
                "card_id": self._words.take(pa.array(entity)),
                "amount": amount,
                "at": pa.array(micros).cast(pa.timestamp("us", tz="UTC")),
            }
        )
        found = self.spec.read_events(table, "payment")
        columns = [found.by_name.get(name) for name in self.spec.program.slot_names]
        replay = WindowReplay()
        n = len(entity)
        number = replay.add_stream(
            self.spec.program, [self._plan], columns, n, micros * 1_000, windows=self._slots
        )
        streams, rows = np.zeros(n, np.uint8), np.arange(n, dtype=np.int64)

        def run() -> NDArray[np.float64]:
            """The windows as each event finds them, itself included; shape (events, windows), in the order of WINDOWS."""
            return np.asarray(replay.run(streams, rows)[0][number][0])

        return run


def resident_bytes() -> int:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4_096


def main(n_entities: int) -> list[dict[str, int]]:
    """Resident memory after one event of each entity, and after four, each so much later that it opens new panes."""
    kernel = Kernel(n_entities)
    step, found = 20_000, []
    kernel.events(np.arange(1), np.array([float(workloads.FIRST_SECOND)]), np.ones(1))()  # what is made once
    gc.collect()
    before = resident_bytes()
    for number in range(1, 5):
        for first in range(0, n_entities, step):
            entity = np.arange(first, min(n_entities, first + step))
            at = np.full(len(entity), float(workloads.FIRST_SECOND + number * GAP_S))
            kernel.events(entity, at, np.ones(len(entity)))()
        gc.collect()
        if number in (1, 4):
            found.append({"events": number, "bytes": resident_bytes() - before})
    return found


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]))))
