"""`retailinfer repolicy`: a release and a policy in, a release that differs in its policy alone out."""

from __future__ import annotations

import argparse

import msgspec

from retailinfer.cli.console import Console
from retailinfer.cli.settings import read_info, read_policy
from retailinfer.cli.trusting import trust_of

__all__ = ["run"]


def run(options: argparse.Namespace, console: Console) -> int:
    """Make it, and say what became of the thresholds. Raises: as `ri.repolicy`, ConfigError for a file."""
    from retailinfer.authoring.repolicy import repolicy

    policy = read_policy(options.policy)
    manifest = repolicy(
        options.release,
        policy=policy,
        version=options.new_version,
        out=options.out,
        info=None if options.info is None else read_info(options.info),
        trust=trust_of(options),
    )
    console.emit({"ok": True, "release": manifest.release, "out": options.out, "manifest": manifest})
    console.say(f"{manifest.release} is in {options.out}: digest {manifest.digest[:12]}")
    if manifest.policy_of is not msgspec.UNSET:
        console.say(f"  base          {manifest.policy_of.release}, digest {manifest.policy_of.digest[:12]}")
    lows = {band.action: band.from_score for band in policy.body.bands}
    texts = [
        f"{action} {'below the next' if low is None else f'from {low:g}'}" for action, low in lows.items()
    ]
    console.say(f"  thresholds    {', '.join(texts)}")
    console.say(f"  next          retailinfer check {options.out} --against {options.release}")
    return 0
