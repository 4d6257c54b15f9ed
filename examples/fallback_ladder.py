"""Degrade in declared steps: a release that fails for refunds, and who answers in its place.

    python examples/fallback_ladder.py

The models are two lines of ONNX each: |amount| / 150, and its newer version, the square root of amount / 150, which a
refund's negative amount has not. Needs `pip install 'retailinfer[pack]'`. What the rungs are: docs/degrade.md.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
from onnx import TensorProto, helper

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.monitoring.events import Answered, Failed

POLICY = ri.Policy([("approve", 0.0), ("review", 0.7), ("decline", 0.95)])
SPEC = ri.FeatureSpec(
    request={"card_id": str, "amount": float, "channel": str},
    entities={"card": "card_id"},
    columns=[c.numeric("amount")],
)
LADDER = (
    ri.Rung(kind="previous"),
    ri.Rung(kind="last_score", max_age_s=600),
    ri.Rung(kind="static"),
)
PAYMENT = {"card_id": "card-1", "amount": 84.5, "channel": "web"}
REFUND = PAYMENT | {"amount": -20.0}


def model(last: str) -> bytes:
    """float32 (rows, 1) -> the operator `last` of amount / 150."""
    graph = helper.make_graph(
        [
            helper.make_node("Div", ["features", "scale"], ["scaled"]),
            helper.make_node(last, ["scaled"], ["risk"]),
        ],
        "risk",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["rows", 1])],
        [helper.make_tensor_value_info("risk", TensorProto.FLOAT, ["rows", 1])],
        [helper.make_tensor("scale", TensorProto.FLOAT, [1], [150.0])],
    )
    made: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()
    return made


def pack(folder: Path) -> None:
    """The release before, and the one that serves now, with its ladder and what it brings for bad days."""
    seen = pa.table(
        {"card_id": ["a", "b", "c"], "amount": [5.0, 60.0, 120.0], "channel": ["web", "app", "pos"]}
    )
    ri.pack("fraud-41", model=model("Abs"), features=SPEC, policy=POLICY, golden=seen, out=folder / "41")
    ri.pack(
        "fraud-42",
        model=model("Sqrt"),
        features=SPEC,
        policy=POLICY,
        golden=seen,
        contract=ri.Contract(use_case="fraud", deadline_ms=1_000, ladder=LADDER),
        fallback=ri.Fallback(score=0.8),
        out=folder / "42",
    )


class Alarm:
    """A hook: tells of answers that the release did not give, and of calls that nobody answered."""

    def on_event(self, event: Any) -> None:
        if isinstance(event, Answered) and event.answer.rung:
            print(f"  rung {event.answer.rung} instead of the release: {event.why}")
        elif isinstance(event, Failed):
            print(f"  nobody answered: {event.error}")


def tell(what: str, decision: ri.Decision) -> None:
    """One line for a decision."""
    print(f"{what}: {decision.action} by {decision.release.partition(':')[0]}, rung {decision.rung}")


def main() -> None:
    """With the release before, without it, and without any rung."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        pack(folder)
        both = ri.Scorer.load(folder / "42", previous=folder / "41", trust="unsigned", hooks=[Alarm()])
        tell("payment", both.score(PAYMENT))
        tell("refund", both.score(REFUND))

        alone = ri.Scorer.load(folder / "42", trust="unsigned", hooks=[Alarm()])
        tell("small payment", alone.score(PAYMENT | {"amount": 3.0}))
        tell("its refund", alone.score(REFUND))  # fraud: a remembered score never approves
        tell("another card's refund", alone.score(REFUND | {"card_id": "card-2"}))

        bare = ri.Scorer.load(folder / "42", trust="unsigned", hooks=[Alarm()], contract={"ladder": []})
        print("without rungs:", bare.score(REFUND, otherwise="ask a person"))
        print("rungs of the first scorer:")
        for rung in both.health().rungs:
            print(f"{rung.kind}: {rung.answers} answers")


if __name__ == "__main__":
    main()
