"""`retailinfer check`: everything that can be known about a release before it answers, and an exit code for CI."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec

from retailinfer.cli.console import Console
from retailinfer.cli.settings import read_struct
from retailinfer.cli.tables import read_rows, read_store
from retailinfer.cli.trusting import put, trust_of
from retailinfer.contracts import Contract
from retailinfer.errors import ConfigError, clip

__all__ = ["run"]


def run(options: argparse.Namespace, console: Console) -> int:
    """Check, write what was asked for, tell. 1 when something failed unallowed. Raises: BundleError, ConfigError."""
    from retailinfer.authoring.check import check
    from retailinfer.authoring.check_page import html_page, text_lines

    store = read_store(options.store)
    on = None if options.on is None else read_rows(options.on)
    console.step("loading, scoring and timing")
    report = check(
        options.release,
        against=options.against,
        on=on,
        labels=options.labels,
        cohorts=options.cohort,
        positive=options.positive or None,
        golden_users=options.golden_users,
        k=options.k,
        store=store,
        contract=None if options.contract is None else read_struct(options.contract, Contract),
        float_model=options.float_model,
        bounds=_bounds(options.bound),
        allow=options.allow,
        seconds=options.seconds,
        trust=trust_of(options),
    )
    if options.report is not None:
        put(Path(options.report), report.to_json())
    if options.html is not None:
        put(Path(options.html), html_page(report).encode())
    console.emit({**msgspec.to_builtins(report), "passed": report.passed, "failed": list(report.failed)})
    for line in text_lines(report):
        console.say(line)
    return 0 if report.passed else 1


def _bounds(given: list[str]) -> dict[str, Any]:
    """`NAME=FAILS` and `NAME=WARNS:FAILS` as `ri.check` takes them. Raises: ConfigError."""
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        try:
            numbers = [float(one) if one else None for one in value.split(":")]
        except ValueError:
            numbers = []
        if not equals or not 1 <= len(numbers) <= 2 or numbers == [None]:
            raise ConfigError(
                f"Expected --bound NAME=FAILS or NAME=WARNS:FAILS, got {clip(text, 80)}",
                hint="as in flips=0.1 or rbo=0.9:0.7",
            )
        found[name] = numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])
    return found
