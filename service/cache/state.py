"""The one row that every process trusts: who may use the cache, and since when.

The cache is on in one epoch, on one store (`run_id`), or off for all. Whoever doubts it turns it
off, and nobody commits a write until every lease on it has ended.
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

LEASE_SECONDS = 2.0  # from the beginning of a reading of the row
SETTLED_SECONDS = 2.2  # after which no lease on the epoch before is left
RESTED_SECONDS = 15.0  # off: longer than any write that saw it on
LOOK_SECONDS = 0.5  # between readings of the row
PATIENCE = 2.0  # for the database, in seconds
BUMP_PATIENCE = 6.0  # SQLite's other writers come first
UNSEEN = 5.0  # seconds in which a committing database is slow, and not gone
UNMARKED_LOCK = 0x0C7A_0003  # PostgreSQL's advisory lock: of writes without marks, and recovery
SERVING_LOCK = 0x0C7A_0004  # of who serves: alone, or with others that share a Redis
PRIMARY = "WITH nothing AS (UPDATE cache_state SET epoch = epoch WHERE false) "
CLOCK = {  # the database's, in seconds: the one clock that all processes have
    "postgresql": "extract(epoch FROM clock_timestamp())::float8",
    "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
}


@dataclass(frozen=True)
class State:
    """The row: `age` is the time since the epoch changed, in seconds.

    token: names the epoch, and no other of any database.
    """

    epoch: int
    token: str
    on: bool
    run_id: str
    age: float

    @cached_property
    def prefix(self) -> str:
        """What every key of this epoch begins with."""
        return f"octavo:cache:{self.run_id}:{self.token}:"


def _state_columns(clock: str) -> list[str]:
    return ["epoch", "token", "mode = 'on'", "run_id", f"{clock} - changed_at"]


@lru_cache
def _state_query(clock: str) -> TextClause:
    """Make it once: most writes ask."""
    return text(f"SELECT {', '.join(_state_columns(clock))} FROM cache_state")  # noqa: S608  (no input)


@lru_cache
def with_state(statement: Any, clock: str) -> Any:
    """Let an INSERT, UPDATE or DELETE read the row as it begins.

    `told_state` takes it from what the statement returns.
    """
    columns = (f"(SELECT {column} FROM cache_state)" for column in _state_columns(clock))  # noqa: S608  (no input)
    return statement.returning(*(literal_column(column) for column in columns))


def state_in(row: Row[Any]) -> State:
    """Give the row of the epoch that a statement has read besides."""
    return _state(row[-len(fields(State)) :])


async def read_within(db: AsyncSession) -> State:
    """Read the row within a write, after its changes."""
    return _state((await db.execute(_state_query(CLOCK[db.get_bind().dialect.name]))).one())


def _state(row: Any) -> State:
    return State(row[0], row[1], bool(row[2]), row[3], row[4])


async def hold_off_recovery(db: AsyncSession) -> None:
    """Keep the cache off until this write has ended: it makes no marks.

    On SQLite nobody else writes meanwhile. What was read before this has to be read again.
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
        self._file: IO[str] | None = None  # SQLite's own locks come and go with its transactions

    def open(self, engine: AsyncEngine) -> None:
        """Take an engine of one connection, which is made at first use."""
        self._engine = engine
        self._clock = CLOCK[engine.dialect.name]

    @property
    def is_postgresql(self) -> bool:
        """Whether it is PostgreSQL, which has advisory locks."""
        return self._engine.dialect.name == "postgresql"

    async def read(self) -> State:
        """Read the row. PRIMARY changes nothing, and fails on a read-only server: it may be old."""
        primary = PRIMARY if self.is_postgresql else ""
        state = _state(await self._ask(primary + _state_query(self._clock).text))
        if state.age < -2 * UNSEEN:  # the database's clock was set back: the age begins anew
            await self._renew(state.epoch)
        return state

    async def bump(self) -> None:
        """Turn the cache off for all, if it is on."""
        # Committing may take its time, in which leases are still given on what was before: so the
        # epoch is young, and no write goes on, until it has been seen that it is over.
        row = await self._ask(
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
        """Let the age of an epoch begin now."""
        await self._ask(
            f"UPDATE cache_state SET changed_at = {self._clock} "  # noqa: S608  (no input)
            "WHERE epoch = :epoch RETURNING epoch",
            BUMP_PATIENCE,
            epoch=epoch,
        )

    async def turn_off(self) -> None:
        """Turn the cache off for all, and do not return before a write may go on."""
        await self.bump()
        await self.settle()

    async def settle(self) -> None:
        """Wait until no lease on the epoch before is left."""
        while (age := (await self.read()).age) <= SETTLED_SECONDS:  # noqa: ASYNC110  (a row)
            await asyncio.sleep(min(SETTLED_SECONDS - age + 0.01, LOOK_SECONDS))

    async def recover(self, seen: State, run_id: str, *, settled: bool = False) -> bool:
        """Turn the cache on again, on this store, unless a write without marks is under way.

        `settled`: no other process can have a lease, so that writes need not wait.
        """
        alone = f" AND pg_try_advisory_xact_lock({UNMARKED_LOCK})" if self.is_postgresql else ""
        row = await self._ask(
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
        """Keep the cache off until this is closed."""
        lock = f"SELECT pg_try_advisory_lock_shared({UNMARKED_LOCK})"
        while self.is_postgresql and not await self.hold(lock):  # noqa: ASYNC110  (a lock)
            await asyncio.sleep(0.01)  # a recovery is just deciding

    async def hold_serving(self, *, alone: bool) -> bool:
        """Take one's place among those who serve, until closed: whether there is one."""
        if not self.is_postgresql:
            return self._hold_file(alone=alone)
        shared = "" if alone else "_shared"
        return await self.hold(f"SELECT pg_try_advisory_lock{shared}({SERVING_LOCK})")

    def _hold_file(self, *, alone: bool) -> bool:
        if self._file is None:
            file = Path(str(self._engine.url.database)).resolve()  # by whatever path it is opened
            self._file = open(f"{file}.lock", "a", opener=private)  # noqa: SIM115  (kept)
        try:
            flock(self._file, (LOCK_EX if alone else LOCK_SH) | LOCK_NB)
        except BlockingIOError:
            return False
        return True

    async def hold(self, lock: str) -> bool:
        """Take a lock for as long as this is open, also over a connection that was lost."""
        if lock in self._locks:
            return True
        held = await self._lock(lock)
        if held:
            self._locks.append(lock)
        return held

    async def close(self) -> None:
        """End the connection, and with it every lock."""
        if self._connection is not None:
            await self._connection.close()
        if self._leaving:
            await asyncio.wait(self._leaving)
        await self._engine.dispose()
        if self._file is not None:
            self._file.close()

    async def _lock(self, query: str) -> bool:
        return bool((await self._ask(query))[0])

    async def _ask(self, query: str, patience: float = PATIENCE, **values: object) -> Any:
        """Run one statement, in turn. A connection that failed is left for another one."""
        async with asyncio.timeout(patience), self._turn:
            try:
                if self._connection is None:
                    self._connection = await self._engine.connect()
                    # What is refused now has been taken by somebody else meanwhile.
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
    """End a connection that may not answer any more."""
    with suppress(SQLAlchemyError, OSError):
        await connection.invalidate()
        await connection.close()
