"""The client of docs/clients.md, while workers are killed and requests are refused."""

import asyncio
import os
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from docs.examples import resilient_client
from docs.examples.resilient_client import Book, CatalogueClient
from service.models import Book as BookRow
from tests.conftest import SECRET, cache_on, fresh_catalogue
from tests.test_cli import served
from tests.test_documentation import ROOT
from tests.test_serve import Service

pytestmark = pytest.mark.alone

BOOKS, CLIENTS, CREATES, KILLS = 10_000, 3, 30, 4


async def add(db: AsyncSession, rows: list[dict[str, Any]]) -> None:
    """Add books."""
    await db.execute(insert(BookRow), rows)


@pytest.fixture
async def service(
    request: pytest.FixtureRequest, folder: Path, tmp_path: Path, redis_url: str
) -> AsyncIterator[Service]:
    """Three workers on PostgreSQL and Redis that refuse some requests, with limits."""
    async with fresh_catalogue("postgresql", request, folder) as database:
        rows = [
            {"title": f"Title {n}", "author": "Anna", **BookRow.derived(f"Title {n}", "Anna")}
            for n in range(BOOKS)
        ]
        for start in range(0, BOOKS, 500):
            await database.write(partial(add, rows=rows[start : start + 500]))
        await cache_on(database, redis_url)
        environment = {
            "OCTAVO_ENV": "testing",
            "TESTING_DATABASE_URL": database.url.render_as_string(hide_password=False),
            "REDIS_URL": redis_url,
            "SECRET_KEY": SECRET,
            "RATELIMIT_DEFAULT": "20 per second",
            "RATELIMIT_BOOKS_LIST": "20 per second",
            "RATELIMIT_BOOKS_ITEM": "20 per second",
            "WORKERS": "3",
            "PYTHONPATH": str(ROOT),
        }
        words = ("--app", "tests.examples.unreliable:create_app")
        async with served(tmp_path, *words, **environment) as (supervisor, url, _):
            service = Service(supervisor, url, tmp_path, database)
            await service.until_started(3)
            yield service


@pytest.mark.timeout(400)
async def test_the_client_creates_once_loses_no_update_and_reads_everything(
    service: Service,
) -> None:
    statuses: Counter[int] = Counter()

    async def count_status(response: httpx.Response) -> None:
        statuses[response.status_code] += 1

    hooks: dict[str, Any] = {"response": [count_status]}
    token = (await service.sign_in())["Authorization"].removeprefix("Bearer ")

    async def work(name: str) -> None:
        async with CatalogueClient(service.url, token, event_hooks=hooks) as client:
            for number in range(CREATES):
                await client.create_book({"title": f"New {name} {number}", "author": "Anna"})
            await client.update_book(shared["id"], lambda book: append(book, name))
            assert (await client.get_book(shared["id"]))["version"] > 1

    def append(book: Book, name: str) -> Book:
        """Add a name to the author, once: this change may be made again."""
        names = book["author"].split()
        return {"author": " ".join(names if name in names else [*names, name])}

    async with CatalogueClient(service.url, token, event_hooks=hooks) as client:
        shared = await client.create_book({"title": "Shared", "author": "Anna"})
        tasks = [asyncio.create_task(work(f"client{n}")) for n in range(CLIENTS)]
        try:
            for n in range(KILLS):
                created = (n + 1) * CLIENTS * CREATES // (KILLS + 1)
                await until_written(service, BOOKS + created)
                os.kill(service.workers[n % len(service.workers)], signal.SIGKILL)
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        walked = {book["id"]: book async for book in client.walk()}
        ids = [*walked, 7_000_000]
        books, missing = await client.get_books(ids)
    assert (books, missing) == (walked, [7_000_000])
    titles = Counter(book["title"] for book in walked.values())
    expected = {f"New client{n} {number}" for n in range(CLIENTS) for number in range(CREATES)}
    assert {title for title in titles if title.startswith("New ")} == expected
    assert set(titles.values()) == {1}
    assert len(titles) == BOOKS + len(expected) + 1
    assert sorted(walked[shared["id"]]["author"].split()) == [
        "Anna", *(f"client{n}" for n in range(CLIENTS)),
    ]  # fmt: skip
    assert statuses[429]
    assert statuses[503]


async def until_written(service: Service, number: int) -> None:
    """Wait until the catalogue has more than `number` books."""
    async with asyncio.timeout(120):
        while True:
            async with service.database.session() as db:
                if (await db.scalar(select(func.count()).select_from(BookRow)) or 0) > number:
                    return
            await asyncio.sleep(0.05)


def test_the_page_shows_the_code_of_the_client() -> None:
    """Each Python block of docs/clients.md is a part of the file that the test above runs."""
    code = Path(resilient_client.__file__).read_text(encoding="utf-8")
    page = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) >= 4
    for block in blocks:
        assert "".join(block.split()) in "".join(code.split()), block
