"""Packages into an environment: by uv, which takes a quarter of the time; by pip where uv is missing or does not manage.

    python requirements/install.py .venv-test --constraints requirements/ci.txt --extra dev
    python requirements/install.py .venv-mlserver --constraints requirements/mlserver.txt "mlserver>=1.6"

Rules:
  * What is installed is what pip would install: the same constraints, and the indexes, certificates and folders that pip is
    set to (`pip config`), which uv does not read. Where a setting has no translation here, pip does the whole of it.
  * An extra is read from pyproject.toml, with the extras that it names, so that nothing has to be built first.
  * uv is the one beside the interpreter that runs this; the environment needs neither.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
UV = Path(sys.executable).with_name("uv")

# pip's setting -> uv's variable, and what stands between several values of it there.
TRANSLATED = {
    "index-url": ("UV_DEFAULT_INDEX", ""),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "cert": ("SSL_CERT_FILE", ""),
    "timeout": ("UV_HTTP_TIMEOUT", ""),
    "default-timeout": ("UV_HTTP_TIMEOUT", ""),
    "retries": ("UV_HTTP_RETRIES", ""),
    "no-index": ("UV_NO_INDEX", ""),
    "proxy": ("ALL_PROXY", ""),
}
# They change nothing of what is installed; constraints are given here.
WITHOUT_EFFECT = {
    "constraint", "disable-pip-version-check", "no-input", "quiet", "verbose", "progress-bar", "no-color",
    "require-virtualenv", "root-user-action", "cache-dir", "no-cache-dir", "break-system-packages",
}  # fmt: skip


def requirements_of(extra: str, project: dict) -> list[str]:
    """What the project needs with an extra; extras of its own name are followed."""
    found = list(project["dependencies"])
    todo, seen = [extra], {extra}
    while todo:
        for one in project["optional-dependencies"][todo.pop()]:
            own = re.fullmatch(rf"{project['name']}\[([\w,\s-]+)\]", one)
            if own is None:
                found.append(one)
                continue
            named = {name.strip() for name in own[1].split(",")} - seen
            seen |= named
            todo += sorted(named)
    return list(dict.fromkeys(found))


def uv_settings(listed: str) -> dict[str, str] | None:
    """The variables that make uv do as pip is set to, from what `pip config list` says; None: it cannot.

    Files first, then the section of `pip install`, then the environment: the last one wins, as with pip.
    """
    ranks = {"global": 0, "install": 1, ":env:": 2}
    found = []
    for line in listed.splitlines():
        name, equals, value = line.partition("=")
        section, dot, key = name.rpartition(".")
        if equals and dot and section in ranks:
            found.append((ranks[section], key, str(ast.literal_eval(value))))
    made: dict[str, str] = {}
    for _, key, value in sorted(found, key=lambda one: one[0]):
        if key in WITHOUT_EFFECT:
            continue
        if key not in TRANSLATED:
            return None
        variable, between = TRANSLATED[key]
        values = value.split()
        if len(values) > 1 and not between:
            return None
        made[variable] = between.join(values)
    return made


def _by_uv(python: Path, constraints: Path | None, wanted: list[str]) -> bool:
    if not UV.exists():
        return False
    pip = [sys.executable, "-m", "pip", "config", "list"]
    settings = uv_settings(subprocess.run(pip, check=True, capture_output=True, text=True).stdout)
    if settings is None:
        return False
    command = [
        str(UV), "pip", "install", "--quiet", "--python", str(python),
        "--index-strategy", "unsafe-best-match",  # the newest of all indexes, as pip has it
        "--compile-bytecode",  # as pip does; servers that tests start would do it again and again
    ]  # fmt: skip
    if constraints is not None:
        command += ["--constraints", str(constraints), "--build-constraints", str(constraints)]
    # A setting of uv's own that somebody has made wins over pip's.
    return subprocess.run([*command, *wanted], check=False, env=settings | os.environ).returncode == 0


def _by_pip(python: Path, constraints: Path | None, wanted: list[str]) -> None:
    command = [str(python), "-m", "pip", "-qq", "--no-input", "--require-virtualenv", "install", *wanted]
    constrained = {"PIP_CONSTRAINT": str(constraints or "")}
    subprocess.run(command, check=True, env=os.environ | constrained)


def main() -> int:
    """What the command line asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("environment", type=Path)
    parser.add_argument("--constraints", type=Path, default=None)
    parser.add_argument("--extra", default=None, help="of this project, with all that it needs itself")
    parser.add_argument("requirements", nargs="*")
    given = parser.parse_intermixed_args()
    wanted = list(given.requirements)
    if given.extra is not None:
        wanted += requirements_of(given.extra, tomllib.loads(PROJECT.read_text())["project"])
    python = given.environment.absolute() / "bin/python"  # not resolved: a link to the interpreter itself
    constraints = None if given.constraints is None else given.constraints.resolve()
    if not _by_uv(python, constraints, wanted):
        sys.stdout.write(f"   {given.environment}: by pip\n")
        _by_pip(python, constraints, wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
