"""What the sdist and the wheel carry, and how the native core was built.

Rules: these tests look at the artefacts that `make build` made (`RETAILINFER_DIST` names their folder) and at the
installed files, never at what the source tree would build.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NATIVE = ROOT / "retailinfer" / "_native"
DEBUG = os.environ.get("RETAILINFER_DEBUG", "") not in ("", "0")


@pytest.fixture(scope="module")
def dist() -> Path:
    """Folder with one sdist and one wheel."""
    folder = os.environ.get("RETAILINFER_DIST")
    if not folder:
        pytest.skip(
            "RETAILINFER_DIST does not name the folder of the built sdist and wheel; `make test` sets it"
        )
    return Path(folder)


@pytest.fixture(scope="module")
def wheel_files(dist: Path) -> set[str]:
    """Names in the wheel."""
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def sdist_files(dist: Path) -> set[str]:
    """Names in the sdist, without its top folder."""
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def package_files(*suffixes: str) -> set[str]:
    """Files of the source package with these suffixes, relative to the project."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "retailinfer").rglob("*")
        if path.suffix in suffixes
    }


def test_wheel_carries_every_module_stub_and_the_typing_marker(wheel_files):
    """Nothing that is imported or type-checked is left out of the wheel."""
    assert package_files(".py", ".pyi") | {"retailinfer/py.typed"} <= wheel_files


def test_wheel_carries_no_native_sources(wheel_files):
    """The wheel has the compiled extensions and not what they were compiled from."""
    assert {name for name in wheel_files if name.endswith((".pyx", ".pxd", ".c", ".h", ".o"))} == set()
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    built = {f"retailinfer/_native/{path.stem}{suffix}" for path in NATIVE.glob("*.pyx")}
    assert built == {name for name in wheel_files if name.endswith((".so", ".pyd"))}


def test_wheel_installs_nothing_beside_the_package(wheel_files):
    """Tests, benchmarks and examples stay out of site-packages."""
    tops = {name.split("/")[0] for name in wheel_files}
    assert {top for top in tops if not top.startswith("retailinfer-")} == {"retailinfer"}


def test_sdist_carries_all_sources_and_nothing_generated(sdist_files):
    """The sdist builds anywhere: all native sources, the tests with their own C, and no C file that Cython wrote."""
    sources = package_files(".py", ".pyi", ".pyx", ".pxd", ".c", ".h")
    assert sources | {"Makefile", "setup.py", "LICENSE", "tests/test_packaging.py"} <= sdist_files
    carried = {name for name in sdist_files if name.endswith((".pyx", ".pxd", ".c", ".h"))}
    harness = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests/native").glob("*.[ch]")}
    assert carried == package_files(".pyx", ".pxd", ".c", ".h") | harness


def test_every_hand_written_c_file_is_linked_by_one_extension():
    """setup.py names each C file once, for an extension that exists: none twice, none forgotten.

    `C_SOURCES` are compiled once, `KERNEL_SOURCES` once for each instruction set.
    """
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    tables = {
        node.target.id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and node.target.id in ("C_SOURCES", "KERNEL_SOURCES")
    }
    linked = [name for names in tables["C_SOURCES"].values() for name in names]
    linked += [name for names in tables["KERNEL_SOURCES"].values() for name in names]
    assert sorted(linked) == sorted(path.name for path in NATIVE.glob("*.c"))
    extensions = {path.stem for path in NATIVE.glob("*.pyx")}
    assert all(set(table) <= extensions for table in tables.values())


def test_every_extension_has_a_stub():
    """The .pyi beside each .pyx is its contract: without one, mypy sees nothing."""
    assert {path.stem for path in NATIVE.glob("*.pyx")} == {path.stem for path in NATIVE.glob("*.pyi")}


def test_directives_stand_in_setup_py_alone():
    """No Cython file sets a directive or a compiler option in its header, where the debug build could not change it."""
    headers = [
        f"{path.name}: {found}"
        for path in sorted(NATIVE.glob("*.p[yx][xd]"))
        for found in re.findall(
            r"^#\s*(?:cython|distutils)\s*:.*", path.read_text(encoding="utf-8"), re.MULTILINE
        )
    ]
    assert headers == []


def test_every_module_says_what_lives_there():
    """The first thing in every Python and Cython file is a docstring."""
    silent = [
        path.relative_to(ROOT).as_posix()
        for folder in ("retailinfer", "tests", "benchmarks", "examples")
        for path in sorted((ROOT / folder).rglob("*.py*"))
        if path.suffix in (".py", ".pyx", ".pyi")
        and not path.read_text(encoding="utf-8").startswith(('"""', 'r"""'))
    ]
    assert silent == []


def test_extras_named_in_code_exist():
    """Every `retailinfer[extra]` that a message or docstring tells people to install is one that pyproject.toml has."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {
        extra.strip()
        for path in (ROOT / "retailinfer").rglob("*.py*")
        if path.suffix in (".py", ".pyx", ".pyi")
        for found in re.findall(r"retailinfer\[([\w, -]+)\]", path.read_text(encoding="utf-8"))
        for extra in found.split(",")
    }
    assert named <= set(project["optional-dependencies"])


@pytest.mark.skipif(sys.platform != "linux", reason="platform: looks at ELF sections")
def test_extensions_are_of_the_build_that_this_run_is_for():
    """The run with `RETAILINFER_DEBUG=1` really tests the build with all checks, and the other one the fast build."""
    spec = find_spec("retailinfer._native")
    assert spec is not None
    built = [path for folder in spec.submodule_search_locations or () for path in Path(folder).glob("*.so")]
    assert built
    assert {path.name: b".debug_info" in path.read_bytes() for path in built} == dict.fromkeys(
        (path.name for path in built), DEBUG
    )


@pytest.mark.skipif(sys.platform != "linux", reason="platform: reads the symbol table with nm")
def test_extensions_export_nothing_but_their_init_function():
    """Hidden visibility: no symbol of ours can meet one of another library in the process."""
    spec = find_spec("retailinfer._native")
    assert spec is not None
    for folder in spec.submodule_search_locations or ():
        for path in Path(folder).glob("*.so"):
            listing = subprocess.run(
                ["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True
            )
            exported = {line.split()[-1] for line in listing.stdout.splitlines()}
            assert exported == {f"PyInit_{path.name.split('.')[0]}"}
