"""How commands print: answers on stdout, progress on stderr, figures so that people can read them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from time import perf_counter
from typing import Any

import msgspec

__all__ = ["Console", "bytes_text", "columns_text", "us_text"]


class Console:
    """Where a command writes. `as_json`: one JSON value on stdout instead of text; `quiet`: no progress."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self._started = self._last = perf_counter()

    def step(self, text: str) -> None:
        """Say on stderr what begins now, with the seconds since the start."""
        self._last = perf_counter()
        if not self.quiet:
            print(f"{self._last - self._started:6.1f} s  {text}", file=sys.stderr, flush=True)

    def later(self, text: str) -> None:
        """The same for what comes often: only when nothing was said for a second."""
        if perf_counter() - self._last > 1.0:
            self.step(text)

    def say(self, text: str = "") -> None:
        """A line for people; nothing with `--json`."""
        if not self.as_json:
            print(text, flush=True)

    def table(self, rows: Iterable[Sequence[object]], *, indent: int = 2, right: Sequence[int] = ()) -> None:
        """Rows in aligned columns; the columns numbered in `right` are aligned at their right."""
        for line in columns_text(rows, right=right):
            self.say(" " * indent + line)

    def emit(self, value: Any) -> None:
        """The answer for machines; nothing without `--json`."""
        if self.as_json:
            encoded = msgspec.json.format(msgspec.json.encode(value, enc_hook=_plain), indent=2)
            sys.stdout.write(encoded.decode() + "\n")
            sys.stdout.flush()


def columns_text(rows: Iterable[Sequence[object]], *, right: Sequence[int] = ()) -> list[str]:
    """Rows as lines whose columns stand below each other."""
    cells = [[str(cell) for cell in row] for row in rows]
    n = max((len(row) for row in cells), default=0)
    widths = [max((len(row[i]) for row in cells if i < len(row)), default=0) for i in range(n)]
    return [
        "  ".join(
            cell.rjust(widths[i]) if i in right else cell.ljust(widths[i]) for i, cell in enumerate(row)
        ).rstrip()
        for row in cells
    ]


def bytes_text(n: int) -> str:
    """A size as people read it: `12.3 kB`."""
    size = float(n)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def us_text(us: float) -> str:
    """A duration in microseconds as people read it: `14.2 us`, `3.10 ms`."""
    if us < 1_000:
        return f"{us:.1f} us"
    return f"{us / 1_000:.2f} ms" if us < 1_000_000 else f"{us / 1_000_000:.2f} s"


def _plain(value: Any) -> Any:
    """What msgspec does not encode by itself: NumPy's scalars, paths."""
    item = getattr(value, "item", None)
    return item() if callable(item) else str(value)
