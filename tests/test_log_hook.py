"""LogHook: what a line says, what it never says, and that no sink, however stuck, costs a request anything."""

from __future__ import annotations

import io
import json
import logging
import os
import threading
import time

import pytest
from processes import run_script

import retailinfer as ri
from retailinfer.contracts import Decision, Ranking, Reason
from retailinfer.errors import ConfigError
from retailinfer.monitoring.events import Answered, Changed, Failed, Hooks
from retailinfer.monitoring.logs import LogHook

POSIX = pytest.mark.skipif(not hasattr(os, "fork"), reason="platform: no fork here")
AT_NS = 1_790_000_000_000_000_000
SECRET = "4111-1111-1111-1111"

DECISION = Decision(
    id="order-17",
    score=0.125,
    action="approve",
    release="fraud:41",
    reasons=(Reason("amount", "amount is high"),),
    stale=("card.mean_amount_30d",),
    missing=("channel", "card.country"),
    trace=(f"card: {SECRET} -> c-1",),
)


def answered(answer=DECISION, *, request=None, **more) -> Answered:
    """An event, whose request holds what must not be logged."""
    given = {"card_id": SECRET, "amount": 84.5} if request is None else request
    return Answered(answer, given, AT_NS, 14_250, **more)


@pytest.fixture
def logged(caplog):
    """Make a LogHook, give it events, and see its lines."""

    def call(*events, **settings) -> list[str]:
        hook = LogHook(**settings)
        with caplog.at_level(logging.INFO, "retailinfer"):
            for event in events:
                hook.on_event(event)
            assert hook.flush()
        hook.close()
        return [f"{record.levelname} {record.getMessage()}" for record in caplog.records]

    return call


def test_an_answer_is_one_line(logged, caplog):
    """Which request, who answered, what, how long, and the names of what was stale or missing."""
    assert logged(answered()) == [
        (
            "INFO answered id=order-17 release=fraud:41 arm=default rung=0 action=approve took_us=14.25 priority=critical "
            "stale=card.mean_amount_30d missing=channel,card.country"
        )
    ]
    facts = caplog.records[0].retailinfer
    assert (facts["event"], facts["id"], facts["rung"], facts["took_us"]) == (
        "answered",
        "order-17",
        0,
        14.25,
    )


def test_a_ranking_is_one_line_without_its_items(logged):
    """How many there are, not which."""
    ranking = Ranking(id="r1", items=["sku-1", "sku-2"], scores=[0.5, 0.25], release="shop:2")
    assert logged(answered(ranking)) == [
        "INFO answered id=r1 release=shop:2 arm=default rung=0 items=2 took_us=14.25 priority=critical"
    ]


def test_what_is_not_as_it_should_be_is_a_warning(logged):
    """Answers of lower rungs, failures, changes of state."""
    lower = Decision(id="a", score=0.5, action="review", release="fraud:40", rung=1)
    assert logged(
        answered(lower, why="SessionError"),
        Failed("DeadlineExceededError", "fraud:41", None, AT_NS, 3_000_000, late=True),
        Changed("breaker http://models:8080 fraud", "closed", "open", "5 failures", AT_NS),
    ) == [
        (
            "WARNING answered id=a release=fraud:40 arm=default rung=1 action=review took_us=14.25 priority=critical "
            "why=SessionError"
        ),
        "WARNING failed error=DeadlineExceededError release=fraud:41 took_us=3000 priority=critical late=True",
        "WARNING changed part='breaker http://models:8080 fraud' before=closed after=open why='5 failures'",
    ]


def test_scores_only_on_demand(logged):
    """With enough of them a model can be copied."""
    assert "0.125" not in logged(answered())[0]


def test_scores_on_demand(logged):
    """As the answer has it."""
    assert "score=0.125" in logged(answered(), scores=True)[0]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("two\nlines", "'two\\nlines'"),
        ("a b=c", "'a b=c'"),
        ("\x1b[31mred", "'\\x1b[31mred'"),
        ("\u202eright to left", "'\\u202eright to left'"),
        ("", "''"),
        ("x" * 5_000, "x" * 117 + "..."),
    ],
)
def test_a_request_id_cannot_forge_a_line(logged, given, shown):
    """It is the caller's text: one word, or quoted, and cut."""
    answer = Decision(id=given, score=0.5, release="r:1")
    line = logged(answered(answer))[0]
    assert line.startswith(f"INFO answered id={shown} release=r:1")
    assert "\n" not in line


def test_a_line_that_a_sink_does_not_take_costs_no_other():
    """Nor can a caller keep itself out of the log by an id that is no text."""
    structlog = pytest.importorskip("structlog")
    written = []

    class Sink:
        def msg(self, text: str) -> None:
            if "order-3" in text:
                raise OSError("not this one")
            written.append(text.encode())  # as a file of UTF-8 does

        warning = info = log = msg

    structlog.configure(
        logger_factory=lambda *_: Sink(), processors=[structlog.processors.KeyValueRenderer(key_order=["id"])]
    )
    try:
        hook = ri.LogHook(structlog=True)
        for i in range(16):
            hook.on_event(Failed("Unavailable", "r:1", "\ud800" if i == 5 else f"order-{i:x}", 0, 0))
        assert hook.flush()
        hook.close()
    finally:
        structlog.reset_defaults()
    assert hook.stats().failed == 1
    assert len(written) == 15
    assert b"ud800" in written[4]


def test_lines_stay_below_what_a_pipe_takes_whole(logged):
    """However many columns there are."""
    many = tuple(f"card.a_rather_long_column_name_{i}" for i in range(500))
    answer = Decision(id="é" * 200, score=0.5, release="r:1", stale=many, missing=many)
    assert len(logged(answered(answer))[0]) < 3_000


def test_sample_is_a_share_of_good_answers_alone():
    """Warnings are never left out."""
    from random import Random

    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("retailinfer.sampled")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    hook = LogHook("retailinfer.sampled", sample=0.1, random=Random(5))
    lower = Decision(id="low", score=0.5, rung=3)
    for _ in range(2_000):
        hook.on_event(answered())
    for _ in range(20):
        hook.on_event(answered(lower))
    hook.close()
    logger.removeHandler(handler)
    lines = stream.getvalue().splitlines()
    assert 150 < sum("rung=0" in line for line in lines) < 250
    assert sum("rung=3" in line for line in lines) == 20


def test_a_level_that_is_off_costs_no_queue():
    """What nobody wants to read is not even queued."""
    hook = LogHook("retailinfer.off")
    logging.getLogger("retailinfer.off").setLevel(logging.ERROR)
    hook.on_event(answered())
    assert hook.stats().waiting == 0
    hook.close()


@pytest.mark.parametrize("settings", [{"sample": 0.0}, {"sample": 1.5}, {"max_queue": 0}])
def test_settings_that_mean_nothing_are_refused(settings):
    """When it is made."""
    with pytest.raises(ConfigError, match=next(iter(settings))):
        LogHook(**settings)


@pytest.mark.requires("structlog")
def test_structlog_gets_the_same_facts():
    """As keywords, through whatever processors are configured."""
    import structlog

    seen: list[dict] = []

    def keep(_logger, method, facts):
        seen.append({"level": method} | facts)
        raise structlog.DropEvent

    structlog.configure(processors=[keep])
    try:
        hook = LogHook(structlog=True)
        hook.on_event(answered())
        hook.on_event(Changed("overload", "no", "yes", "all permits taken", AT_NS))
        assert hook.flush()
        hook.close()
    finally:
        structlog.reset_defaults()
    assert seen[0] == {
        "level": "info", "event": "answered", "id": "order-17", "release": "fraud:41", "arm": "default", "rung": 0,
        "action": "approve", "took_us": 14.25, "priority": "critical", "stale": "card.mean_amount_30d",
        "missing": "channel,card.country",
    }  # fmt: skip
    assert seen[1]["level"] == "warning"


@pytest.mark.requires("structlog")
@pytest.mark.parametrize("through_logging", [False, True])
def test_structlog_writes_json(through_logging):
    """To stdout, or through standard logging, in a process as people configure it."""
    configure = (
        "logging.basicConfig(stream=sys.stdout, format='%(message)s', level=logging.INFO)\n"
        "structlog.configure(processors=[structlog.processors.JSONRenderer()], "
        "logger_factory=structlog.stdlib.LoggerFactory(), wrapper_class=structlog.stdlib.BoundLogger)"
        if through_logging
        else "structlog.configure(processors=[structlog.processors.JSONRenderer()])"
    )
    out = run_script(f"""
import logging, sys
import structlog
from test_log_hook import LogHook, answered
{configure}
hook = LogHook(structlog=True)
hook.on_event(answered())
""")
    assert json.loads(out)["id"] == "order-17"


def test_c68_a_full_pipe_blocks_no_request_and_drops_are_counted():
    """Nobody reads the pipe: requests go on, lines wait, then they are dropped. When it is read again, lines flow again."""
    r, w = os.pipe()
    with os.fdopen(w, "w") as stream:
        logger = logging.getLogger("retailinfer.c68")
        handler = logging.StreamHandler(stream)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        hook = LogHook("retailinfer.c68", max_queue=500)
        slowest = 0.0
        for i in range(20_000):
            start = time.perf_counter()
            hook.on_event(answered())
            slowest = max(slowest, time.perf_counter() - start)
            if i % 1_000 == 0:
                time.sleep(0.01)
        assert slowest < 0.5  # a busy machine; a write would wait for ever
        before = hook.stats()
        assert before.dropped > 10_000
        assert before.waiting > 0
        start = time.perf_counter()
        assert not hook.flush(0.2)
        assert time.perf_counter() - start < 1.0

        read = []
        reader = threading.Thread(target=lambda: read.extend(iter(lambda: os.read(r, 65_536), b"")))
        reader.start()
        end = time.monotonic() + 10
        while hook.stats().waiting and time.monotonic() < end:
            time.sleep(0.01)
        assert hook.stats().waiting == 0
        hook.close()
        logger.removeHandler(handler)
    reader.join()
    os.close(r)
    lines = b"".join(read).decode().splitlines()
    assert len(lines) == 20_000 - hook.stats().dropped
    assert all(line.startswith("answered id=order-17") for line in lines)


@POSIX
@pytest.mark.parametrize("leave", ["", "sys.exit(0)", "os.kill(os.getpid(), 15)"])
@pytest.mark.parametrize("where", ["pipe", "stderr"])
def test_c68_a_process_with_a_full_pipe_ends(leave, where):
    """Not one thread is stuck in a write: the interpreter's own end would wait for it, or abort."""
    out = run_script(f"""
import logging, os, signal, sys, time
from test_log_hook import LogHook, answered
r, w = os.pipe()
kept = os.dup(2)
if {where!r} == "stderr":
    os.dup2(w, 2)
stream = sys.stderr if {where!r} == "stderr" else os.fdopen(w, "w")
logging.basicConfig(stream=stream, level=logging.INFO)
signal.signal(15, lambda *_: sys.exit(0))
hook = LogHook(max_queue=100_000)
for _ in range(5_000):
    hook.on_event(answered())
time.sleep(0.5)
assert hook.stats().waiting > 1_000
print("end", flush=True)
{leave}
""")
    assert out == "end"


FORK_WHILE_PRINTING = """
import os, sys, time
import structlog
import retailinfer as ri
from retailinfer.monitoring.events import Failed

class Slow:
    def write(self, text):
        time.sleep(0.2)
    def flush(self):
        return

structlog.configure(logger_factory=structlog.PrintLoggerFactory(Slow()))
hook = ri.LogHook(structlog=True)
hook.on_event(Failed("E", "r:1", "a", 0, 0))
time.sleep(0.1)  # its thread is printing now
pid = os.fork()
if pid == 0:
    structlog.get_logger().warning("from the child")
    os._exit(0)
for _ in range(500):
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
        break
    time.sleep(0.02)
else:
    os.kill(pid, 9)
    status = "hangs"
print(status)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="platform: no fork")
def test_c51_fork_while_a_line_is_printed():
    """structlog's print logger has a lock for each file, which no child makes anew: no fork happens while it is held."""
    pytest.importorskip("structlog")
    assert run_script(FORK_WHILE_PRINTING, PYTHONWARNINGS="ignore::DeprecationWarning") == "0"


@POSIX
def test_lines_are_written_before_the_process_ends():
    """And children write their own."""
    out = run_script("""
import logging, os, sys
from test_log_hook import LogHook, Decision, answered
logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
hook = LogHook()
for i in range(100):
    hook.on_event(answered(Decision(id=f"parent-{i}", score=0.5)))
r, w = os.pipe()
pid = os.fork()
if pid == 0:
    os.dup2(w, 1)
    for i in range(100):
        hook.on_event(answered(Decision(id=f"child-{i}", score=0.5)))
    sys.exit(0)
os.close(w)
assert os.waitpid(pid, 0)[1] == 0
text = b"".join(iter(lambda: os.read(r, 65_536), b"")).decode()
assert [line.split()[1] for line in text.splitlines()] == [f"id=child-{i}" for i in range(100)], text
hook.flush()
for i in range(100):
    hook.on_event(answered(Decision(id=f"late-{i}", score=0.5)))
""")
    assert out.split()[1] == "id=late-99"


def test_c69_no_planted_value_is_in_any_line(logged):
    """Values of requests, keys and traces of a thousand people, in everything that an event carries of them."""
    planted = [f"person-{i}-{SECRET}" for i in range(1_000)]
    events = [
        answered(
            Decision(id=f"order-{i}", score=0.5, stale=("card.mean",), trace=(f"card: {who} -> {who}-2",)),
            request={"card_id": who, "email": f"{who}@example.org", "amount": 84.5 + i},
        )
        for i, who in enumerate(planted)
    ]
    text = "\n".join(logged(*events))
    assert text.count("answered") == 1_000
    assert [who for who in planted if who in text] == []
    assert "example.org" not in text
    assert SECRET not in text


def test_many_hooks_hear_of_one_event(logged):
    """As doors call it."""
    hook = LogHook()
    hooks = Hooks([hook])
    hooks.on_event(answered())
    assert hooks.failures == 0
    assert hook.flush()
    hook.close()


def test_it_is_public():
    """`ri.LogHook`."""
    assert ri.LogHook is LogHook
