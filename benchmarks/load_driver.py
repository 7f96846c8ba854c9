"""Requests to an HTTP server as many clients make them: so many connections without a pause, or so many requests a second whatever the server does."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np

TIMEOUT_SECONDS = 60.0


@dataclasses.dataclass
class Answers:
    """What came of a number of requests.

    Attributes:
        seconds: that they took in all.
        latencies: seconds of each answered one.
        failed: statuses of the others; 0 for a connection that ended.
    """

    seconds: float = 0.0
    latencies: list[float] = dataclasses.field(default_factory=list)
    failed: list[int] = dataclasses.field(default_factory=list)

    @property
    def per_second(self) -> float:
        """Answered requests."""
        return len(self.latencies) / self.seconds

    def milliseconds(self, percentile: float) -> float:
        """Of the latency."""
        return float(np.percentile(self.latencies, percentile) * 1000) if self.latencies else float("nan")

    def told(self) -> dict[str, Any]:
        """Figures for results."""
        return {
            "requests_per_second": self.per_second,
            "p50_ms": self.milliseconds(50),
            "p99_ms": self.milliseconds(99),
            "answered": len(self.latencies),
            "failed": len(self.failed),
            "failures": sorted(set(self.failed)),
        }


class Connection:
    """One that is kept open, and opened again where the server closed it."""

    def __init__(self, url: str) -> None:
        found = urlsplit(url)
        self.host, self.port = found.hostname or "127.0.0.1", found.port or 80
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body; status 0 where the connection ended."""
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                return await self._posted(path, body)
        except (OSError, EOFError, TimeoutError, ValueError):
            self.close()
            return 0, b""

    def close(self) -> None:
        """Ends it."""
        if self._streams:
            self._streams[1].close()
            self._streams = None

    async def _posted(self, path: str, body: bytes) -> tuple[int, bytes]:
        if self._streams and self._streams[0].at_eof():  # the server gave up a connection that was idle for long
            self.close()
        if self._streams is None:
            self._streams = await asyncio.open_connection(self.host, self.port)
        reader, writer = self._streams
        head = f"POST {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        length = next(int(line.partition(":")[2]) for line in lines if line.startswith("content-length:"))
        answer = await reader.readexactly(length)
        if any(line.startswith("connection:") and "close" in line for line in lines):
            self.close()
        return int(lines[0].split()[1]), answer


def bodies(queries: Sequence[str], **more: Any) -> Iterator[bytes]:
    """Search requests for queries in their order, again and again."""
    return itertools.cycle([json.dumps({"query": query, **more}).encode() for query in queries])


async def closed_loop(url: str, path: str, work: Iterator[bytes], connections: int, seconds: float) -> Answers:
    """Each connection asks again as soon as it is answered."""
    found, start = Answers(), time.perf_counter()

    async def ask() -> None:
        connection = Connection(url)
        while time.perf_counter() - start < seconds:
            await _asked(connection, path, next(work), found)
        connection.close()

    await asyncio.gather(*(ask() for _ in range(connections)))
    found.seconds = time.perf_counter() - start
    return found


async def open_loop(url: str, path: str, work: Iterator[bytes], per_second: float, seconds: float) -> Answers:
    """So many requests a second, each on a connection that is free; a latency counts from when the request was due."""
    found, start = Answers(), time.perf_counter()
    idle: list[Connection] = []

    async def ask(due: float) -> None:
        connection = idle.pop() if idle else Connection(url)
        await _asked(connection, path, next(work), found, due)
        idle.append(connection)

    async with asyncio.TaskGroup() as group:
        for number in range(int(per_second * seconds)):
            due = start + number / per_second
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(ask(due))
    found.seconds = time.perf_counter() - start
    for connection in idle:
        connection.close()
    return found


async def _asked(connection: Connection, path: str, body: bytes, found: Answers, since: float | None = None) -> None:
    since = time.perf_counter() if since is None else since
    status, _ = await connection.post(path, body)
    if status == 200:
        found.latencies.append(time.perf_counter() - since)
    else:
        found.failed.append(status)
        await asyncio.sleep(0.05)  # as a client waits that was refused
