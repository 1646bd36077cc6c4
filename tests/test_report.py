"""/api/report: totals of the catalogue, computed once for all processes, on both databases."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import event, text, update

from service.errors import ServiceUnavailableError
from service.models.report import StoredReport
from service.report.service import Reports
from service.report.sql import LEASE_SECONDS
from tests.conftest import Site
from tests.factories import Factory
from tests.http_client import TIMEOUT

HOUR = 3_600.0
LOCK = 77
# Waits while another session holds the lock.
SLOW = text(
    f"""SELECT 'users' AS section, '' AS key, 1 AS number, NULL::numeric AS price
    FROM pg_advisory_xact_lock_shared({LOCK})
    UNION ALL SELECT 'price', 'min', 0, NULL UNION ALL SELECT 'price', 'median', 0, NULL
    UNION ALL SELECT 'price', 'max', 0, NULL"""
)


@pytest.fixture(autouse=True)
async def no_report(site: Site) -> None:
    """Remove the report from the database, and from the memory of the application."""
    await store(site, body=None, generated_at=None, claimed_at=None)
    site.app.extensions["reports"] = process(site)


def process(site: Site) -> Reports:
    """Give the report of another process, which has none in memory."""
    return Reports(site.database, HOUR)


async def store(site: Site, **values: Any) -> None:
    """Change the stored report. An age in seconds stands for a time."""
    times = {
        name: value if value is None else datetime.now(UTC) - timedelta(seconds=value)
        for name, value in values.items()
        if name != "body"
    }
    async with site.database.writer.begin() as connection:
        await connection.execute(update(StoredReport).values(values | times))


@contextmanager
def computations(site: Site) -> Iterator[list[str]]:
    """Collect the aggregates that run, all in connections for reads."""
    seen: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "'median'" in statement:
            seen.append(statement)

    engine = site.database.reader.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", note)


async def test_an_empty_catalogue_has_a_report(client: httpx.AsyncClient) -> None:
    response = await client.get("/api/report")
    body = response.json()
    generated = datetime.fromisoformat(body.pop("generated_at"))
    assert abs(datetime.now(UTC) - generated) < timedelta(seconds=TIMEOUT)
    assert body == {
        "status": "ready",
        "books": 0,
        "users": 0,
        "by_genre": {"Fiction": 0, "Non-Fiction": 0, "Science": 0, "History": 0, "none": 0},
        "by_decade": {},
        "price": {"min": None, "median": None, "max": None},
    }


async def test_the_report_counts_books_and_users(client: httpx.AsyncClient, make: Factory) -> None:
    member = await make.member()
    for genre, year, price in (
        ("Fiction", 1999, 9.99),
        ("Fiction", 2000, 10.01),
        ("Science", 2009, 0.5),
        (None, 1000, 99999999.99),
        ("History", None, None),
    ):
        await make.book(member, genre=genre, published_year=year, price=price)
    response = await client.get("/api/report")
    body = response.json()
    del body["generated_at"]
    assert body == {
        "status": "ready",
        "books": 5,
        "users": 1,
        "by_genre": {"Fiction": 2, "Non-Fiction": 0, "Science": 1, "History": 1, "none": 1},
        "by_decade": {"1000": 1, "1990": 1, "2000": 2, "none": 1},
        "price": {"min": 0.5, "median": 9.99, "max": 99999999.99},
    }
    assert list(body["by_decade"])[-1] == "none"
    known = {"If-None-Match": response.headers["ETag"]}
    assert (await client.get("/api/report", headers=known)).status_code == 304


@pytest.mark.parametrize(("number", "median"), [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)])
async def test_the_median_is_a_price_of_a_book(
    client: httpx.AsyncClient, make: Factory, number: int, median: float
) -> None:
    for price in range(number, 0, -1):
        await make.book(price=price)
    await make.book()
    assert (await client.get("/api/report")).json()["price"]["median"] == median


async def test_all_processes_share_one_computation(site: Site, make: Factory) -> None:
    await make.book()
    processes = [process(site) for _ in range(5)]
    with computations(site) as seen:
        bodies = await asyncio.gather(*(each.read() for each in processes * 4))
        await make.book()
        bodies += [await each.read() for each in [*processes, process(site)]]
    assert len(seen) == 1
    assert {*bodies} == {bodies[0]}
    assert json.loads(bodies[0])["books"] == 1


async def test_a_report_is_replaced_after_its_lifetime(site: Site, make: Factory) -> None:
    first = process(site)
    old = await first.read()
    await make.book()
    await store(site, generated_at=HOUR - TIMEOUT, claimed_at=HOUR - TIMEOUT)
    with computations(site) as seen:
        assert await process(site).read() == old
        await store(site, generated_at=HOUR + 1, claimed_at=HOUR + 1)
        new = await asyncio.gather(*(process(site).read() for _ in range(3)))
        assert await first.read() == old, "its lifetime in this process has not ended"
        assert await process(site).read() in new
    assert len(seen) == 1
    assert json.loads(await process(site).read())["books"] == 1


async def test_the_previous_report_is_shown_during_a_computation(site: Site) -> None:
    other = Reports(site.database, 0.0)  # each of its reports is too old at once
    old = await other.read()
    await store(site, generated_at=2 * HOUR, claimed_at=0.0)
    with computations(site) as seen:
        assert await process(site).read() == old
        assert await other.read() == old
    assert not seen


async def test_the_first_report_is_awaited(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    body = (await process(site).read()).decode()
    await store(site, body=None, generated_at=None, claimed_at=0.0)
    with computations(site) as seen:
        reading = asyncio.create_task(process(site).read())
        await asyncio.sleep(0)
        await store(site, body=body, generated_at=0.0)
        assert await reading == body.encode()
        monkeypatch.setattr("service.report.service.MAX_WAIT_SECONDS", 0.1)
        await store(site, body=None, generated_at=None, claimed_at=0.0)
        with pytest.raises(ServiceUnavailableError):
            await process(site).read()
        assert not seen
        await store(site, claimed_at=LEASE_SECONDS + 1)
        assert await process(site).read() != body.encode()
    assert len(seen) == 1, "the process that computed it has failed"


async def test_a_computation_blocks_no_write(
    site: Site, client: httpx.AsyncClient, make: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On SQLite, a read in another connection than that of the writes never does."""
    if site.database.url.get_backend_name() == "sqlite":
        with computations(site) as seen:
            await client.get("/api/report")
        assert len(seen) == 1
        return
    member = await make.member()
    monkeypatch.setattr("service.report.service.AGGREGATE", SLOW)
    async with site.database.writer.connect() as connection:
        await connection.execute(text(f"SELECT pg_advisory_lock({LOCK})"))
        waiting = asyncio.create_task(client.get("/api/report"))
        try:
            async with asyncio.timeout(TIMEOUT):
                while not await connection.scalar(
                    text(f"SELECT 1 FROM pg_locks WHERE objid = {LOCK} AND NOT granted")
                ):
                    await asyncio.sleep(0.01)
            created = await client.post(
                "/api/books", json={"title": "T", "author": "A"}, headers=member.headers
            )
            assert created.status_code == 201
            path = f"/api/books/{created.json()['id']}"
            assert (await client.delete(path, headers=member.headers)).status_code == 204
            assert not waiting.done()
        finally:
            await connection.execute(text(f"SELECT pg_advisory_unlock({LOCK})"))
            assert (await waiting).status_code == 200
