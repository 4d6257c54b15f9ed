"""Follow a registry: promote a release, and the running service answers with it; go back at 3 a.m., and it stays back.

    python examples/follow_registry.py

The models are one line of ONNX each: amount / 150, and its newer version, amount / 100. Needs
`pip install 'retailinfer[pack]'`. What happens inside: docs/follow.md.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
from onnx import TensorProto, helper

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.monitoring.events import Changed

POLICY = ri.Policy([("approve", 0.0), ("review", 0.7), ("decline", 0.95)])
SPEC = ri.FeatureSpec(request={"amount": float}, columns=[c.numeric("amount")])
PAYMENT = {"amount": 84.5}


def model(scale: float) -> bytes:
    """float32 (rows, 1) -> amount / scale."""
    graph = helper.make_graph(
        [helper.make_node("Div", ["features", "scale"], ["risk"])],
        "risk",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["rows", 1])],
        [helper.make_tensor_value_info("risk", TensorProto.FLOAT, ["rows", 1])],
        [helper.make_tensor("scale", TensorProto.FLOAT, [1], [scale])],
    )
    made: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()
    return made


def publish(registry: ri.Registry, folder: Path) -> None:
    """Two versions, as a training job would pack and publish them."""
    seen = pa.table({"amount": [5.0, 60.0, 90.0]})
    for version, scale in (("1.0", 150.0), ("1.1", 100.0)):
        out = folder / version
        ri.pack(
            "fraud",
            model=model(scale),
            features=SPEC,
            policy=POLICY,
            golden=seen,
            info={"version": version},
            out=out,
        )
        registry.publish(out)


class Tells:
    """A hook that prints what changes: here a pager would ring."""

    def on_event(self, event: Any) -> None:
        if isinstance(event, Changed) and event.part == "release":
            print(f"  {event.before} -> {event.after}: {event.why}")


def main() -> None:
    """What an operator and a service do, one after the other."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        registry = ri.Registry(folder / "registry", trust="unsigned", who="anna")
        publish(registry, folder)
        registry.promote("fraud:1.0", why="first release")

        # A service has this line, and a thread looks every 30 s; refresh() looks now.
        scorer = ri.Scorer.follow(
            folder / "registry",
            "fraud",
            trust="unsigned",
            last_good=folder / "last-good",
            hooks=[Tells()],
        )
        print("answers:", scorer.score(PAYMENT).release, scorer.score(PAYMENT).action)

        registry.promote("fraud:1.1", why="catches more")
        scorer.refresh()
        print("answers:", scorer.score(PAYMENT).release, scorer.score(PAYMENT).action)

        scorer.roll_back(why="3 a.m., queue of reviews too long")  # no network, no disk
        following = scorer.refresh()  # the pointer says what it said before: the operator's word wins
        print("answers:", scorer.score(PAYMENT).release, "because", following.rolled_back)

        registry.roll_back("fraud", why="as decided in the morning", hold=True)
        following = scorer.refresh()
        print("answers:", scorer.score(PAYMENT).release, "by pointer", following.seq, "held:", following.held)

        # The registry is away, and the service starts anew: from what this host has kept.
        scorer.close()
        (folder / "registry").rename(folder / "away")
        with ri.Scorer.follow(
            folder / "registry", "fraud", trust="unsigned", last_good=folder / "last-good"
        ) as scorer:
            print("answers:", scorer.score(PAYMENT).release, "registry:", scorer.following.state)


if __name__ == "__main__":
    main()
