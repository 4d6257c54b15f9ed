"""`retailinfer demo`: hands over to `retailinfer.demo`."""

from __future__ import annotations

import argparse
import sys

from retailinfer.cli.console import Console

__all__ = ["run"]


def run(options: argparse.Namespace, console: Console) -> int:
    """The whole demo; 1 when a promise was not kept. Raises: ConfigError when a package is missing."""
    from retailinfer.cli.extras import need
    from retailinfer.demo import NEEDED

    need("the demo", NEEDED, "demo")  # before anything below imports one of them
    from retailinfer.demo.run import run as run_demo

    def say(line: str) -> None:
        if not console.quiet:
            print(line, file=sys.stderr, flush=True)

    return 0 if run_demo(options.out, short=options.short, say=say, show=console.say).kept else 1
