"""README.md, docs/ and CHANGELOG.md: links lead somewhere, lists are complete, pictures are pictures.

That their code runs is test_docs_code.py.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

import retailinfer as ri
from retailinfer import columns, errors
from retailinfer.cli.main import _parser

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"")


def text_of(page: Path) -> str:
    """A page as it is."""
    return page.read_text(encoding="utf-8")


def prose_of(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", prose_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    """Every relative link is a file of the project, and its anchor a heading there."""
    broken = []
    for first, second in LINK.findall(prose_of(page)):
        target, _, anchor = (first or second).partition("#")
        if target.startswith(("https://", "http://")):
            continue
        file = page if not target else (page.parent / target).resolve()
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(first or second)
    assert broken == []


def test_every_page_is_reached_from_the_readme():
    """Nobody has to list the folder to find a page."""
    readme = text_of(ROOT / "README.md")
    assert [page.name for page in sorted(DOCS.glob("*.md")) if f"docs/{page.name}" not in readme] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_show_nothing_of_the_machine_they_were_written_on(page: Path):
    """No absolute path, no registry, no placeholder that somebody meant to fill in."""
    text = text_of(page)
    assert re.findall(r"(?:/root|/opt|/work|/home|/tmp)/\S*", text) == []
    assert re.findall(r"\b(?:TODO|FIXME|XXX|TBD)\b", text) == []


def test_features_page_explains_every_column_kind():
    """Each function of `retailinfer.columns` is called on the page."""
    text = text_of(DOCS / "features.md")
    kinds = [name for name in columns.__all__ if name != "Column"]
    assert [name for name in kinds if f"c.{name}(" not in text] == []


def test_features_page_lists_every_part_of_a_timestamp():
    """The parts are those that `c.time` takes."""
    text = text_of(DOCS / "features.md")
    assert [part for part in columns.TIME_PARTS if f"`{part}`" not in text] == []


def test_serving_page_lists_every_error_with_its_status():
    """The table of HTTP statuses is that of the classes."""
    text = text_of(DOCS / "serving.md")
    rows = {
        name: int(status)
        for names, status in re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (\d{3}) \|", text, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", names)
    }
    classes = {
        name: getattr(errors, name).http_status
        for name in errors.__all__
        if name.endswith(("Error", "Unavailable"))
    }
    bases = {"RetailInferError", "CallerError", "FeatureError", "BundleError", "ServingError"}
    assert rows == {name: status for name, status in classes.items() if name not in bases}


def test_remote_page_lists_every_kind_of_failure():
    """The table of kinds is that of the code, and says the same about second attempts."""
    from retailinfer.resilience.outcome import KINDS

    rows = re.findall(r"^\| `(\w+)` \| .* \|([^|]*)\|$", text_of(DOCS / "remote.md"), re.MULTILINE)
    kinds = {name: again.strip() != "" for name, again in rows if name in KINDS}
    assert kinds == {name: meaning.again for name, meaning in KINDS.items()}


def test_remote_page_lists_every_setting():
    """Each argument of `ri.Remote`, but for those of simulations."""
    import inspect

    text = text_of(DOCS / "remote.md")
    settings = set(inspect.signature(ri.Remote).parameters) - {"clock", "chance", "sleep"}
    assert [name for name in settings if f"`{name}`" not in text] == []


def test_cli_page_explains_every_option():
    """Each option of each command is named below the command's heading."""
    text = text_of(DOCS / "cli.md")
    commands = next(
        action.choices for action in _parser()._actions if isinstance(action, argparse._SubParsersAction)
    )
    for name, parser in commands.items():
        start = text.index(f"## {name}\n")
        end = text.find("\n## ", start)
        section = text[start : end if end > 0 else None] + text[text.index("## Every command") :]
        options = [o for action in parser._actions for o in action.option_strings if o.startswith("--")]
        hidden = {"--help", "--traceback"}
        assert [o for o in options if o not in hidden and f"`{o}" not in section] == [], name


def test_public_names_on_the_pages_exist():
    """No page shows a name that `retailinfer` or `retailinfer.columns` does not have."""
    later = {"preload", "Forecaster"}  # named as not there yet
    for page in PAGES:
        for module, prefix in ((ri, "ri"), (columns, "c")):
            names = set(re.findall(rf"(?<![\w.\"'/]){prefix}\.([A-Za-z]\w*)", text_of(page)))
            if prefix == "c":
                names -= {"window", "exe"}
            assert {name for name in names - later if not hasattr(module, name)} == set(), page.name


@pytest.mark.parametrize("picture", sorted(DOCS.glob("*.svg")), ids=lambda path: path.name)
def test_pictures_are_well_formed_and_stand_alone(picture: Path):
    """An SVG parses, has a title for those who cannot see it, loads nothing, runs nothing."""
    root = ET.fromstring(text_of(picture))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.find("{http://www.w3.org/2000/svg}title") is not None
    text = text_of(picture)
    assert "<script" not in text
    assert "href" not in text


def test_marked_figures_can_be_filled_in():
    """`python -m benchmarks --readme` knows each `bench:NAME` mark of the pages that it is run on."""
    from benchmarks.readme import fill

    details = {"figures": [], "cpu": "a CPU", "cores": 2, "versions": {"python": "3"}}
    for page in (ROOT / "README.md", DOCS / "benchmarks.md"):
        filled = fill(text_of(page), {}, details)
        assert "a CPU, 2 cores" in filled
        assert "not measured" in filled


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_marks_for_figures_are_closed(page: Path):
    """An open mark would swallow the text up to the next one."""
    text = re.sub(r"`[^`]*`", "", text_of(page))
    assert len(re.findall(r"<!-- bench:", text)) == text.count("<!-- /bench -->")
