"""A registry whose writers are killed, whose disk fails, who race: always exactly the old state or the new one.

Rules:
  * After every accident another process looks, repeats what was interrupted without any step by hand, and collects the litter.
  * Kills hit each call to the operating system in turn, and random instants. Failures hit each call once, with each errno.
  * What forks hundreds of times does so in a small process: to copy one that runs tests takes longer than what is tested.
`RETAILINFER_CRASHES` says how many random kills (make soak: thousands).
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import run_script
from registries import all_files, check, digest, release
from registry_kills import ACTIONS, OLD, late, open_registry, prepare
from services import until

from retailinfer.errors import ConflictError, RegistryError
from retailinfer.release import registry_files

N_KILLS = int(os.environ.get("RETAILINFER_CRASHES", "240"))
TOUCHES = (
    "open",
    "write",
    "fsync",
    "link",
    "unlink",
    "replace",
    "mkdir",
    "rmdir",
    "listdir",
    "read",
    "fstat",
    "close",
)


class WatchedOs:
    """`os` as registry_files sees it: counts the calls that touch the disk, and does something at one of them."""

    def __init__(self, at: int | None, accident: Callable[[str], Any] | None = None) -> None:
        self.n = 0
        self.at = at
        self.accident = accident
        self.hit: str | None = None

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        return (
            real if name not in TOUCHES else lambda *args, **kwargs: self._call(name, real, *args, **kwargs)
        )

    def _call(self, name: str, real: Any, *args: Any, **kwargs: Any) -> Any:
        self.n += 1
        if self.n == self.at:
            self.hit = name
            if name == "close":  # the descriptor is gone, whatever close says
                real(*args)
            answer = self.accident(name)
            if answer == "short":
                return real(args[0], args[1][:1]) if name == "write" else real(*args, **kwargs)
        return real(*args, **kwargs)


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """A registry to be copied."""
    return prepare(tmp_path / "template")


def look_and_repeat(folder: Path, action: str, *, collectable: bool = True) -> bool:
    """Check what an accident left, repeat the action, clean up; returns whether the accident came after the deed."""
    do, is_done = ACTIONS[action]
    registry = open_registry(folder, late())
    check(registry)
    history = registry.history("fraud")
    assert history[0].champion == digest(OLD)
    done = is_done(registry)
    do(registry)
    assert is_done(registry)
    check(registry)
    assert len(registry.history("fraud")) <= 2
    if collectable:
        clock = late()
        clock.advance_ns(2 * 86_400 * 10**9)
        for path in (folder / "temporary").iterdir():
            os.utime(path, (1_000, 1_000))
        open_registry(folder, clock).collect_garbage(keep=9)
        clean = open_registry(folder, clock)
        check(clean)
        files = clean._records.files
        assert files.names("temporary") == []
        assert files.names("pins") == []
        wanted = {clean.find(one.digest).folder for one in clean.releases() if not one.collected}
        assert set(files.names("releases")) == wanted
    return done


def in_child(folder: Path, action: str, watched: WatchedOs | None = None) -> int:
    """Start a process that does it; returns its id. Exit code 0 when it came to the end."""
    pid = os.fork()
    if pid:
        return pid
    code = 1  # pragma: no cover - in the child
    try:
        if watched is not None:
            registry_files.os = watched  # type: ignore[attr-defined]
        ACTIONS[action][0](open_registry(folder, late()))
        code = 0
    finally:
        os._exit(code)


def kill_at_each_call(tmp_path: Path, action: str) -> tuple[int, list[bool]]:
    """Returns how many calls there are, and whether a kill came before the deed, after it, or once either."""
    template = prepare(tmp_path / "template")
    seen: set[bool] = set()
    for n in range(1, 1000):
        folder = tmp_path / str(n)
        shutil.copytree(template, folder)
        pid = in_child(folder, action, WatchedOs(n, lambda _: os.kill(os.getpid(), signal.SIGKILL)))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code == 0:
            return n, sorted(seen)
        assert code == -signal.SIGKILL
        seen.add(look_and_repeat(folder, action))
    raise AssertionError("more calls than anybody makes")


@pytest.mark.parametrize("action", ACTIONS)
def test_killed_at_each_call_to_the_system(tmp_path, action):
    """Before the n-th call, for every n: the state is old or new, and both happen."""
    said = run_script(f"""
        from pathlib import Path
        from test_registry_crashes import kill_at_each_call
        print(*kill_at_each_call(Path({str(tmp_path)!r}), {action!r}))
    """)
    n, _, seen = said.partition(" ")
    assert int(n) > 10
    assert seen == "[False, True]"


def test_killed_at_random_instants(tmp_path):
    """Hundreds of kills of deployments; one registry takes many of them, and never needs a hand."""
    killed = run_script(f"""
        from pathlib import Path
        from registry_kills import kill_writers
        print(kill_writers(Path({str(tmp_path)!r}), {N_KILLS}, seed=6))
    """)
    assert int(killed) > N_KILLS // 4


def test_a_pointer_that_may_not_last_is_written_again(template, monkeypatch):
    """The file appeared and its folder could not be flushed: once more makes sure, and the caller need not know."""
    sync, failed = registry_files.LocalFiles._sync, []

    def fail_once(self: Any, folder: Path) -> None:
        if folder.parts[-3:] == ("pointers", "production", "fraud") and not failed:
            failed.append(folder)
            raise OSError(errno.EIO, "I/O error")
        sync(self, folder)

    monkeypatch.setattr(registry_files.LocalFiles, "_sync", fail_once)
    assert open_registry(template).promote("fraud:1.1", why="better").seq == 2
    assert failed
    assert len(open_registry(template).history("fraud")) == 2


def test_what_was_told_survives_a_power_cut(tmp_path, template, monkeypatch):
    """A file is on disk before its name appears, and the name is before the caller is told."""
    events: list[tuple[str, str]] = []

    class Recorder(WatchedOs):
        def _call(self, name: str, real: Any, *args: Any, **kwargs: Any) -> Any:
            answer = real(*args, **kwargs)
            if name == "open":
                self.paths[answer] = str(args[0])
            if name in ("write", "fsync"):
                events.append((name, self.paths[args[0]]))
            if name in ("link", "replace"):
                events.append((name, f"{args[0]} {args[1]}"))
            if name == "mkdir":
                events.append((name, str(args[0])))
            return answer

    recorder = Recorder(None)
    recorder.paths = {}
    monkeypatch.setattr(registry_files, "os", recorder)
    for action in ACTIONS:
        registry = open_registry(template, late())
        ACTIONS[action][0](registry)
    assert sum(name in ("link", "replace") for name, _ in events) > 8
    for at, (name, what) in enumerate(events):
        if name in ("link", "replace"):
            temporary, target = what.split(" ")
            mine = [event for event, path in events[:at] if path == temporary]
            assert mine[-1] == "fsync"
            assert "write" in mine
            assert ("fsync", str(Path(target).parent)) in events[at : at + 2]
        if name == "mkdir":
            assert events[at + 1] == ("fsync", str(Path(what).parent))


@pytest.mark.parametrize(
    ("action", "failure"),
    [
        *((action, failure) for action in ACTIONS for failure in (errno.ENOSPC, "short")),
        *(("promote", failure) for failure in (errno.EIO, errno.EDQUOT, errno.EROFS, errno.EACCES)),
    ],
)
def test_each_call_to_the_system_fails_once(tmp_path, template, monkeypatch, action, failure):
    """A full, broken or read-only disk, at every call: a typed error or success, old or new, and the next try works."""

    def accident(_: str) -> str | None:
        if failure == "short":
            return "short"
        raise OSError(failure, os.strerror(failure))

    hit: set[str] = set()
    for n in range(1, 1000):
        folder = tmp_path / str(n)
        shutil.copytree(template, folder)
        with monkeypatch.context() as patch:
            watched = WatchedOs(n, accident)
            patch.setattr(registry_files, "os", watched)
            registry = open_registry(folder, late())
            failed = False
            try:
                ACTIONS[action][0](registry)
            except RegistryError:
                failed = True
        if watched.hit is None:
            break
        hit.add(watched.hit)
        if not failed:
            assert ACTIONS[action][1](open_registry(folder, late()))
        look_and_repeat(folder, action, collectable=n % 7 == 0)
    assert n > 10
    assert {"open", "write", "fsync", "unlink", "read"} <= hit


def test_publishers_race(tmp_path):
    """Six processes publish the same release and six another one of its version: one content wins, everybody is told."""
    for round_ in range(8):
        folder = tmp_path / str(round_)
        contents = [release("3.0"), release("3.0", "other")]
        go_read, go_write = os.pipe()
        pids = []
        for i in range(12):
            pid = os.fork()
            if pid == 0:  # pragma: no cover - in the child
                code = 1
                try:
                    os.close(go_write)
                    registry = open_registry(folder)
                    os.read(go_read, 1)
                    try:
                        code = 10 if registry.publish(contents[i % 2]).new else 11
                    except ConflictError:
                        code = 12
                finally:
                    os._exit(code)
            pids.append(pid)
        os.close(go_read)
        os.close(go_write)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        registry = open_registry(folder)
        check(registry)
        winner = contents.index(registry.read("fraud:3.0"))
        assert codes.count(10) == 1
        assert codes[winner::2].count(11) == 5
        assert codes[1 - winner :: 2].count(12) == 6
        assert len(all_files(registry._records.files)) == len(contents[0]) + 1  # losers left nothing


def test_promoters_race(tmp_path):
    """Eight processes promote at once, again and again: each number is one decision, and who lost was told so."""
    versions = [f"4.{i}" for i in range(8)]
    registry = open_registry(tmp_path / "registry")
    for version in versions:
        registry.publish(release(version))
    pipes = [os.pipe() for _ in versions]
    pids = []
    for version, (read, write) in zip(versions, pipes, strict=True):
        pid = os.fork()
        if pid == 0:  # pragma: no cover - in the child
            code = 1
            try:
                os.close(read)
                mine = open_registry(tmp_path / "registry", who=version)
                done = []
                for i in range(20):
                    try:
                        which = version if i % 2 else versions[versions.index(version) - 1]
                        pointer = mine.promote(f"fraud:{which}", why=f"{version} {i}")
                        if pointer.why == f"{version} {i}":
                            done.append(pointer.seq)
                    except ConflictError:
                        pass
                os.write(write, b",".join(b"%d" % seq for seq in done))
                code = 0
            finally:
                os._exit(code)
        os.close(write)
        pids.append(pid)
    won: dict[int, str] = {}
    for version, (read, _) in zip(versions, pipes, strict=True):
        data = b""
        while part := os.read(read, 4096):
            data += part
        os.close(read)
        for seq in filter(None, data.split(b",")):
            assert int(seq) not in won
            won[int(seq)] = version
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 8
    history = open_registry(tmp_path / "registry").history("fraud")
    assert won == {pointer.seq: pointer.who for pointer in history}
    assert len(history) >= 20  # somebody got that far alone, whoever the others met
    check(registry)


def test_collecting_races_promoting(tmp_path):
    """While releases are promoted, others are collected as fast as possible: no pointer ever names what is gone."""
    folder, clock = tmp_path / "registry", late()
    early = open_registry(folder)
    versions = [f"5.{i}" for i in range(40)]
    for version in versions:
        early.publish(release(version))
    early.promote("fraud:5.0", why="first")
    pid = os.fork()
    if pid == 0:  # pragma: no cover - in the child
        code = 1
        try:
            registry = open_registry(folder, clock)
            for _ in range(40):
                registry.collect_garbage(keep=0, unused_days=1, history_days=0)
            code = 0
        finally:
            os._exit(code)
    registry, promoted, reasons = open_registry(folder, clock), 0, []
    until(registry._records.collected, what="the first mark")
    for version in versions[1:]:
        try:
            registry.promote(f"fraud:{version}", why="next")
            promoted += 1
        except RegistryError as exc:
            reasons.append(str(exc))
        assert registry.read("fraud")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    check(open_registry(folder, clock))
    assert promoted + len(reasons) == 39
    assert reasons
    assert all("collected as garbage" in reason for reason in reasons)
