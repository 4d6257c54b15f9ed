"""Builds the native core: which extensions exist, under which directives, with which compiler flags.

Rules:
  * Every `retailinfer/_native/*.pyx` is one extension; hand-written C files are listed in `C_SOURCES`, each for the one
    extension that links it, so that it is compiled exactly once.
  * Directives and flags are set here and nowhere else. `RETAILINFER_DEBUG=1` builds with every check on.
  * Answers must have the same bits on every machine: one baseline instruction set, no contraction, no fast-math. Flags
    of the user that would change that are taken out, and it is said.
  * Generated C lives in `build/`, never beside the sources. Metadata and tool settings are in pyproject.toml.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

NATIVE = Path("retailinfer/_native")
DEBUG = os.environ.get("RETAILINFER_DEBUG", "") not in ("", "0")

# Extension -> the hand-written C files it links. A file that is not listed here is not compiled.
C_SOURCES: dict[str, tuple[str, ...]] = {
    "aliases": ("alias_graph.c",),
    "program": ("feature_ops.c",),
    "feature_table": ("lru_table.c",),
    "ort": ("ort_run.c",),
    "reasons": ("tree_reasons.c",),
    "table": ("table_index.c",),
    "trees": ("forest_build.c", "forest_bits.c", "forest_run.c", "forest_post.c"),
    "windows": ("panes.c", "windows_wire.c"),
}

# Extension -> its kernels: C files that are compiled once for each instruction set. Which runs must never show in an answer.
KERNEL_SOURCES: dict[str, tuple[str, ...]] = {
    "trees": ("tree_walk.c", "tree_jump.c", "tree_ranked.c", "tree_kernels.c"),
    "reasons": ("reason_kernels.c",),
}
# RI_LEVEL -> flags; 1 is the baseline, and all there is outside of x86-64 and of compilers that know these flags.
LEVELS: dict[int, tuple[str, ...]] = {
    1: (),
    3: ("-march=x86-64-v3",),
    4: ("-march=x86-64-v4", "-mavx512vbmi", "-mavx512vbmi2"),
}

DIRECTIVES: dict[str, Any] = {
    "language_level": 3,
    "binding": True,
    "embedsignature": False,  # the .pyi files are the signatures; docstrings stay as written
    "auto_pickle": False,  # nothing native is ever pickled
    "autotestdict": False,  # no doctests, no `__test__` in every module
    # Off in the build that ships, because wrappers check once before the loops; on in the debug build, to prove it.
    "boundscheck": DEBUG,
    "initializedcheck": DEBUG,
    "nonecheck": DEBUG,
    # Off in both: a negative index is a bug here, and without wraparound the debug build's boundscheck finds it.
    "wraparound": False,
    "cdivision": not DEBUG,
    # `freethreading_compatible` stays unset until the thread sanitiser passes on a free-threaded build.
}

# Flags that choose an instruction set, or let the compiler change the result of floating point arithmetic.
HARMFUL_FLAG = re.compile(
    r"-m(arch|cpu|tune)=.*|-m(avx|fma|f16c|bmi|sse[34]|ssse3).*|-Ofast|-ffp-contract=.*|-flto.*|-fuse-linker-plugin|-ffast-math"
    r"|-f(no-)?(unsafe-math-optimizations|associative-math|reciprocal-math|finite-math-only|signed-zeros|rounding-math)"
    r"|/arch:.*|/fp:.*|/GL"
)

UNIX_FLAGS = [
    "-std=gnu11",
    "-fwrapv",  # the interpreter's own default, which a CFLAGS of the user replaces
    "-fno-fast-math",
    "-ffp-contract=off",  # without it arm64, and x86 with FMA, round differently from the baseline
    "-fno-math-errno",  # sqrt becomes one instruction; the value is the same
    "-fvisibility=hidden",
    # Newer compilers refuse these by themselves; here every compiler does.
    "-Werror=incompatible-pointer-types",
    "-Werror=implicit-function-declaration",
    "-Werror=int-conversion",
    "-fno-lto",  # the linker could keep one copy of a function for all instruction sets
    *(["-O1", "-g", "-fno-omit-frame-pointer", "-UNDEBUG"] if DEBUG else ["-O3", "-g0", "-DNDEBUG"]),
]
MSVC_FLAGS = [
    "/std:c11",
    "/experimental:c11atomics",
    "/fp:precise",
    "/utf-8",
    *(["/Od", "/Zi", "/UNDEBUG"] if DEBUG else ["/O2", "/DNDEBUG"]),
]


def extensions() -> list[Extension]:
    """One extension per .pyx file."""
    return [
        Extension(
            f"retailinfer._native.{pyx.stem}",
            [str(pyx), *(str(NATIVE / name) for name in C_SOURCES.get(pyx.stem, ()))],
            include_dirs=[str(NATIVE)],
            define_macros=[("RETAILINFER_DEBUG", "1")] if DEBUG else [],
        )
        for pyx in sorted(NATIVE.glob("*.pyx"))
    ]


class BuildNative(build_ext):
    """Runs Cython into `build/`, then compiles for the baseline instruction set, and kernels for each one that there is."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()
        self.build_temp += "-debug" if DEBUG else ""
        # Time stamps do not see a change of flags or directives, nor a debug build over a release build.
        self._stamp = Path("build", "native-inplace.stamp" if self.inplace else "native-lib.stamp")
        self._fingerprint = hashlib.sha256(
            repr(
                (
                    DEBUG,
                    sys.version,
                    os.environ.get("CC"),
                    os.environ.get("CFLAGS"),
                    Path(__file__).read_bytes(),
                )
            ).encode()
        ).hexdigest()
        if not self._stamp.exists() or self._stamp.read_text() != self._fingerprint:
            self.force = True

    def build_extensions(self) -> None:
        msvc = self.compiler.compiler_type == "msvc"
        self._clean_compiler()
        # All of Cython first, in one go: it is not safe to run from the threads that compile.
        generated = cythonize(
            self.extensions,
            build_dir=str(Path("build", "cython-debug" if DEBUG else "cython")),
            compiler_directives=DIRECTIVES,
            force=self.force,
            emit_linenums=DEBUG,
            gdb_debug=False,
        )
        sources = {ext.name: ext.sources for ext in generated}
        headers = [str(path) for path in sorted([*NATIVE.glob("*.h"), *NATIVE.glob("*.pxd")])]
        for ext in self.extensions:
            ext.sources = sources[ext.name]
            # After cythonize, which would copy them into its build folder, where an old copy could win.
            ext.depends = headers
            ext.extra_compile_args = MSVC_FLAGS if msvc else UNIX_FLAGS
        super().build_extensions()
        self._stamp.parent.mkdir(exist_ok=True)
        self._stamp.write_text(self._fingerprint)

    def build_extension(self, ext: Extension) -> None:
        kernels = KERNEL_SOURCES.get(ext.name.rpartition(".")[2], ())
        if kernels:
            self._compile_kernels(ext, [str(NATIVE / name) for name in kernels])
        super().build_extension(ext)

    def _compile_kernels(self, ext: Extension, kernels: list[str]) -> None:
        """Objects of the kernels for each level, linked into their extension."""
        ext.depends = [*ext.depends, *kernels]
        if not (
            self.force or newer_group([*ext.sources, *ext.depends], self.get_ext_fullpath(ext.name), "newer")
        ):
            return
        here = platform.machine().lower() in ("x86_64", "amd64") and self.compiler.compiler_type != "msvc"
        levels = LEVELS if here else {1: ()}
        if here:
            ext.define_macros = [*ext.define_macros, ("RI_HAVE_LEVELS", "1")]
        for level, flags in levels.items():
            ext.extra_objects = [
                *ext.extra_objects,
                *self.compiler.compile(
                    kernels,
                    output_dir=str(Path(self.build_temp, f"level-{level}")),
                    include_dirs=[str(NATIVE)],
                    macros=[*ext.define_macros, ("RI_LEVEL", str(level))],
                    extra_postargs=[*ext.extra_compile_args, *flags],
                    depends=ext.depends,
                ),
            ]

    def _clean_compiler(self) -> None:
        """Take harmful flags out of the commands that CFLAGS and the interpreter's own build settings gave."""
        removed: set[str] = set()
        for name in ("preprocessor", "compiler", "compiler_so", "compiler_cxx", "linker_so", "linker_exe"):
            command = getattr(self.compiler, name, None)
            if isinstance(command, list):
                removed.update(flag for flag in command if HARMFUL_FLAG.fullmatch(flag))
                setattr(self.compiler, name, [flag for flag in command if not HARMFUL_FLAG.fullmatch(flag)])
        if removed:
            self.warn(
                f"left out {' '.join(sorted(removed))}: such flags change results from machine to machine"
            )


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildNative})
