"""Last scores: what each entity got last, for calls that nothing can compute any more.

Rules:
  * Only answers of the first three rungs are remembered: a remembered score never makes itself younger.
  * A score is used for the same entity on the same scale only; who remembers says which that is. So releases of one door can
    share one memory, and none reads what another one meant otherwise.
  * It is forgotten after its time to live, and when there are too many, the oldest first.
  * Remembering costs every answer some 1 to 3 us; without the rung it costs nothing.
Kept by cachetools, which knows no threads: one lock around it, made anew in forked children. The scores themselves stay.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable

from cachetools import TTLCache

from retailinfer.clock import Clock
from retailinfer.contracts import RUNGS, Decision
from retailinfer.life import begin_again_in_children

__all__ = ["MAX_AGE_S", "MAX_ENTITIES", "LastScores"]

MAX_AGE_S = 15 * 60.0
MAX_ENTITIES = 10_000
COMPUTED = RUNGS.index("last_score")  # answers of rungs below this number were computed


class LastScores:
    """Scores by (scale, key). `failures`: answers that could not be remembered."""

    def __init__(
        self,
        *,
        clock: Clock,
        max_age_s: float = MAX_AGE_S,
        max_entities: int = MAX_ENTITIES,
    ) -> None:
        self.limits = (max_age_s, max_entities)
        self._size, self._ttl_ns, self._clock = max_entities, max_age_s * 1e9, clock
        self.failures = 0
        self._lock = threading.RLock()
        self._scores = self._empty()
        begin_again_in_children(self)

    def _empty(self) -> TTLCache[Hashable, float]:
        return TTLCache(self._size, self._ttl_ns, timer=self._clock.monotonic_ns)

    def begin_in_child(self) -> None:
        """A new lock. Another thread of the parent may have been inside: then what is kept cannot be trusted."""
        if not self._lock.acquire(blocking=False):
            self._scores = self._empty()
        self._lock = threading.RLock()

    def __len__(self) -> int:
        with self._lock:
            return len(self._scores)

    def remember(self, scale: Hashable, key: Hashable, answer: Decision) -> None:
        """Keep the score of an answer; one that was not computed, or of an entity without a key, is left."""
        if answer.rung >= COMPUTED or key is None:
            return
        with self._lock:
            self._scores[scale, key] = answer.score

    def score(self, scale: Hashable, key: Hashable) -> float | None:
        """What the entity got last; None: nothing, or too long ago."""
        if key is None:
            return None
        with self._lock:
            return self._scores.get((scale, key))

    def forget(self, key: Hashable) -> int:
        """Forget an entity, on every scale; how many scores that were."""
        with self._lock:
            found = [one for one in self._scores if isinstance(one, tuple) and one[1] == key]
            for one in found:
                del self._scores[one]
        return len(found)
