"""What can be told from an ONNX graph before it runs, by following its edges.

Rules:
  * Only the main graph is read, and a question that it cannot answer is answered with "no": a model is not tree-only,
    an output is not bounded, unless every edge says so.
What a graph may contain at all is preflight.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

__all__ = ["CLASSIFIERS", "ML_DOMAIN", "TREE_OPS", "Facts", "inner_graphs"]

ML_DOMAIN = "ai.onnx.ml"
TREE_OPS = frozenset({"TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor"})
# They move numbers without computing with them, so a NaN stays a NaN of its own column.
MOVING_OPS = frozenset(
    {
        "ArrayFeatureExtractor",
        "Cast",
        "Concat",
        "FeatureVectorizer",
        "Flatten",
        "Gather",
        "Identity",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
RESHAPING_OPS = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
CLASSIFIERS = frozenset({"LinearClassifier", "SVMClassifier", "TreeEnsembleClassifier"})
BOUNDED_TRANSFORMS = frozenset({"LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO", "PROBIT"})


def inner_graphs(graph: onnx.GraphProto) -> Iterator[tuple[onnx.GraphProto, int]]:
    """A graph and all graphs within it with their depth, without recursion of ours."""
    stack = [(graph, 0)]
    while stack:
        one, depth = stack.pop()
        yield one, depth
        for node in one.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    stack.append((attribute.g, depth + 1))
                stack.extend((inner, depth + 1) for inner in attribute.graphs)


class Facts:
    """Questions about the main graph, answered by following its edges."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.weights = {t.name: t for t in model.graph.initializer}
        self.made_by = {out: node for node in model.graph.node for out in node.output if out}
        self.readers: dict[str, list[Any]] = defaultdict(list)
        for node in model.graph.node:
            for name in node.input:
                self.readers[name].append(node)

    def trees_only(self) -> bool:
        """Whether every float that comes in ends in a tree ensemble (or an imputer), moved but not computed with."""
        floats = {1, 11}
        ends = 0
        todo = [
            one.name
            for one in self.graph.input
            if one.name not in self.weights and one.type.tensor_type.elem_type in floats
        ]
        outputs = {one.name for one in self.graph.output}
        seen: set[str] = set()
        while todo:
            name = todo.pop()
            if name in seen:
                continue
            seen.add(name)
            if name in outputs or any(self._inner_reads(name)):
                return False
            for node in self.readers[name]:
                if node.domain == ML_DOMAIN and node.op_type in TREE_OPS | {"Imputer"}:
                    ends += node.op_type in TREE_OPS
                    if node.op_type == "Imputer" and not self._imputes_nan(node):
                        return False
                elif node.op_type == "Cast":
                    to = next((a.i for a in node.attribute if a.name == "to"), 0)
                    if to not in floats:
                        return False
                    todo.extend(node.output)
                elif node.op_type in MOVING_OPS:
                    todo.extend(node.output)
                elif node.op_type not in ("Shape", "Size"):
                    return False
        return ends > 0

    def _inner_reads(self, name: str) -> Iterator[bool]:
        for graph, depth in inner_graphs(self.graph):
            if depth > 0:
                yield any(name in node.input for node in graph.node)

    @staticmethod
    def _imputes_nan(node: onnx.NodeProto) -> bool:
        for attribute in node.attribute:
            if attribute.name == "replaced_value_float":
                return bool(np.isnan(attribute.f))
        return False

    def _source(self, name: str) -> tuple[Any, int] | None:
        """The node that computes a tensor, past those that only move or rescale it, and which of its outputs it is."""
        for _ in range(64):
            node = self.made_by.get(name)
            if node is None:
                return None
            if node.op_type in RESHAPING_OPS | {"Cast", "Normalizer"}:
                name = node.input[0]
                continue
            return node, list(node.output).index(name)
        return None

    def classes(self) -> dict[str, tuple[str | int, ...]]:
        """Outputs that a classifier's node gives, with its labels."""
        found: dict[str, tuple[str | int, ...]] = {}
        for one in self.graph.output:
            source = self._source(one.name)
            if source is None or source[0].op_type not in CLASSIFIERS or source[1] != 1:
                continue
            for attribute in source[0].attribute:
                if attribute.name == "classlabels_strings" and attribute.strings:
                    found[one.name] = tuple(s.decode("utf-8", "replace") for s in attribute.strings)
                elif attribute.name in ("classlabels_int64s", "classlabels_ints") and attribute.ints:
                    found[one.name] = tuple(int(i) for i in attribute.ints)
        return found

    def probabilities(self) -> set[str]:
        """Float outputs that a reader would call probabilities."""
        found = set()
        for one in self.graph.output:
            if one.type.tensor_type.elem_type not in (1, 11):
                continue
            source = self._source(one.name)
            classifier = source is not None and source[0].op_type in CLASSIFIERS and source[1] == 1
            if classifier or "prob" in one.name.lower() or one.name in self.bounded():
                found.add(one.name)
        return found

    def bounded(self) -> set[str]:
        """Float outputs whose last operator cannot leave 0..1."""
        found = set()
        for one in self.graph.output:
            name = one.name
            node = self.made_by.get(name)
            while node is not None and node.op_type in RESHAPING_OPS:
                name = node.input[0]
                node = self.made_by.get(name)
            if node is None:
                continue
            transform = next(
                (a.s.decode("ascii", "replace") for a in node.attribute if a.name == "post_transform"), ""
            )
            if node.op_type in ("Sigmoid", "Softmax") or (
                node.op_type in CLASSIFIERS and transform in BOUNDED_TRANSFORMS and name != node.output[0]
            ):
                found.add(one.name)
        return found

    def n_weights(self) -> int:
        """Numbers in the matrices that int8 would shrink."""
        total = 0
        for node in self.graph.node:
            if node.op_type in ("MatMul", "Gemm", "Conv") and node.domain in ("", "ai.onnx"):
                for name in node.input:
                    tensor = self.weights.get(name)
                    if tensor is not None and len(tensor.dims) >= 2:
                        total += int(np.prod(tensor.dims))
        return total
