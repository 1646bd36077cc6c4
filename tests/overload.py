"""A load that does not care how the server feels: requests come when they come.

As a program it asks a server, from a process of its own, and prints what it saw as JSON. Whether
the server lives is asked from another one: the load itself is late at times, and nobody else is.
"""

import asyncio
import json
import random
import sys
import time
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from itertools import count
from typing import Any

import uvloop

DEADLINE = 1.0  # seconds after which nobody wants an answer any more
PROBES = 20  # a second, and as many connections
LIVE = "/health/live"
CONNECTIONS = 1_500


Ask = Callable[[float], Coroutine[Any, Any, None]]


class Connection(asyncio.Protocol):
    """Keep-alive HTTP/1.1, as simple as it can be: the server is what is measured."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._transport: Any = None
        self._answer: asyncio.Future[int] | None = None
        self._data = b""

    async def ask(self, path: str) -> int:
        """Ask for a path: the status; 0 if there was no answer."""
        if self._transport is None:
            loop, port = asyncio.get_running_loop(), self._port
            self._transport, _ = await loop.create_connection(lambda: self, "127.0.0.1", port)
        self._answer, self._data = asyncio.get_running_loop().create_future(), b""
        self._transport.write(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode())
        return await self._answer

    def data_received(self, data: bytes) -> None:
        """Look whether the answer is whole."""
        self._data += data
        head, end, body = self._data.partition(b"\r\n\r\n")
        if end:
            length = head.lower().partition(b"content-length: ")[2].split(b"\r", 1)[0]
            if len(body) == int(length):
                self._end(int(head[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:
        """Begin anew with the next request."""
        self._transport = None
        self._end(0)

    def _end(self, status: int) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(status)


class Load:
    """Counts answers in time, by status."""

    def __init__(self, port: int, paths: Sequence[str]) -> None:
        self._port = port
        self._paths = paths
        self._number = count()
        self._idle: list[Connection] = []
        self.statuses: Counter[int] = Counter()
        self.late = 0
        self.live: list[float] = []

    def _next(self) -> str:
        path = self._paths[next(self._number) % len(self._paths)]
        return path.format(id=random.randint(1, 100), cold=5 + random.random())

    async def closed(self, clients: int, seconds: float) -> None:
        """Let clients ask, each again when it has its answer."""
        until = time.monotonic() + seconds

        async def ask_on() -> None:
            connection = Connection(self._port)
            while time.monotonic() < until:
                self.statuses[await connection.ask(self._next())] += 1

        await asyncio.gather(*(ask_on() for _ in range(clients)))

    async def opened(self, rate: float, seconds: float) -> None:
        """Ask so many times a second, whatever comes back; and let somebody ask if it lives."""
        self._idle += await connections(self._port, CONNECTIONS)
        command = (sys.executable, "-m", "tests.overload", str(self._port), str(seconds), "live")
        probing = await asyncio.create_subprocess_exec(*command, stdout=PIPE)
        await ask_on(self._ask, rate, seconds)
        told, _ = await probing.communicate()
        self.live = json.loads(told)

    async def probed(self, seconds: float) -> None:
        """Ask whether it lives."""
        self._idle += await connections(self._port, PROBES)
        await ask_on(self._probe, PROBES, seconds)

    async def _ask(self, due: float) -> None:
        if not self._idle:
            self.late += 1  # nobody takes it
            return
        connection = self._idle.pop()
        status = await connection.ask(self._next())
        self._idle.append(connection)
        if time.monotonic() - due > DEADLINE:
            self.late += 1
        else:
            self.statuses[status] += 1

    async def _probe(self, due: float) -> None:
        connection = self._idle.pop() if self._idle else Connection(self._port)
        await connection.ask(LIVE)
        self.live.append(time.monotonic() - due)
        self._idle.append(connection)


async def connections(port: int, number: int) -> list[Connection]:
    """Open so many, one after the other: no storm of new ones."""
    opened = [Connection(port) for _ in range(number)]
    for connection in opened:
        await connection.ask(LIVE)
    return opened


async def ask_on(ask: Ask, rate: float, seconds: float) -> None:
    """Ask so many times a second, each time when it is due; wait for all answers."""
    begun, n = time.monotonic(), 0
    async with asyncio.TaskGroup() as asked:
        while (now := time.monotonic()) < begun + seconds:
            while (due := begun + n / rate) <= now:
                asked.create_task(ask(due))
                n += 1
            await asyncio.sleep(0.002)


def told(load: Load, seconds: float) -> dict[str, Any]:
    """Sum up: per second; the 99th percentile of a probe in seconds."""
    probes = sorted(load.live)
    return {
        "good": load.statuses[200] / seconds,
        "shed": load.statuses[503] / seconds,
        "others": sum(n for s, n in load.statuses.items() if s not in {200, 503}) / seconds,
        "late": load.late / seconds,
        "live_p99": probes[int(len(probes) * 0.99) - 1] if probes else 0.0,
    }


def main() -> None:
    """Measure: port, seconds, rate (0: 16 clients that wait; live: the probes), paths."""
    port, seconds, rate, *paths = sys.argv[1:]
    load = Load(int(port), paths)
    if rate == "live":
        uvloop.run(load.probed(float(seconds)))
        print(json.dumps(load.live))
        return
    if float(rate):
        uvloop.run(load.opened(float(rate), float(seconds)))
    else:
        uvloop.run(load.closed(16, float(seconds)))
    print(json.dumps(told(load, float(seconds))))


if __name__ == "__main__":
    main()
