"""Engines: how a connection behaves on each database."""

import time
from dataclasses import dataclass
from typing import Any

import asyncpg
from sqlalchemy import URL, AsyncAdaptedQueuePool, ExceptionContext, event
from sqlalchemy.exc import DataError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from service.admission import seconds_left, waiting
from service.files import make_database

SILENCE_SECONDS = 4.5  # of PostgreSQL: longer than it may take itself (`statement_timeout`)
BUSY_MS = 5_000  # how long SQLite waits for another process's write
SESSION = {  # PostgreSQL ends what would hold others up
    "statement_timeout": "4000",
    "lock_timeout": "3000",
    "idle_in_transaction_session_timeout": "5000",
    # A write reads the cache's row as it is, not as it was when the write began.
    "default_transaction_isolation": "read committed",
    # Whoever vanished keeps no lock for hours.
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
# Where the server has it (PostgreSQL 17), it bounds a whole write as well.
TRANSACTION_LIMIT = """SELECT set_config('transaction_timeout', '10000', false)
    WHERE current_setting('server_version_num')::int >= 170000"""


class _Abrupt(asyncpg.Connection):
    """A connection that is left at once where SQLAlchemy would take leave of it for 2 s.

    It does so of one that is of no more use; a server that hangs would take those seconds, too.
    """

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109  (asyncpg's)
        if timeout is None:
            await super().close()
        else:
            self.terminate()


@dataclass
class Waits:
    """Waits for a connection of a pool that has none left: how many, how long, and how many now."""

    number: int = 0
    seconds: float = 0.0
    waiting: int = 0


def _measured(waits: Waits) -> type[AsyncAdaptedQueuePool]:
    class Measured(AsyncAdaptedQueuePool):
        """Measures how long requests wait for a connection, and lets each wait for its budget.

        The budget of a request is what it has not spent on waiting before. A wait of the
        application's own tasks is bounded by `pool_timeout`.
        """

        __module__ = AsyncAdaptedQueuePool.__module__  # SQLAlchemy names its logger so

        @property
        def _timeout(self) -> float:  # SQLAlchemy reads it as a wait begins
            return seconds_left(self._longest)

        @_timeout.setter
        def _timeout(self, seconds: float) -> None:
            self._longest = seconds

        def _do_get(self) -> Any:
            if self.checkedout() < self.size() + self._max_overflow:
                return super()._do_get()
            begun = time.monotonic()
            waits.number += 1
            waits.waiting += 1
            try:
                with waiting():
                    return super()._do_get()
            finally:
                waits.waiting -= 1
                waits.seconds += time.monotonic() - begun

    return Measured


def make_engine(
    url: URL, *, autocommit: bool, waits: Waits | None = None, **pool: Any
) -> AsyncEngine:
    """Make an engine. `autocommit`: each statement is a transaction, and holds no locks."""
    if waits is not None:
        pool["poolclass"] = _measured(waits)
    # E-mail addresses and hashes have no place in a log.
    options: dict[str, Any] = {"hide_parameters": True, **pool}
    if url.get_backend_name() == "sqlite":
        engine = create_async_engine(url, **options)
        prepare_sqlite(engine, begin=None if autocommit else "BEGIN IMMEDIATE")
        return engine
    engine = create_async_engine(
        url,
        connect_args={
            "timeout": 2,
            "command_timeout": SILENCE_SECONDS,
            "connection_class": _Abrupt,
            "server_settings": SESSION,
        },
        **({"isolation_level": "AUTOCOMMIT"} if autocommit else {}),
        **options,
    )

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, record: Any) -> None:
        connection.run_async(lambda driver: driver.execute(TRANSACTION_LIMIT))

    return engine


def prepare_sqlite(engine: AsyncEngine, begin: str | None, busy_ms: int = BUSY_MS) -> None:
    """Make SQLite exact: WAL, foreign keys, and transactions that begin when we say.

    The driver's own, deferred transactions read before they lock, and so lose updates.
    """

    @event.listens_for(engine.sync_engine, "do_connect")
    def connecting(*_: Any) -> None:
        make_database(engine.url.database)

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
