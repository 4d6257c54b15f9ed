"""The one seam through which bytes of a release reach a parser.

Rules:
  * Every parser of release bytes is called through `parse`, which counts: so a test can show what ran before what, and that
    nothing ran before a signature held.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from retailinfer.errors import ManifestError, SpecError

__all__ = ["parse", "parser_calls"]

T = TypeVar("T")

# File -> how often bytes of a release entered a parser, in this process.
parser_calls: Counter[str] = Counter()


def parse(file: str, parser: Callable[[bytes], T], data: bytes) -> T:
    """Let a parser see bytes of a release.

    Raises: BundleError; a SpecError of the parser becomes a ManifestError that names the file.
    """
    parser_calls[file] += 1
    try:
        return parser(data)
    except SpecError as exc:  # in a release it is not the caller's mistake
        raise ManifestError(
            f"{file} of the release cannot be used: {exc}", hint="pack the release again"
        ) from exc
