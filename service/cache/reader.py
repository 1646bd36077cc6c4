"""Common steps of all cached reads: check the lease, read the database, count the outcome."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from service.admission import current
from service.cache.batch_loader import BatchLoader
from service.cache.circuit_breaker import FAILURES, CircuitBreaker
from service.cache.counters import Counters
from service.cache.entries import NONE, Entry
from service.cache.lease import EpochLease
from service.cache.single_flight import SingleFlight
from service.cache.state import State
from service.cache.store import AnotherStoreError, Store
from service.logs import NO_REQUEST, request_id
from service.timeouts import LoopTimeout

if TYPE_CHECKING:
    from service.cache.items import Kind

T = TypeVar("T")
Sessions = Callable[[], AbstractAsyncContextManager[AsyncSession]]
StatusT = TypeVar("StatusT", bound=str)

BACKGROUND_SECONDS = 1.0  # timeout of work after a response
_lost: ContextVar[str] = ContextVar("lost", default="")  # id of a request whose store access failed
SQL_SECONDS = 4.5  # timeout, including admission queue, connection pool and statement


class CacheReader:
    """Access to the store and to the database for reads.

    The store is used only under a lease on the epoch, and while the circuit breaker is closed.
    timeout: the longest time, in seconds, that a read may wait for the store.
    """

    failures = FAILURES
    sampled = 0.001  # fraction of the hits that are compared with the database
    sampling_seconds = 0.1  # minimum time between two comparisons: each costs as much as 20 hits
    _sampled_at = -inf

    def __init__(
        self,
        store: Store,
        epoch_lease: EpochLease,
        breaker: CircuitBreaker,
        counters: Counters,
        logger: logging.Logger,
        timeout: float,
    ) -> None:
        self.store = store
        self.timeout = timeout
        self.counters = counters
        self.logger = logger
        self.session: Sessions
        self._single_flight = SingleFlight()
        self._loaders: dict[Kind, BatchLoader[Entry]] = {}
        self._epoch_lease = epoch_lease
        self._breaker = breaker
        self.under_way: set[asyncio.Task[None]] = set()  # tasks after responses

    def enter(self) -> State | None:
        """Return the epoch for a read that begins now. None: the read bypasses the cache.

        After one failure of the store, a request does not use the store again.
        """
        if self._breaker.is_open or _lost.get() == request_id.get():
            return None
        return self._epoch_lease.lease()

    def is_still(self, state: State) -> bool:
        """Whether a value that was read in the epoch `state` may still be used."""
        now = self._epoch_lease.lease()
        return now is not None and now.token == state.token

    async def sql(self, name: str, load: Callable[[AsyncSession], Awaitable[T]]) -> T:
        """Run `load` in a session. Callers with the same `name` share a load that has not begun.

        Raises TimeoutError after at most SQL_SECONDS: the driver's own timeout may end later.
        """

        async def read() -> T:
            async with self.session() as db:
                return await load(db)

        async with self._sql_timeout():
            return await self._single_flight.read(name, read)

    async def row(self, kind: "Kind", row_id: int) -> Entry:
        """Read a row, in one statement with all rows requested in this tick.

        Raises TimeoutError, as `sql` does.
        """
        loader = self._loaders.get(kind)
        if loader is None:
            loader = self._loaders[kind] = BatchLoader(partial(self._read_rows, kind), NONE)
        async with self._sql_timeout():
            return await loader.read(row_id)

    async def _read_rows(self, kind: "Kind", ids: Sequence[int]) -> Mapping[int, Entry]:
        async with self.session() as db:
            return await kind.load(db, ids=ids)

    def _sql_timeout(self) -> asyncio.Timeout:
        admission = current.get()
        waited = 0.0 if admission is None else admission.waited
        return asyncio.timeout(SQL_SECONDS - min(waited, SQL_SECONDS / 2))

    def failed(self, error: Exception) -> None:
        """Record a failed command: turn the cache off for another store, else count a failure.

        The current request then bypasses the store.
        """
        if (request := request_id.get()) != NO_REQUEST:
            _lost.set(request)
        if isinstance(error, AnotherStoreError):
            self._epoch_lease.leave()
        else:
            self._breaker.failed(error)

    def count(self, status: StatusT, number: int = 1) -> StatusT:
        """Count reads by their cache status, and return the status."""
        if status == "hit":
            self.counters.hits += number
        elif status == "miss":
            self.counters.misses += number
        else:
            self.counters.bypasses += number
        return status

    def is_sampled(self) -> bool:
        """Whether to compare this hit with the database."""
        if random.random() >= self.sampled:  # noqa: S311  (a sample, not a secret)
            return False
        now = time.monotonic()
        if now < self._sampled_at + self.sampling_seconds:
            return False
        self._sampled_at = now
        return True

    def stale(self, name: str) -> None:
        """Count a hit that was older than an earlier response. This must never happen."""
        self.counters.stale += 1
        self.logger.error("The cache is stale: %s", name)

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` in a task, for at most BACKGROUND_SECONDS. No response waits for this task."""
        task = asyncio.create_task(self._run_in_background(work))
        self.under_way.add(task)
        task.add_done_callback(self.under_way.discard)

    async def _run_in_background(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            async with LoopTimeout(BACKGROUND_SECONDS):
                await work
        except FAILURES as error:
            self.failed(error)
        except SQLAlchemyError as error:
            self.logger.debug("Cache: work after a response: %s", type(error).__name__)
        except Exception:
            self.logger.exception("Cache: work after a response")

    async def close(self) -> None:
        """Wait for running loads, and for the tasks of `in_background`."""
        await self._single_flight.close()
        for loader in self._loaders.values():
            await loader.close()
        while self.under_way:
            await asyncio.wait(self.under_way)
