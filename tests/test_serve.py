"""octavo serve: workers are killed, replaced and drained under load. Real processes.

With SOAK in the environment there are more repetitions, and times are asserted as well.
"""

import asyncio
import os
import re
import signal
import ssl
import time
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import trustme
from sqlalchemy import select

from service.config import Production
from service.db.database import Database
from service.models import Book
from service.system.metrics_files import FOLDER
from tests.conftest import SECRET, cache_on, free_port, fresh_catalogue, migrate
from tests.factories import PASSWORD
from tests.test_cli import empty_url, octavo, served, start
from tests.test_health import black_hole

__all__ = ["empty_url"]  # a fixture
pytestmark = pytest.mark.alone

SOAK = bool(os.environ.get("SOAK"))
TIMEOUT = 60  # seconds: for any event, also on a busy machine
KILLS, ROLLS, REQUESTS = (50, 10, 20_000) if SOAK else (3, 2, 500)


@dataclass
class Service:
    """`octavo serve` with several workers, on PostgreSQL and Redis."""

    supervisor: Process
    url: str
    folder: Path
    database: Database
    statuses: Counter[int] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)  # requests without a response
    created: dict[int, int] = field(default_factory=dict)  # book id -> number in its fields
    numbers: Any = field(default_factory=count)

    @property
    def log(self) -> str:
        """The log file."""
        return (self.folder / "logs" / "app.log").read_text(encoding="utf-8")

    @property
    def workers(self) -> list[int]:
        """The worker processes, in the order of their start."""
        started = re.findall(r"serves \(process (\d+)\)", self.log)
        running = workers_of(self.supervisor.pid)
        return [int(pid) for pid in started if int(pid) in running]

    @property
    def started(self) -> int:
        """The number of workers that have started so far."""
        return len(re.findall(r"Worker \d+ serves", self.log))

    async def until_started(self, number: int) -> float:
        """Wait until so many workers have started; return the seconds."""
        begun = time.monotonic()
        async with asyncio.timeout(TIMEOUT):
            while self.started < number:
                await asyncio.sleep(0.02)
        return time.monotonic() - begun

    async def until_replaced(self, before: list[int]) -> None:
        """Wait until 3 workers remain, none of which ran before."""
        async with asyncio.timeout(TIMEOUT):
            while len(self.workers) > 3:
                await asyncio.sleep(0.1)
        assert len(self.workers) == 3
        assert not set(before) & set(self.workers)

    async def sign_in(self) -> dict[str, str]:
        """Create a user; return the headers of the user's requests."""
        account = {"username": "anna", "email": "anna@example.org", "password": PASSWORD}
        async with self.client() as client:
            assert (await client.post("/api/auth/register", json=account)).status_code == 201
            del account["username"]
            response = await client.post("/api/auth/login", json=account)
        return {"Authorization": f"Bearer {response.json()['token']}"}

    def client(self) -> httpx.AsyncClient:
        """Return a client with connections of its own."""
        return httpx.AsyncClient(base_url=self.url, timeout=TIMEOUT)

    async def send(self, client: httpx.AsyncClient, method: str, path: str, **more: Any) -> Any:
        """Send a request, and count its status; return the response, or None if it is lost."""
        try:
            response = await client.request(method, path, **more)
        except httpx.TransportError as error:
            self.lost.append(f"{method} {path}: {error!r}")
            return None
        self.statuses[response.status_code] += 1
        return response

    async def create(self, client: httpx.AsyncClient, headers: dict[str, str]) -> None:
        """Create a book each of whose fields holds the same number."""
        number = next(self.numbers)
        book = {"title": f"Title {number}", "author": f"Author {number}", "price": number}
        response = await self.send(client, "POST", "/api/books", json=book, headers=headers)
        if response is not None and response.status_code == 201:
            self.created[response.json()["id"]] = number

    @asynccontextmanager
    async def load(self, clients: int, work: Callable[[httpx.AsyncClient], Awaitable[None]]) -> Any:
        """Let clients, each with its own connection, repeat `work` within the context."""
        is_running = True

        async def repeat() -> None:
            async with self.client() as client:
                while is_running:
                    await work(client)

        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(repeat())
            try:
                yield
            finally:
                is_running = False


def children(pid: int) -> list[int]:
    """Return the ids of the processes that a process has started."""
    try:
        return [child.pid for child in psutil.Process(pid).children()]
    except psutil.NoSuchProcess:
        return []


def has_ended(pid: int) -> bool:
    """Whether a process has ended; its parent may not have waited for it yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def workers_of(supervisor: int) -> list[int]:
    """Return the ids of the workers: the fork servers of the supervisor have forked them."""
    return [worker for server in children(supervisor) for worker in children(server)]


async def until(is_true: Callable[[], bool]) -> None:
    """Wait until a condition is true."""
    async with asyncio.timeout(TIMEOUT):
        while not is_true():
            await asyncio.sleep(0.02)


async def end(process: Process) -> None:
    """Kill a process that still runs, and wait for its end."""
    if process.returncode is None:
        process.kill()
    await process.communicate()


@pytest.fixture
async def service(
    request: pytest.FixtureRequest, folder: Path, tmp_path: Path, redis_url: str
) -> AsyncIterator[Service]:
    """Three workers. A parameter of the fixture is DRAIN_SECONDS."""
    async with fresh_catalogue("postgresql", request, folder) as database:
        await cache_on(database, redis_url)
        environment = {
            "OCTAVO_ENV": "testing",
            "TESTING_DATABASE_URL": database.url.render_as_string(hide_password=False),
            "REDIS_URL": redis_url,
            "SECRET_KEY": SECRET,
            "RATELIMIT_ENABLED": "false",
            "DRAIN_SECONDS": getattr(request, "param", "1"),
            "WORKERS": "3",
        }
        async with served(tmp_path, **environment) as (supervisor, url, _):
            service = Service(supervisor, url, tmp_path, database)
            await service.until_started(3)
            yield service


@pytest.mark.timeout(900 if SOAK else 180)
async def test_killed_workers_lose_no_write_that_was_acknowledged(service: Service) -> None:
    headers, recoveries = await service.sign_in(), list[float]()

    async def work(client: httpx.AsyncClient) -> None:
        await service.create(client, headers)
        await service.send(client, "GET", "/api/books?per_page=5")

    async with service.load(6, work):
        for n in range(KILLS):
            await asyncio.sleep(0.3)
            await until(lambda n=n: len(service.created) > 10 * (n + 1))  # type: ignore[misc]  # bound now
            os.kill(service.workers[n % len(service.workers)], signal.SIGKILL)
            recoveries.append(await service.until_started(4 + n))
    assert len(service.workers) == 3
    async with service.database.session() as db:
        rows = {row.id: row for row in await db.scalars(select(Book))}
    for book_id, number in service.created.items():
        assert rows[book_id].title == f"Title {number}"
    for row in rows.values():
        suffix = row.title.removeprefix("Title ")
        assert (row.author, row.price, row.version) == (f"Author {suffix}", Decimal(suffix), 1)
    print(
        f"{KILLS} kills, {len(service.created)} books acknowledged, {len(rows)} stored, "
        f"{len(service.lost)} requests lost; a new worker after {max(recoveries):.2f} s at most"
    )
    assert set(service.statuses) <= {200, 201}
    assert len(service.created) > 10 * KILLS
    assert len(service.lost) <= 6 * KILLS, "at most 1 request of each client is lost in a kill"
    assert not SOAK or max(recoveries) < 2


@pytest.mark.timeout(900 if SOAK else 180)
@pytest.mark.parametrize("service", ["5"], indirect=True)
async def test_a_rolling_restart_fails_no_request(service: Service) -> None:
    """A client that is idle for DRAIN_SECONDS may lose its connection: they are not short."""
    before, headers, rolls = service.workers, await service.sign_in(), 0

    async def work(client: httpx.AsyncClient) -> None:
        await service.create(client, headers)
        for _ in range(9):
            await service.send(client, "GET", "/api/books?per_page=5")

    async with service.load(8, work):
        while rolls < ROLLS or sum(service.statuses.values()) < REQUESTS:
            await asyncio.sleep(0.2)
            service.supervisor.send_signal(signal.SIGHUP)
            rolls += 1
            await service.until_started(3 + 3 * rolls)
    print(f"{rolls} rolling restarts, {service.statuses}, lost: {service.lost[:5]}")
    assert not service.lost
    assert set(service.statuses) == {200, 201}
    await service.until_replaced(before)


@pytest.mark.parametrize("service", ["10"], indirect=True)
async def test_a_draining_service_is_not_ready_and_still_serves(service: Service) -> None:
    """A load balancer sees 503 at /health/ready; clients are asked to close connections."""
    headers = await service.sign_in()
    async with service.client() as client:
        kept = await client.get("/api/books")
        assert "connection" not in kept.headers
        service.supervisor.send_signal(signal.SIGTERM)
        ready = await client.get("/health/ready")
        while ready.status_code == 200:  # the signal takes time to reach the worker
            ready = await client.get("/health/ready")
        assert ready.status_code == 503
        assert ready.headers["connection"] == "close"
        async with service.client() as another:
            response = await another.post(
                "/api/books", json={"title": "Last", "author": "Anna"}, headers=headers
            )
        assert (response.status_code, response.headers["connection"]) == (201, "close")
    await asyncio.wait_for(service.supervisor.wait(), TIMEOUT)
    assert service.supervisor.returncode == 0
    with pytest.raises(httpx.ConnectError):
        async with service.client() as client:
            await client.get("/health/live")
    assert service.log.count("Application shutdown") == 3


async def test_workers_end_with_their_supervisor(service: Service) -> None:
    workers = service.workers
    environment = Path(f"/proc/{workers[0]}/environ").read_text().split("\0")
    (metrics,) = [line.partition("=")[2] for line in environment if line.startswith(FOLDER)]
    assert Path(metrics).exists()
    service.supervisor.kill()
    await until(lambda: all(map(has_ended, workers)))
    assert not Path(metrics).exists()


async def test_a_killed_fork_server_is_replaced(service: Service) -> None:
    """The workers keep running. When a worker is killed, a new fork server starts another."""
    (first,), before = children(service.supervisor.pid), service.workers
    os.kill(first, signal.SIGKILL)
    async with asyncio.timeout(TIMEOUT), service.client() as client:
        while children(service.supervisor.pid):
            await asyncio.sleep(0.02)
        assert (await client.get("/api/books")).status_code == 200
        os.kill(before[0], signal.SIGKILL)
        await service.until_started(4)
        assert (await client.get("/api/books")).status_code == 200
        assert not any(map(has_ended, before[1:]))
        service.supervisor.terminate()
        await service.supervisor.wait()
    assert service.supervisor.returncode == 0
    assert all(map(has_ended, before))


async def test_newer_code_that_cannot_be_loaded_changes_nothing(
    service: Service, tmp_path: Path
) -> None:
    """The reason is logged, and new workers run the code that was loaded before."""
    before = service.workers
    (tmp_path / "uvloop.py").write_text(
        "raise SystemExit(3)"
    )  # comes before the real module in the path
    service.supervisor.send_signal(signal.SIGHUP)
    await service.until_started(6)
    assert "The application cannot be loaded (exit code 3)" in service.log
    async with service.client() as client:
        assert (await client.get("/api/books")).status_code == 200
    await service.until_replaced(before)


async def test_the_supervisor_alone_writes_the_log_of_all_workers(service: Service) -> None:
    """Each line is whole, and has the id of its request."""

    async def work(client: httpx.AsyncClient) -> None:
        await service.send(client, "GET", "/api/books")

    async with service.load(4, work):
        await asyncio.sleep(0.5)
        await until(lambda: service.statuses[200] >= 100)
    # A line is written after its response has been sent.
    await until(lambda: service.log.count("GET /api/books 200") >= service.statuses[200])
    lines = service.log.splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+: ", line) for line in lines)
    requests = [line for line in lines if "GET /api/books 200" in line]
    assert len(requests) == service.statuses[200]
    ids = {line.rpartition(" ")[2] for line in requests}
    assert len(ids) == len(requests), "each request has its own id"
    assert sum("Application startup" in line for line in lines) == 3
    assert set(re.findall(r"Worker (\d+) serves", service.log)) == {"0", "1", "2"}
    opened = [
        pid
        for pid in (service.supervisor.pid, *service.workers)
        if any(os.readlink(fd).endswith("app.log") for fd in Path(f"/proc/{pid}/fd").iterdir())
    ]
    assert opened == [service.supervisor.pid]


async def test_metrics_are_of_all_workers_and_of_those_that_have_ended(service: Service) -> None:
    async def metrics() -> dict[str, float]:
        async with service.client() as client:
            text = (await client.get("/metrics")).text
            workers = (await client.get("/health")).json()["workers"]
        of_books = re.search(r'seconds_count{.*route="/api/books",status="200"} (.*)', text)
        gauge = re.search(r"(?m)^octavo_workers (.*)", text)
        assert of_books
        assert gauge
        return {"requests": float(of_books[1]), "gauge": float(gauge[1]), "health": workers}

    async def send() -> None:
        async with service.client() as client:
            await client.get("/api/books")

    async def until_counted(number: int) -> None:
        """Wait for the metrics: a request is counted after its response has been sent."""
        async with asyncio.timeout(TIMEOUT):
            while (await metrics())["requests"] < number:
                await asyncio.sleep(0.02)

    for _ in range(60):
        await send()
    await until_counted(60)
    assert await metrics() == {"requests": 60, "gauge": 3, "health": 3}
    for n in range(3):
        os.kill(service.workers[0], signal.SIGKILL)
        await service.until_started(4 + n)
        await send()
        await until_counted(61 + n)
    assert await metrics() == {"requests": 63, "gauge": 3, "health": 3}


async def test_a_worker_is_replaced_after_max_requests(empty_url: str, tmp_path: Path) -> None:
    """Also with the limits in memory, where the old worker ends first. No request is refused."""
    settings = {
        "OCTAVO_ENV": "testing",
        "TESTING_DATABASE_URL": empty_url,
        "SECRET_KEY": SECRET,
        "MAX_REQUESTS": "20",
        "MAX_REQUESTS_JITTER": "5",
        "RATELIMIT_ENABLED": "false",
        "DRAIN_SECONDS": "0.3",
    }
    await migrate(empty_url)
    async with served(tmp_path, **settings) as (supervisor, url, _):
        before, statuses = workers_of(supervisor.pid), Counter[int]()
        async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT) as client:
            async with asyncio.timeout(TIMEOUT):
                while workers_of(supervisor.pid) in (before, []):
                    statuses[(await client.get("/api/books")).status_code] += 1
            statuses[(await client.get("/api/books")).status_code] += 1
        assert set(statuses) == {200}
        assert statuses[200] > 20


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"WORKERS": "2"}, "REDIS_URL is missing"),
        ({"TLS_CERTFILE": "cert.pem"}, "TLS_CERTFILE and TLS_KEYFILE go together"),
        ({"TLS_CERTFILE": "no.pem", "TLS_KEYFILE": "no.pem"}, "TLS_CERTFILE no.pem cannot be"),
        ({"OCTAVO_ENV": "testing", "LOG_DIR": "/proc/logs"}, "LOG_DIR /proc/logs cannot be"),
    ],
)
async def test_a_wrong_setting_is_named_once_and_ends_the_start(
    tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    words = ("serve", "--bind", f"127.0.0.1:{free_port()}")
    code, _, err = await asyncio.wait_for(octavo(tmp_path, *words, **settings), TIMEOUT)
    assert code != 0
    assert err.count(message) == 1


async def test_a_service_that_is_starting_can_be_stopped(tmp_path: Path) -> None:
    """A database that never responds holds the start up, in several of its steps."""

    async def end_after(seconds: float) -> int | None:
        process = await start(tmp_path, "serve", "--bind", f"127.0.0.1:{free_port()}", **settings)
        try:
            await asyncio.sleep(seconds)
            process.terminate()
            await asyncio.wait_for(process.communicate(), TIMEOUT)
        finally:
            await end(process)
        return process.returncode

    async with black_hole() as port:
        settings = {
            "DEV_DATABASE_URL": f"postgresql://nobody@127.0.0.1:{port}/nothing",
            "GRACE_SECONDS": "600",
        }
        for seconds in (0.5, 1.5, 2.5, 3.0):
            assert await end_after(seconds) in {0, -signal.SIGTERM}


@pytest.mark.parametrize("victims", [children, workers_of], ids=["fork servers", "workers"])
async def test_a_service_whose_processes_never_start_ends(
    tmp_path: Path, victims: Callable[[int], list[int]]
) -> None:
    """Each process is killed before it serves: the supervisor tries 3 times."""
    settings = {"DEV_DATABASE_URL": f"sqlite:///{tmp_path}/d.db"}
    await migrate(settings["DEV_DATABASE_URL"])
    process = await start(tmp_path, "serve", "--bind", f"127.0.0.1:{free_port()}", **settings)
    killed = set[int]()
    try:
        async with asyncio.timeout(TIMEOUT):
            while process.returncode is None:
                for pid in set(victims(process.pid)) - killed:
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
                await asyncio.sleep(0.01)
    finally:
        await end(process)
    assert (process.returncode, len(killed)) == (1, 3)


async def test_tls_serves_http1_and_http2(tmp_path: Path) -> None:
    authority, port = trustme.CA(), free_port()
    certificate = authority.issue_cert("localhost")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    settings = {
        "DEV_DATABASE_URL": f"sqlite:///{tmp_path}/d.db",
        "TLS_CERTFILE": str(tmp_path / "both.pem"),
        "TLS_KEYFILE": str(tmp_path / "both.pem"),
    }
    await migrate(settings["DEV_DATABASE_URL"])
    for http2 in (False, True):
        environment = settings | {"HTTP2": str(http2)}
        process = await start(tmp_path, "serve", "--bind", f"127.0.0.1:{port}", **environment)
        try:
            assert process.stdout is not None
            await process.stdout.readline()  # the service listens
            async with httpx.AsyncClient(http2=True, verify=trusted, timeout=TIMEOUT) as client:
                response = await client.get(f"https://localhost:{port}/health/live")
                process.terminate()
                begun = time.monotonic()
                await process.communicate()
                seconds = time.monotonic() - begun
            assert response.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
            assert response.json() == {"status": "alive"}
            assert seconds < 30, "an idle client does not acknowledge the end of TLS"
        finally:
            if process.returncode is None:
                process.terminate()
                await process.communicate()


@pytest.mark.parametrize(
    ("seconds", "is_cut"),
    [("0.5", True), ("600", False)],
)
async def test_headers_have_a_timeout_and_idle_connections_have_another(
    tmp_path: Path, seconds: str, is_cut: bool
) -> None:
    """A client that sends headers without end is cut after HEADER_SECONDS, and not before."""
    default: float = Production.model_fields["header_seconds"].default
    settings = {"DEV_DATABASE_URL": f"sqlite:///{tmp_path}/d.db", "HEADER_SECONDS": seconds}
    await migrate(settings["DEV_DATABASE_URL"])
    async with served(tmp_path, **settings) as (_, url, _):
        port = int(url.rpartition(":")[2])
        idle_reader, idle = await asyncio.open_connection("127.0.0.1", port)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        cut = asyncio.ensure_future(reader.read())
        try:
            begun = time.monotonic()
            longest = TIMEOUT if is_cut else default + 1
            writer.write(b"GET /health/live HTTP/1.1\r\n")
            while not cut.done() and time.monotonic() < begun + longest:
                writer.write(b"X-A: b\r\n")  # does not extend the timeout
                await asyncio.wait({cut}, timeout=0.7)  # fewer headers than the limit
            lasted = time.monotonic() - begun
            assert cut.done() is is_cut
            assert not is_cut or (cut.result() == b"" and lasted > 0.4)
            assert not SOAK or not is_cut or lasted < 2
            idle.write(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await idle_reader.readline()).startswith(b"HTTP/1.1 200")
        finally:
            cut.cancel()
            for opened in (idle, writer):
                opened.close()
