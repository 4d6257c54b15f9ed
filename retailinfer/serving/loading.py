"""Loading for a door: the release, and the one before it for its rung; whether there is room for another one beside.

Imported with the first release that is loaded. What a release is in memory is pipeline.py; who asks is door.py and the doors.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from retailinfer.errors import SwapError, TrustError
from retailinfer.limits import MAX_WAITING
from retailinfer.pipeline import Pipeline, new_permits
from retailinfer.release.bundle import check_fallback
from retailinfer.resilience.ladder import CONCURRENCY

if TYPE_CHECKING:
    from retailinfer._native.admission import Permits
    from retailinfer.serving.follower import Incoming

__all__ = ["before_of", "load_incoming", "load_pipelines", "need_room"]

ROOM = 2.5  # times the bytes of a release: what loading it takes for a while


def load_pipelines(
    release: Any,
    previous: Any,
    *,
    contract: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    max_in_flight: int | None = None,
    permits: Permits | None = None,
    beside: Pipeline | None = None,
    remember: bool = True,
    **options: Any,
) -> tuple[Pipeline, Pipeline | None]:
    """A release and the one before it, with the same settings; the rung's own limit bounds the latter's calls.

    Raises: BundleError, ConfigError, SpecError for a `contract` that contradicts the release.
    """
    now = Pipeline.load(
        release,
        contract=contract,
        max_in_flight=max_in_flight,
        permits=permits,
        beside=beside,
        remember=remember,
        **options,
    )
    if previous is None:
        return now, None
    try:
        before = Pipeline.load(previous, max_in_flight=_most_of_rung(now), instead_of=now.manifest, **options)
    except BaseException:
        now.close()
        raise
    return now, before


def load_incoming(incoming: Incoming, **options: Any) -> Pipeline:
    """A release that a follower found, by its trust; who publishes it remembers that. Raises: as `Pipeline.load`."""
    return Pipeline.load(
        incoming.files,
        expected=incoming.expected,
        chosen=False,
        remember=False,
        **{**options, "trust": incoming.trust},
    )


def before_of(now: Pipeline, before: Pipeline) -> Pipeline | None:
    """The release that answered until now, for the rung `previous` of the one that comes; None where it has no such rung, or
    its signed manifest does not name this one.
    """
    if (
        before.engine is None
        or now.engine is None
        or all(rung.kind != "previous" for rung in now.contract.ladder)
    ):
        return None
    if now.bundle.verdict is not None:
        try:
            check_fallback(before.manifest, now.manifest)
        except TrustError:
            return None
    # Its own engine has a hook that tells of answers of the release, and the door's permits; a rung has its own.
    return before.twin(new_permits(_most_of_rung(now), MAX_WAITING, now.clock))


def _most_of_rung(now: Pipeline) -> int:
    """Calls that may be in the release before at once: one more than its rung lets in, for a drill."""
    rung = next((rung for rung in now.contract.ladder if rung.kind == "previous"), None)
    return ((None if rung is None else rung.max_concurrency) or CONCURRENCY) + 1


def need_room(*releases: Any) -> None:
    """Raises: SwapError where there is not as much memory as loading them beside what is there takes."""
    from retailinfer.memory import available_bytes  # noqa: PLC0415 - for who swaps

    needed = int(ROOM * sum(_size_of(release) for release in releases if release is not None))
    free = available_bytes()
    if free is not None and needed > free:
        raise SwapError(
            f"loading this release takes some {needed / 1e6:.0f} MB beside the one that answers, and there are "
            f"{free / 1e6:.0f} MB",
            hint="give the process more memory, or start new workers with the new release",
        )


def _size_of(release: Any) -> int:
    """Bytes of a release's files; 0 where loading will say what is wrong."""
    if isinstance(release, Mapping):
        return sum(len(data) for data in release.values() if isinstance(data, bytes))
    try:
        with os.scandir(release) as entries:
            return sum(entry.stat().st_size for entry in entries)
    except (OSError, TypeError, ValueError):
        return 0
