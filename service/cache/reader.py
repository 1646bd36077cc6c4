"""What every read needs: the way in, the store, and what happens after the answer."""

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
from service.patience import LoopTimeout

if TYPE_CHECKING:
    from service.cache.items import Kind

T = TypeVar("T")
Sessions = Callable[[], AbstractAsyncContextManager[AsyncSession]]
Way = TypeVar("Way", bound=str)

LATER_PATIENCE = 1.0
_lost: ContextVar[str] = ContextVar("lost", default="")  # the request that the store has failed
SQL_SECONDS = 4.5  # from a reader's arrival: its turn, a connection, and the statement


class CacheReader:
    """The store, behind its fence and its breaker.

    patience: seconds that the cache may cost a read in all.
    """

    failures = FAILURES
    sampled = 0.001  # of all hits
    sampling_seconds = 0.1  # at least between two of them: each costs what twenty hits do
    _sampled_at = -inf

    def __init__(
        self,
        store: Store,
        fence: EpochLease,
        breaker: CircuitBreaker,
        counters: Counters,
        log: logging.Logger,
        patience: float,
    ) -> None:
        self.store = store
        self.patience = patience
        self.counters = counters
        self.logger = log
        self.session: Sessions
        self._flights = SingleFlight()
        self._loaders: dict[Kind, BatchLoader[Entry]] = {}
        self._fence = fence
        self._breaker = breaker
        self.under_way: set[asyncio.Task[None]] = set()  # what follows answers

    def enter(self) -> State | None:
        """Give the epoch that a read which begins now may use; None: it goes past the cache.

        A request that has waited in vain once does so no second time.
        """
        if self._breaker.is_open or _lost.get() == request_id.get():
            return None
        return self._fence.lease()

    def is_still(self, state: State) -> bool:
        """Whether what a read has found in an epoch may be used now."""
        now = self._fence.lease()
        return now is not None and now.token == state.token

    async def sql(self, name: str, load: Callable[[AsyncSession], Awaitable[T]]) -> T:
        """Read from the database; who asks for the same before it has begun gets the same.

        Raises TimeoutError: a database that says nothing any more is not waited for by readers,
        though a connection takes its time to find out.
        """

        async def read() -> T:
            async with self.session() as db:
                return await load(db)

        async with self._sql_timeout():
            return await self._flights.read(name, read)

    async def row(self, kind: "Kind", row_id: int) -> Entry:
        """Read a row from the database, with others that are requested in this tick.

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
        """Hear of a command that failed."""
        if (request := request_id.get()) != NO_REQUEST:
            _lost.set(request)
        if isinstance(error, AnotherStoreError):
            self._fence.leave()
        else:
            self._breaker.failed(error)

    def count(self, status: Way) -> Way:
        """Count how a read was answered."""
        if status == "hit":
            self.counters.hits += 1
        elif status == "miss":
            self.counters.misses += 1
        else:
            self.counters.bypasses += 1
        return status

    def is_sampled(self) -> bool:
        """Whether a hit is one of those that are compared with the database."""
        if random.random() >= self.sampled:  # noqa: S311  (a sample, not a secret)
            return False
        now = time.monotonic()
        if now < self._sampled_at + self.sampling_seconds:
            return False
        self._sampled_at = now
        return True

    def stale(self, what: str) -> None:
        """Count a hit that was older than an answer before it: promised never to be."""
        self.counters.stale += 1
        self.logger.error("The cache is stale: %s", what)

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what no answer waits for."""
        task = asyncio.create_task(self._do(work))
        self.under_way.add(task)
        task.add_done_callback(self.under_way.discard)

    async def _do(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            async with LoopTimeout(LATER_PATIENCE):
                await work
        except FAILURES as error:
            self.failed(error)
        except SQLAlchemyError as error:
            self.logger.debug("After an answer: %s", type(error).__name__)
        except Exception:
            self.logger.exception("After an answer")

    async def close(self) -> None:
        """Wait for what was to be done later."""
        await self._flights.close()
        for loader in self._loaders.values():
            await loader.close()
        while self.under_way:
            await asyncio.wait(self.under_way)
