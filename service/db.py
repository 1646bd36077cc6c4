"""The database: one engine's life, `session()` to read, `write()` to change.

Nothing else in Octavo commits. Reads are single statements in autocommit; a write is one unit
that a client's hanging up cannot split.
"""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

from quart import Quart, current_app
from sqlalchemy import ExceptionContext, event
from sqlalchemy.exc import DataError, DBAPIError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)

from service import migrations
from service.config import Settings
from service.db_errors import may_be_tried_again

T = TypeVar("T")
Work = Callable[[AsyncSession], Awaitable[T]]

ATTEMPTS = 3  # of a write that the database undid to let another through
BUSY_MS = 5_000  # how long SQLite waits for another process's write
LIMITS_MS = {  # PostgreSQL ends what would hold others up
    "statement_timeout": "5000",
    "lock_timeout": "3000",
    "idle_in_transaction_session_timeout": "5000",
}


class Database:
    """The engine of one application, from `open()` to `close()`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._units: set[asyncio.Task[Any]] = set()
        self._private_folder: str | None = None
        self.url = settings.database
        self.writer: AsyncEngine
        self.reader: AsyncEngine

    async def open(self) -> None:
        """Make the engines. They connect at first use; a private database is migrated now."""
        if self._settings.is_sqlite:
            await self._open_sqlite()
        else:
            self._open_postgresql()
        self._read = async_sessionmaker(self.reader, expire_on_commit=False)
        self._write = async_sessionmaker(self.writer, expire_on_commit=False)

    async def close(self) -> None:
        """Let writes under way end, then close every connection."""
        while self._units:
            await asyncio.wait(self._units)
        await self.reader.dispose()
        await self.writer.dispose()
        if self._private_folder is not None:
            await asyncio.to_thread(shutil.rmtree, self._private_folder)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """Give a session to read with: each statement sees one snapshot and holds no locks."""
        async with self._read() as db:
            yield db

    async def write(self, work: Work[T]) -> T:
        """Run `work` in a transaction, commit, and give its result.

        `work` holds SQL alone: it may run more than once. Once begun it ends, by commit or
        rollback, even if the caller is cancelled.
        """
        unit = asyncio.create_task(self._unit(work))
        self._units.add(unit)
        unit.add_done_callback(self._forget)
        return await asyncio.shield(unit)

    async def _unit(self, work: Work[T]) -> T:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                async with self._write() as db:
                    result = await work(db)
                    await db.commit()
                    return result
            except DBAPIError as error:
                if attempt == ATTEMPTS or not may_be_tried_again(error):
                    raise
        raise AssertionError("unreachable")

    def _forget(self, unit: asyncio.Task[Any]) -> None:
        self._units.discard(unit)
        if not unit.cancelled():
            unit.exception()  # seen here, should the caller have gone

    def _open_postgresql(self) -> None:
        self.writer = create_async_engine(
            self.url,
            hide_parameters=True,  # e-mail addresses and hashes have no place in a log
            pool_size=self._settings.pool_size,
            max_overflow=self._settings.pool_overflow,
            pool_timeout=self._settings.pool_timeout,
            # Twice the server's limit: for a server that has stopped answering altogether.
            connect_args={"timeout": 2, "command_timeout": 10, "server_settings": LIMITS_MS},
        )
        self.reader = self.writer.execution_options(isolation_level="AUTOCOMMIT")

    async def _open_sqlite(self) -> None:
        if self.url.database in {None, "", ":memory:"}:
            # SQLite's own :memory: is one transaction shared by all: a private file is not.
            self._private_folder = tempfile.mkdtemp(prefix="octavo-")
            self.url = self.url.set(database=f"{self._private_folder}/octavo.db")
            await asyncio.to_thread(migrations.upgrade, self.url)
        pool: dict[str, Any] = {
            "pool_timeout": self._settings.pool_timeout,
            "hide_parameters": True,
        }
        self.reader = create_async_engine(
            self.url,
            pool_size=self._settings.pool_size,
            max_overflow=self._settings.pool_overflow,
            **pool,
        )
        # One connection writes: the others queue for it in order, not by SQLite's polling.
        self.writer = create_async_engine(self.url, pool_size=1, max_overflow=0, **pool)
        prepare_sqlite(self.reader, begin=None)
        prepare_sqlite(self.writer, begin="BEGIN IMMEDIATE")


def prepare_sqlite(engine: AsyncEngine, begin: str | None, busy_ms: int = BUSY_MS) -> None:
    """Make SQLite exact: WAL, foreign keys, and transactions that begin when we say.

    The driver's own, deferred transactions read before they lock, and so lose updates.
    """

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "foreign_keys=ON", f"busy_timeout={busy_ms}"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "handle_error")
    def failed(context: ExceptionContext) -> None:
        """Tell the driver's own overflow, at a value beyond 64 bits, from one of ours."""
        if isinstance(context.original_exception, OverflowError):
            raise DataError(context.statement, None, context.original_exception, True)

    if begin is not None:

        @event.listens_for(engine.sync_engine, "begin")
        def begun(connection: Any) -> None:
            connection.exec_driver_sql(begin)


def init_app(app: Quart, settings: Settings) -> None:
    """Open the database with the application and close it with it."""
    database = app.extensions["database"] = Database(settings)

    @app.while_serving
    async def lifespan() -> AsyncGenerator[None, None]:
        await database.open()
        yield
        await database.close()


def of_app() -> Database:
    """Give the database of the current application."""
    database: Database = current_app.extensions["database"]
    return database


def session() -> AbstractAsyncContextManager[AsyncSession]:
    """Give a session to read with, for the current application."""
    return of_app().session()


async def write(work: Work[T]) -> T:
    """Run `work` in a transaction of the current application's database and commit it."""
    return await of_app().write(work)
