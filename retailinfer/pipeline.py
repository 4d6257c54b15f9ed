"""One release, ready to answer: the only file that joins features, tables, models and policy.

Rules:
  * Everything that does not depend on a request happens here, once, in this order: read and verify the files, parse, open
    the models from those bytes, compile the features, check that all of it fits, replay the golden rows, bind tables, measure.
  * Whatever fails raises before anything can answer; nothing is half loaded.
  * After loading, a pipeline never changes. Where a request goes from here: `_native/engine.pyx`.
The front doors on top are scorer.py and ranker.py.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import msgspec
import numpy as np

from retailinfer._native.admission import Permits
from retailinfer._native.engine import Engine
from retailinfer._native.engine import Occlusion as EngineOcclusion
from retailinfer._native.ort import OrtModel
from retailinfer._native.program import RequestReader
from retailinfer.clock import Clock, SystemClock
from retailinfer.contracts import Contract, Decision, Ranking
from retailinfer.cpus import usable_cpus
from retailinfer.deadline import budget_ns
from retailinfer.errors import (
    BundleError,
    ConfigError,
    FeatureError,
    FeatureTypeError,
    GoldenMismatchError,
    ManifestError,
    SchemaMismatchError,
    ScoreError,
    ServingError,
    SpecError,
    clip,
)
from retailinfer.features.canonical import Canonical, Columns
from retailinfer.features.program import compile_program, request_struct, sections, slot_names, slot_types
from retailinfer.features.spec import FeatureSpec
from retailinfer.features.transform import NUMPY_DTYPES, fill
from retailinfer.life import begin_again_in_children
from retailinfer.limits import HOLD_GIL_BELOW_US, MAX_BYTES, MAX_DEPTH, MAX_WAITING
from retailinfer.monitoring.events import Answered
from retailinfer.policy import Policy
from retailinfer.release import golden as golden_rows
from retailinfer.release.bundle import Bundle, check_fallback, read_bundle, resolve_trust
from retailinfer.release.fallback import Fallback
from retailinfer.release.manifest import same_but_policy
from retailinfer.rungs import check_ladder, laid_over
from retailinfer.runtime.session import Backend, ModelSession, onnxruntime_version, open_session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retailinfer._native.engine import EntityPlan
    from retailinfer._native.program import Program
    from retailinfer._native.reasons import ForestReasons
    from retailinfer._native.resolve import Observer, Resolver
    from retailinfer.contracts import Reason
    from retailinfer.explain import Explainer, Named, Occlusion
    from retailinfer.release.manifest import InputSource, Manifest
    from retailinfer.release.overrides import Applied, Moved, Refused
    from retailinfer.release.statements import Override
    from retailinfer.release.trust import LogEntry
    from retailinfer.release.trust_files import Trust
    from retailinfer.runtime.trees import TreeSession
    from retailinfer.store.store import Store

__all__ = ["Pipeline", "action_of", "new_permits"]

MOST_DEPTH = 63  # what a thread with a stack of 64 KiB can decode, and what the counter of levels holds
# In the trace of every answer of a release whose signature nobody has verified.
UNSIGNED = "release: unsigned"
TILE_ROWS = 512  # that a model is given at once, as in the engine
# Longer integers are no ids; and Python hashes integers without a seed, so that longer ones could be made to collide.
Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
DTYPE_NAMES = {1: "float32", 6: "int32", 7: "int64", 8: "string", 9: "bool", 11: "float64"}


class Pipeline:
    """A loaded release.

    Attributes:
        is_twin: made by `twin`; what it shares is another one's.
        manifest, spec, policy, fallback: of the release. contract: too, with what configuration lays over it.
        sessions: model role -> session, in running order.
        engine: None for a release that takes arrays only.
        permits: how many calls may be under way in this process.
        row_independent: as measured here; False makes every row run alone.
        overrides: of thresholds, that hold now or will; `policy_in_force` has them, `policy` is the release's own.
    """

    is_twin = False

    def __init__(
        self,
        bundle: Bundle,
        *,
        store: Store | None = None,
        ranks: bool = False,
        backend: Backend = "auto",
        max_bytes: int = MAX_BYTES,
        max_depth: int = MAX_DEPTH,
        hold_gil_below_us: float = HOLD_GIL_BELOW_US,
        max_in_flight: int | None = None,
        max_waiting: int = MAX_WAITING,
        contract: Mapping[str, Any] | str | os.PathLike[str] | None = None,
        permits: Permits | None = None,
    ) -> None:
        _check_settings(store, max_bytes, max_depth, hold_gil_below_us)
        self.bundle = bundle
        self.manifest: Manifest = bundle.manifest
        spec = bundle.read("features", FeatureSpec.from_json)
        if spec is None:
            raise ManifestError("the release has no features.json", hint="pack it again")
        if spec.fingerprint != self.manifest.spec_fingerprint:
            raise ManifestError(
                "features.json is not the one that the manifest was written for", hint="pack it again"
            )
        self.spec: FeatureSpec = spec
        self._check_lineage(store)
        self.policy: Policy | None = bundle.read("policy", Policy.from_json)
        packed = bundle.read("contract", _decode_contract) or Contract()
        self.contract: Contract = laid_over(packed, contract)
        self.fallback: Fallback | None = bundle.read("fallback", Fallback.from_json)
        self._check_ladder(packed)
        self.sessions: dict[str, ModelSession] = {}
        for model in self.manifest.models:
            # A ranker runs tiles of up to 512 rows, so no more plans of memory than that are ever kept.
            opened: Callable[[bytes], ModelSession] = (
                partial(_open_trees, sizes=(1, TILE_ROWS) if ranks else (1, *self.contract.batch_sizes))
                if model.engine == "trees"
                else partial(open_session, backend=backend, many_rows=ranks)
            )
            session = bundle.read(f"model:{model.role}", opened)
            if session is None:
                raise ManifestError(f"the release has no file of model `{model.role}`", hint="pack it again")
            have = [name for name, _, _ in session.outputs]
            if [o.name for o in model.outputs] != have:
                raise SchemaMismatchError(
                    f"the manifest lists outputs {[o.name for o in model.outputs]}, the model has {have} - at `{model.role}`"
                )
            self.sessions[model.role] = session
        self.row_independent = self.manifest.row_independent
        self.engine: Engine | None = None
        self.program: Program | None = None
        self._explainer: Explainer | None = None
        self._named: Named | None = None  # None: decisions have no reasons
        self._reasons: ForestReasons | None = None
        self._occlusion: Occlusion | None = None
        self._keep: list[Any] = []  # subscriptions to tables live as long as the pipeline
        self._store = store
        self._ranks = ranks
        self._steps: tuple[Applied, ...] = ()  # thresholds that operators have moved: now, and when that ends
        self.overrides: tuple[Override, ...] = ()
        self.clock: Clock = SystemClock() if store is None else store.clock
        self.permits = new_permits(max_in_flight, max_waiting, self.clock) if permits is None else permits
        self._accept: Callable[[], None] | None = None
        self.budget_ns = budget_ns(self.contract.deadline_ms)
        self._observers: dict[str, Observer] = {}
        if spec.arrays:
            if ranks:
                raise ConfigError("this release takes arrays: it knows no candidates", hint="use Scorer.load")
            self._check_array_inputs()
            self._replay(self._replay_arrays)
            return
        try:
            self.program = compile_program(spec.body, allow_nan=self.manifest.nan_inputs)
        except SpecError as exc:
            raise ManifestError(
                f"features.json cannot be used: {exc}", hint="pack the release again"
            ) from exc
        inputs = self.inputs = self._inputs()
        if self._takes_one_row(ranks=ranks):
            self.row_independent = False  # so that rows run alone
        self._select_score()
        self._segment_slot()
        self._replay(self._replay_golden)
        if not ranks:
            self._prepare_reasons()
        self._parts = self._engine_parts(inputs, store, ranks, max_bytes, max_depth, hold_gil_below_us)
        self.engine = self._new_engine()
        self._prepare_observers(store)
        self.engine.calibrate()
        self._follow_items()

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str] | Mapping[str, bytes],
        *,
        trust: str | os.PathLike[str] | Trust | None,
        strict_paths: bool = False,
        instead_of: Manifest | None = None,
        beside: Pipeline | None = None,
        expected: str | None = None,
        chosen: bool = True,
        remember: bool = True,
        room: Callable[[], None] | None = None,
        **options: Any,
    ) -> Pipeline:
        """Read, verify and build; what was accepted is remembered last.

        Args:
            instead_of: of the release in whose place this one may answer; where signatures count, it must name this one.
            beside: a pipeline with these very options; its models and features are shared by a release that differs in its
                policy alone.
            expected, chosen: as `read_bundle` takes them.
            room: called before models are opened, which a release that differs in its policy alone needs none of; it raises
                where there is no room for them.
            remember: False = the caller does so, once it knows that the release will answer.
        Raises: BundleError, ConfigError.
        """
        believed = resolve_trust(trust)
        if not isinstance(source, (str, os.PathLike, Mapping)):
            raise ConfigError(
                f"Expected a release's directory, or its files by name, got `{type(source).__name__}`"
            )
        bundle = read_bundle(
            source, strict_paths=strict_paths, trust=believed, expected=expected, chosen=chosen
        )
        if believed is not None and instead_of is not None:
            check_fallback(bundle.manifest, instead_of)
        shared = beside is not None and beside.differs_in_policy(bundle)
        if room is not None and not shared:
            room()
        if believed is not None:
            believed.try_release(bundle.manifest, bundle.files)
        pipeline = beside.with_policy(bundle) if beside is not None and shared else cls(bundle, **options)
        if believed is not None and instead_of is None:
            said = None if bundle.verdict is None else bundle.verdict.statement
            pipeline._accept = partial(
                believed.remember, bundle.manifest.name, bundle.manifest.digest, statement=said
            )
        if remember:
            try:
                pipeline.remember()
            except BundleError:
                pipeline.close()
                raise
        return pipeline

    def remember(self) -> None:
        """Keep on this host that the release was accepted, so that nothing older is. Raises: BundleError."""
        if self._accept is not None:
            self._accept()

    # ---- another policy, the same models -----------------------------------------------------------------------------

    def differs_in_policy(self, bundle: Bundle) -> bool:
        """Whether a release brings these models and features, and at most another policy."""
        return self.engine is not None and same_but_policy(self.manifest, bundle.manifest)

    def with_policy(self, bundle: Bundle) -> Pipeline:
        """A release that `differs_in_policy` from this one, ready to answer.

        Models, features, tables and measurements are shared, and the bytes of files that both have; its golden rows are
        replayed. Raises: BundleError, SpecError.
        """
        made = self._copy()
        made.bundle, made.manifest = self._with_our_bytes(bundle), bundle.manifest
        made.policy = bundle.read("policy", Policy.from_json)
        made._steps, made.overrides = (), ()
        made._check_ladder(self.contract)
        made._segment_slot()
        made._replay(made._replay_golden)
        if not self._ranks and not _same_reasons(self.policy, made.policy):
            made._named = made._reasons = made._occlusion = None
            made._prepare_reasons()
        return made._ready(self)

    def _with_our_bytes(self, bundle: Bundle) -> Bundle:
        """The same, so that a process does not hold a model's file twice."""
        ours = {entry.sha256: self.bundle.files[entry.file] for entry in self.manifest.files}
        files = {
            entry.file: ours.get(entry.sha256, bundle.files[entry.file]) for entry in bundle.manifest.files
        }
        return Bundle(bundle.manifest, files, bundle.origin, bundle.verdict)

    def with_overrides(self, log: Iterable[LogEntry]) -> Pipeline:
        """This release with the thresholds that operators have moved, until each of them ends; itself where nothing changes.

        Args:
            log: overrides and lifts that count, as `Registry.overrides` tells them; of other releases too.
        """
        if self.policy is None or self.engine is None or self._ranks:  # rankings are decided by no threshold
            return self
        from retailinfer.release.overrides import open_overrides, schedule  # noqa: PLC0415 - for those who move thresholds
        from retailinfer.release.statements import moment_text  # noqa: PLC0415 - likewise

        now_s, entries = self.clock.wall_ns() // 10**9, tuple(log)
        coming = tuple(open_overrides(entries, digest=self.manifest.digest, now_s=now_s))
        now = moment_text(now_s)
        if coming == tuple(one for one in self.overrides if one.until > now):
            return self
        made = self._copy()
        made.overrides = coming
        made._steps = schedule(self.policy, entries, digest=self.manifest.digest, now_s=now_s)
        return made._ready(self)

    @property
    def policy_in_force(self) -> Policy | None:
        """The policy with the thresholds that hold now."""
        step = self._step()
        return self.policy if step is None else step.policy

    @property
    def moved(self) -> tuple[Moved, ...]:
        """Thresholds that an operator has moved, and that are not back yet."""
        step = self._step()
        return () if step is None else step.moved

    @property
    def refused(self) -> tuple[Refused, ...]:
        """Overrides that would hold now, and do not fit the policy or those before them."""
        step = self._step()
        return () if step is None else step.refused

    def _step(self) -> Applied | None:
        if not self._steps or self.engine is None:
            return None
        # the engine's word, so that tables and calls never differ
        return self._steps[-1 - self.engine.moves_left()]

    def twin(self, permits: Permits) -> Pipeline:
        """Another way into this release: with permits, a hook and counts of its own. It is not told of new tables: the release
        itself is, for as long as that is kept too.
        """
        assert self.engine is not None
        made = self._copy()
        made.is_twin, made.permits, made._parts = True, permits, {**self._parts, "permits": permits}
        made.engine = made._new_engine()
        made.engine.calibrate_as(self.engine)
        return made

    def _copy(self) -> Pipeline:
        """Another one of the same parts, models and tables included; what follows tables or refers back is its own."""
        made = Pipeline.__new__(Pipeline)
        made.__dict__.update(self.__dict__)
        made._keep = []
        made._accept = None
        made._explainer = None  # it refers to its pipeline, weakly
        return made

    def _ready(self, like: Pipeline) -> Pipeline:
        """With an engine of its own, which knows what that of `like` has measured: nothing is timed again."""
        assert like.engine is not None
        self.engine = self._new_engine()
        self.engine.calibrate_as(like.engine)
        self._follow_items()
        return self

    def close(self) -> None:
        """Stop following tables. Answers under way finish."""
        for stop in self._keep:
            stop()
        self._keep.clear()

    def _check_lineage(self, store: Store | None) -> None:
        """What the features read is what the manifest lists, and what the store lets a release of this name read.

        Raises: ManifestError, AccessError.
        """
        body = self.spec.body
        if not (body.entities or body.streams or self.manifest.reads):
            return
        from retailinfer.features.lineage import lineage  # noqa: PLC0415 - for releases that look something up

        reads = lineage(body)
        listed = {(one.kind, one.name): (one.columns, one.digest) for one in self.manifest.reads}
        found = {(one.kind, one.name): (one.columns, one.digest) for one in reads}
        twice = len(listed) != len(self.manifest.reads)
        if twice or listed != found:
            keys = [(one.kind, one.name) for one in self.manifest.reads]
            kind, name = min(
                k for k in {*listed, *found} if listed.get(k) != found.get(k) or keys.count(k) > 1
            )
            raise ManifestError(
                f"the manifest and features.json do not agree on what is read: {kind} {clip(name)} - at `$.reads`",
                hint="pack the release again",
            )
        if store is not None:
            store.check_access(self.manifest, reads, body.entities)

    def _check_ladder(self, packed: Contract) -> None:
        """Raises: ManifestError where the release contradicts itself; SpecError where what was laid over it does."""
        try:
            check_ladder(self.contract, self.policy, self.spec, self.fallback)
        except SpecError as exc:
            if self.contract is not packed:
                raise
            raise ManifestError(
                f"the ladder of the release cannot be used: {exc}", hint="pack the release again"
            ) from exc

    # ---- models ----------------------------------------------------------------------------------------------------

    @property
    def is_chain(self) -> bool:
        """Several models, or one through the Python API: their scores come through `chain_scores`."""
        return len(self.sessions) > 1 or next(iter(self.sessions.values())).backend == "python"

    def _inputs(self) -> list[tuple[InputSource, bool, int, tuple[int, ...]]]:
        """(source, is mask, tensor number, shape of a row) of what the models take from the features, checked."""
        assert self.program is not None
        tensors = {t[0]: i for i, t in enumerate(self.program.tensors)}
        masks = {t[4]: i for i, t in enumerate(self.program.tensors) if t[4] is not None}
        found: list[tuple[InputSource, bool, int, tuple[int, ...]]] = []
        for model in self.manifest.models:
            session = self.sessions[model.role]
            entries = {name: (dtype, shape) for name, dtype, shape in session.inputs}
            if set(entries) != set(model.inputs):
                raise SchemaMismatchError(
                    f"the manifest lists inputs {sorted(model.inputs)}, the model has {sorted(entries)} - at `{model.role}`"
                )
            for name, _, _ in session.inputs:
                source = model.inputs[name]
                if source.kind == "output":
                    continue
                where = tensors if source.kind == "tensor" else masks
                if source.kind == "array" or source.name not in where:
                    raise SchemaMismatchError(
                        f"input `{name}` reads `{source.name}`, which the features do not make"
                    )
                number = where[source.name]
                dtype, shape = entries[name]
                found.append(
                    (
                        source,
                        source.kind == "mask",
                        number,
                        self._row_shape(name, dtype, shape, source, number),
                    )
                )
        return found

    @property
    def input_names(self) -> list[str]:
        """Names of the models' inputs that come from the features, in the order of `inputs`."""
        return [
            name
            for model in self.manifest.models
            for name, _, _ in self.sessions[model.role].inputs
            if model.inputs[name].kind != "output"
        ]

    def _takes_one_row(self, *, ranks: bool) -> bool:
        """Some model takes exactly one row of something that this door brings several rows of."""
        assert self.program is not None
        for model in self.manifest.models:
            for name, _, shape in self.sessions[model.role].inputs:
                source = model.inputs[name]
                of_context = any(t[3] for t in self.program.tensors if source.name in (t[0], t[4]))
                if source.kind != "output" and shape[:1] == (1,) and not (ranks and of_context):
                    return True
        return False

    def _row_shape(
        self, name: str, dtype: int, shape: tuple[int | None, ...], source: InputSource, number: int
    ) -> tuple[int, ...]:
        assert self.program is not None
        _, own_dtype, cells, _, _, mask_dtype = self.program.tensors[number]
        made = mask_dtype if source.kind == "mask" else own_dtype
        if dtype != made:
            raise SchemaMismatchError(
                f"input `{name}` takes {DTYPE_NAMES.get(dtype, dtype)}, tensor `{source.name}` is {DTYPE_NAMES[made]}",
                hint="declare the tensor with the model's dtype",
            )
        if len(shape) == 0:
            return (cells,)
        rest = list(shape[1:])
        known = math.prod(d for d in rest if d is not None)
        free = [i for i, d in enumerate(rest) if d is None]
        if len(free) == 1 and known > 0 and cells % known == 0:
            rest[free[0]] = cells // known
        if any(d is None for d in rest) or math.prod(d or 0 for d in rest) != cells:
            raise SchemaMismatchError(
                f"input `{name}` takes shape {shape}, tensor `{source.name}` has {cells} cells a row",
                hint="columns and model do not belong together",
            )
        return tuple(d or 0 for d in rest)

    def _select_score(self) -> None:
        score = self.manifest.score
        if score is None:
            raise ManifestError(
                "the release names no score, so it answers score_arrays only", hint="pack with score=..."
            )
        session = self.sessions.get(score.role)
        names = [name for name, _, _ in session.outputs] if session is not None else []
        if session is None or score.output not in names:
            raise SchemaMismatchError(
                f"the score `{score.role}.{score.output}` is no output of the release's models"
            )
        session.select_score(names.index(score.output), score.column)

    def chain_scores(
        self, inputs: list[Any], arrays: Sequence[NDArray[Any]], *, gil: Literal["hold", "release"] = "hold"
    ) -> NDArray[np.float32]:
        """Scores of several models, or of one through the Python API: `arrays` in the order of `inputs`. gil: of one model."""
        score = self.manifest.score
        assert score is not None
        if len(self.sessions) == 1:
            return next(iter(self.sessions.values())).scores(arrays, gil=gil)
        outputs = self.run_models(
            {(source.kind, source.name): array for (source, *_), array in zip(inputs, arrays, strict=True)}
        )
        values = outputs[score.role][score.output]
        rows = values.reshape(values.shape[0], -1) if values.ndim else values.reshape(1, 1)
        if score.column >= rows.shape[1]:
            raise SchemaMismatchError(
                f"Expected at least {score.column + 1} cells in `{score.output}`, got {rows.shape[1]}"
            )
        with np.errstate(over="ignore"):
            made = np.ascontiguousarray(rows[:, score.column], dtype=np.float32)
        if not np.isfinite(made).all():
            row = int(np.argmin(np.isfinite(made)))
            raise ScoreError(
                f"Expected a finite score, got {made[row]} from output `{score.output}` in row {row}"
            )
        return made

    def table_scores(
        self, outs: Sequence[NDArray[Any]], masks: Sequence[NDArray[Any] | None], *, first_row: int = 0
    ) -> NDArray[np.float32]:
        """Scores of filled tensors of any number of rows. Raises: ScoreError, which names the row, SessionError."""
        arrays = self._input_arrays(outs, masks)
        n = len(arrays[0]) if arrays else 0
        step = TILE_ROWS if self.row_independent else 1
        parts = []
        for i in range(0, n, step):
            try:
                parts.append(self.chain_scores(self.inputs, [a[i : i + step] for a in arrays]))
            except ScoreError:
                self._name_bad_row(arrays, range(i, min(i + step, n)), first_row)
                raise
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def _input_arrays(
        self, outs: Sequence[NDArray[Any]], masks: Sequence[NDArray[Any] | None]
    ) -> list[NDArray[Any]]:
        """What the models read of filled tensors, by input."""
        arrays = []
        for _, is_mask, number, shape in self.inputs:
            made = masks[number] if is_mask else outs[number]
            assert made is not None
            arrays.append(made.reshape(-1, *shape))
        return arrays

    def _name_bad_row(self, arrays: Sequence[NDArray[Any]], rows: range, first_row: int) -> None:
        """Find the row whose score fails. Raises: ScoreError with its number."""
        for row in rows:
            try:
                self.chain_scores(self.inputs, [a[row : row + 1] for a in arrays])
            except ScoreError as exc:
                raise ScoreError(f"{exc} - at `$[{first_row + row}]`") from exc

    def run_models(self, made: Mapping[Any, NDArray[Any]]) -> dict[str, dict[str, NDArray[Any]]]:
        """Run all models in order; each takes arrays by (kind, name) or an earlier model's output."""
        done: dict[str, dict[str, NDArray[Any]]] = {}
        for model in self.manifest.models:
            feeds = {}
            for name, source in model.inputs.items():
                if source.kind == "output":
                    feeds[name] = done[source.role or ""][source.name]
                else:
                    feeds[name] = made[source.kind, source.name]
            done[model.role] = self.sessions[model.role].run(feeds)
        return done

    def score_arrays(self, feeds: Mapping[str, object]) -> dict[str, NDArray[Any]]:
        """Arrays by input -> all outputs; of several models as "role.output". Raises: FeatureError, SessionError."""
        wanted = [
            (source.kind, source.name, name)
            for model in self.manifest.models
            for name, source in model.inputs.items()
            if source.kind != "output"
        ]
        if len(self.sessions) == 1:
            return next(iter(self.sessions.values())).run(feeds)
        known = {label for kind, label, name in wanted} | {name for _, _, name in wanted}
        extra = set(feeds) - known
        missing = [label for _, label, name in wanted if label not in feeds and name not in feeds]
        if extra or missing:
            raise FeatureTypeError(
                f"Expected arrays {sorted({label for _, label, _ in wanted})}, got {clip([*feeds], 200)}",
                path="$",
            )
        made: dict[Any, NDArray[Any]] = {}
        for kind, label, name in wanted:
            value = feeds[label] if label in feeds else feeds[name]
            if not isinstance(value, np.ndarray):
                raise FeatureTypeError(
                    f"Expected a NumPy array, got `{type(value).__name__}` {clip(value)}",
                    path=f"$.{label}",
                    hint="convert it with numpy.asarray and an explicit dtype",
                )
            made[kind, label] = value
        outputs = self.run_models(made)
        return {f"{role}.{name}": value for role, some in outputs.items() for name, value in some.items()}

    # ---- golden rows -------------------------------------------------------------------------------------------------

    @property
    def same_machine(self) -> bool:
        """Bits may be expected to be those of the machine that packed the release."""
        recorded = self.manifest.machine
        if golden_rows.cpu_class() != recorded.cpu:
            return False
        sessions = self.sessions.values()
        if (
            any(session.backend == "trees" for session in sessions)
            and golden_rows.libm_version() != recorded.libm
        ):
            return False
        return onnxruntime_version(sessions) == recorded.onnxruntime

    def _check_array_inputs(self) -> None:
        declared = {a.name: a for a in self.spec.arrays}
        for model in self.manifest.models:
            names = {name for name, _, _ in self.sessions[model.role].inputs}
            if names != set(model.inputs):
                raise SchemaMismatchError(
                    f"the manifest lists inputs {sorted(model.inputs)}, the model has {sorted(names)} - at `{model.role}`"
                )
            for source in model.inputs.values():
                if source.kind == "array" and source.name not in declared:
                    raise SchemaMismatchError(
                        f"model `{model.role}` takes an array `{source.name}` that is not declared"
                    )

    def _replay(self, how: Callable[[], None]) -> None:
        """The golden rows, once more. Raises: BundleError, whatever it was that failed."""
        try:
            how()
        except (FeatureError, ServingError) as exc:
            raise GoldenMismatchError(
                f"the golden rows cannot be scored: {exc}",
                hint="pack the release again on this kind of machine",
            ) from exc

    def _replay_arrays(self) -> None:
        golden = self.bundle.read("golden", golden_rows.decode_golden)
        if golden is None or not golden.arrays:
            return
        feeds = golden.feeds()
        golden_rows.check_tensors(golden, golden_rows.hash_tensors(feeds.values()))
        outputs = self.score_arrays(feeds)
        if self.same_machine and golden.outputs_sha256 is not None:
            last = self.manifest.models[-1]
            own = [f"{last.role}.{o.name}" if len(self.sessions) > 1 else o.name for o in last.outputs]
            found = golden_rows.hash_tensors(outputs[name] for name in own)
            if found != golden.outputs_sha256:
                raise GoldenMismatchError(
                    "the golden arrays give other outputs than recorded, on the same CPU class and ONNX Runtime",
                    hint="pack the release again on this kind of machine",
                )

    def _replay_golden(self) -> None:
        inputs = self.inputs
        golden = self.bundle.read("golden", golden_rows.decode_golden)
        if golden is None:
            return
        assert self.program is not None
        body = self.spec.body
        slots = slot_names(body)
        golden_rows.check_kinds(golden, slot_types(body))
        canonical = golden.canonical(slots)
        states = golden.state_arrays({*body.stored, *body.windows})
        rows = Columns.of_slots(golden.n_rows, slots, canonical, states)
        outs, masks, _ = fill(self.program, body, rows, now_ns=golden.now_ns)
        tensors: list[NDArray[Any]] = []
        for out, mask in zip(outs, masks, strict=True):
            tensors.append(out)
            if mask is not None:
                tensors.append(mask)
        golden_rows.check_tensors(golden, golden_rows.hash_tensors(tensors))
        arrays = self._input_arrays(outs, masks)
        began = self.clock.monotonic_ns()
        parts = [self.chain_scores(inputs, [a[:1] for a in arrays])]
        # Others may be answering while this loads: they wait for short rows, and not for long ones.
        long = self.clock.monotonic_ns() - began > HOLD_GIL_BELOW_US * 1e3
        gil: Literal["hold", "release"] = "release" if long else "hold"
        parts += [
            self.chain_scores(inputs, [a[i : i + 1] for a in arrays], gil=gil)
            for i in range(1, golden.n_rows)
        ]
        alone = np.concatenate(parts)
        if golden.rows_per_run > 1:
            together = self.chain_scores(inputs, arrays, gil="release")
            self._check_golden(golden, together, rows.by_name, same_machine=self.same_machine)
            if not self.row_independent or np.array_equal(together.view(np.uint32), alone.view(np.uint32)):
                return
            # This host's kernels differ by batch size: rows run alone here, and were recorded in company.
            self.row_independent = False
            self._check_golden(golden, alone, rows.by_name, same_machine=False)
        else:
            self._check_golden(golden, alone, rows.by_name, same_machine=self.same_machine)

    def _check_golden(
        self,
        golden: golden_rows.Golden,
        scores: NDArray[np.float32],
        by_name: Mapping[str, Canonical | None],
        *,
        same_machine: bool,
    ) -> None:
        actions = self._actions(scores, by_name) if self.policy is not None else None
        golden_rows.check_scores(
            golden, scores, actions, same_machine=same_machine, tolerance=self.manifest.tolerance.golden
        )

    def _actions(self, scores: NDArray[np.float32], by_name: Mapping[str, Canonical | None]) -> list[str]:
        """The release's own policy over a table of scores."""
        assert self.policy is not None
        segments: Sequence[str | None] = [None] * len(scores)
        if self.policy.body.segment_by is not None:
            segments = texts_of(by_name[self.policy.body.segment_by], len(scores))
        return [
            action_of(self.policy, float(score), segment)
            for score, segment in zip(scores, segments, strict=True)
        ]

    # ---- the engine --------------------------------------------------------------------------------------------------

    def _encode_items(self, snapshot: Any) -> None:
        if self.engine is not None:
            self.engine.encode_items(snapshot.table)

    def _follow_items(self) -> None:
        """Item columns of the candidates' table are computed when it comes, not when somebody asks."""
        if not self._ranks or self.engine is None or not self.engine.has_item_table or self._store is None:
            return
        candidate = self.spec.body.candidate or ""
        slot = self._store.slot(candidate)
        if slot is not None:
            self.engine.encode_items(slot.table)
            blocks = (self._block_name, f"{self._block_name}.flags")
            self._keep.append(self._store.subscribe(candidate, self._encode_items, attaches=blocks))

    @property
    def _block_name(self) -> str:
        """Under which encoded items stand in their table, for all rankers of one spec."""
        return f"{self.spec.fingerprint}:{int(self.manifest.nan_inputs)}"

    def _engine_parts(
        self,
        inputs: list[Any],
        store: Store | None,
        ranks: bool,
        max_bytes: int,
        max_depth: int,
        hold_gil_below_us: float,
    ) -> dict[str, Any]:
        """What the engine is made of, but for what the policy decides."""
        assert self.program is not None
        body = self.spec.body
        slot_sections, column_sections = sections(body)
        candidate_slot = -1
        candidate_text = True
        if ranks:
            if body.candidate is None:
                raise ConfigError(
                    "this release ranks nothing: its spec names no candidate", hint="use Scorer.load"
                )
            key = body.entities[body.candidate].key[0]
            candidate_slot = [f.name for f in body.fields].index(key)
            kind = body.fields[candidate_slot].type
            if kind == "bytes":
                raise SchemaMismatchError("candidates are ids of type str or int, not bytes")
            candidate_text = kind == "str"
        own = frozenset(body.entities[body.candidate].key) if ranks and body.candidate else frozenset[str]()
        struct = request_struct(body, without=own)
        reader = RequestReader(
            self.program, request_type=struct, forbid_extra=body.extra == "forbid", skip=candidate_slot
        )
        item_ages = [
            column.max_age_ns
            for column, section in zip(self.spec.columns, column_sections, strict=True)
            if column.max_age_ns and section == "item"
        ]
        decode, encode = self._codecs(struct, ranks=ranks, text=candidate_text)
        snapshots, resolver = self._lookups(store, slot_sections, ranks=ranks)
        score = self.manifest.score
        session = next(iter(self.sessions.values()))
        native = session if isinstance(session, OrtModel) and not self.is_chain else None
        forest: Any = session if session.backend == "trees" and not self.is_chain else None
        return {
            "program": self.program,
            "reader": reader,
            "model": native,
            "trees": None if forest is None else forest.model,
            "tree_column": 0 if forest is None else forest.column,
            "inputs": tuple((is_mask, number, shape) for _, is_mask, number, shape in inputs),
            "plans": snapshots,
            "resolver": resolver,
            "budget_ns": self.budget_ns,
            "sections": {"columns": column_sections},
            "candidate_slot": candidate_slot,
            "candidate_is_text": candidate_text,
            "block_name": self._block_name,
            "decision_type": Decision,
            "ranking_type": Ranking,
            "decode": decode,
            "encode": encode,
            "decode_ids": msgspec.json.Decoder(list[str] if candidate_text else list[Int64]).decode,
            "clock": self.clock,
            "is_system_clock": type(self.clock) is SystemClock,
            "permits": self.permits,
            "event_type": Answered,
            "max_bytes": max_bytes,
            "max_depth": max_depth,
            "max_rows": self.contract.max_rows,
            "row_independent": self.row_independent,
            "has_clock": self.program.has_max_age,
            "score_low": -math.inf if score is None or score.low is None else score.low,
            "score_high": math.inf if score is None or score.high is None else score.high,
            "hold_below_us": hold_gil_below_us,
            "max_item_age_ns": min(item_ages, default=0),
        }

    def _new_engine(self) -> Engine:
        policy = self.policy if not self._steps else self._steps[0].policy
        bands, segments = _bands(policy)
        owner = weakref.proxy(self)  # a strong reference would be a cycle, which is freed late
        said = () if self.bundle.signed_by else (UNSIGNED,)
        return Engine(
            **self._parts,
            session=(lambda arrays: owner.chain_scores(owner.inputs, arrays)) if self.is_chain else None,
            release=self.manifest.release,
            bands=tuple(bands),
            n_common_bands=0 if policy is None else len(policy.body.bands),
            segments=segments,
            segment_slot=self._segment_slot(),
            review_action=None if policy is None else policy.body.review,
            reasons=self._reasons,
            occlusion=self._engine_occlusion(),
            trace=said + (self._steps[0].trace if self._steps else ()),
            moves=tuple(
                (step.from_s * 10**9, tuple(low for _, low in _bands(step.policy)[0]), said + step.trace)
                for step in self._steps[1:]
            ),
        )

    def _lookups(
        self, store: Store | None, slot_sections: Mapping[str, str], *, ranks: bool
    ) -> tuple[tuple[EntityPlan, ...], Resolver | None]:
        """Plans for tables and windows. Raises: ConfigError, SchemaMismatchError."""
        assert self.program is not None
        body = self.spec.body
        if not body.entities:  # nothing can be looked up
            return (), None
        from retailinfer.lookups import compile_lookups  # noqa: PLC0415 - for releases that look something up

        return compile_lookups(
            body, store, self.program, slot_sections=slot_sections, ranks=ranks, clock=self.clock
        )

    def _prepare_observers(self, store: Store | None) -> None:
        """The way of events into the windows that count them. Raises: ConfigError."""
        body = self.spec.body
        counted = {window.on for window in body.windows.values()}
        if not counted:
            return
        from retailinfer.lookups import compile_observer  # noqa: PLC0415 - for releases with windows

        for name in body.streams:
            if name in counted:
                self._observers[name] = compile_observer(
                    body, store, name, clock=self.clock, budget_ns=self.budget_ns
                )

    # ---- reasons ---------------------------------------------------------------------------------------------------

    @property
    def explainer(self) -> Explainer:
        """Who explains scores, made when first asked for: most servers never do. Not for rankers, nor releases of arrays."""
        if self._explainer is None:
            self._explainer = self._new_explainer()
        return self._explainer

    def _new_explainer(self) -> Explainer:
        from retailinfer.explain import Explainer, Occlusion  # noqa: PLC0415 - 2 ms of every import, for those who explain
        from retailinfer.features.groups import groups_of  # noqa: PLC0415 - likewise
        from retailinfer.release.background import decode_background  # noqa: PLC0415 - likewise

        assert self.program is not None
        groups = groups_of(self.spec.body)
        session = next(iter(self.sessions.values()))
        background = self.bundle.read("background", decode_background)
        # Who explains belongs to us: a strong reference back would be a cycle, which is freed late.
        owner = weakref.proxy(self)
        return Explainer(
            groups,
            self.inputs,
            lambda arrays: owner.chain_scores(owner.inputs, arrays),
            session=cast("TreeSession", session)
            if session.backend == "trees" and not self.is_chain
            else None,
            occlusion=None if background is None else Occlusion.of(self.program, groups, background),
            tile=TILE_ROWS if self.row_independent else 1,
        )

    def _prepare_reasons(self) -> None:
        """What decisions need of reasons. Raises: SchemaMismatchError, ModelError."""
        asked = None if self.policy is None else self.policy.body
        if asked is None or not (asked.reasons or asked.n_reasons):
            self._check_background()
            return
        from retailinfer.explain import check_reasons, forest_reasons, named_groups  # noqa: PLC0415 - as above

        assert self.policy is not None
        explainer = self.explainer
        check_reasons(self.policy, self.spec.body)
        named = named_groups(explainer.groups, self.policy)
        if asked.n_reasons == 0 or not named.reasons:
            return
        self._named = named
        if explainer.session is not None:
            self._reasons = forest_reasons(
                explainer.session, explainer.groups, self.inputs, named, asked.n_reasons
            )
        elif explainer.occlusion is None:
            raise SchemaMismatchError(
                "the policy asks for reasons, and the release keeps no background for them",
                hint="pack it again with this version",
            )
        else:
            self._occlusion = explainer.occlusion.named(named)

    def _check_background(self) -> None:
        """A file that is no background of these features fails here, and not when somebody first asks why."""
        if self.manifest.file_of("background") is None:
            return
        from retailinfer.release.background import decode_background  # noqa: PLC0415 - for releases with one

        assert self.program is not None
        background = self.bundle.read("background", decode_background)
        if background is not None:
            background.rows(self.program.tensors, NUMPY_DTYPES)

    def _engine_occlusion(self) -> EngineOcclusion | None:
        """Occlusion for requests, which the engine does in its own memory."""
        plan = self._occlusion
        if plan is None:
            return None
        assert self.program is not None
        assert self.policy is not None
        return EngineOcclusion(
            self.program,
            names=plan.names,
            most=self.policy.body.n_reasons,
            blanks=plan.blanks,
            tensors=plan.tensors,
            masks=plan.masks,
        )

    @property
    def has_reasons(self) -> bool:
        """The policy asks for reasons of decisions."""
        return self._named is not None

    def table_reasons(
        self, outs: Sequence[NDArray[Any]], masks: Sequence[NDArray[Any] | None]
    ) -> list[tuple[Reason, ...]]:
        """Reasons of filled tensors of any number of rows, for a release that has them."""
        assert self.policy is not None
        most = self.policy.body.n_reasons
        arrays = self._input_arrays(outs, masks)
        if self._reasons is not None:
            rows = np.ascontiguousarray(arrays[0].reshape(len(arrays[0]), -1))
            return self._reasons.top(rows)
        assert self._occlusion is not None
        found = []
        for i in range(len(arrays[0])):
            one = [array[i : i + 1] for array in arrays]
            _, lost = self._occlusion.contributions(
                self.inputs, one, self.explainer.scores, self.explainer.tile
            )
            found.append(self._occlusion.top(lost, most))
        return found

    def _codecs(
        self, struct: type[msgspec.Struct], *, ranks: bool, text: bool
    ) -> tuple[Callable[[bytes], Any], Callable[[Any], bytes]]:
        self.request_type: type[msgspec.Struct] = struct
        if ranks:
            self.request_type = msgspec.defstruct(
                "RankRequest",
                [
                    ("context", struct),
                    ("candidates", msgspec.Raw),
                    ("k", Int64, 20),
                    ("exclude", list[str] if text else list[Int64], msgspec.field(default_factory=list)),
                    ("request_id", str | None, None),
                ],
                frozen=True,
                kw_only=True,
                forbid_unknown_fields=True,
            )
        return msgspec.json.Decoder(self.request_type).decode, msgspec.json.Encoder().encode

    def _segment_slot(self) -> int:
        """Slot of the field that chooses the policy's segment; -1: none. Raises: SchemaMismatchError."""
        field = None if self.policy is None else self.policy.body.segment_by
        if field is None:
            return -1
        kinds = {f.name: f.type for f in self.spec.body.fields}
        if kinds.get(field) != "str":
            raise SchemaMismatchError(
                f"the policy's segment_by=`{clip(field)}` is no request field of type str"
            )
        return list(kinds).index(field)

    # ---- small things that both doors need --------------------------------------------------------------------------

    def observer(self, stream: str) -> Observer:
        """The way of a stream's events into windows. Raises: ConfigError for a stream that the spec does not count."""
        found = self._observers.get(stream) if isinstance(stream, str) else None
        if found is None:
            known = ", ".join(f"`{name}`" for name in self._observers) or "none"
            raise ConfigError(f"Expected a stream that some window counts ({known}), got {clip(stream)}")
        return found

    @property
    def request_observer(self) -> Observer | None:
        """The way of requests into windows of this process's own memory; None where nothing there counts them."""
        if not self._observers:
            return None
        from retailinfer.features.streams import request_stream  # noqa: PLC0415 - for releases with windows

        found = self._observers.get(request_stream(self.spec.body) or "")
        return None if found is None or found.resolver.shared else found

    def need_engine(self) -> Engine:
        """The engine. Raises: ConfigError for a release of arrays."""
        if self.engine is None:
            raise ConfigError(
                "this release brings no features: it takes arrays",
                hint="use score_arrays(feeds), or pack with features=",
            )
        return self.engine


def action_of(policy: Policy, score: float, segment: str | None) -> str:
    """A policy's action for one score. Raises: ScoreError."""
    actions, lows = policy.thresholds(segment)
    at = int(np.searchsorted(lows, np.float32(score), side="right")) - 1
    if at < 0:
        raise ScoreError(f"the score {score!r} is below the policy's lowest band, {float(lows[0])!r}")
    return actions[at]


def _bands(policy: Policy | None) -> tuple[list[tuple[str, float]], dict[str, tuple[int, int]]]:
    """All bands in one row: the common ones, then each segment's; segment -> (first, number)."""
    if policy is None:
        return [], {}
    flat: list[tuple[str, float]] = []
    segments: dict[str, tuple[int, int]] = {}
    for segment in (None, *policy.body.segments):
        actions, lows = policy.thresholds(segment)
        if segment is not None:
            segments[segment] = (len(flat), len(actions))
        flat.extend((a, float(low)) for a, low in zip(actions, lows, strict=True))
    return flat, segments


def _same_reasons(a: Policy | None, b: Policy | None) -> bool:
    said = [None if one is None else (one.body.reasons, one.body.n_reasons) for one in (a, b)]
    return said[0] == said[1]


def _open_trees(data: bytes, *, sizes: Sequence[int]) -> ModelSession:
    """A forest, its kernels timed for calls of one row and of the sizes that will come."""
    from retailinfer.runtime.trees import TreeSession  # noqa: PLC0415 - for releases that have trees

    return TreeSession(data, sizes=sorted({min(size, TILE_ROWS) for size in sizes}))


def _check_settings(store: object, max_bytes: object, max_depth: object, hold_gil_below_us: object) -> None:
    """What `load` was given, before anything is read."""
    if store is not None:
        from retailinfer.store.store import Store  # noqa: PLC0415 - who gives one has imported it

        if not isinstance(store, Store):
            raise ConfigError(
                f"Expected a Store, got `{type(store).__name__}`", hint="store=ri.Store(tables={...})"
            )
    for name, value, most in (("max_bytes", max_bytes, 1 << 31), ("max_depth", max_depth, MOST_DEPTH)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise ConfigError(f"Expected {name} from 1 to {most}, got {clip(value)}")
    if not isinstance(hold_gil_below_us, (int, float)) or math.isnan(hold_gil_below_us):
        raise ConfigError(f"Expected a number for hold_gil_below_us, got {clip(hold_gil_below_us)}")


def new_permits(max_in_flight: object, max_waiting: object, clock: Clock) -> Permits:
    """Permits of one door; twice as many calls as there are processors, unless it was said otherwise. Raises: ConfigError."""
    if max_in_flight is None:
        max_in_flight = 2 * usable_cpus()
    for name, value in (("max_in_flight", max_in_flight), ("max_waiting", max_waiting)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"Expected an integer for {name}, got {clip(value)}")
    made = Permits(
        cast("int", max_in_flight), max_waiting=cast("int", max_waiting), clock=clock, random=_chance
    )
    begin_again_in_children(made)
    return made


def _chance() -> float:
    """In [0, 1). From the system: a module for it would cost every load a millisecond, and forked workers the same numbers."""
    return (int.from_bytes(os.urandom(8), "little") >> 11) / (1 << 53)


def texts_of(column: Canonical | None, n: int) -> list[str | None]:
    """A canonical text column as Python text."""
    if column is None or column.offsets is None:
        return [None] * n
    data = column.values.tobytes()
    valid = column.valid
    return [
        data[column.offsets[i] : column.offsets[i + 1]].decode() if valid is None or valid[i] else None
        for i in range(n)
    ]


_TERM = r"\s*([A-Za-z_]\w*)\.([A-Za-z_]\w*)\s*(<=|>=|==|!=|<|>)\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*"
_OPS = {"<": 0, "<=": 1, ">": 2, ">=": 3, "==": 4, "!=": 5}


def parse_available(text: str, candidate: str) -> list[tuple[str, int, float]]:
    """(column, operator number, constant) of each term of "item.stock > 0 and item.active == 1". Raises: FeatureTypeError."""
    import re  # noqa: PLC0415 - for rankers

    terms: list[tuple[str, int, float]] = []
    for part in re.split(r"\band\b", text) if isinstance(text, str) and len(text) < 1000 else [""]:
        match = re.fullmatch(_TERM, part)
        if match is None or match[1] != candidate:
            raise FeatureTypeError(
                f"Expected comparisons such as `{candidate}.stock > 0`, joined by `and`, got {clip(text)}",
                path="$.available",
            )
        try:
            number = float(match[4])
        except ValueError as exc:
            raise FeatureTypeError(f"Expected a number, got {clip(match[4])}", path="$.available") from exc
        terms.append((match[2], _OPS[match[3]], number))
    return terms


def _decode_contract(data: bytes) -> Contract:
    try:
        return msgspec.json.decode(data, type=Contract)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ManifestError(
            f"contract.json is not a contract: {clip(str(exc), 300)}", hint="pack the release again"
        ) from exc
