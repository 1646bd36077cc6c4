"""The causes that turn the cache off, and the conditions of its recovery."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import text

from service.cache import Cache, SharedCacheError, invalidation, lease, redis_store
from service.cache.state import UNMARKED_LOCK, hold_off_recovery
from service.cache.store import AnotherStoreError
from service.db import migrations
from service.db.database import Database
from service.models import Book
from tests.conftest import IsolatedSite, free_port, fresh_database, settings_for

BACK = 60  # seconds in which a short recovery comes, on a busy machine


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the 15 s of a recovery: no other process serves that database."""
    monkeypatch.setattr(lease, "RESTED_SECONDS", 0.5)
    monkeypatch.setattr(lease, "WELL_SECONDS", 0.3)


@asynccontextmanager
async def redis_of(isolated: IsolatedSite) -> AsyncIterator[Any]:
    """Return a client of its Redis."""
    client: Any = Redis.from_url(f"redis://127.0.0.1:{isolated.port}/0")
    try:
        yield client
    finally:
        await client.aclose()


async def set_title(isolated: IsolatedSite, book: Book, title: str) -> None:
    """Change a book."""

    async def work(db: Any) -> None:
        (await db.get(Book, book.id)).title = title

    await isolated.site.database.write(work)


async def title_of(isolated: IsolatedSite, book: Book) -> str:
    """Read the title of a book over HTTP."""
    title: str = (await isolated.client.get(f"/api/books/{book.id}")).json()["title"]
    return title


async def test_a_demoted_master_turns_the_cache_off(isolated: IsolatedSite, short: None) -> None:
    """It replies under the same run id as before, and its data may be old."""
    book = await isolated.make.book()
    assert [await title_of(isolated, book) for _ in range(2)] == [book.title] * 2
    before = await isolated.cache.epochs.read()
    async with redis_of(isolated) as redis:
        await redis.replicaof("127.0.0.1", str(free_port()))
        async with asyncio.timeout(BACK):
            # There was no write: the lease has checked.
            while isolated.cache.lease.lease() is not None:
                await asyncio.sleep(0.05)
        await set_title(isolated, book, "New")
        assert await title_of(isolated, book) == "New"
        await redis.replicaof("NO", "ONE")
    await isolated.until(on=True)
    after = await isolated.cache.epochs.read()
    assert after.run_id != before.run_id, "a history of its own"
    assert await title_of(isolated, book) == "New"


async def test_a_full_redis_keeps_the_cache_off_until_it_has_room(
    isolated: IsolatedSite, short: None
) -> None:
    book = await isolated.make.book()
    async with redis_of(isolated) as redis:
        await redis.config_set("maxmemory", "1")
        await set_title(isolated, book, "New")
        assert await title_of(isolated, book) == "New"
        assert not (await isolated.cache.epochs.read()).on
        await asyncio.sleep(2.5)  # five checks of a Redis that replies
        assert not (await isolated.cache.epochs.read()).on
        await redis.config_set("maxmemory", "0")
    await isolated.until(on=True)
    assert await title_of(isolated, book) == "New"


async def test_recovery_waits_for_writes_without_marks(isolated: IsolatedSite, short: None) -> None:
    """It comes after the last such write, however many attempts have failed."""
    async with isolated.site.database.writer.connect() as connection:
        await connection.execute(text(f"SELECT pg_advisory_xact_lock_shared({UNMARKED_LOCK})"))
        await isolated.cache.epochs.begin_epoch()
        await asyncio.sleep(2.5)
        assert not (await isolated.cache.epochs.read()).on
    async with asyncio.timeout(BACK):
        while not (await isolated.cache.epochs.read()).on:
            await asyncio.sleep(0.1)


async def test_a_write_sets_marks_if_a_recovery_begins_under_it(
    isolated: IsolatedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write saw the cache off; before it held off recovery, the cache was on again."""
    book = await isolated.make.book()
    database, epochs = isolated.site.database, isolated.cache.epochs
    await epochs.begin_epoch()
    marks = isolated.cache.counters.marks
    recovered: list[bool] = []

    async def late(db: Any) -> None:
        if not recovered:
            state = await epochs.read()
            recovered.append(await epochs.recover(state, await isolated.cache.store.identify()))
        await hold_off_recovery(db)

    monkeypatch.setattr(invalidation, "hold_off_recovery", late)

    async def work(db: Any) -> None:
        (await db.get(Book, book.id)).title = "New"

    await epochs.settle()
    await database.write(work)
    assert recovered == [True]
    assert isolated.cache.counters.marks == marks + 1
    assert await title_of(isolated, book) == "New"


async def test_a_write_by_raw_sql_turns_the_cache_off(isolated: IsolatedSite) -> None:
    """Octavo does not parse a statement to learn which rows it changes."""
    book = await isolated.make.book()
    assert [await title_of(isolated, book) for _ in range(2)] == [book.title] * 2

    async def work(db: Any) -> None:
        await db.execute(text("UPDATE books SET title = 'New', version = version + 1"))

    await isolated.site.database.write(work)
    assert not (await isolated.cache.epochs.read()).on
    assert await title_of(isolated, book) == "New"


async def test_the_isolation_of_writes_does_not_depend_on_the_database(
    isolated: IsolatedSite,
) -> None:
    """In another isolation a write would read the row of the epoch as it was when it began."""
    database = isolated.site.database
    async with database.writer.connect() as connection:
        name = (await connection.execute(text("SELECT current_database()"))).scalar()
        await connection.exec_driver_sql(
            f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'"
        )
        await connection.commit()
    await database.writer.dispose()  # for new connections

    async def level(db: Any) -> Any:
        return await db.scalar(text("SHOW transaction_isolation"))

    assert await database.write(level) == "read committed"


async def test_the_wait_for_the_epochs_connection_has_a_timeout(isolated: IsolatedSite) -> None:
    epochs = isolated.cache.epochs
    async with epochs._turn:  # private: only a statement under way holds it
        with pytest.raises(TimeoutError):
            await epochs._query("SELECT 1", 0.1)  # private: public queries wait for 2 s


async def test_a_sqlite_file_under_two_paths_is_the_same_database(
    folder: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link.db"
    async with fresh_database("sqlite", None, folder) as url:  # type: ignore[arg-type]  # SQLite needs no request
        settings = settings_for(url, folder)
        await asyncio.to_thread(migrations.upgrade, settings.database)
        link.symlink_to(str(settings.database.database))
        async with AsyncExitStack() as stack:
            first, second = (
                Database(each, Cache(each, logging.getLogger("test")))
                for each in (settings, settings_for(f"sqlite:///{link}", folder))
            )
            stack.push_async_callback(first.close)
            await first.open()
            stack.push_async_callback(second.close)
            with pytest.raises(SharedCacheError):
                await second.open()


@pytest.mark.parametrize("reply", [b"role:slave\r\nrun_id:1\r\n", b"role:master\r\n"])
async def test_a_redis_that_is_no_master_or_has_no_run_id_is_not_trusted(reply: bytes) -> None:
    async def send(*command: str) -> None:
        assert command[0] == "INFO"

    async def read() -> bytes:
        return reply

    connection = SimpleNamespace(send_command=send, read_response=read)
    with pytest.raises(AnotherStoreError):
        await redis_store._read_run_id(connection)  # private: no test has such a Redis
