"""Read and change the row of the epoch: whether the cache is on, since when, and in which store.

The cache is on for all processes, in one epoch and one store (`run_id`), or off for all. A process
that finds a fault of the store turns the cache off. Then no write commits until every lease on the
epoch has expired.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, fields
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock
from functools import cached_property, lru_cache
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from sqlalchemy import Row, TextClause, literal_column, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from service.cache.counters import Counters
from service.files import private

LEASE_SECONDS = 2.0  # from the beginning of a read of the row
SETTLED_SECONDS = 2.2  # after a change of the epoch: every lease on the previous one has expired
RESTED_SECONDS = 15.0  # time off before recovery: longer than any write that read `on`
LOOK_SECONDS = 0.5  # between two reads of the row
QUERY_SECONDS = 2.0  # timeout of a statement
BUMP_TIMEOUT_SECONDS = 6.0  # on SQLite this write waits for other writers
COMMIT_DELAY_SECONDS = 5.0  # the longest assumed time until a commit is visible
UNMARKED_LOCK = 0x0C7A_0003  # advisory lock (PostgreSQL): writes without marks exclude recovery
SERVING_LOCK = 0x0C7A_0004  # advisory lock: one process alone, or several that share a Redis
PRIMARY = "WITH nothing AS (UPDATE cache_state SET epoch = epoch WHERE false) "
CLOCK = {  # SQL: Unix time of the database in seconds, one clock for all processes
    "postgresql": "extract(epoch FROM clock_timestamp())::float8",
    "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
}


@dataclass(frozen=True)
class State:
    """The row of the epoch. age: seconds since the last change of the epoch.

    token: identifies the epoch; unique among all databases. run_id: of the store.
    """

    epoch: int
    token: str
    on: bool
    run_id: str
    age: float

    @cached_property
    def prefix(self) -> str:
        """The prefix of every key of this epoch."""
        return f"octavo:cache:{self.run_id}:{self.token}:"


def _state_columns(clock: str) -> list[str]:
    return ["epoch", "token", "mode = 'on'", "run_id", f"{clock} - changed_at"]


@lru_cache
def _state_query(clock: str) -> TextClause:
    """Make the query of the row. It is made once, because most writes run it."""
    return text(f"SELECT {', '.join(_state_columns(clock))} FROM cache_state")  # noqa: S608  (no input)


@lru_cache
def with_state(statement: Any, clock: str) -> Any:
    """Let an INSERT, UPDATE or DELETE also return the row of the epoch, as of its beginning.

    `state_in` reads this row from a row that the statement returns.
    """
    columns = (f"(SELECT {column} FROM cache_state)" for column in _state_columns(clock))  # noqa: S608  (no input)
    return statement.returning(*(literal_column(column) for column in columns))


def state_in(row: Row[Any]) -> State:
    """Return the row of the epoch from a result row of `with_state`."""
    return _state(row[-len(fields(State)) :])


async def read_within(db: AsyncSession) -> State:
    """Read the row of the epoch in the transaction of a write, after its changes."""
    return _state((await db.execute(_state_query(CLOCK[db.get_bind().dialect.name]))).one())


def _state(row: Any) -> State:
    return State(row[0], row[1], bool(row[2]), row[3], row[4])


async def hold_off_recovery(db: AsyncSession) -> None:
    """Prevent recovery of the cache until the transaction ends: this write sets no marks.

    SQLite needs no lock: it has one writer at a time. After this call, read the row again.
    """
    if db.get_bind().dialect.name == "postgresql":
        await db.execute(text(f"SELECT pg_advisory_xact_lock_shared({UNMARKED_LOCK})"))


class Epochs:
    """Reads and changes the row of the epoch, over one connection of its own in autocommit."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._engine: AsyncEngine
        self._connection: AsyncConnection | None = None
        self._turn = asyncio.Lock()
        self._locks: list[str] = []
        self._leaving: set[asyncio.Task[None]] = set()
        self._file: IO[str] | None = None  # for `flock`: SQLite's locks end with a transaction

    def open(self, engine: AsyncEngine) -> None:
        """Use `engine`, whose pool has one connection. It connects at first use."""
        self._engine = engine
        self._clock = CLOCK[engine.dialect.name]

    @property
    def is_postgresql(self) -> bool:
        """Whether the database is PostgreSQL, which has advisory locks."""
        return self._engine.dialect.name == "postgresql"

    async def read(self) -> State:
        """Read the row. On PostgreSQL, PRIMARY makes this fail on a standby, which may lag."""
        primary = PRIMARY if self.is_postgresql else ""
        state = _state(await self._query(primary + _state_query(self._clock).text))
        if (
            state.age < -2 * COMMIT_DELAY_SECONDS
        ):  # the database's clock was set back: restart the age
            await self._renew(state.epoch)
        return state

    async def begin_epoch(self) -> None:
        """Turn the cache off for all, if it is on."""
        # Until this commit is visible, processes still get leases on the previous epoch. So
        # `changed_at` is in the future, and no write continues until `_renew` sets it.
        row = await self._query(
            "UPDATE cache_state SET epoch = epoch + 1, token = :token, mode = 'off', "  # noqa: S608  (no input)
            f"changed_at = {self._clock} + {COMMIT_DELAY_SECONDS} "
            "WHERE mode = 'on' RETURNING epoch",
            BUMP_TIMEOUT_SECONDS,
            token=uuid4().hex,
        )
        if row is None:
            return
        self._counters.epoch_changes += 1
        await self._renew(row[0])

    async def _renew(self, epoch: int) -> None:
        """Set the age of an epoch to 0."""
        await self._query(
            f"UPDATE cache_state SET changed_at = {self._clock} "  # noqa: S608  (no input)
            "WHERE epoch = :epoch RETURNING epoch",
            BUMP_TIMEOUT_SECONDS,
            epoch=epoch,
        )

    async def turn_off(self) -> None:
        """Turn the cache off for all, and wait until a write may continue."""
        await self.begin_epoch()
        await self.settle()

    async def settle(self) -> None:
        """Wait until every lease on the previous epoch has expired."""
        while (age := (await self.read()).age) <= SETTLED_SECONDS:  # noqa: ASYNC110  (a row)
            await asyncio.sleep(min(SETTLED_SECONDS - age + 0.01, LOOK_SECONDS))

    async def recover(self, seen: State, run_id: str, *, settled: bool = False) -> bool:
        """Turn the cache on, in the store `run_id`. Return whether this succeeded.

        False: the epoch has changed since `seen`, or a write without marks is under way.
        settled: no other process can have a lease, so writes need not wait.
        """
        alone = f" AND pg_try_advisory_xact_lock({UNMARKED_LOCK})" if self.is_postgresql else ""
        row = await self._query(
            "UPDATE cache_state SET epoch = epoch + 1, token = :token, mode = 'on', "  # noqa: S608  (no input)
            f"run_id = :run_id, changed_at = {'changed_at' if settled else self._clock} "
            f"WHERE epoch = :epoch{alone} RETURNING epoch",
            token=uuid4().hex,
            run_id=run_id,
            epoch=seen.epoch,
        )
        self._counters.epoch_changes += row is not None
        return row is not None

    async def hold_off(self) -> None:
        """Prevent recovery of the cache until `close`. On SQLite, do nothing."""
        lock = f"SELECT pg_try_advisory_lock_shared({UNMARKED_LOCK})"
        while self.is_postgresql and not await self.hold(lock):  # noqa: ASYNC110  (a lock)
            await asyncio.sleep(0.01)  # a recovery is under way

    async def hold_serving(self, *, alone: bool) -> bool:
        """Register as a serving process until `close`. False: another process has the lock."""
        if not self.is_postgresql:
            return self._hold_file(alone=alone)
        shared = "" if alone else "_shared"
        return await self.hold(f"SELECT pg_try_advisory_lock{shared}({SERVING_LOCK})")

    def _hold_file(self, *, alone: bool) -> bool:
        if self._file is None:
            file = Path(str(self._engine.url.database)).resolve()  # the same for every path to it
            self._file = open(f"{file}.lock", "a", opener=private)  # noqa: SIM115  (kept)
        try:
            flock(self._file, (LOCK_EX if alone else LOCK_SH) | LOCK_NB)
        except BlockingIOError:
            return False
        return True

    async def hold(self, lock: str) -> bool:
        """Take a lock until `close`; return whether it is held. Reconnecting takes it again."""
        if lock in self._locks:
            return True
        held = await self._lock(lock)
        if held:
            self._locks.append(lock)
        return held

    async def close(self) -> None:
        """Close the connection, which releases every lock."""
        if self._connection is not None:
            await self._connection.close()
        if self._leaving:
            await asyncio.wait(self._leaving)
        await self._engine.dispose()
        if self._file is not None:
            self._file.close()

    async def _lock(self, query: str) -> bool:
        return bool((await self._query(query))[0])

    async def _query(self, query: str, seconds: float = QUERY_SECONDS, **values: object) -> Any:
        """Run one statement at a time. A failed connection is replaced."""
        async with asyncio.timeout(seconds), self._turn:
            try:
                if self._connection is None:
                    self._connection = await self._engine.connect()
                    # If a lock is refused now, another process has taken it meanwhile.
                    self._locks = [
                        lock
                        for lock in self._locks
                        if (await self._connection.execute(text(lock))).scalar()
                    ]
                return (await self._connection.execute(text(query), values)).first()
            except BaseException:
                connection, self._connection = self._connection, None
                if connection is not None:
                    leaving = asyncio.create_task(_leave(connection))
                    self._leaving.add(leaving)
                    leaving.add_done_callback(self._leaving.discard)
                raise


async def _leave(connection: AsyncConnection) -> None:
    """Close a connection whose server may no longer reply."""
    with suppress(SQLAlchemyError, OSError):
        await connection.invalidate()
        await connection.close()
