"""A database closes after the writes under way, also if their clients have gone."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from service.books.schemas import BookCreate
from service.books.service import new_book
from service.db import migrations
from service.db.database import Database
from service.db.group_commit import MAX_TRANSACTIONS
from service.models import Book
from tests.conftest import fresh_database, settings_for

DATA = BookCreate(title="T", author="A")


@pytest.fixture(params=["sqlite", "postgresql"])
async def url(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[str]:
    """A migrated database without books."""
    async with fresh_database(request.param, request, folder) as url:
        await asyncio.to_thread(migrations.upgrade, settings_for(url, folder).database)
        yield url


async def opened(url: str, folder: Path) -> Database:
    """Open the database."""
    database = Database(settings_for(url, folder))
    await database.open()
    return database


async def count(url: str, folder: Path) -> int:
    """Count the books, as another process would."""
    database = await opened(url, folder)
    try:
        async with database.session() as db:
            return await db.scalar(select(func.count()).select_from(Book)) or 0
    finally:
        await database.close()


class Writes:
    """Writes of books that end when the test allows it."""

    def __init__(self) -> None:
        self.begun = self.ended = 0
        self.may_end = asyncio.Event()

    async def single(self, db: Any) -> None:
        """Add a book."""
        await self.several(db, [DATA], False)

    async def several(self, db: Any, given: Sequence[BookCreate], alone: bool) -> list[None]:
        """Add books together."""
        self.begun += 1
        await self.may_end.wait()
        db.add_all([new_book(None, data) for data in given])
        await db.flush()
        self.ended += 1
        return [None] * len(given)

    async def until_begun(self, number: int) -> None:
        """Wait until writes have begun."""
        async with asyncio.timeout(30):
            while self.begun < number:
                await asyncio.sleep(0.01)


async def hang_up(callers: list["asyncio.Task[None]"]) -> None:
    """Cancel the callers of writes."""
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)


async def close_after(database: Database, writes: Writes) -> None:
    """Close a database, and let its writes end only then."""
    closing = asyncio.create_task(database.close())
    try:
        await asyncio.sleep(0.1)
        assert not closing.done(), "closing does not wait for a write"
    finally:
        writes.may_end.set()
        await closing


async def test_closing_waits_for_a_write_whose_caller_has_gone(url: str, folder: Path) -> None:
    database, writes = await opened(url, folder), Writes()
    callers = [asyncio.create_task(database.write(writes.single))]
    await writes.until_begun(1)
    await hang_up(callers)
    await close_after(database, writes)
    assert writes.ended == 1
    assert await count(url, folder) == 1


async def test_closing_waits_for_writes_that_share_a_transaction(url: str, folder: Path) -> None:
    """Also for writes that have not begun: they share the transaction after those under way."""
    database, writes = await opened(url, folder), Writes()
    number = 0
    callers = []
    try:
        for size in [1] * MAX_TRANSACTIONS + [5]:
            number += size
            callers += [
                asyncio.create_task(database.write_batched(writes.several, DATA))
                for _ in range(size)
            ]
            await asyncio.sleep(0.01)
        await writes.until_begun(1)
        await hang_up(callers)
    except BaseException:
        writes.may_end.set()
        raise
    await close_after(database, writes)
    assert await count(url, folder) == number


async def test_closing_waits_for_no_reader_and_no_ended_write(url: str, folder: Path) -> None:
    database, writes = await opened(url, folder), Writes()
    writes.may_end.set()
    await database.write(writes.single)
    with pytest.raises(LookupError):
        await database.write(fails)
    async with asyncio.timeout(60):
        await database.close()
    assert await count(url, folder) == 1


async def fails(db: Any) -> None:
    """Fail within a write."""
    raise LookupError
