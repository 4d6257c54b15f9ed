"""The check of a release that says it differs from another one in its policy alone: does it, and what does that change?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from retailinfer.authoring.check_bounds import Bound, Findings
from retailinfer.authoring.compare import flips
from retailinfer.authoring.repolicy import golden_beside
from retailinfer.release.manifest import beside_policy
from retailinfer.release.report import Check

if TYPE_CHECKING:
    from retailinfer.authoring.loading import Loaded

__all__ = ["check_policy"]


def check_policy(new: Loaded, old: Loaded | None, bounds: Mapping[str, Bound]) -> Check:
    """Files and golden rows are those of the base; how many golden decisions are others."""
    found = Findings("policy", bounds)
    base = new.bundle.manifest.policy_of
    if base is msgspec.UNSET:
        return found.not_applicable("it does not say that only its policy is new")
    if old is None or old.bundle.manifest.digest != base.digest:
        found.warn(
            f"that only its policy is new was not looked at: compare it with {base.release} ({base.digest[:12]})"
        )
        return found.verdict(f"based on {base.release}")
    if other := beside_policy(old.bundle.manifest, new.bundle.manifest):
        found.fail(f"it is not {base.release} with another policy: {', '.join(other)} differ")
    rows = golden_beside(old.bundle, new.bundle)
    if rows is not None:
        found.fail(f"its golden rows are not those of {base.release}: {rows} differ")
    text = f"{base.release} with another policy"
    if new.golden is not None and old.golden is not None and rows is None:
        before, after = (one.golden.actions if one.golden is not None else None for one in (old, new))
        turned = flips(before or [None] * new.golden.n_rows, after or [None] * new.golden.n_rows)
        n = sum(turned.values())
        found.figures |= {
            "golden_rows": new.golden.n_rows,
            "golden_flips": {f"{a} -> {b}": k for (a, b), k in turned.items()},
        }
        found.notes += [f"golden rows: {a} -> {b}, {k}" for (a, b), k in turned.items()]
        text += f"; {n} of {new.golden.n_rows} golden decisions are others"
    return found.verdict(text)
