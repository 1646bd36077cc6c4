"""Load on a server over keep-alive HTTP/1.1: bursts, closed loops and open loops.

As a program it reads a `Plan` as JSON from standard input and prints an `Outcome`. A test runs it
in a process of its own, so that server and load do not share an event loop. The clients are signed
in, each with the tier `service`: the limits are enforced and refuse no request.
"""

import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any, Literal

import uvloop
from pydantic import BaseModel

PROBES_PER_SECOND = 20
LIVE = "/health/live"
OPEN_LOOP_CONNECTIONS = 4_000
KINDS = ("item", "page", "filtered", "create", "update", "mix")

Kind = Literal["item", "page", "filtered", "create", "update", "mix"]


class Plan(BaseModel):
    """The requests to send. tokens: of the clients. ids: of books that the first client owns.

    burst: `number` requests at once. closed: `number` connections, each of which repeats its
    request after the response. open: `number` requests a second, whatever their responses.
    probes: requests of `/health/live`.
    """

    port: int
    mode: Literal["burst", "closed", "open", "probes"]
    kind: Kind = "item"
    number: int = 1
    seconds: float = 0.0
    tokens: list[str] = []
    ids: list[int] = []
    books: int = 10_000


class Outcome(BaseModel):
    """The responses to a plan. Times in seconds.

    statuses: number of responses by status; 0: the connection was lost. late: responses 200 or 201
    that took longer than the budget of 2 s. unsent: requests of an open loop for which no
    connection was free.
    """

    seconds: float
    statuses: dict[int, int]
    late: int = 0
    unsent: int = 0
    median: float = 0.0
    p99: float = 0.0
    longest: float = 0.0
    live_p99: float = 0.0
    last_response: float = 0.0  # after the last request was sent

    @property
    def good(self) -> int:
        """Requests that were served within the budget."""
        return self.statuses.get(200, 0) + self.statuses.get(201, 0) - self.late

    @property
    def refused(self) -> int:
        """Requests that got 503."""
        return self.statuses.get(503, 0)

    @property
    def broken(self) -> int:
        """Requests that got another response, or none."""
        return sum(n for status, n in self.statuses.items() if status not in {200, 201, 503})


class Connection(asyncio.Protocol):
    """One keep-alive connection, as cheap as possible: the load must not slow the server."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._transport: Any = None
        self._status: asyncio.Future[int] | None = None
        self._data = b""
        self._missing = -1  # bytes of the response; -1: its head is not complete

    async def connect(self) -> None:
        """Connect, if there is no connection."""
        if self._transport is None:
            loop, port = asyncio.get_running_loop(), self._port
            self._transport, _ = await loop.create_connection(lambda: self, "127.0.0.1", port)

    async def send(self, request: bytes) -> int:
        """Send a request and return the status of its response; 0 if there is none."""
        try:
            await self.connect()
        except OSError:
            return 0
        self._status, self._data = asyncio.get_running_loop().create_future(), b""
        self._missing = -1
        self._transport.write(request)
        return await self._status

    def data_received(self, data: bytes) -> None:
        """Check whether the response is complete."""
        if self._missing < 0:
            self._data += data
            head, end, body = self._data.partition(b"\r\n\r\n")
            if not end:
                return
            length = head.lower().partition(b"content-length: ")[2].split(b"\r", 1)[0]
            self._missing = int(length or 0) - len(body)
        else:
            self._missing -= len(data)
        if self._missing == 0:
            self._end(int(self._data[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection: the next request opens another."""
        self._transport = None
        self._end(0)

    def _end(self, status: int) -> None:
        if self._status is not None and not self._status.done():
            self._status.set_result(status)


class Load:
    """Sends the requests of a plan and counts the responses."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._numbers = count(random.randrange(1_000_000))
        self._statuses: Counter[int] = Counter()
        self._times: list[float] = []
        self._idle: list[Connection] = []
        self._unsent = 0

    async def run(self) -> Outcome:
        """Send all requests and wait for all responses."""
        plan = self._plan
        runs: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "burst": self._burst, "closed": self._closed, "open": self._open, "probes": self._open,
        }  # fmt: skip
        number = {"open": OPEN_LOOP_CONNECTIONS, "probes": PROBES_PER_SECOND}
        await self._connect(number.get(plan.mode, plan.number))
        begun = time.monotonic()
        await runs[plan.mode]()
        ended = time.monotonic()
        times = sorted(self._times)
        return Outcome(
            seconds=ended - begun,
            statuses=dict(self._statuses),
            late=sum(seconds > 2.0 for seconds in times),
            unsent=self._unsent,
            median=times[len(times) // 2] if times else 0.0,
            p99=times[int(len(times) * 0.99)] if times else 0.0,
            longest=times[-1] if times else 0.0,
            last_response=max(0.0, ended - begun - plan.seconds),
        )

    async def _connect(self, number: int) -> None:
        """Open connections, 50 at a time: this is no test of many new connections at once."""
        self._idle = [Connection(self._plan.port) for _ in range(number)]
        for first in range(0, number, 50):
            part = self._idle[first : first + 50]
            await asyncio.gather(*(connection.connect() for connection in part))

    def _request(self) -> bytes:
        plan, number = self._plan, next(self._numbers)
        kind = plan.kind if plan.kind != "mix" else ("item", "filtered")[number % 2]
        if plan.mode == "probes":
            return f"GET {LIVE} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        token = plan.tokens[0 if kind == "update" else number % len(plan.tokens)]
        method, path, body = "GET", "/api/books", b""
        if kind == "item":
            path += f"/{number % plan.books + 1}"
        elif kind == "page":
            path += f"?page={number % (plan.books // 20) + 1}"
        elif kind == "filtered":
            low, width = random.randrange(500, 2_500), random.randrange(100, 600)
            prices = f"price_min={low / 100}&price_max={(low + width) / 100}"
            path += f"?genre=Fiction&{prices}"
        elif kind == "create":
            method, body = "POST", json.dumps({"title": f"Load {number}", "author": "A"}).encode()
        else:
            method, path = "PATCH", f"{path}/{plan.ids[number % len(plan.ids)]}"
            body = json.dumps({"price": number % 10_000 / 100}).encode()
        lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {token}"]
        if body:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode() + body

    async def _send(self, connection: Connection, due: float) -> None:
        status = await connection.send(self._request())
        self._statuses[status] += 1
        if status in {200, 201}:
            self._times.append(time.monotonic() - due)

    async def _burst(self) -> None:
        due = time.monotonic()
        await asyncio.gather(*(self._send(connection, due) for connection in self._idle))

    async def _closed(self) -> None:
        until = time.monotonic() + self._plan.seconds

        async def repeat(connection: Connection) -> None:
            while (now := time.monotonic()) < until:
                await self._send(connection, now)

        await asyncio.gather(*map(repeat, self._idle))

    async def _open(self) -> None:
        rate = PROBES_PER_SECOND if self._plan.mode == "probes" else self._plan.number
        begun, number = time.monotonic(), 0
        async with asyncio.TaskGroup() as tasks:
            while (now := time.monotonic()) < begun + self._plan.seconds:
                while (due := begun + number / rate) <= now:
                    number += 1
                    if self._idle:
                        tasks.create_task(self._borrow(self._idle.pop(), due))
                    else:
                        self._unsent += 1
                await asyncio.sleep(0.002)

    async def _borrow(self, connection: Connection, due: float) -> None:
        await self._send(connection, due)
        self._idle.append(connection)


def main() -> None:
    """Run the plan from standard input."""
    plan = Plan.model_validate_json(sys.stdin.read())
    outcome = uvloop.run(Load(plan).run())
    print(outcome.model_dump_json())


if __name__ == "__main__":
    main()
