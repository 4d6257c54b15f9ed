"""Kill writers of a decision log at random moments: what was flushed is there, once; nothing is there twice.

    python tests/decision_kills.py --kills 10000 --seed 7 --report build/soak/decision-kills.json

Rules:
  * Writers rotate, finish files of the dead, convert to Parquet and delete nothing, all within milliseconds of their start.
  * A writer notes a row's number when `flush` has returned; the kernel has it then, so a kill must not cost it.
  * Now and then an entity is erased in a process that is killed as well; its rows may be there or not until an erasure ends.
  * A seed gives the same moments; what a process was doing then is up to the machine.
`make soak` runs it for long, test_decision_log_processes.py for a moment.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from decisions import answered, decision, log_of

WRITERS = 3
ROUND = 30  # kills before everything is looked at


def _writer(folder: Path, kind: str, name: str, told: int) -> None:
    log = log_of(folder, format=kind, rotate_mb=0.004)
    i = 0
    while True:
        for _ in range(5):
            log.on_event(answered(i, answer=decision(id=f"{name}-{i}"), card_id=f"c-{i % 3}"))
            i += 1
        if log.flush():
            os.pwrite(told, b"%012d" % i, 0)


def _eraser(folder: Path, kind: str) -> None:
    from retailinfer.monitoring import decision_erasure

    decision_erasure.QUEUED_S = 0.0
    log_of(folder, format=kind).erase("card", "c-2")


def _forked(work, *arguments: object) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work(*arguments)
            os._exit(0)
        except BaseException as exc:
            sys.stderr.write(f"{type(exc).__name__}: {exc}\n")
            os._exit(1)
    return pid


def _looked_at(folder: Path, kind: str, flushed: dict[str, int], out: Path) -> None:
    """Compare rows with what was flushed; what is wrong, as a line of JSON."""
    wrong: list[str] = []
    got: dict[str, list[int]] = {}
    for row in log_of(folder, format=kind).rows():
        name, _, number = row["id"].rpartition("-")
        got.setdefault(name, []).append(int(number))
    n = 0
    for name, count in flushed.items():
        numbers = sorted(got.get(name, []))
        n += len(numbers)
        if len(set(numbers)) != len(numbers):
            wrong.append(f"{name}: rows are there twice")
        missing = sorted(set(range(count)) - set(numbers))
        if [i for i in missing if i % 3 != 2]:
            wrong.append(f"{name}: {len(missing)} of {count} flushed rows are missing, such as {missing[:5]}")
    out.write_text(json.dumps({"rows": n, "wrong": wrong}))


def run(kills: int, seed: int) -> dict[str, object]:
    """Kill so often; what came of it."""
    chance = random.Random(seed)
    done = rows = rounds = erased = 0
    wrong: list[str] = []
    while done < kills and not wrong:
        kind = ("jsonl", "parquet")[rounds % 2]
        rounds += 1
        with tempfile.TemporaryDirectory() as temporary:
            folder, flushed, running = Path(temporary, "decisions"), {}, {}
            for k in range(min(ROUND, kills - done)):
                while len(running) < WRITERS:
                    name = f"w{done}-{len(running)}-{k}"
                    told = os.open(Path(temporary, name), os.O_CREAT | os.O_RDWR)
                    running[name] = (_forked(_writer, folder, kind, name, told), told)
                time.sleep(chance.random() ** 2 * 0.25)
                if chance.random() < 0.15 and any(folder.glob("log-*.json")):
                    pid = _forked(_eraser, folder, kind)
                    time.sleep(chance.random() * 0.1)
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    erased += 1
                name = chance.choice(sorted(running))
                pid, told = running.pop(name)
                os.kill(pid, signal.SIGKILL)
                if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != -signal.SIGKILL:
                    wrong.append(f"{name} ended by itself")
                flushed[name] = int(os.pread(told, 12, 0) or b"0")
                os.close(told)
                done += 1
            for name, (pid, told) in running.items():
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                flushed[name] = int(os.pread(told, 12, 0) or b"0")
                os.close(told)
            out = Path(temporary, "looked")
            os.waitpid(_forked(_looked_at, folder, kind, flushed, out), 0)
            found = (
                json.loads(out.read_text()) if out.exists() else {"rows": 0, "wrong": ["could not be read"]}
            )
            rows += found["rows"]
            wrong += found["wrong"]
            if wrong:
                shutil.copytree(folder, Path(tempfile.mkdtemp(prefix="decision-kills-")) / "decisions")
    return {"kills": done, "rounds": rounds, "rows": rows, "erasers killed": erased, "wrong": wrong}


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Kill writers of a decision log.")
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    found = run(options.kills, options.seed)
    text = json.dumps({"seed": options.seed} | found)
    if options.report is not None:
        options.report.parent.mkdir(parents=True, exist_ok=True)
        options.report.write_text(text + "\n")
    sys.stdout.write(f"{text}\n")
    return 1 if found["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
