"""pack: a trained model and its features become a release that can serve.

The way, in this order, and everything that does not fit raises before anything is written:
  convert (convert/) -> check the graph (preflight.py) -> match inputs with tensors, pick the score (wiring.py) -> compare with
  the trainer's own answers -> quantise where asked (quantize.py) -> golden rows, NaN rule, independence of rows (golden.py,
  trial.py) -> write (release/bundle.py)
Rules:
  * A release holds whole files and no code: ONNX graphs, JSON, MessagePack.
  * What is measured on this machine says so: CPU class and versions stand beside it in the manifest.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np

from retailinfer.authoring.convert import convert
from retailinfer.authoring.golden import (
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
from retailinfer.authoring.golden import (
    redact as redact_columns,
)
from retailinfer.authoring.preflight import DTYPE_NAMES, inspect
from retailinfer.authoring.quantize import CALIBRATION_ROWS, COMPARED_ROWS, Comparison, check_asked, choose
from retailinfer.authoring.trial import Filled, Trial, row_difference
from retailinfer.authoring.wiring import (
    Part,
    check_chains,
    check_feature_names,
    find_arrays,
    find_inputs,
    find_score,
    fixed_rows,
    outputs_of,
)
from retailinfer.contracts import Contract
from retailinfer.errors import (
    ConfigError,
    FeatureError,
    ManifestError,
    ModelError,
    SchemaMismatchError,
    SessionError,
    ShapeError,
    clip,
)
from retailinfer.features.arrow import read_table
from retailinfer.features.program import compile_program
from retailinfer.features.spec import FeatureSpec
from retailinfer.policy import Policy
from retailinfer.release.bundle import write_bundle
from retailinfer.release.golden import (
    MAX_ROWS,
    Golden,
    array_of,
    by_slot,
    cpu_class,
    encode_golden,
    hash_tensors,
)
from retailinfer.release.manifest import (
    Info,
    Machine,
    Manifest,
    ModelEntry,
    QuantizationReport,
    Read,
    ScoreRef,
    Tolerance,
    check_name,
)
from retailinfer.runtime.session import open_session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retailinfer._native.program import Program
    from retailinfer.features.arrow import Columns
    from retailinfer.runtime.session import IoEntry

__all__ = ["pack"]

Task = Literal["classification", "regression", "ranking"]
PARITY_ROWS = 512


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
    golden: Any = None,
    calibration: Any = None,
    redact: Sequence[str] = (),
    tolerance: Tolerance | Mapping[str, float] | float | None = None,
    names: Literal["match", "ignore"] = "match",
    quantize: Literal["none", "dynamic", "static", "auto"] = "none",
    engine: Literal["auto", "onnx"] = "auto",
    info: Info | Mapping[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Manifest:
    """Make a release.

    Args:
        name: of the release, `[a-z0-9][a-z0-9._-]*`.
        model: path or bytes of an ONNX file, a fitted LightGBM, XGBoost or scikit-learn model; or several as
            {"role": model}, in running order: an input named like an earlier model's output ("vector" or "tower.vector")
            takes it.
        out: directory of the release; it appears whole or not at all. The same content again is left as it is.
        features: the fitted spec. None: the release takes arrays (`score_arrays`).
        score: "auto", "output", "output[class or column]", "role.output[...]". With more than two classes it must be said.
        task: taken from the model where it is None.
        golden: table (anything with the Arrow stream interface) with the request's fields and the stored columns; at most
            64 rows of it are kept. None: rows are drawn from what the spec knows. For arrays: {input: array}.
        calibration: table whose rows fix the ranges of int8; None: rows of `golden`, others than those compared.
        redact: fields whose values are replaced in the golden rows before anything else is computed.
        tolerance: `retailinfer.release.manifest.Tolerance`, some of its fields, or the largest score difference.
        names: "match" compares the columns that the model was trained on with the spec's, in order.
        quantize: "auto" keeps int8 where it is faster on the contract's batch sizes and answers alike.
        engine: "onnx"; "auto" means the same in this version.
        info: what only people know, see `retailinfer.release.manifest.Info`.
        progress: called with a line of text before each step that takes a while.
    Returns: the manifest, which says what was found, chosen and measured.
    Raises: ModelError, SchemaMismatchError (what does not fit, and how to mend it), FeatureError (a golden row),
        ConfigError (an argument), BundleError (`out` holds another release).
    """
    return _Packing(
        name=name,
        spec=features,
        policy=policy,
        contract=contract or Contract(),
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
        engine: str,
    ) -> Manifest:
        self._check_arguments(names, engine, task)
        self.say("reading the model")
        parts = self._parts(model)
        made: _Made
        if self.spec is None:
            made = self._arrays(parts, score, golden, quantize)
        else:
            made = self._features(parts, self.spec, score, golden, calibration, names, quantize)
        self.say("writing the release")
        return self._write(out, made, task)

    # ---- arguments and models --------------------------------------------------------------------------------------

    def _check_arguments(self, names: str, engine: str, task: str | None) -> None:
        if names not in ("match", "ignore"):
            raise ConfigError(f'Expected names "match" or "ignore", got {clip(names)}')
        if engine not in ("auto", "onnx"):
            raise ConfigError(f'Expected engine "auto" or "onnx", got {clip(engine)}')
        if task not in (None, "classification", "regression", "ranking"):
            raise ConfigError(f'Expected task "classification", "regression" or "ranking", got {clip(task)}')
        for label, value in (("name", self.name), ("info.version", self.info.version or "0")):
            try:
                check_name(label, value)
            except ManifestError as exc:
                raise ConfigError(str(exc)) from exc
        if self.spec is None:
            return
        if not isinstance(self.spec, FeatureSpec):
            raise ConfigError(f"Expected a FeatureSpec as features, got `{type(self.spec).__name__}`")
        if self.spec.arrays:
            self.spec = None  # from_model: arrays it is
            return
        self._check_policy(self.spec)

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
        if body is not None and body.segment_by is not None:
            kinds = {f.name: f.type for f in spec.fields}
            if kinds.get(body.segment_by) != "str":
                raise SchemaMismatchError(
                    f"the policy's segment_by=`{clip(body.segment_by)}` is no request field of type str",
                    hint=f"fields of type str: {', '.join(n for n, k in kinds.items() if k == 'str') or 'none'}",
                )

    def _parts(self, model: Any) -> list[Part]:
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
            converted = convert(one, input_name=input_name, dtype=dtype)
            graph = inspect(converted.data, where=where)
            part = Part(role, converted, graph, open_session(graph.data))
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
    ) -> _Made:
        compile_program(spec.body)  # not fitted: said before anything else
        find_inputs(parts, spec)
        check_chains(parts)
        for part in parts:
            part.feature_names = check_feature_names(part, spec, names)  # type: ignore[assignment]  # one of the three
        self._check_rows(parts, spec)
        why = check_asked(quantize, parts, self.contract.batch_sizes)
        self.say("reading the golden rows")
        table = None if golden is None else read_table(golden, spec.body)
        nan_allowed = self._nan_allowed(parts, table, spec)
        program = compile_program(spec.body, allow_nan=nan_allowed)
        if table is not None and not nan_allowed:
            self._refuse_nan(spec, take(table, np.arange(min(table.n_rows, 100_000))))
        real, edges = self._rows(table, spec, program)
        trial = Trial(parts)
        self._observe(trial, Filled(program, spec.body, take(real, [0])))
        found = find_score(parts, score, needed=True)
        assert found is not None
        trial.select(found)
        if table is not None or calibration is not None:
            self.say("comparing with the trainer's own scores")
        self._check_parity(trial, Filled(program, spec.body, real))
        report = QuantizationReport(asked=quantize, why=why or "")  # type: ignore[arg-type]  # checked
        if why is None:
            parts, report = self._quantise(trial, spec, program, table, calibration, quantize, found)
            nan_still = nan_allowed and all(p.quantized == "none" for p in parts)
            if nan_still != nan_allowed:
                raise ModelError("a model that takes NaN was quantised")  # trees never are: cannot happen
            trial = Trial(parts, found)
        self.say("running the golden rows")
        return self._golden(trial, spec, program, real, edges, report, nan_allowed)

    def _check_rows(self, parts: Sequence[Part], spec: FeatureSpec) -> None:
        name = fixed_rows(parts, spec)
        if name is not None and self.contract.max_rows > 1:
            raise SchemaMismatchError(
                f"input `{clip(name)}` always takes one row, the contract allows {self.contract.max_rows}",
                hint="export it with a free first dimension (dynamic_axes={name: {0: 'rows'}}), or say "
                "ri.Contract(max_rows=1)",
            )

    def _nan_allowed(self, parts: Sequence[Part], table: Columns | None, spec: FeatureSpec) -> bool:
        """NaN enters only where trees alone read the numbers, and where the trainer and the converted model agree on it."""
        readers = [p for p in parts if any(s.kind == "tensor" for s in p.inputs.values())]
        return all(p.graph.trees_only and self._nan_parity(p) for p in readers)

    def _nan_parity(self, part: Part) -> bool:
        converted = part.converted
        if converted.predict is None or converted.n_features is None:
            return True  # an ONNX file: what it does with NaN is what it was exported to do
        rng = np.random.default_rng(7)
        rows = rng.normal(size=(256, converted.n_features)).astype(np.float32)
        rows[rng.random(rows.shape) < 0.3] = np.nan
        try:
            expected = converted.predict(rows)
        except Exception:  # noqa: BLE001 - a trainer that refuses NaN says so in its own way
            return False
        entry = part.session.inputs[0]
        try:
            got = part.session.run({entry[0]: rows.astype(_numpy_dtype(entry[1]))}, [str(converted.output)])
        except (SessionError, FeatureError):
            return False
        return _parity(got[str(converted.output)], expected) <= max(self.tolerance.parity, 1e-4)

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

    def _check_parity(self, trial: Trial, rows: Filled) -> None:
        """The converted model answers as the trainer does, on these rows and on random ones."""
        outputs = trial.run(rows.arrays)
        done: dict[str, dict[str, NDArray[Any]]] = {}
        for part in trial.parts:
            converted = part.converted
            if converted.predict is not None and converted.output is not None:
                feed = next(iter(trial.feeds(part, rows.arrays, done).values()))
                self._compare(part, feed, outputs[part.role][converted.output])
                entry = part.session.inputs[0]
                spread = np.nanstd(feed.astype(np.float64), axis=0) + 1e-3
                middle = np.nan_to_num(np.nanmean(feed.astype(np.float64), axis=0))
                noise = np.random.default_rng(11).normal(size=(PARITY_ROWS, feed.shape[1]))
                random = (middle + noise * np.nan_to_num(spread, nan=1.0)).astype(_numpy_dtype(entry[1]))
                got = part.session.run({entry[0]: random}, [converted.output])
                self._compare(part, random, got[converted.output])
            done[part.role] = outputs[part.role]

    def _compare(self, part: Part, feed: NDArray[Any], got: NDArray[Any]) -> None:
        assert part.converted.predict is not None
        if not part.graph.trees_only:
            feed, got = feed[~np.isnan(feed).any(axis=1)], got[~np.isnan(feed).any(axis=1)]
        if not len(feed):
            return
        difference = _parity(got, part.converted.predict(feed))
        if not difference <= self.tolerance.parity:
            raise ModelError(
                f"the converted model `{part.role}` answers up to {difference:.4g} differently from "
                f"{part.converted.source}, more than {self.tolerance.parity:g}",
                hint="values on a threshold can go either way in float32: move scaling into the feature spec; or accept "
                'it: tolerance={"parity": ...}',
            )

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
    ) -> _Made:
        context = any(t.axis == "context" for t in spec.body.tensors.values())
        filled = Filled(program, spec.body, real)
        difference = None
        if fixed_rows(trial.parts, spec) is None:
            difference = row_difference(trial, _first_context(spec, filled))
        independent = difference == 0.0
        together = independent and not context
        kept = [row for row in edges if self._scores_one(trial, spec, program, row)]
        rows = join([real, *kept[: MAX_ROWS - real.n_rows]])
        filled = Filled(program, spec.body, rows)
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
            tensors_sha256=filled.sha256,
            scores=scores.astype("<f4").tobytes(),
            actions=actions,
        )
        return _Made(trial.parts, spec, trial.score, golden, report, nan_allowed, independent, difference)

    def _scores_one(self, trial: Trial, spec: FeatureSpec, program: Program, row: Columns) -> bool:
        """Whether an edge row gives a score, and the policy an action for it."""
        try:
            scores = trial.scores(Filled(program, spec.body, row).arrays)
            if self.policy is not None:
                actions_of(self.policy, scores, segments_of(self.policy, row))
        except SchemaMismatchError:
            return False
        return True

    # ---- releases of arrays ----------------------------------------------------------------------------------------------

    def _arrays(self, parts: list[Part], score: str, golden: Any, quantize: str) -> _Made:
        if self.redact:
            raise ConfigError("redact= names fields of a feature spec, and this release has none")
        if quantize != "none":
            raise ConfigError(
                f'quantize="{quantize}" needs a feature spec', hint="pack with features=, or quantise before"
            )
        find_arrays(parts)
        inputs: dict[str, IoEntry] = {}
        for part in parts:
            for name, dtype, shape in part.session.inputs:
                if part.inputs[name].kind == "array":
                    inputs[name] = (name, dtype, shape)
        spec = FeatureSpec.from_inputs(list(inputs.values()))
        feeds = _given_feeds(golden, inputs) if golden is not None else _drawn_feeds(inputs)
        trial = Trial(parts)
        arrays = {("array", name): value for name, value in feeds.items()}
        outputs: dict[str, dict[str, NDArray[Any]]] | None
        try:
            outputs = trial.run(arrays)
        except (SchemaMismatchError, FeatureError):
            if golden is not None:
                raise
            outputs = None
        if outputs is not None:
            for part in parts:
                part.observed = {name: value.shape for name, value in outputs[part.role].items()}
        found = find_score(parts, score, needed=score != "auto" or self.policy is not None)
        made = None
        if outputs is not None:
            last = outputs[parts[-1].role]
            made = Golden(
                now_ns=0,
                n_rows=1,
                rows_per_run=1,
                arrays={name: array_of(value) for name, value in feeds.items()},
                tensors_sha256=hash_tensors(feeds[name] for name in sorted(feeds)),
                outputs_sha256=hash_tensors(last[name] for name, _, _ in parts[-1].session.outputs),
            )
        report = QuantizationReport(why="not asked for")
        trees = all(p.graph.trees_only for p in parts)
        return _Made(parts, spec, found, made, report, trees, False, None)

    # ---- the release -----------------------------------------------------------------------------------------------------

    def _write(self, out: str | os.PathLike[str], made: _Made, task: Task | None) -> Manifest:
        files: dict[str, tuple[str, bytes]] = {
            "features.json": ("features", made.spec.to_json()),
            "contract.json": ("contract", msgspec.json.encode(self.contract, order="deterministic")),
        }
        if self.policy is not None:
            files["policy.json"] = ("policy", self.policy.to_json())
        if made.spec.baseline is not None:
            files["baseline.json"] = (
                "baseline",
                msgspec.json.encode(made.spec.baseline, order="deterministic"),
            )
        if made.golden is not None:
            files["golden.msgpack"] = ("golden", encode_golden(made.golden))
        for part in made.parts:
            files[f"{part.role}.onnx"] = (f"model:{part.role}", part.graph.data)
        now = dt.datetime.now(dt.UTC)
        content = hashlib.sha256(b"".join(hashlib.sha256(d).digest() for _, (_, d) in sorted(files.items())))
        arrays = bool(made.spec.arrays)
        manifest = Manifest(
            name=self.name,
            version=self.info.version or f"{now:%Y%m%d.%H%M%S}-{content.hexdigest()[:8]}",
            task="arrays"
            if arrays and task is None
            else task or _task(made, ranks=made.spec.body.candidate is not None),
            created=f"{now:%Y-%m-%dT%H:%M:%SZ}",
            files=(),
            models=tuple(_entry(part) for part in made.parts),
            score=made.score,
            spec_fingerprint=made.spec.fingerprint,
            nan_inputs=made.nan_inputs,
            row_independent=made.row_independent,
            row_difference=made.row_difference,
            thresholds={}
            if self.policy is None
            else {b.action: b.from_score for b in self.policy.body.bands},
            tolerance=self.tolerance,
            quantization=made.report,
            machine=_machine(made.parts[0].session.version),
            reads=_reads(made.spec, self.info),
            redacted=self.redact,
            info=self.info,
        )
        return write_bundle(out, files, manifest)


@dataclass
class _Made:
    """What is written."""

    parts: list[Part]
    spec: FeatureSpec
    score: ScoreRef | None
    golden: Golden | None
    report: QuantizationReport
    nan_inputs: bool
    row_independent: bool
    row_difference: float | None


# ---- arguments -------------------------------------------------------------------------------------------------------


def _tolerance(given: Tolerance | Mapping[str, float] | float | None) -> Tolerance:
    if given is None:
        return Tolerance()
    if isinstance(given, Tolerance):
        return given
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        given = {"score": float(given)}
    try:
        return msgspec.convert(dict(given), Tolerance)  # type: ignore[arg-type]  # anything else is refused here
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
        return msgspec.convert(msgspec.to_builtins(given), Info)
    except (msgspec.ValidationError, TypeError, ValueError) as exc:
        known = ", ".join(Info.__struct_fields__)
        raise ConfigError(f"info= does not fit: {exc}", hint=f"its fields are {known}") from exc


def _check_inputs(part: Part) -> None:
    for name, dtype, _ in part.session.inputs:
        if dtype not in DTYPE_NAMES:
            raise ModelError(
                f"input {clip(name)} of model `{part.role}` has ONNX dtype {dtype}, which is not allowed",
                hint=f"allowed are {', '.join(DTYPE_NAMES.values())}; cast it inside the model",
            )


def _numpy_dtype(number: int) -> np.dtype[Any]:
    return np.dtype(object if DTYPE_NAMES[number] == "string" else DTYPE_NAMES[number])


# ---- arrays ----------------------------------------------------------------------------------------------------------


def _given_feeds(golden: Any, inputs: Mapping[str, IoEntry]) -> dict[str, NDArray[Any]]:
    if not isinstance(golden, Mapping) or set(golden) != set(inputs):
        got = sorted(golden) if isinstance(golden, Mapping) else type(golden).__name__
        raise ConfigError(f"Expected golden= as arrays for the inputs {sorted(inputs)}, got {clip(got, 100)}")
    found = {}
    for name, (_, number, _) in inputs.items():
        value, dtype = np.asarray(golden[name]), DTYPE_NAMES[number]
        if dtype != "string" and value.dtype != np.dtype(dtype):
            raise ShapeError(f"Expected dtype {dtype}, got {value.dtype}", path=f"$.{name}")
        found[name] = value
    return found


def _drawn_feeds(inputs: Mapping[str, IoEntry]) -> dict[str, NDArray[Any]]:
    """Small arrays that fit the declared shapes; a model that wants others simply gets no golden rows."""
    rng = np.random.default_rng(2024)
    found: dict[str, NDArray[Any]] = {}
    for name, number, shape in inputs.values():
        dtype = DTYPE_NAMES[number]
        sizes = tuple(3 if d is None else d for d in shape)
        n = int(np.prod(sizes)) if np.prod(sizes, dtype=np.float64) <= 1 << 22 else 0
        if n == 0:
            sizes = tuple(0 if d is None else d for d in shape)
        if dtype == "string":
            cells: NDArray[Any] = np.array([f"text {i % 3}" for i in range(n)], dtype=object)
        elif dtype.startswith("float"):
            cells = rng.normal(size=n).astype(dtype)
        else:
            cells = rng.integers(0, 2, n).astype(dtype)
        found[name] = cells.reshape(sizes) if n or 0 in sizes else np.zeros(0, cells.dtype)
    return found


# ---- the manifest ----------------------------------------------------------------------------------------------------


def _entry(part: Part) -> ModelEntry:
    return ModelEntry(
        role=part.role,
        file=f"{part.role}.onnx",
        inputs=dict(part.inputs),
        outputs=outputs_of(part),
        source=part.converted.source,
        trees_only=part.graph.trees_only,
        quantized=part.quantized,
        feature_names=part.feature_names,
    )


def _task(made: _Made, *, ranks: bool) -> Task:
    part = next(
        (p for p in made.parts if made.score is not None and p.role == made.score.role), made.parts[-1]
    )
    if ranks or part.converted.task == "ranking":
        return "ranking"
    if part.converted.task == "classification":
        return "classification"
    probability = made.score is not None and made.score.output in part.graph.probabilities
    return "classification" if probability else "regression"


def _reads(spec: FeatureSpec, info: Info) -> tuple[Read, ...]:
    """Lineage: the tables that the columns look into, and which of their columns."""
    found = []
    for name, entity in spec.body.entities.items():
        columns = tuple(
            sorted(ref.partition(".")[2] for ref in spec.body.stored if ref.partition(".")[0] == name)
        )
        if not columns:
            continue
        kinds = {c: spec.body.stored[f"{name}.{c}"] for c in columns}
        definition = msgspec.json.encode({"key": entity.key, "columns": kinds}, order="deterministic")
        found.append(
            Read(
                kind="table",
                name=name,
                columns=columns,
                owner=info.owners.get(name),
                digest=hashlib.sha256(definition).hexdigest(),
            )
        )
    return tuple(found)


def _machine(onnxruntime_version: str) -> Machine:
    libc = " ".join(part for part in platform.libc_ver() if part)
    return Machine(
        cpu=cpu_class(),
        onnxruntime=onnxruntime_version,
        retailinfer=_own_version(),
        python=platform.python_version(),
        numpy=np.__version__,
        libm=libc,
        system=f"{platform.system()} {platform.release()}",
    )


def _own_version() -> str:
    try:
        return metadata.version("retailinfer")
    except metadata.PackageNotFoundError:
        return "0+source"


# ---- rows ------------------------------------------------------------------------------------------------------------


def _evenly(n_rows: int, n: int) -> NDArray[np.int64]:
    if n_rows == 0:
        raise ConfigError("the table has no rows")
    return np.unique(np.linspace(0, n_rows - 1, min(n, n_rows)).astype(np.int64))


def _first_context(spec: FeatureSpec, filled: Filled) -> dict[tuple[str, str], NDArray[Any]]:
    """One row's context for all rows, as in a ranking: else rows would differ by more than their own cells."""
    context = {("tensor", n) for n, t in spec.body.tensors.items() if t.axis == "context"}
    context |= {
        ("mask", t.mask) for t in spec.body.tensors.values() if t.mask is not None and t.axis == "context"
    }
    return {
        key: np.repeat(value[:1], len(value), axis=0) if key in context else value
        for key, value in filled.arrays.items()
    }


def _parity(got: NDArray[Any], expected: NDArray[np.float64]) -> float:
    """Largest difference, relative above 1. A trainer that gives one number means the last column."""
    values = got.astype(np.float64)
    if expected.ndim == 1 and values.ndim == 2:
        values = values[:, -1]
    if values.shape != expected.shape:
        values, expected = values.reshape(len(values), -1), expected.reshape(len(expected), -1)
        if values.shape != expected.shape:
            return float("inf")
    if not np.isfinite(expected).all() or not np.isfinite(values).all():
        return 0.0 if np.array_equal(values, expected, equal_nan=True) else float("inf")
    return float((np.abs(values - expected) / np.maximum(1.0, np.abs(expected))).max(initial=0.0))
