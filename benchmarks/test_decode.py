"""Decoding request bytes: the 40-field Struct of fraud-lean, and 500 candidates."""

from __future__ import annotations

from typing import Any

import msgspec

from benchmarks import library, workloads
from benchmarks.conftest import Rotate, over
from benchmarks.measures import Lab
from retailinfer.features.program import request_struct


def test_decode_40_fields(lab: Lab, rotate: Rotate) -> None:
    """JSON -> the Struct that the spec generates."""
    decode = msgspec.json.Decoder(request_struct(library.fraud_spec().body)).decode
    assert msgspec.structs.asdict(decode(lab.fraud_bodies[7])).keys() == lab.fraud_rows[7].keys()
    rotate(decode, over(lab.fraud_bodies))


def test_decode_500_candidates_as_strings(rotate: Rotate) -> None:
    """What `rank_json` saves by scanning the bytes in place."""
    drawn = workloads.rank_requests()
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    assert decode(drawn.body(3))["candidates"] == drawn.fresh_ids(3)
    rotate(decode, lambda numbers: [drawn.body(i % workloads.N_REQUESTS) for i in numbers], block=20)
