"""An auditor's afternoon: from one line of a decision log to who let it happen, on which report, with which data.

Nothing but what was kept is asked: the log's folder, the registry and the trust file. The releases are real, signed by two,
approved by a third and moved by a fourth; the last test lists every field that docs/architecture.md promises of a manifest.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import msgspec
import pytest
from signed_releases import NOW_S, key, trust
from small_releases import pack_payments, payment_store, payments

import retailinfer as ri
from retailinfer.clock import ManualClock
from retailinfer.errors import TrustError
from retailinfer.release.bundle import read_bundle
from retailinfer.release.manifest import sha256_hex
from retailinfer.release.report import decode_report
from retailinfer.release.trust import Role

pytestmark = pytest.mark.requires("onnx", "pyarrow", "cryptography")

MINUTE_S = 60
TRUSTED: dict[str, Any] = {"names": ("payments",), "approval": Role(keys=("risk",))}
PAYMENT = {"card_id": "c1", "channel": "app", "amount": 12.5, "at": 1_700_000_000.0}
INFO = {
    "owner": "risk",
    "description": "scores card payments at checkout",
    "hypothesis": "the card's own mean finds takeovers earlier",
    "success": "chargebacks down 5 % at the same review rate",
    "ends": "2027-03-31",
    "expires": "2027-06-30T00:00:00Z",
    "dataset": {
        "sha256": "9f" * 32,
        "start": "2026-01-01",
        "end": "2026-06-30",
        "rows": 400,
        "uri": "s3://lake/payments/2026-h1",
    },
    "code": {"commit": "4f1c2ab", "lock_sha256": "5e" * 32, "image": "sha256:77ab"},
    "metrics": {"average_precision": 0.71},
    "owners": {"card": "cards team"},
    "origin": {
        "registry": "mlflow",
        "uri": "https://mlflow.internal",
        "name": "fraud",
        "version": "3",
        "run": "r1",
    },
}


def registry_of(folder: Path, *names: str, at_s: float, who: str = "") -> ri.Registry:
    """The registry at a moment, as people with these keys see it."""
    return ri.Registry(
        folder,
        trust=trust(now_s=at_s, **TRUSTED),
        keys=[key(name) for name in names],
        who=who or None,
        clock=ManualClock(wall_ns=int(at_s * 1e9)),
    )


def publish(tmp_path: Path, version: str, at_s: float, **options: Any) -> bytes:
    """Pack, sign, check, publish, approve and promote a release; its report."""
    release = pack_payments(tmp_path / version, info=INFO | {"version": version}, **options)
    ri.sign(release, key=[key("ci"), key("lead")], clock=ManualClock(wall_ns=int(at_s * 1e9)))
    report = ri.check(
        release, on=payments(), store=payment_store(), seconds=0.02, allow=["latency"]
    ).to_json()
    place = tmp_path / "registry"
    registry_of(place, at_s=at_s, who="build").publish(release)
    with pytest.raises(TrustError, match="needs 1 approval"):
        registry_of(place, "ops", at_s=at_s, who="olga").promote(f"payments:{version}", why="no time")
    risk = registry_of(place, "risk", at_s=at_s + MINUTE_S, who="ria")
    risk.approve(f"payments:{version}", why=f"read the report of {version}", report=report)
    ops = registry_of(place, "ops", at_s=at_s + 2 * MINUTE_S, who="olga")
    ops.promote(f"payments:{version}", why=f"{version} is better")
    return bytes(report)


def decide(tmp_path: Path, at_s: float) -> str:
    """A server answers one request and logs it; the id that the customer's complaint quotes."""
    registry = registry_of(tmp_path / "registry", at_s=at_s)
    clock = ManualClock(wall_ns=int(at_s * 1e9))
    tables = {"card": payment_store()["card"]}
    store = ri.Store(tables=tables, clock=clock, access={"card": ri.Access(readers=("payments",))})
    log = ri.DecisionLog(tmp_path / "decisions", keep_days=400, entities={"card": "card_id"})
    files = registry.read("payments")
    with ri.Scorer.load(files, store=store, trust=trust(now_s=at_s, **TRUSTED), hooks=[log]) as scorer:
        decision = scorer.score(PAYMENT)
    log.close()
    return decision.id


def test_from_a_decision_to_everybody_behind_it(tmp_path):
    """Which release, who let it answer and why, who approved it on which report, which data and code, whose tables."""
    reports = {"1.0": publish(tmp_path, "1.0", NOW_S)}
    first = decide(tmp_path, NOW_S + 5 * MINUTE_S)
    changed = {"policy": ri.Policy([("approve", 0.0), ("review", 0.4), ("decline", 0.9)])}
    reports["1.1"] = publish(tmp_path, "1.1", NOW_S + 10 * MINUTE_S, **changed)
    second = decide(tmp_path, NOW_S + 15 * MINUTE_S)

    # Months later, by somebody who has the folder of decisions, the registry and the trust file, and no key.
    registry = registry_of(tmp_path / "registry", at_s=NOW_S + 60 * MINUTE_S)
    log = ri.DecisionLog(tmp_path / "decisions", keep_days=400, entities={"card": "card_id"})
    rows = {row["id"]: row for row in log.rows()}
    for id_, version, minutes in ((first, "1.0", 0), (second, "1.1", 10)):
        row = rows[id_]
        assert (row["release"], row["entity.card"]) == (f"payments:{version}", "c1")
        publication = registry.find(row["release"])

        moment = dt.datetime.fromtimestamp(NOW_S + (minutes + 5) * MINUTE_S, dt.UTC)
        pointer = registry.at("payments", moment)
        assert pointer is not None
        assert (pointer.champion, pointer.who, pointer.why) == (
            publication.digest,
            "olga",
            f"{version} is better",
        )

        (approval,) = registry.approvals(publication.digest)
        assert (approval.digest, approval.who, approval.why) == (
            publication.digest,
            "ria",
            f"read the report of {version}",
        )
        assert approval.report == sha256_hex(reports[version])
        report = decode_report(reports[version])
        assert (report.digest, report.release) == (publication.digest, f"payments:{version}")

        bundle = read_bundle(registry.read(publication.digest), trust=registry.trust)
        assert bundle.verdict is not None
        assert bundle.verdict.signed_by == ("ci", "lead")
        assert bundle.verdict.approved_by == ("risk",)
        manifest = bundle.manifest
        assert manifest.info.dataset is not None
        assert (manifest.info.dataset.sha256, manifest.info.dataset.start) == ("9f" * 32, "2026-01-01")
        assert manifest.info.code is not None
        assert manifest.info.code.commit == "4f1c2ab"
        assert [(one.kind, one.name, one.owner) for one in manifest.reads] == [
            ("table", "card", "cards team")
        ]
        assert manifest.thresholds["review"] == {"1.0": 0.5, "1.1": 0.4}[version]


def test_a_manifest_answers_every_question(tmp_path):
    """All that docs/architecture.md promises of a manifest can be said, is kept as it was said, and nothing is left empty."""
    release = pack_payments(
        tmp_path, info=INFO | {"version": "1.0", "fallbacks": ["ab" * 32]}, quantize="none"
    )
    plain = msgspec.json.decode((release / "manifest.json").read_bytes())
    for path, said in {
        "info": {**INFO, "version": "1.0", "fallbacks": ["ab" * 32]},
        "name": "payments", "version": "1.0", "task": "classification",
        "thresholds": {"approve": 0.0, "review": 0.5, "decline": 0.9},
        "row_independent": True,
        "nan_inputs": plain["nan_inputs"],
    }.items():  # fmt: skip
        assert plain[path] == said, path
    for path in (
        "created",
        "digest",
        "spec_fingerprint",
        "files",
        "reads",
        "tolerance",
        "quantization",
        "machine",
    ):
        assert plain[path], path
    assert {"cpu", "onnxruntime", "retailinfer", "python", "numpy", "libm", "system"} <= set(plain["machine"])
    assert all(
        one["role"] and one["file"] and one["size"] and len(one["sha256"]) == 64 for one in plain["files"]
    )
    (model,) = plain["models"]
    assert (model["engine"], model["parity"], model["source"]) == ("onnx", "unchecked", "onnx")
