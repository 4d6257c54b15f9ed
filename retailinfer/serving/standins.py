"""What stands where the engine of a release would, so that calls of an open door need no check of their own.

Rules:
  * `Refusal`, of a closed door and of a release of arrays: whatever is asked, the caller made a mistake, and no rung mends it.
  * `Silenced`, of a release that must not answer any more: the error is a ServingError like any other, so it goes down the
    ladder, or to the caller's `otherwise`. What decodes and encodes, and what is counted, is the engine's still.
Put in place by live.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, NoReturn

from retailinfer.errors import ConfigError, RevokedError

__all__ = ["Refusal", "Silenced"]


class Refusal:
    """Every use of it is the same ConfigError."""

    def __init__(self, message: str, hint: str) -> None:
        self._message = message
        self._hint = hint

    def __getattr__(self, name: str) -> Any:
        raise ConfigError(self._message, hint=self._hint)


class Silenced:
    """An engine that answers nothing. instead_of: the engine itself. why: what the errors say."""

    def __init__(self, engine: Any, why: str) -> None:
        self.instead_of = engine
        self._why = why

    def __getattr__(self, name: str) -> Any:
        return getattr(self.instead_of, name)

    def with_engine(self, engine: Any) -> Silenced:
        """The same in the place of another engine."""
        return Silenced(engine, self._why)

    def refuse(self, *_: Any, **__: Any) -> NoReturn:
        """Raises: RevokedError."""
        raise RevokedError(self._why)

    score = score_json = score_msgpack = rank = rank_json = refuse

    def score_batch(self, requests: Iterable[object], row_errors: bool, *_: Any) -> list[RevokedError]:
        """The error in every row, where errors are rows."""
        if not row_errors:
            self.refuse()
        return [RevokedError(self._why) for _ in islice(requests, self.instead_of.max_rows)]
