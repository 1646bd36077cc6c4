"""octavo serve while its database is down, or hangs. Real processes."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import pytest

from service.db import migrations
from service.db.database import Database
from tests.conftest import SECRET, cache_on, settings_for, url_of
from tests.factories import PASSWORD
from tests.test_cli import served
from tests.test_serve import SOAK, TIMEOUT, has_ended, until

pytestmark = pytest.mark.alone


class Observation(NamedTuple):
    """A request of one kind: its start, its end (monotonic seconds), and the status."""

    kind: str
    start: float
    end: float
    status: int


class Watch:
    """Sends requests of each kind ten times a second, and records their statuses."""

    def __init__(self, url: str, headers: dict[str, str], book: str) -> None:
        self.observations: list[Observation] = []
        self.kinds: dict[str, tuple[str, str, object]] = {
            "item": ("GET", book, None),
            "list": ("GET", "/api/books?nocache=1", None),
            "live": ("GET", "/health/live", None),
            "write": ("PATCH", book, {"price": 1}),
        }
        self._url = url
        self._headers = headers

    async def repeat(self, kind: str) -> None:
        """Send requests of a kind without end."""
        method, path, body = self.kinds[kind]
        async with httpx.AsyncClient(base_url=self._url, timeout=TIMEOUT) as client:
            while True:
                start = time.monotonic()
                response = await client.request(method, path, json=body, headers=self._headers)
                status = response.status_code
                self.observations.append(Observation(kind, start, time.monotonic(), status))
                assert status != 503 or response.headers["Retry-After"] == "1"
                await asyncio.sleep(0.1)

    def within(self, kind: str, start: float, end: float = inf) -> list[Observation]:
        """Return the observations of a kind that start and end between two times."""
        return [
            seen
            for seen in self.observations
            if seen.kind == kind and start < seen.start and seen.end < end
        ]

    def statuses(self, kind: str, start: float, end: float = inf) -> list[int]:
        """Return the statuses of requests of a kind that start and end between two times."""
        return [seen.status for seen in self.within(kind, start, end)]

    async def until_refused(self, start: float, *kinds: str) -> None:
        """Wait until 3 requests of each kind that started after a time are refused."""
        await until(lambda: all(self.statuses(kind, start).count(503) >= 3 for kind in kinds))

    async def check_recovery(self, back: float, within: float) -> None:
        """Wait until every kind succeeds after a time. With SOAK, check the seconds as well."""

        def recovered(kind: str) -> list[float]:
            return [
                seen.end - back
                for seen in self.observations
                if seen.kind == kind and seen.end > back and seen.status == 200
            ]

        await until(lambda: all(recovered(kind) for kind in self.kinds))
        assert {seen.status for seen in self.observations} == {200, 503}
        recoveries = {kind: min(recovered(kind)) for kind in self.kinds}
        slowest = {
            kind: max(seen.end - seen.start for seen in self.observations if seen.kind == kind)
            for kind in self.kinds
        }
        print(f"seconds until recovery: {recoveries}; slowest: {slowest}")
        assert max(slowest.values()) < 30
        if SOAK:
            assert max(recoveries.values()) < within
            assert max(slowest.values()) < 5
            assert slowest["live"] < 0.1


@pytest.fixture
async def watched(
    own_postgresql: Any, redis_url: str, folder: Path, tmp_path: Path
) -> AsyncIterator[Watch]:
    """Two workers on their own PostgreSQL, and clients that send requests of each kind."""
    url = url_of(own_postgresql)
    settings = settings_for(url, folder)
    await asyncio.to_thread(migrations.upgrade, settings.database)
    database = Database(settings)
    await database.open()
    try:
        await cache_on(database, redis_url)
    finally:
        await database.close()
    environment = {
        "OCTAVO_ENV": "testing",
        "TESTING_DATABASE_URL": url,
        "REDIS_URL": redis_url,
        "SECRET_KEY": SECRET,
        "RATELIMIT_ENABLED": "false",
        "WORKERS": "2",
    }
    async with served(tmp_path, **environment) as (_, address, _):
        async with httpx.AsyncClient(base_url=address, timeout=TIMEOUT) as client:
            account = {"username": "anna", "email": "anna@example.org", "password": PASSWORD}
            assert (await client.post("/api/auth/register", json=account)).status_code == 201
            del account["username"]
            token = (await client.post("/api/auth/login", json=account)).json()["token"]
            headers = {"Authorization": f"Bearer {token}"}
            body = {"title": "One", "author": "Anna"}
            book = await client.post("/api/books", json=body, headers=headers)
            assert book.status_code == 201
        watch = Watch(address, headers, book.headers["Location"].removeprefix(address))
        tasks = [asyncio.create_task(watch.repeat(kind)) for kind in watch.kinds]
        try:
            await until(
                lambda: all(watch.statuses(kind, 0).count(200) >= 5 for kind in watch.kinds)
            )
            yield watch
            for task in tasks:
                assert not task.done(), task
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.timeout(180)
async def test_a_restart_of_postgresql_is_survived(own_postgresql: Any, watched: Watch) -> None:
    """Cached responses continue until the lease ends; then all is refused until PostgreSQL runs."""
    pid, killed = own_postgresql.get_pid(), time.monotonic()
    try:
        os.kill(pid, signal.SIGQUIT)  # an immediate shutdown, in the middle of transactions
        await until(lambda: has_ended(pid))
        down = time.monotonic()
        await watched.until_refused(down, "item", "list", "write")
        restarting = time.monotonic()
    finally:
        await asyncio.to_thread(own_postgresql.ensure_postgres_running)
    back = time.monotonic()
    assert set(watched.statuses("item", 0, killed)) == {200}
    for kind in ("list", "write"):
        assert set(watched.statuses(kind, down, restarting)) == {503}
    assert set(watched.statuses("live", 0, restarting)) == {200}
    items = watched.statuses("item", killed, restarting)
    assert items[0] == 200, "cached, until the lease ends"
    assert items == sorted(items), "and refused from then on"
    if SOAK:
        assert set(watched.statuses("item", killed + 0.2, killed + 1)) == {200}
    await watched.check_recovery(back, 2)


@pytest.mark.timeout(180)
async def test_a_hang_of_postgresql_ends_in_refusals(own_postgresql: Any, watched: Watch) -> None:
    """PostgreSQL neither refuses nor responds; every client still gets a response."""
    postmaster = psutil.Process(own_postgresql.get_pid())
    stopped = [postmaster, *postmaster.children()]
    try:
        for process in stopped:
            process.suspend()
        hung = time.monotonic()
        await asyncio.sleep(12)
        await watched.until_refused(hung, "list", "write")
        resuming = time.monotonic()
    finally:
        for process in reversed(stopped):
            process.resume()
    back = time.monotonic()
    for kind in ("list", "write"):
        assert set(watched.statuses(kind, hung, resuming)) == {503}
        waiting = max(watched.within(kind, hung, resuming), key=lambda seen: seen.end - seen.start)
        assert watched.within("live", waiting.start, waiting.end), "a wait blocks no other request"
    assert set(watched.statuses("live", 0, resuming)) == {200}
    await watched.check_recovery(back, 5)
