"""How long to wait for somebody else, on a loop that may be late itself."""

import asyncio
from math import ceil
from types import TracebackType
from typing import Any, cast

SLEEP = 0.002


class Patience:
    """`async with`: TimeoutError after `seconds`, counted in short sleeps of the loop.

    While the loop itself is late, an answer that has long been there is not read either: a plain
    time-out would take its own lateness for a silence of the other side. Entered again, it goes
    on with what is left. It cancels as asyncio.timeout does, which costs twice as much.
    """

    _task: asyncio.Task[Any]
    _handle: asyncio.TimerHandle
    _cancellations = 0  # of the task, when it was entered
    _is_over = False

    def __init__(self, seconds: float, sleep: float = SLEEP) -> None:
        self._left = ceil(seconds / sleep)
        self._sleep = sleep

    async def __aenter__(self) -> None:
        if self._left <= 0:
            raise TimeoutError
        self._task = cast(asyncio.Task[Any], asyncio.current_task())
        self._cancellations = self._task.cancelling()
        self._loop = self._task.get_loop()
        self._handle = self._loop.call_later(self._sleep, self._tick)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._handle.cancel()
        if self._is_over:
            self._is_over = False
            is_ours = self._task.uncancel() <= self._cancellations
            if is_ours and kind is not None and issubclass(kind, asyncio.CancelledError):
                raise TimeoutError from error

    def _tick(self) -> None:
        self._left -= 1
        if self._left > 0:
            self._handle = self._loop.call_later(self._sleep, self._tick)
        else:
            self._is_over = True
            self._task.cancel()


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel a task until it has ended: redis-py takes a cancellation for its own now and then."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.1)
    if not task.cancelled():
        task.exception()  # seen here
