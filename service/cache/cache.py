"""Assemble the cache of one application from its parts, and open and close it."""

import logging

from service.cache.circuit_breaker import CircuitBreaker
from service.cache.counters import Counters
from service.cache.dated import DatedValues
from service.cache.invalidation import Invalidation
from service.cache.items import Items
from service.cache.lease import EpochLease
from service.cache.lists import Lists
from service.cache.reader import CacheReader, Sessions
from service.cache.redis_store import RedisStore
from service.cache.state import Epochs
from service.cache.store import MemoryStore, Store
from service.config import Settings
from service.timeouts import LoopTimeout

CLEAR_TIMEOUT_SECONDS = 5.0


class Cache:
    """Cached rows and lists, and the marks of writes: in Redis if configured, else in memory."""

    def __init__(
        self, settings: Settings, logger: logging.Logger, store: Store | None = None
    ) -> None:
        self.store = store or _store(settings)
        self.counters = Counters()
        self.epochs = Epochs(self.counters)
        self.lease = EpochLease(self.store, self.epochs, logger)
        timeout = settings.cache_redis_seconds
        self.writes = Invalidation(self.store, self.epochs, self.counters, timeout)
        self._breaker = CircuitBreaker(self.store.identify, self.counters, logger)
        self.access = CacheReader(
            self.store, self.lease, self._breaker, self.counters, logger, timeout
        )
        self.items = Items(self.access, settings.cache_item_seconds)
        self.lists = Lists(
            self.access,
            self.items,
            settings.cache_pages,
            settings.cache_page_seconds,
            settings.cache_count_seconds,
        )
        self.dated = DatedValues(self.access)

    async def open(self, session: Sessions) -> None:
        """Start to use the cache; the database must be open. Raises SharedCacheError."""
        self.access.session = session
        await self.lease.open()

    async def clear(self) -> int:
        """Delete all values of this epoch; return their number. Raises RedisError or OSError."""
        state = await self.epochs.read()
        if not state.on:
            return 0
        async with LoopTimeout(CLEAR_TIMEOUT_SECONDS):
            return await self.store.sweep(state.prefix)

    async def close(self) -> None:
        """Wait for background work, then close all connections."""
        await self.access.close()
        await self._breaker.close()
        await self.lease.close()
        await self.store.close()


def _store(settings: Settings) -> Store:
    if settings.redis_url is None:
        return MemoryStore(settings.cache_memory_entries)
    deadline = settings.cache_redis_seconds
    if settings.ratelimit_storage_url in {None, settings.redis_url}:  # rate limits share this Redis
        deadline = min(deadline, settings.ratelimit_redis_seconds)
    return RedisStore(settings.redis_url, deadline)
