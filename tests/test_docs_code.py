"""The code in README.md and docs/ runs as it stands, page by page, and its outputs are the outputs shown.

How a block is marked decides what happens with it:
  ```python            runs, in the page's one namespace, in a folder with the tables of docs_data.py
  ```python fragment   compiles only: it names what a reader has and this test has not; the page says so by `...` or text
  ```pycon             runs as a doctest in the same namespace; `...` in an output stands for anything
  ```console           every `$ retailinfer` line is understood by the command line's own parser
Anything else (text, json, toml) is not looked at.
"""

from __future__ import annotations

import doctest
import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import docs_data
import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.requires("pyarrow", "onnx", "lightgbm", "onnxmltools", "sklearn", "skl2onnx")


class Block(NamedTuple):
    """A fenced block: where its first line stands, how it is marked, what is in it."""

    page: str
    line: int
    info: str
    code: str


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page.name, text.count("\n", 0, m.start()) + 2, m["info"].strip(), m["code"])
        for m in FENCE.finditer(text)
    ]


def compiled(block: Block) -> object:
    """A block as code whose tracebacks name the page and its line."""
    return compile("\n" * (block.line - 1) + block.code, block.page, "exec", dont_inherit=True)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The working folder of a page: the tables, and nothing else."""
    docs_data.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_of_a_page_runs(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Blocks run from top to bottom in one namespace, as somebody who types them in would."""
    namespace: dict[str, object] = {"__name__": "__docs__"}
    monkeypatch.setitem(
        sys.modules, "__docs__", sys.modules[__name__]
    )  # a home for classes that a page defines
    parser = doctest.DocTestParser()
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for block in blocks(page):
        if block.info == "python":
            exec(compiled(block), namespace)
        elif block.info == "pycon":
            test = parser.get_doctest(block.code, namespace, block.page, str(page), block.line - 1)
            assert test.examples, f"{block.page}:{block.line} shows no `>>>`"
            said: list[str] = []
            found = runner.run(test, out=said.append, clear_globs=False)
            namespace.update(test.globs)  # a doctest works on a copy
            assert found.failed == 0, "".join(said)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_fragments_of_a_page_compile(page: Path):
    """What cannot run here is at least Python; every other mark is one of the known ones."""
    for block in blocks(page):
        if block.info == "python fragment":
            compiled(block)
        known = ("python", "python fragment", "pycon", "console", "text", "json", "toml", "sh")
        assert block.info in known, f"{block.page}:{block.line} is marked {block.info!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_a_page_are_understood(page: Path):
    """No page shows an option that the command line does not have."""
    wrong = []
    for block in blocks(page):
        if block.info not in ("console", "sh"):
            continue
        for line in re.sub(r"\\\n", " ", block.code).splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words[:1] == ["retailinfer"] and not is_understood(words[1:]):
                wrong.append(f"{block.page}:{block.line}: {line}")
    assert wrong == []


def is_understood(arguments: list[str]) -> bool:
    """Whether the command line's parser takes them."""
    from retailinfer.cli.main import _parser

    try:
        _parser().parse_args(arguments)
    except SystemExit as exc:
        return exc.code == 0  # --help
    return True


def test_readme_begins_with_a_short_example():
    """The first block of the README is Python, and at most twelve lines."""
    first = blocks(ROOT / "README.md")[0]
    assert first.info == "python"
    assert len([line for line in first.code.splitlines() if line.strip()]) <= 12


def test_a_wrong_page_would_be_noticed(tmp_path):
    """The reader of pages finds the blocks and their lines, and the parser refuses what is not there."""
    assert not is_understood(["bench", "x", "--fast"])
    page = tmp_path / "page.md"
    page.write_text("# A\n\n```python\nx = 1\n```\n\ntext\n\n```pycon\n>>> x\n2\n```\n")
    assert [(b.line, b.info, b.code) for b in blocks(page)] == [
        (4, "python", "x = 1\n"),
        (10, "pycon", ">>> x\n2\n"),
    ]
