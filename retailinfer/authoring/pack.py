"""pack: a trained model and its features become a release that can serve.

The way, in this order, and everything that does not fit raises before anything is written:
  convert (convert/) -> check the graph (preflight.py, facts.py) -> match inputs with tensors, pick the score (wiring.py)
  -> compare with the trainer's answers, decide about NaN (agreement.py) -> quantise where asked (quantize.py) -> golden
  rows, independence of rows (golden.py, trial.py) -> write (describe.py)
Rules:
  * A release holds whole files and no code: ONNX graphs, JSON, MessagePack.
  * What is measured on this machine says so: CPU class and versions stand beside it in the manifest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np

from retailinfer.authoring.agreement import check_parity, check_parity_of_arrays, may_take_nan
from retailinfer.authoring.arrays import array_release
from retailinfer.authoring.background import MAX_TYPICAL_ROWS, make_background, with_covers
from retailinfer.authoring.convert import EngineChoice, convert
from retailinfer.authoring.describe import Found, Task, write_release
from retailinfer.authoring.golden import (
    accepted,
    actions_of,
    choose_rows,
    join,
    moment_of,
    nan_columns,
    segments_of,
    synthetic_rows,
    take,
    types_of,
)
from retailinfer.authoring.golden import redact as redact_columns
from retailinfer.authoring.pipeline_model import taken_apart
from retailinfer.authoring.preflight import DTYPE_NAMES, Graph, inspect
from retailinfer.authoring.prune import without_labels
from retailinfer.authoring.quantize import (
    CALIBRATION_ROWS,
    COMPARED_ROWS,
    METHODS,
    Comparison,
    check_asked,
    choose,
)
from retailinfer.authoring.trees.use import forest_part, graph_to_trees
from retailinfer.authoring.trial import Filled, Trial, context_of, row_difference
from retailinfer.authoring.wiring import (
    Part,
    check_chains,
    check_feature_names,
    find_inputs,
    find_score,
    fixed_rows,
    outputs_of,
)
from retailinfer.contracts import Contract
from retailinfer.errors import ConfigError, ManifestError, ModelError, SchemaMismatchError, clip
from retailinfer.explain import check_reasons
from retailinfer.features.arrow import read_table
from retailinfer.features.program import compile_program
from retailinfer.features.spec import FeatureSpec
from retailinfer.policy import Policy
from retailinfer.release.fallback import Fallback
from retailinfer.release.golden import MAX_ROWS, Golden, by_slot
from retailinfer.release.manifest import Info, Manifest, QuantizationReport, ScoreRef, Tolerance, check_name
from retailinfer.rungs import check_ladder
from retailinfer.runtime.session import open_session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retailinfer._native.program import Program
    from retailinfer.features.canonical import Columns
    from retailinfer.runtime.session import ModelSession

__all__ = ["pack"]

MAX_NAN_ROWS = 100_000  # of the golden table, searched for NaN


def pack(
    name: str,
    *,
    model: Any,
    out: str | os.PathLike[str],
    features: FeatureSpec | None = None,
    score: str = "auto",
    task: Task | None = None,
    policy: Policy | None = None,
    contract: Contract | None = None,
    fallback: Fallback | None = None,
    golden: Any = None,
    calibration: Any = None,
    redact: Sequence[str] = (),
    tolerance: Tolerance | Mapping[str, float] | float | None = None,
    names: Literal["match", "ignore"] = "match",
    quantize: Literal["none", "dynamic", "static", "auto"] = "none",
    engine: EngineChoice = "auto",
    info: Info | Mapping[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Manifest:
    """Make a release.

    Args:
        name: of the release, `[a-z0-9][a-z0-9._-]*`.
        model: path or bytes of an ONNX file, or of a file that LightGBM (text, JSON), XGBoost (JSON, UBJSON) or CatBoost
            (JSON) wrote; a fitted LightGBM, XGBoost, CatBoost or scikit-learn model; or several as {"role": model}, in
            running order: an input named like an earlier model's output ("vector" or "tower.vector") takes it. A
            scikit-learn Pipeline over named columns means the whole of it: see `features`.
        out: directory of the release; it appears whole or not at all. The same content again is left as it is.
        features: the fitted spec. None: the release takes arrays (`score_arrays`); but with a Pipeline over named columns and
            a golden table, `FeatureSpec.from_sklearn(model, sample=golden)`, and the pipeline's last step is the model.
        score: "auto", "output", "output[class or column]", "role.output[...]". With more than two classes it must be said.
        task: taken from the model where it is None.
        contract: what the use case promises, and its fallback ladder. fallback: what the ladder's static rung answers.
        golden: table (anything with the Arrow stream interface) with the request's fields, stored columns and windows; at most
            64 rows of it are kept. None: rows are drawn from what the spec knows. For arrays: {input: array}.
        calibration: table whose rows fix the ranges of int8; None: rows of `golden`, others than those compared.
        redact: fields whose values are replaced in the golden rows before anything else is computed.
        tolerance: `retailinfer.release.manifest.Tolerance`, some of its fields, or its `score`.
        names: "match" compares the columns that the model was trained on with the spec's, in order.
        quantize: "auto" keeps int8 where it is faster on the contract's batch sizes and answers alike.
        engine: "auto" = models that are tree ensembles run in native kernels, several times as fast as in ONNX Runtime and
            with the bits of their source, everything else in ONNX Runtime; the manifest says which, and why. "trees" = a
            model that has no exact form as a forest is refused. "onnx" = ONNX Runtime runs everything.
        info: what only people know, see `retailinfer.release.manifest.Info`.
        progress: called with a line of text before each step that takes a while.
    Returns: the manifest, which says what was found, chosen and measured.
    Raises: ModelError, SchemaMismatchError (what does not fit, and how to mend it), FeatureError (a golden row),
        ConfigError (an argument), SpecError (a ladder or a fallback
        that contradicts the policy), BundleError (`out` holds another release).
    """
    model, features = taken_apart(model, features, golden)
    return _Packing(
        name=name,
        spec=features,
        policy=policy,
        contract=contract or Contract(),
        fallback=fallback,
        redact=tuple(redact),
        tolerance=_tolerance(tolerance),
        info=_info(info),
        say=progress or (lambda _: None),
    ).run(model, out, score, task, golden, calibration, names, quantize, engine)


@dataclass
class _Packing:
    """One call of `pack`: what it was given, for all steps."""

    name: str
    spec: FeatureSpec | None
    policy: Policy | None
    contract: Contract
    fallback: Fallback | None
    redact: tuple[str, ...]
    tolerance: Tolerance
    info: Info
    say: Callable[[str], None]

    def run(
        self,
        model: Any,
        out: str | os.PathLike[str],
        score: str,
        task: Task | None,
        golden: Any,
        calibration: Any,
        names: str,
        quantize: str,
        engine: EngineChoice,
    ) -> Manifest:
        self._check_arguments(names, engine, task, quantize)
        self.say("reading the model")
        parts = self._parts(model, engine)
        if self.spec is None:
            found = self._arrays(parts, score, golden, quantize, engine)
        else:
            found = self._features(parts, self.spec, score, golden, calibration, names, quantize, engine)
        self.say("writing the release")
        return write_release(
            out,
            found,
            name=self.name,
            task=task,
            policy=self.policy,
            contract=self.contract,
            fallback=self.fallback,
            tolerance=self.tolerance,
            info=self.info,
            redacted=self.redact,
        )

    # ---- arguments and models --------------------------------------------------------------------------------------

    def _check_arguments(self, names: str, engine: str, task: str | None, quantize: str) -> None:
        if quantize not in METHODS:
            raise ConfigError(f"Expected quantize= one of {METHODS}, got {clip(quantize)}")
        if names not in ("match", "ignore"):
            raise ConfigError(f'Expected names "match" or "ignore", got {clip(names)}')
        if engine not in ("auto", "onnx", "trees"):
            raise ConfigError(f'Expected engine "auto", "onnx" or "trees", got {clip(engine)}')
        if engine == "trees" and quantize != "none":
            raise ConfigError("trees are not quantised", hint='say quantize="none", or engine="onnx"')
        if task not in (None, "classification", "regression", "ranking"):
            raise ConfigError(f'Expected task "classification", "regression" or "ranking", got {clip(task)}')
        for label, value in (("name", self.name), ("info.version", self.info.version or "0")):
            try:
                check_name(label, value)
            except ManifestError as exc:
                raise ConfigError(str(exc)) from exc
        if self.fallback is not None and not isinstance(self.fallback, Fallback):
            raise ConfigError(f"Expected fallback= as ri.Fallback, got `{type(self.fallback).__name__}`")
        if self.spec is None:
            self._refuse_reasons()
            check_ladder(self.contract, self.policy, None, self.fallback)
            return
        if not isinstance(self.spec, FeatureSpec):
            raise ConfigError(f"Expected a FeatureSpec as features, got `{type(self.spec).__name__}`")
        if self.spec.arrays:
            self.spec = None  # from_model: arrays it is
            self._refuse_reasons()
            check_ladder(self.contract, self.policy, None, self.fallback)
            return
        self._check_policy(self.spec)
        check_ladder(self.contract, self.policy, self.spec, self.fallback)
        # As it will be loaded: the order of mappings is that of the file.
        self.spec = FeatureSpec.from_body(
            FeatureSpec.from_json(self.spec.to_json()).body, baseline=self.spec.baseline
        )

    def _refuse_reasons(self) -> None:
        if self.policy is not None and self.policy.body.n_reasons:
            raise ConfigError(
                "the policy asks for reasons, and a release of arrays has no fields to name",
                hint="pack with features=, or a policy with n_reasons=0",
            )

    def _check_policy(self, spec: FeatureSpec) -> None:
        """Columns may send a request to review, and segments read a field: the policy must know what that means."""
        outcomes = ("unknown", "null", "on_stale", "on_unavailable")
        reviewing = [c.name for c in spec.columns if any(getattr(c, o) == "review" for o in outcomes)]
        body = None if self.policy is None else self.policy.body
        if reviewing and (body is None or body.review is None):
            raise SchemaMismatchError(
                f'column `{reviewing[0]}` says "review", and the policy has no such action',
                hint='policy=ri.Policy([...], review="action") names it; or give the column a default',
            )
        if self.policy is not None:
            check_reasons(self.policy, spec.body)
        if body is not None and body.segment_by is not None:
            kinds = {f.name: f.type for f in spec.fields}
            if kinds.get(body.segment_by) != "str":
                raise SchemaMismatchError(
                    f"the policy's segment_by={clip(body.segment_by)} is no request field of type str",
                    hint=f"fields of type str: {', '.join(n for n, k in kinds.items() if k == 'str') or 'none'}",
                )

    def _parts(self, model: Any, engine: EngineChoice) -> list[Part]:
        models = dict(model) if isinstance(model, Mapping) else {"model": model}
        if not models:
            raise ConfigError("Expected at least one model, got none")
        parts: list[Part] = []
        for role, one in models.items():
            try:
                check_name("role of a model", role)
            except ManifestError as exc:
                raise ConfigError(str(exc)) from exc
            if len(role) > 48:
                raise ConfigError(f"Expected the role of a model in at most 48 characters, got {clip(role)}")
            input_name, dtype = self._converted_input(role)
            where = "the model" if len(models) == 1 else f"model `{role}`"
            converted = convert(one, input_name=input_name, dtype=dtype, engine=engine)
            part, differs = None, False
            if converted.forest is not None:
                self.say("comparing the trees with their source")
                part = forest_part(role, converted, must=engine == "trees")
                if part is None:  # a bit differs: then the other engine
                    differs = True
                    converted = convert(one, input_name=input_name, dtype=dtype, engine="onnx")
                    converted = replace(converted, why="its trees do not have the bits of their source")
            if part is None:
                graph = inspect(converted.data, where=where)
                part = Part(role, converted, graph, _open(graph, where), why=converted.why, differs=differs)
            _check_inputs(part)
            outputs_of(part)
            parts.append(part)
        return parts

    def _converted_input(self, role: str) -> tuple[str, str]:
        """What the one input of a converted model is called: as a tensor, so that it is found by its name."""
        if self.spec is None:
            return "features", "float32"
        tensors = self.spec.body.tensors
        name = role if role in tensors else next(iter(tensors)) if len(tensors) == 1 else "features"
        return name, tensors[name].dtype if name in tensors else "float32"

    # ---- releases of arrays ---------------------------------------------------------------------------------------------

    def _arrays(
        self, parts: list[Part], score: str, golden: Any, quantize: str, engine: EngineChoice
    ) -> Found:
        if self.redact:
            raise ConfigError("redact= names fields of a feature spec, and this release has none")
        if quantize != "none":
            raise ConfigError(
                f'quantize="{quantize}" needs a feature spec', hint="pack with features=, or quantise before"
            )
        for part in parts:
            check_parity_of_arrays(part, self.tolerance.parity)
        self._grow(parts, engine)
        return array_release(parts, score, golden, needs_score=self.policy is not None)

    # ---- releases with features ----------------------------------------------------------------------------------------

    def _features(
        self,
        parts: list[Part],
        spec: FeatureSpec,
        score: str,
        golden: Any,
        calibration: Any,
        names: str,
        quantize: str,
        engine: EngineChoice,
    ) -> Found:
        compile_program(spec.body)  # a spec that is not fitted: said before anything about models
        find_inputs(parts, spec)
        check_chains(parts)
        for part in parts:
            part.feature_names = check_feature_names(part, spec, names)  # type: ignore[assignment]  # one of the three
        self._check_rows(parts, spec)
        why = check_asked(quantize, parts, self.contract.batch_sizes)
        self.say("reading the golden rows")
        table = None if golden is None else read_table(golden, spec.body)
        program = compile_program(spec.body)
        real, edges = self._rows(table, spec, program)
        trial = Trial(parts, context=context_of(spec))
        nan_allowed = may_take_nan(trial, Filled(program, spec.body, real).arrays, self.tolerance.parity)
        if not nan_allowed:
            if table is not None:
                self._refuse_nan(spec, take(table, np.arange(min(table.n_rows, MAX_NAN_ROWS))))
            program = compile_program(spec.body, allow_nan=False)
            real, edges = self._rows(table, spec, program)
        one = Filled(program, spec.body, take(real, [0]))
        self._observe(trial, one)
        found = find_score(parts, score, needed=True)
        assert found is not None
        if _prune(parts, found):
            trial = Trial(parts, context=trial.context)
            self._observe(trial, one)
        trial.select(found)
        self.say("comparing with the trainer's own scores")
        check_parity(trial, Filled(program, spec.body, real).arrays, self.tolerance.parity)
        report = QuantizationReport(asked=quantize, why=why or "")  # type: ignore[arg-type]  # checked
        if why is None:
            parts, report = self._quantise(trial, spec, program, table, calibration, quantize, found)
            trial = Trial(parts, found, context=trial.context)
        if self._grow(parts, engine):
            trial = Trial(parts, found, context=trial.context)
        typical = Filled(program, spec.body, self._typical(table, spec, program, real)).arrays
        if with_covers(parts, typical):
            trial = Trial(parts, found, context=trial.context)
        self.say("running the golden rows")
        made = self._golden(trial, spec, program, real, edges, report, nan_allowed)
        made.background = make_background(spec, typical)
        return made

    def _typical(self, table: Columns | None, spec: FeatureSpec, program: Program, real: Columns) -> Columns:
        """Rows from which reasons are measured: of the whole golden table, redacted as golden rows are; else drawn ones."""
        if table is None:
            return real
        rows = take(redact_columns(table, spec, self.redact), _evenly(table.n_rows, MAX_TYPICAL_ROWS))
        return accepted(program, spec, rows)

    def _grow(self, parts: Sequence[Part], engine: EngineChoice) -> bool:
        """ONNX graphs that are nothing but trees become forests. True where one did."""
        changed = False
        for part in parts:
            if engine != "onnx" and part.trees is None and part.quantized == "none" and not part.differs:
                if part.graph.has_trees:
                    self.say(f"reading the trees of model `{part.role}`")
                changed |= graph_to_trees(part, must=engine == "trees")
        return changed

    def _check_rows(self, parts: Sequence[Part], spec: FeatureSpec) -> None:
        name = fixed_rows(parts, spec)
        if name is not None and self.contract.max_rows > 1:
            raise SchemaMismatchError(
                f"input {clip(name)} always takes one row, the contract allows {self.contract.max_rows}",
                hint="export it with a free first dimension (dynamic_axes={name: {0: 'rows'}}), or say "
                "ri.Contract(max_rows=1)",
            )

    def _refuse_nan(self, spec: FeatureSpec, table: Columns) -> None:
        bad = nan_columns(spec, table)
        if bad:
            raise SchemaMismatchError(
                f"columns {', '.join(f'`{n}`' for n in bad[:10])} are NaN in golden rows, and this model cannot take NaN",
                hint='give each a default: null=0.0, unknown=0.0; or say null="refuse". Only models that are nothing but '
                "trees may receive NaN",
            )

    def _rows(
        self, table: Columns | None, spec: FeatureSpec, program: Program
    ) -> tuple[Columns, list[Columns]]:
        if table is None:
            if self.redact:
                raise ConfigError("redact= without golden=: rows that are drawn hold nothing to redact")
            drawn = synthetic_rows(spec, program)
            if drawn is None:
                raise ConfigError(
                    "the spec refuses every row that could be drawn from what it knows",
                    hint="give golden=table",
                )
            return drawn
        # Redacting comes first, so that not even the choice of rows depends on what is replaced.
        return choose_rows(redact_columns(table, spec, self.redact), spec, program)

    def _observe(self, trial: Trial, one: Filled) -> None:
        """Run one row, to see the shapes that models do not declare."""
        for role, outputs in trial.run(one.arrays).items():
            part = next(p for p in trial.parts if p.role == role)
            part.observed = {name: value.shape for name, value in outputs.items()}

    def _quantise(
        self,
        trial: Trial,
        spec: FeatureSpec,
        program: Program,
        table: Columns | None,
        calibration: Any,
        asked: str,
        score: ScoreRef,
    ) -> tuple[list[Part], QuantizationReport]:
        if table is None and calibration is None:
            raise ConfigError(
                f'quantize="{asked}" needs real rows to calibrate and compare',
                hint="give golden= or calibration=",
            )
        n_wanted = CALIBRATION_ROWS + COMPARED_ROWS
        if calibration is None:
            assert table is not None
            rows = take(table, _evenly(table.n_rows, n_wanted))
            calibrate, compare = (
                take(rows, np.arange(0, rows.n_rows, 2)),
                take(rows, np.arange(1, rows.n_rows, 2)),
            )
        else:
            given = read_table(calibration, spec.body)
            calibrate = take(given, _evenly(given.n_rows, CALIBRATION_ROWS))
            self._refuse_nan(spec, calibrate)
            others = table if table is not None and table.n_rows >= 64 else given
            compare = take(others, _evenly(others.n_rows, COMPARED_ROWS))
        calibrate, compare = (accepted(program, spec, rows) for rows in (calibrate, compare))
        part = next(p for p in trial.parts if p.role == score.role)
        return choose(
            trial,
            asked,
            Comparison(
                calibration=Filled(program, spec.body, calibrate).arrays,
                compared=Filled(program, spec.body, compare).arrays,
                segments=[None] * compare.n_rows
                if self.policy is None
                else segments_of(self.policy, compare),
                batch_sizes=self.contract.batch_sizes,
                tolerance=self.tolerance,
                policy=self.policy,
                relative=score.output not in part.graph.probabilities,
            ),
            progress=self.say,
        )

    def _golden(
        self,
        trial: Trial,
        spec: FeatureSpec,
        program: Program,
        real: Columns,
        edges: Sequence[Columns],
        report: QuantizationReport,
        nan_allowed: bool,
    ) -> Found:
        kept = [row for row in edges if self._scores_one(trial, spec, program, row)]
        rows = join([real, *kept[: MAX_ROWS - real.n_rows]])
        filled = Filled(program, spec.body, rows)
        difference = None
        if fixed_rows(trial.parts, spec) is None:
            # Of the very rows that are recorded, edges among them: a host that loads them compares these alone and in company.
            difference = row_difference(trial, filled.arrays)
        independent = difference == 0.0
        together = independent and not trial.context  # golden rows have a context each
        per_run = rows.n_rows if together else 1
        scores = trial.scores(filled.arrays, rows_per_run=per_run)
        actions = None
        if self.policy is not None:
            actions = actions_of(self.policy, scores, segments_of(self.policy, rows))
        golden = Golden(
            now_ns=moment_of(rows, spec),
            n_rows=rows.n_rows,
            rows_per_run=per_run,
            columns=by_slot({n: c for n, c in rows.by_name.items() if c is not None}, types_of(spec)),
            states={name: states.tobytes() for name, states in (rows.states or {}).items() if states.any()},
            tensors_sha256=filled.sha256,
            scores=scores.astype("<f4").tobytes(),
            actions=actions,
        )
        return Found(trial.parts, spec, trial.score, golden, report, nan_allowed, independent, difference)

    def _scores_one(self, trial: Trial, spec: FeatureSpec, program: Program, row: Columns) -> bool:
        """Whether an edge row gives a score, and the policy an action for it."""
        try:
            scores = trial.scores(Filled(program, spec.body, row).arrays)
            if self.policy is not None:
                actions_of(self.policy, scores, segments_of(self.policy, row))
        except SchemaMismatchError:
            return False
        return True


# ---- arguments -------------------------------------------------------------------------------------------------------


def _tolerance(given: Tolerance | Mapping[str, float] | float | None) -> Tolerance:
    if given is None:
        return Tolerance()
    if isinstance(given, Tolerance):
        return given
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        given = {"score": float(given)}
    try:
        return msgspec.convert(_builtins(given), Tolerance)
    except (msgspec.ValidationError, TypeError, ValueError) as exc:
        raise ConfigError(
            f"Expected tolerance= as a number or fields of Tolerance, got {clip(given, 80)}: {exc}"
        ) from exc


def _info(given: Info | Mapping[str, Any] | None) -> Info:
    if given is None:
        return Info()
    if isinstance(given, Info):
        return given
    try:
        return msgspec.convert(_builtins(given), Info)
    except (msgspec.ValidationError, TypeError, ValueError) as exc:
        known = ", ".join(Info.__struct_fields__)
        raise ConfigError(f"info= does not fit: {exc}", hint=f"its fields are {known}") from exc


def _builtins(value: Any) -> Any:
    """The same without NumPy's scalars, which metrics usually are."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {key: _builtins(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_builtins(one) for one in value]
    return msgspec.to_builtins(value)


def _open(graph: Graph, where: str) -> ModelSession:
    """A session; where ONNX Runtime refuses the model without saying because of what, its operators are listed."""
    try:
        return open_session(graph.data)
    except ModelError as exc:
        if any(op in str(exc) for op in graph.operators):
            raise
        raise ModelError(
            f"{where}: {exc}", hint=f"its operators are {', '.join(graph.operators[:30])}"
        ) from exc


def _check_inputs(part: Part) -> None:
    for name, dtype, _ in part.session.inputs:
        if dtype not in DTYPE_NAMES:
            raise ModelError(
                f"input {clip(name)} of model `{part.role}` has ONNX dtype {dtype}, which is not allowed",
                hint=f"allowed are {', '.join(DTYPE_NAMES.values())}; cast it inside the model",
            )


def _prune(parts: Sequence[Part], score: ScoreRef) -> bool:
    """Take labels that nobody reads out of the graphs. True where a graph has changed."""
    changed = False
    for part in parts:
        if part.trees is not None:
            continue  # a forest has one output
        keep = {score.output} if part.role == score.role else set[str]()
        keep |= {
            s.name
            for other in parts
            for s in other.inputs.values()
            if s.kind == "output" and s.role == part.role
        }
        keep |= {part.converted.output} if part.converted.output is not None else set()
        data = without_labels(part.graph.data, keep)
        if data is None:
            continue
        changed = True
        where = f"model `{part.role}`"
        graph = inspect(data, where=where)
        part.graph = replace(graph, unzipped=part.graph.unzipped)
        part.session = _open(part.graph, where)
        part.observed.clear()
    return changed


def _evenly(n_rows: int, n: int) -> NDArray[np.int64]:
    if n_rows == 0:
        raise ConfigError("the table has no rows")
    return np.unique(np.linspace(0, n_rows - 1, min(n, n_rows)).astype(np.int64))
