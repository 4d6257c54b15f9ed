"""`retailinfer diff`: what changed between two releases, and what it does to the golden decisions."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import msgspec

from retailinfer.cli.console import Console
from retailinfer.cli.trusting import trust_of
from retailinfer.errors import clip

if TYPE_CHECKING:
    from retailinfer.authoring.diff import Change, Diff, GoldenDiff

__all__ = ["run"]

TITLES = {
    "facts": "Facts",
    "models": "Models",
    "request": "Request",
    "features": "Features",
    "tables": "Tables",
    "windows": "Windows",
    "policy": "Policy",
    "contract": "Contract",
    "fallback": "Fallback",
}


def run(options: argparse.Namespace, console: Console) -> int:
    """Compare and tell. Raises: BundleError."""
    from retailinfer.authoring.diff import diff

    console.step("reading and loading both")
    found = diff(options.before, options.after, trust=trust_of(options))
    console.emit({**msgspec.to_builtins(found), "same": found.same})
    _show(console, found)
    return 0


def _show(console: Console, found: Diff) -> None:
    console.say(f"{found.before} {found.digest_before[:12]}  ->  {found.after} {found.digest_after[:12]}")
    if not found.changes:
        console.say("  nothing that decides an answer is different")
    for part, title in TITLES.items():
        some = [one for one in found.changes if one.part == part]
        if some:
            console.say(f"\n{title}")
            console.table([line for one in some for line in _lines(one)])
    for one in found.golden:
        _show_golden(console, one)


def _lines(change: Change) -> list[tuple[str, ...]]:
    """A change in a line; in several where only some members of a mapping or a list are different."""
    a, b = change.before, change.after
    if a is None or b is None:
        return [("+" if a is None else "-", change.what, _text(b if a is None else a))]
    if isinstance(a, dict) and isinstance(b, dict):
        return [
            ("~", f"{change.what}: {key}", f"{_text(a.get(key))} -> {_text(b.get(key))}")
            for key in dict.fromkeys((*a, *b))
            if a.get(key) != b.get(key)
        ]
    if isinstance(a, list) and isinstance(b, list) and not any(isinstance(one, dict) for one in (*a, *b)):
        gone, new = [one for one in a if one not in b], [one for one in b if one not in a]
        told = [*(f"-{_text(one)}" for one in gone[:8]), *(f"+{_text(one)}" for one in new[:8])]
        more = len(gone) + len(new) - len(told)
        text = ", ".join(told) + (f", and {more} more" if more else "") if told else "another order"
        return [("~", change.what, text)]
    return [("~", change.what, f"{_text(a)} -> {_text(b)}")]


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, str):
        return clip(value, 120).strip("`'\"")
    return clip(msgspec.json.encode(value).decode(), 160).strip("'")


def _show_golden(console: Console, one: GoldenDiff) -> None:
    console.say(f"\nGolden rows of the release {one.of}")
    if one.why_not is not None:
        console.say(f"  not compared: {one.why_not}")
        return
    told = (
        "the same bits"
        if one.same_bits
        else f"up to {one.max_difference:.3g} apart, {one.mean_difference:.3g} on average"
    )
    console.say(f"  {one.compared} of {one.rows} rows scored by both: {told}")
    for who, refused, absent in (
        ("before", one.refused_before, one.absent_before),
        ("after", one.refused_after, one.absent_after),
    ):
        if refused:
            console.say(f"  the release {who} has no score for {refused} of them")
        if absent:
            console.say(f"  not recorded, so null for the release {who}: {', '.join(absent)}")
    if one.decided:
        console.say(f"  {sum(one.flips.values())} of {one.decided} decisions are others")
    console.table([(count, turned) for turned, count in one.flips.items()], indent=4, right=(0,))
    if one.rows_flipped:
        rows = [(f"row {row}", f"{a:.4g} {x}", "->", f"{b:.4g} {y}") for row, a, b, x, y in one.rows_flipped]
        console.table(rows, indent=4)
