"""Stands where the engine of a release would that must not answer any more: every call of it fails, and goes down the ladder.

Rules:
  * What decodes and encodes, and what is counted, is the engine's still.
  * The error is a ServingError like any other: it goes down the ladder, or to the caller's `otherwise`.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, NoReturn

from retailinfer.errors import RevokedError

__all__ = ["Withdrawn"]


class Withdrawn:
    """An engine that answers nothing. instead_of: the engine itself. why: what the errors say."""

    def __init__(self, engine: Any, why: str) -> None:
        self.instead_of = engine
        self._why = why

    def __getattr__(self, name: str) -> Any:
        return getattr(self.instead_of, name)

    def with_engine(self, engine: Any) -> Withdrawn:
        """The same in the place of another engine."""
        return Withdrawn(engine, self._why)

    def refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise RevokedError(self._why)

    score = score_json = score_msgpack = rank = rank_json = refuse

    def score_batch(self, requests: Iterable[object], row_errors: bool, *_: Any) -> list[RevokedError]:
        """The error in every row, where errors are rows."""
        if not row_errors:
            self.refuse()
        return [RevokedError(self._why) for _ in islice(requests, self.instead_of.max_rows)]
