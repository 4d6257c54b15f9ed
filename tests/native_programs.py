"""Builds the C programs of tests/native from the sources and flags that ship, for a compiler and its sanitisers.

Rules:
  * Which sources there are, and the flags of each instruction set, are read out of setup.py: nothing is repeated here.
  * A program is built once for what it is made of, in build/native-tests, whichever process asks first.
  * A missing tool is a skip with its name; in CI, where `.ci/run` installs them, conftest.py makes that a failure.
"""

from __future__ import annotations

import ast
import fcntl
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
NATIVE = ROOT / "retailinfer/_native"
HERE = ROOT / "tests/native"
BUILT = ROOT / "build/native-tests"
LINUX_X86 = sys.platform == "linux" and platform.machine() == "x86_64"

WARNINGS = (
    "-Wall",
    "-Wextra",
    "-Wshadow",
    "-Wpointer-arith",
    "-Wstrict-prototypes",
    "-Wfloat-conversion",
    "-Werror",
)
_CHECKED = ("-O1", "-g", "-UNDEBUG", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all")
SANITISED = (*_CHECKED, "-fsanitize=address,undefined,float-cast-overflow")
MEMORY_SANITISED = (*_CHECKED, "-fsanitize=memory")
FUZZED = (*_CHECKED, "-fsanitize=fuzzer,address,undefined,float-cast-overflow")
# A report is an abort, so that the harness can leave the case behind.
SANITISER_SETTINGS = {
    "ASAN_OPTIONS": "abort_on_error=1:detect_leaks=1:allocator_may_return_null=1:max_allocation_size_mb=4096",
    "UBSAN_OPTIONS": "print_stacktrace=1:abort_on_error=1",
}
CHECKS = ("forest_cases.c", "forest_checks.c", "reason_checks.c")
FOREST = (*CHECKS, "forest_main.c")
FOREST_FUZZ = (*CHECKS, "forest_fuzz.c")
WINDOWS_FUZZ = ("windows_fuzz.c",)
EXTENSIONS = ("trees", "reasons")
# Static, so that no C library of arm64 has to be found where it runs.
ARM64: dict[str, Any] = {
    "name": "forest-arm64",
    "compiler": "aarch64-linux-gnu-gcc",
    "flags": ("-O3",),
    "link": ("-static",),
    "levels": False,
}


@dataclass(frozen=True)
class Setup:
    """What setup.py says of forests and their reasons."""

    sources: tuple[Path, ...]
    kernels: tuple[Path, ...]
    levels: dict[int, tuple[str, ...]]
    flags: tuple[str, ...]


@functools.cache
def setup_facts() -> Setup:
    """The constants of setup.py, which cannot be imported: it builds."""
    found: dict[str, object] = {"DEBUG": False}
    wanted = {"C_SOURCES", "KERNEL_SOURCES", "LEVELS", "UNIX_FLAGS"}
    for statement in ast.parse((ROOT / "setup.py").read_text()).body:
        target = (
            statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        )
        if isinstance(target, ast.Name) and target.id in wanted:
            code = compile(ast.Expression(statement.value), "setup.py", "eval")
            found[target.id] = eval(code, {"__builtins__": {}}, found)
    kernels: list[str] = []
    for extension in EXTENSIONS:
        mine = found["KERNEL_SOURCES"][extension]
        kernels += [mine] if isinstance(mine, str) else mine
    plain = [
        flag for flag in found["UNIX_FLAGS"] if not flag.startswith(("-O", "-g", "-DNDEBUG", "-fvisibility"))
    ]
    return Setup(
        tuple(NATIVE / name for extension in EXTENSIONS for name in found["C_SOURCES"][extension]),
        tuple(NATIVE / name for name in kernels),
        found["LEVELS"],
        tuple(plain),
    )


def tool(name: str) -> str:
    """Path of a program, or a skip that says which is missing."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"`{name}` is not installed; `.ci/run` installs it with apt-get where it may")
    return path


def run(
    command: list[str | Path | int], *, timeout: float = 170, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run to the end; the caller looks at the code."""
    return subprocess.run(
        [str(part) for part in command],
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout,
        errors="replace",
        env={**os.environ, "FOREST_CASE": str(BUILT / "forest-case.bin"), **SANITISER_SETTINGS, **settings},
    )


def forest_program(
    name: str,
    compiler: str = "cc",
    flags: tuple[str, ...] = ("-O3",),
    *,
    main: tuple[str, ...] = FOREST,
    link: tuple[str, ...] = (),
    levels: bool = LINUX_X86,
) -> Path:
    """The path of a program out of the forest's sources, its kernels for each level, and files of tests/native."""
    setup = setup_facts()
    return _program(name, compiler, flags, main, setup.sources, setup.kernels, link=link, levels=levels)


def windows_program(name: str, compiler: str = "clang", flags: tuple[str, ...] = FUZZED) -> Path:
    """The path of a program out of the windows' sources, which reads them out of hostile bytes."""
    sources = tuple(NATIVE / one for one in ("panes.c", "windows_wire.c"))
    return _program(name, compiler, flags, WINDOWS_FUZZ, sources, (), link=(), levels=False)


def _program(
    name: str,
    compiler: str,
    flags: tuple[str, ...],
    main: tuple[str, ...],
    sources: tuple[Path, ...],
    kernels: tuple[Path, ...],
    *,
    link: tuple[str, ...],
    levels: bool,
) -> Path:
    setup = setup_facts()
    compiler = tool(compiler)
    own = [HERE / one for one in main]
    inputs = [*own, *sources, *kernels, *sorted(HERE.glob("*.h")), *sorted(NATIVE.glob("*.h"))]
    recipe = repr((compiler, flags, link, levels, setup.flags, setup.levels, WARNINGS)).encode()
    digest = hashlib.sha256(b"".join([recipe, *(path.read_bytes() for path in inputs)])).hexdigest()[:16]
    folder = BUILT / f"{name}-{digest}"
    program = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if program.exists():
            return program
        common = [compiler, *setup.flags, *flags, f"-I{NATIVE}", f"-I{HERE}"]
        if levels:
            common.append("-DRI_HAVE_LEVELS=1")
        objects = []
        for level, more in (setup.levels if levels else {1: ()}).items():
            for source in kernels:
                objects.append(folder / f"{source.stem}-{level}.o")
                _compile([*common, *more, f"-DRI_LEVEL={level}", "-c", source, "-o", objects[-1]])
        for source in sources:
            objects.append(folder / f"{source.stem}.o")
            _compile([*common, "-c", source, "-o", objects[-1]])
        for source in own:
            objects.append(folder / f"{source.stem}.o")
            _compile([*common, *WARNINGS, "-c", source, "-o", objects[-1]])
        unfinished = folder / f"{name}.new"
        _compile([compiler, *flags, *objects, *link, "-lm", "-o", unfinished])
        unfinished.rename(program)
    return program


def _compile(command: list[str | Path]) -> None:
    done = run(command)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stderr[-4000:]}"
