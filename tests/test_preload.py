"""`ri.preload`: what a prefork master shares with its workers, and what it warns of (case 50)."""

from __future__ import annotations

import os
import sys

import pytest
import releases
from processes import run_script

import retailinfer as ri

POSIX = pytest.mark.skipif(not hasattr(os, "fork"), reason="platform: no fork here")
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="platform: reads /proc")

FORKING = """
import gc, os, sys, time, warnings
import numpy as np
import releases, retailinfer as ri
from releases import payment

def private_dirty_mb():
    with open("/proc/self/smaps_rollup") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Private_Dirty"))

def in_child(function):
    '''What a child says, how it ended, and how long that took after it had said it.'''
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, repr(function()).encode())
        os.close(writer)
        sys.exit(0)
    os.close(writer)
    said = os.read(reader, 4096).decode()
    start, status = time.monotonic(), (0, 0)
    while not (status := os.waitpid(pid, os.WNOHANG))[0] and time.monotonic() < start + 10:
        time.sleep(0.001)
    if not status[0]:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        return said, "hung"
    return said, os.waitstatus_to_exitcode(status[1]), time.monotonic() - start < 1
"""


@pytest.mark.parametrize("door", [None, "scorer", object()])
def test_what_is_no_door_is_refused(door):
    """A path or a release instead of what was loaded from it."""
    with pytest.raises(ri.ConfigError, match="Expected scorers and rankers"):
        ri.preload(door)


def test_a_closed_door_is_refused():
    """Workers would have nothing to answer with."""
    with releases.scorer_of(releases.value_files()) as scorer:
        assert not scorer.closed
    assert scorer.closed
    with pytest.raises(ri.ConfigError, match="is closed"):
        ri.preload(scorer)


@LINUX
@pytest.mark.parametrize("preloads", [True, False])
def test_32_mb_of_weights_stay_shared(preloads):
    """Each child scores 1,000 requests and collects its garbage: 4 MB of its own at most, which it would pass without."""
    out = run_script(f"""{FORKING}
scorer = releases.scorer_of(releases.packed("big", releases.deep_network(15, hidden=2_880), releases.payment_spec()))
want = scorer.score(payment()).score
if {preloads}:
    ri.preload(scorer)

def work():
    scores = {{scorer.score(payment()).score for _ in range(1_000)}}
    gc.collect()
    return scores == {{want}}, private_dirty_mb() <= 4

print([in_child(work) for _ in range(2)])
""")  # fmt: skip
    assert out == str([(f"(True, {preloads})", 0, True)] * 2)


@POSIX
def test_c50_a_default_session_in_the_master_is_warned_of_and_its_children_exit():
    """The session owns a thread that no child has: ended there, at the exit at the latest, it would wait for it for ever."""
    pytest.importorskip("onnxruntime")
    out = run_script(f"""{FORKING}
import onnxruntime
model = releases.deep_network(15)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 2       # what the default is on two cores
before = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
scorer = releases.payment_scorer()
want = scorer.score(payment()).score
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    ri.preload(scorer)
assert len(caught) == 1 and "threads of their own: 1;" in str(caught[0].message), caught
try:
    ri.preload(scorer, strict=True)
except ri.ConfigError as exc:
    assert "make them in the workers" in str(exc)
else:
    raise SystemExit("not refused")
after = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

def work():
    global before, after
    before = after = None              # the worst: ended while the child lives
    gc.collect()
    return scorer.score(payment()).score == want

print([in_child(work) for _ in range(8)])
""")  # fmt: skip
    assert out == str([("True", 0, True)] * 8)


@POSIX
def test_sessions_without_threads_are_nobodys_concern():
    """One thread, sequential: such sessions survive a fork, and nothing is said."""
    pytest.importorskip("onnxruntime")
    out = run_script(f"""{FORKING}
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(releases.deep_network(15), options, providers=["CPUExecutionProvider"])
scorer, ranker = releases.payment_scorer(), releases.item_ranker()
with warnings.catch_warnings():
    warnings.simplefilter("error")
    ri.preload(scorer, ranker, strict=True)
want = scorer.score(payment()).score
print(in_child(lambda: scorer.score(payment()).score == want))
""")  # fmt: skip
    assert out == "('True', 0, True)"


def test_c56_telemetry_of_onnxruntime_in_the_master_is_warned_of():
    """Its uploader is a thread, too, whose locks a child may inherit."""
    pytest.importorskip("onnxruntime")
    out = run_script("""
import os, warnings
import onnxruntime
del os.environ["ORT_DISABLE_TELEMETRY"]  # as if it had never been set; this test shall send nothing either
import retailinfer as ri
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    ri.preload()
print([str(one.message).partition(":")[0] for one in caught])
""", ORT_DISABLE_TELEMETRY="1")  # fmt: skip
    assert out == "['onnxruntime was imported without ORT_DISABLE_TELEMETRY=1']"
