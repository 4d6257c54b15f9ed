"""How `make` fills its environments (requirements/install.py): what is asked for, and that uv does as pip is set to."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import tomllib

import pytest
from conftest import ROOT

spec = importlib.util.spec_from_file_location("install", ROOT / "requirements/install.py")
install = importlib.util.module_from_spec(spec)
spec.loader.exec_module(install)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def name_of(requirement):
    """`scikit-learn>=1.7; ...` -> scikit-learn."""
    return re.match(r"[\w.-]+", requirement)[0].lower()


@pytest.mark.parametrize("extra", ["dev", "demo", "feast-test", "pack", "redis"])
def test_extras_are_read_as_installers_read_them(extra):
    """Also the extras that an extra names: nothing of what the installed metadata asks for is left out, nothing is added."""
    try:
        requires = importlib.metadata.requires("retailinfer")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("retailinfer is not installed; `make test` installs it")
    todo, seen, wanted = [extra], set(), set()
    while todo:
        one = todo.pop()
        seen.add(one)
        for line in requires:
            requirement, _, marker = line.partition(";")
            named = re.search(r"""extra == ['"]([\w-]+)['"]""", marker)
            if named is not None and named[1] != one:
                continue
            own = re.match(r"retailinfer\[([^]]+)\]", requirement)
            if own is None:
                wanted.add(name_of(requirement))
            else:
                todo += [name for name in own[1].split(",") if name not in seen]
    assert {name_of(one) for one in install.requirements_of(extra, PROJECT)} == wanted


def test_settings_of_pip_are_settings_of_uv():
    """Indexes, folders, certificates; the environment wins over files, and `pip install` over all of pip."""
    listed = r"""
:env:.find-links='/wheels /more'
:env:.quiet='1'
download.find-links='/never'
global.cert='/etc/ca.pem'
global.constraint='/etc/constraints.txt'
global.extra-index-url='\nhttps://one/simple\nhttps://two/simple'
global.find-links='/old'
global.index-url='https://all/simple'
install.index-url='https://mine/simple'
"""
    assert install.uv_settings(listed) == {
        "SSL_CERT_FILE": "/etc/ca.pem",
        "UV_DEFAULT_INDEX": "https://mine/simple",
        "UV_FIND_LINKS": "/wheels,/more",
        "UV_INDEX": "https://one/simple https://two/simple",
    }
    assert install.uv_settings("") == {}


@pytest.mark.parametrize(
    "line", ["global.no-binary='numpy'", "install.user='true'", "global.index-url='https://one https://two'"]
)
def test_what_has_no_translation_is_left_to_pip(line):
    """Better slowly than other packages."""
    assert install.uv_settings(line) is None
