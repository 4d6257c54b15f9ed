"""Windows read out of hostile bytes as plain C, under sanitisers, steered by libFuzzer: values of Redis, and blocks of dumps.

What the bytes are used for, and what must hold, is tests/native/windows_fuzz.c. Seconds here, hours in `make soak`.
"""

from __future__ import annotations

import hashlib
import re
import struct
import sys

import pytest
import redis_twin as twin
from native_programs import LINUX_X86, run, windows_program

from retailinfer._native.program import Program
from retailinfer._native.windows import WindowGroup, WindowPlan
from retailinfer.clock import ManualClock

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not LINUX_X86, reason="platform: the fuzzer's runtime is looked for on x86-64 Linux"),
]
NOW_S = 1_700_000_000
SECOND_NS = 10**9
KINDS = ("count", "sum", "min", "max", "distinct")


def value(n: int) -> bytes:
    """What Redis holds of an entity after n events, with the digests that the program knows."""
    made = None
    for i in range(n):
        now_s = NOW_S + 631_152_000 - (n - i) * 45
        steps = [
            twin.Step(
                struct.pack("<Q", 11 + k), k, True, 14, 90_000, now_s // 60, now_s // 60 + 9, i * 100 + k
            )
            for k in range(5)
        ]
        made = twin.after(made, twin.Event(now_s, steps, struct.pack("<Q", i + 1), struct.pack("<Q", 16)))
    assert made is not None
    return made


def blocks(n: int) -> bytes:
    """What a group with the program's accumulators is saved as after n events of four entities."""
    names = [("card", 4), ("shop", 1), ("amount", 0)]
    program = Program(
        slots=[{"name": name, "wire": name, "kind": kind, "optional": True} for name, kind in names],
        n_request=3, event_slot=-1, columns=[], vocabularies=[], tensors=[], zone_at_s=(), zone_offset_s=(),
    )  # fmt: skip
    group = WindowGroup("card", "str", clock=ManualClock(wall_ns=NOW_S * SECOND_NS))
    numbers = [
        group.register(hashlib.sha256(kind.encode()).digest(), kind, 60 * SECOND_NS, 14) for kind in KINDS
    ]
    adds = tuple((k, (), (-1, 2, 2, 2, 1)[k], (1.0, 100.0, 100.0, 100.0, 1.0)[k]) for k in numbers)
    plan = WindowPlan(group, program, stream="payment", keys=(0,), adds=adds, reads=())
    for i in range(n):
        at_ns = (NOW_S - (n - i) * 45) * SECOND_NS
        plan.run({0: "abcd"[i % 4], 1: i, 2: i * 2.5}, at_ns, now_ns=at_ns, event_hash=i + 1)
    return b"".join(group.blocks())


def write_seeds(folder) -> int:
    """Good cases of every kind; how many."""
    cases = [bytes([64]) + value(n) for n in (1, 3, 20)]
    cases += [bytes([how]) + blocks(n) for n in (1, 4, 30) for how in (1, 2)]
    folder.mkdir(parents=True, exist_ok=True)
    for i, case in enumerate(cases):
        (folder / f"seed-{i}").write_bytes(case)
    return len(cases)


def test_values_and_blocks_of_any_bytes_touch_no_other_memory(tmp_path):
    """Sections, counts, orders, keys and sizes made hostile: nothing is read beside its memory, no number overflows."""
    assert sys.byteorder == "little"
    n = write_seeds(tmp_path / "corpus")
    program = windows_program("windows-fuzzed")
    options = ["-runs=60000", "-seed=7", "-max_len=4096", "-timeout=20", f"-artifact_prefix={tmp_path}/"]
    done = run([program, *options, tmp_path / "corpus"])
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Done 60000 runs" in done.stderr
    reached = re.search(r"INITED cov: (\d+)", done.stderr)
    assert reached is not None
    assert int(reached[1]) > 300, "seeds get behind the first checks"
    assert len(list((tmp_path / "corpus").iterdir())) > 5 * n
