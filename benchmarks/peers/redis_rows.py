"""Rows of features packed into strings of Redis, read by one MGET of redis-py with hiredis.

The leanest way to keep rows in Redis: one key a row, float32 cells as they are in memory, so that unpacking is one
`frombuffer` of everything that came. No schema, no age, nothing that a feature store adds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["RedisRows"]

BATCH = 5_000


class RedisRows:
    """Writes the rows when made; `gather` reads some of them into a matrix of shape (n keys, width)."""

    def __init__(self, port: int, keys: Sequence[str], values: NDArray[np.float32]) -> None:
        import redis

        self._client = redis.Redis(host="127.0.0.1", port=port)
        self._width = values.shape[1]
        for at in range(0, len(keys), BATCH):
            part = zip(keys[at : at + BATCH], values[at : at + BATCH], strict=True)
            self._client.mset({key: row.tobytes() for key, row in part})

    def gather(self, keys: Sequence[str]) -> NDArray[np.float32]:
        """Raises: TypeError if a key is not there."""
        packed = self._client.mget(keys)
        return np.frombuffer(b"".join(packed), np.float32).reshape(-1, self._width)

    def close(self) -> None:
        self._client.close()
