"""Tasks that a worker of Celery runs in the tests: a scorer loaded in its master, files instead of a broker.

SERVED=<folder of releases> QUEUE=<empty folder> celery -A served_tasks worker --pool prefork
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import worker_process_shutdown
from served_app import scorer

from retailinfer import life

_folder = Path(os.environ["QUEUE"])
for name in ("messages", "control", "results", "ended"):
    (_folder / name).mkdir(parents=True, exist_ok=True)

app = Celery(
    "served_tasks",
    broker="filesystem://",
    backend=f"file://{_folder / 'results'}",
    broker_connection_retry_on_startup=True,
    broker_transport_options={
        "data_folder_in": str(_folder / "messages"),
        "data_folder_out": str(_folder / "messages"),
        "control_folder": str(_folder / "control"),
    },
    worker_hijack_root_logger=False,
)


class _Ends:
    """Writes down that this process finished what it had to."""

    def end_with_process(self) -> None:
        (_folder / "ended" / str(os.getpid())).touch()


ends = _Ends()
life.end_with_process(ends)


@worker_process_shutdown.connect
def finish(**_: Any) -> None:
    """Celery's processes leave by os._exit, past everything that Python does at an exit."""
    life.end_all()


@app.task
def score(card: int, amount: float) -> tuple[float, int]:
    """The score and who gave it."""
    return scorer.score({"card_id": f"card-{card}", "amount": amount}).score, os.getpid()
