"""What an ONNX graph may contain.

Rules:
  * The graph is parsed here once, with every cap checked before anything is built from it. Loading in production trusts
    the hash of the bytes instead, so what this file lets through is what serves.
  * Allowed: operators of ONNX, ONNX-ML and a list of ONNX Runtime's own. Refused by name: other domains, operators with
    a random result, weights in other files, inputs and outputs that are no tensors NumPy can hold.
  * ZipMap (a sequence of dictionaries, one a row) is taken out: its input is the very tensor that is wanted.
What can be told from a graph that passed is facts.py; who fits it to a feature spec is pack.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from retailinfer.authoring.facts import ML_DOMAIN, TREE_OPS, Facts, inner_graphs
from retailinfer.errors import ConfigError, ModelError, clip

if TYPE_CHECKING:
    import onnx

__all__ = ["DTYPE_NAMES", "Graph", "inspect", "require_onnx"]

# ONNX dtype number -> name, for what arrays may hold; the feature program makes six of them.
DTYPE_NAMES: dict[int, str] = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    8: "string",
    9: "bool",
    11: "float64",
    12: "uint32",
    13: "uint64",
}

MIN_IR = 3
MAX_MODEL_BYTES = (1 << 31) - 1
MAX_NODES = 100_000
MAX_DEPTH = 8  # graphs within graphs (If, Loop, Scan)
MAX_INITIALIZERS = 100_000
MAX_IO = 4096
MAX_DIMS = 8  # of an input or output
MAX_CELLS = 1 << 28  # that a constant may blow up to (ConstantOfShape, Expand, Tile)
MAX_TRIPS = 1_000_000  # of a Loop

# A score must be the same twice.
RANDOM_OPS = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
# Decoders of foreign formats have no place behind a checkout.
REFUSED_OPS = frozenset({"ImageDecoder"})
# ONNX Runtime's own operators that exporters and its optimiser write. All are pure functions of their inputs.
RUNTIME_OPS = frozenset(
    [
        "Attention",
        "BiasGelu",
        "BiasSoftmax",
        "DequantizeLinear",
        "DynamicQuantizeMatMul",
        "EmbedLayerNormalization",
        "FastGelu",
        "FusedConv",
        "FusedGemm",
        "FusedMatMul",
        "Gelu",
        "GroupQueryAttention",
        "Inverse",
        "MatMulInteger16",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "MultiHeadAttention",
        "QAttention",
        "QGemm",
        "QLinearAdd",
        "QLinearAveragePool",
        "QLinearConcat",
        "QLinearGlobalAveragePool",
        "QLinearLeakyRelu",
        "QLinearMul",
        "QLinearReduceMean",
        "QLinearSigmoid",
        "QLinearSoftmax",
        "QLinearWhere",
        "QuantizeLinear",
        "QuickGelu",
        "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
        "SimplifiedLayerNormalization",
        "TransposeMatMul",
        "Trilu",
        "Unique",
    ]
)
RUNTIME_DOMAIN = "com.microsoft"


@dataclass(frozen=True)
class Graph:
    """A graph that passed.

    Attributes:
        data: the bytes that are packed; ZipMap is gone from them.
        trees_only: every number that comes in reaches tree ensembles only, so they decide what NaN means.
        classes: output -> labels of its columns, where the graph says so.
        probabilities: outputs that are probabilities by their name, their operator or their labels.
        bounded: outputs that cannot leave 0..1.
        feature_names: of the training matrix, where the model's metadata has them.
        unzipped: outputs that came out of ZipMap. operators: names of all operators.
        n_weights: numbers in MatMul, Gemm and Conv weights: what quantisation could shrink.
    """

    data: bytes
    trees_only: bool
    has_trees: bool
    classes: dict[str, tuple[str | int, ...]] = field(default_factory=dict)
    probabilities: frozenset[str] = frozenset()
    bounded: frozenset[str] = frozenset()
    feature_names: tuple[str, ...] | None = None
    n_weights: int = 0
    unzipped: tuple[str, ...] = ()
    operators: tuple[str, ...] = ()


def require_onnx() -> Any:
    """The `onnx` package, or the error that says how to get it."""
    try:
        import onnx  # noqa: PLC0415 - optional extra
    except ImportError as exc:
        raise ConfigError("packing needs the `onnx` package", hint="pip install 'retailinfer[pack]'") from exc
    return onnx


def inspect(data: bytes, *, where: str = "the model") -> Graph:
    """Parse a model and refuse what must not serve.

    Args:
        data: an ONNX file. where: what messages call it.
    Raises: ModelError, which names the operator, tensor or dtype.
    """
    try:
        return _inspect(require_onnx(), data, where)
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError, RecursionError) as exc:
        # A damaged file may hold anything anywhere, such as bytes that are no text as a name.
        raise ModelError(f"{where} is damaged: {type(exc).__name__}: {clip(str(exc), 100)}") from exc


def _inspect(api: Any, data: bytes, where: str) -> Graph:
    parsed = _parse(api, data, where)
    declared = [(one.domain, one.version) for one in parsed.opset_import]
    model = _inline(api, parsed, where)
    opsets = _opsets(api, model, where)
    _check_caps(model, where)
    for graph, _ in _graphs(model.graph, where):
        _check_graph(api, graph, opsets, where)
    _check_order(model.graph, where)
    unzipped = _unzip(api, model)
    _check_io(api, model, where)
    facts = Facts(model)
    # An auditor who has the trainer's file should find its very hash in the manifest: touched only where it must be.
    same = model is parsed and not unzipped and declared == list(opsets.items())
    return Graph(
        data=data if same else model.SerializeToString(deterministic=True),
        trees_only=facts.trees_only(),
        has_trees=any(n.op_type in TREE_OPS and n.domain == ML_DOMAIN for n in model.graph.node),
        classes={**facts.classes(), **{name: labels for name, labels in unzipped.items() if labels}},
        probabilities=frozenset(facts.probabilities() | unzipped.keys()),
        bounded=frozenset(facts.bounded()),
        feature_names=_feature_names(model),
        n_weights=facts.n_weights(),
        unzipped=tuple(unzipped),
        operators=tuple(sorted({n.op_type for g, _ in inner_graphs(model.graph) for n in g.node})),
    )


# ---- reading -------------------------------------------------------------------------------------------------------


def _parse(api: Any, data: bytes, where: str) -> onnx.ModelProto:
    if not data:
        raise ModelError(f"{where} is empty")
    if len(data) > MAX_MODEL_BYTES:
        raise ModelError(f"Expected at most {MAX_MODEL_BYTES} bytes, got {len(data)} - at {where}")
    model: onnx.ModelProto = api.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as exc:  # protobuf's own error class moves between its versions
        raise ModelError(
            f"{where} is not an ONNX file: {clip(str(exc), 100)}",
            hint="expected the bytes that torch.onnx.export, skl2onnx or onnxmltools write; pickles are never read",
        ) from exc
    if not model.HasField("graph") or not model.opset_import:
        raise ModelError(f"{where} is not an ONNX file: it has no graph or no operator set")
    if not MIN_IR <= model.ir_version <= api.IR_VERSION:
        raise ModelError(
            f"Expected an ONNX IR version from {MIN_IR} to {api.IR_VERSION}, got {model.ir_version} - at {where}",
            hint="export it again, or update the `onnx` package",
        )
    return model


def _inline(api: Any, model: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """Functions of the model itself (PyTorch writes them) become plain nodes, and are then checked as such."""
    if not model.functions:
        return model
    if len(model.functions) > 1000:
        raise ModelError(f"Expected at most 1000 functions, got {len(model.functions)} - at {where}")
    try:
        import onnx.inliner as inliner  # noqa: PLC0415, PLR0402 - a part of the optional extra

        inlined: onnx.ModelProto = inliner.inline_local_functions(model)
    except Exception as exc:  # the inliner raises whatever its C++ does
        raise ModelError(f"the functions of {where} cannot be inlined: {clip(str(exc), 200)}") from exc
    return inlined


def _opsets(api: Any, model: onnx.ModelProto, where: str) -> dict[str, int]:
    """Domain -> version. Converters list a domain twice now and then; the higher one counts, and is kept."""
    found: dict[str, int] = {}
    for one in model.opset_import:
        domain = "" if one.domain == "ai.onnx" else one.domain
        if one.version < 1 or one.version > (1 << 31):
            raise ModelError(f"Expected an operator set from 1, got {one.version} - at {where}")
        found[domain] = max(one.version, found.get(domain, 0))
    newest = api.defs.onnx_opset_version()
    if found.get("", 1) > newest:
        raise ModelError(
            f"Expected operator set {newest} or older, got {found['']} - at {where}",
            hint="export it with a lower opset_version, or update the `onnx` package",
        )
    del model.opset_import[:]
    for domain, version in found.items():
        model.opset_import.add(domain=domain, version=version)
    return found


def _graphs(graph: onnx.GraphProto, where: str) -> Iterator[tuple[onnx.GraphProto, int]]:
    """The graph and all graphs within it. Raises: ModelError when they are nested too deep."""
    for one, depth in inner_graphs(graph):
        if depth > MAX_DEPTH:
            raise ModelError(f"Expected graphs nested at most {MAX_DEPTH} deep, got more - at {where}")
        yield one, depth


def _check_caps(model: onnx.ModelProto, where: str) -> None:
    n_nodes = n_initializers = 0
    for graph, _ in _graphs(model.graph, where):
        n_nodes += len(graph.node)
        n_initializers += len(graph.initializer) + len(graph.sparse_initializer)
        if n_nodes > MAX_NODES or n_initializers > MAX_INITIALIZERS:
            raise ModelError(
                f"Expected at most {MAX_NODES} nodes and {MAX_INITIALIZERS} weights - at {where}"
            )
    if len(model.graph.input) > MAX_IO or len(model.graph.output) > MAX_IO:
        raise ModelError(f"Expected at most {MAX_IO} inputs and outputs - at {where}")


def _check_graph(api: Any, graph: onnx.GraphProto, opsets: dict[str, int], where: str) -> None:
    for tensor in _tensors(graph):
        _check_tensor(api, tensor, where)
    constants = _small_constants(api, graph)
    for node in graph.node:
        _check_operator(api, node, opsets, where)
        _check_growth(node, constants, where)


def _check_order(graph: onnx.GraphProto, where: str) -> None:
    """Nodes stand in running order and make each tensor once, as ONNX says: whoever follows edges comes to an end."""
    made = {name for node in graph.node for name in node.output if name}
    known: set[str] = set()
    for node in graph.node:
        early = next((name for name in node.input if name in made and name not in known), None)
        if early is not None:
            raise ModelError(
                f"{where} has a node {clip(node.op_type, 80)} that reads tensor {clip(early)} before it is made",
                hint="an ONNX graph lists its nodes in running order; export it again",
            )
        for name in node.output:
            if name in known:
                raise ModelError(f"{where} makes tensor {clip(name)} twice")
            if name:
                known.add(name)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in ([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []) + list(
                attribute.sparse_tensors
            ):
                yield sparse.values
                yield sparse.indices


def _check_tensor(api: Any, tensor: onnx.TensorProto, where: str) -> None:
    name = clip(tensor.name)
    if tensor.data_location == api.TensorProto.EXTERNAL or tensor.external_data:
        raise ModelError(
            f"tensor {name} of {where} keeps its data in another file",
            hint="a release is whole: onnx.load(path), then onnx.save(model, path, save_as_external_data=False)",
        )
    cells = 1
    for size in tensor.dims:
        if size < 0:
            raise ModelError(f"tensor {name} of {where} has a dimension of {size}")
        cells *= size
    if cells > MAX_MODEL_BYTES * 2:  # 4-bit numbers stand two in a byte
        raise ModelError(f"tensor {name} of {where} claims {cells} numbers, more than a file can hold")


def _check_operator(api: Any, node: onnx.NodeProto, opsets: dict[str, int], where: str) -> None:
    domain = "" if node.domain == "ai.onnx" else node.domain
    op = node.op_type
    if domain == RUNTIME_DOMAIN and op in RUNTIME_OPS:
        return
    shown = f"{domain}.{op}" if domain else op
    if domain not in ("", ML_DOMAIN):
        raise ModelError(
            f"{where} uses the operator {clip(shown, 80)}, whose domain is not allowed",
            hint="export it with standard ONNX operators only; custom operators are code, and a release holds none",
        )
    if op in RANDOM_OPS:
        raise ModelError(
            f"{where} uses the operator `{op}`, which is random", hint="export it in inference mode"
        )
    if op in REFUSED_OPS:
        raise ModelError(f"{where} uses the operator `{op}`, which is not allowed")
    if domain not in opsets:
        raise ModelError(f"{where} uses the operator `{shown}`, but declares no operator set for its domain")
    try:
        api.defs.get_schema(op, opsets[domain], domain)
    except api.defs.SchemaError as exc:
        raise ModelError(
            f"{where} uses the operator {clip(shown, 80)}, which operator set {opsets[domain]} does not have",
            hint="custom operators are refused; export it with standard ONNX operators only",
        ) from exc
    if op == "Dropout" and domain == "" and len(node.input) > 2 and node.input[2]:
        raise ModelError(
            f"{where} uses `Dropout` in training mode", hint="export it in inference mode: model.eval() first"
        )


def _small_constants(api: Any, graph: onnx.GraphProto) -> dict[str, list[int]]:
    """Name -> numbers, of integer constants small enough to be shapes and counts."""
    tensors = {t.name: t for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and len(node.output) == 1:
            for attribute in node.attribute:
                if attribute.name == "value" and attribute.HasField("t"):
                    tensors[node.output[0]] = attribute.t
    found = {}
    for name, tensor in tensors.items():
        if tensor.data_type in (6, 7) and len(tensor.dims) <= 1 and int(np.prod(tensor.dims)) <= 64:
            try:
                found[name] = [int(v) for v in np.atleast_1d(api.numpy_helper.to_array(tensor))]
            except (TypeError, ValueError) as exc:
                raise ModelError(f"tensor {clip(name)} cannot be read: {clip(str(exc), 100)}") from exc
    return found


def _check_growth(node: onnx.NodeProto, constants: dict[str, list[int]], where: str) -> None:
    """A few bytes must not ask for all memory, or for an endless loop."""
    if node.op_type == "Loop" and node.input and node.input[0] in constants:
        trips = max(constants[node.input[0]], default=0)
        if trips > MAX_TRIPS:
            raise ModelError(f"Expected at most {MAX_TRIPS} rounds of a `Loop`, got {trips} - at {where}")
    at = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1}.get(node.op_type)
    if at is None or len(node.input) <= at:
        return
    cells = 1
    for size in constants.get(node.input[at], ()):
        cells *= abs(size) or 1
    if cells > MAX_CELLS:
        raise ModelError(
            f"operator `{node.op_type}` would make {cells} numbers, at most {MAX_CELLS} are allowed - at {where}"
        )


def _check_io(api: Any, model: onnx.ModelProto, where: str) -> None:
    weights = {t.name for t in model.graph.initializer} | {
        t.values.name for t in model.graph.sparse_initializer
    }
    inputs = [one for one in model.graph.input if one.name not in weights]
    if not inputs:
        raise ModelError(f"{where} takes no input", hint="its answer would not depend on the request")
    if not model.graph.output:
        raise ModelError(f"{where} gives no output")
    for label, ios in (("input", inputs), ("output", model.graph.output)):
        names = [one.name for one in ios]
        if len(set(names)) != len(names) or not all(names):
            raise ModelError(f"two {label}s of {where} have the same name, or one has none")
        for one in ios:
            _check_value(api, one, label, where)


def _check_value(api: Any, one: onnx.ValueInfoProto, label: str, where: str) -> None:
    kind = one.type.WhichOneof("value")
    name = clip(one.name, 60)
    if kind is None and label == "output":
        return  # ONNX Runtime infers it, and its session is asked again
    if kind != "tensor_type":
        shown = {"sequence_type": "a sequence", "map_type": "a map", "optional_type": "an optional value"}
        raise ModelError(
            f"{label} {name} of {where} is {shown.get(str(kind), str(kind))}, not a tensor",
            hint="export a classifier with zipmap=False"
            if label == "output"
            else "export it with tensors as inputs",
        )
    number = one.type.tensor_type.elem_type
    if number not in DTYPE_NAMES:
        try:
            dtype = api.TensorProto.DataType.Name(number).lower()
        except ValueError:
            dtype = f"number {number}"
        raise ModelError(
            f"{label} {name} of {where} has dtype {dtype}",
            hint=f"allowed are {', '.join(DTYPE_NAMES.values())}; cast it inside the model",
        )
    dims = one.type.tensor_type.shape.dim
    if len(dims) > MAX_DIMS:
        raise ModelError(
            f"Expected at most {MAX_DIMS} dimensions, got {len(dims)} - at {label} {name} of {where}"
        )


def _feature_names(model: onnx.ModelProto) -> tuple[str, ...] | None:
    """Names of the training matrix, where whoever exported the model wrote them down under `feature_names`."""
    for one in model.metadata_props:
        if one.key == "feature_names":
            try:
                names = json.loads(one.value)
            except ValueError:
                names = [part.strip() for part in one.value.split(",")]
            if isinstance(names, list) and names and all(isinstance(n, str) for n in names):
                return tuple(names)
    return None


# ---- ZipMap --------------------------------------------------------------------------------------------------------


def _unzip(api: Any, model: onnx.ModelProto) -> dict[str, tuple[str | int, ...]]:
    """Give outputs that come out of ZipMap as the tensor that goes into it. Returns: output -> class labels."""
    graph = model.graph
    outputs = {one.name: one for one in graph.output}
    found: dict[str, tuple[str | int, ...]] = {}
    for node in list(graph.node):
        if node.op_type != "ZipMap" or node.domain != ML_DOMAIN or len(node.input) != 1:
            continue
        name, tensor = node.output[0], node.input[0]
        used = any(name in other.input for other in graph.node)
        if name not in outputs or used:
            continue
        labels: tuple[str | int, ...] = ()
        for attribute in node.attribute:
            if attribute.name == "classlabels_strings" and attribute.strings:
                labels = tuple(s.decode("utf-8", "replace") for s in attribute.strings)
            elif attribute.name == "classlabels_int64s" and attribute.ints:
                labels = tuple(int(i) for i in attribute.ints)
        graph.node.remove(node)
        producer = next((n for n in graph.node if tensor in n.output), None)
        if producer is None or tensor in outputs:  # a name that is taken must stay
            graph.node.append(api.helper.make_node("Identity", [tensor], [name]))
        else:
            _rename(graph, tensor, name)
        shape = ["rows", len(labels)] if labels else None
        outputs[name].CopyFrom(api.helper.make_tensor_value_info(name, api.TensorProto.FLOAT, shape))
        found[name] = labels
    return found


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for one, _ in inner_graphs(graph):
        for node in one.node:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    if name == old:
                        names[i] = new
        for info in one.value_info:
            if info.name == old:
                info.name = new
