"""Group commit: what many ask to have written at one time goes into one transaction.

A transaction costs more than a row of it does: the marks, the commit, triggers once a statement.
Those who come in one tick go into one; while some are under way, those who come wait, and go
together into the next.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from service.db_errors import is_unavailable

In = TypeVar("In")
Out = TypeVar("Out")
Together = Callable[[AsyncSession, Sequence[In], bool], Awaitable[Sequence[Out]]]
Unit = asyncio.Task[Sequence[Out]]
Begin = Callable[[Callable[[AsyncSession], Awaitable[Sequence[Out]]]], Unit[Out]]
Waiting = tuple[In, asyncio.Future[Out]]

UNDER_WAY = 2  # transactions: one is worked at here while the database works at the other
MOST = 64  # in one
SLOW_SECONDS = 0.1  # after which another begins all the same: whatever it is that those wait for


class RetryAloneError(Exception):
    """Some cannot be written together with the others: by their places in the group."""

    def __init__(self, which: Collection[int]) -> None:
        super().__init__(which)
        self.which = which


class GroupCommit(Generic[In, Out]):
    """Gathers what is to be written.

    begin: begins a transaction, which ends whoever waits for it.
    together: writes some, and gives what came of each in their order. It waits for nobody, and
    raises ApartError for those who would have to be waited for, or be refused; they come again,
    each `apart`.
    """

    def __init__(self, begin: Begin[Out], together: Together[In, Out]) -> None:
        self._begin = begin
        self._together = together
        self._waiting: list[Waiting[In, Out]] = []
        self._under_way = 0
        self._clock: asyncio.TimerHandle | None = None

    async def write(self, one: In) -> Out:
        """Write one, by itself or with others, and give what came of it."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Out] = loop.create_future()
        self._waiting.append((one, answer))
        loop.call_soon(self._go_on)  # when all have come who come in this tick
        return await answer

    def _go_on(self) -> None:
        while self._waiting and self._under_way < UNDER_WAY:
            self._next()
        if self._waiting and self._clock is None:
            loop = asyncio.get_running_loop()
            self._clock = loop.call_later(SLOW_SECONDS, self._begin_slow)

    def _begin_slow(self) -> None:
        self._clock = None
        if self._waiting:
            self._next()
        self._go_on()

    def _next(self) -> None:
        group, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
        self._under_way += 1
        unit = self._begin(partial(self._write_all, [one for one, _ in group]))
        unit.add_done_callback(partial(self._ended, group))

    async def _write_all(self, some: Sequence[In], db: AsyncSession) -> Sequence[Out]:
        try:
            return await self._together(db, some, False)
        except DBAPIError as error:  # nothing of it is written
            if is_unavailable(error) and not error.connection_invalidated:
                raise  # it would be the same for each of them
            raise RetryAloneError(range(len(some))) from error

    def _ended(self, group: list[Waiting[In, Out]], unit: Unit[Out]) -> None:
        self._under_way -= 1
        error = None if unit.cancelled() else unit.exception()
        if isinstance(error, RetryAloneError):
            for place in error.which:
                self._write_apart(group[place])
            left = [one for place, one in enumerate(group) if place not in error.which]
            self._waiting[:0] = left
        else:
            _tell(group, unit)
        self._go_on()

    def _write_apart(self, one: Waiting[In, Out]) -> None:
        unit = self._begin(lambda db: self._together(db, [one[0]], True))
        unit.add_done_callback(partial(_tell, [one]))


def _tell(group: list[Waiting[In, Out]], unit: Unit[Out]) -> None:
    """Tell all of a group, as far as they are there, what came of it."""
    error = asyncio.CancelledError() if unit.cancelled() else unit.exception()
    made: Sequence[Any] = [None] * len(group) if error is not None else unit.result()
    for (_, answer), one in zip(group, made, strict=True):
        if answer.done():
            continue
        if error is None:
            answer.set_result(one)
        else:
            answer.set_exception(error)
