"""Timeouts and cancellation on an event loop that may lag."""

import asyncio
from math import ceil
from types import TracebackType
from typing import Any

TIMER_SECONDS = 0.002  # seconds


class LoopTimeout:
    """An async context manager that raises TimeoutError after `seconds`, counted in timer ticks.

    Each timer tick lasts TIMER_SECONDS. While the event loop lags, it reads no responses and
    runs no timers, so the lag counts as one tick. `asyncio.timeout` would mistake the lag for a
    peer that does not reply. A second `async with` continues with the remaining time.
    """

    def __init__(self, seconds: float) -> None:
        self._left = ceil(seconds / TIMER_SECONDS)
        self._timeout: asyncio.Timeout
        self._handle: asyncio.TimerHandle

    async def __aenter__(self) -> None:
        if self._left <= 0:
            raise TimeoutError
        self._timeout = asyncio.timeout(None)
        await self._timeout.__aenter__()
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_later(TIMER_SECONDS, self._tick)

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
            self._handle = self._loop.call_later(TIMER_SECONDS, self._tick)
        else:
            self._timeout.reschedule(self._loop.time())


async def cancel_and_wait(task: asyncio.Task[Any]) -> None:
    """Cancel a task every 0.1 s until it ends: redis-py sometimes swallows a cancellation."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.1)
    if not task.cancelled():
        task.exception()  # mark the exception as retrieved, so that asyncio does not log it
