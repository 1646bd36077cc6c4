"""Timeouts and cancellation on an event loop that may lag."""

import asyncio
from math import ceil
from types import TracebackType
from typing import Any

SLEEP = 0.002


class LoopTimeout:
    """`async with`: raises TimeoutError after `seconds`, counted in short sleeps of the loop.

    While the loop lags, it does not read responses that have arrived. A plain timeout would
    mistake this lag for a silent peer. Entered again, the timeout continues with the rest.
    """

    def __init__(self, seconds: float) -> None:
        self._left = ceil(seconds / SLEEP)
        self._timeout: asyncio.Timeout
        self._handle: asyncio.TimerHandle

    async def __aenter__(self) -> None:
        if self._left <= 0:
            raise TimeoutError
        self._timeout = asyncio.timeout(None)
        await self._timeout.__aenter__()
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_later(SLEEP, self._tick)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._handle.cancel()
        await self._timeout.__aexit__(kind, error, traceback)

    def _tick(self) -> None:
        self._left -= 1
        if self._left > 0:
            self._handle = self._loop.call_later(SLEEP, self._tick)
        else:
            self._timeout.reschedule(self._loop.time())


async def cancel_and_wait(task: asyncio.Task[Any]) -> None:
    """Cancel a task until it has ended: redis-py sometimes swallows a cancellation."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.1)
    if not task.cancelled():
        task.exception()  # retrieved, so that asyncio does not report it
