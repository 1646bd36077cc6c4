"""The store of many processes: one Redis, and none but the one that is meant.

Every key says which Redis it belongs to, and every connection asks the server who it is when it
is opened. A Redis that was started again, from whatever dump, or another master, is another one.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextvars import ContextVar
from importlib.resources import files
from typing import Any

from aiocache import RedisCache
from aiocache.serializers import NullSerializer
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from service.cache.entries import generation_key, new_generation, writers_key
from service.cache.store import (
    GENERATION_SECONDS,
    MARK_SECONDS,
    AnotherStoreError,
    Store,
    run_of,
)
from service.redis_client import GET_MANY, RedisBatcher, Script

ROOM = files("service.cache")


def _script(*names: str) -> Script:
    """Make a script of files, one after the other."""
    return Script("".join((ROOM / f"{name}.lua").read_text(encoding="utf-8") for name in names))


MARK, LEASE, FILL, SWEEP = map(_script, ("mark", "lease", "fill", "sweep"))
UNMARK, BEGIN = _script("begin", "unmark"), _script("begin", "generation")
LIVES = (int(GENERATION_SECONDS * 1000), int(MARK_SECONDS * 1000))
PROBE = "octavo:cache:probe"
POOL_SECONDS = 5.0  # wait for a free connection; whoever asks is less patient
AT_ONCE = 1_000
_meant: ContextVar[str | None] = ContextVar("meant", default=None)  # the Redis, by its run id


class _Pool(BlockingConnectionPool):
    """Gives connections to the Redis that is meant alone."""

    async def ensure_connection(self, connection: Any) -> None:
        meant = _meant.get()
        if connection.is_connected and connection.octavo_run_id != (
            meant or connection.octavo_run_id
        ):
            await connection.disconnect()
        await super().ensure_connection(connection)


async def _greet(connection: Any) -> None:
    """Open a connection, and ask who answers."""
    await connection.on_connect()
    connection.octavo_run_id = await _ask_who(connection)
    if _meant.get() not in {None, connection.octavo_run_id}:
        raise AnotherStoreError("Another Redis answers")


async def _ask_who(connection: Any) -> str:
    """Name the server, and the history of its data."""
    lines: dict[str, str] = {}
    for section in ("server", "replication"):
        await connection.send_command("INFO", section)
        told: bytes = await connection.read_response()
        lines |= dict(line.split(":", 1) for line in told.decode().splitlines() if ":" in line)
    if lines.get("role") != "master" or "run_id" not in lines:
        raise AnotherStoreError("This Redis is no master, or does not say who it is")
    return f"{lines['run_id']}-{lines.get('master_replid', '')}"


class _Wired(RedisCache):  # type: ignore[misc]  # aiocache has no types
    """aiocache's Redis, of which one tick's reads go in one write.

    They are overridden as a whole: plugins, a time-out and a serializer are not used here, and
    asking for them costs as much as the read.
    """

    batcher: RedisBatcher

    async def get(self, key: str, *_: Any, **__: Any) -> bytes | None:
        """Give what stands under a key."""
        (found,) = await self.multi_get([key])
        return found

    async def multi_get(self, keys: Sequence[str], *_: Any, **__: Any) -> list[bytes | None]:
        """Give what stands under keys."""
        found: list[bytes | None]
        who, found = await self.batcher.request(GET_MANY, keys)
        if who != _meant.get():
            raise AnotherStoreError("Another Redis answers")
        return found


class RedisStore(Store):
    """Entries in Redis, for every process that uses it. Raises RedisError or OSError.

    deadline: how long whatever reads waits, in seconds.
    """

    def __init__(self, url: str, deadline: float = 1.0) -> None:
        pool: Any = _Pool.from_url(
            url,
            timeout=POOL_SECONDS,
            # One connection that broke while it was idle is no outage.
            retry=Retry(NoBackoff(), 1),
            redis_connect_func=_greet,
        )
        self.pool = pool
        self._batcher = RedisBatcher(pool, deadline)
        super().__init__(
            _Wired(
                serializer=NullSerializer(encoding=None),  # bytes: a lease is compared as it is
                connection_pool_class=lambda **_: pool,
                timeout=0,  # patience is counted by whoever asks
            )
        )
        self.aio.batcher = self._batcher

    @property
    def batcher(self) -> RedisBatcher:
        """The way to it."""
        return self._batcher

    def call(self, keys: Sequence[str], tell: Callable[[Any], None]) -> None:
        """Ask for what stands under keys, in one write with all else of this tick."""
        self._batcher.submit(GET_MANY, keys, tell)

    async def mark(
        self, prefix: str, keys: Sequence[str], token: str, lists: Sequence[str]
    ) -> None:
        """Mark keys, and the lists of kinds."""
        arguments = [token, LIVES[1], len(lists)]
        await self._call(MARK, prefix, _within(prefix, lists, keys), arguments)

    async def unmark(
        self, prefix: str, keys: Sequence[str], token: str, lists: Sequence[str]
    ) -> None:
        """Clear a write's marks, and whatever is no mark."""
        arguments = [token, new_generation(), *LIVES, len(lists)]
        await self._call(UNMARK, prefix, _within(prefix, lists, keys), arguments)

    async def generation(self, prefix: str, kind: str) -> bytes:
        """Give the generation of a kind's lists; a new one if there is none and nobody writes."""
        arguments = [new_generation(), *LIVES]
        generation: bytes = await self._call(BEGIN, prefix, _within(prefix, [kind]), arguments)
        return generation

    async def lease(self, keys: Sequence[str], lease: bytes, seconds: float) -> list[bool]:
        """Lease the keys where nothing stands."""
        told = [lease, int(seconds * 1000)]
        return [bool(one) for one in await self._call(LEASE, keys[0], keys, told)]

    async def fill(
        self, values: Sequence[tuple[str, bytes, float]], lease: bytes | None = None
    ) -> int:
        """Write values where `lease` stands; without one anywhere."""
        told: list[Any] = [lease or b""]
        for _, value, seconds in values:
            told += (value, int(seconds * 1000))
        written: int = await self._call(FILL, values[0][0], [key for key, _, _ in values], told)
        return written

    async def sweep(self, prefix: str) -> int:
        """Delete every value of an epoch, some at a time: others are served between."""
        scanned = self._scan(prefix)
        return sum([await self._call(SWEEP, prefix, keys, ()) async for keys in scanned])

    async def names(self, prefix: str) -> list[str]:
        """Name what is there of an epoch."""
        found = [keys async for keys in self._scan(prefix)]
        return [key.decode().removeprefix(prefix) for keys in found for key in keys]

    def mean(self, key: str) -> None:
        """Speak to the Redis of a key from now on, in this task."""
        _meant.set(run_of(key))

    async def _call(
        self, script: Script, key: str, keys: Sequence[Any], told: Sequence[Any]
    ) -> Any:
        """Call a script about the epoch of `key`.

        In another Redis it would do nothing that anybody sees: every key says whose it is.
        """
        who, reply = await self._batcher.request(script, (keys, told))
        if who != run_of(key):
            raise AnotherStoreError("Another Redis answers")
        return reply

    async def _scan(self, prefix: str) -> AsyncIterator[list[bytes]]:
        self.mean(prefix)
        cursor = None
        while cursor != 0:
            cursor, keys = await self.aio.client.scan(cursor or 0, f"{prefix}*", AT_ONCE)
            if keys:
                yield keys

    async def identify(self) -> str:
        """Name the Redis that answers, if it can be written to."""
        _meant.set(None)
        connection = await self.pool.get_connection()
        try:
            connection.octavo_run_id = run_id = await _ask_who(connection)
            await connection.send_command("SET", PROBE, "1", "PX", "1000")
            await connection.read_response()
            return run_id
        finally:
            await self.pool.release(connection)

    async def close(self) -> None:
        """End every connection."""
        await self._batcher.close()
        await self.aio.client.aclose()


def _within(prefix: str, lists: Sequence[str], keys: Sequence[str] = ()) -> list[str]:
    """Give whole keys: the generation and the writers of each kind, then the others."""
    of_lists = (key for kind in lists for key in (generation_key(kind), writers_key(kind)))
    return [prefix + key for key in (*of_lists, *keys)]
