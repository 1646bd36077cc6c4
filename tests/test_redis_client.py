"""The line to Redis: several writes under way, and what becomes of them when it breaks."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from redis.asyncio import ConnectionPool, Redis
from redis.exceptions import RedisError

from service.redis_client import GET_MANY, RedisBatcher, Script
from service.redis_client.connection import UNDER_WAY
from tests.proxies import Proxy

DEADLINE = 1.0
KEYS = [f"octavo:test:batcher:{n}" for n in range(3 * UNDER_WAY)]


@pytest.fixture
async def proxy(redis_url: str) -> AsyncIterator[Proxy]:
    """A way to Redis, where each key holds its own name."""
    async with Redis.from_url(redis_url) as client:
        await client.mset({key: key for key in KEYS})
        port = int(redis_url.split(":")[2].partition("/")[0])
        backend: Any = SimpleNamespace(port=port)
        proxy = Proxy(backend, random.Random(1))
        await proxy.turn("pass")
        yield proxy
        await proxy.close()
        await client.delete(*KEYS)


@pytest.fixture
async def batcher(proxy: Proxy) -> AsyncIterator[Any]:
    """A batcher over that way."""
    client = RedisBatcher(
        ConnectionPool.from_url(f"redis://127.0.0.1:{proxy.port}/0"), deadline=DEADLINE
    )
    yield client
    await client.close()


async def ask(batcher: Any) -> list[asyncio.Task[Any]]:
    """Ask for each key in a tick of its own."""
    tasks = []
    for key in KEYS:
        tasks.append(asyncio.create_task(batcher.request(GET_MANY, (key,))))
        await asyncio.sleep(0.001)
    return tasks


async def outcomes(tasks: list[asyncio.Task[Any]]) -> list[Any]:
    """Wait for all: the values, or the kinds of errors."""
    replies: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
    return [
        type(reply) if isinstance(reply, Exception) else reply[1][0].decode() for reply in replies
    ]


async def test_several_writes_are_under_way(batcher: Any, proxy: Proxy) -> None:
    await batcher.request(GET_MANY, KEYS)
    await proxy.turn("hold")
    tasks = await ask(batcher)
    assert len(batcher._connection._batches) == UNDER_WAY
    assert not any(one.done() for one in tasks)
    await proxy.turn("pass")
    assert await outcomes(tasks) == KEYS


async def test_what_is_under_way_on_a_broken_line_is_asked_again(
    batcher: Any, proxy: Proxy
) -> None:
    await batcher.request(GET_MANY, KEYS)
    await proxy.turn("hold")
    tasks = await ask(batcher)
    await proxy.sever()
    await proxy.turn("pass")
    assert await outcomes(tasks) == KEYS
    line = batcher._connection
    await asyncio.sleep(1.5 * DEADLINE)  # what was asked on the old line had no answer there
    assert await outcomes(await ask(batcher)) == KEYS
    assert batcher._connection is line


async def test_what_is_asked_again_has_no_more_patience(batcher: Any, proxy: Proxy) -> None:
    await batcher.request(GET_MANY, KEYS)
    await proxy.turn("hold")
    begun = time.monotonic()
    tasks = await ask(batcher)
    await asyncio.sleep(0.8 * DEADLINE)
    await proxy.turn("mute")
    await proxy.sever()
    assert set(await outcomes(tasks)) == {TimeoutError}
    assert time.monotonic() - begun < 1.7 * DEADLINE
    await proxy.turn("pass")


async def test_closing_waits_for_all(batcher: Any, proxy: Proxy) -> None:
    script = Script(f"return 1 -- {random.random()}")  # it has to be told, and asked again
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
    _, waiting = await asyncio.wait(tasks, timeout=3 * DEADLINE)
    assert not waiting, "who asks meanwhile is told as well"
    assert tasks[0].exception() is None


async def test_a_line_that_never_replied_is_an_outage(batcher: Any, proxy: Proxy) -> None:
    tasks = await ask(batcher)
    assert await outcomes(tasks) == KEYS
    await proxy.turn("cut")
    tasks = await ask(batcher)
    assert all(issubclass(one, RedisError) for one in await outcomes(tasks))
    await proxy.turn("pass")
    assert await outcomes(await ask(batcher)) == KEYS


async def test_a_silent_redis_fails_all_who_wait(batcher: Any, proxy: Proxy) -> None:
    await batcher.request(GET_MANY, KEYS)
    await proxy.turn("mute")
    assert set(await outcomes(await ask(batcher))) == {TimeoutError}
    await proxy.turn("pass")
    assert await outcomes(await ask(batcher)) == KEYS


async def test_unknown_scripts_are_told_in_between(batcher: Any, proxy: Proxy) -> None:
    script = Script(f"return redis.call('GET', KEYS[1]) -- {random.random()}")  # a new one
    await proxy.turn("hold")
    called = asyncio.create_task(batcher.request(script, ((KEYS[0],), ())))
    tasks = await ask(batcher)
    await proxy.turn("pass")
    _, reply = await called
    assert reply.decode() == KEYS[0]
    assert await outcomes(tasks) == KEYS


@pytest.mark.parametrize("reply", [b"no reply at all\r\n", b"+unasked\r\n"])
async def test_nonsense_ends_the_line(batcher: Any, reply: bytes) -> None:
    await batcher.request(GET_MANY, KEYS)
    batcher._connection.data_received(reply)
    assert batcher._connection is None
    assert await outcomes(await ask(batcher)) == KEYS


async def test_what_comes_late_on_a_line_that_was_left_is_not_read(batcher: Any) -> None:
    await batcher.request(GET_MANY, KEYS)
    left = batcher._connection
    batcher.fail(TimeoutError())
    await batcher.request(GET_MANY, KEYS)
    line = batcher._connection
    left.data_received(b"+late\r\n")
    assert batcher._connection is line is not left


async def test_what_no_command_can_hold_fails_alone(batcher: Any) -> None:
    with pytest.raises(TypeError):
        await batcher.request(GET_MANY, (object(),))
    assert await outcomes(await ask(batcher)) == KEYS
