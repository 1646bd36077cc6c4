"""Where entries are: what the protocol asks of Redis, and of a process's own memory.

Single commands are aiocache's; what must happen in one step is a script in Redis, and a few lines
without `await` in memory.
"""

import time
from abc import ABC, abstractmethod
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

from aiocache import BaseCache, SimpleMemoryCache
from aiocache.serializers import NullSerializer
from redis.exceptions import ConnectionError as RedisConnectionError

from service.cache.entries import GENERATION, MARK, generation_key, new_generation

MARK_SECONDS = 30.0
GENERATION_SECONDS = 86_400.0


Replied = tuple[str, list[bytes | None]]  # who, by its run id, and what stands under the keys


class AnotherStoreError(RedisConnectionError):
    """Who answers is not the store that the cache is in."""


class Store(ABC):
    """Keys are whole, where no `prefix` is given: that of the epoch that they belong to."""

    def __init__(self, aio: BaseCache) -> None:
        self.aio: Any = aio

    @abstractmethod
    def call(self, keys: Sequence[str], tell: Callable[[Any], None]) -> None:
        """Tell who replies, and what stands under keys: `Replied`, or the error there is."""

    async def get(self, key: str) -> bytes | None:
        """Give what stands under a key."""
        self.mean(key)
        found: bytes | None = await self.aio.get(key)
        return found

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """Give what stands under keys, all at one instant."""
        self.mean(keys[0])
        found: list[bytes | None] = await self.aio.multi_get(keys)
        return found

    async def add(self, key: str, value: bytes, seconds: float) -> bool:
        """Write where nothing stands."""
        self.mean(key)
        try:
            await self.aio.add(key, value, ttl=seconds)
        except ValueError:
            return False
        return True

    async def replace(self, key: str, value: bytes, seconds: float, expected: bytes) -> bool:
        """Write where `expected` stands."""
        self.mean(key)
        return bool(await self.aio.set(key, value, ttl=seconds, _cas_token=expected))

    @abstractmethod
    async def mark(
        self, prefix: str, keys: Sequence[str], token: str, lists: Sequence[str]
    ) -> None:
        """Mark keys, and the lists of kinds, in one step: a write is under way."""

    @abstractmethod
    async def unmark(
        self, prefix: str, keys: Sequence[str], token: str, lists: Sequence[str]
    ) -> None:
        """Clear a write's marks, and whatever is no mark, in one step.

        Each kind whose lists change gets a new generation, unless another write changes them.
        """

    @abstractmethod
    async def generation(self, prefix: str, kind: str) -> bytes:
        """Give the generation of a kind's lists; a new one if there is none and nobody writes."""

    @abstractmethod
    async def lease(self, keys: Sequence[str], lease: bytes, seconds: float) -> list[bool]:
        """Lease the keys where nothing stands: which of them."""

    @abstractmethod
    async def fill(
        self, values: Sequence[tuple[str, bytes, float]], lease: bytes | None = None
    ) -> int:
        """Write (key, value, seconds) where `lease` stands; without one anywhere: how many."""

    @abstractmethod
    async def sweep(self, prefix: str) -> int:
        """Delete every value and generation of an epoch, no mark and no lease: how many values."""

    @abstractmethod
    async def identify(self) -> str:
        """Name this very store: another run is another store."""

    def mean(self, key: str) -> None:  # noqa: B027  (memory is there alone)
        """Speak to the store of a key alone. Raises AnotherStoreError, at latest when asked."""

    async def close(self) -> None:  # noqa: B027  (memory has none)
        """End every connection."""


class _Bounded(SimpleMemoryCache):  # type: ignore[misc]  # aiocache has no types
    """aiocache's memory, of which the least used goes when it is full."""

    def __init__(self, entries: int) -> None:
        super().__init__(serializer=NullSerializer(encoding=None), timeout=0)
        self._entries = entries
        self._cache: OrderedDict[str, bytes] = OrderedDict()

    def peek(self, key: str) -> bytes | None:
        """Give what stands under a key."""
        found = self._cache.get(key)
        if found is not None:
            self._cache.move_to_end(key)
        return found

    async def _get(self, key: str, encoding: Any = None, _conn: Any = None) -> bytes | None:
        return self.peek(key)

    async def _multi_get(self, keys: Sequence[str], encoding: Any = None, _conn: Any = None) -> Any:
        return [self.peek(key) for key in keys]

    async def _set(self, key: str, *args: Any, **kwargs: Any) -> Any:
        done = await super()._set(key, *args, **kwargs)
        if done:
            self._cache.move_to_end(key)
            if len(self._cache) > self._entries:
                # Values alone: marks, leases and the generation guard somebody.
                oldest = (k for k, v in self._cache.items() if v.startswith(b"V"))
                await self._delete(next(oldest, key))
        return done


class MemoryStore(Store):
    """The store of one process. Nothing in it waits, so that each method is one step."""

    def __init__(self, entries: int) -> None:
        super().__init__(_Bounded(entries))
        self.run_id = f"memory-{uuid4().hex}"
        # The writes under way that change a kind's lists, each with its own end.
        self._writers: defaultdict[str, dict[str, float]] = defaultdict(dict)

    def call(self, keys: Sequence[str], tell: Callable[[Any], None]) -> None:
        """Tell at once what stands under keys."""
        tell((self.run_id, [self.aio.peek(key) for key in keys]))

    async def mark(
        self, prefix: str, keys: Sequence[str], token: str, lists: Sequence[str]
    ) -> None:
        """Mark keys, and the lists of kinds."""
        if run_of(prefix) != self.run_id:
            raise AnotherStoreError
        for kind in lists:
            self._writers[kind][token] = time.monotonic() + MARK_SECONDS
            await self.aio.set(prefix + generation_key(kind), b"W", ttl=MARK_SECONDS)
        for key in keys:
            await self.aio.set(prefix + key, MARK + token.encode(), ttl=MARK_SECONDS)

    async def unmark(
        self, prefix: str, keys: Sequence[str], token: str, lists: Sequence[str]
    ) -> None:
        """Clear a write's marks, and whatever is no mark."""
        for key in keys:
            value = await self.get(prefix + key)
            if value is not None and (value == MARK + token.encode() or not value.startswith(MARK)):
                await self.aio.delete(prefix + key)
        for kind in lists:
            self._writers[kind].pop(token, None)
            await self._begin(prefix, kind)

    async def generation(self, prefix: str, kind: str) -> bytes:
        """Give the generation of a kind's lists; a new one if there is none and nobody writes."""
        return await self.get(prefix + generation_key(kind)) or await self._begin(prefix, kind)

    async def _begin(self, prefix: str, kind: str) -> bytes:
        """Begin a generation, unless a write is under way: also where the marks were lost."""
        now = time.monotonic()
        writers = {token: end for token, end in self._writers[kind].items() if end > now}
        self._writers[kind] = writers
        value = b"W" if writers else new_generation()
        life = MARK_SECONDS if writers else GENERATION_SECONDS
        await self.aio.set(prefix + generation_key(kind), value, ttl=life)
        return value

    async def lease(self, keys: Sequence[str], lease: bytes, seconds: float) -> list[bool]:
        """Lease the keys where nothing stands."""
        return [await self.add(key, lease, seconds) for key in keys]

    async def fill(
        self, values: Sequence[tuple[str, bytes, float]], lease: bytes | None = None
    ) -> int:
        """Write values where `lease` stands; without one anywhere."""
        written = [
            bool(await self.aio.set(key, value, ttl=seconds, _cas_token=lease))
            for key, value, seconds in values
        ]
        return sum(written)

    async def sweep(self, prefix: str) -> int:
        """Delete every value of an epoch, and every generation: processes keep pages of it."""
        swept = {
            key: value
            for key, value in self.aio._cache.items()
            if key.startswith(prefix) and value.startswith((b"V\n", GENERATION))
        }
        for key in swept:
            await self.aio.delete(key)
        return sum(value.startswith(b"V\n") for value in swept.values())

    async def identify(self) -> str:
        """Name this process's memory."""
        return self.run_id


def run_of(key: str) -> str:
    """Give the run id of the store that a key belongs to."""
    return key.split(":", 3)[2]
