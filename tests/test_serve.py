"""octavo serve: workers that are killed, replaced and drained under load. Real processes."""

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

from service.db.database import Database
from service.models import Book
from service.system.metrics_files import FOLDER
from tests.conftest import SECRET, cache_on, free_port, fresh_catalogue
from tests.factories import PASSWORD
from tests.test_cli import empty_url, octavo, served, start
from tests.test_health import black_hole

__all__ = ["empty_url"]  # a fixture
pytestmark = pytest.mark.alone

SOAK = bool(os.environ.get("SOAK"))
SLACK = 1 if SOAK else 3  # of every deadline: machines are shared
KILLS, ROLLS, REQUESTS = (50, 10, 20_000) if SOAK else (4, 2, 1_500)


@dataclass
class Service:
    """`octavo serve` with several workers, on PostgreSQL and Redis."""

    supervisor: Process
    url: str
    folder: Path
    database: Database
    statuses: Counter[int] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)  # requests without an answer
    created: dict[int, int] = field(default_factory=dict)  # the number of each book, by its id
    slowest: float = 0.0
    numbers: Any = field(default_factory=count)

    @property
    def log(self) -> str:
        """The one file that is written."""
        return (self.folder / "logs" / "app.log").read_text(encoding="utf-8")

    @property
    def workers(self) -> list[int]:
        """The processes that serve, in the order in which they began to."""
        served = re.findall(r"serves \(process (\d+)\)", self.log)
        there = workers_of(self.supervisor.pid)
        return [int(pid) for pid in served if int(pid) in there]

    @property
    def started(self) -> int:
        """How many workers there were so far."""
        return len(re.findall(r"Worker \d+ serves", self.log))

    async def until_started(self, number: int) -> float:
        """Wait for so many: the seconds."""
        begun = time.monotonic()
        async with asyncio.timeout(60):
            while self.started < number:
                await asyncio.sleep(0.02)
        return time.monotonic() - begun

    async def until_replaced(self, before: list[int]) -> None:
        """Wait until those that are told to end have ended, these among them."""
        async with asyncio.timeout(30):
            while len(self.workers) > 3:
                await asyncio.sleep(0.1)
        assert len(self.workers) == 3
        assert not set(before) & set(self.workers)

    async def sign_in(self) -> dict[str, str]:
        """Make a user: the headers of their requests."""
        name = {"username": "anna", "email": "anna@example.org", "password": PASSWORD}
        async with httpx.AsyncClient(base_url=self.url) as client:
            assert (await client.post("/api/auth/register", json=name)).status_code == 201
            del name["username"]
            answer = await client.post("/api/auth/login", json=name)
        return {"Authorization": f"Bearer {answer.json()['token']}"}

    async def ask(self, client: httpx.AsyncClient, method: str, path: str, **more: Any) -> Any:
        """Ask something: the answer, if there was one."""
        begun = time.monotonic()
        try:
            answer = await client.request(method, path, **more)
        except httpx.TransportError as error:
            self.lost.append(f"{method} {path}: {error!r}")
            return None
        self.slowest = max(self.slowest, time.monotonic() - begun)
        self.statuses[answer.status_code] += 1
        return answer

    async def create(self, client: httpx.AsyncClient, headers: dict[str, str]) -> None:
        """Make a book whose parts all say its number."""
        number = next(self.numbers)
        book = {"title": f"Title {number}", "author": f"Author {number}", "price": number}
        answer = await self.ask(client, "POST", "/api/books", json=book, headers=headers)
        if answer is not None and answer.status_code == 201:
            self.created[answer.json()["id"]] = number

    @asynccontextmanager
    async def load(self, clients: int, work: Callable[[httpx.AsyncClient], Awaitable[None]]) -> Any:
        """Let clients with connections of their own ask on and on."""
        going = True

        async def ask_on() -> None:
            async with httpx.AsyncClient(base_url=self.url, timeout=30) as client:
                while going:
                    await work(client)

        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(ask_on())
            try:
                yield
            finally:
                going = False


def children(pid: int) -> list[int]:
    """Name the processes that a process has started."""
    try:
        return [child.pid for child in psutil.Process(pid).children()]
    except psutil.NoSuchProcess:
        return []


def has_ended(pid: int) -> bool:
    """Whether a process is over; who inherits it may not have looked yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def workers_of(supervisor: int) -> list[int]:
    """Name the processes that those have forked which it has started."""
    return [worker for server in children(supervisor) for worker in children(server)]


@pytest.fixture
async def service(
    request: pytest.FixtureRequest, folder: Path, tmp_path: Path, redis_url: str
) -> AsyncIterator[Service]:
    """Three workers."""
    async with fresh_catalogue("postgresql", request, folder) as database:
        await cache_on(database, redis_url)
        environment = {
            "OCTAVO_ENV": "testing",
            "TESTING_DATABASE_URL": database.url.render_as_string(hide_password=False),
            "REDIS_URL": redis_url,
            "SECRET_KEY": SECRET,
            "RATELIMIT_ENABLED": "false",
            "DRAIN_SECONDS": "1",
            "WORKERS": "3",
        }
        async with served(tmp_path, **environment) as (supervisor, url, _):
            found = Service(supervisor, url, tmp_path, database)
            await found.until_started(3)
            yield found


@pytest.mark.timeout(900 if SOAK else 180)
async def test_killed_workers_lose_nothing_that_was_answered(service: Service) -> None:
    headers, back = await service.sign_in(), []

    async def work(client: httpx.AsyncClient) -> None:
        await service.create(client, headers)
        await service.ask(client, "GET", "/api/books?per_page=5")

    async with service.load(6, work):
        for n in range(KILLS):
            await asyncio.sleep(0.3)
            os.kill(service.workers[n % len(service.workers)], signal.SIGKILL)
            back.append(await service.until_started(4 + n))
    assert len(service.workers) == 3
    async with service.database.session() as db:
        rows = {row.id: row for row in await db.scalars(select(Book))}
    for book_id, number in service.created.items():
        assert rows[book_id].title == f"Title {number}"
    for row in rows.values():
        named = row.title.removeprefix("Title ")
        assert (row.author, row.price, row.version) == (f"Author {named}", Decimal(named), 1)
    print(
        f"{KILLS} kills, {len(service.created)} books acknowledged, {len(rows)} there, "
        f"{len(service.lost)} requests without an answer; back after {max(back):.2f} s at most"
    )
    assert set(service.statuses) <= {200, 201}
    assert len(service.created) > 10 * KILLS
    assert len(service.lost) <= 6 * KILLS, "only who was connected to the one that was killed"
    assert max(back) < 2 * SLACK


@pytest.mark.timeout(900 if SOAK else 180)
async def test_a_rolling_restart_fails_nobody(service: Service) -> None:
    before, headers, rolls = service.workers, await service.sign_in(), 0

    async def work(client: httpx.AsyncClient) -> None:
        await service.create(client, headers)
        for _ in range(9):
            await service.ask(client, "GET", "/api/books?per_page=5")

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


async def test_draining_is_told_and_waited_for(service: Service) -> None:
    """A balancer sees 503 while it may still ask; clients that stay are told to close."""
    headers = await service.sign_in()
    async with httpx.AsyncClient(base_url=service.url) as client:
        kept = await client.get("/api/books")
        assert "connection" not in kept.headers
        service.supervisor.send_signal(signal.SIGTERM)
        ready = await client.get("/health/ready")
        while ready.status_code == 200:  # the signal has its way to go
            ready = await client.get("/health/ready")
        assert ready.status_code == 503
        assert ready.headers["connection"] == "close"
        async with httpx.AsyncClient(base_url=service.url) as another:
            answer = await another.post(
                "/api/books", json={"title": "Last", "author": "Anna"}, headers=headers
            )
        assert (answer.status_code, answer.headers["connection"]) == (201, "close")
    await asyncio.wait_for(service.supervisor.wait(), 1 + 5 * SLACK)
    assert service.supervisor.returncode == 0
    with pytest.raises(httpx.ConnectError):
        async with httpx.AsyncClient() as client:
            await client.get(f"{service.url}/health/live")
    assert service.log.count("Application shutdown") == 3


async def test_workers_end_with_their_supervisor(service: Service) -> None:
    workers = service.workers
    environment = Path(f"/proc/{workers[0]}/environ").read_text().split("\0")
    (figures,) = [one.partition("=")[2] for one in environment if one.startswith(FOLDER)]
    assert Path(figures).exists()
    service.supervisor.kill()
    async with asyncio.timeout(10 * SLACK):
        while not all(map(has_ended, workers)):
            await asyncio.sleep(0.05)
    assert not Path(figures).exists()


async def test_who_forks_may_be_killed_too(service: Service) -> None:
    """The workers stay, and when one of them is killed, another process forks."""
    (first,), before = children(service.supervisor.pid), service.workers
    os.kill(first, signal.SIGKILL)
    async with asyncio.timeout(5 * SLACK), httpx.AsyncClient(base_url=service.url) as client:
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
    """It says so, and those who serve are replaced by the code that was loaded."""
    before = service.workers
    (tmp_path / "uvloop.py").write_text("raise SystemExit(3)")  # found before the real one
    service.supervisor.send_signal(signal.SIGHUP)
    await service.until_started(6)
    assert "What serves cannot be loaded (exit code 3)" in service.log
    async with httpx.AsyncClient(base_url=service.url) as client:
        assert (await client.get("/api/books")).status_code == 200
    await service.until_replaced(before)


async def test_one_process_writes_what_all_say(service: Service) -> None:
    """Each line is whole, and says which request it belongs to."""

    async def work(client: httpx.AsyncClient) -> None:
        await service.ask(client, "GET", "/api/books")

    async with service.load(4, work):
        await asyncio.sleep(0.5)
    async with asyncio.timeout(5):  # a line is written after its answer has been sent
        while service.log.count("GET /api/books 200") < service.statuses[200]:
            await asyncio.sleep(0.02)
    lines = service.log.splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+: ", line) for line in lines)
    asked = [line for line in lines if "GET /api/books 200" in line]
    assert len(asked) == service.statuses[200]
    assert len({line.rpartition(" ")[2] for line in asked}) == len(asked), "each has its own id"
    assert sum("Application startup" in line for line in lines) == 3
    assert set(re.findall(r"Worker (\d+) serves", service.log)) == {"0", "1", "2"}
    opened = [
        pid
        for pid in (service.supervisor.pid, *service.workers)
        if any(os.readlink(fd).endswith("app.log") for fd in Path(f"/proc/{pid}/fd").iterdir())
    ]
    assert opened == [service.supervisor.pid]


async def test_figures_are_of_all_workers_also_of_those_that_were(service: Service) -> None:
    async def figures() -> dict[str, float]:
        async with httpx.AsyncClient(base_url=service.url) as client:
            text = (await client.get("/metrics")).text
            there = (await client.get("/health")).json()["workers"]
        of_books = re.search(r'seconds_count{.*route="/api/books",status="200"} (.*)', text)
        serving = re.search(r"(?m)^octavo_workers (.*)", text)
        assert of_books
        assert serving
        return {"asked": float(of_books[1]), "serving": float(serving[1]), "there": there}

    async def ask() -> None:
        async with httpx.AsyncClient(base_url=service.url) as client:
            await client.get("/api/books")

    for _ in range(60):
        await ask()
    assert await figures() == {"asked": 60, "serving": 3, "there": 3}
    for n in range(3):
        os.kill(service.workers[0], signal.SIGKILL)
        await service.until_started(4 + n)
        await ask()
    assert await figures() == {"asked": 63, "serving": 3, "there": 3}


async def test_a_worn_worker_is_replaced(empty_url: str, tmp_path: Path) -> None:
    """In memory, too, where the old one ends first; nobody is refused meanwhile."""
    settings = {
        "OCTAVO_ENV": "testing",
        "TESTING_DATABASE_URL": empty_url,
        "SECRET_KEY": SECRET,
        "MAX_REQUESTS": "20",
        "MAX_REQUESTS_JITTER": "5",
        "RATELIMIT_ENABLED": "false",
        "DRAIN_SECONDS": "0.3",
    }
    await octavo(tmp_path, "migrate", **settings)
    async with served(tmp_path, **settings) as (supervisor, url, _):
        before, statuses = workers_of(supervisor.pid), Counter[int]()
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            async with asyncio.timeout(20 * SLACK):
                while workers_of(supervisor.pid) in (before, []):
                    statuses[(await client.get("/api/books")).status_code] += 1
            statuses[(await client.get("/api/books")).status_code] += 1
        assert set(statuses) == {200}
        assert statuses[200] > 20


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"WORKERS": "2"}, "REDIS_URL is missing"),
        ({"TLS_CERTFILE": "cert.pem"}, "TLS_CERTFILE and TLS_KEYFILE go together"),
        ({"TLS_CERTFILE": "no.pem", "TLS_KEYFILE": "no.pem"}, "TLS_CERTFILE no.pem cannot be"),
        ({"OCTAVO_ENV": "testing", "LOG_DIR": "/proc/logs"}, "LOG_DIR /proc/logs cannot be"),
    ],
)
async def test_what_cannot_start_says_so_once(
    tmp_path: Path, settings: dict[str, str], said: str
) -> None:
    words = ("serve", "--bind", f"127.0.0.1:{free_port()}")
    code, _, err = await asyncio.wait_for(octavo(tmp_path, *words, **settings), 30)
    assert code != 0
    assert err.count(said) == 1


async def test_it_ends_also_while_it_starts(tmp_path: Path) -> None:
    """A database that says nothing holds it up, between one thing and another."""

    async def end_after(seconds: float) -> int | None:
        process = await start(tmp_path, "serve", "--bind", f"127.0.0.1:{free_port()}", **settings)
        await asyncio.sleep(seconds)
        process.terminate()
        await asyncio.wait_for(process.communicate(), 10 * SLACK)
        return process.returncode

    async with black_hole() as port:
        settings = {
            "DEV_DATABASE_URL": f"postgresql://nobody@127.0.0.1:{port}/nothing",
            "GRACE_SECONDS": "60",
        }
        for seconds in (0.5, 1.5, 2.5, 3.0):
            assert await end_after(seconds) in {0, -signal.SIGTERM}


@pytest.mark.parametrize("whose", [children, workers_of], ids=["who forks", "workers"])
async def test_what_cannot_live_ends_the_service(
    tmp_path: Path, whose: Callable[[int], list[int]]
) -> None:
    """Killed again and again before it serves: not for ever."""
    settings = {"DEV_DATABASE_URL": f"sqlite:///{tmp_path}/d.db"}
    await octavo(tmp_path, "migrate", **settings)
    process = await start(tmp_path, "serve", "--bind", f"127.0.0.1:{free_port()}", **settings)
    killed = set[int]()
    async with asyncio.timeout(60):
        while process.returncode is None:
            for pid in set(whose(process.pid)) - killed:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
            await asyncio.sleep(0.01)
    await process.communicate()
    assert (process.returncode, len(killed)) == (1, 3)


async def test_tls_and_http2(tmp_path: Path) -> None:
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
    await octavo(tmp_path, "migrate", **settings)
    for http2 in (False, True):
        environment = settings | {"HTTP2": str(http2)}
        process = await start(tmp_path, "serve", "--bind", f"127.0.0.1:{port}", **environment)
        try:
            assert process.stdout is not None
            await process.stdout.readline()  # it listens
            async with httpx.AsyncClient(http2=True, verify=trusted, timeout=30) as client:
                answer = await client.get(f"https://localhost:{port}/health/live")
            assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
            assert answer.json() == {"status": "alive"}
        finally:
            process.terminate()
            await process.communicate()


async def test_headers_have_to_end_and_idle_connections_may_stay(tmp_path: Path) -> None:
    settings = {"DEV_DATABASE_URL": f"sqlite:///{tmp_path}/d.db", "HEADER_SECONDS": "0.5"}
    await octavo(tmp_path, "migrate", **settings)
    async with served(tmp_path, **settings) as (_, url, _):
        port = int(url.rpartition(":")[2])
        idle_reader, idle = await asyncio.open_connection("127.0.0.1", port)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        begun, cut = time.monotonic(), asyncio.ensure_future(reader.read())
        writer.write(b"GET /health/live HTTP/1.1\r\n")
        while not cut.done():
            writer.write(b"X-More: and more\r\n")  # which is no reason to wait longer
            await asyncio.wait({cut}, timeout=0.1)
        assert 0.4 < time.monotonic() - begun < 0.5 + 1.5 * SLACK
        idle.write(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await idle_reader.readline()).startswith(b"HTTP/1.1 200")
        for one in (idle, writer):
            one.close()
