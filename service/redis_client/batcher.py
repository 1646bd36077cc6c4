"""The Redis client: send all requests of one tick in one write."""

import asyncio
from contextlib import suppress
from contextvars import Context
from functools import partial
from math import ceil
from typing import Any

from redis.asyncio import ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from service.redis_client.commands import GET_MANY, CommandKind, ScriptLoad
from service.redis_client.connection import (
    Callback,
    PendingRequests,
    RedisConnection,
    deliver,
    merge,
    oldest,
)
from service.timeouts import TIMER_SECONDS, LoopTimeout

EARLY_SEND_SIZE = 32  # requests that are sent before the tick ends: Redis works in parallel


class RedisBatcher:
    """Sends requests to one Redis server, on one connection.

    pool: makes the connection. deadline: seconds from `submit` to the reply; when one request
    exceeds it, all requests fail with TimeoutError, and the connection is closed.
    """

    def __init__(self, pool: ConnectionPool, deadline: float) -> None:
        self._pool: Any = pool
        self._deadline = deadline
        self._most_ticks = ceil(deadline / TIMER_SECONDS)
        self._ticks = 0
        self._clock: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context = Context()  # empty, because a batch belongs to many HTTP requests
        self._pending: PendingRequests = {}
        self._number = 0  # of requests in `_pending`
        self._is_due = False  # `send` is scheduled for the end of this tick
        self._opening: asyncio.Task[None] | None = None
        self._connection: RedisConnection | None = None

    def submit(self, kind: CommandKind, request: Any, callback: Callback) -> None:
        """Send a request at the end of this tick. `callback` gets its result or an exception.

        The exceptions are those of `request`. The callback runs in an empty context (contextvars).
        It costs a third of the CPU time of a future.
        """
        if (of_kind := self._pending.get(kind)) is None:
            of_kind = self._pending[kind] = []
        of_kind.append((request, callback, self._ticks))
        self._number += 1
        if not self._is_due:
            self._is_due = True
            if self._loop is None:  # kept, as the lookup is a system call in Python 3.11
                self._loop = asyncio.get_running_loop()
            self._loop.call_soon(self._end_tick, context=self._context)
        elif self._number >= EARLY_SEND_SIZE:
            self.send()

    async def request(self, kind: CommandKind, request: Any) -> Any:
        """Send a request, and return its result. Raises RedisError, OSError or TimeoutError."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.submit(kind, request, partial(_settle, future))
        return await future

    async def load(self, kind: CommandKind) -> None:
        """Connect, and load the scripts of a kind into Redis. Raises like `request`."""
        await self.request(ScriptLoad(tuple(kind.scripts)), None)

    async def close(self) -> None:
        """Wait for the replies to all requests, then close the connection."""
        for _ in range(2):  # the first reply may cause a second call, after a script load
            if self._under_way():
                with suppress(RedisError, OSError):
                    await self.request(GET_MANY, ("octavo",))  # its reply is the last
        self.fail(RedisConnectionError("The Redis client is closed"))
        if self._clock is not None:
            self._clock.cancel()
        self._loop = self._clock = None

    def _under_way(self) -> PendingRequests:
        connection = self._connection
        return merge({} if connection is None else connection.unanswered(), self._pending)

    def _end_tick(self) -> None:
        self._is_due = False
        self.send()

    def send(self) -> None:
        """Send the pending requests, unless too many batches wait. Connect first if necessary."""
        if not self._pending:
            return
        if self._clock is None:
            self._start_clock()
        connection = self._connection
        if connection is None:
            if self._opening is None or self._opening.done():
                self._opening = asyncio.create_task(self._open(), context=Context())
        elif connection.has_room:
            requests, self._pending, self._number = self._pending, {}, 0
            try:
                connection.send(requests)
            except Exception as error:  # an argument that cannot be encoded
                _fail_all(requests, error)

    def _start_clock(self) -> None:
        loop = asyncio.get_running_loop()
        self._clock = loop.call_later(TIMER_SECONDS, self._tick, context=self._context)

    def _tick(self) -> None:
        """Count a timer tick (TIMER_SECONDS), as LoopTimeout does, and check the deadline."""
        self._clock = None
        self._ticks += 1
        since = None if self._connection is None else self._connection.oldest
        if since is None:
            if not self._pending:
                return
            since = oldest(self._pending)
        if self._ticks - since >= self._most_ticks:
            self.fail(TimeoutError())
        else:
            self._start_clock()

    async def _open(self) -> None:
        connection = self._pool.make_connection()  # the pool does not get it back
        try:
            async with LoopTimeout(self._deadline):
                await connection.connect()
        except Exception as error:
            self._opening = None
            self.fail(error)
            await connection.disconnect(nowait=True)
        else:
            self._opening, self._connection = None, RedisConnection(self, connection)
            self.send()

    def fail(self, error: Exception) -> None:
        """Pass an error to all requests, sent or pending, and close the connection."""
        waiting, self._pending, self._number = self._under_way(), {}, 0
        self._leave()
        _fail_all(waiting, error)

    def lost(self, connection: RedisConnection) -> None:
        """Handle a lost connection. If Redis had replied on it, send unanswered requests again."""
        if connection is not self._connection:
            return
        if connection.is_proven:
            self._pending = self._under_way()
            self._connection = None
            self.send()
        else:
            self.fail(RedisConnectionError("Redis closed the connection"))

    def _leave(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.end()


def _fail_all(requests: PendingRequests, error: Exception) -> None:
    for of_kind in requests.values():
        for pending in of_kind:
            deliver(pending, error)


def _settle(future: asyncio.Future[Any], result: Any) -> None:
    if future.done():
        return  # its caller was cancelled
    if isinstance(result, Exception):
        future.set_exception(result)
        future.exception()  # mark it as retrieved: the caller may be cancelled
    else:
        future.set_result(result)
