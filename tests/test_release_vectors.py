"""The committed vectors of signing: what was accepted or refused once stays so, and we would write the same file."""

from __future__ import annotations

import base64
import json
from collections import Counter

import pytest
from signing_vectors import FILE, encode, make, verdict

pytestmark = pytest.mark.requires("cryptography")

BOOK = json.loads(FILE.read_text(encoding="utf-8"))
BLOBS = {name: base64.b64decode(text) for name, text in BOOK["blobs"].items()}


@pytest.mark.parametrize("case", BOOK["cases"], ids=lambda case: case["name"])
def test_vector(case):
    """Its verdict."""
    assert verdict(case, BLOBS) == case["expect"]


def test_there_are_enough_of_every_sort():
    """At least 120; each kind with good and bad ones; every refusal of signing at least twice; no name twice."""
    cases = BOOK["cases"]
    assert len(cases) >= 120
    assert len({case["name"] for case in cases}) == len(cases)
    for kind in ("release", "pointer", "envelope", "trust"):
        found = Counter(case["expect"] == "ok" for case in cases if case["kind"] == kind)
        assert found[True] >= 1, kind
        assert found[False] >= 5, kind
    verdicts = Counter(case["expect"] for case in cases)
    for name in (
        "ok",
        "SignatureError",
        "TrustError",
        "RollbackError",
        "IntegrityError",
        "ManifestError",
        "ConfigError",
    ):
        assert verdicts[name] >= 2, name


def test_the_file_is_what_we_write():
    """The same keys, statements and encodings as ever: a change of format shows here first."""
    assert encode(make()) == FILE.read_text(encoding="utf-8")
