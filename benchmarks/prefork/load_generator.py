"""A load generator for the overload test, in a process of its own: keep-alive connections, one thread, two kinds of load.

    python -m benchmarks.prefork.load_generator --port 8000 --closed 4 --seconds 3      so many connections, each waits
    python -m benchmarks.prefork.load_generator --port 8000 --rate 900 --seconds 5      so many a second, whoever waits

Prints one JSON object: how many were answered, refused (429), failed; latencies of the answered in ms, from the moment at
which the request was due; seconds after the start of the last refusal. A request that finds all connections in use is not sent
and is counted: the server would not have taken it up either.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter, deque

from benchmarks.prefork.overload_app import BODY

REQUEST = (
    b"POST /rank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    % len(BODY)
) + BODY
MOST_CONNECTIONS = 128


class Connection(asyncio.Protocol):
    """One keep-alive connection with one request under way at most."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self.received = b""
        self.due_s = 0.0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def send(self, due_s: float) -> None:
        self.due_s, self.received = due_s, b""
        assert self.transport is not None
        self.transport.write(REQUEST)

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, found, body = self.received.partition(b"\r\n\r\n")
        if not found:
            return
        lines = head.lower().split(b"\r\n")
        length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
        if len(body) >= length:
            closes = b"connection: close" in lines
            self.generator.done(self, int(head[9:12]), closes=closes)

    def connection_lost(self, exc: Exception | None) -> None:
        self.generator.lost(self)


class Generator:
    """Sends, and counts."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.idle: deque[Connection] = deque()
        self.open = 0
        self.under_way: set[Connection] = set()
        self.counts: Counter[str] = Counter()
        self.latencies_ms: list[float] = []
        self.last_refused_s = 0.0
        self.start_s = 0.0
        self.closed_loop = False
        self.ends_s = 0.0

    async def connect(self) -> None:
        """One connection more."""
        self.open += 1
        loop = asyncio.get_running_loop()
        try:
            _, one = await loop.create_connection(lambda: Connection(self), "127.0.0.1", self.port)
        except OSError:
            self.open -= 1
            self.counts["failed"] += 1
            return
        self.idle.append(one)

    def send(self, due_s: float) -> None:
        """One request on a free connection."""
        if not self.idle:
            self.counts["not sent"] += 1
            return
        one = self.idle.popleft()
        self.under_way.add(one)
        one.send(due_s)

    def done(self, one: Connection, status: int, *, closes: bool) -> None:
        """An answer is whole."""
        now = time.monotonic()
        self.under_way.discard(one)
        if status == 200:
            self.counts["answered"] += 1
            self.latencies_ms.append((now - one.due_s) * 1e3)
        elif status == 429:
            self.counts["refused"] += 1
            self.last_refused_s = now - self.start_s
        else:
            self.counts["failed"] += 1
        if not closes:
            self.idle.append(one)
        if self.closed_loop and now < self.ends_s:
            self.send(now)

    def lost(self, one: Connection) -> None:
        """The server ended a connection."""
        self.open -= 1
        if one in self.idle:
            self.idle.remove(one)
        if one in self.under_way:
            self.under_way.discard(one)
            self.counts["failed"] += 1

    async def run(self, *, rate: float, closed: int, seconds: float) -> dict[str, object]:
        """One phase."""
        for _ in range(closed or MOST_CONNECTIONS):
            await self.connect()
        self.start_s = time.monotonic()
        self.ends_s = self.start_s + seconds
        if closed:
            self.closed_loop = True
            for _ in range(closed):
                self.send(self.start_s)
            await asyncio.sleep(seconds)
        else:
            n = 0
            while (now := time.monotonic()) < self.ends_s:
                while self.start_s + n / rate <= now:
                    self.send(self.start_s + n / rate)
                    n += 1
                await asyncio.sleep(max(0.0, self.start_s + n / rate - time.monotonic()))
        answered = self.counts["answered"]
        took = time.monotonic() - self.start_s
        for _ in range(200):  # what is under way may still come; it is no part of the rate
            if not self.under_way:
                break
            await asyncio.sleep(0.01)
        ordered = sorted(self.latencies_ms) or [0.0]
        return {
            "seconds": took,
            "rate": answered / took,
            **{name: self.counts[name] for name in ("answered", "refused", "failed", "not sent")},
            "p50_ms": ordered[len(ordered) // 2],
            "p99_ms": ordered[len(ordered) * 99 // 100],
            "last_refused_s": self.last_refused_s,
        }


def main() -> None:
    """Command line; see above."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--closed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=3.0)
    given = parser.parse_args()
    generator = Generator(given.port)
    sys.stdout.write(
        json.dumps(asyncio.run(generator.run(rate=given.rate, closed=given.closed, seconds=given.seconds)))
        + "\n"
    )


if __name__ == "__main__":
    main()
