"""The interface of a cache store, and the store in the memory of one process.

aiocache runs single commands. An atomic step is a Lua script in Redis. In memory it is code that
does not suspend.
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
from service.slices import in_slices

MARK_SECONDS = 30.0  # lifetime of a mark: longer than any write
GENERATION_SECONDS = 86_400.0  # lifetime of a generation


Replied = tuple[str, list[bytes | None]]  # the run id of the store, and the values of the keys


class AnotherStoreError(RedisConnectionError):
    """The store that replied is not the store of the current epoch."""


class Store(ABC):
    """A store of entries. Keys include the prefix of the epoch, unless a method takes `prefix`."""

    def __init__(self, aio: BaseCache) -> None:
        self.aio: Any = aio

    @abstractmethod
    def call(self, keys: Sequence[str], callback: Callable[[Any], None]) -> None:
        """Read keys; call `callback` with `Replied`, or with an error."""

    async def get(self, key: str) -> bytes | None:
        """Return the value of a key."""
        self.expect_store(key)
        value: bytes | None = await self.aio.get(key)
        return value

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the values of keys, all from the same moment."""
        self.expect_store(keys[0])
        values: list[bytes | None] = await self.aio.multi_get(keys)
        return values

    async def add(self, key: str, value: bytes, seconds: float) -> bool:
        """Write the value if the key does not exist. Return whether it was written."""
        self.expect_store(key)
        try:
            await self.aio.add(key, value, ttl=seconds)
        except ValueError:
            return False
        return True

    async def replace(self, key: str, value: bytes, seconds: float, expected: bytes) -> bool:
        """Write the value if the key holds `expected`. Return whether it was written."""
        self.expect_store(key)
        return bool(await self.aio.set(key, value, ttl=seconds, _cas_token=expected))

    @abstractmethod
    async def mark(
        self, prefix: str, keys: Sequence[str], token: str, lists: Sequence[str]
    ) -> None:
        """Mark keys, and the generations of `lists` (kinds), in one step. token: of the write."""

    @abstractmethod
    async def unmark(
        self, prefix: str, keys: Sequence[str], token: str, lists: Sequence[str]
    ) -> None:
        """Delete the content of keys, except marks of other writes, in one step.

        Each kind in `lists` gets a new generation, unless another write still changes its lists.
        """

    @abstractmethod
    async def generation(self, prefix: str, kind: str) -> bytes:
        """Return the generation of a kind's lists, or `W`. Begin one if there is neither."""

    @abstractmethod
    async def lease(self, keys: Sequence[str], lease: bytes, seconds: float) -> list[bool]:
        """Lease the empty keys. Return for each key whether it is leased."""

    @abstractmethod
    async def fill(
        self, values: Sequence[tuple[str, bytes, float]], lease: bytes | None = None
    ) -> int:
        """Write (key, value, seconds) if the key holds `lease` (None: any). Return the count."""

    @abstractmethod
    async def sweep(self, prefix: str) -> int:
        """Delete the values and generations of an epoch. Return the number of values."""

    @abstractmethod
    async def identify(self) -> str:
        """Return the run id of the store. A restarted server has another run id."""

    def expect_store(self, key: str) -> None:  # noqa: B027  (memory has no servers)
        """Require the store whose run id is in `key`. Else commands raise AnotherStoreError."""

    async def close(self) -> None:  # noqa: B027  (memory has none)
        """Close every connection."""


class _Bounded(SimpleMemoryCache):  # type: ignore[misc]  # aiocache has no types
    """aiocache's memory cache with a limit of `entries`: evicts the least recently used value."""

    def __init__(self, entries: int) -> None:
        super().__init__(serializer=NullSerializer(encoding=None), timeout=0)
        self._entries = entries
        self._cache: OrderedDict[str, bytes] = OrderedDict()

    def peek(self, key: str) -> bytes | None:
        """Return the value of a key, and mark it as recently used."""
        value = self._cache.get(key)
        if value is not None:
            self._cache.move_to_end(key)
        return value

    async def _get(self, key: str, encoding: Any = None, _conn: Any = None) -> bytes | None:
        return self.peek(key)

    async def _multi_get(self, keys: Sequence[str], encoding: Any = None, _conn: Any = None) -> Any:
        return [self.peek(key) for key in keys]

    async def _set(self, key: str, *args: Any, **kwargs: Any) -> Any:
        done = await super()._set(key, *args, **kwargs)
        if done:
            self._cache.move_to_end(key)
            if len(self._cache) > self._entries:
                # Only values: writers and readers rely on marks, leases and generations.
                oldest = (k for k, v in self._cache.items() if v.startswith(b"V"))
                await self._delete(next(oldest, key))
        return done


class MemoryStore(Store):
    """The store of one process. Work on a key does not suspend, so it is atomic."""

    def __init__(self, entries: int) -> None:
        super().__init__(_Bounded(entries))
        self.run_id = f"memory-{uuid4().hex}"
        # By kind: the writes under way that change its lists, each with its expiry time.
        self._writers: defaultdict[str, dict[str, float]] = defaultdict(dict)

    def call(self, keys: Sequence[str], callback: Callable[[Any], None]) -> None:
        """Call `callback` at once with the values of keys."""
        callback((self.run_id, [self.aio.peek(key) for key in keys]))

    async def mark(
        self, prefix: str, keys: Sequence[str], token: str, lists: Sequence[str]
    ) -> None:
        """Mark keys, and the lists of kinds."""
        if run_of(prefix) != self.run_id:
            raise AnotherStoreError
        for kind in lists:
            self._writers[kind][token] = time.monotonic() + MARK_SECONDS
            await self.aio.set(prefix + generation_key(kind), b"W", ttl=MARK_SECONDS)
        async for key in in_slices(keys):
            await self.aio.set(prefix + key, MARK + token.encode(), ttl=MARK_SECONDS)

    async def unmark(
        self, prefix: str, keys: Sequence[str], token: str, lists: Sequence[str]
    ) -> None:
        """Delete the content of keys, except marks of other writes."""
        async for key in in_slices(keys):
            value = await self.get(prefix + key)
            if value is not None and (value == MARK + token.encode() or not value.startswith(MARK)):
                await self.aio.delete(prefix + key)
        for kind in lists:
            self._writers[kind].pop(token, None)
            await self._begin(prefix, kind)

    async def generation(self, prefix: str, kind: str) -> bytes:
        """Return the generation of a kind's lists, or `W`. Begin one if there is neither."""
        return await self.get(prefix + generation_key(kind)) or await self._begin(prefix, kind)

    async def _begin(self, prefix: str, kind: str) -> bytes:
        """Begin a generation, or set `W` if a write is under way. Return the new content."""
        now = time.monotonic()
        writers = {token: expiry for token, expiry in self._writers[kind].items() if expiry > now}
        self._writers[kind] = writers
        value = b"W" if writers else new_generation()
        life = MARK_SECONDS if writers else GENERATION_SECONDS
        await self.aio.set(prefix + generation_key(kind), value, ttl=life)
        return value

    async def lease(self, keys: Sequence[str], lease: bytes, seconds: float) -> list[bool]:
        """Lease the empty keys."""
        return [await self.add(key, lease, seconds) async for key in in_slices(keys)]

    async def fill(
        self, values: Sequence[tuple[str, bytes, float]], lease: bytes | None = None
    ) -> int:
        """Write each value whose key holds `lease`; None: write all. Return their number."""
        written = [
            bool(await self.aio.set(key, value, ttl=seconds, _cas_token=lease))
            async for key, value, seconds in in_slices(values)
        ]
        return sum(written)

    async def sweep(self, prefix: str) -> int:
        """Delete the values of an epoch, and its generations: processes keep pages by them."""
        swept = {
            key: value
            for key, value in self.aio._cache.items()
            if key.startswith(prefix) and value.startswith((b"V\n", GENERATION))
        }
        for key in swept:
            await self.aio.delete(key)
        return sum(value.startswith(b"V\n") for value in swept.values())

    async def identify(self) -> str:
        """Return the run id of this process's memory."""
        return self.run_id


def run_of(key: str) -> str:
    """Return the run id that is part of a key or prefix."""
    return key.split(":", 3)[2]
