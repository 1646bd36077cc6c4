"""The store that several processes share: one Redis server, identified by its run id.

Every key contains the run id of its Redis, and every new connection reads the server's run id. A
Redis that was restarted (also from a dump), or another master, counts as another store.
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
from service.cache.store import GENERATION_SECONDS, MARK_SECONDS, AnotherStoreError, Store, run_of
from service.redis_client import GET_MANY, RedisBatcher, Script

FOLDER = files("service.cache")


def _script(*names: str) -> Script:
    """Make a script of the concatenated files."""
    return Script("".join((FOLDER / f"{name}.lua").read_text(encoding="utf-8") for name in names))


MARK, LEASE, FILL, SWEEP = map(_script, ("mark", "lease", "fill", "sweep"))
UNMARK, BEGIN = _script("begin", "unmark"), _script("begin", "generation")
LIFETIMES_MS = (int(GENERATION_SECONDS * 1000), int(MARK_SECONDS * 1000))  # milliseconds
PROBE = "octavo:cache:probe"
POOL_SECONDS = 5.0  # timeout for a free connection; callers have shorter timeouts
SCAN_COUNT = 1_000  # COUNT of each SCAN
_expected_run_id: ContextVar[str | None] = ContextVar("expected_run_id", default=None)  # of Redis


class _Pool(BlockingConnectionPool):
    """A pool that replaces a connection to another Redis than the expected one."""

    async def ensure_connection(self, connection: Any) -> None:
        expected = _expected_run_id.get()
        if connection.is_connected and connection.octavo_run_id != (
            expected or connection.octavo_run_id
        ):
            await connection.disconnect()
        await super().ensure_connection(connection)


async def _greet(connection: Any) -> None:
    """Open a connection, and read the server's run id. Raises AnotherStoreError."""
    await connection.on_connect()
    connection.octavo_run_id = await _read_run_id(connection)
    if _expected_run_id.get() not in {None, connection.octavo_run_id}:
        raise AnotherStoreError("Another Redis replied")


async def _read_run_id(connection: Any) -> str:
    """Return `run_id` and `master_replid` of INFO. Raises AnotherStoreError without a master."""
    lines: dict[str, str] = {}
    for section in ("server", "replication"):
        await connection.send_command("INFO", section)
        reply: bytes = await connection.read_response()
        lines |= dict(line.split(":", 1) for line in reply.decode().splitlines() if ":" in line)
    if lines.get("role") != "master" or "run_id" not in lines:
        raise AnotherStoreError("This Redis is no master, or reports no run id")
    return f"{lines['run_id']}-{lines.get('master_replid', '')}"


class _BatchedRedisCache(RedisCache):  # type: ignore[misc]  # aiocache has no types
    """aiocache's RedisCache; sends all reads of one tick in one write.

    The methods replace aiocache's completely: the cache uses no plugins, timeout or serializer of
    aiocache, and the checks for them take as much CPU time as the read.
    """

    batcher: RedisBatcher

    async def get(self, key: str, *_: Any, **__: Any) -> bytes | None:
        """Return the value of a key."""
        (value,) = await self.multi_get([key])
        return value

    async def multi_get(self, keys: Sequence[str], *_: Any, **__: Any) -> list[bytes | None]:
        """Return the values of keys."""
        values: list[bytes | None]
        run_id, values = await self.batcher.request(GET_MANY, keys)
        if run_id != _expected_run_id.get():
            raise AnotherStoreError("Another Redis replied")
        return values


class RedisStore(Store):
    """A store in Redis, shared by all processes. Methods raise RedisError or OSError.

    deadline: timeout of a read, in seconds.
    """

    def __init__(self, url: str, deadline: float = 1.0) -> None:
        pool: Any = _Pool.from_url(
            url,
            timeout=POOL_SECONDS,
            # A connection that broke while it was idle is no outage.
            retry=Retry(NoBackoff(), 1),
            redis_connect_func=_greet,
        )
        self.pool = pool
        self._batcher = RedisBatcher(pool, deadline)
        super().__init__(
            _BatchedRedisCache(
                serializer=NullSerializer(encoding=None),  # bytes: a lease is compared as it is
                connection_pool_class=lambda **_: pool,
                timeout=0,  # callers have their own timeouts
            )
        )
        self.aio.batcher = self._batcher

    @property
    def batcher(self) -> RedisBatcher:
        """The client that batches commands."""
        return self._batcher

    def call(self, keys: Sequence[str], callback: Callable[[Any], None]) -> None:
        """Read keys, in one write with all commands of this tick."""
        self._batcher.submit(GET_MANY, keys, callback)

    async def mark(
        self, prefix: str, keys: Sequence[str], token: str, lists: Sequence[str]
    ) -> None:
        """Mark keys, and the lists of kinds."""
        arguments = [token, LIFETIMES_MS[1], len(lists)]
        await self._call(MARK, prefix, _within(prefix, lists, keys), arguments)

    async def unmark(
        self, prefix: str, keys: Sequence[str], token: str, lists: Sequence[str]
    ) -> None:
        """Delete the content of keys, except marks of other writes."""
        arguments = [token, new_generation(), *LIFETIMES_MS, len(lists)]
        await self._call(UNMARK, prefix, _within(prefix, lists, keys), arguments)

    async def generation(self, prefix: str, kind: str) -> bytes:
        """Return the generation of a kind's lists, or `W`. Begin one if there is neither."""
        arguments = [new_generation(), *LIFETIMES_MS]
        generation: bytes = await self._call(BEGIN, prefix, _within(prefix, [kind]), arguments)
        return generation

    async def lease(self, keys: Sequence[str], lease: bytes, seconds: float) -> list[bool]:
        """Lease the empty keys."""
        arguments = [lease, int(seconds * 1000)]
        return [bool(reply) for reply in await self._call(LEASE, keys[0], keys, arguments)]

    async def fill(
        self, values: Sequence[tuple[str, bytes, float]], lease: bytes | None = None
    ) -> int:
        """Write each value whose key holds `lease`; None: write all. Return their number."""
        arguments: list[Any] = [lease or b""]
        for _, value, seconds in values:
            arguments += (value, int(seconds * 1000))
        written: int = await self._call(
            FILL, values[0][0], [key for key, _, _ in values], arguments
        )
        return written

    async def sweep(self, prefix: str) -> int:
        """Delete the values and generations of an epoch, in batches; return the number of values.

        Between two batches Redis serves other clients.
        """
        scanned = self._scan(prefix)
        return sum([await self._call(SWEEP, prefix, keys, ()) async for keys in scanned])

    async def names(self, prefix: str) -> list[str]:
        """Return the keys of an epoch, without the prefix."""
        batches = [keys async for keys in self._scan(prefix)]
        return [key.decode().removeprefix(prefix) for keys in batches for key in keys]

    def expect_store(self, key: str) -> None:
        """Require the Redis whose run id is in `key`, in this task."""
        _expected_run_id.set(run_of(key))

    async def _call(
        self, script: Script, key: str, keys: Sequence[Any], arguments: Sequence[Any]
    ) -> Any:
        """Call a script in the Redis of `key`. Raises AnotherStoreError.

        In another Redis the script has no visible effect: every key contains the expected run id.
        """
        run_id, reply = await self._batcher.request(script, (keys, arguments))
        if run_id != run_of(key):
            raise AnotherStoreError("Another Redis replied")
        return reply

    async def _scan(self, prefix: str) -> AsyncIterator[list[bytes]]:
        self.expect_store(prefix)
        cursor = None
        while cursor != 0:
            cursor, keys = await self.aio.client.scan(cursor or 0, f"{prefix}*", SCAN_COUNT)
            if keys:
                yield keys

    async def identify(self) -> str:
        """Return the run id of the Redis that replies. Raises RedisError if it refuses writes."""
        _expected_run_id.set(None)
        connection = await self.pool.get_connection()
        try:
            connection.octavo_run_id = run_id = await _read_run_id(connection)
            await connection.send_command("SET", PROBE, "1", "PX", "1000")
            await connection.read_response()
            return run_id
        finally:
            await self.pool.release(connection)

    async def close(self) -> None:
        """Close every connection."""
        await self._batcher.close()
        await self.aio.client.aclose()


def _within(prefix: str, lists: Sequence[str], keys: Sequence[str] = ()) -> list[str]:
    """Return keys with the prefix: the two keys of each kind in `lists`, then `keys`."""
    of_lists = (key for kind in lists for key in (generation_key(kind), writers_key(kind)))
    return [prefix + key for key in (*of_lists, *keys)]
