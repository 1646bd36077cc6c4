"""Access to the database of one application: `session()` to read, `write()` to change.

Only this module commits. Reads are single statements in autocommit. A write is one transaction,
which continues if its client disconnects.
"""

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from math import inf
from typing import Any, TypeVar

from quart import Quart
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from service.cache import Cache, Counters, Epochs, Invalidation, Mark, RetryWrite, WriteSession
from service.config import Settings
from service.db import migrations
from service.db.engines import Waits, make_engine
from service.db.errors import is_retryable
from service.db.group_commit import GroupCommit, In, Out, WriteGroup

T = TypeVar("T")
Work = Callable[[AsyncSession], Awaitable[T]]

ATTEMPTS = 3  # maximum attempts of a write that the database rolls back, as in a deadlock


class Database:
    """The engines of one application, from `open()` to `close()`."""

    def __init__(self, settings: Settings, cache: Cache | None = None) -> None:
        self._settings = settings
        self._is_sqlite = settings.is_sqlite  # stored, because the property parses the URL
        self._cache = cache
        self.epochs = Epochs(Counters()) if cache is None else cache.epochs
        self._writes = (
            Invalidation(None, self.epochs, Counters()) if cache is None else cache.writes
        )
        self.transactions: set[asyncio.Task[Any]] = set()  # writes under way
        self._groups: dict[Any, GroupCommit[Any, Any]] = {}
        self._private_folder: str | None = None
        self.url = settings.database
        self.waits = Waits()
        self.writer: AsyncEngine
        self.reader: AsyncEngine

    async def open(self) -> None:
        """Make the engines, which connect at first use. Raises SharedCacheError.

        A `:memory:` database becomes a temporary file, which is migrated now.
        """
        if self._is_sqlite and self.url.database in {None, "", ":memory:"}:
            await self._make_private()
        size, overflow = self._settings.pool_size, self._settings.pool_overflow
        if self._is_sqlite:
            # Each connection has its own thread: more threads than cores would take CPU time from
            # the event loop.
            readers = min(size, os.cpu_count() or 1)
            self.reader = self._engine(readers, 0, autocommit=True)
            # One connection writes. Writes wait for it in order; SQLite itself would poll its lock.
            self.writer = self._engine(1, 0, autocommit=False)
        else:
            self.writer = self._engine(size, overflow, autocommit=False)
            self.reader = self.writer.execution_options(isolation_level="AUTOCOMMIT")
        self.epochs.open(self._engine(1, 0, autocommit=True, is_measured=False))
        self._read = async_sessionmaker(self.reader, expire_on_commit=False)
        self._write = async_sessionmaker(
            self.writer, expire_on_commit=False, sync_session_class=WriteSession
        )
        if self._cache is not None:
            await self._cache.open(self.session)

    async def close(self) -> None:
        """Wait for running writes, then close every connection."""
        while self.transactions:
            await asyncio.wait(self.transactions)
        if self._cache is not None:
            await self._cache.close()
        await self.epochs.close()
        await self.reader.dispose()
        await self.writer.dispose()
        if self._private_folder is not None:
            await asyncio.to_thread(shutil.rmtree, self._private_folder)

    @property
    def in_use(self) -> int:
        """The number of connections in use."""
        pools: set[Any] = {self.reader.pool, self.writer.pool}
        return sum(pool.checkedout() for pool in pools)

    def oldest_wait(self) -> float:
        """Return when the longest wait for SQLite's threads began (monotonic clock); inf: none.

        These threads share the CPU with the event loop, and slow down while the loop is busy. On
        PostgreSQL the result is always inf.
        """
        return self.waits.oldest if self._is_sqlite else inf

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """Open a session for reads: each statement sees one snapshot and holds no locks."""
        db = self._read()
        try:
            yield db
        except BaseException:
            await asyncio.shield(db.close())
            raise
        await db.close()  # without a shield, which costs a task: no statement is under way

    async def write(self, work: Work[T]) -> T:
        """Run `work` in a transaction, commit, and return its result.

        `work` must have no effects except SQL, because it may run more than once. The transaction
        is committed or rolled back even if the caller is cancelled.
        """
        return await asyncio.shield(self._begin(work))

    async def write_batched(self, work: WriteGroup[In, Out], item: In) -> Out:
        """Run `work` for an item, in one transaction with concurrent items of other callers.

        As with `write`, the transaction ends even if the caller is cancelled.
        """
        if work not in self._groups:
            self._groups[work] = GroupCommit(self._begin, work)
        result: Out = await self._groups[work].write(item)
        return result

    def _begin(self, work: Work[T]) -> asyncio.Task[T]:
        task = asyncio.create_task(self._run_transaction(work))
        self.transactions.add(task)
        task.add_done_callback(self._forget)
        return task

    async def _run_transaction(self, work: Work[T]) -> T:
        undone, since = 0, time.monotonic()
        while True:
            begun = time.monotonic()
            try:
                result, mark = await self._attempt(work, begun)
            except RetryWrite as retry:
                await self._writes.wait_to_retry(retry, since)
            except DBAPIError as error:
                undone += 1
                if undone == ATTEMPTS or not is_retryable(error):
                    raise
            else:
                await self._writes.after_commit(mark)
                return result

    async def _attempt(self, work: Work[T], begun: float) -> tuple[T, Mark | None]:
        db = self._write()
        try:
            result = await work(db)
            mark = await self._writes.before_commit(db, begun)
            await db.commit()  # this releases the connection, so `close` is not needed
        except BaseException:
            await db.close()
            raise
        return result, mark

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self.transactions.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not log it without a caller

    async def _make_private(self) -> None:
        """Use a temporary file: all sessions of SQLite's `:memory:` would share one transaction."""
        self._private_folder = tempfile.mkdtemp(prefix="octavo-")
        self.url = self.url.set(database=f"{self._private_folder}/octavo.db")
        await asyncio.to_thread(migrations.upgrade, self.url)

    def _engine(
        self, size: int, overflow: int, *, autocommit: bool, is_measured: bool = True
    ) -> AsyncEngine:
        return make_engine(
            self.url,
            autocommit=autocommit,
            waits=self.waits if is_measured else None,
            pool_size=size,
            max_overflow=overflow,
            pool_timeout=self._settings.max_wait_seconds,
        )


def init_app(app: Quart, settings: Settings) -> None:
    """Open the database with the application and close it with it."""
    cache = app.extensions["cache"] = Cache(settings, app.logger)
    database = app.extensions["database"] = Database(settings, cache)

    @app.while_serving
    async def lifespan() -> AsyncGenerator[None, None]:
        await database.open()
        yield
        await database.close()
