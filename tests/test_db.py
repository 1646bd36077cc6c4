"""The write seam: whole or nothing, nothing lost, whoever hangs up; SQLite as exact as the rest."""

import ast
import asyncio
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from quart import Quart
from sqlalchemy import insert, select, text
from sqlalchemy.exc import OperationalError

import service
from service.books.schemas import BookCreate
from service.books.service import new_book
from service.db import migrations
from service.db.database import Database
from service.models import Book, User
from tests.conftest import Site, settings_for, visiting
from tests.factories import Factory

ROOT = Path(service.__file__).parent


async def add(db: Any, data: BookCreate) -> None:
    """Add a book that nobody owns."""
    db.add(new_book(None, data))
    await db.flush()


async def test_concurrent_read_modify_writes_lose_nothing(site: Site, make: Factory) -> None:
    book = await make.book(published_year=1000)

    async def add_one(db: Any) -> None:
        row = await db.get(Book, book.id, with_for_update=True)
        seen = row.published_year
        await asyncio.sleep(0)
        row.published_year = seen + 1

    await asyncio.gather(*(site.database.write(add_one) for _ in range(80)))
    async with site.database.session() as db:
        assert await db.scalar(select(Book.published_year)) == 1080


async def test_two_processes_on_one_sqlite_file_lose_nothing(folder: Path) -> None:
    """The same from several processes at once, where no queue of ours orders the writers."""
    url = f"sqlite:///{folder}/shared.db"
    program = """
import asyncio, sys
from sqlalchemy import select
from service.config import Testing
from service.db.database import Database
from service.models import Book
async def main(url):
    database = Database(Testing(database_url=url))
    await database.open()
    async def add_one(db):
        row = await db.scalar(select(Book))
        row.published_year += 1
    for _ in range(20):
        await database.write(add_one)
    await database.close()
asyncio.run(main(sys.argv[1]))
"""
    await asyncio.to_thread(migrations.upgrade, settings_for(url, folder).database)
    database = Database(settings_for(url, folder))
    await database.open()
    data = BookCreate(title="T", author="A", published_year=1000)
    await database.write(lambda db: add(db, data))
    workers = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", program, url) for _ in range(4)
    ]
    assert [await worker.wait() for worker in workers] == [0] * 4
    async with database.session() as db:
        assert await db.scalar(select(Book.published_year)) == 1080
        assert await db.scalar(text("PRAGMA integrity_check")) == "ok"
    await database.close()


async def test_an_error_undoes_the_whole_write(site: Site) -> None:
    async def work(db: Any) -> None:
        await add(db, BookCreate(title="T", author="A"))
        raise LookupError

    with pytest.raises(LookupError):
        await site.database.write(work)
    async with site.database.session() as db:
        assert await db.scalar(select(Book.id)) is None


async def test_a_write_ends_though_its_caller_is_cancelled(site: Site) -> None:
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def work(db: Any) -> None:
        await add(db, BookCreate(title="T", author="A"))
        reached.set()
        await go_on.wait()

    caller = asyncio.ensure_future(site.database.write(work))
    await reached.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    go_on.set()
    while site.database._units:
        await asyncio.wait(site.database._units)
    async with site.database.session() as db:
        assert await db.scalar(select(Book.title)) == "T"


async def test_clients_that_hang_up_in_mid_write_leave_whole_books_and_no_connection(
    site: Site, client: httpx.AsyncClient, make: Factory
) -> None:
    owner = await make.member()

    async def hang_up(number: int) -> None:
        body = f'{{"title": "Hung {number}", "author": "A"}}'
        _, writer = await asyncio.open_connection("127.0.0.1", site.port)
        writer.write(
            f"POST /api/books HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Authorization: {owner.token}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        await writer.drain()
        await asyncio.sleep(number % 10 / 1000)
        writer.transport.abort()

    for start in range(0, 80, 20):
        await asyncio.gather(*(hang_up(n) for n in range(start, start + 20)))
    answer = await client.post(
        "/api/books", json={"title": "After", "author": "A"}, headers=owner.headers
    )
    assert answer.status_code == 201
    listed = (await client.get("/api/books?per_page=100")).json()
    assert listed["total"] == len(listed["items"]) <= 81
    while site.database._units:
        await asyncio.wait(site.database._units)
    assert site.database.writer.pool.checkedout() == 0  # type: ignore[attr-defined]  # a pool that queues
    assert site.database.reader.pool.checkedout() == 0  # type: ignore[attr-defined]  # a pool that queues


async def test_a_write_that_the_database_undid_for_another_is_done_again(
    site: Site, make: Factory
) -> None:
    """Two writes that lock two rows crosswise: PostgreSQL ends one, and it is run once more."""
    first, second = await make.book(), await make.book()
    meet = asyncio.Barrier(2)
    runs = 0
    postgresql = site.database.url.get_backend_name() == "postgresql"

    def crosswise(one: int, other: int) -> Any:
        async def work(db: Any) -> None:
            nonlocal runs
            runs += 1
            (await db.get(Book, one, with_for_update=True)).published_year = 1999
            if postgresql and runs <= 2:
                await meet.wait()
            (await db.get(Book, other, with_for_update=True)).published_year = 1999

        return work

    await asyncio.gather(
        site.database.write(crosswise(first.id, second.id)),
        site.database.write(crosswise(second.id, first.id)),
    )
    assert runs == (3 if postgresql else 2)


async def test_an_exhausted_pool_is_503_in_time(site: Site, folder: Path) -> None:
    settings = settings_for(
        site.another_url, folder, pool_size=1, pool_overflow=0, max_wait_seconds=0.2
    )

    def prepare(app: Quart) -> None:
        @app.get("/api/hold")
        async def hold() -> str:
            async with app.extensions["database"].session() as db:
                await db.execute(text("SELECT 1"))
                await asyncio.sleep(1)
            return ""

    async with visiting(settings, prepare) as client:
        held = asyncio.ensure_future(client.get("/api/hold"))
        await asyncio.sleep(0.2)
        answer = await client.get("/api/books")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        assert (await held).status_code == 200
        assert (await client.get("/api/books")).status_code == 200


async def test_sqlite_is_set_up_for_exactness(site: Site) -> None:
    if site.database.url.get_backend_name() == "postgresql":
        async with site.database.session() as db:
            for limit, most in (("statement_timeout", "4s"), ("lock_timeout", "3s")):
                assert await db.scalar(text(f"SHOW {limit}")) == most
        return
    for open_session in (site.database.session, site.database._write):
        async with open_session() as db:
            for pragma, value in (
                ("journal_mode", "wal"), ("foreign_keys", 1), ("busy_timeout", 5000),
                ("synchronous", 2),
            ):  # fmt: skip
                assert await db.scalar(text(f"PRAGMA {pragma}")) == value


async def test_nothing_private_stands_in_a_database_error(site: Site) -> None:
    row = {
        "username": "Anna", "username_key": "anna", "email": "private@example.org",
        "email_key": "private@example.org", "password_hash": "the hash",
    }  # fmt: skip
    async with site.database.writer.begin() as connection:
        await connection.execute(insert(User).values(**row))
    with pytest.raises(Exception, match=r"uq_users|UNIQUE") as caught:
        await site.database.write(lambda db: db.execute(insert(User).values(**row)))
    assert "private@" not in str(caught.value).partition("DETAIL")[0]
    assert "the hash" not in str(caught.value)


async def test_a_locked_sqlite_file_is_503(folder: Path) -> None:
    error = OperationalError("SELECT", {}, _sqlite_error("database is locked", "SQLITE_BUSY"))
    from service.http.error_handler import as_api_error

    assert as_api_error(error).status_code == 503
    wrong = OperationalError("SELECT", {}, _sqlite_error("syntax error", "SQLITE_ERROR"))
    assert as_api_error(wrong).status_code == 500


def _sqlite_error(message: str, name: str) -> BaseException:
    import sqlite3

    error = sqlite3.OperationalError(message)
    error.sqlite_errorname = name
    return error


def test_nothing_commits_but_the_seam() -> None:
    """House rule 3, over the syntax tree of every file."""
    found = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in {"commit", "begin"}
    }
    assert found == {"db/database.py"}
