"""Single flight: a process runs at most one load at a time for a key."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")


class _Flight:
    task: asyncio.Task[Any]
    begun = False


class SingleFlight:
    """Lets callers share a load. A caller never gets a load that began before the call."""

    def __init__(self) -> None:
        self._last: dict[str, _Flight] = {}

    async def read(self, key: str, load: Callable[[], Awaitable[T]]) -> T:
        """Return the result of `load`, shared by all callers that arrive before it begins.

        A caller that arrives while a load is running waits for the next load: the running load
        may have read data that are too old for this caller.
        """
        flight = self._last.get(key)
        if flight is None or flight.begun:
            before = flight
            flight = self._last[key] = _Flight()
            flight.task = asyncio.create_task(self._run(key, flight, before, load))
            flight.task.add_done_callback(_seen)
        result: T = await asyncio.shield(flight.task)
        return result

    async def _run(
        self,
        key: str,
        flight: _Flight,
        before: _Flight | None,
        load: Callable[[], Awaitable[Any]],
    ) -> Any:
        try:
            if before is not None:
                await asyncio.wait({before.task})
            flight.begun = True
            return await load()
        finally:
            if self._last.get(key) is flight:
                del self._last[key]

    async def close(self) -> None:
        """Wait for the loads that are under way."""
        while self._last:
            await asyncio.wait([flight.task for flight in self._last.values()])


def _seen(task: asyncio.Task[Any]) -> None:
    """Retrieve the error, so that asyncio does not log it if no caller waits."""
    if not task.cancelled():
        task.exception()
