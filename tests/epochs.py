"""A cached catalogue of a few rows in memory, whose epoch a test ends at a chosen moment."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

from service.cache import Counters, Entry, Items, Kind, ListIds, ListQuery, ListResult, Lists, State
from service.cache.circuit_breaker import CircuitBreaker
from service.cache.reader import CacheReader
from service.cache.store import MemoryStore

Keeping = Literal["generation", "ttl"]
OLD = {1: b"old 1", 2: b"old 2"}
NEW = {2: b"new 2", 3: b"new 3", 4: b"new 4"}


class Lease:
    """Stands in for the lease on the epoch."""

    def __init__(self, state: State) -> None:
        self.state: State | None = state

    def lease(self) -> State | None:
        """Return the epoch."""
        return self.state

    def leave(self) -> None:
        """Turn the cache off."""
        self.state = None


class Catalogue:
    """Rows, and a cache of them whose epoch the test ends."""

    def __init__(self, keeping: Keeping = "generation") -> None:
        self.rows = dict(OLD)
        self.before_rows: Callable[[], Awaitable[None]] | None = None
        self.after_rows: Callable[[], Awaitable[None]] | None = None
        self.store = MemoryStore(1_000)
        self.lease = Lease(self.state("first"))
        counters, logger = Counters(), logging.getLogger("tests")
        self.breaker = CircuitBreaker(self.store.identify, counters, logger)
        lease: Any = self.lease
        self.reader = CacheReader(self.store, lease, self.breaker, counters, logger, timeout=30.0)
        self.reader.session = self.session
        self.reader.sampled = 0
        self.items = Items(self.reader, 60)
        self.lists = Lists(self.reader, self.items, keeping, 60.0, 60.0)
        self.kind = Kind("book", "shape", self.load, bytes)

    def state(self, token: str, *, on: bool = True) -> State:
        """Make the state of an epoch."""
        return State(1, token, on, self.store.run_id, 100.0)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Any]:
        """Open a session, which no statement needs."""
        yield None

    async def load(self, db: Any, ids: Sequence[int]) -> dict[int, Entry]:
        """Load rows by their ids."""
        loaded = {row_id: Entry(b"1", self.rows[row_id]) for row_id in ids if row_id in self.rows}
        if self.after_rows is not None:
            await self.after_rows()
        return loaded

    async def find(self, db: Any, wanted: tuple[bool, bool]) -> ListIds:
        """Find the ids of the list. Then the other changes of the test happen."""
        ids, total = tuple(self.rows), len(self.rows)
        if self.before_rows is not None:
            await self.before_rows()
        return ListIds(ids if wanted[0] else None, total if wanted[1] else None)

    async def read_all(self, db: Any) -> tuple[list[bytes], int, None]:
        """Read the list past the cache."""
        return list(self.rows.values()), len(self.rows), None

    async def read(self) -> ListResult:
        """Read the list of all rows."""
        query = ListQuery(
            self.kind, {}, ["all"], counted=True, find=self.find, read_all=self.read_all
        )
        result = await self.lists.read(query)
        await self.reader.close()
        return result

    async def end_epoch(self, token: str | None) -> None:
        """End the epoch, and write: no key of the old epoch is marked."""
        self.before_rows = self.after_rows = None
        self.lease.state = None if token is None else self.state(token)
        self.rows = dict(NEW)
