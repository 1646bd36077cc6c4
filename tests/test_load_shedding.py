"""Load shedding over HTTP: which requests wait, which are refused, and how. Real servers."""

import asyncio
import json
import os
import signal
import socket
import struct
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from quart import Quart
from sqlalchemy import text

from service import admission, config
from service.admission import AdmissionQueue
from service.admission.timeout import SHORTEST
from service.db import engines
from service.db.database import Database
from service.middleware.load_shedding import CONCURRENT_REQUESTS, LoadShedding
from service.models import User
from service.security import Tokens
from service.server.http1 import COMPLETE
from tests.conftest import SECRET, Site, cache_on, migrate, serving, settings_for
from tests.factories import Factory
from tests.load import Kind, Outcome, Plan
from tests.test_cli import empty_url, octavo, served

__all__ = ["empty_url"]  # a fixture

SOAK = bool(os.environ.get("SOAK"))
BUDGET = 1.0  # seconds in the queue: expiry is the expected event
ORIGIN = "https://shop.example.org"
NEVER_SHED = ("/health", "/health/live", "/health/ready", "/metrics")
ROUTES = ("/api/books?limit=2", "/api/users/1/books?nocache=1", "/", "/api/books/1", "/nowhere")
CHANGING = {"date", "x-request-id", "connection"}  # headers that differ between responses
BOOK = json.dumps({"title": "T", "author": "A"}).encode()


@pytest.fixture
async def small(site: Site, folder: Path) -> AsyncIterator[Site]:
    """An application in which a request waits in the queue for at most BUDGET seconds."""
    settings = settings_for(
        site.another_url, folder, max_wait_seconds=BUDGET, cors_origins=[ORIGIN]
    )
    async with serving(settings) as small:
        yield small


def load_shedding(site: Site) -> LoadShedding:
    """Return the middleware of an application."""
    middleware: LoadShedding = site.app.extensions["load_shedding"]
    return middleware


@asynccontextmanager
async def saturated(site: Site) -> AsyncIterator[AdmissionQueue]:
    """Take all turns of the queue: every other request waits."""
    queue = load_shedding(site).queue
    queue.limit, queue.running = 1, queue.running + 1
    try:
        yield queue
    finally:
        queue.limit = CONCURRENT_REQUESTS
        queue.release()


async def get(site: Site, path: str, **headers: str) -> httpx.Response:
    """Send a request over a new connection."""
    async with httpx.AsyncClient(base_url=site.url, headers=headers, timeout=60) as client:
        return await client.get(path)


async def until_waiting(queue: AdmissionQueue, number: int) -> None:
    """Wait until `number` requests are in the queue."""
    async with asyncio.timeout(60):
        while queue.waiting != number:
            await asyncio.sleep(0.002)


async def test_a_request_that_waits_too_long_gets_503_and_health_never_waits(small: Site) -> None:
    async with saturated(small) as queue:
        for path in NEVER_SHED:
            assert (await get(small, path)).status_code == 200
        for path in ROUTES:
            refused, begun = queue.refused, time.monotonic()
            response = await get(small, path)
            assert response.status_code == 503, path
            assert time.monotonic() - begun >= BUDGET / SHORTEST
            assert queue.refused == refused + 1
    assert (await get(small, "/api/books")).status_code == 200
    assert load_shedding(small).queue.running == 0


async def test_a_request_that_waits_less_is_served(site: Site) -> None:
    async with asyncio.TaskGroup() as tasks, saturated(site) as queue:
        sent = [tasks.create_task(get(site, path)) for path in ROUTES]
        await until_waiting(queue, len(ROUTES))
    assert [task.result().status_code for task in sent] == [200, 200, 200, 404, 404]
    assert load_shedding(site).queue.running == 0


@pytest.mark.parametrize("path", ["/api/books", "/api/books/1?x=y"])
async def test_a_refusal_is_complete_and_the_same_under_every_server(
    small: Site, path: str
) -> None:
    """Octavo's server refuses without a task; under another server the middleware refuses."""
    middleware = load_shedding(small)
    responses: list[httpx.Response] = []
    async with saturated(small):
        responses.append(await get(small, path, Origin=ORIGIN))
        transport = httpx.ASGITransport(middleware)  # type: ignore[arg-type]  # it is an application
        async with httpx.AsyncClient(transport=transport, base_url=small.url, timeout=60) as client:
            responses.append(await client.get(path, headers={"Origin": ORIGIN}))
        assert middleware.queue.refused == 2
        named = await get(small, path, **{"X-Request-Id": "mine"})
        assert named.headers["X-Request-Id"] == named.json()["request_id"] == "mine"
    for response in responses:
        assert response.status_code == 503
        assert response.headers["Content-Type"] == "application/problem+json"
        assert int(response.headers["Retry-After"]) >= 1
        assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert response.headers["Cache-Control"] == "no-store"
        assert response.json()["request_id"] == response.headers["X-Request-Id"]

    def stable(response: httpx.Response) -> Any:
        kept = {k: v for k, v in response.headers.items() if k not in CHANGING}
        return kept, {k: v for k, v in response.json().items() if k != "request_id"}

    assert stable(responses[0]) == stable(responses[1])


async def test_a_connection_stays_open_after_refusals(small: Site) -> None:
    async with httpx.AsyncClient(base_url=small.url, timeout=60) as client:
        for status in (503, 200, 503, 503, 200):
            if status == 200:
                assert (await client.get("/api/users/1/books?nocache=1")).status_code == 200
                continue
            async with saturated(small):
                assert (await client.get("/api/users/1/books?nocache=1")).status_code == 503
                assert (await client.head("/api/users/1/books?nocache=1")).content == b""
        pool: Any = client._transport  # private: httpx shows its pool nowhere else
        assert len(pool._pool.connections) == 1  # private: httpx shows its pool nowhere else


async def test_a_connection_that_gets_only_refusals_is_not_idle(site: Site, folder: Path) -> None:
    """The connection outlives its keep-alive time while it is used, and no longer."""
    keep_alive = 3.0
    settings = settings_for(
        site.another_url, folder, max_wait_seconds=0.2, keep_alive_seconds=keep_alive
    )
    async with serving(settings) as small, saturated(small):
        reader, writer = await asyncio.open_connection("127.0.0.1", small.port)
        try:
            begun = time.monotonic()
            while time.monotonic() < begun + 1.5 * keep_alive:
                writer.write(b"GET /api/users/1/books?nocache=1 HTTP/1.1\r\nHost: x\r\n\r\n")
                head = await reader.readuntil(b"\r\n\r\n")
                assert b" 503" in head.split(b"\r\n")[0]
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0])
                assert len(await reader.readexactly(length)) == length
            async with asyncio.timeout(60):
                assert await reader.read() == b"", "the idle connection is closed"
        finally:
            writer.close()


async def test_lists_come_last_while_the_server_is_overloaded(site: Site) -> None:
    order: list[str] = []

    async def send(path: str) -> None:
        await get(site, path)
        order.append(path)

    async with asyncio.TaskGroup() as tasks, saturated(site) as queue:
        queue.timeout.refused(time.monotonic())
        for number, path in enumerate(("/api/books?limit=2", "/api/books/1"), 1):
            tasks.create_task(send(path))
            await until_waiting(queue, number)
        queue.release()  # one request runs, then the other
        try:
            await until_waiting(queue, 0)
        finally:
            queue.resume()
    assert order == ["/api/books/1", "/api/books?limit=2"]


async def test_a_burst_waits_and_is_served(
    site: Site, make: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "service.cache.reader.SQL_SECONDS", 60.0
    )  # a busy machine is not a database that hangs
    books = [await make.book() for _ in range(3 * CONCURRENT_REQUESTS)]
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=site.url, limits=limits, timeout=60) as client:
        responses = await asyncio.gather(*(client.get(f"/api/books/{book.id}") for book in books))
        assert {response.status_code for response in responses} == {200}
        lists = await asyncio.gather(
            *(client.get(f"/api/books?price_min={n}") for n in range(2 * CONCURRENT_REQUESTS))
        )
        assert {response.status_code for response in lists} == {200}
        headers = (await make.member()).headers | {"Content-Type": "application/json"}
        created = await asyncio.gather(
            *(
                client.post("/api/books", content=BOOK, headers=headers)
                for _ in range(2 * CONCURRENT_REQUESTS)
            )
        )
        assert {response.status_code for response in created} == {201}
    queue = load_shedding(site).queue
    assert (queue.running, queue.waiting) == (0, 0)


def post(member: Any, body: bytes, *, expect: bool = False) -> bytes:
    """Write a request that creates a book."""
    lines = [
        "POST /api/books HTTP/1.1", "Host: x", "Content-Type: application/json",
        f"Authorization: Bearer {member.token}", f"Content-Length: {len(body)}", "", "",
    ]  # fmt: skip
    return "\r\n".join(lines).encode() + body


async def test_requests_with_slow_bodies_take_no_turns(site: Site, make: Factory) -> None:
    member = await make.member()
    request = post(member, BOOK)
    slow: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    try:
        for _ in range(2 * CONCURRENT_REQUESTS):
            reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
            slow.append((reader, writer))
            writer.write(request[:-5])
        edge = site.app.extensions["request_edge"]
        async with asyncio.timeout(60):
            while edge.in_flight < len(slow):
                await asyncio.sleep(0.01)
        assert load_shedding(site).queue.running == 0
        assert (await get(site, "/api/books")).status_code == 200
        for _, writer in slow:
            writer.write(request[-5:])
        for reader, _ in slow:
            assert b" 201" in await reader.readline()
    finally:
        for _, writer in slow:
            writer.close()


async def test_a_request_with_a_slow_body_that_waits_too_long_is_refused(
    small: Site, make: Factory
) -> None:
    member = await Factory(small.app).member()
    request = post(member, BOOK)
    reader, writer = await asyncio.open_connection("127.0.0.1", small.port)
    try:
        writer.write(request[:-5])
        edge = small.app.extensions["request_edge"]
        async with asyncio.timeout(60):
            while not edge.in_flight:
                await asyncio.sleep(0.01)
        async with saturated(small):
            writer.write(request[-5:])
            assert b" 503" in await reader.readline()
        assert (await get(small, "/api/books")).json()["total"] == 0
    finally:
        writer.close()


async def test_the_request_of_a_client_that_disconnects_leaves_the_queue(
    site: Site, make: Factory
) -> None:
    request = post(await make.member(), BOOK)
    async with saturated(site) as queue:
        _, writer = await asyncio.open_connection("127.0.0.1", site.port)
        try:
            writer.write(request)
            await until_waiting(queue, 1)
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        finally:
            writer.transport.abort()  # by a reset: a stream may end in one direction only
        await until_waiting(queue, 0)
        assert queue.refused == 0
    assert (await get(site, "/api/books?nocache=1")).json()["total"] == 0
    assert queue.running == 0


async def test_a_cancelled_request_leaves_the_queue(site: Site) -> None:
    middleware = load_shedding(site)
    scope: Any = {
        "type": "http", "method": "GET", "path": "/api/books", "headers": [],
        "extensions": {COMPLETE: {}},
    }  # fmt: skip

    async def never(*_: Any) -> Any:
        raise AssertionError("the server called receive or send")

    async with saturated(site) as queue:
        task = asyncio.create_task(middleware(scope, never, never))
        try:
            await until_waiting(queue, 1)
        finally:
            task.cancel()
            await asyncio.wait({task})
    assert (queue.running, queue.waiting) == (0, 0)


async def test_one_budget_covers_the_turn_and_the_connection(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that has waited for its turn waits for a connection for the rest of its time."""
    budget, waited = 60.0, 0.5
    settings = settings_for(
        site.another_url, folder, pool_size=1, pool_overflow=0, max_wait_seconds=budget
    )
    release = asyncio.Event()
    held = asyncio.Event()
    rests: list[float] = []  # seconds that a request may wait for a connection

    def seconds_left(longest: float) -> float:
        """Note how long the request may wait, and let it wait for less."""
        rests.append(admission.seconds_left(longest))
        return 0.1

    def prepare(app: Quart) -> None:
        @app.get("/api/hold")
        async def hold() -> str:
            async with app.extensions["database"].session() as db:
                await db.execute(text("SELECT 1"))
                held.set()
                await release.wait()
            return ""

    async with serving(settings, prepare) as small, asyncio.TaskGroup() as tasks:
        try:
            tasks.create_task(get(small, "/api/hold"))
            await held.wait()
            async with saturated(small) as queue:
                queue.running -= 1  # the request that holds the connection has a turn as well
                queue.limit = 0
                monkeypatch.setattr(engines, "seconds_left", seconds_left)
                refused = tasks.create_task(get(small, "/api/books"))
                await until_waiting(queue, 1)
                await asyncio.sleep(waited)
                queue.running += 1
            response = await refused
            assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
            assert queue.refused == 0, "the request had its turn, and no connection"
            (rest,) = rests
            assert 0 < rest <= budget - waited
        finally:
            release.set()


class LoadedServer:
    """A server with default settings in a process of its own, on a core of its own."""

    def __init__(self, process: Process, port: int, tokens: list[str], ids: list[int]) -> None:
        self.process, self.port = process, port
        self._tokens, self._ids = tokens, ids

    async def load(self, mode: Any, kind: Kind, number: int, seconds: float = 0.0) -> Outcome:
        """Run a plan in another process, and return its outcome."""
        plan = Plan(
            port=self.port, mode=mode, kind=kind, number=number, seconds=seconds,
            tokens=self._tokens, ids=self._ids,
        )  # fmt: skip
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.load", stdin=PIPE, stdout=PIPE
        )
        pin(process.pid, 1)
        out, _ = await process.communicate(plan.model_dump_json().encode())
        return Outcome.model_validate_json(out)


def pin(pid: int, core: int) -> None:
    """Run all threads of a process on one core."""
    cores = sorted(os.sched_getaffinity(0))
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {cores[core % len(cores)]})


@asynccontextmanager
async def loaded_server(tmp_path: Path, url: str, redis_url: str) -> AsyncIterator[LoadedServer]:
    """Serve 10,000 books to 100 clients of the tier `service`, with default settings."""
    environment = {
        "OCTAVO_ENV": "testing",
        "TESTING_DATABASE_URL": url,
        "SECRET_KEY": SECRET,
        "WORKERS": "0",
        "MAX_WAIT_SECONDS": "",  # the default
    }
    is_postgresql = url.startswith("postgresql")
    if is_postgresql:
        environment["REDIS_URL"] = redis_url
    await migrate(url)
    await octavo(tmp_path, "seed-db", "--books", "10000", "--seed", "1", **environment)
    settings = config.Testing(database_url=url, secret_key=SECRET)
    database = Database(settings)
    await database.open()
    async with database.writer.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO users (username, username_key, email, email_key, password_hash, tier) "
                "VALUES (:name, :name_key, :email, :email_key, '-', 'service')"
            ),
            [
                {"name": name, "name_key": name, "email": name, "email_key": name}
                for name in (f"client{n}" for n in range(100))
            ],
        )
        users = (
            await connection.execute(
                text("SELECT id, username, tier, token_version FROM users ORDER BY id")
            )
        ).mappings()
        tokens = [Tokens(settings).issue(User(**user))[0] for user in users]
        await connection.execute(
            text("UPDATE books SET user_id = (SELECT min(id) FROM users) WHERE id <= 500")
        )
    if is_postgresql:
        await cache_on(database, redis_url)
    await database.close()
    async with served(tmp_path, **environment) as (process, address, _):
        pin(process.pid, 0)
        yield LoadedServer(process, int(address.rpartition(":")[2]), tokens, list(range(1, 501)))


def report(name: str, outcome: Outcome) -> None:
    """Print an outcome for the reader of `make soak`."""
    print(
        f"{name}: {outcome.good / outcome.seconds:.0f}/s good, {outcome.refused} refused, "
        f"{outcome.broken} broken, {outcome.late} late; median {outcome.median * 1000:.0f} ms, "
        f"p99 {outcome.p99 * 1000:.0f} ms"
    )


BUDGET_SECONDS = 2.0  # the default
KINDS: list[Kind] = ["item", "page", "filtered", "create", "update"]
BURSTS: list[tuple[Kind, int]] = [
    *(("item", number) for number in (50, 100, 500, 1_000)),
    ("page", 100),
    ("filtered", 300),
    ("create", 200),
]


@pytest.mark.skipif(not SOAK, reason="make soak: needs two cores of its own")
@pytest.mark.timeout(3_000)
async def test_default_settings_sustain_bursts_and_overload(
    tmp_path: Path, empty_url: str, redis_url: str
) -> None:
    seconds = float(os.environ.get("LOAD_SECONDS", "60"))
    async with loaded_server(tmp_path, empty_url, redis_url) as server:
        rates: dict[str, float] = {}  # responses a second, by kind
        for kind, number in BURSTS:
            outcome = await server.load("burst", kind, number)
            report(f"burst of {number} {kind}", outcome)
            assert outcome.broken == outcome.refused == 0
            rates[kind] = outcome.good / outcome.seconds
        for kind in KINDS:
            for connections in (32, 256, 1_000):
                outcome = await server.load("closed", kind, connections, seconds)
                report(f"{connections} connections, {kind}", outcome)
                assert outcome.broken == 0
                rate = rates.setdefault(kind, outcome.good / outcome.seconds)
                if connections < 1_000 or connections / rate <= BUDGET_SECONDS:
                    assert outcome.refused == 0
        peak = await server.load("closed", "mix", 32, seconds / 4)
        rate = 3 * peak.good / peak.seconds
        report("peak of the mix", peak)
        live, outcome = await asyncio.gather(
            server.load("probes", "item", 1, seconds),
            server.load("open", "mix", int(rate), seconds),
        )
        report(f"open loop of {rate:.0f}/s", outcome)
        print(f"/health/live p99 {live.p99 * 1000:.0f} ms; unsent {outcome.unsent}")
        assert outcome.good / outcome.seconds >= 0.8 * peak.good / peak.seconds
        assert outcome.median <= 0.5
        assert live.p99 < 0.1
        assert outcome.last_response <= 2.0
        paused = asyncio.create_task(server.load("closed", "mix", 256, 8))
        try:
            for _ in range(2):
                await asyncio.sleep(2)
                server.process.send_signal(signal.SIGSTOP)
                await asyncio.sleep(0.3)
                server.process.send_signal(signal.SIGCONT)
        finally:
            server.process.send_signal(signal.SIGCONT)
            outcome = await paused
        report("stopped twice for 300 ms", outcome)
        assert outcome.refused == outcome.broken == 0
