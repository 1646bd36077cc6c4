"""The connection to Redis: several batches are under way, also when it breaks."""

import asyncio
import random
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from redis.asyncio import ConnectionPool, Redis
from redis.exceptions import RedisError

from service.redis_client import GET_MANY, RedisBatcher, Script
from service.redis_client.connection import MAX_UNANSWERED_BATCHES
from service.timeouts import TIMER_SECONDS, LoopTimeout
from tests.proxies import Proxy

SHORT = 2.0  # the deadline in seconds where a request expires
KEYS = [f"octavo:test:batcher:{n}" for n in range(3 * MAX_UNANSWERED_BATCHES)]


@pytest.fixture
async def proxy(redis_url: str) -> AsyncIterator[Proxy]:
    """A proxy to Redis, in which the value of each key is its name."""
    async with Redis.from_url(redis_url) as client:
        await client.mset({key: key for key in KEYS})
        port = int(redis_url.split(":")[2].partition("/")[0])
        backend: Any = SimpleNamespace(port=port)
        proxy = Proxy(backend, random.Random(1))
        try:
            await proxy.turn("pass")
            yield proxy
        finally:
            await proxy.close()
            await client.delete(*KEYS)


@pytest.fixture
def deadline() -> float:
    """Seconds that a request may wait. No request expires on a busy machine."""
    return 60.0


@pytest.fixture
async def batcher(proxy: Proxy, deadline: float) -> AsyncIterator[Any]:
    """A batcher behind that proxy."""
    client = RedisBatcher(
        ConnectionPool.from_url(f"redis://127.0.0.1:{proxy.port}/0"), deadline=deadline
    )
    try:
        yield client
    finally:
        await proxy.turn("pass")
        await client.close()


def connection_of(batcher: Any) -> Any:
    """Return the open connection of a batcher, or None."""
    return batcher._connection  # private: no public state shows which connection is used


async def request_all(batcher: Any) -> list[asyncio.Task[Any]]:
    """Request each key in a tick of its own."""
    tasks = []
    for key in KEYS:
        tasks.append(asyncio.create_task(batcher.request(GET_MANY, (key,))))
        await asyncio.sleep(0.001)
    return tasks


async def outcomes(tasks: list[asyncio.Task[Any]]) -> list[Any]:
    """Wait for all, and return the values, or the types of errors."""
    replies: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
    return [
        type(reply) if isinstance(reply, Exception) else reply[1][0].decode() for reply in replies
    ]


async def test_several_batches_are_under_way_at_once(batcher: Any, proxy: Proxy) -> None:
    await batcher.request(GET_MANY, KEYS)
    await proxy.turn("hold")
    tasks = await request_all(batcher)
    batches = connection_of(batcher)._batches  # private: no public count of batches under way
    assert len(batches) == MAX_UNANSWERED_BATCHES
    assert not any(task.done() for task in tasks)
    await proxy.turn("pass")
    assert await outcomes(tasks) == KEYS


@pytest.mark.parametrize("deadline", [SHORT])
async def test_requests_on_a_broken_connection_are_sent_again(batcher: Any, proxy: Proxy) -> None:
    await batcher.request(GET_MANY, KEYS)
    await proxy.turn("hold")
    tasks = await request_all(batcher)
    await proxy.sever()
    await proxy.turn("pass")
    assert await outcomes(tasks) == KEYS
    connection = connection_of(batcher)
    await asyncio.sleep(1.5 * SHORT)  # on the old connection the requests had no reply
    assert await outcomes(await request_all(batcher)) == KEYS
    assert connection_of(batcher) is connection


@pytest.mark.parametrize("deadline", [SHORT])
async def test_a_request_that_is_sent_again_keeps_its_deadline(batcher: Any, proxy: Proxy) -> None:
    """Most of the deadline, counted in ticks of the loop, has passed before the retry."""
    await batcher.request(GET_MANY, KEYS)
    await proxy.turn("hold")
    tasks = await request_all(batcher)
    for _ in range(int(0.8 * SHORT / TIMER_SECONDS)):
        await asyncio.sleep(TIMER_SECONDS)
    assert not any(task.done() for task in tasks)
    await proxy.turn("mute")
    await proxy.sever()
    async with LoopTimeout(0.9 * SHORT):
        assert set(await outcomes(tasks)) == {TimeoutError}


async def test_closing_waits_for_all_requests(batcher: Any, proxy: Proxy) -> None:
    script = Script(f"return 1 -- {random.random()}")  # it has to be loaded, and called again
    await batcher.request(GET_MANY, KEYS)
    await proxy.turn("hold")
    tasks = [asyncio.create_task(batcher.request(script, ((KEYS[0],), ())))]
    await asyncio.sleep(0.01)
    closed = asyncio.create_task(batcher.close())
    await asyncio.sleep(0.01)
    await proxy.turn("pass")
    while not closed.done():
        tasks.append(asyncio.create_task(batcher.request(GET_MANY, (KEYS[0],))))
        await asyncio.sleep(0)
    _, waiting = await asyncio.wait(tasks, timeout=60)
    assert not waiting, "a request during the close has a result as well"
    assert tasks[0].exception() is None


async def test_a_connection_that_never_replied_is_an_outage(batcher: Any, proxy: Proxy) -> None:
    tasks = await request_all(batcher)
    assert await outcomes(tasks) == KEYS
    await proxy.turn("cut")
    tasks = await request_all(batcher)
    assert all(issubclass(error, RedisError) for error in await outcomes(tasks))
    await proxy.turn("pass")
    assert await outcomes(await request_all(batcher)) == KEYS


@pytest.mark.parametrize("deadline", [SHORT])
async def test_a_silent_redis_fails_all_waiting_requests(batcher: Any, proxy: Proxy) -> None:
    await batcher.request(GET_MANY, KEYS)
    await proxy.turn("mute")
    assert set(await outcomes(await request_all(batcher))) == {TimeoutError}
    await proxy.turn("pass")
    assert await outcomes(await request_all(batcher)) == KEYS


async def test_unknown_scripts_are_loaded_between_requests(batcher: Any, proxy: Proxy) -> None:
    script = Script(f"return redis.call('GET', KEYS[1]) -- {random.random()}")  # a new script
    await proxy.turn("hold")
    called = asyncio.create_task(batcher.request(script, ((KEYS[0],), ())))
    tasks = await request_all(batcher)
    await proxy.turn("pass")
    _, reply = await called
    assert reply.decode() == KEYS[0]
    assert await outcomes(tasks) == KEYS


@pytest.mark.parametrize("reply", [b"no reply at all\r\n", b"+unasked\r\n"])
async def test_an_invalid_reply_ends_the_connection(batcher: Any, reply: bytes) -> None:
    await batcher.request(GET_MANY, KEYS)
    connection_of(batcher).data_received(reply)
    assert connection_of(batcher) is None
    assert await outcomes(await request_all(batcher)) == KEYS


async def test_a_late_reply_on_an_abandoned_connection_is_ignored(batcher: Any) -> None:
    await batcher.request(GET_MANY, KEYS)
    abandoned = connection_of(batcher)
    batcher.fail(TimeoutError())
    await batcher.request(GET_MANY, KEYS)
    connection = connection_of(batcher)
    abandoned.data_received(b"+late\r\n")
    assert connection_of(batcher) is connection is not abandoned


async def test_an_argument_that_cannot_be_encoded_fails_alone(batcher: Any) -> None:
    with pytest.raises(TypeError):
        await batcher.request(GET_MANY, (object(),))
    assert await outcomes(await request_all(batcher)) == KEYS
