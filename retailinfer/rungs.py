"""The contract of one release and its rungs: what they may say, and what configuration lays over them.

Rules:
  * A ladder is declared with the release, or laid over it by configuration; both are held to the same rules, here.
  * Fraud degrades to manual review: its last_score and static rungs may decide the policy's review action and nothing else.
  * A rung that is declared and not given is absent: it is passed over, and `health()` says so.
What the rungs do is in serving/answers.py, how a call walks down in resilience/ladder.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import msgspec

from retailinfer.contracts import RUNGS, Contract, Rung
from retailinfer.errors import ConfigError, SpecError, clip

if TYPE_CHECKING:
    from retailinfer.features.spec import FeatureSpec, Field
    from retailinfer.policy import Policy
    from retailinfer.release.fallback import Fallback

__all__ = ["check_ladder", "decisions_of", "entity_of", "key_reader", "laid_over", "reads_field"]

NEEDS_A_PERSON = RUNGS.index("last_score")  # from this rung on, fraud is a person's to decide
MAX_CONFIG_BYTES = 1 << 20
STAGES = ("decode", "resolve", "fill", "run", "decide", "encode", "remote")
_LITERALS = {"float": (int, float), "int": (int, float), "str": (str,), "bool": (bool,)}


# ---- rules -----------------------------------------------------------------------------------------------------------


def check_ladder(
    contract: Contract, policy: Policy | None, spec: FeatureSpec | None, fallback: Fallback | None
) -> None:
    """Whether a ladder can mean anything for a release. `spec` None: the release takes arrays.

    Raises: SpecError, which names the rung and says what to do.
    """
    _check_times(contract)
    kinds = [rung.kind for rung in contract.ladder]
    order = [RUNGS.index(kind) for kind in kinds]
    if 0 in order:
        raise SpecError("the ladder lists `release`", hint="list the rungs below it only")
    if any(a >= b for a, b in pairwise(order)):
        raise SpecError(
            f"Expected the rungs {', '.join(RUNGS[1:])} in this order, each at most once, got {', '.join(kinds)}"
        )
    if kinds and (spec is None or spec.arrays):
        raise SpecError(
            "the contract has a ladder, and the release takes arrays: nothing else could make an answer of them",
            hint="pack with features=, or without a ladder",
        )
    if contract.use_case == "fraud" and spec is not None and spec.body.candidate is not None:
        raise SpecError('the contract says use_case="fraud", and the release ranks candidates')
    if fallback is not None and spec is not None:
        _check_fallback(fallback, policy, spec)
    if spec is None:
        return
    for rung in contract.ladder:
        _check_rung(rung, contract, policy, spec, fallback)


def _check_times(contract: Contract) -> None:
    """Promises of time that contradict each other, or name a stage that there is not."""
    named = {name: getattr(contract, name) for name in ("p50_ms", "p95_ms", "p99_ms", "deadline_ms")}
    given = [(name, ms) for name, ms in named.items() if ms is not None]
    for (name, ms), (next_name, next_ms) in pairwise(given):
        if ms > next_ms:
            raise SpecError(f"Expected {name} of at most {next_name}, got {ms:g} and {next_ms:g}")
    unknown = [stage for stage in contract.stages_ms if stage not in STAGES]
    if unknown:
        raise SpecError(
            f"stages_ms names the stage {clip(unknown[0])}", hint=f"there are {', '.join(STAGES)}"
        )


def _check_rung(
    rung: Rung, contract: Contract, policy: Policy | None, spec: FeatureSpec, fallback: Fallback | None
) -> None:
    where = f" - at rung `{rung.kind}`"
    ranks = spec.body.candidate is not None
    if ranks and rung.kind in ("remote", "last_score"):
        raise SpecError(
            f"this release ranks candidates, which this rung cannot{where}", hint="take previous and static"
        )
    _check_decisions(rung, contract, policy, where)
    if rung.max_ms is not None and contract.deadline_ms is not None and rung.max_ms > contract.deadline_ms:
        raise SpecError(
            f"Expected max_ms of at most the contract's deadline_ms, {contract.deadline_ms:g}, got {rung.max_ms:g}{where}",
            hint="a rung is begun only where its whole time fits what is left",
        )
    of_last = {"entity", "max_age_s", "max_entities", "scale"}
    extra = [name for name in sorted(of_last) if getattr(rung, name) is not None]
    if rung.kind != "last_score" and extra:
        raise SpecError(f"`{extra[0]}` belongs to last_score{where}")
    if rung.kind == "last_score":
        entity_of(rung, spec)
    if rung.kind == "static":
        if fallback is None:
            raise SpecError(
                f"the release brings nothing to answer with{where}", hint="fallback=ri.Fallback(...)"
            )
        if ranks and not fallback.body.popular:
            raise SpecError(
                f"the release ranks candidates, and its fallback has no popular list{where}",
                hint="ri.Fallback(popular=[ids, best first])",
            )
        if not ranks and fallback.body.score is None and fallback.body.action is None:
            raise SpecError(
                f"the fallback has neither a score nor an action{where}",
                hint="ri.Fallback(score=0.02), or action=; rules alone leave requests without an answer",
            )


def _check_decisions(rung: Rung, contract: Contract, policy: Policy | None, where: str) -> None:
    actions = () if policy is None else policy.actions
    unknown = [one for one in rung.decisions if one not in actions]
    if unknown:
        raise SpecError(
            f"decisions={clip(unknown[0])} is no action of the policy{where}",
            hint=f"its actions are {', '.join(actions) or 'none'}",
        )
    if contract.use_case != "fraud" or RUNGS.index(rung.kind) < NEEDS_A_PERSON:
        return
    review = None if policy is None else policy.body.review
    if review is None:
        raise SpecError(
            f"fraud degrades to manual review, and the policy has no review action{where}",
            hint='ri.Policy([...], review="action") names it',
        )
    if any(one != review for one in rung.decisions):
        raise SpecError(
            f"fraud degrades to manual review: this rung may decide `{review}` only, got "
            f"{clip(', '.join(rung.decisions), 80)}{where}"
        )


def _check_fallback(fallback: Fallback, policy: Policy | None, spec: FeatureSpec) -> None:
    """What the fallback names is there."""
    actions = () if policy is None else policy.actions
    unknown = [one for one in fallback.actions if one not in actions]
    if unknown:
        raise SpecError(
            f"action {clip(unknown[0])} is none of the policy's - at the fallback",
            hint=f"its actions are {', '.join(actions) or 'none'}",
        )
    score = fallback.body.score
    if score is not None and policy is not None and fallback.body.action is None:
        lowest = float(policy.thresholds()[1][0])
        if score < lowest:
            raise SpecError(
                f"Expected a score from {lowest} on, got {score}: the policy has no action for it - at the fallback"
            )
    types = {f.name: f.type for f in spec.fields}
    for rule in fallback.body.rules:
        for term in rule.where:
            kind = types.get(term.field)
            if kind not in _LITERALS:
                raise SpecError(
                    f"Expected request fields of type float, int, str or bool, got {clip(term.field)}"
                    f"{'' if kind is None else f' of type {kind}'} - at the rules of the fallback"
                )
            if not isinstance(term.value, _LITERALS[kind]) or (
                isinstance(term.value, bool) != (kind == "bool")
            ):
                raise SpecError(
                    f"`{term.field}` is of type {kind}, and is compared with {clip(term.value)} - at the rules of the "
                    "fallback"
                )
    candidate = spec.body.candidate
    popular = fallback.body.popular
    if popular:
        if candidate is None:
            raise SpecError("the fallback has a popular list, and the release ranks nothing")
        kind = types[spec.body.entities[candidate].key[0]]
        if (kind == "str") != isinstance(popular[0], str):
            raise SpecError(
                f"candidates are ids of type {kind}, got {clip(popular[0])} - at the popular list of the fallback"
            )


def decisions_of(rung: Rung, contract: Contract, policy: Policy | None) -> tuple[str, ...] | None:
    """What a rung may decide; None: the release decides nothing."""
    if policy is None:
        return None
    if rung.decisions:
        return rung.decisions
    if contract.use_case == "fraud" and RUNGS.index(rung.kind) >= NEEDS_A_PERSON:
        return () if policy.body.review is None else (policy.body.review,)
    return policy.actions


def entity_of(rung: Rung, spec: FeatureSpec) -> str:
    """Whose last score it is. Raises: SpecError."""
    entities = list(spec.body.entities)
    if rung.entity is None and len(entities) == 1:
        return entities[0]
    if rung.entity not in entities:
        raise SpecError(
            f"Expected entity= as one of the spec's entities ({', '.join(entities) or 'none'}), got {clip(rung.entity)} "
            "- at rung `last_score`",
            hint=None if entities else "declare entities= in the spec",
        )
    return rung.entity


# ---- configuration -----------------------------------------------------------------------------------------------------


def laid_over(contract: Contract, given: Mapping[str, Any] | str | os.PathLike[str] | None) -> Contract:
    """A release's contract with some fields replaced: by a mapping of them, or by a JSON or TOML file that holds one.

    Raises: ConfigError, which names the field.
    """
    if given is None:
        return contract
    where = "contract="
    if isinstance(given, (str, os.PathLike)):
        where = clip(os.fspath(given), 200)
        given = _read(os.fspath(given), where)
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"Expected contract= as a mapping of Contract's fields, or the path of a file, got `{type(given).__name__}`",
            hint='contract={"deadline_ms": 20}',
        )
    try:
        fields = msgspec.to_builtins(contract) | msgspec.to_builtins(dict(given), str_keys=True)
        made = msgspec.convert(fields, Contract)
    except (msgspec.ValidationError, TypeError, ValueError, RecursionError) as exc:
        raise ConfigError(
            f"{where} does not fit: {clip(str(exc), 200)}",
            hint=f"its fields are {', '.join(Contract.__struct_fields__)}",
        ) from exc
    if contract.use_case is not None and made.use_case != contract.use_case:
        raise ConfigError(
            f"Expected the use_case of the release, {contract.use_case!r}, got {made.use_case!r} - at {where}",
            hint="what a use case may decide is approved with the release; pack it for the other one",
        )
    return made


def _read(path: str, where: str) -> Any:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - services import no pathlib for this
            data = file.read(MAX_CONFIG_BYTES + 1)
    except (OSError, ValueError) as exc:
        raise ConfigError(
            f"cannot read {where}: {getattr(exc, 'strerror', None) or type(exc).__name__}"
        ) from exc
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError(f"Expected at most {MAX_CONFIG_BYTES} bytes in {where}")
    decode = msgspec.toml.decode if path.endswith(".toml") else msgspec.json.decode
    try:
        return decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as exc:
        raise ConfigError(
            f"{where} cannot be read: {clip(str(exc), 200)}",
            hint="JSON, or TOML in a file that ends in .toml",
        ) from exc


# ---- reading requests --------------------------------------------------------------------------------------------------


def reads_field(request: Any, field: Field) -> Any:
    """A field of a request of any kind; None where it is null or absent. What is wrong with it is said by who scores."""
    if isinstance(request, msgspec.Struct):  # mostly; asking for a Mapping takes ten times as long
        return getattr(request, field.name, None)
    if isinstance(request, Mapping):
        value = request.get(field.name)
        return request.get(field.wire) if value is None and field.wire else value
    return getattr(request, field.name, None)


def key_reader(fields: tuple[Field, ...]) -> Callable[[Any], Any]:
    """Request -> the key of an entity in it: a value, a tuple of several; None where a part of it is null."""
    if len(fields) == 1:
        (field,) = fields
        name, wire = field.name, field.wire

        def read_one(request: Any) -> Any:
            if type(request) is dict and not wire:
                return request.get(name)
            return reads_field(request, field)

        return read_one

    def read_all(request: Any) -> Any:
        key = tuple(reads_field(request, field) for field in fields)
        return None if any(part is None for part in key) else key

    return read_all
