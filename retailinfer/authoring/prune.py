"""Leave out of a graph what no answer needs: class labels beside a score, and operators that only hand a tensor on.

Rules:
  * No number changes: nodes are removed, none is altered or added. Every kept output has the bits that it had.
  * Only labels go by themselves (the first output of a classifier): a decision is made of the score, so working out and
    carrying the label costs time at every request and tells nothing more. Other heads stay.
Operators by name are facts.py; who calls this is pack.py.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from retailinfer.authoring.facts import CLASSIFIERS, inner_graphs
from retailinfer.authoring.preflight import require_onnx

if TYPE_CHECKING:
    import onnx

__all__ = ["without_labels"]

# What may stand between a classifier and its label without making it a value of its own.
_CARRY = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})


def without_labels(data: bytes, keep: Collection[str]) -> bytes | None:
    """The model without the labels of its classifiers and what only they need; None where nothing can go.

    Args:
        data: a graph that `preflight.inspect` let through. keep: outputs that stay, whatever they are.
    """
    model: onnx.ModelProto = require_onnx().load_model_from_string(data)
    graph = model.graph
    made_by = {name: node for node in graph.node for name in node.output if name}
    labels = [one for one in graph.output if one.name not in keep and _is_label(one.name, made_by)]
    kept = [one for one in graph.output if one not in labels]
    if not kept:
        return None
    before = len(graph.node)
    for one in labels:
        graph.output.remove(one)
    inner = {name for one, depth in inner_graphs(graph) if depth for node in one.node for name in node.input}
    if not inner:  # graphs within graphs may read any tensor: then every node stays
        _drop_unread(graph)
        _drop_identities(graph)
    if not labels and len(graph.node) == before:
        return None
    made: bytes = model.SerializeToString()
    return made


def _is_label(name: str, made_by: dict[str, onnx.NodeProto]) -> bool:
    node = made_by.get(name)
    while node is not None and node.op_type in _CARRY:
        name = node.input[0]
        node = made_by.get(name)
    return node is not None and node.op_type in CLASSIFIERS and name == node.output[0]


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Nodes from which no output can be reached, and weights that only they read."""
    read = {one.name for one in graph.output}
    for node in reversed(graph.node):  # in running order, so every reader comes later
        if any(name in read for name in node.output):
            read.update(node.input)
    for node in [node for node in graph.node if not any(name in read for name in node.output)]:
        graph.node.remove(node)
    for tensor in [one for one in graph.initializer if one.name not in read]:
        graph.initializer.remove(tensor)


def _drop_identities(graph: onnx.GraphProto) -> None:
    """An Identity that makes an output: its source takes the output's name, where nobody else knows it by another."""
    outputs = {one.name for one in graph.output}
    for node in reversed(list(graph.node)):  # from the end, so that of several in a row each becomes the last
        if node.op_type != "Identity" or node.output[0] not in outputs:
            continue
        source, name = node.input[0], node.output[0]
        readers = sum(list(one.input).count(source) for one in graph.node)
        maker = next((one for one in graph.node if source in one.output), None)
        if maker is None or source in outputs or readers != 1:
            continue
        maker.output[list(maker.output).index(source)] = name
        graph.node.remove(node)
        for one in [one for one in graph.value_info if one.name == source]:
            graph.value_info.remove(one)
