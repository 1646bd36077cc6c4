"""Totals without COUNT: the database keeps them, and they are exact under concurrent writers."""

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import event, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from service.db import migrations
from service.db.database import Database
from service.models import Book, BookCount, User
from tests.conftest import Site, fresh_catalogue
from tests.factories import Factory

GENRES = [None, "Fiction", "Science"]
ACTIONS = ("create", "delete", "change", "change and roll back")


async def kept(database: Database) -> dict[str | None, int]:
    """Read the kept counts of genres with books."""
    counts: Counter[str | None] = Counter()
    async with database.session() as db:
        for genre, n in (await db.execute(select(BookCount.genre, BookCount.n))).all():
            counts[genre or None] += n
    return {genre: n for genre, n in counts.items() if n}


async def counted(database: Database) -> dict[str | None, int]:
    """Count the rows."""
    async with database.session() as db:
        return dict(Counter(await db.scalars(select(Book.genre))))


async def test_counts_are_exact_under_concurrent_writers(site: Site, make: Factory) -> None:
    owners = [await make.member() for _ in range(3)]
    chance = random.Random(3)
    ids = [(await make.book(owners[n % 3], genre=GENRES[n % 3])).id for n in range(30)]

    async def change(db: AsyncSession, book_id: int, action: str, genre: str | None) -> None:
        book = await db.get(Book, book_id, with_for_update=True)
        if action == "create":
            db.add(Book(title="T", author="A", genre=genre, **Book.derived("T", "A")))
        elif book is not None and action == "delete":
            await db.delete(book)
        elif book is not None:
            book.genre = genre
        await db.flush()
        if action == "change and roll back":
            raise RuntimeError

    async def write() -> None:
        book_id, action = chance.choice(ids), chance.choice(ACTIONS)
        genre = chance.choice(GENRES)
        try:
            await site.database.write(lambda db: change(db, book_id, action, genre))
        except RuntimeError:
            return

    for _ in range(10):
        await asyncio.gather(*(write() for _ in range(20)))
        assert await kept(site.database) == await counted(site.database)

    async with site.database.writer.begin() as connection:
        await connection.execute(update(Book).values(genre="Science"))
    assert await kept(site.database) == await counted(site.database)

    async def leave(db: AsyncSession) -> None:
        await db.delete(await db.get_one(User, owners[0].id))

    await site.database.write(leave)  # the database deletes their books as well
    assert await kept(site.database) == await counted(site.database)


async def test_totals_of_all_books_and_of_a_genre_count_no_rows(
    site: Site, client: httpx.AsyncClient, make: Factory
) -> None:
    for n in range(5):
        await make.book(genre=GENRES[n % 3], author="Anna")
    sent: list[str] = []

    def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    event.listen(site.database.reader.sync_engine, "before_cursor_execute", note)
    try:
        for query, total in (("", 5), ("genre=Fiction", 2), ("genre=History", 0), ("page=9", 5)):
            sent.clear()
            assert (await client.get(f"/api/books?{query}")).json()["total"] == total
            assert sent
            assert not [statement for statement in sent if "count(" in statement], query
        sent.clear()
        assert (await client.get("/api/books?author=anna&genre=Fiction")).json()["total"] == 2
        assert [statement for statement in sent if "count(" in statement]
    finally:
        event.remove(site.database.reader.sync_engine, "before_cursor_execute", note)


@pytest.mark.parametrize("backend", ["postgresql"])
async def test_writers_do_not_wait_for_the_count(
    backend: str, request: pytest.FixtureRequest, folder: Path
) -> None:
    """A write that waited for the open transaction would fail by `lock_timeout` (3 s)."""
    async with fresh_catalogue(backend, request, folder) as database:
        add = text(
            "INSERT INTO books (title, author, author_key, search, genre)"
            " VALUES ('T', 'A', 'a', '', 'Fiction')"
        )
        for _ in range(2):  # at first there is no row of the genre, then there is one
            async with database.writer.connect() as slow:
                await slow.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
                await slow.execute(add)
                async with database.writer.connect() as quick:
                    await quick.execute(add)
                    await quick.commit()
                assert (await kept(database))["Fiction"] % 2 == 1
                await slow.commit()
        assert await kept(database) == {"Fiction": 4}
        async with database.writer.connect() as connection:
            await connection.execute(text("TRUNCATE books CASCADE"))
            assert await connection.scalar(text("SELECT count(*) FROM book_counts")) == 0
            await connection.rollback()
        assert await kept(database) == {"Fiction": 4}


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
async def test_a_migration_counts_the_books_from_before(
    backend: str, request: pytest.FixtureRequest, folder: Path
) -> None:
    async with fresh_catalogue(backend, request, folder, "0001") as database:

        async def shelve() -> None:
            async with AsyncSession(database.writer) as db, db.begin():
                for n in range(5):
                    genre = GENRES[n % 3]
                    db.add(Book(title="T", author="A", genre=genre, **Book.derived("T", "A")))

        await shelve()
        await asyncio.to_thread(migrations.upgrade, database.url)
        assert await kept(database) == {None: 2, "Fiction": 2, "Science": 1}
        await shelve()
        assert await kept(database) == {None: 4, "Fiction": 4, "Science": 2}
