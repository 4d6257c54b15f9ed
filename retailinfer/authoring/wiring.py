"""Which input of which model takes what, and which cell of which output is the score.

Rules:
  * An input takes the tensor or mask of its name; else the output of an earlier model with that name, or "role.output".
    One tensor and one input that nothing else fits belong together whatever they are called.
  * Dtypes and widths must agree exactly, and every tensor of the spec must be read: columns that no model reads are a
    mistake, and would cost time at every request.
  * Which class of several is the score is never guessed.
What is found stands in the manifest, so that loading needs neither these rules nor `onnx`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from retailinfer.authoring.preflight import DTYPE_NAMES, Graph
from retailinfer.errors import ModelError, SchemaMismatchError, clip
from retailinfer.release.manifest import InputSource, Output, ScoreRef

if TYPE_CHECKING:
    from retailinfer.authoring.convert import Converted
    from retailinfer.features.spec import FeatureSpec
    from retailinfer.runtime.session import IoEntry, ModelSession

__all__ = ["Part", "check_feature_names", "find_inputs", "find_score", "outputs_of"]


@dataclass
class Part:
    """One model on its way into a release; a forest has a `graph` without data.

    Attributes:
        observed: shapes of its outputs in a trial run.
        trees: the file of its forest, where that is what runs.
        parity: with its source, see `release.manifest.ModelEntry`.
        why: why there is no forest, where one was looked for.
        differs: it had a forest, which did not have the bits of its trainer.
    """

    role: str
    converted: Converted
    graph: Graph
    session: ModelSession
    inputs: dict[str, InputSource] = field(default_factory=dict)
    observed: dict[str, tuple[int, ...]] = field(default_factory=dict)
    quantized: Literal["none", "dynamic", "static"] = "none"
    feature_names: Literal["matched", "ignored", "unknown"] = "unknown"
    trees: bytes | None = None
    parity: Literal["exact", "close", "unchecked"] = "unchecked"
    why: str = ""
    differs: bool = False

    def width(self, output: str, shape: Sequence[int | None]) -> int | None:
        """Columns of an output: as declared, else as seen in a trial run."""
        shape = self.observed.get(output, shape)
        return shape[-1] if len(shape) >= 2 else 1

    @property
    def outputs(self) -> tuple[Output, ...]:
        """The session's outputs, with class labels."""
        return outputs_of(self)


@dataclass(frozen=True)
class _Offer:
    """What the feature spec has for a model."""

    source: InputSource
    dtype: str
    cells: int
    context: bool


def find_inputs(parts: Sequence[Part], spec: FeatureSpec) -> None:
    """Fill `inputs` of every part from the spec's tensors and the models before it. Raises: SchemaMismatchError."""
    offers = _offers(spec)
    free: list[tuple[Part, IoEntry]] = []
    done: dict[str, Part] = {}
    for part in parts:
        for entry in part.session.inputs:
            name = entry[0]
            source = _earlier(name, done) if name not in offers else offers[name].source
            if source is None:
                free.append((part, entry))
            else:
                part.inputs[name] = source
        done[part.role] = part
    used = {s.name for part in parts for s in part.inputs.values() if s.kind in ("tensor", "mask")}
    unused = [name for name in offers if name not in used]
    if len(free) == 1 and len(unused) == 1:
        part, entry = free.pop()
        part.inputs[entry[0]] = offers[unused.pop()].source
    if free:
        part, entry = free[0]
        known = [*offers, *(f"{p.role}.{o[0]}" for p in parts if p is not part for o in p.session.outputs)]
        raise SchemaMismatchError(
            f"nothing fits input {clip(entry[0])} of model `{part.role}`",
            hint=f"name a tensor like it: tensors={{{entry[0]!r}: ri.Tensor(...)}}; there are {', '.join(known)}",
        )
    if unused:
        raise SchemaMismatchError(
            f"no model reads tensor `{unused[0]}` of the spec",
            hint=f"the models' inputs are {', '.join(n for p in parts for n in p.inputs)}; rename it, or leave it out",
        )
    for part in parts:
        for entry in part.session.inputs:
            _check_input(part, entry, offers)


def find_arrays(parts: Sequence[Part]) -> None:
    """Fill `inputs` of every part for a release that takes arrays: outputs of earlier models by name, else arrays."""
    done: dict[str, Part] = {}
    seen: dict[str, IoEntry] = {}
    for part in parts:
        for entry in part.session.inputs:
            name, dtype, _ = entry
            source = _earlier(name, done)
            part.inputs[name] = source or InputSource(kind="array", name=name)
            if source is None:
                if name in seen and seen[name][1] != dtype:
                    raise SchemaMismatchError(f"two models take an array {clip(name)} in different dtypes")
                seen[name] = entry
            else:
                _check_chained(part, entry, done)
        done[part.role] = part


def check_feature_names(part: Part, spec: FeatureSpec, names: str) -> str:
    """Compare the columns that the model was trained on with the cells of its tensor, in order.

    Returns: what the manifest says: "matched", "ignored" or "unknown". Raises: SchemaMismatchError with the first
    difference.
    """
    trained = part.converted.feature_names or part.graph.feature_names
    if names == "ignore":
        return "ignored"
    if trained is None:
        return "unknown"
    tensors = [s.name for s in part.inputs.values() if s.kind == "tensor"]
    if len(tensors) != 1:
        return "unknown"
    given = spec.cell_names(tensors[0])
    if [_plain(n) for n in trained] == [_plain(n) for n in given]:
        return "matched"
    if len(trained) != len(given):
        raise SchemaMismatchError(
            f"model `{part.role}` was trained on {len(trained)} features, tensor `{tensors[0]}` has {len(given)} cells"
        )
    at = next(i for i, (a, b) in enumerate(zip(trained, given, strict=True)) if _plain(a) != _plain(b))
    same = sorted(map(_plain, trained)) == sorted(map(_plain, given))
    raise SchemaMismatchError(
        f"Expected feature {at} of model `{part.role}` to be {clip(trained[at])}, the spec gives {clip(given[at])}"
        + (" (the same features in another order)" if same else ""),
        hint='order the columns as in training, or pass names="ignore" if only the names differ',
    )


def find_score(parts: Sequence[Part], score: str, *, needed: bool) -> ScoreRef | None:
    """Which cell is the score.

    Args:
        score: "auto", "output", "output[column or class]", or with the model's role before: "role.output[...]".
        needed: False lets "auto" find nothing (releases of arrays give all outputs anyway).
    Raises: SchemaMismatchError.
    """
    if score != "auto":
        return _named_score(parts, score)
    try:
        return _auto_score(_last(parts))
    except SchemaMismatchError:
        if needed:
            raise
        return None


def outputs_of(part: Part) -> tuple[Output, ...]:
    """Name, dtype, shape and class labels of a model's outputs. Raises: ModelError for a dtype that NumPy lacks."""
    found = []
    for name, dtype, shape in part.session.outputs:
        if dtype not in DTYPE_NAMES:
            raise ModelError(
                f"output {clip(name)} of model `{part.role}` has ONNX dtype {dtype}, which is not allowed",
                hint=f"allowed are {', '.join(DTYPE_NAMES.values())}; cast it inside the model",
            )
        found.append(Output(name=name, dtype=DTYPE_NAMES[dtype], shape=shape, classes=_classes(part, name)))
    return tuple(found)


# ---- inputs ---------------------------------------------------------------------------------------------------------


def _offers(spec: FeatureSpec) -> dict[str, _Offer]:
    offers: dict[str, _Offer] = {}
    for name, tensor in spec.body.tensors.items():
        cells = len(spec.cell_names(name))
        context = tensor.axis == "context"
        offers[name] = _Offer(InputSource(kind="tensor", name=name), tensor.dtype, cells, context)
        if tensor.mask is not None:
            offers[tensor.mask] = _Offer(
                InputSource(kind="mask", name=tensor.mask), tensor.mask_dtype, cells, context
            )
    return offers


def _earlier(name: str, done: Mapping[str, Part]) -> InputSource | None:
    """The output of an earlier model that an input is named after. The latest model wins for plain names."""
    for role, part in done.items():
        for output, _, _ in part.session.outputs:
            if name == f"{role}.{output}":
                return InputSource(kind="output", name=output, role=role)
    for role in reversed(list(done)):
        if any(name == output for output, _, _ in done[role].session.outputs):
            return InputSource(kind="output", name=name, role=role)
    return None


def _check_input(part: Part, entry: IoEntry, offers: Mapping[str, _Offer]) -> None:
    name, dtype, shape = entry
    source = part.inputs[name]
    if source.kind == "output":
        return
    offer = offers[source.name]
    label = f"input {clip(name)} of model `{part.role}`"
    made = f"{source.kind} `{source.name}`"
    takes = DTYPE_NAMES.get(dtype, f"ONNX dtype {dtype}")
    if takes != offer.dtype:
        field = "mask_dtype" if source.kind == "mask" else "dtype"
        raise SchemaMismatchError(
            f"{label} takes {takes}, {made} is {offer.dtype}",
            hint=f'declare it so: ri.Tensor(..., {field}="{takes}")',
        )
    rest = shape[1:]
    known = math.prod(d for d in rest if d is not None)
    n_free = sum(d is None for d in rest)
    # The same rule by which the pipeline shapes a row: at most one size is free, and it follows from the others.
    fits = known == offer.cells if n_free == 0 else n_free == 1 and known > 0 and offer.cells % known == 0
    if shape and not fits:
        shown = "(" + ", ".join("any" if d is None else str(d) for d in shape) + ")"
        raise SchemaMismatchError(
            f"{label} takes shape {shown}, {made} has {offer.cells} cells a row",
            hint="were columns added or left out since the model was trained?",
        )
    if shape and shape[0] is not None and shape[0] != 1:
        raise SchemaMismatchError(
            f"{label} always takes {shape[0]} rows at once",
            hint="export it with a free first dimension: torch.onnx.export(..., dynamic_axes={name: {0: 'rows'}})",
        )


def _check_chained(part: Part, entry: IoEntry, done: Mapping[str, Part]) -> None:
    """An output that goes into another model has that model's dtype."""
    source = part.inputs[entry[0]]
    given = next(dtype for name, dtype, _ in done[source.role or ""].session.outputs if name == source.name)
    if given != entry[1]:
        raise SchemaMismatchError(
            f"input {clip(entry[0])} of model `{part.role}` takes {DTYPE_NAMES.get(entry[1], entry[1])}, output "
            f"`{source.name}` of `{source.role}` is {DTYPE_NAMES.get(given, given)}"
        )


def check_chains(parts: Sequence[Part]) -> None:
    """Outputs that feed other models have the dtype that those take. Raises: SchemaMismatchError."""
    done: dict[str, Part] = {}
    for part in parts:
        for entry in part.session.inputs:
            if part.inputs[entry[0]].kind == "output":
                _check_chained(part, entry, done)
        done[part.role] = part


def fixed_rows(parts: Sequence[Part], spec: FeatureSpec) -> str | None:
    """An input that takes one row at a time, by its declared shape; None when all take any number."""
    context = {name for name, tensor in spec.body.tensors.items() if tensor.axis == "context"}
    masks = {t.mask for t in spec.body.tensors.values() if t.mask is not None and t.axis == "context"}
    for part in parts:
        for name, _, shape in part.session.inputs:
            if shape and shape[0] is not None and part.inputs[name].name not in context | masks:
                return name
    return None


def _plain(name: str) -> str:
    """Trainers forbid or replace different characters: what is left of a name when all of them are the same."""
    return re.sub(r"[^0-9A-Za-z]+", "_", name)


# ---- the score -----------------------------------------------------------------------------------------------------


def _classes(part: Part, output: str) -> tuple[str | int, ...]:
    found = part.graph.classes.get(output, ())
    if part.converted.classes and output == part.converted.output:
        found = part.converted.classes  # the trainer's own labels; the graph may only count them
    return tuple(_label(c) for c in found)


def _label(label: Any) -> str | int:
    """A class as the manifest can hold it, text or an integer: 0 and 1 for truths, 1 for 1.0, "1.5" for 1.5."""
    if isinstance(label, str):
        return label
    if isinstance(label, bytes):
        return label.decode("utf-8", "replace")
    if isinstance(label, (bool, int)) or (isinstance(label, float) and label.is_integer()):
        return int(label)
    return str(label)


def _last(parts: Sequence[Part]) -> Part:
    consumed = {s.role for part in parts for s in part.inputs.values() if s.kind == "output"}
    last = [part for part in parts if part.role not in consumed]
    if len(last) != 1:
        raise SchemaMismatchError(
            f"models {', '.join(f'`{p.role}`' for p in last)} all give final answers",
            hint='say which one is the score: score="role.output"',
        )
    return last[0]


def _auto_score(part: Part) -> ScoreRef:
    outputs = [(n, d, part.observed.get(n, s)) for n, d, s in part.session.outputs]
    floats = [(n, s) for n, d, s in outputs if d in (1, 11) and len(s) <= 2]
    likely = [(n, s) for n, s in floats if n in part.graph.probabilities]
    chosen = likely if len(likely) == 1 else floats
    shown = ", ".join(
        f"{clip(n)} ({DTYPE_NAMES.get(d, d)}, {_shape_text(s)})" for n, d, s in part.session.outputs
    )
    if len(chosen) != 1:
        what = "no output of floats" if not floats else "several outputs that could be the score"
        raise SchemaMismatchError(
            f"model `{part.role}` has {what}: {shown}",
            hint='say which: score="output" or score="output[column]"'
            if floats
            else "export it with probabilities, not only labels",
        )
    name, shape = chosen[0]
    classes = _classes(part, name)
    width = part.width(name, shape)
    if classes and width != 1:
        width = len(classes)
    if width == 1:
        return _score(part, name, 0, classes[-1] if len(classes) == 2 else None)
    if width == 2 and (name in part.graph.probabilities or classes):
        return _score(part, name, 1, classes[1] if len(classes) == 2 else None)
    if width is None:
        raise SchemaMismatchError(
            f"output {clip(name)} of model `{part.role}` does not say how many columns it has",
            hint=f'say which is the score: score="{name}[0]"',
        )
    labels = ", ".join(clip(c) for c in classes[:20]) if classes else f"0 to {width - 1}"
    example = classes[-1] if classes else width - 1
    raise SchemaMismatchError(
        f"output {clip(name)} of model `{part.role}` has {width} columns ({labels}); one of them must be the score",
        hint=f'say which: score="{name}[{example}]"',
    )


_SCORE = re.compile(r"(?P<name>.+?)(?:\[(?P<column>[^\[\]]+)\])?")


def _named_score(parts: Sequence[Part], score: str) -> ScoreRef:
    match = _SCORE.fullmatch(score)
    if match is None:
        raise SchemaMismatchError(f'Expected score="auto", "output" or "output[column]", got {clip(score)}')
    name, column = match["name"], match["column"]
    found = [
        (part, output)
        for part in parts
        for output, _, _ in part.session.outputs
        if name in (output, f"{part.role}.{output}")
    ]
    if len(found) != 1:
        known = ", ".join(f"{p.role}.{o}" for p in parts for o, _, _ in p.session.outputs)
        what = "no model has" if not found else "several models have"
        raise SchemaMismatchError(f"{what} an output {clip(name)}", hint=f"there are {known}")
    part, output = found[0]
    dtype, shape = next((d, s) for n, d, s in part.session.outputs if n == output)
    if dtype not in (1, 7, 11):
        raise SchemaMismatchError(
            f"output {clip(output)} is {DTYPE_NAMES.get(dtype, dtype)}, a score is float32, float64 or int64"
        )
    classes = _classes(part, output)
    width = part.width(output, shape)
    if column is None:
        if width == 1:
            return _score(part, output, 0, None)
        if len(parts) == 1 or width is not None:
            return _auto_columns(part, output, width, classes)
        return _score(part, output, 0, None)
    at = _column_number(output, column, classes)
    if width is not None and at >= width:
        raise SchemaMismatchError(f"Expected a column below {width} of output {clip(output)}, got {at}")
    return _score(part, output, at, classes[at] if at < len(classes) else None)


def _auto_columns(part: Part, output: str, width: int | None, classes: tuple[str | int, ...]) -> ScoreRef:
    if width == 2 or len(classes) == 2:
        return _score(part, output, 1, classes[1] if len(classes) == 2 else None)
    raise SchemaMismatchError(
        f"output {clip(output)} of model `{part.role}` has {'several' if width is None else width} columns",
        hint=f'say which is the score: score="{output}[{classes[-1] if classes else 0}]"',
    )


def _column_number(output: str, text: str, classes: tuple[str | int, ...]) -> int:
    """A class label, where the labels are known; else a number. Integer labels are never taken for column numbers."""
    labels = [str(c) for c in classes]
    if text in labels:
        return labels.index(text)
    if text.isascii() and text.isdigit() and not any(isinstance(c, int) for c in classes):
        return int(text)
    raise SchemaMismatchError(
        f"output {clip(output)} has no class {clip(text)}",
        hint=f"its classes are {', '.join(labels[:20])}" if labels else "give the number of a column",
    )


def _score(part: Part, output: str, column: int, label: str | int | None) -> ScoreRef:
    low, high = (0.0, 1.0) if output in part.graph.bounded else (None, None)
    return ScoreRef(role=part.role, output=output, column=column, label=label, low=low, high=high)


def _shape_text(shape: Sequence[int | None]) -> str:
    return "x".join("any" if d is None else str(d) for d in shape) or "any shape"
