"""Single flight: at most one reading of a thing is under way in a process."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")


class _Flight:
    task: asyncio.Task[Any]
    begun = False


class SingleFlight:
    """Joins readers to one reading, which never began before any of them came."""

    def __init__(self) -> None:
        self._last: dict[str, _Flight] = {}

    async def read(self, key: str, load: Callable[[], Awaitable[T]]) -> T:
        """Give what `load` gives, to whoever asks before it is called.

        Who comes while it is under way takes part in the next one: what that one saw may be
        older than what the newcomer has a right to.
        """
        flight = self._last.get(key)
        if flight is None or flight.begun:
            before = flight
            flight = self._last[key] = _Flight()
            flight.task = asyncio.create_task(self._run(key, flight, before, load))
            flight.task.add_done_callback(_seen)
        found: T = await asyncio.shield(flight.task)
        return found

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
        """Wait for what is under way."""
        while self._last:
            await asyncio.wait([flight.task for flight in self._last.values()])


def _seen(task: asyncio.Task[Any]) -> None:
    """Look at an error, should nobody have waited for it."""
    if not task.cancelled():
        task.exception()
