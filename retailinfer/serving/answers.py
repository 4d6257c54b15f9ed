"""What the rungs of a door do: the release before, a remote model, the last score, what the release brings for bad days.

Rules:
  * A rung gets a call and the moment at which its time is over; it answers, or raises. Limits and order are the ladder's.
  * Features and policy are always this release's own, except those of the release before, which answers with its own.
  * No rung counts a request in windows that was counted already.
  * Nothing here is reached from the engine by a strong reference: a door that is dropped is gone.
Built once for each release of a door, by live.py. What a ladder may be is rungs.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from retailinfer.contracts import Contract, Decision, Ranking, Rung
from retailinfer.deadline import FOREVER_NS
from retailinfer.errors import CallerError, ConfigError, DeadlineExceededError, RemoteError, ServingError
from retailinfer.monitoring.events import Answered
from retailinfer.pipeline import DTYPE_NAMES, Pipeline, parse_available
from retailinfer.resilience.ladder import CONCURRENCY, Call, CallersOwn, Ladder, Step
from retailinfer.rungs import decisions_of, entity_of, key_reader, reads_field
from retailinfer.serving.lasting import Lasting, RemoteModel, Tells

if TYPE_CHECKING:
    from numpy.typing import NDArray


Answers: TypeAlias = Callable[[Call, int], Decision | Ranking | None]

__all__ = [
    "Rungs",
    "check_declared",
    "knows_load",
    "remote_inputs",
    "remote_release",
    "remote_schema",
    "remote_score",
    "sheds",
]


class Rungs:
    """The ladder of one release in one door, and who hears of it.

    Args:
        lasting: what the door has beside it. previous: the release before, loaded.
    Holds:
        ladder: never None; without rungs it tells of failures only.
        last_scores: None without such a rung.
    """

    def __init__(
        self, pipeline: Pipeline, lasting: Lasting, *, ranks: bool, previous: Pipeline | None = None
    ) -> None:
        contract, policy, remote = pipeline.contract, pipeline.policy, lasting.remote
        declared = {rung.kind: rung for rung in contract.ladder}
        last = (
            _Last(pipeline, previous, declared["last_score"], lasting) if "last_score" in declared else None
        )
        self.last_scores = None if last is None else last.scores
        tell: Callable[[Any], None] | None = lasting.hooks.on_event if lasting.hooks else None
        if last is not None:
            tell = last.then(tell)
        makes: dict[str, Callable[[], Answers | None]] = {
            "previous": lambda: None if previous is None else _previous(pipeline, previous, ranks=ranks),
            "remote": lambda: None if remote is None or lasting.remote_first else _remote(pipeline, remote),
            "last_score": lambda: None if last is None else _last_score(pipeline, last),
            "static": lambda: _popular(pipeline) if ranks else _static(pipeline),
        }
        count = _counting(pipeline)
        steps = [
            Step(
                rung.kind,
                count(makes[rung.kind]()),
                max_ns=0 if rung.max_ms is None else max(1, int(rung.max_ms * 1e6)),
                max_concurrency=rung.max_concurrency or CONCURRENCY,
                decisions=decisions_of(rung, contract, policy),
                review=None if policy is None else policy.body.review,
                costs_as_release=rung.kind == "previous",
                waits=rung.kind == "remote"
                or (rung.kind == "previous" and previous is not None and _waits(previous)),
            )
            for rung in contract.ladder
        ]
        tells = None if tell is None else Tells(pipeline.manifest.release, pipeline.clock, tell)
        self.ladder = Ladder(steps, clock=pipeline.clock, tells=tells)
        if pipeline.engine is not None and tell is not None:
            pipeline.engine.set_hook(tell)


def check_declared(contract: Contract, **given: object) -> None:
    """Raises: ConfigError for a rung that is given (by its kind) and that the contract does not declare."""
    declared = {rung.kind for rung in contract.ladder}
    for kind, one in given.items():
        if one is not None and kind not in declared:
            raise ConfigError(
                f"{kind}= is given, and the contract's ladder has no such rung",
                hint=f'contract={{"ladder": [{{"kind": "{kind}"}}]}} here, or ri.Rung(kind="{kind}") when packing',
            )


# ---- the rungs -------------------------------------------------------------------------------------------------------


def _previous(pipeline: Pipeline, previous: Pipeline, *, ranks: bool) -> Answers:
    """The release before, with its own features, model and policy."""
    engine = previous.need_engine()
    project = _projection(pipeline, previous)
    # It never counts: its windows may be others than the release's. An id lets it see that the request is in them already.
    knows_events = engine.resolver is not None and engine.resolver.can_observe

    def score(call: Call, end_ns: int) -> Decision:
        made: Decision = engine.score(
            project(call.request),
            call.request_id,
            call.now_ns,
            _left(pipeline, end_ns),
            False,
            call.event_id if knows_events else None,
        )
        return made

    def rank(call: Call, end_ns: int) -> Ranking:
        made: Ranking = engine.rank(
            project(call.request),
            call.candidates,
            call.k,
            _rule(previous, call.available),
            call.exclude,
            call.request_id,
            call.now_ns,
            _left(pipeline, end_ns),
            False,
            call.event_id if knows_events else None,
        )
        return made

    return rank if ranks else score


def _counting(pipeline: Pipeline) -> Callable[[Answers | None], Answers | None]:
    """What makes a rung count a request that the release had no time to count: it happened, whoever decided about it."""
    observer = pipeline.request_observer

    def count(answers: Answers | None) -> Answers | None:
        if answers is None or observer is None:
            return answers

        def counting(call: Call, end_ns: int) -> Decision | Ranking | None:
            made = answers(call, end_ns)
            if made is not None and call.observe and not call.counted:
                with contextlib.suppress(
                    CallerError, ServingError
                ):  # an event that is none is not worth the answer
                    observer.observe(call.request, call.event_id, call.now_ns)
                    call.counted = True
            return made

        return counting

    return count


def remote_inputs(pipeline: Pipeline) -> list[str]:
    """Names under which a model server is given the inputs. Raises: ConfigError where they would not tell them apart."""
    names = pipeline.input_names
    if len(set(names)) < len(names):
        raise ConfigError(
            f"two models of the release have an input `{next(n for n in names if names.count(n) > 1)}`: a server of one "
            "model cannot tell them apart"
        )
    return names


def remote_release(pipeline: Pipeline, remote: RemoteModel) -> str:
    """What answers of a model server say in `release`."""
    return f"remote:{getattr(remote, 'model', None) or pipeline.manifest.name}"


def knows_load(remote: object) -> bool:
    """Whether it is `ri.Remote`, which is told of shadow calls and load; others are asked by the Protocol alone."""
    return callable(getattr(remote, "breaker_states", None))


def sheds(pipeline: Pipeline) -> bool:
    """Whether calls of less than critical priority are being refused: no time for attempts that are not needed."""
    permits = pipeline.permits
    return bool(permits.limit) and permits.in_flight >= 0.8 * permits.limit


def remote_schema(pipeline: Pipeline) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a model server would be sent, and the output that is read: name -> (dtype, shape with None where any will do)."""
    inputs: dict[str, Any] = {}
    for model in pipeline.manifest.models:
        for name, dtype, shape in pipeline.sessions[model.role].inputs:
            if model.inputs[name].kind != "output":
                inputs[name] = (DTYPE_NAMES.get(dtype, f"ONNX type {dtype}"), shape)
    score = pipeline.manifest.score
    assert score is not None
    outputs = {
        name: (DTYPE_NAMES.get(dtype, f"ONNX type {dtype}"), shape)
        for name, dtype, shape in pipeline.sessions[score.role].outputs
        if name == score.output
    }
    return inputs, outputs


def remote_score(outputs: Mapping[str, Any], name: str, column: int, n_rows: int) -> NDArray[np.float64]:
    """The scores in what a model server gave. Raises: RemoteError."""
    try:
        rows = np.asarray(outputs[name], np.float64).reshape(n_rows, -1)
        return rows[:, column]
    except (KeyError, IndexError, TypeError, ValueError) as exc:
        raise RemoteError(
            f"the reply has no column {column} in {n_rows} rows of output `{name}`", kind="mismatch"
        ) from exc


def _remote(pipeline: Pipeline, remote: RemoteModel) -> Answers:
    """Features and policy of this release, the model on a server."""
    engine = pipeline.need_engine()
    score = pipeline.manifest.score
    assert score is not None
    names = remote_inputs(pipeline)
    release = remote_release(pipeline, remote)
    asked: Any = remote
    is_ours = knows_load(remote)

    def answer(call: Call, end_ns: int) -> Decision:
        observe = call.observe and not call.counted
        try:
            prepared = engine.prepare(
                call.request, call.now_ns, _left(pipeline, end_ns), observe, call.event_id
            )
        except CallerError as exc:
            raise CallersOwn(exc) from exc
        call.counted = call.counted or prepared.counted
        if pipeline.clock.monotonic_ns() >= end_ns:  # a source took longer than it was given
            raise DeadlineExceededError(
                "the features took all of the time that there was for the remote model"
            )
        inputs = dict(zip(names, prepared.inputs, strict=True))
        more = {"shadow": call.shadow, "shedding": sheds(pipeline)} if is_ours else {}
        outputs = asked.infer(inputs, (score.output,), end_ns=end_ns, clock=pipeline.clock, **more)
        made: Decision = engine.finish(
            prepared,
            float(remote_score(outputs, score.output, score.column, 1)[0]),
            release=release,
            rung=2,
            request_id=call.request_id,
        )
        return made

    return answer


class _Last:
    """Last scores of a release's entity: what fills them, and what reads them. Knows no pipeline."""

    def __init__(self, pipeline: Pipeline, previous: Pipeline | None, rung: Rung, lasting: Lasting) -> None:
        from retailinfer.resilience.last_scores import MAX_AGE_S, MAX_ENTITIES  # noqa: PLC0415 - for this rung alone

        entity = pipeline.spec.body.entities[entity_of(rung, pipeline.spec)]
        by_name = {field.name: field for field in pipeline.spec.fields}
        self.key_of = key_reader(tuple(by_name[name] for name in entity.key))
        # A release that comes later may have another entity under the same name of a scale.
        self.scale = (rung.scale or _model_digest(pipeline), *entity.key)
        self._scales = {pipeline.manifest.release: self.scale}
        if previous is not None:
            theirs = next((r.scale for r in previous.contract.ladder if r.kind == "last_score"), None)
            self._scales.setdefault(
                previous.manifest.release, (theirs or _model_digest(previous), *entity.key)
            )
        self.scores = lasting.scores_for(rung.max_age_s or MAX_AGE_S, rung.max_entities or MAX_ENTITIES)

    def then(self, tell: Callable[[Any], None] | None) -> Callable[[Any], None]:
        """A hook that remembers answers and hands every event on."""
        scores, key_of, scales, own = self.scores, self.key_of, self._scales, self.scale

        def remember(event: Any) -> None:
            if type(event) is Answered:
                try:
                    # a remote runs the release's own model
                    scale = scales.get(event.answer.release, own)
                    scores.remember(scale, key_of(event.request), event.answer)  # type: ignore[arg-type]  # a scorer decides
                except Exception:  # noqa: BLE001 - a key that cannot be one costs the memory, not the answer
                    scores.failures += 1
            if tell is not None:
                tell(event)

        return remember


def _last_score(pipeline: Pipeline, last: _Last) -> Answers:

    def answer(call: Call, end_ns: int) -> Decision | None:
        score = last.scores.score(last.scale, last.key_of(call.request))
        if score is None:
            return None
        return _decided(pipeline, call, None, score, rung=3)

    return answer


def _static(pipeline: Pipeline) -> Answers:
    """A rule or a prior of the release itself."""
    fallback = pipeline.fallback
    assert fallback is not None
    fields = {field.name: field for field in pipeline.spec.fields}
    prior = fallback.body.score

    def answer(call: Call, end_ns: int) -> Decision:
        action = fallback.action_for(lambda name: reads_field(call.request, fields[name]))
        return _decided(pipeline, call, action, prior, rung=4)

    return answer


def _decided(
    pipeline: Pipeline, call: Call, action: str | None, score: float | None, *, rung: int
) -> Decision:
    """A decision without a model, by the policy of now. Raises: CallersOwn where the policy's segment cannot be read."""
    try:
        made: Decision = pipeline.need_engine().finish_static(
            call.request,
            action,
            score,
            release=pipeline.manifest.release,
            rung=rung,
            request_id=call.request_id,
        )
    except CallerError as exc:
        raise CallersOwn(exc) from exc
    return made


def _popular(pipeline: Pipeline) -> Answers:
    """The release's popular list, less what is unavailable or excluded."""
    engine = pipeline.need_engine()
    fallback = pipeline.fallback
    assert fallback is not None
    order = {one: place for place, one in enumerate(fallback.body.popular)}

    def answer(call: Call, end_ns: int) -> Ranking:
        try:
            made: Ranking = engine.rank_static(
                call.candidates,
                call.k,
                available=_rule(pipeline, call.available),
                exclude=call.exclude,
                order=order,
                release=pipeline.manifest.release,
                rung=4,
                request_id=call.request_id,
            )
        except CallerError as exc:
            raise CallersOwn(exc) from exc
        return made

    return answer


# ---- small things ------------------------------------------------------------------------------------------------------


def _left(pipeline: Pipeline, end_ns: int) -> int:
    """Nanoseconds until a moment, as an engine takes them. Raises: DeadlineExceededError."""
    left = end_ns - pipeline.clock.monotonic_ns()
    if left <= 0:
        raise DeadlineExceededError("the rung's time was over before it began")
    return min(left, FOREVER_NS)


def _projection(pipeline: Pipeline, previous: Pipeline) -> Callable[[Any], Any]:
    """A request of this release as one of the release before: fields that it does not know are left out."""
    theirs = previous.spec.fields
    known = {field.wire or field.name for field in theirs} | {field.name for field in theirs}
    ours = {field.wire or field.name for field in pipeline.spec.fields} | {
        f.name for f in pipeline.spec.fields
    }
    if ours <= known or previous.spec.body.extra != "forbid":
        return lambda request: request

    def project(request: Any) -> Any:
        found = {field.name: reads_field(request, field) for field in theirs}
        return {name: value for name, value in found.items() if value is not None}

    return project


def _waits(pipeline: Pipeline) -> bool:
    return pipeline.engine is not None and pipeline.engine.waits


def _model_digest(pipeline: Pipeline) -> str:
    """What a score means is fixed by the very models."""
    manifest = pipeline.manifest
    files = {entry.file: entry.sha256 for entry in manifest.files}
    return ":".join(files[model.file] for model in manifest.models)


def _rule(pipeline: Pipeline, text: str | None) -> Any:
    """`available=` compiled for a release's own table."""
    if text is None:
        return None
    terms = parse_available(text, pipeline.spec.body.candidate or "")
    return pipeline.need_engine().compile_available(text, terms)
