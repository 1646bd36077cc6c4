"""A full disk: only requests that have to write to it fail. Real servers.

The disk is a small tmpfs if this user may mount it. Otherwise the system limits the size of files
(RLIMIT_FSIZE), which needs no privilege.
"""

import asyncio
import re
import resource
import shutil
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from service.db import migrations
from service.system import metrics_files
from tests.conftest import fresh_database, settings_for
from tests.factories import PASSWORD
from tests.http_client import TIMEOUT
from tests.test_cli import served

KB = 1_024
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD")
PATHS = (
    "/", "/docs", "/health", "/health/live", "/health/ready", "/openapi.json", "/api/books",
    "/api/books/1", "/api/users/1", "/api/popular-books", "/api/profile", "/admin/users",
    "/api/auth/login", "/api/auth/register", "/api/rate-limit", "/api/users/1/books",
)  # fmt: skip


@dataclass
class Disk:
    """A folder with little space if it is mounted; otherwise the test limits the size of files."""

    path: Path
    is_mounted: bool
    ballast: Path

    def fill(self) -> None:
        """Use all of the space."""
        with self.ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(KB))
            except OSError:
                pass

    def free(self) -> None:
        """Free the space."""
        self.ballast.unlink()


@contextmanager
def small_disk(path: Path, kilobytes: int) -> Iterator[Disk]:
    """Mount a disk of this size, if this user may."""
    path.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(path)]
    done = subprocess.run(["mount", *options], capture_output=True, check=False)
    try:
        yield Disk(path, done.returncode == 0, path / "ballast")
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", "--lazy", str(path)], check=True)


@contextmanager
def files_up_to(size: int | None) -> Iterator[None]:
    """Limit the size of files of this process and of its children. None: no limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@dataclass
class Served:
    """A service with 1 worker, and its log."""

    url: str
    folder: Path
    supervisor: psutil.Process

    @property
    def log(self) -> str:
        """The text of its log file."""
        return (self.folder / "logs" / "app.log").read_text(encoding="utf-8")

    @property
    def worker(self) -> int:
        """The process id of the worker."""
        (server,) = self.supervisor.children()
        (worker,) = server.children()
        return int(worker.pid)


@asynccontextmanager
async def service_on_postgresql(
    request: pytest.FixtureRequest, tmp_path: Path, folder: Path, size: int | None, **more: str
) -> AsyncIterator[Served]:
    """Serve from PostgreSQL, whose files are not on the full disk."""
    async with fresh_database("postgresql", request, folder) as url:
        settings = settings_for(url, folder)
        await asyncio.to_thread(migrations.upgrade, settings.database)
        environment = {
            "OCTAVO_ENV": "testing",
            "TESTING_DATABASE_URL": url,
            "RATELIMIT_ENABLED": "false",
            "LOG_DIR": str(tmp_path / "logs"),
            **more,
        }
        async with AsyncExitStack() as stack:
            with files_up_to(size):
                context = served(tmp_path, **environment)
                process, address, _ = await stack.enter_async_context(context)
            yield Served(address, tmp_path, psutil.Process(process.pid))


async def send_many_requests(url: str) -> int:
    """Send requests to many routes; assert no 5xx; return the number of requests."""
    number = 0
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT) as client:
        for method in METHODS:
            for path in PATHS:
                response = await client.request(method, path)
                assert response.status_code < 500, (method, path, response.text)
                number += 1
    return number


def requests_counted(text: str) -> int:
    """Return the number of requests in the metrics."""
    counts = re.findall(r"^octavo_request_seconds_count{.*} (\S+)$", text, re.MULTILINE)
    return int(sum(map(float, counts)))


async def check_own_metrics(service: Served) -> None:
    """Assert that the worker runs, and that its metrics are its own, with a warning."""
    before = service.worker
    number = await send_many_requests(service.url)
    async with httpx.AsyncClient(base_url=service.url, timeout=TIMEOUT) as client:
        response = await client.get("/metrics")
    assert response.status_code == 200
    assert re.match(rf"# Of process {before} alone \(.+\)\n", response.text)
    assert "octavo_metrics_alone 1.0" in response.text
    assert requests_counted(response.text) >= number
    assert service.worker == before, "the same worker runs"


@pytest.mark.alone
@pytest.mark.parametrize("kilobytes", [16, 330])
async def test_a_worker_without_space_for_metrics_keeps_running(
    request: pytest.FixtureRequest, tmp_path: Path, folder: Path, kilobytes: int
) -> None:
    """Whether the space ends at the start or when a file grows."""
    with small_disk(tmp_path / "tmp", kilobytes) as disk:
        size = None if disk.is_mounted else min(kilobytes, 100) * KB
        async with service_on_postgresql(
            request, tmp_path, folder, size, TMPDIR=str(disk.path)
        ) as service:
            await check_own_metrics(service)
            async with asyncio.timeout(TIMEOUT):
                while "Metrics are of this process alone" not in service.log:
                    await asyncio.sleep(0.1)
            await asyncio.sleep(1.5)  # three more checks
            assert service.log.count("Metrics are of this process alone") == 1
            assert "has ended" not in service.log


@pytest.mark.alone
async def test_a_service_that_cannot_write_any_file_serves(
    request: pytest.FixtureRequest, tmp_path: Path, folder: Path
) -> None:
    """It has no temporary folder, and its log stays empty."""
    async with service_on_postgresql(request, tmp_path, folder, 0) as service:
        await check_own_metrics(service)
        assert service.log == ""


@pytest.fixture
def no_failures() -> Iterator[None]:
    """Restore the recorded failures of the process."""
    before = metrics_files.failures.copy()
    yield
    metrics_files.failures[:] = before


@pytest.mark.usefixtures("no_failures")
def test_a_metrics_file_has_reserved_its_space_or_does_not_exist(tmp_path: Path) -> None:
    with ExitStack() as opened:
        check_metrics_file(tmp_path, opened)


def check_metrics_file(folder: Path, opened: ExitStack) -> None:
    """Write to metrics files with and without space; leave them to `opened` to be closed."""

    def open_file(path: Path) -> Any:
        return opened.enter_context(closing(metrics_files.ReservedDict(str(path))))

    path = folder / "counter_0.db"
    values = open_file(path)
    for n in range(400):
        values.write_value(f"a name of some length {n}" * 8, float(n), 0.0)
    status = path.stat()
    assert status.st_size == values._capacity  # private: the size that it has reserved
    assert status.st_size > metrics_files.NEW_FILE_BYTES
    assert status.st_blocks * 512 >= status.st_size, "not sparse"
    assert status.st_mode & 0o777 == 0o600
    with files_up_to(0):
        for n in range(400, 3_000):
            values.write_value(f"a name of some length {n}" * 8, float(n), 0.0)
        other = open_file(folder / "counter_1.db")
        other.write_value("a", 1.0, 0.0)
    assert path.stat().st_size == status.st_size
    assert [path.name for path in folder.iterdir()] == ["counter_0.db"]
    assert len(metrics_files.failures) == 2
    for n in (0, 399, 400, 2_999):
        assert values.read_value(f"a name of some length {n}" * 8) == (float(n), 0.0)
    assert other.read_value("a") == (1.0, 0.0)
    taken_over = open_file(path)
    assert taken_over.read_value("a name of some length 7" * 8) == (7.0, 0.0)


@pytest.mark.alone
async def test_a_full_disk_of_sqlite_refuses_writes_only(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4_096) as disk:
        path = disk.path / "books.db"
        settings = {"DEV_DATABASE_URL": f"sqlite:///{path}", "RATELIMIT_ENABLED": "false"}
        async with (
            served(tmp_path, "--prepare", **settings) as (process, url, _),
            httpx.AsyncClient(base_url=url, timeout=TIMEOUT) as client,
        ):
            account = {"username": "anna", "email": "anna@example.org", "password": PASSWORD}
            assert (await client.post("/api/auth/register", json=account)).status_code == 201
            del account["username"]
            token = (await client.post("/api/auth/login", json=account)).json()["token"]
            headers = {"Authorization": f"Bearer {token}"}
            service = Served(url, tmp_path, psutil.Process(process.pid))
            worker = service.worker
            created: list[int] = []
            _, most = resource.getrlimit(resource.RLIMIT_FSIZE)

            async def create(n: int) -> int:
                book = {"title": f"Title {n} " + "x" * 150, "author": "Anna"}
                response = await client.post("/api/books", json=book, headers=headers)
                if response.status_code == 201:
                    created.append(response.json()["id"])
                else:
                    assert response.headers["Retry-After"] == "1"
                return response.status_code

            assert await create(0) == 201
            if disk.is_mounted:
                disk.fill()
            else:  # no file may grow
                log = path.with_name("books.db-wal")
                largest = (max(path.stat().st_size, log.stat().st_size), most)
                resource.prlimit(worker, resource.RLIMIT_FSIZE, largest)
            statuses = [await create(n) for n in range(1, 400)]
            assert set(statuses) <= {201, 503}
            assert statuses[-1] == 503
            for _ in range(10):
                for readable in (
                    "/api/books/1",
                    f"/api/books/{created[-1]}",
                    "/api/books?per_page=50",
                ):
                    assert (await client.get(readable)).status_code == 200
            responses = await asyncio.gather(
                *(client.get(f"/api/books?page={n}") for n in range(1, 40))
            )
            assert {response.status_code for response in responses} == {200}, (
                "also on new connections"
            )
            if disk.is_mounted:
                disk.free()
            else:
                resource.prlimit(worker, resource.RLIMIT_FSIZE, (most, most))
            assert await create(1_000) == 201
            assert service.worker == worker, "the same worker runs"
            for number in created:
                assert (await client.get(f"/api/books/{number}")).status_code == 200
        shutil.copytree(disk.path, tmp_path / "copy")
    with closing(sqlite3.connect(tmp_path / "copy" / "books.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        stored = {number for (number,) in database.execute("SELECT id FROM books")}
    assert set(created) <= stored
