"""fallback.json: what a release answers when nothing that computes can: a prior score, an action, rules, a popular list.

Rules:
  * Part of the release like its model: hashed, signed, reviewed. It is data; nothing of it is evaluated as code.
  * A rule is comparisons of request fields with constants, joined by `and`; the first one that holds decides. A field that is
    null or absent holds in none.
  * The popular list is ids in order, best first. Who is unavailable or excluded is left out where it is used.
Who checks it against spec and policy: `rungs.check_ladder`. Who answers with it: the static rung of the ladder.
"""

# No `from __future__ import annotations` here: msgspec would compile every one of them when a release is loaded.

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from retailinfer.columns import Where, parse_where
from retailinfer.errors import SpecError, clip

__all__ = ["Fallback", "StaticRule"]

MAX_RULES = 64
MAX_POPULAR = 100_000

Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


class StaticRule(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A condition over request fields, and the action where all of it holds."""

    where: Annotated[tuple[Where, ...], Meta(min_length=1, max_length=64)]
    action: Name

    def holds(self, value_of: Callable[[str], Any]) -> bool:
        """Whether a request meets it. `value_of`: field -> its value, None where it has none."""
        for term in self.where:
            value = value_of(term.field)
            if value is None:
                return False
            try:
                if not _COMPARE[term.op](value, term.value):
                    return False
            except TypeError:  # the field was not of its type: the release itself would have refused it
                return False
        return True


class FallbackBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """fallback.json."""

    score: float | None = None
    action: Name | None = None
    rules: Annotated[tuple[StaticRule, ...], Meta(max_length=MAX_RULES)] = ()
    popular: Annotated[tuple[str | Int64, ...], Meta(max_length=MAX_POPULAR)] = ()


class Fallback:
    """What the static rung of a ladder answers.

    Args:
        score: a prior, such as the mean score; None: the lowest score of the action's band.
        action: decided whatever the request is; None: the policy's action for `score`.
        rules: ("amount > 500 and channel == 'web'", action) pairs; the first that holds wins over `action`.
        popular: ids of candidates, best first, for a release that ranks.
    Raises: SpecError.
    """

    def __init__(
        self,
        *,
        score: float | None = None,
        action: str | None = None,
        rules: Iterable[tuple[str, str]] = (),
        popular: Sequence[str] | Sequence[int] = (),
    ) -> None:
        try:
            pairs = [(text, decided) for text, decided in rules]
        except (TypeError, ValueError) as exc:
            raise SpecError("Expected rules= as (condition, action) pairs") from exc
        if isinstance(popular, (str, bytes)):
            raise SpecError(f"Expected popular= as ids, got {clip(popular)}", hint="a list of them")
        made = {
            "score": score,
            "action": action,
            "rules": [(parse_where(text), decided) for text, decided in pairs],
            "popular": list(popular),
        }
        self.body = _checked(made)

    @classmethod
    def from_json(cls, data: bytes | str) -> "Fallback":
        """The inverse of `to_json`, with the same checks as the constructor. Raises: SpecError."""
        try:
            made = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise SpecError(f"fallback.json is no JSON: {clip(str(exc), 200)}") from exc
        found = cls.__new__(cls)
        found.body = _checked(made)
        return found

    def to_json(self) -> bytes:
        """Canonical JSON; equal fallbacks give equal bytes."""
        return msgspec.json.encode(self.body, order="deterministic")

    @property
    def actions(self) -> tuple[str, ...]:
        """Actions that it names, in order."""
        named = [rule.action for rule in self.body.rules]
        return tuple(dict.fromkeys([*named, *([] if self.body.action is None else [self.body.action])]))

    def action_for(self, value_of: Callable[[str], Any]) -> str | None:
        """The action of the first rule that holds, else the action; None: the policy decides by the score."""
        return next((rule.action for rule in self.body.rules if rule.holds(value_of)), self.body.action)

    def __repr__(self) -> str:
        body = self.body
        parts = [
            f"{name}={value}"
            for name, value in (("score", body.score), ("action", body.action))
            if value is not None
        ]
        parts += [f"{len(body.rules)} rules"] if body.rules else []
        parts += [f"{len(body.popular)} popular"] if body.popular else []
        return f"<Fallback {', '.join(parts)}>"


def _checked(made: Any) -> FallbackBody:
    try:
        body = msgspec.convert(made, FallbackBody)
    except (msgspec.ValidationError, RecursionError) as exc:
        raise SpecError(f"that is no fallback: {clip(str(exc), 200)}", hint="see ri.Fallback") from exc
    if body.score is not None and not math.isfinite(body.score):
        raise SpecError(f"Expected a finite score, got {body.score} - at fallback.score")
    for i, rule in enumerate(body.rules):
        for term in rule.where:
            if term.op not in _COMPARE:
                raise SpecError(
                    f"Expected one of {' '.join(_COMPARE)}, got {clip(term.op)} - at fallback.rules[{i}]"
                )
            if isinstance(term.value, float) and not math.isfinite(term.value):
                raise SpecError(f"Expected a finite number - at fallback.rules[{i}]")
    if len({type(one) for one in body.popular}) > 1:
        raise SpecError("Expected ids of one type - at fallback.popular")
    if len(set(body.popular)) != len(body.popular):
        raise SpecError("Expected every id once - at fallback.popular")
    return body
