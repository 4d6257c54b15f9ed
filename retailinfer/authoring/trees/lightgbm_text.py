"""LightGBM's own text -> a forest that answers as `Booster.predict` does, in float64 until the last step.

Rules:
  * Read: what `Booster.save_model` and `model_to_string` of LightGBM 2.1 and later write (version=v2, v3, v4). The trees in
    the text are those that predict: LightGBM leaves out what came after the best iteration when it writes.
  * Linear trees, and objectives that are not known, are Unfit, by name. A text that is damaged is a ModelError, which says
    in which tree, and at which node.
What is right, thresholds and random forests among it: lightgbm_forest.py. The text is written and read by LightGBM's
`src/io/tree.cpp` and `src/boosting/gbdt_model_text.cpp`.
"""

from __future__ import annotations

import re
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailinfer.authoring.trees import Parsed, Unfit
from retailinfer.authoring.trees.documents import MAX_BYTES
from retailinfer.authoring.trees.lightgbm_forest import Head, Trees, integer, parsed_forest
from retailinfer.authoring.trees.nodes import MAX_NODES, MAX_TREES
from retailinfer.errors import ModelError, clip

__all__ = ["parse_text"]

_FLOATS = re.compile(r"[-+0-9.eEinf ]*")  # `inf` among them: a split between all numbers and NaN
_WHOLE = re.compile(r"[-0-9 ]*")


def parse_text(
    data: str | bytes, *, dtype: str = "float32", input_name: str = "features", output_name: str | None = None
) -> Parsed:
    """The forest of a LightGBM model file, or of `Booster.model_to_string()`.

    Args:
        dtype: of the rows, "float32" or "float64"; LightGBM itself makes doubles of both.
        input_name, output_name: None = "probabilities" for classifiers, "variable" for others.
    Returns: a forest of n_outputs = trees a round. One sum that is a probability has 2 columns, of which the second is it.
    Raises: Unfit, ModelError, ConfigError.
    """
    text = _decoded(data)
    parts = re.split(r"^Tree=[0-9]+\n", text.partition("\nend of trees\n")[0], flags=re.MULTILINE)
    head_text, blocks = parts[0], parts[1:]
    facts = _facts(head_text.split("\n"), "the head")
    if "tree" not in facts:
        raise ModelError(f"Expected a LightGBM model, which begins with `tree`, got {clip(text)}")
    if len(blocks) > MAX_TREES:
        raise ModelError(f"Expected at most {MAX_TREES} trees, got {len(blocks)}")
    _check_end(text, facts, blocks)
    head = _head(facts)
    return parsed_forest(head, _trees(blocks), dtype=dtype, input_name=input_name, output_name=output_name)


def _decoded(data: str | bytes) -> str:
    if len(data) > MAX_BYTES:
        raise ModelError(f"Expected at most {MAX_BYTES} bytes of a LightGBM model, got {len(data)}")
    try:
        text = data if isinstance(data, str) else bytes(data).decode()
    except UnicodeDecodeError as exc:
        raise ModelError(f"Expected a LightGBM model in UTF-8: {clip(str(exc), 100)}") from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def _facts(lines: list[str], where: str) -> dict[str, str]:
    """`key=value` lines, and keys that stand alone."""
    found: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition("=")
        if not key:
            continue
        if key in found:
            raise ModelError(f"Expected `{clip(key)}` once - at {where}")
        found[key] = value
    return found


def _check_end(text: str, facts: dict[str, str], blocks: list[str]) -> None:
    """A text that was cut short must not lose trees, or digits of the last one, without a word."""
    sizes = facts.get("tree_sizes")
    if sizes is not None and len(sizes.split()) != len(blocks):
        raise ModelError(f"Expected {len(sizes.split())} trees, as tree_sizes says, got {len(blocks)}")
    cut = (
        "\nend of trees\n" not in text
        if facts.get("version") != "v2"
        else bool(blocks) and "\n\n" not in blocks[-1]
    )
    if cut:
        raise ModelError("Expected the end of the trees, the text is cut short", hint="save the model again")


def _head(facts: dict[str, str]) -> Head:
    infos = facts.get("feature_infos", "").split()
    return Head(
        version=facts.get("version", "of no version"),
        n_outputs=integer(
            facts.get("num_tree_per_iteration", facts.get("num_class")), "num_tree_per_iteration", 1, 1 << 20
        ),
        n_features=integer(facts.get("max_feature_idx"), "max_feature_idx", 0, (1 << 30) - 1) + 1,
        feature_names=facts.get("feature_names", "").split(" "),
        objective=facts.get("objective"),
        average="average_output" in facts,
        # LightGBM lists the values of codes (1:2:3), of quantities it tells the range ([0:1])
        categories=[i for i, info in enumerate(infos) if re.fullmatch(r"-?[0-9]+(:-?[0-9]+)*", info)],
    )


def _trees(blocks: list[str]) -> Trees:
    """All trees in one row. A block ends with its first empty line; what follows is not the tree's."""
    found = [_facts(block.split("\n\n", 1)[0].split("\n"), f"tree {i}") for i, block in enumerate(blocks)]
    for i, tree in enumerate(found):
        if tree.get("is_linear", "0") != "0":
            raise Unfit("it has linear trees")
        if tree.get("num_leaves") == "1" and not tree.get("leaf_count"):
            tree["leaf_count"] = "0"  # LightGBM before 4 counts nothing where there is no split
        if "num_cat" not in tree:
            raise Unfit(f"its tree {i} does not tell num_cat: it is older than LightGBM 2.1")
    n_leaves = _whole(
        [
            integer(tree.get("num_leaves"), f"num_leaves of tree {i}", 1, MAX_NODES)
            for i, tree in enumerate(found)
        ]
    )
    n_sets = _whole(
        [integer(tree["num_cat"], f"num_cat of tree {i}", 0, MAX_NODES) for i, tree in enumerate(found)]
    )
    if int(n_leaves.sum()) > MAX_NODES or int(n_sets.sum()) > MAX_NODES:
        raise ModelError(
            f"Expected at most {MAX_NODES} leaves, got {n_leaves.sum()}, and {n_sets.sum()} sets"
        )
    inner = n_leaves - 1

    def row(name: str, counts: NDArray[np.int64], kind: Any = np.int64) -> NDArray[Any]:
        return _row(found, name, counts, kind)

    def optional(name: str, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        known = all(tree.get(name) for tree, n in zip(found, counts, strict=True) if n)
        return row(name, counts, np.float64) if known else np.zeros(0)

    ends = row("cat_boundaries", np.where(n_sets > 0, n_sets + 1, 0))
    set_ends, n_words = _set_ends(ends, n_sets)
    inner_cover, leaf_cover = _cover(optional, inner, n_leaves)
    return Trees(
        n_leaves=n_leaves,
        feature=row("split_feature", inner),
        threshold=row("threshold", inner, np.float64),
        left=row("left_child", inner),
        right=row("right_child", inner),
        decision=row("decision_type", inner),
        n_sets=n_sets,
        set_ends=set_ends,
        set_words=_words(row("cat_threshold", n_words)),
        value=row("leaf_value", n_leaves, np.float64),
        inner_cover=inner_cover,
        leaf_cover=leaf_cover,
    )


def _whole(values: list[int]) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def _row(found: list[dict[str, str]], name: str, counts: NDArray[np.int64], kind: Any) -> NDArray[Any]:
    """The numbers under one name, of all trees in one row. Raises: ModelError."""
    parts = []
    for i, (tree, count) in enumerate(zip(found, counts.tolist(), strict=True)):
        text = tree.get(name, "") if count else ""
        fine = _FLOATS if kind is np.float64 else _WHOLE
        parts.append(text.split() if fine.fullmatch(text) else ["?"])
        if parts[-1] == ["?"]:
            raise ModelError(f"Expected numbers, got {clip(text)} - at `{name}` of tree {i}")
        if len(parts[-1]) != count:
            raise ModelError(f"Expected {count} numbers, got {len(parts[-1])} - at `{name}` of tree {i}")
    try:
        return np.array(list(map(float if kind is np.float64 else int, chain.from_iterable(parts))), kind)
    except (ValueError, OverflowError) as exc:
        raise ModelError(f"Expected numbers - at `{name}`: {clip(str(exc), 100)}") from None


def _set_ends(
    ends: NDArray[np.int64], n_sets: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ends of all trees' sets in one row of words, and how many words each tree has."""
    n_words = np.zeros(len(n_sets), np.int64)
    out, at, total = [np.zeros(1, np.int64)], 0, 0
    for i in np.flatnonzero(n_sets).tolist():
        own = ends[at : at + int(n_sets[i]) + 1]
        at += len(own)
        if own[0] != 0 or (np.diff(own) < 0).any() or own[-1] > MAX_NODES:
            raise ModelError(
                f"Expected ends of sets, which begin at 0 and rise, got {clip(own.tolist())} - at tree {i}"
            )
        out.append(own[1:] + total)
        n_words[i] = own[-1]
        total += int(own[-1])
    return np.concatenate(out), n_words


def _words(words: NDArray[np.int64]) -> NDArray[np.uint32]:
    if len(words) and (words.min() < 0 or words.max() > 0xFFFFFFFF):
        raise ModelError(
            f"Expected words of 32 bits, got {words.min()} to {words.max()} - at `cat_threshold`"
        )
    return words.astype(np.uint32)


def _cover(
    optional: Any, inner: NDArray[np.int64], n_leaves: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rows that reached each node in training, as LightGBM's own contributions weigh them; its hessians where it has none."""
    for names in (("internal_count", "leaf_count"), ("internal_weight", "leaf_weight")):
        found = optional(names[0], inner), optional(names[1], n_leaves)
        told = len(found[0]) == int(inner.sum()) and len(found[1]) == int(n_leaves.sum())
        if (
            told
            and all(np.isfinite(one).all() and (one >= 0).all() for one in found)
            and (found[0] > 0).all()
        ):
            return found
    return np.zeros(0), np.zeros(0)
