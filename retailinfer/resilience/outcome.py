"""What each way to fail means: for the breaker, for a second attempt, for who reads the figures.

Rules:
  * The list of kinds is closed: `RemoteError.kind` is one of `KINDS`, and so is every label made of it.
  * An answer in the 400s says that our call is wrong, not that the other side is down: the breaker ignores it (gRPC's A6 warns
    of counting both as one). Too many requests (429, RESOURCE_EXHAUSTED) is the exception.
  * A timeout counts only where the attempt was given the time that such calls normally take.
  * A second attempt is allowed only where no byte of an answer had come, so that nobody has begun to say something else.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import NamedTuple

from retailinfer.resilience.breaker import Outcome

__all__ = ["KINDS", "Meaning", "outcome_of"]


class Meaning(NamedTuple):
    """outcome: for the breaker. again: whether a second attempt may follow. what: in words."""

    outcome: Outcome
    again: bool
    what: str


_FAILURE, _UNREACHED, _IGNORED = Outcome.FAILURE, Outcome.UNREACHED, Outcome.IGNORED

KINDS = MappingProxyType(
    {
        "connect": Meaning(_UNREACHED, True, "refused, no route, no such name, no connection in time"),
        "tls": Meaning(_UNREACHED, False, "the certificate is not valid for this host, or there is no TLS"),
        "reset": Meaning(_UNREACHED, True, "the connection ended before a byte of the answer"),
        "timeout": Meaning(_FAILURE, False, "no whole answer in the time given"),
        "truncated": Meaning(_FAILURE, False, "the connection ended in the middle of the answer"),
        "too_large": Meaning(_FAILURE, False, "more bytes than `max_reply_bytes`"),
        "redirect": Meaning(_FAILURE, False, "it points elsewhere; nobody is followed"),
        "unavailable": Meaning(_FAILURE, True, "503 or UNAVAILABLE"),
        "overloaded": Meaning(
            _FAILURE, True, "429 or RESOURCE_EXHAUSTED; again only after a time that it names"
        ),
        "server": Meaning(_FAILURE, False, "another answer of the 500s, or another status of gRPC"),
        "rejected": Meaning(
            _IGNORED, False, "the 400s, INVALID_ARGUMENT, NOT_FOUND: our call or our settings are wrong"
        ),
        "malformed": Meaning(_FAILURE, False, "no HTTP, no JSON, no message of the protocol"),
        "mismatch": Meaning(_FAILURE, False, "outputs of other names, types or shapes"),
        "not_finite": Meaning(_FAILURE, False, "NaN or infinity"),
        "failed": Meaning(_FAILURE, False, "a back end of your own raised something"),
        "unsendable": Meaning(_IGNORED, False, "inputs that the protocol cannot carry, such as NaN in JSON"),
        "cancelled": Meaning(_IGNORED, False, "another attempt was faster"),
        "open": Meaning(_IGNORED, False, "the breaker let no call through"),
        "busy": Meaning(_IGNORED, False, "`max_concurrency` calls were under way"),
        "forked": Meaning(
            _IGNORED, False, "gRPC was used before this process was forked, and cannot be used here"
        ),
    }
)


def outcome_of(kind: str, *, starved: bool) -> Outcome:
    """For the breaker. starved: the attempt was given less time than such calls normally take."""
    if starved and kind in ("timeout", "connect"):
        return Outcome.IGNORED
    return KINDS[kind].outcome
