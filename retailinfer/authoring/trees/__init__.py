"""From models to forests: what a tree engine can run exactly, as the arrays of `runtime.trees.Forest`.

Rules:
  * A parser returns a forest, or says in one line why there is none (`Unfit`): then ONNX Runtime runs the model.
  * Nothing is approximated. What a parser makes is compared with its source bit by bit when a release is packed.
onnx_graph.py = ONNX graphs that are nothing but one tree ensemble; lightgbm_text.py = LightGBM's own text; use.py = who
compares and decides.
"""

from __future__ import annotations

__all__ = ["Unfit"]


class Unfit(Exception):  # noqa: N818 - not an error of anybody: the other engine takes the model
    """Why a model has no exact form as a forest."""
