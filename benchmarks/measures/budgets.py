"""Figures of what each call pays for its deadline, its permit, its event and the ladder below it, in nanoseconds.

Rules:
  * Contestants are the very same call of the same scorer, with a stage and without it; which of them it is, is switched
    outside the clock. They take turns, so that the machine's clock moves for both.
  * A figure is the difference of each round's tenth percentiles: what other processes take from a call, they take from all
    of it, and this is about its instructions.
  * The ladder is a `try` around the engine's call, a nanosecond or two. It is measured around an engine that does nothing,
    because in a real call, where code lies in memory is worth more. What two copies of a real call differ by is not counted:
    below that nothing is measurable in it. The note says what the `try` takes.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import Case, Figure, Timing, alternate, check_answers
from benchmarks.lab import Figures, Lab, measures

__all__: list[str] = []

BLOCK = 20  # calls between two readings of the clock
QUANTILE = 0.1


def own_structs(lab: Lab, scorer: Any) -> list[Any]:
    """The requests as Structs of the scorer's own type: the fastest way in."""
    return [msgspec.json.decode(body, type=scorer.request_type) for body in lab.fraud_bodies]


def switched(
    name: str, call: Callable[[Any], object], pool: Sequence[Any], switch: Callable[[], object]
) -> Case:
    """A case that sets the stage before each of its slices, outside the clock."""

    def inputs(numbers: Sequence[int]) -> list[Any]:
        switch()
        return [pool[i % len(pool)] for i in numbers]

    return Case(name, call, inputs, BLOCK)


def differences_ns(top: Timing, bottom: Timing) -> NDArray[np.float64]:
    """Of each round's fast calls."""
    return (top.rounds_us(QUANTILE) - bottom.rounds_us(QUANTILE)) * 1e3


def without_the_ladder(method: Callable[..., Any]) -> Callable[..., Any]:
    """The same method, made of its own source without the `try` around the engine's call. Raises: ValueError."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    kept: list[ast.stmt] = []
    for statement in function.body:
        kept += [*statement.body, *statement.orelse] if isinstance(statement, ast.Try) else [statement]
    if len(kept) == len(function.body) and not any(isinstance(s, ast.Try) for s in function.body):
        raise ValueError(f"{method.__qualname__} has no `try`: the ladder is called in another way")
    function.body = kept
    return _compiled(tree, method)


def without_the_pointer(method: Callable[..., Any]) -> Callable[..., Any]:
    """The same method, made of its own source with the engine as an attribute of the door. Raises: ValueError."""

    class Direct(ast.NodeTransformer):
        def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
            self.generic_visit(node)
            if isinstance(node.value, ast.Name) and (node.value.id, node.attr) == ("live", "engine"):
                return ast.copy_location(
                    ast.Attribute(ast.Name("self", ast.Load()), "_engine", ast.Load()), node
                )
            return node

    tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    reads = [s for s in function.body if isinstance(s, ast.Assign) and ast.unparse(s) == "live = self._live"]
    if len(reads) != 1:
        raise ValueError(f"{method.__qualname__} does not read the pointer once: it is called in another way")
    function.body.remove(reads[0])
    return _compiled(Direct().visit(tree), method)


def twin(method: Callable[..., Any]) -> Callable[..., Any]:
    """The same method once more, compiled of its own source."""
    return _compiled(ast.parse(textwrap.dedent(inspect.getsource(method))), method)


def _compiled(tree: ast.Module, method: Callable[..., Any]) -> Callable[..., Any]:
    names = dict(method.__globals__)  # type: ignore[attr-defined]  # of a function
    tree.body.insert(
        0, ast.ImportFrom("__future__", [ast.alias("annotations")], 0)
    )  # as in its module: the types are not there
    exec(compile(ast.fix_missing_locations(tree), "<copy>", "exec"), names)  # noqa: S102 - of our own source
    made: Callable[..., Any] = names[method.__name__]
    return made


@measures("budget_deadline_ns", "budget_permit_ns", "budget_event_ns")
def budgets(lab: Lab) -> Figures:
    """fraud-lean from a Struct through trees, the shortest call there is: what a stage costs shows best."""
    from retailinfer._native.trees import levels
    from retailinfer.deadline import FOREVER_NS

    scorer = lab.tree_scorer(levels()[-1])
    engine, structs = scorer._live.engine, own_structs(lab, scorer)
    permits, no_deadline, deadline = engine.permits, FOREVER_NS, 60_000_000_000
    heard: deque[Any] = deque(maxlen=1)
    drilled: list[Any] = []

    def timed(budget_ns: int) -> Callable[[Any], object]:
        score = engine.score
        return lambda request: score(request, None, 0, budget_ns)

    def stages(*, permit: bool = False, told: bool = False) -> Callable[[], object]:
        def switch() -> None:
            engine.set_permits(permits if permit else None)
            engine.set_hook(heard.append if told else None)
            engine.set_drill(drilled.append if told else None, 1 << 40)

        return switch

    bare, limited = timed(no_deadline), timed(deadline)
    want = [scorer.score(request).score for request in structs[:200]]
    stages(permit=True, told=True)()
    check_answers("fraud-lean with every stage", [limited(r).score for r in structs[:200]], want)  # type: ignore[attr-defined]
    assert heard[0].answer.score == want[-1]  # type: ignore[attr-defined]  # the hook was told
    assert permits.in_flight == 0
    cases = [
        switched("bare", bare, structs, stages()),
        switched("deadline", limited, structs, stages()),
        switched("permit", bare, structs, stages(permit=True)),
        switched("event", limited, structs, stages(told=True)),
    ]
    try:
        times = alternate(cases, lab.effort)
    finally:
        stages(permit=True)()
    found = {}
    for name, top, bottom in (
        ("budget_deadline_ns", "deadline", "bare"),
        ("budget_permit_ns", "permit", "bare"),
        ("budget_event_ns", "event", "deadline"),
    ):
        note = f"{times[top].us(QUANTILE):.4g} us over {times[bottom].us(QUANTILE):.4g} us"
        found[name] = Figure.of(differences_ns(times[top], times[bottom]), lower_is_better=True, note=note)
    return found


class Idle:
    """Stands where the engine would, and does nothing."""

    def score(self, *arguments: object) -> object:
        return arguments


def idle_door(scorer: Any) -> Any:
    """A door whose engine does nothing, reached in both ways."""
    from retailinfer import Scorer

    idle = object.__new__(Scorer)
    vars(idle)["_engine"] = engine = Idle()
    idle._live = msgspec.structs.replace(scorer._live, engine=engine)
    return idle


@measures("budget_pointer_ns")
def pointer(lab: Lab) -> Figures:
    """The door's `score` by the pointer to the release, and with an engine of its own, made of the same source."""
    from retailinfer import Scorer
    from retailinfer._native.trees import levels

    scorer = lab.tree_scorer(levels()[-1])
    idle, structs = idle_door(scorer), own_structs(lab, scorer)

    def bound(function: Callable[..., Any]) -> Callable[[Any], Any]:
        return lambda request: function(idle, request)

    doors = {"pointer": bound(twin(Scorer.score)), "without": bound(without_the_pointer(Scorer.score))}
    asked = [(request, None, 0, 0, False, None, True, "critical") for request in structs[:200]]
    for name, call in doors.items():
        check_answers(name, map(call, structs[:200]), asked)
    times = alternate(
        [Case.over(name, call, structs, block=10 * BLOCK) for name, call in doors.items()], lab.scaled(0.5)
    )
    note = f"{times['pointer'].us(QUANTILE) * 1e3:.4g} ns over {times['without'].us(QUANTILE) * 1e3:.4g} ns"
    price = differences_ns(times["pointer"], times["without"])
    return {"budget_pointer_ns": Figure.of(price, lower_is_better=True, note=note)}


@measures("budget_rung_ns")
def rung(lab: Lab) -> Figures:
    """The door's `score` with its ladder and without, made of the same source; and two copies of it on a real scorer."""
    from retailinfer import Scorer
    from retailinfer._native.trees import levels

    scorer = lab.tree_scorer(levels()[-1])
    idle, structs = idle_door(scorer), own_structs(lab, scorer)

    def bound(function: Callable[..., Any], door: Scorer) -> Callable[[Any], Any]:
        return lambda request: function(door, request)

    doors = {
        "ladder": bound(twin(Scorer.score), idle),
        "without": bound(without_the_ladder(Scorer.score), idle),
    }
    copies = {name: bound(twin(Scorer.score), scorer) for name in ("copy", "other copy")}
    asked = [(request, None, 0, 0, False, None, True, "critical") for request in structs[:200]]
    for name, call in doors.items():
        check_answers(name, map(call, structs[:200]), asked)
    want = [scorer.score(request).score for request in structs[:200]]
    for name, call in copies.items():
        check_answers(name, [call(request).score for request in structs[:200]], want)
    cases = [Case.over(name, call, structs, block=10 * BLOCK) for name, call in doors.items()]
    cases += [Case.over(name, call, structs, block=BLOCK) for name, call in copies.items()]
    times = alternate(cases, lab.scaled(0.5))
    price = differences_ns(times["ladder"], times["without"])
    noise = float(np.abs(differences_ns(times["copy"], times["other copy"])).max())
    note = f"a `try` of {np.median(price):.2g} ns; two copies of a call differ by up to {noise:.2g} ns"
    return {"budget_rung_ns": Figure.of(np.maximum(0.0, price - noise), lower_is_better=True, note=note)}
