"""`retailinfer demo`: hands over to `retailinfer.demo`."""

from __future__ import annotations

import argparse

from retailinfer.cli.console import Console

__all__ = ["run"]


def run(options: argparse.Namespace, console: Console) -> int:
    """The whole demo; 1 when a promise was not kept. Raises: ConfigError when a package is missing."""
    from retailinfer.cli.extras import need

    need("the demo", ("pyarrow",), "demo")  # the others are looked for by the demo itself
    from retailinfer.demo.run import run as run_demo

    outcome = run_demo(options.out, short=options.short, say=(lambda _: None) if options.quiet else print)
    return 0 if outcome.kept else 1
