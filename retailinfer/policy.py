"""From a score to an action: bands of scores, by segment where they differ; how far an operator may move them; and what
reasons are called.

Rules:
  * Thresholds and scores are compared as float32, the lower bound belongs to the band.
  * A score below the first threshold is outside the policy: ScoreError, never a guess. Start at 0.0 for probabilities, at
    `float("-inf")` for raw scores.
  * A policy that asks for no reasons costs nothing. What reasons are: docs/reasons.md.
  * A threshold moves inside its envelope only, and never to or beyond another one: every band keeps scores of its own. The
    lowest one never moves, for a score below it has no action. What moves them is release/overrides.py; docs/thresholds.md.
Requests are compared in `_native.engine`, tables in `pipeline`; this file checks and serialises.
"""

# No `from __future__ import annotations` here: msgspec would compile every one of them when a release is loaded.

import math
import struct
from collections.abc import Mapping, Sequence
from itertools import pairwise

import msgspec
import numpy as np

from retailinfer.errors import ConfigError, SpecError, clip

__all__ = ["Band", "Policy"]


class Band(msgspec.Struct, frozen=True, array_like=True):
    """An action and the lowest score that gets it. `from_score` None: minus infinity (JSON has no infinity)."""

    action: str
    from_score: float | None


class PolicyBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """policy.json."""

    bands: tuple[Band, ...]
    segment_by: str | None = None
    segments: dict[str, tuple[Band, ...]] = {}
    review: str | None = None
    reasons: dict[str, str | None] = {}
    n_reasons: int = 0
    envelope: dict[str, tuple[float, float]] = {}
    segment_envelopes: dict[str, dict[str, tuple[float, float]]] = {}


MAX_REASONS = 64
MAX_TEXT = 4096


class Policy:
    """Score -> action.

    Args:
        bands: (action, lowest score) pairs with ascending scores.
        segment_by: a request field of type str; `segments` then holds other bands for some of its values. The actions are
            the same ones.
        review: the action of columns that say "review"; taken to be "review" when there is such a band.
        reasons: field (or stored reference, window, column of several fields) -> text of its reason; None = never named.
            Fields that are not listed are named without a text.
        n_reasons: the most reasons of a decision, 0 to 64: the fields that push its score up the most. By default 4 where
            `reasons` is given, else 0: nothing is worked out then.
        envelope: action -> (lowest, highest) score to which an operator may move its threshold for a while, without a new
            release; what is not named stays where it is. `segment_envelopes`: segment -> the same for its own bands.
    Raises: SpecError.
    """

    def __init__(
        self,
        bands: Sequence[tuple[str, float]],
        *,
        segment_by: str | None = None,
        segments: Mapping[str, Sequence[tuple[str, float]]] | None = None,
        review: str | None = None,
        reasons: Mapping[str, str | None] | None = None,
        n_reasons: int | None = None,
        envelope: Mapping[str, tuple[float, float]] | None = None,
        segment_envelopes: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
    ) -> None:
        if bool(segments) != (segment_by is not None):
            raise SpecError("`segments` and `segment_by` go together")
        for value in segments or ():
            if not _is_text(value):
                raise SpecError(f"Expected values of a request field as names of segments, got {clip(value)}")
        made = _bands(bands, "bands")
        actions = {band.action for band in made}
        by_segment = {
            value: _bands(some, f"segments[{clip(value)}]") for value, some in (segments or {}).items()
        }
        for value, some in by_segment.items():
            unknown = {band.action for band in some} - actions
            if unknown:
                raise SpecError(
                    f"segment `{clip(value)}` has actions that the policy lacks: {clip(sorted(unknown), 200)}"
                )
        if review is not None and review not in actions:
            raise SpecError(f"review=`{clip(review)}` is none of the actions {clip(sorted(actions), 200)}")
        self.body = PolicyBody(
            bands=made,
            segment_by=segment_by,
            segments=by_segment,
            review=review or ("review" if "review" in actions else None),
            reasons=_reasons(reasons),
            n_reasons=_n_reasons(n_reasons, 0 if reasons is None else 4),
            envelope=_envelope(envelope, made, "envelope"),
            segment_envelopes=_segment_envelopes(segment_envelopes, by_segment),
        )

    @classmethod
    def _of(cls, body: PolicyBody) -> "Policy":
        made = cls.__new__(cls)
        made.body = body
        return made

    @classmethod
    def from_json(cls, data: bytes | str) -> "Policy":
        """The inverse of `to_json`, with the same checks as the constructor."""
        try:
            body = msgspec.json.decode(data, type=PolicyBody)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise SpecError(f"policy.json is not a policy: {clip(str(exc), 300)}") from exc
        return cls(
            [(b.action, _low(b)) for b in body.bands],
            segment_by=body.segment_by,
            segments={v: [(b.action, _low(b)) for b in some] for v, some in body.segments.items()} or None,
            review=body.review,
            reasons=body.reasons or None,
            n_reasons=body.n_reasons,
            envelope=body.envelope or None,
            segment_envelopes=body.segment_envelopes or None,
        )

    def to_json(self) -> bytes:
        """Canonical JSON; equal policies give equal bytes."""
        return msgspec.json.encode(self.body, order="deterministic")

    @property
    def actions(self) -> tuple[str, ...]:
        """Actions in the order of the bands."""
        return tuple(dict.fromkeys(band.action for band in self.body.bands))

    def thresholds(self, segment: str | None = None) -> tuple[tuple[str, ...], np.ndarray]:
        """Actions and their lowest scores (float32, ascending) for a segment's value; the common ones for an unknown value."""
        bands = self.body.segments.get(segment, self.body.bands) if segment is not None else self.body.bands
        return tuple(b.action for b in bands), np.array([_low(b) for b in bands], dtype=np.float32)

    def threshold(self, action: str, segment: str | None = None) -> float:
        """The lowest score of an action, in the common bands or in a segment's own. Raises: KeyError."""
        bands = self.body.bands if segment is None else self.body.segments[segment]
        return {band.action: _low(band) for band in reversed(bands)}[action]

    def moved(self, thresholds: Mapping[str, float], segment: str | None = None) -> "Policy":
        """The policy with other lowest scores for some actions of the common bands, or of a segment that has its own.

        Raises: ConfigError for a threshold outside its envelope, one that has none, and one that meets another one.
        """
        where = "the policy" if segment is None else f"segment {clip(segment)}"
        if segment is not None and not (isinstance(segment, str) and segment in self.body.segments):
            raise ConfigError(
                f"{where} has no bands of its own",
                hint=f"those that have: {', '.join(self.body.segments) or 'none'}",
            )
        bands = self.body.bands if segment is None else self.body.segments[segment]
        allowed = self.body.envelope if segment is None else self.body.segment_envelopes.get(segment, {})
        if not thresholds:
            raise ConfigError("Expected at least one threshold to move, as action -> score")
        for action, low in thresholds.items():
            if action not in allowed:
                raise ConfigError(
                    f"the threshold of {clip(action)} may not be moved: {where} declares no envelope for it",
                    hint=f"those that may: {', '.join(allowed) or 'none'}; others take a release, see ri.repolicy",
                )
            least, most = allowed[action]
            is_number = isinstance(low, (int, float)) and not isinstance(low, bool)
            if not (is_number and least <= low <= most):  # NaN is not
                raise ConfigError(
                    f"Expected {clip(action)} from {least} to {most}, its envelope, got {clip(low)}"
                )
        new = tuple(
            Band(b.action, float(thresholds[b.action])) if b.action in thresholds else b for b in bands
        )
        lows = [_float32(_low(b)) for b in new]
        if any(above <= below for below, above in pairwise(lows)):
            raise ConfigError(
                f"Expected ascending thresholds, got {clip([_low(b) for b in new], 200)}: a band would be left without scores"
            )
        if segment is None:
            return Policy._of(msgspec.structs.replace(self.body, bands=new))
        return Policy._of(msgspec.structs.replace(self.body, segments={**self.body.segments, segment: new}))

    def __repr__(self) -> str:
        shown = ", ".join(f"{b.action} from {_low(b)}" for b in self.body.bands)
        by = f", by {self.body.segment_by}" if self.body.segment_by else ""
        return f"<Policy {shown}{by}{f', {self.body.n_reasons} reasons' if self.body.n_reasons else ''}>"


_FLOAT32 = struct.Struct("f")


def _float32(low: float) -> float:
    """As scores are compared; for a lowest score that was checked."""
    rounded: float = _FLOAT32.unpack(_FLOAT32.pack(low))[0]
    return rounded


def _is_text(value: object) -> bool:
    """Text that UTF-8 can hold."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _low(band: Band) -> float:
    return -math.inf if band.from_score is None else band.from_score


def _reasons(given: Mapping[str, str | None] | None) -> dict[str, str | None]:
    if given is not None and not isinstance(given, Mapping):
        raise SpecError(f"Expected reasons= as field -> text, got `{type(given).__name__}`")
    for field, text in (given or {}).items():
        if not isinstance(field, str) or not field:
            raise SpecError(f"Expected names of fields in reasons=, got {clip(field)}")
        if text is not None and (not isinstance(text, str) or len(text) > MAX_TEXT):
            raise SpecError(
                f"Expected a text of at most {MAX_TEXT} characters, or None, got {clip(text)} - at reasons[{clip(field)}]"
            )
        for one in (field, text or ""):
            if not _is_text(one):
                raise SpecError(
                    f"Expected text that UTF-8 can hold, got {clip(one)} - at reasons[{clip(field)}]"
                )
    return dict(given or {})


def _n_reasons(given: int | None, default: int) -> int:
    if given is None:
        return default
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given <= MAX_REASONS:
        raise SpecError(f"Expected n_reasons from 0 to {MAX_REASONS}, got {clip(given)}")
    return given


def _bands(pairs: Sequence[tuple[str, float]], where: str) -> tuple[Band, ...]:
    try:
        made = tuple(Band(action, None if low == -math.inf else float(low)) for action, low in pairs)
    except (TypeError, ValueError, OverflowError) as exc:
        raise SpecError(f"Expected (action, lowest score) pairs - at {where}") from exc
    with np.errstate(over="ignore"):  # a score that float32 cannot hold is refused below
        lows = np.array([_low(b) for b in made], dtype=np.float32)
    if not made or not all(_is_text(b.action) and b.action for b in made):
        raise SpecError(f"Expected at least one (action, lowest score) pair with a name - at {where}")
    if np.isnan(lows).any() or np.isposinf(lows).any() or bool((lows[1:] <= lows[:-1]).any()):
        raise SpecError(
            f"Expected ascending scores that differ as float32, got {clip([_low(b) for b in made], 200)} - at {where}"
        )
    return made


def _envelope(
    given: Mapping[str, tuple[float, float]] | None, bands: tuple[Band, ...], where: str
) -> dict[str, tuple[float, float]]:
    if given is not None and not isinstance(given, Mapping):
        raise SpecError(f"Expected action -> (lowest, highest), got `{type(given).__name__}` - at {where}")
    found: dict[str, tuple[float, float]] = {}
    names = [band.action for band in bands]
    for action, ends in (given or {}).items():
        if names.count(action) != 1:
            raise SpecError(f"Expected an action with one band, got {clip(action)} - at {where}")
        at = names.index(action)
        if at == 0:
            raise SpecError(
                f"the lowest threshold, that of {clip(action)}, never moves: a score below it has no action - at {where}"
            )
        try:
            least, most = (float(end) for end in ends)
        except (TypeError, ValueError, OverflowError) as exc:
            raise SpecError(
                f"Expected (lowest, highest) of {clip(action)}, got {clip(ends)} - at {where}"
            ) from exc
        with np.errstate(over="ignore"):
            below = np.float32(_low(bands[at - 1]))
            above = np.float32(_low(bands[at + 1])) if at + 1 < len(bands) else np.float32(math.inf)
            fits = below < np.float32(least) and np.float32(most) < above
        if not (fits and least <= _low(bands[at]) <= most):
            raise SpecError(
                f"Expected an envelope of {clip(action)} around {_low(bands[at])}, above {below} and below {above}, its "
                f"neighbours, got {clip(ends)} - at {where}"
            )
        found[action] = (least, most)
    return found


def _segment_envelopes(
    given: Mapping[str, Mapping[str, tuple[float, float]]] | None, segments: Mapping[str, tuple[Band, ...]]
) -> dict[str, dict[str, tuple[float, float]]]:
    if given is not None and not isinstance(given, Mapping):
        raise SpecError(f"Expected segment -> envelope, got `{type(given).__name__}` - at segment_envelopes")
    unknown = [value for value in given or {} if value not in segments]
    if unknown:
        raise SpecError(f"segment {clip(unknown[0])} has an envelope and no bands of its own")
    return {
        value: _envelope(some, segments[value], f"segment_envelopes[{clip(value)}]")
        for value, some in (given or {}).items()
    }
