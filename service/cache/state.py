"""The row of the epoch: whether the cache may be used, and since when. Every process trusts it.

The cache is on in one epoch, on one store (`run_id`), or off for all. A process that doubts the
store turns the cache off. Then no write commits until every lease on the epoch has ended.
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
SETTLED_SECONDS = 2.2  # after this time no lease on the epoch before is left
RESTED_SECONDS = 15.0  # off: longer than any write that saw it on
LOOK_SECONDS = 0.5  # between reads of the row
QUERY_SECONDS = 2.0  # for the database, in seconds
BUMP_PATIENCE = 6.0  # on SQLite other writers may come first
UNSEEN = 5.0  # seconds: a commit may take this long
UNMARKED_LOCK = 0x0C7A_0003  # advisory lock of PostgreSQL: writes without marks, and recovery
SERVING_LOCK = 0x0C7A_0004  # serving processes: one alone, or several that share a Redis
PRIMARY = "WITH nothing AS (UPDATE cache_state SET epoch = epoch WHERE false) "
CLOCK = {  # of the database, in seconds: all processes share this clock
    "postgresql": "extract(epoch FROM clock_timestamp())::float8",
    "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
}


@dataclass(frozen=True)
class State:
    """The row: `age` is the time since the epoch changed, in seconds.

    token: a name of the epoch that no other epoch of any database has.
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
    """Make the query. It is kept: most writes run it."""
    return text(f"SELECT {', '.join(_state_columns(clock))} FROM cache_state")  # noqa: S608  (no input)


@lru_cache
def with_state(statement: Any, clock: str) -> Any:
    """Let an INSERT, UPDATE or DELETE read the row of the epoch as it begins.

    `state_in` takes it from the rows that the statement returns.
    """
    columns = (f"(SELECT {column} FROM cache_state)" for column in _state_columns(clock))  # noqa: S608  (no input)
    return statement.returning(*(literal_column(column) for column in columns))


def state_in(row: Row[Any]) -> State:
    """Return the row of the epoch from a result row of `with_state`."""
    return _state(row[-len(fields(State)) :])


async def read_within(db: AsyncSession) -> State:
    """Read the row within a write, after its changes."""
    return _state((await db.execute(_state_query(CLOCK[db.get_bind().dialect.name]))).one())


def _state(row: Any) -> State:
    return State(row[0], row[1], bool(row[2]), row[3], row[4])


async def hold_off_recovery(db: AsyncSession) -> None:
    """Keep the cache off until this write has ended, as it sets no marks.

    On SQLite no other process writes meanwhile. Read the row of the epoch again after this.
    """
    if db.get_bind().dialect.name == "postgresql":
        await db.execute(text(f"SELECT pg_advisory_xact_lock_shared({UNMARKED_LOCK})"))


class Epochs:
    """A connection of its own to the row: each statement is a transaction."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._engine: AsyncEngine
        self._connection: AsyncConnection | None = None
        self._turn = asyncio.Lock()
        self._locks: list[str] = []
        self._leaving: set[asyncio.Task[None]] = set()
        self._file: IO[str] | None = None  # SQLite's own locks end with its transactions

    def open(self, engine: AsyncEngine) -> None:
        """Take an engine of one connection, which is made at first use."""
        self._engine = engine
        self._clock = CLOCK[engine.dialect.name]

    @property
    def is_postgresql(self) -> bool:
        """Whether it is PostgreSQL, which has advisory locks."""
        return self._engine.dialect.name == "postgresql"

    async def read(self) -> State:
        """Read the row. PRIMARY changes no row; it fails on a read-only server, which may lag."""
        primary = PRIMARY if self.is_postgresql else ""
        state = _state(await self._query(primary + _state_query(self._clock).text))
        if state.age < -2 * UNSEEN:  # the database's clock was set back: the age begins anew
            await self._renew(state.epoch)
        return state

    async def begin_epoch(self) -> None:
        """Turn the cache off for all, if it is on."""
        # While this commit takes its time, processes still get leases on the epoch before. So the
        # epoch counts as young, and no write continues, until the commit is known to be done.
        row = await self._query(
            "UPDATE cache_state SET epoch = epoch + 1, token = :token, mode = 'off', "  # noqa: S608  (no input)
            f"changed_at = {self._clock} + {UNSEEN} WHERE mode = 'on' RETURNING epoch",
            BUMP_PATIENCE,
            token=uuid4().hex,
        )
        if row is None:
            return
        self._counters.epoch_changes += 1
        await self._renew(row[0])

    async def _renew(self, epoch: int) -> None:
        """Begin the age of an epoch now."""
        await self._query(
            f"UPDATE cache_state SET changed_at = {self._clock} "  # noqa: S608  (no input)
            "WHERE epoch = :epoch RETURNING epoch",
            BUMP_PATIENCE,
            epoch=epoch,
        )

    async def turn_off(self) -> None:
        """Turn the cache off for all, and wait until a write may continue."""
        await self.begin_epoch()
        await self.settle()

    async def settle(self) -> None:
        """Wait until no lease on the epoch before is left."""
        while (age := (await self.read()).age) <= SETTLED_SECONDS:  # noqa: ASYNC110  (a row)
            await asyncio.sleep(min(SETTLED_SECONDS - age + 0.01, LOOK_SECONDS))

    async def recover(self, seen: State, run_id: str, *, settled: bool = False) -> bool:
        """Turn the cache on again, on this store, unless a write without marks is under way.

        `settled`: no other process can have a lease, so writes need not wait.
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
        """Keep the cache off until `close`."""
        lock = f"SELECT pg_try_advisory_lock_shared({UNMARKED_LOCK})"
        while self.is_postgresql and not await self.hold(lock):  # noqa: ASYNC110  (a lock)
            await asyncio.sleep(0.01)  # a recovery is under way

    async def hold_serving(self, *, alone: bool) -> bool:
        """Register as a serving process until `close`. False: another process excludes it."""
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
        """Take a lock until `close`. It is taken again after a lost connection."""
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
                    # A lock that is refused now was taken by another process meanwhile.
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
    """Close a connection that may not reply any more."""
    with suppress(SQLAlchemyError, OSError):
        await connection.invalidate()
        await connection.close()
