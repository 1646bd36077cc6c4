"""Group commit: concurrent writes of one kind share a transaction.

A transaction costs more than one of its rows: cache marks, the commit, and triggers for each
statement. Writes that are requested in one tick share a transaction. While
MAX_TRANSACTIONS transactions run, new writes wait, and share the next transaction.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from service.db.errors import is_unavailable

In = TypeVar("In")
Out = TypeVar("Out")
WriteGroup = Callable[[AsyncSession, Sequence[In], bool], Awaitable[Sequence[Out]]]
Transaction = asyncio.Task[Sequence[Out]]
Begin = Callable[[Callable[[AsyncSession], Awaitable[Sequence[Out]]]], Transaction[Out]]
Waiting = tuple[In, asyncio.Future[Out]]

MAX_TRANSACTIONS = 2  # this process works on one while the database works on another
MAX_GROUP_SIZE = 64  # maximum number of items in a transaction
SLOW_SECONDS = 0.1  # after this wait another transaction begins, even if MAX_TRANSACTIONS still run


class RetryAloneError(Exception):
    """Some items cannot be written in the group's transaction. places: their indexes."""

    def __init__(self, places: Collection[int]) -> None:
        super().__init__(places)
        self.places = places


class GroupCommit(Generic[In, Out]):
    """Collects items, and writes them in groups.

    begin: starts a transaction in a task, which continues if its callers are cancelled.
    write_group: writes a group, and returns the result of each item, in order. For a group it must
    not wait for locks: it raises RetryAloneError for items that would wait or be refused. Then it
    is called for each of these items alone, with True as its last argument (`alone`), and may
    wait.
    """

    def __init__(self, begin: Begin[Out], write_group: WriteGroup[In, Out]) -> None:
        self._begin = begin
        self._write_group = write_group
        self._waiting: list[Waiting[In, Out]] = []
        self._running = 0
        self._clock: asyncio.TimerHandle | None = None

    async def write(self, item: In) -> Out:
        """Write an item, alone or in a group, and return its result."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Out] = loop.create_future()
        self._waiting.append((item, future))
        loop.call_soon(self._start_waiting)  # after all requests of this tick
        return await future

    def _start_waiting(self) -> None:
        while self._waiting and self._running < MAX_TRANSACTIONS:
            self._start_next()
        if self._waiting and self._clock is None:
            loop = asyncio.get_running_loop()
            self._clock = loop.call_later(SLOW_SECONDS, self._begin_slow)

    def _begin_slow(self) -> None:
        self._clock = None
        if self._waiting:
            self._start_next()
        self._start_waiting()

    def _start_next(self) -> None:
        group, self._waiting = self._waiting[:MAX_GROUP_SIZE], self._waiting[MAX_GROUP_SIZE:]
        self._running += 1
        transaction = self._begin(partial(self._write_items, [item for item, _ in group]))
        transaction.add_done_callback(partial(self._ended, group))

    async def _write_items(self, items: Sequence[In], db: AsyncSession) -> Sequence[Out]:
        try:
            return await self._write_group(db, items, False)
        except DBAPIError as error:  # the transaction was rolled back
            if is_unavailable(error) and not error.connection_invalidated:
                raise  # each item would also fail alone
            raise RetryAloneError(range(len(items))) from error

    def _ended(self, group: list[Waiting[In, Out]], transaction: Transaction[Out]) -> None:
        self._running -= 1
        error = None if transaction.cancelled() else transaction.exception()
        if isinstance(error, RetryAloneError):
            for place in error.places:
                self._write_alone(group[place])
            self._waiting[:0] = [
                waiting for place, waiting in enumerate(group) if place not in error.places
            ]
        else:
            _settle(group, transaction)
        self._start_waiting()

    def _write_alone(self, waiting: Waiting[In, Out]) -> None:
        transaction = self._begin(lambda db: self._write_group(db, [waiting[0]], True))
        transaction.add_done_callback(partial(_settle, [waiting]))


def _settle(group: list[Waiting[In, Out]], transaction: Transaction[Out]) -> None:
    """Set the results of a group, except of cancelled callers."""
    error = asyncio.CancelledError() if transaction.cancelled() else transaction.exception()
    results: Sequence[Any] = [None] * len(group) if error is not None else transaction.result()
    for (_, future), result in zip(group, results, strict=True):
        if future.done():
            continue
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
