"""Writes: atomic, without lost updates, and complete even if the client disconnects."""

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
from tests.conftest import Site, patient_client, serving, settings_for
from tests.factories import Factory
from tests.test_cli import killed

ROOT = Path(service.__file__).parent


async def add(db: Any, data: BookCreate) -> None:
    """Add a book without an owner."""
    db.add(new_book(None, data))
    await db.flush()


async def test_concurrent_read_modify_writes_lose_nothing(site: Site, make: Factory) -> None:
    book = await make.book(published_year=1000)

    async def add_one(db: Any) -> None:
        row = await db.get(Book, book.id, with_for_update=True)
        before = row.published_year
        await asyncio.sleep(0)
        row.published_year = before + 1

    await asyncio.gather(*(site.database.write(add_one) for _ in range(80)))
    async with site.database.session() as db:
        assert await db.scalar(select(Book.published_year)) == 1080


async def test_two_processes_on_one_sqlite_file_lose_nothing(folder: Path) -> None:
    """Several processes have no common queue of writers."""
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
    processes: list[asyncio.subprocess.Process] = []
    try:
        data = BookCreate(title="T", author="A", published_year=1000)
        await database.write(lambda db: add(db, data))
        processes += [
            await asyncio.create_subprocess_exec(sys.executable, "-c", program, url)
            for _ in range(4)
        ]
        assert [await process.wait() for process in processes] == [0] * 4
        async with database.session() as db:
            assert await db.scalar(select(Book.published_year)) == 1080
            assert await db.scalar(text("PRAGMA integrity_check")) == "ok"
    finally:
        for process in processes:
            await killed(process)
        await database.close()


async def test_an_error_rolls_the_whole_write_back(site: Site) -> None:
    async def work(db: Any) -> None:
        await add(db, BookCreate(title="T", author="A"))
        raise LookupError

    with pytest.raises(LookupError):
        await site.database.write(work)
    async with site.database.session() as db:
        assert await db.scalar(select(Book.id)) is None


async def test_a_write_is_committed_even_if_its_caller_is_cancelled(site: Site) -> None:
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def work(db: Any) -> None:
        await add(db, BookCreate(title="T", author="A"))
        reached.set()
        await go_on.wait()

    caller = asyncio.ensure_future(site.database.write(work))
    await reached.wait()
    try:
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
    finally:
        go_on.set()
    async with asyncio.timeout(30), site.database.session() as db:
        while (title := await db.scalar(select(Book.title))) is None:
            await asyncio.sleep(0.01)
    assert title == "T"


async def test_clients_that_disconnect_during_a_write_leave_whole_books_and_no_used_connection(
    site: Site, client: httpx.AsyncClient, make: Factory
) -> None:
    owner = await make.member()

    async def disconnect(number: int) -> None:
        body = f'{{"title": "Sent {number}", "author": "A"}}'
        _, writer = await asyncio.open_connection("127.0.0.1", site.port)
        writer.write(
            f"POST /api/books HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Authorization: {owner.token}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        await writer.drain()
        await asyncio.sleep(number % 10 / 1000)
        writer.transport.abort()

    for start in range(0, 80, 20):
        await asyncio.gather(*(disconnect(n) for n in range(start, start + 20)))
    response = await client.post(
        "/api/books", json={"title": "After", "author": "A"}, headers=owner.headers
    )
    assert response.status_code == 201
    listed = (await client.get("/api/books?per_page=100")).json()
    assert listed["total"] == len(listed["items"]) <= 81
    while transactions := site.database.transactions:  # of clients that have gone
        await asyncio.wait(transactions)
    async with asyncio.timeout(30):  # for the work of the server after its last response
        while site.database.in_use:
            await asyncio.sleep(0.01)


async def test_a_write_that_the_database_rolled_back_in_a_deadlock_runs_again(
    site: Site, make: Factory
) -> None:
    """Two writes lock two rows in opposite orders; PostgreSQL rolls one of them back."""
    first, second = await make.book(), await make.book()
    meet = asyncio.Barrier(2)
    runs = 0
    postgresql = site.database.url.get_backend_name() == "postgresql"

    def crosswise(first_id: int, second_id: int) -> Any:
        async def work(db: Any) -> None:
            nonlocal runs
            runs += 1
            (await db.get(Book, first_id, with_for_update=True)).published_year = 1999
            if postgresql and runs <= 2:
                await meet.wait()
            (await db.get(Book, second_id, with_for_update=True)).published_year = 1999

        return work

    await asyncio.gather(
        site.database.write(crosswise(first.id, second.id)),
        site.database.write(crosswise(second.id, first.id)),
    )
    assert runs == (3 if postgresql else 2)


async def test_an_exhausted_pool_is_a_503(site: Site, folder: Path) -> None:
    settings = settings_for(
        site.another_url, folder, pool_size=1, pool_overflow=0, max_wait_seconds=1.0
    )
    held, may_end = asyncio.Event(), asyncio.Event()

    def prepare(app: Quart) -> None:
        @app.get("/api/hold")
        async def hold() -> str:
            async with app.extensions["database"].session() as db:
                await db.execute(text("SELECT 1"))
                held.set()
                await may_end.wait()
            return ""

    async with serving(settings, prepare) as small, patient_client(small) as client:
        holding = asyncio.ensure_future(client.get("/api/hold"))
        try:
            async with asyncio.timeout(30):
                await held.wait()
            response = await client.get("/api/books")
        finally:
            may_end.set()
        assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
        assert (await holding).status_code == 200
        assert (await client.get("/api/books")).status_code == 200


async def test_connections_have_their_settings(site: Site) -> None:
    if site.database.url.get_backend_name() == "postgresql":
        async with site.database.session() as db:
            for limit, most in (("statement_timeout", "4s"), ("lock_timeout", "3s")):
                assert await db.scalar(text(f"SHOW {limit}")) == most
        return
    for engine in (site.database.reader, site.database.writer):
        async with engine.connect() as db:
            for pragma, value in (
                ("journal_mode", "wal"), ("foreign_keys", 1), ("busy_timeout", 5000),
                ("synchronous", 2),
            ):  # fmt: skip
                assert await db.scalar(text(f"PRAGMA {pragma}")) == value


async def test_a_database_error_holds_no_personal_data(site: Site) -> None:
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


def test_a_locked_sqlite_file_is_a_503() -> None:
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


def test_only_the_database_module_commits() -> None:
    """In the syntax tree of every file."""
    files = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in {"commit", "begin"}
    }
    assert files == {"db/database.py"}
