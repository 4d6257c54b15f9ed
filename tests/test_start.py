"""What a process pays before its first answer: the modules of an import and of a load, and annotations that are ready.

Rules:
  * The lists are whole: a module that comes to them is a decision, made here, with its milliseconds in the commit.
  * Modules of numpy, msgspec and of what they bring are there first: they are theirs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import typing
from collections.abc import Iterator
from types import GenericAlias
from typing import Any

import msgspec
import pytest
from test_trees_onnx import FEATURES, ensemble

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.contracts import Contract
from retailinfer.features.spec import Body
from retailinfer.policy import PolicyBody
from retailinfer.release.background import Background
from retailinfer.release.fallback import FallbackBody
from retailinfer.release.golden import Golden
from retailinfer.release.manifest import Manifest
from retailinfer.runtime.trees import Header

# What a release brings as JSON or MessagePack, and is decoded when it is loaded.
DECODED = (Background, Body, Contract, FallbackBody, Golden, Header, Manifest, PolicyBody)


def structs_of(kind: Any) -> Iterator[type[msgspec.Struct]]:
    """The Struct types in a type, and in the annotations of those that it is made of."""
    if isinstance(kind, type) and not isinstance(kind, GenericAlias) and issubclass(kind, msgspec.Struct):
        yield kind
        for inner in kind.__annotations__.values():
            yield from structs_of(inner)
    for inner in typing.get_args(kind):
        yield from structs_of(inner)


@pytest.mark.parametrize("kind", DECODED, ids=lambda kind: kind.__name__)
def test_annotations_of_what_is_decoded_at_load_are_ready(kind: type[msgspec.Struct]):
    """msgspec compiles annotations that are text, one by one, in the first decoding: 4 ms of a load of 20."""
    late = [
        f"{one.__name__}.{name}"
        for one in structs_of(kind)
        for name, annotation in one.__annotations__.items()
        if isinstance(annotation, str)
    ]
    assert late == []


# The names of a server: what `import_ms` of the benchmarks measures.
NAMES = "from retailinfer import FeatureSpec, Policy, Ranker, Scorer, Store"

IMPORTED = [
    "retailinfer",
    "retailinfer._native",
    "retailinfer._native.table",
    "retailinfer.clock",
    "retailinfer.columns",
    "retailinfer.contracts",
    "retailinfer.cpus",
    "retailinfer.deadline",
    "retailinfer.errors",
    "retailinfer.features",
    "retailinfer.features.spec",
    "retailinfer.limits",
    "retailinfer.policy",
    "retailinfer.ranker",
    "retailinfer.release",
    "retailinfer.release.manifest",
    "retailinfer.scorer",
    "retailinfer.serving",
    "retailinfer.serving.door",
    "retailinfer.serving.looplag",
    "retailinfer.serving.threads",
    "retailinfer.store",
    "retailinfer.store.store",
]

# What a release without a ladder, tables, windows, reasons and signatures takes beside that, to its first answer.
LOADED = [
    "retailinfer._native.admission",
    "retailinfer._native.aliases",
    "retailinfer._native.engine",
    "retailinfer._native.feature_table",
    "retailinfer._native.ort",
    "retailinfer._native.program",
    "retailinfer._native.reasons",
    "retailinfer._native.resolve",
    "retailinfer._native.trees",
    "retailinfer._native.windows",
    "retailinfer.features.canonical",
    "retailinfer.features.program",
    "retailinfer.features.transform",
    "retailinfer.life",
    "retailinfer.monitoring",
    "retailinfer.monitoring.events",
    "retailinfer.pipeline",
    "retailinfer.release.background",
    "retailinfer.release.bundle",
    "retailinfer.release.fallback",
    "retailinfer.release.golden",
    "retailinfer.release.parsing",
    "retailinfer.resilience",
    "retailinfer.resilience.drills",
    "retailinfer.resilience.ladder",
    "retailinfer.rungs",
    "retailinfer.runtime",
    "retailinfer.runtime.session",
    "retailinfer.serving.answers",
    "retailinfer.serving.drain",
    "retailinfer.serving.lasting",
    "retailinfer.serving.live",
    "retailinfer.serving.loading",
    "retailinfer.serving.standins",
    "retailinfer.serving.turns",
]

# Of Python's own, with what they bring. hashlib and threading are for loading; who imports nothing of a server has neither.
STANDARD = {
    "_blake2",
    "_cython",
    "_hashlib",
    "_hmac",
    "_sha2",
    "atexit",
    "cython_runtime",
    "errno",
    "hashlib",
    "threading",
}

PROBE = """
import json, sys
import msgspec, msgspec.json, numpy
before = set(sys.modules)
STATEMENT
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def brought(statement: str) -> set[str]:
    """The modules that a statement brings, in a new interpreter that has numpy and msgspec."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE.replace("STATEMENT", statement)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def own(modules: set[str]) -> set[str]:
    """Those of the library."""
    return {name for name in modules if name.split(".", maxsplit=1)[0] == "retailinfer"}


def others(modules: set[str]) -> set[str]:
    """The rest, but for what is expected; Cython's own name has its version in it."""
    rest = modules - own(modules)
    return {name for name in rest if name not in STANDARD and not name.startswith("_cython")}


def test_names_of_a_server_bring_no_more_than_they_need():
    """Declarations and doors; no engine, no threads, nothing of Python that numpy and msgspec have not brought."""
    modules = brought(NAMES)
    assert sorted(own(modules)) == sorted(IMPORTED)
    assert others(modules) == set()
    assert modules.isdisjoint({"threading", "hashlib"})


@pytest.mark.parametrize("engine", ["trees", "onnx"])
def test_a_load_brings_no_more_than_its_release_needs(engine, tmp_path):
    """Look-ups, Arrow, explanations, random numbers and coroutines stay away; of trees ONNX Runtime does too."""
    names = [f"f{i}" for i in range(FEATURES)]
    ri.pack(
        "fraud",
        model=ensemble(
            "TreeEnsembleClassifier", classlabels_int64s=[0, 1], post_transform="LOGISTIC"
        ).SerializeToString(),
        features=ri.FeatureSpec(
            request=dict.fromkeys(names, float), columns=[c.numeric(name) for name in names]
        ),
        engine=engine,
        out=tmp_path / engine,
    )
    modules = brought(
        f"{NAMES}\nScorer.load({str(tmp_path / engine)!r}, trust='unsigned').score(dict.fromkeys({names!r}, 1.0))"
    )
    more = ["retailinfer.runtime.trees"] if engine == "trees" else []
    assert sorted(own(modules)) == sorted({*IMPORTED, *LOADED, *more})
    # The library of ONNX Runtime is looked for without importing its package.
    assert others(modules) <= (
        set() if engine == "trees" else {"importlib", "importlib._abc", "importlib.util"}
    )


def test_preload_brings_what_a_worker_would_import_to_load():
    """A master that loads nothing itself still hands its workers the modules, whose pages they share."""
    modules = brought(f"{NAMES}\nfrom retailinfer import preload\npreload()")
    assert set(LOADED) - modules == {"retailinfer.release.background"}
