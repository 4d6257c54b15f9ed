"""What a Remote tells of itself: counts since its process began."""

from __future__ import annotations

import msgspec

__all__ = ["EndpointReport", "RemoteReport"]


class EndpointReport(msgspec.Struct, frozen=True):
    """One endpoint since this process began.

    Attributes:
        state: of its breaker, such as "closed". attempts: that were made. failures: by kind (docs/remote.md).
        p50_ms, p99_ms: of the last answers; None while there are few.
    """

    name: str
    state: str
    attempts: int
    failures: dict[str, int]
    p50_ms: float | None
    p99_ms: float | None


class RemoteReport(msgspec.Struct, frozen=True):
    """What `Remote.report()` says: calls, and what was done for them."""

    model: str
    calls: int
    answers: int
    busy: int
    refused: int
    retries: int
    hedges: int
    in_flight: int
    endpoints: list[EndpointReport]
