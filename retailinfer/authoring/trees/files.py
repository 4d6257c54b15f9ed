"""Files that trainers write of themselves: whose a file is, by what it holds, and its forest.

Rules:
  * A file is known by its first bytes and the keys it begins with, never by its name.
  * Nobody's package is needed to read one: what is served does not depend on what is installed where it is packed.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import Literal

from retailinfer.authoring.trees import Parsed

__all__ = ["FileKind", "kind_of", "parse_file"]

FileKind = Literal["lightgbm", "lightgbm-json", "xgboost", "catboost"]

HEAD = 1 << 16  # bytes that are looked at
_PARSERS: dict[str, tuple[str, str]] = {
    "lightgbm": ("lightgbm_text", "parse_text"),
    "lightgbm-json": ("lightgbm_json", "parse_json"),
    "xgboost": ("xgboost_json", "parse"),
    "catboost": ("catboost_json", "parse"),
}
# Keys at the top of a JSON document that only one trainer writes.
_KEYS: tuple[tuple[str, FileKind], ...] = (
    ("learner", "xgboost"),
    ("tree_info", "lightgbm-json"),
    ("max_feature_idx", "lightgbm-json"),
    ("num_tree_per_iteration", "lightgbm-json"),
    ("oblivious_trees", "catboost"),
    ("features_info", "catboost"),
    ("model_info", "catboost"),
    ("scale_and_bias", "catboost"),
)


def kind_of(data: bytes) -> FileKind | None:
    """Whose file this is; None for anything else, an ONNX file among it."""
    head = bytes(data[:HEAD]).removeprefix(b"\xef\xbb\xbf").lstrip()
    if re.match(rb"tree\r?\nversion=", head):
        return "lightgbm"
    if not head.startswith(b"{"):
        return None
    if re.match(rb"\{[#$UiIlL]", head):  # UBJSON: a count, a type, or the length of the first key
        return "xgboost"
    text = head.decode("utf-8", "replace")
    places = [(found.start(), kind) for key, kind in _KEYS if (found := re.search(rf'"{key}"\s*:', text))]
    return min(places)[1] if places else None


def parse_file(data: bytes, kind: FileKind, *, dtype: str) -> Parsed:
    """The forest of a trainer's file. Raises: Unfit, ModelError."""
    module, function = _PARSERS[kind]
    parsed: Parsed = getattr(import_module(f"retailinfer.authoring.trees.{module}"), function)(
        data, dtype=dtype
    )
    return parsed
