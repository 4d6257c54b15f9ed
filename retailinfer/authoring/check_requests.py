"""Schema compatibility: can callers who talk to one release talk to the next, and does the store have what it reads?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from retailinfer.authoring.check_bounds import Bound, Findings
from retailinfer.features.streams import describe_window

if TYPE_CHECKING:
    from retailinfer.authoring.loading import Loaded
    from retailinfer.release.report import Check

__all__ = ["check_schema"]

WIDER = {("int", "float")}  # a number that is sent as an integer is taken as a float too


def check_schema(new: Loaded, old: Loaded | None, bounds: Mapping[str, Bound]) -> Check:
    """What callers send and what the store must have, beside the other release."""
    found = Findings("schema", bounds)
    if old is None:
        return found.not_applicable("no other release to compare with")
    a, b = old.pipeline.spec, new.pipeline.spec
    if old.bundle.manifest.task != new.bundle.manifest.task:
        found.fail(f"the task was {old.bundle.manifest.task}, it is {new.bundle.manifest.task}")
    for what, before, after in (
        ("candidate", a.body.candidate, b.body.candidate),
        ("event time", a.body.event_time, b.body.event_time),
        ("arrays", tuple(one.name for one in a.arrays), tuple(one.name for one in b.arrays)),
    ):
        if before != after:
            found.fail(f"the {what} was {before or 'none'}, it is {after or 'none'}")
    if a.body.tz != b.body.tz:
        found.warn(f"the time zone was {a.body.tz}, it is {b.body.tz}")
    _fields(new, old, found)
    for name, kind in b.body.stored.items():
        if name not in a.body.stored:
            found.warn(f"it reads `{name}` ({kind}), which the store must have before it loads")
    for name, window in b.body.windows.items():
        if name not in a.body.windows:
            found.warn(
                f"it reads the window `{name}`, which begins empty: {describe_window(window, b.body.tz)}"
            )
    for name, entity in b.body.entities.items():
        if name in a.body.entities and a.body.entities[name].key != entity.key:
            found.fail(f"the key of `{name}` was {a.body.entities[name].key}, it is {entity.key}")
    _lineage(new, old, found)
    _answers(new, old, found)
    n = len(b.fields) + len(b.arrays)
    return found.verdict(
        f"{n} fields; {len(found.notes) or 'no'} difference{'s' if len(found.notes) != 1 else ''} that matter"
    )


def _fields(new: Loaded, old: Loaded, found: Findings) -> None:
    """What callers send today must still be taken, and mean the same."""
    before = {field.wire or field.name: field for field in old.pipeline.spec.fields}
    after = {field.wire or field.name: field for field in new.pipeline.spec.fields}
    strict = new.pipeline.spec.body.extra == "forbid"
    for wire in before.keys() - after.keys():
        if strict:
            found.fail(f"callers send `{wire}`, which it refuses")
        else:
            found.warn(f"callers send `{wire}`, which it no longer reads")
    if strict and old.pipeline.spec.body.extra != "forbid":
        found.fail("callers may send fields that nobody reads, which it refuses")
    for wire, field in after.items():
        if wire not in before:
            if field.optional:
                found.notes.append(f"new and optional: `{wire}` ({field.type})")
            else:
                found.fail(f"it demands `{wire}` ({field.type}), which callers do not send")
            continue
        then = before[wire]
        if then.optional and not field.optional:
            found.fail(f"it demands `{wire}`, which callers may leave out")
        if (then.type, field.type) in WIDER:
            found.notes.append(f"wider: `{wire}` was {then.type}, it is {field.type}")
        elif then.type != field.type:
            found.fail(f"`{wire}` was {then.type}, it is {field.type}")


def _lineage(new: Loaded, old: Loaded, found: Findings) -> None:
    """Where values come from: what tables and windows are read is told above."""
    before = {(one.kind, one.name): one for one in old.bundle.manifest.reads}
    for one in new.bundle.manifest.reads:
        then = before.get((one.kind, one.name))
        of = f" of {one.owner}" if one.owner else ""
        if then is None and one.kind == "source":
            found.warn(f"it reads the source `{one.name}`{of}, which the other release does not")
        elif then is not None and one.kind in ("stream", "source") and then.digest != one.digest:
            found.warn(f"the {one.kind} `{one.name}`{of} is defined otherwise now")


def _answers(new: Loaded, old: Loaded, found: Findings) -> None:
    """What callers get: actions that they know, batches as large as before."""
    policies = old.pipeline.policy, new.pipeline.policy
    if policies[0] is not None and policies[1] is None:
        found.fail("it has no policy: decisions come without an action")
    elif policies[0] is not None and policies[1] is not None:
        for action in policies[1].actions:
            if action not in policies[0].actions:
                found.warn(f"it may answer `{action}`, which callers have not seen")
    sizes = old.pipeline.contract.max_rows, new.pipeline.contract.max_rows
    if sizes[1] < sizes[0]:
        found.warn(f"it takes {sizes[1]:,} rows at once, the other one {sizes[0]:,}")
