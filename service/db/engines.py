"""Make SQLAlchemy engines for PostgreSQL and SQLite: timeouts, pools, session settings."""

import asyncio
import time
from dataclasses import dataclass, field
from math import inf
from typing import Any

import asyncpg
from sqlalchemy import URL, AsyncAdaptedQueuePool, ExceptionContext, event
from sqlalchemy.exc import DataError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.util import await_only

from service.admission import seconds_left, waiting
from service.db.errors import is_read_only, server_state
from service.files import make_database

SILENCE_SECONDS = 4.5  # asyncpg's `command_timeout`: longer than `statement_timeout`
LEAVING_SECONDS = 1.0  # between two drops of all connections to a read-only server; as Retry-After
BUSY_MS = 5_000  # SQLite's timeout in milliseconds for the lock of another process
SESSION = {  # milliseconds; PostgreSQL ends statements and sessions that would block others
    "statement_timeout": "4000",
    "lock_timeout": "3000",
    "idle_in_transaction_session_timeout": "5000",
    # A write must read the newest row of the cache's epoch, not that of its beginning.
    "default_transaction_isolation": "read committed",
    # Seconds. The locks of a client that has disappeared must end soon.
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
# Since PostgreSQL 17, the server also limits the duration of a transaction (milliseconds).
TRANSACTION_LIMIT = """SELECT set_config('transaction_timeout', '10000', false)
    WHERE current_setting('server_version_num')::int >= 170000"""


class _AbruptConnection(asyncpg.Connection):
    """A connection that terminates at once if SQLAlchemy closes it with a timeout.

    SQLAlchemy closes a broken connection with a timeout of 2 s. A server that hangs would use all
    of this time.
    """

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109  (asyncpg's)
        if timeout is None:
            await super().close()
        else:
            self.terminate()


@dataclass
class Waits:
    """Statistics of waits for a connection: number, total time in seconds, current waits."""

    number: int = 0
    seconds: float = 0.0
    begun: dict[object, float] = field(default_factory=dict)  # of current waits, monotonic time

    @property
    def waiting(self) -> int:
        """The number of requests that wait now."""
        return len(self.begun)

    @property
    def oldest(self) -> float:
        """When the longest current wait began (monotonic clock); inf: no request waits."""
        return next(iter(self.begun.values()), inf)


def _fair_pool(waits: Waits) -> type[AsyncAdaptedQueuePool]:
    class FairPool(AsyncAdaptedQueuePool):
        """Serves requests in order of arrival, and measures their waits.

        In SQLAlchemy's pool, new requests may repeatedly take the connection for which a waiting
        request was woken up, until that request times out. The timeout is the remaining time of
        the request (`seconds_left`), or `pool_timeout` in a background task.
        """

        __module__ = AsyncAdaptedQueuePool.__module__  # SQLAlchemy names its logger by this

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self._free = asyncio.Semaphore(self.size() + self._max_overflow)  # first in, first out

        def _do_get(self) -> Any:
            if self._free.locked():
                self._wait()
            else:
                await_only(self._free.acquire())
            try:
                return super()._do_get()
            except BaseException:
                self._free.release()
                raise

        def _wait(self) -> None:
            begun, seconds = time.monotonic(), seconds_left(self._timeout)
            waits.number += 1
            wait = object()
            waits.begun[wait] = begun
            try:
                with waiting():
                    await_only(asyncio.wait_for(self._free.acquire(), seconds))
            except TimeoutError:
                raise PoolTimeoutError("No connection was free in time") from None
            finally:
                del waits.begun[wait]
                waits.seconds += time.monotonic() - begun

        def _do_return_conn(self, record: Any) -> None:
            try:
                super()._do_return_conn(record)
            finally:
                self._free.release()

    return FairPool


def make_engine(
    url: URL, *, autocommit: bool, waits: Waits | None = None, **pool: Any
) -> AsyncEngine:
    """Make an engine. autocommit: each statement is its own transaction. pool: pool options."""
    if waits is not None:
        pool["poolclass"] = _fair_pool(waits)
    # E-mail addresses and hashes must not be logged.
    options: dict[str, Any] = {"hide_parameters": True, **pool}
    if url.get_backend_name() == "sqlite":
        engine = create_async_engine(url, **options)
        _drop_failed_connections(engine)
        prepare_sqlite(engine, begin=None if autocommit else "BEGIN IMMEDIATE")
        return engine
    engine = create_async_engine(
        url,
        connect_args={
            "timeout": 2,
            "command_timeout": SILENCE_SECONDS,
            "connection_class": _AbruptConnection,
            "server_settings": SESSION,
        },
        **({"isolation_level": "AUTOCOMMIT"} if autocommit else {}),
        **options,
    )
    _drop_failed_connections(engine)

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, record: Any) -> None:
        connection.run_async(lambda driver: driver.execute(TRANSACTION_LIMIT))

    return engine


def _drop_failed_connections(engine: AsyncEngine) -> None:
    """Drop all connections of the pool if the server has ended or has become read-only.

    After a failover, each connection may lead to the old server. For a read-only server this
    happens at most once a second, because there may be no other server.
    """
    dropped = -inf

    @event.listens_for(engine.sync_engine, "handle_error")
    def failed(context: ExceptionContext) -> None:
        nonlocal dropped
        state = server_state(context.original_exception)
        if state is None or not state.leaves:
            return
        if is_read_only(context.original_exception):
            if time.monotonic() < dropped + LEAVING_SECONDS:
                return
            dropped = time.monotonic()
        context.is_disconnect = True


def prepare_sqlite(
    engine: AsyncEngine, begin: str | None, busy_ms: int = BUSY_MS, *, foreign_keys: bool = True
) -> None:
    """Configure SQLite: WAL, foreign keys, and an explicit `begin` statement; None: autocommit.

    The driver's deferred transactions read before they lock, so updates could be lost.
    """

    @event.listens_for(engine.sync_engine, "do_connect")
    def connecting(*_: Any) -> None:
        make_database(engine.url.database)

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # the driver begins no transaction by itself
        cursor = connection.cursor()
        enforced = "ON" if foreign_keys else "OFF"  # SQLite ignores this pragma in a transaction
        for pragma in ("journal_mode=WAL", f"foreign_keys={enforced}", f"busy_timeout={busy_ms}"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "handle_error")
    def failed(context: ExceptionContext) -> None:
        """Raise DataError for the driver's OverflowError (an integer beyond 64 bits)."""
        if isinstance(context.original_exception, OverflowError):
            raise DataError(context.statement, None, context.original_exception, True)

    if begin is not None:

        @event.listens_for(engine.sync_engine, "begin")
        def begun(connection: Any) -> None:
            connection.exec_driver_sql(begin)
