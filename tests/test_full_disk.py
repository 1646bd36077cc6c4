"""Disks that are full: only requests that have to write there may fail. Real servers.

The disk is a small tmpfs where the tests may mount one. Elsewhere it is the bound that the system
sets to the size of a process's files, which works for everybody.
"""

import asyncio
import re
import resource
import shutil
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
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
from tests.test_cli import served

DEADLINE = 30  # seconds
KB = 1_024
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD")
PATHS = (
    "/", "/docs", "/health", "/health/live", "/health/ready", "/openapi.json", "/api/books",
    "/api/books/1", "/api/users/1", "/api/popular-books", "/api/profile", "/admin/users",
    "/api/auth/login", "/api/auth/register", "/api/rate-limit", "/api/users/1/books",
)  # fmt: skip


@dataclass
class Disk:
    """A folder with little space, or with none that is bounded: then files are."""

    path: Path
    is_mounted: bool
    ballast: Path

    def fill(self) -> None:
        """Leave no space."""
        with self.ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(KB))
            except OSError:
                pass

    def free(self) -> None:
        """Give the space back."""
        self.ballast.unlink()


@contextmanager
def small_disk(path: Path, kilobytes: int) -> Iterator[Disk]:
    """Make a disk of a size, if this user may."""
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
    """Let this process, and those that it starts, write no larger files. None: no bound."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@dataclass
class Served:
    """A service with one worker, and what it wrote."""

    url: str
    folder: Path
    supervisor: psutil.Process

    @property
    def log(self) -> str:
        """Its file."""
        return (self.folder / "logs" / "app.log").read_text(encoding="utf-8")

    @property
    def worker(self) -> int:
        """The process that serves now."""
        (server,) = self.supervisor.children()
        (worker,) = server.children()
        return int(worker.pid)


@asynccontextmanager
async def service_on_postgresql(
    request: pytest.FixtureRequest, tmp_path: Path, folder: Path, size: int | None, **more: str
) -> AsyncIterator[Served]:
    """Serve from PostgreSQL: its files are elsewhere."""
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
        with files_up_to(size):
            context = served(tmp_path, **environment)
            process, address, _ = await context.__aenter__()
        try:
            yield Served(address, tmp_path, psutil.Process(process.pid))
        finally:
            await context.__aexit__(None, None, None)


async def ask_for_everything(url: str) -> int:
    """Make metrics of many routes: how many requests were answered, and none with 5xx."""
    number = 0
    async with httpx.AsyncClient(base_url=url, timeout=DEADLINE) as client:
        for method in METHODS:
            for path in PATHS:
                answer = await client.request(method, path)
                assert answer.status_code < 500, (method, path, answer.text)
                number += 1
    return number


def counted(text: str) -> int:
    """Sum up the requests that metrics tell of."""
    counts = re.findall(r"^octavo_request_seconds_count{.*} (\S+)$", text, re.MULTILINE)
    return int(sum(map(float, counts)))


async def check_own_metrics(service: Served) -> None:
    """See that the worker lives, and has metrics of its own, with a warning."""
    before = service.worker
    number = await ask_for_everything(service.url)
    async with httpx.AsyncClient(base_url=service.url, timeout=DEADLINE) as client:
        answer = await client.get("/metrics")
    assert answer.status_code == 200
    assert re.match(rf"# Of process {before} alone \(.+\)\n", answer.text)
    assert "octavo_metrics_alone 1.0" in answer.text
    assert counted(answer.text) >= number
    assert service.worker == before, "it has not ended"


@pytest.mark.alone
@pytest.mark.parametrize("kilobytes", [16, 330])
async def test_no_space_for_metrics_costs_no_worker(
    request: pytest.FixtureRequest, tmp_path: Path, folder: Path, kilobytes: int
) -> None:
    """Neither at the beginning nor when a file grows."""
    with small_disk(tmp_path / "tmp", kilobytes) as disk:
        size = None if disk.is_mounted else min(kilobytes, 100) * KB
        async with service_on_postgresql(
            request, tmp_path, folder, size, TMPDIR=str(disk.path)
        ) as service:
            await check_own_metrics(service)
            async with asyncio.timeout(DEADLINE):
                while "Metrics are of this process alone" not in service.log:
                    await asyncio.sleep(0.1)
            await asyncio.sleep(1.5)  # three more looks
            assert service.log.count("Metrics are of this process alone") == 1
            assert "has ended" not in service.log


@pytest.mark.alone
async def test_a_service_that_can_write_no_file_serves(
    request: pytest.FixtureRequest, tmp_path: Path, folder: Path
) -> None:
    """There is no temporary folder, and the log stays empty."""
    async with service_on_postgresql(request, tmp_path, folder, 0) as service:
        await check_own_metrics(service)
        assert service.log == ""


@pytest.fixture
def no_failures() -> Iterator[None]:
    """Leave the process as it was."""
    before = metrics_files.failures.copy()
    yield
    metrics_files.failures[:] = before


@pytest.mark.usefixtures("no_failures")
def test_a_file_of_metrics_has_its_space_or_is_none(tmp_path: Path) -> None:
    path = tmp_path / "counter_0.db"
    values: Any = metrics_files.ReservedDict(str(path))
    for n in range(400):
        values.write_value(f"a name of some length {n}" * 8, float(n), 0.0)
    status = path.stat()
    assert status.st_size == values._capacity
    assert status.st_size > metrics_files.SIZE
    assert status.st_blocks * 512 >= status.st_size, "not sparse"
    assert status.st_mode & 0o777 == 0o600
    with files_up_to(0):
        for n in range(400, 3_000):
            values.write_value(f"a name of some length {n}" * 8, float(n), 0.0)
        other: Any = metrics_files.ReservedDict(str(tmp_path / "counter_1.db"))
        other.write_value("a", 1.0, 0.0)
    assert path.stat().st_size == status.st_size
    assert [path.name for path in tmp_path.iterdir()] == ["counter_0.db"]
    assert len(metrics_files.failures) == 2
    for n in (0, 399, 400, 2_999):
        assert values.read_value(f"a name of some length {n}" * 8) == (float(n), 0.0)
    assert other.read_value("a") == (1.0, 0.0)
    taken_over: Any = metrics_files.ReservedDict(str(path))
    assert taken_over.read_value("a name of some length 7" * 8) == (7.0, 0.0)
    for dictionary in (values, other, taken_over):
        dictionary.close()


@pytest.mark.alone
async def test_a_full_disk_of_sqlite_costs_writes_alone(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4_096) as disk:
        path = disk.path / "books.db"
        settings = {"DEV_DATABASE_URL": f"sqlite:///{path}", "RATELIMIT_ENABLED": "false"}
        async with (
            served(tmp_path, "--prepare", **settings) as (process, url, _),
            httpx.AsyncClient(base_url=url, timeout=DEADLINE) as client,
        ):
            account = {"username": "anna", "email": "anna@example.org", "password": PASSWORD}
            assert (await client.post("/api/auth/register", json=account)).status_code == 201
            del account["username"]
            token = (await client.post("/api/auth/login", json=account)).json()["token"]
            headers = {"Authorization": f"Bearer {token}"}
            service = Served(url, tmp_path, psutil.Process(process.pid))
            worker = service.worker
            kept: list[int] = []
            _, most = resource.getrlimit(resource.RLIMIT_FSIZE)

            async def create(n: int) -> int:
                book = {"title": f"Title {n} " + "x" * 150, "author": "Anna"}
                answer = await client.post("/api/books", json=book, headers=headers)
                if answer.status_code == 201:
                    kept.append(answer.json()["id"])
                else:
                    assert answer.headers["Retry-After"] == "1"
                return answer.status_code

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
                for wanted in ("/api/books/1", f"/api/books/{kept[-1]}", "/api/books?per_page=50"):
                    assert (await client.get(wanted)).status_code == 200
            answers = await asyncio.gather(
                *(client.get(f"/api/books?page={n}") for n in range(1, 40))
            )
            assert {answer.status_code for answer in answers} == {200}, "on new connections, too"
            if disk.is_mounted:
                disk.free()
            else:
                resource.prlimit(worker, resource.RLIMIT_FSIZE, (most, most))
            assert await create(1_000) == 201
            assert service.worker == worker, "it has not ended"
            for number in kept:
                assert (await client.get(f"/api/books/{number}")).status_code == 200
        shutil.copytree(disk.path, tmp_path / "copy")
    with closing(sqlite3.connect(tmp_path / "copy" / "books.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        there = {number for (number,) in database.execute("SELECT id FROM books")}
    assert set(kept) <= there
