"""Read values that writes do not invalidate: each may be as old as its lifetime.

Such a value is outside the promise of the cache, and its response must say so.
"""

from collections.abc import Awaitable, Callable

from sqlalchemy.ext.asyncio import AsyncSession

from service.cache.entries import Entry, read
from service.cache.items import Status
from service.cache.reader import CacheReader
from service.timeouts import LoopTimeout


class DatedValues:
    """Reads values by name, through the cache or from the database."""

    def __init__(self, reader: CacheReader) -> None:
        self._reader = reader

    async def read(
        self,
        name: str,
        seconds: float,
        load: Callable[[AsyncSession], Awaitable[bytes]],
        *,
        bypass: bool = False,
    ) -> tuple[bytes, Status]:
        """Return a value that is at most `seconds` old (0: not cached), and the status.

        load: reads the value from the database. `bypass`: read the database. Callers of one process
        share a load. Raises TimeoutError, as `CacheReader.sql` does.
        """
        reader = self._reader
        state = reader.enter() if seconds and not bypass else None
        if state is None:
            return await reader.sql(name, load), reader.count("bypass")
        key = f"{state.prefix}dated:{name}"
        try:
            async with LoopTimeout(reader.timeout):
                entry = read(await reader.store.get(key), name)
        except reader.failures as error:
            reader.failed(error)
            return await reader.sql(name, load), reader.count("bypass")
        if entry is not None:
            return entry.body, reader.count("hit")
        body = await reader.sql(name, load)
        reader.in_background(self._fill(key, Entry(b"", body).write(name), seconds))
        return body, reader.count("miss")

    async def _fill(self, key: str, value: bytes, seconds: float) -> None:
        self._reader.counters.fills += await self._reader.store.fill([(key, value, seconds)])
