"""Asks a Redis: what one tick of the loop wants goes in one write."""

import asyncio
from contextlib import suppress
from contextvars import Context
from functools import partial
from math import ceil
from typing import Any

from redis.asyncio import ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from service.patience import SLEEP, LoopTimeout
from service.redis_client.commands import GET_MANY, CommandKind, ScriptLoad
from service.redis_client.connection import (
    Callback,
    PendingRequests,
    RedisConnection,
    oldest,
    tell,
    together,
)

ENOUGH = 32  # questions, to send them before the tick ends: Redis works while this process reads on


class RedisBatcher:
    """Asks one Redis.

    deadline: seconds; whoever has waited longer gets TimeoutError.
    """

    def __init__(self, pool: ConnectionPool, deadline: float) -> None:
        self._pool: Any = pool
        self._deadline = deadline
        self._patience = ceil(deadline / SLEEP)
        self._ticks = 0
        self._clock: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context = Context()  # what is asked for many is in no request's own
        self._asked: PendingRequests = {}
        self._number = 0  # of questions in it
        self._is_due = False  # what was asked is sent in the next tick
        self._opening: asyncio.Task[None] | None = None
        self._line: RedisConnection | None = None

    def submit(self, kind: CommandKind, what: Any, tell: Callback) -> None:
        """Ask in this tick: `tell` is called with the answer, or what `ask` raises, in no context.

        That costs a third of what a future does.
        """
        if (of_kind := self._asked.get(kind)) is None:
            of_kind = self._asked[kind] = []
        of_kind.append((what, tell, self._ticks))
        self._number += 1
        if not self._is_due:
            self._is_due = True
            if self._loop is None:  # asked for once: in Python 3.11 it is a system call
                self._loop = asyncio.get_running_loop()
            self._loop.call_soon(self._end_tick, context=self._context)
        elif self._number >= ENOUGH:
            self.send()

    async def request(self, kind: CommandKind, what: Any) -> Any:
        """Ask, and wait for the answer. Raises RedisError, OSError, TimeoutError."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.submit(kind, what, partial(_settle, answer))
        return await answer

    async def load(self, kind: CommandKind) -> None:
        """Connect, and tell Redis the scripts of a kind. Raises as `ask`."""
        await self.request(ScriptLoad(tuple(kind.scripts)), None)

    async def close(self) -> None:
        """End the connection, once what is under way has its answer."""
        for _ in range(2):  # a script that had to be told is asked a second time
            if self._under_way():
                with suppress(RedisError, OSError):
                    await self.request(GET_MANY, ("octavo",))  # whose answer comes after theirs
        self.fail(RedisConnectionError("Redis is not asked any more"))
        if self._clock is not None:
            self._clock.cancel()
        self._loop = self._clock = None

    def _under_way(self) -> PendingRequests:
        return together({} if self._line is None else self._line.asked(), self._asked)

    def _end_tick(self) -> None:
        self._is_due = False
        self.send()

    def send(self) -> None:
        """Send what was asked, if there is room for one more batch under way."""
        if not self._asked:
            return
        if self._clock is None:
            self._wind()
        line = self._line
        if line is None:
            if self._opening is None or self._opening.done():
                self._opening = asyncio.create_task(self._open(), context=Context())
        elif line.has_room:
            asked, self._asked, self._number = self._asked, {}, 0
            try:
                line.send(asked)
            except Exception as error:  # what cannot be put into bytes
                _tell_all(asked, error)

    def _wind(self) -> None:
        loop = asyncio.get_running_loop()
        self._clock = loop.call_later(SLEEP, self._tick, context=self._context)

    def _tick(self) -> None:
        """Count as Patience does: while the loop is late, replies that are there are not read."""
        self._clock = None
        self._ticks += 1
        since = None if self._line is None else self._line.oldest
        if since is None:
            if not self._asked:
                return
            since = oldest(self._asked)
        if self._ticks - since >= self._patience:
            self.fail(TimeoutError())
        else:
            self._wind()

    async def _open(self) -> None:
        connection = self._pool.make_connection()  # of its own
        try:
            async with LoopTimeout(self._deadline):
                await connection.connect()
        except Exception as error:
            self._opening = None
            self.fail(error)
            await connection.disconnect(nowait=True)
        else:
            self._opening, self._line = None, RedisConnection(self, connection)
            self.send()

    def fail(self, error: Exception) -> None:
        """Tell all who wait: those queued behind have waited as well."""
        waiting, self._asked, self._number = self._under_way(), {}, 0
        self._leave()
        _tell_all(waiting, error)

    def lost(self, line: RedisConnection) -> None:
        """Hear that a line is broken: if it had been good, that is no outage, and asked anew."""
        if line is not self._line:
            return
        if line.is_proven:
            self._asked = self._under_way()
            self._line = None
            self.send()
        else:
            self.fail(RedisConnectionError("Redis closed the connection"))

    def _leave(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.end()


def _tell_all(asked: PendingRequests, error: Exception) -> None:
    for asks in asked.values():
        for ask in asks:
            tell(ask, error)


def _settle(answer: asyncio.Future[Any], found: Any) -> None:
    if answer.done():
        return  # nobody waits for it any more
    if isinstance(found, Exception):
        answer.set_exception(found)
        answer.exception()  # seen, should its request have ended otherwise
    else:
        answer.set_result(found)
