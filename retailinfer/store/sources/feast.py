"""FeastSource: rows out of Feast's online store, through its Python SDK. Needs `retailinfer[feast]`.

Rules:
  * Feast returns values past their ttl as present: rows carry Feast's own event time, so that `max_age` of a column decides.
  * No feature view that knows an entity: unknown. A view that does not, beside one that does: its features are null.
  * Feast has no time limit of its own; ReadThrough's threads wait for it. Its SQLite store has one connection, so that
    calls take turns.
  * Feast reads its registry anew, while a fetch waits, whenever the cached one is too old: set `cache_ttl_seconds: 0`.
  * A forked child opens the store again.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from retailinfer.clock import Clock, SystemClock
from retailinfer.errors import ConfigError, clip
from retailinfer.store.sources import Key, isolate

__all__ = ["FeastSource"]


class FeastSource:
    """Features of one entity, as one row."""

    def __init__(
        self,
        store: Any,
        *,
        features: Sequence[str] | Mapping[str, str],
        entity: str | Sequence[str],
        updated_at: str = "event_timestamp",
        clock: Clock | None = None,
    ) -> None:
        """Open the store, which imports Feast and reads its registry; the online store is opened by the first fetch.

        Args:
            store: a `feast.FeatureStore`, or the path of a feature repository.
            features: as "view:feature"; the columns of rows are named like the features, or as a mapping says.
            entity: the join key, or several for keys that are tuples, in the order of their parts.
            updated_at: the column that says when a row was true: the event time of the oldest value in it.
            clock: for the time limit of a fetch that has to be repeated.
        Raises: ConfigError for a name that is no feature's, two columns of one name, or no Feast.
        """
        feast = _feast()
        named = dict(features) if isinstance(features, Mapping) else dict.fromkeys(features)
        self._columns: dict[str, str] = {}  # Feast's full name of a feature -> column
        for feature, column in named.items():
            view, _, name = feature.partition(":")
            if not view or not name:
                raise ConfigError(f'Expected features as "view:feature", got {clip(feature)}')
            self._columns[f"{view}__{name}"] = column or name
        names = [*self._columns.values(), updated_at]
        if len(set(names)) < len(names) or len(names) == 1:
            raise ConfigError(
                f"Expected at least one feature, and columns of different names, got {clip(names, 200)}",
                hint='name them: features={"a:x": "a_x", "b:x": "b_x"}',
            )
        self._features = list(named)
        self._join_keys = (entity,) if isinstance(entity, str) else tuple(entity)
        self._single = isinstance(entity, str)
        self._updated_at = updated_at
        self._clock: Clock = clock or SystemClock()
        if isinstance(store, (str, os.PathLike)):
            store = feast.FeatureStore(repo_path=os.fspath(store))
        if not isinstance(store, feast.FeatureStore):
            raise ConfigError(
                f"Expected a feast.FeatureStore or the path of a feature repository, got `{type(store).__name__}`"
            )
        self._begin(store)

    def _begin(self, store: Any) -> None:
        self._pid = os.getpid()
        self._store = store
        kind = getattr(store.config.online_store, "type", "")
        self._turn: Any = threading.Lock() if kind == "sqlite" else None

    def fetch(self, keys: Sequence[Key], *, timeout_s: float) -> dict[Key, Any]:
        """The rows of these keys, with every feature and the time column."""
        if self._pid != os.getpid():
            self._inherited = self._store  # held: what it has open is the parent's to close
            self._begin(_feast().FeatureStore(config=self._store.config))
        until_ns = self._clock.monotonic_ns() + int(timeout_s * 1e9)
        with self._my_turn(timeout_s):
            return isolate(
                self._batch,
                keys,
                blames_key=(TypeError, ValueError, OverflowError),  # a key that its entity's type cannot hold
                time_is_up=lambda: self._clock.monotonic_ns() >= until_ns,
            )

    @contextlib.contextmanager
    def _my_turn(self, timeout_s: float) -> Any:
        turn = self._turn
        if turn is not None and not turn.acquire(timeout=timeout_s):
            raise TimeoutError("another fetch has not given back Feast's only connection")
        try:
            yield
        finally:
            if turn is not None:
                turn.release()

    def _batch(self, keys: Sequence[Key]) -> dict[Key, Any]:
        parts: list[Any] = [(key,) if self._single else key for key in keys]
        rows = {name: [part[i] for part in parts] for i, name in enumerate(self._join_keys)}
        answer = self._store.get_online_features(
            features=self._features, entity_rows=rows, full_feature_names=True
        ).proto
        results = dict(zip(answer.metadata.feature_names.val, answer.results, strict=True))
        missing = [name for name in self._columns if name not in results]
        if missing:
            raise ConfigError(f"Expected the features {clip(missing, 200)}, got {clip(list(results), 200)}")
        return {key: self._row(results, i) for i, key in enumerate(keys)}

    def _row(self, results: Mapping[str, Any], i: int) -> dict[str, Any] | None:
        """Row `i` of the answer; None if no view has heard of the entity."""
        row: dict[str, Any] = {}
        oldest_s: float | None = None
        known = False
        for name, column in self._columns.items():
            result = results[name]
            if result.statuses[i] == _NOT_FOUND:
                row[column] = None
                continue
            known = True
            row[column] = _plain(result.values[i])
            moment = result.event_timestamps[i]
            seconds = moment.seconds + moment.nanos * 1e-9
            if seconds > 0 and (oldest_s is None or seconds < oldest_s):
                oldest_s = seconds
        if not known:
            return None
        row[self._updated_at] = oldest_s
        return row

    def __repr__(self) -> str:
        return f"<FeastSource: {len(self._columns)} features by {', '.join(self._join_keys)}>"


_NOT_FOUND = (
    3  # FieldStatus of feast.protos.feast.serving.ServingService; a number of the wire, which cannot change
)


def _plain(value: Any) -> Any:
    """A value of Feast's own message type as Python has it; None where nothing is set."""
    kind = value.WhichOneof("val")
    if kind is None or kind == "null_val":
        return None
    cell = getattr(value, kind)
    if kind.endswith("_list_val"):
        return list(cell.val)
    if kind == "unix_timestamp_val":
        return datetime.fromtimestamp(cell, UTC)
    return cell


def _feast() -> Any:
    try:
        import feast  # noqa: PLC0415 - an optional extra

        feast.FeatureStore  # noqa: B018 - a folder of this name can be imported too, and has none
    except (ImportError, AttributeError) as exc:
        raise ConfigError(
            "Reading Feast's online store needs Feast",
            hint="pip install retailinfer[feast], in an environment with pandas < 3",
        ) from exc
    return feast
