"""Group commit: what many ask to have written at one time goes into one transaction.

A transaction costs more than a row of it does: the marks, the commit, triggers once a statement.
While some are under way, those who come wait, and go together into the next.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from service.db_errors import may_be_tried_again

Given = TypeVar("Given")
Made = TypeVar("Made")
Together = Callable[[AsyncSession, Sequence[Given]], Awaitable[Sequence[Made]]]
Unit = asyncio.Task[Sequence[Made]]
Begin = Callable[[Callable[[AsyncSession], Awaitable[Sequence[Made]]]], Unit[Made]]
Waiting = tuple[Given, asyncio.Future[Made]]

UNDER_WAY = 2  # transactions: one is worked at here while the database works at the other
MOST = 64  # in one
SLOW_SECONDS = 0.1  # after which another begins all the same: those may be waiting for a lock


class ApartError(Exception):
    """Some cannot be written together: each has to be written, or refused, alone."""


class GroupCommit(Generic[Given, Made]):
    """Gathers what is to be written.

    begin: begins a transaction, which ends whoever waits for it.
    together: writes some, and gives what came of each in their order. Raises ApartError.
    """

    def __init__(self, begin: Begin[Made], together: Together[Given, Made]) -> None:
        self._begin = begin
        self._together = together
        self._waiting: list[Waiting[Given, Made]] = []
        self._under_way = 0
        self._clock: asyncio.TimerHandle | None = None

    async def write(self, one: Given) -> Made:
        """Write one, by itself or with others, and give what came of it."""
        answer: asyncio.Future[Made] = asyncio.get_running_loop().create_future()
        self._waiting.append((one, answer))
        self._go_on()
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
        self._write(group)

    def _write(self, group: list[Waiting[Given, Made]]) -> None:
        self._under_way += 1
        unit = self._begin(partial(self._work, [one for one, _ in group]))
        unit.add_done_callback(partial(self._ended, group))

    async def _work(self, some: Sequence[Given], db: AsyncSession) -> Sequence[Made]:
        try:
            return await self._together(db, some)
        except DBAPIError as error:  # nothing of it is written: see who it is that cannot be
            if len(some) == 1 or may_be_tried_again(error):
                raise
            raise ApartError from error

    def _ended(self, group: list[Waiting[Given, Made]], unit: Unit[Made]) -> None:
        self._under_way -= 1
        error: BaseException | None = (
            asyncio.CancelledError() if unit.cancelled() else unit.exception()
        )
        if isinstance(error, ApartError):
            for one in group:
                self._write([one])
        elif error is not None:
            for _, answer in group:
                if not answer.done():
                    answer.set_exception(error)
        else:
            for (_, answer), made in zip(group, unit.result(), strict=True):
                if not answer.done():
                    answer.set_result(made)
        self._go_on()
