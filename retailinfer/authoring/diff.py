"""What changed between two releases, and what it does to the golden decisions: `retailinfer diff A B`.

Rules:
  * What is told is what decides an answer or what an auditor asks for; digests of files that say the same are left out.
  * Golden rows of both releases go through both: with the values that were looked up when they were packed. A row that one of
    them refuses is counted, and decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from retailinfer.authoring.compare import (
    Answers,
    answers,
    columns_of_golden,
    flips,
    refuse_nothing_to_compare,
)
from retailinfer.authoring.loading import Loaded, build
from retailinfer.features.streams import describe_window
from retailinfer.release.bundle import Bundle, PathLike, read_bundle
from retailinfer.release.fallback import Fallback

if TYPE_CHECKING:
    from retailinfer.features.spec import FeatureSpec
    from retailinfer.release.trust_files import Trust
    from retailinfer.store.store import Store

__all__ = ["Change", "Diff", "GoldenDiff", "describe_changes", "diff"]

SKIPPED_FACTS = (
    "digest",
    "files",
    "models",
    "created",
    "version",
    "name",
    "format",
    "spec_fingerprint",
    "reads",
)
FLIPS_KEPT = 20


class Change(msgspec.Struct, frozen=True):
    """One thing that is different. `part`: "features", "policy" ...; before, after: None where it is not there."""

    part: str
    what: str
    before: Any = None
    after: Any = None


class GoldenDiff(msgspec.Struct, frozen=True, kw_only=True):
    """The golden rows of one release, answered by both.

    Attributes:
        of: "before" or "after": whose golden rows they are.
        rows: how many. compared: those that both score. refused_before, refused_after: those that one has no score for.
        absent_before, absent_after: what the rows do not have, and was null.
        same_bits: every compared score is the same. max_difference, mean_difference: of the scores.
        decided: rows that both decide. flips: "approve -> review" -> number of them.
        rows_flipped: [row, score before, score after, action before, action after], the first 20.
        why_not: why nothing was compared.
    """

    of: str
    rows: int = 0
    compared: int = 0
    refused_before: int = 0
    refused_after: int = 0
    absent_before: tuple[str, ...] = ()
    absent_after: tuple[str, ...] = ()
    same_bits: bool = True
    max_difference: float = 0.0
    mean_difference: float = 0.0
    decided: int = 0
    flips: dict[str, int] = {}
    rows_flipped: list[tuple[int, float, float, str, str]] = []
    why_not: str | None = None


class Diff(msgspec.Struct, frozen=True, kw_only=True):
    """Two releases beside each other. `same`: nothing that decides an answer is different."""

    before: str
    after: str
    digest_before: str
    digest_after: str
    changes: list[Change] = []
    golden: list[GoldenDiff] = []

    @property
    def same(self) -> bool:
        """No change of anything that decides an answer, and the same golden scores."""
        told = {"facts", "machine", "lineage"}  # what is read otherwise is told by the features, too
        return all(one.part in told for one in self.changes) and all(
            one.same_bits and not one.flips for one in self.golden
        )


def diff(
    before: PathLike | Mapping[str, bytes],
    after: PathLike | Mapping[str, bytes],
    *,
    store: Store | None = None,
    trust: Trust | None = None,
) -> Diff:
    """Compare two releases.

    Args:
        before, after: directories, or files by name.
        store: the tables that they read; golden rows bring their own values, so stand-ins do.
        trust: whom to believe; None reads both as unsigned.
    Raises: BundleError when one of them is not whole or does not answer here.
    """
    a, b = read_bundle(before, trust=trust), read_bundle(after, trust=trust)
    loaded = []
    try:
        loaded = [build(a, store=store)]
        loaded.append(build(b, store=store))
        golden = [_golden("before", *loaded), _golden("after", *loaded)]
    finally:
        for one in loaded:
            one.door.close()
    return Diff(
        before=a.manifest.release,
        after=b.manifest.release,
        digest_before=a.manifest.digest,
        digest_after=b.manifest.digest,
        changes=describe_changes(a, b, loaded[0].pipeline.spec, loaded[1].pipeline.spec),
        golden=golden,
    )


# ---- what changed ----------------------------------------------------------------------------------------------------


def describe_changes(a: Bundle, b: Bundle, spec_a: FeatureSpec, spec_b: FeatureSpec) -> list[Change]:
    """Everything that is different, part by part."""
    found: list[Change] = []
    found += _between("facts", _facts(a), _facts(b))
    found += _between("models", _models(a), _models(b))
    found += _between("request", _fields(spec_a), _fields(spec_b))
    found += _between("features", _columns(spec_a), _columns(spec_b))
    found += _between("tables", _tables(spec_a), _tables(spec_b))
    found += _between("windows", _windows(spec_a), _windows(spec_b))
    found += _between("lineage", _reads(a), _reads(b))
    for role in ("policy", "contract"):
        found += _between(
            role, _flat(a.read(role, msgspec.json.decode)), _flat(b.read(role, msgspec.json.decode))
        )
    bodies = [one.read("fallback", Fallback.from_json) for one in (a, b)]
    plain = [{} if one is None else _flat(msgspec.to_builtins(one.body)) for one in bodies]
    found += _between("fallback", plain[0], plain[1])
    return found


def _between(part: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Change]:
    return [
        Change(part, name, a.get(name), b.get(name))
        for name in dict.fromkeys((*a, *b))
        if a.get(name) != b.get(name)
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Mappings inside mappings as one, with dotted names."""
    if not isinstance(value, dict):
        return {} if value is None and not prefix else {prefix: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return found


def _facts(bundle: Bundle) -> dict[str, Any]:
    plain = msgspec.to_builtins(bundle.manifest)
    facts = _flat({key: value for key, value in plain.items() if key not in SKIPPED_FACTS})
    return {k: v for k, v in facts.items() if not k.startswith(("info.version", "quantization.trials"))}


def _reads(bundle: Bundle) -> dict[str, Any]:
    """What is read: of whom, which columns, by which definition."""
    found: dict[str, Any] = {}
    for one in bundle.manifest.reads:
        found[f"{one.kind} {one.name}"] = "read"
        found |= {f"{one.kind} {one.name}: {key}": getattr(one, key) for key in ("owner", "columns")}
        found[f"{one.kind} {one.name}: definition"] = None if one.digest is None else one.digest[:12]
    return found


def _models(bundle: Bundle) -> dict[str, Any]:
    by_file = {entry.file: entry for entry in bundle.manifest.files}
    found: dict[str, Any] = {"running order": [model.role for model in bundle.manifest.models]}
    for model in bundle.manifest.models:
        plain = msgspec.to_builtins(model)
        found[f"{model.role}: content"] = by_file[model.file].sha256[:12]
        found[f"{model.role}: bytes"] = by_file[model.file].size
        for key in ("engine", "source", "quantized", "parity", "inputs", "outputs", "trees_only"):
            found[f"{model.role}: {key}"] = plain.get(key)
    return found


def _fields(spec: FeatureSpec) -> dict[str, Any]:
    body = spec.body
    found: dict[str, Any] = {
        field.name: f"{field.type}{' | None' if field.optional else ''}"
        + (f", on the wire `{field.wire}`" if field.wire else "")
        for field in spec.fields
    }
    found |= {f"array {one.name}": msgspec.to_builtins(one) for one in spec.arrays}
    named = {
        "event time": body.event_time,
        "time zone": body.tz,
        "candidate": body.candidate,
        "extra": body.extra,
    }
    return found | {f"({key})": value for key, value in named.items()}


def _columns(spec: FeatureSpec) -> dict[str, Any]:
    """Every column in its place, what `fit` taught it, and vocabularies by their sizes and what came and went."""
    body = spec.body
    found: dict[str, Any] = {}
    for tensor_name, tensor in body.tensors.items():
        found[f"({tensor_name}: order)"] = [column.name for column in tensor.columns]
        for column in tensor.columns:
            fitted = body.fitted.get(column.name)
            found[column.name] = {
                **msgspec.to_builtins(column),
                **({} if fitted is None else {"fitted": msgspec.to_builtins(fitted)}),
            }
    for name, vocabulary in body.vocabularies.items():
        found[f"(vocabulary {name})"] = list(vocabulary.values)
    return found


def _tables(spec: FeatureSpec) -> dict[str, Any]:
    found: dict[str, Any] = {name: f"{kind}, looked up" for name, kind in spec.body.stored.items()}
    for name, entity in spec.body.entities.items():
        found[f"(key of {name})"] = list(entity.key)
    return found


def _windows(spec: FeatureSpec) -> dict[str, Any]:
    return {name: describe_window(one, spec.body.tz) for name, one in spec.body.windows.items()}


# ---- golden rows -----------------------------------------------------------------------------------------------------


def _golden(of: str, a: Loaded, b: Loaded) -> GoldenDiff:
    owner = a if of == "before" else b
    golden = owner.golden
    for one in (a, b):
        if (why := refuse_nothing_to_compare(one.pipeline)) is not None:
            return _golden_arrays(of, owner, a, b, f"{one.bundle.manifest.release}: {why}")
    if golden is None or not golden.columns:
        return GoldenDiff(of=of, why_not=f"{owner.bundle.manifest.release} has no golden rows")
    made: list[Answers] = []
    for one in (a, b):
        columns, absent = columns_of_golden(golden, owner.pipeline, one.pipeline)
        made.append(answers(one.pipeline, columns, now_ns=golden.now_ns, absent=absent))
    before, after = made
    both = np.isfinite(before.scores) & np.isfinite(after.scores)
    apart = np.abs(before.scores[both].astype(np.float64) - after.scores[both].astype(np.float64))
    turned = [
        (row, float(before.scores[row]), float(after.scores[row]), x, y)
        for row, (x, y) in enumerate(zip(before.actions, after.actions, strict=True))
        if x is not None and y is not None and x != y
    ]
    return GoldenDiff(
        of=of,
        rows=golden.n_rows,
        compared=int(both.sum()),
        refused_before=before.refused,
        refused_after=after.refused,
        absent_before=before.absent,
        absent_after=after.absent,
        same_bits=bool(np.array_equal(before.scores.view(np.uint32), after.scores.view(np.uint32))),
        max_difference=float(apart.max(initial=0.0)),
        mean_difference=float(apart.mean()) if apart.size else 0.0,
        decided=sum(
            x is not None and y is not None for x, y in zip(before.actions, after.actions, strict=True)
        ),
        flips={f"{x} -> {y}": n for (x, y), n in flips(before.actions, after.actions).items()},
        rows_flipped=turned[:FLIPS_KEPT],
    )


def _golden_arrays(of: str, owner: Loaded, a: Loaded, b: Loaded, why_not: str) -> GoldenDiff:
    """Releases of arrays: the outputs that both have, over arrays that both take."""
    golden = owner.golden
    if not (a.pipeline.spec.arrays and b.pipeline.spec.arrays) or golden is None or not golden.arrays:
        return GoldenDiff(of=of, why_not=why_not)
    feeds = golden.feeds()
    taken = [{one.name for one in loaded.pipeline.spec.arrays} for loaded in (a, b)]
    if taken[0] != taken[1]:
        return GoldenDiff(of=of, why_not="they take other arrays")
    found = [loaded.pipeline.score_arrays(feeds) for loaded in (a, b)]
    common = [
        name
        for name, one in found[0].items()
        if name in found[1] and one.shape == found[1][name].shape and one.dtype.kind in "fiub"
    ]
    if not common:
        return GoldenDiff(of=of, why_not="they have no output of one shape in common")
    apart = np.concatenate(
        [np.abs(found[0][n].astype(np.float64) - found[1][n].astype(np.float64)).reshape(-1) for n in common]
    )
    return GoldenDiff(
        of=of,
        rows=golden.n_rows,
        compared=golden.n_rows,
        same_bits=all(np.array_equal(found[0][n], found[1][n]) for n in common),
        max_difference=float(np.nanmax(apart, initial=0.0)),
        mean_difference=float(np.nanmean(apart)) if apart.size else 0.0,
    )
