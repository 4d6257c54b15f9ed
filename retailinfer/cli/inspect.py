"""`retailinfer inspect`: what a release holds and needs, and what running it costs here."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

import msgspec

from retailinfer.authoring.loading import Loaded, build, engine_text
from retailinfer.cli.console import Console, bytes_text, us_text
from retailinfer.cli.tables import read_store
from retailinfer.cli.trusting import signature_facts, signature_text, trust_of
from retailinfer.columns import duration_text
from retailinfer.contracts import RUNGS, Contract
from retailinfer.errors import RetailInferError
from retailinfer.features.spec import FeatureSpec, column_width
from retailinfer.features.streams import accumulator_of, describe_window, stream_fields
from retailinfer.policy import Policy
from retailinfer.release.bundle import Bundle, read_bundle
from retailinfer.release.fallback import Fallback
from retailinfer.resilience.ladder import CONCURRENCY
from retailinfer.rungs import decisions_of
from retailinfer.runtime.session import onnxruntime_version

if TYPE_CHECKING:
    from retailinfer.release.manifest import Manifest

__all__ = ["run"]


def run(options: argparse.Namespace, console: Console) -> int:
    """Describe it; what cannot run here is still described. Raises: BundleError when it is not whole."""
    store = read_store(options.store)
    bundle = read_bundle(options.release, trust=trust_of(options))
    spec = bundle.read("features", FeatureSpec.from_json)
    policy = bundle.read("policy", Policy.from_json)
    here: dict[str, Any]
    try:
        loaded = build(bundle, store=store)
        here = _measured(loaded)
        loaded.door.close()
    except RetailInferError as exc:
        here = {"runs": False, "why": str(exc)}
    found = _describe(bundle, spec, policy)
    found["here"] = here
    found["signature"] = signature_facts(options.release, bundle) or None
    console.emit(found)
    _show(console, bundle, found)
    return 0


def _describe(bundle: Bundle, spec: FeatureSpec | None, policy: Policy | None) -> dict[str, Any]:
    """Everything that stands in the files."""
    manifest: dict[str, Any] = msgspec.to_builtins(bundle.manifest)
    contract = bundle.read("contract", msgspec.json.decode) or {}
    fallback = bundle.read("fallback", Fallback.from_json)
    found: dict[str, Any] = {
        "release": bundle.manifest.release,
        "size": sum(entry.size for entry in bundle.manifest.files),
        "manifest": manifest,
        "contract": contract,
        "ladder": _ladder(contract, policy),
        "fallback": None if fallback is None else msgspec.to_builtins(fallback.body),
        "policy": None if policy is None else msgspec.to_builtins(policy.body),
    }
    if spec is not None:
        body = spec.body
        found["features"] = {
            "fields": [msgspec.to_builtins(f) for f in spec.fields],
            "event_time": body.event_time,
            "tz": body.tz,
            "candidate": body.candidate,
            "extra": body.extra,
            "tensors": [
                {
                    "name": name,
                    "dtype": tensor.dtype,
                    "axis": tensor.axis,
                    "mask": tensor.mask,
                    "cells": len(spec.cell_names(name)),
                }
                for name, tensor in body.tensors.items()
            ],
            "columns": [
                {
                    **msgspec.to_builtins(column),
                    "tensor": name,
                    "cells": column_width(column, body.vocabularies),
                }
                for name, tensor in body.tensors.items()
                for column in tensor.columns
            ],
            "arrays": [msgspec.to_builtins(a) for a in spec.arrays],
            "tables": [
                {
                    "name": name,
                    "key": list(entity.key),
                    "columns": {
                        r.partition(".")[2]: t for r, t in body.stored.items() if r.partition(".")[0] == name
                    },
                    "max_age_ns": {
                        r.partition(".")[2]: ns
                        for r, ns in _max_ages(spec).items()
                        if r.partition(".")[0] == name
                    },
                }
                for name, entity in body.entities.items()
                if any(r.partition(".")[0] == name for r in body.stored)
            ],
            "streams": [
                {
                    "name": name,
                    "is_request": stream.is_request,
                    "event_time": body.event_time if stream.is_request else stream.event_time,
                    "fields": [msgspec.to_builtins(f) for f in stream_fields(body, name)],
                }
                for name, stream in body.streams.items()
            ],
            "windows": [_window(spec, name) for name in body.windows],
            "window_state": _window_state(spec),
        }
    return found


def _ladder(contract: Any, policy: Policy | None) -> list[dict[str, Any]]:
    """The rungs below the release, with what is said of them and what follows from the rest."""
    try:
        declared = msgspec.convert(contract, Contract)
    except msgspec.ValidationError:
        return []  # loading says what is wrong with it
    return [
        {
            **msgspec.to_builtins(rung),
            "rung": RUNGS.index(rung.kind),
            "max_concurrency": rung.max_concurrency or CONCURRENCY,
            "decisions": list(decisions_of(rung, declared, policy) or ()),
        }
        for rung in declared.ladder
    ]


def _max_ages(spec: FeatureSpec) -> dict[str, int]:
    """Stored reference -> the strictest age that a column asks of it."""
    found: dict[str, int] = {}
    for column in spec.columns:
        if column.max_age_ns is not None:
            for ref in column.refs:
                if ref in spec.body.stored:
                    found[ref] = min(column.max_age_ns, found.get(ref, column.max_age_ns))
    return found


def _window(spec: FeatureSpec, name: str) -> dict[str, Any]:
    window = spec.body.windows[name]
    state = accumulator_of(spec.body, window)
    return {
        "name": name,
        **msgspec.to_builtins(window),
        "definition": describe_window(window, spec.body.tz),
        "panes": window.n_panes,
        "state": state.digest.hex(),
        "max_bytes": state.max_bytes,
    }


def _window_state(spec: FeatureSpec) -> list[dict[str, Any]]:
    """What an entity costs at most in the store; windows that share state are counted once."""
    return [
        {
            "entity": layout.entity,
            "windows": len(layout.reads),
            "accumulators": len(layout.accumulators),
            "max_bytes": sum(state.max_bytes for state in layout.accumulators),
        }
        for layout in spec.window_layout()
    ]


def _measured(loaded: Loaded) -> dict[str, Any]:
    """What could only be found out by loading it here."""
    pipeline = loaded.pipeline
    here: dict[str, Any] = {
        "runs": True,
        "onnxruntime": onnxruntime_version(pipeline.sessions.values()),
        "models": {role: _engine(session) for role, session in pipeline.sessions.items()},
        "row_independent": pipeline.row_independent,
        "same_machine": pipeline.same_machine,
    }
    engine = pipeline.engine
    if engine is not None:
        fixed, row, hold = engine.fixed_us, engine.row_us, engine.hold_below_us
        here["run_us"] = {"fixed": fixed, "row": row}
        here["gil"] = {
            "hold_below_us": hold,
            "one_row": "keep" if fixed + row < hold else "release",
            # the smallest batch for which the GIL is given up
            "released_from_rows": 1
            if fixed >= hold
            else math.ceil((hold - fixed) / row)
            if row > 0
            else None,
        }
        here["reasons"] = _reasons(engine)
    return here


def _reasons(engine: Any) -> dict[str, Any] | None:
    """How decisions get their reasons here; None where the policy asks for none."""
    if not engine.most:
        return None
    found: dict[str, Any] = {"most": engine.most}
    if engine.reasons is not None:
        own = engine.reasons
        return found | {"method": "path", "groups": len(own.names), "form": own.form, "bytes": own.nbytes}
    return found | {"method": "occlusion", "groups": len(engine.occlusion.names), "rows": engine.rows_each}


def _engine(session: Any) -> dict[str, Any]:
    """What runs one model here; for a forest, which kernels were the fastest for how many rows."""
    found: dict[str, Any] = {"backend": session.backend, "text": engine_text(session)}
    if session.backend == "trees":
        model = session.model
        found |= {
            "level": model.level,
            "kernels": list(model.kernels),
            "plan": {str(rows): pieces for rows, pieces in model.plan.items()},
            "trees": model.n_trees,
            "depth": model.depth,
            "bytes": model.nbytes,
        }
    return found


# ---- for people ------------------------------------------------------------------------------------------------------


def _show(console: Console, bundle: Bundle, found: dict[str, Any]) -> None:
    manifest = bundle.manifest
    console.say(
        f"{manifest.release}  {manifest.task}, {bytes_text(found['size'])}, packed {manifest.created}"
    )
    console.say(f"  digest {manifest.digest}")
    console.say(f"  signature {signature_text(found['signature'] or {})}")
    if manifest.policy_of is not msgspec.UNSET:
        console.say(
            f"  the policy alone is new; all else is {manifest.policy_of.release}, {manifest.policy_of.digest}"
        )
    info = msgspec.to_builtins(manifest.info)
    for key in ("description", "owner", "hypothesis", "success", "ends", "expires"):
        if info.get(key):
            console.say(f"  {key}: {info[key]}")
    _show_origin(console, info)
    _show_lineage(console, manifest)
    console.say("\nFiles")
    console.table([(e.file, bytes_text(e.size), e.role, e.sha256[:12]) for e in manifest.files], right=(1,))
    _show_models(console, bundle, found["here"])
    if found.get("features"):
        _show_features(console, found["features"])
    if found["policy"] is not None:
        _show_policy(console, found["policy"], (found["here"] or {}).get("reasons"))
    console.say("\nContract")
    limits = {k: v for k, v in found["contract"].items() if v not in (None, {}, []) and k != "ladder"}
    console.table(list(limits.items()) or [("nothing beyond the defaults",)])
    _show_ladder(console, found)
    report = manifest.quantization
    console.say("\nWhere it was packed")
    console.table(
        [
            ("CPU class", manifest.machine.cpu),
            (
                "versions",
                f"onnxruntime {manifest.machine.onnxruntime or 'not used'}, retailinfer {manifest.machine.retailinfer}",
            ),
            ("int8", f"asked: {report.asked}" + (f"; {report.why}" if report.why else "")),
        ]
    )
    if report.trials:
        console.table(
            [("model", "method", "size", "kept", "largest difference", "us by batch size")]
            + [
                (t.role, t.method, bytes_text(t.size), "yes" if t.kept else "no", f"{t.max_difference:.2g}",
                 ", ".join(f"{n}: {us:.1f}" for n, us in t.times_us.items()))
                for t in report.trials
            ],
            indent=4,
        )  # fmt: skip


def _show_origin(console: Console, info: dict[str, Any]) -> None:
    """Data, code and figures, as who packed it gave them."""
    rows = [
        (f"{part} {name}", str(value))
        for part in ("dataset", "code", "origin")
        for name, value in (info.get(part) or {}).items()
    ]
    rows += [(f"metric {name}", f"{value:g}") for name, value in info.get("metrics", {}).items()]
    rows += [("may fall back to", digest) for digest in info.get("fallbacks", ())]
    if rows:
        console.say("\nWhere it comes from")
        console.table(rows)


def _show_lineage(console: Console, manifest: Manifest) -> None:
    if manifest.reads:
        console.say("\nWhat it reads")
        console.table(
            [("kind", "name", "owner", "columns", "definition")]
            + [
                (
                    one.kind,
                    one.name,
                    one.owner or "-",
                    ", ".join(one.columns) or "-",
                    (one.digest or "-")[:12],
                )
                for one in manifest.reads
            ]
        )


def _show_ladder(console: Console, found: dict[str, Any]) -> None:
    if found["ladder"]:
        console.say("\nWho answers when the release cannot, best first")
        rows = [("rung", "kind", "at most", "at once", "may decide")]
        for rung in found["ladder"]:
            limit = f"{rung['max_ms']:g} ms" if "max_ms" in rung else "the deadline"
            decides = ", ".join(rung["decisions"]) or "-"
            rows.append((str(rung["rung"]), rung["kind"], limit, str(rung["max_concurrency"]), decides))
        console.table(rows)
    fallback = found["fallback"]
    if fallback is None:
        return
    console.say("\nWhat the release brings for the static rung")
    lines = [
        (" and ".join(f"{field} {op} {value!r}" for field, op, value in where), f"-> {action}")
        for where, action in fallback.get("rules", ())
    ]
    if "action" in fallback:
        lines.append(("else" if lines else "whatever is asked", f"-> {fallback['action']}"))
    if "score" in fallback:
        lines.append(("score", f"{fallback['score']:g}"))
    popular = fallback.get("popular", ())
    if popular:
        first = ", ".join(str(one) for one in popular[:5])
        lines.append(("popular", f"{len(popular)} candidates: {first}{', ...' if len(popular) > 5 else ''}"))
    console.table(lines)


def _show_models(console: Console, bundle: Bundle, here: dict[str, Any]) -> None:
    manifest = bundle.manifest
    console.say("\nModels, in running order")
    for model in manifest.models:
        console.say(
            f"  {model.role}  {model.file}, from {model.source}, engine {model.engine}, int8: {model.quantized}, "
            f"compared with its source: {model.parity}"
        )
        if model.why:
            console.say(f"    not a forest: {model.why}")
        rows = [
            ("in", name, f"<- {s.kind} {s.role + '.' if s.role else ''}{s.name}")
            for name, s in model.inputs.items()
        ]
        rows += [
            (
                "out",
                o.name,
                f"{o.dtype} {_shape(o.shape)}" + (f", classes {list(o.classes)}" if o.classes else ""),
            )
            for o in model.outputs
        ]
        console.table(rows, indent=4)
    if manifest.score is not None:
        label = "" if manifest.score.label is None else f", the probability of {manifest.score.label!r}"
        console.say(f"  score: {manifest.score.role}.{manifest.score.output}[{manifest.score.column}]{label}")
    if not here["runs"]:
        console.say(f"  cannot run here: {here['why']}")
        return
    for role, one in here["models"].items():
        console.say(f"  here: {role} with {one['text']}")
        if "plan" in one:
            console.say(
                f"    {one['trees']} trees, depth {one['depth']}, {bytes_text(one['bytes'])}; the fastest kernels:"
            )
            ways = [
                (rows, " + ".join(f"{kernel} ({n} rows)" for kernel, n in pieces.items()))
                for rows, pieces in one["plan"].items()
            ]
            console.table([("rows of a call", "kernels"), *ways], indent=4)
    if "gil" in here:
        nan = "may enter the models" if manifest.nan_inputs else "is refused before the models"
        batch = "run in batches" if here["row_independent"] else "run one by one: they influence each other"
        console.say(f"  NaN {nan}; rows {batch}")
    if "gil" in here:
        run_us, gil = here["run_us"], here["gil"]
        text = f"  a run is predicted to take {us_text(run_us['fixed'] + run_us['row'])} for one row"
        if run_us["row"]:
            text += f", {us_text(run_us['fixed'] + 100 * run_us['row'])} for 100"
        console.say(text)
        first = gil["released_from_rows"]
        when = "never" if first is None else "always" if first <= 1 else f"from {first} rows on"
        console.say(f"  the GIL is given up where that is {gil['hold_below_us']:g} us or more: {when}")


def _show_features(console: Console, features: dict[str, Any]) -> None:
    if features["arrays"]:
        console.say("\nArrays that the caller brings")
        console.table([(a["name"], a["dtype"], _shape(a["shape"])) for a in features["arrays"]])
        return
    console.say("\nRequest")
    notes = {features["event_time"]: f"event time, read in {features['tz']}"}
    console.table(
        [
            (
                f.get("wire") or f["name"],
                f["type"] + (" or null" if f.get("optional") else ""),
                notes.get(f["name"], ""),
            )
            for f in features["fields"]
        ]
    )
    if features["candidate"]:
        console.say(f"  ranks: {features['candidate']}")
    if features["tables"]:
        console.say("\nTables that a store must hold")
        for table in features["tables"]:
            ages = table["max_age_ns"]
            columns = ", ".join(
                f"{name} {kind}" + (f" (max_age {duration_text(ages[name])})" if name in ages else "")
                for name, kind in table["columns"].items()
            )
            console.say(f"  {table['name']}, keyed by {', '.join(table['key'])}: {columns}")
    if features["windows"]:
        _show_windows(console, features)
    for tensor in features["tensors"]:
        mask = f", mask `{tensor['mask']}`" if tensor["mask"] else ""
        console.say(
            f"\nColumns of `{tensor['name']}`: {tensor['cells']} cells of {tensor['dtype']}, one row a "
            f"{'context' if tensor['axis'] == 'context' else 'candidate or request'}{mask}"
        )
        console.table([_column(c) for c in features["columns"] if c["tensor"] == tensor["name"]])


def _show_windows(console: Console, features: dict[str, Any]) -> None:
    console.say("\nStreams of events")
    for stream in features["streams"]:
        fields = ", ".join(f["name"] for f in stream["fields"])
        at = f", dated by {stream['event_time']}" if stream["event_time"] else ", dated when they arrive"
        console.say(f"  {stream['name']}: {'the requests' if stream['is_request'] else fields}{at}")
    console.say("\nWindows")
    rows = []
    for window in features["windows"]:
        panes = f"{window['panes']} x {duration_text(window['pane_ns'])}"
        rows.append(
            (
                window["name"],
                window["entity"],
                window["definition"],
                panes,
                bytes_text(window["max_bytes"]),
                window["state"][:12],
            )
        )
    console.table([("name", "entity", "what", "panes", "state, at most", "kept under"), *rows], right=(4,))
    for state in features["window_state"]:
        console.say(
            f"  each {state['entity']} takes at most {bytes_text(state['max_bytes'])} beside its key: "
            f"{state['windows']} window(s) over {state['accumulators']} state(s)"
        )


def _column(column: dict[str, Any]) -> tuple[str, str, str, str]:
    shown = {"kind", "name", "refs", "cells", "tensor", "max_age_ns", "window"}
    options = [f"{k}={_shortened(v)}" for k, v in column.items() if k not in shown and v is not None]
    if column.get("max_age_ns"):
        options.append(f"max_age={duration_text(column['max_age_ns'])}")
    cells = f" x{column['cells']}" if column["cells"] > 1 else ""
    kind = "window" if column.get("window") else column["kind"]
    return column["name"] + cells, kind, ", ".join(column["refs"]), " ".join(options)


def _shortened(value: Any) -> str:
    """A declared table of more than a few values is told by its size."""
    return f"({len(value)} of them)" if isinstance(value, list) and len(value) > 8 else str(value)


def _show_policy(console: Console, policy: dict[str, Any], reasons: dict[str, Any] | None) -> None:
    console.say("\nPolicy")
    console.table([(action, _from(low)) for action, low in policy["bands"]])
    for value, bands in policy.get("segments", {}).items():
        texts = ", ".join(f"{action} {_from(low)}" for action, low in bands)
        console.say(f"  where {policy['segment_by']} = {value!r}: {texts}")
    envelopes = {"": policy.get("envelope", {})} | {
        f" where {policy.get('segment_by')} = {value!r}": some
        for value, some in policy.get("segment_envelopes", {}).items()
    }
    for where, some in envelopes.items():
        for action, (least, most) in some.items():
            console.say(f"  an operator may move {action}{where} from {least:g} to {most:g}")
    if policy.get("review"):
        console.say(f"  columns that ask for a review lead to `{policy['review']}`")
    if policy.get("n_reasons"):
        how = ""
        if reasons is not None and reasons["method"] == "path":
            how = f": the way through the trees, {reasons['groups']} groups, {bytes_text(reasons['bytes'])}"
        elif reasons is not None:
            how = f": occlusion, {reasons['rows']} rows of the model a decision"
        console.say(f"\nReasons, at most {policy['n_reasons']}{how}")
        texts = policy.get("reasons", {})
        console.table([(name, "(never named)" if text is None else text) for name, text in texts.items()])
        console.say("  other fields are named without a text")


def _from(low: float | None) -> str:
    return "below the next" if low is None else f"from {low:g}"


def _shape(shape: Any) -> str:
    return "(" + ", ".join("?" if d is None else str(d) for d in shape) + ")"
