"""The circuit breaker of the cache: it opens after three failures in a second, and closes later."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
from redis.exceptions import RedisError

from service.cache import Counters, circuit_breaker
from service.cache.circuit_breaker import TIMES, WITHIN, CircuitBreaker
from tests.fake_clock import Clock

PROBE_INTERVAL_SECONDS = 0.01


class Redis:
    """Stands in for Redis: a probe of it raises `error`."""

    def __init__(self) -> None:
        self.error: Exception | None = RedisError("down")
        self.probes = 0

    async def identify(self) -> str:
        """Reply to a probe."""
        self.probes += 1
        if self.error is not None:
            raise self.error
        return "run id"

    async def until_probed(self, times: int) -> None:
        """Wait for more probes."""
        probes = self.probes + times
        async with asyncio.timeout(30):
            while self.probes < probes:
                await asyncio.sleep(0.001)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the circuit breaker, whose probes follow each other quickly."""
    clock = Clock()
    monkeypatch.setattr(circuit_breaker, "time", clock)
    monkeypatch.setattr(circuit_breaker, "PROBE_INTERVAL_SECONDS", PROBE_INTERVAL_SECONDS)
    monkeypatch.setattr(circuit_breaker, "PROBE_SECONDS", 30.0)
    return clock


@pytest.fixture
def redis() -> Redis:
    """A Redis that does not reply."""
    return Redis()


@pytest.fixture
async def breaker(clock: Clock, redis: Redis) -> AsyncIterator[CircuitBreaker]:
    """A circuit breaker."""
    breaker = CircuitBreaker(redis.identify, Counters(), logging.getLogger("tests"))
    try:
        yield breaker
    finally:
        await breaker.close()


def fail(breaker: CircuitBreaker, times: int) -> None:
    """Report failures."""
    for _ in range(times):
        breaker.failed(RedisError("down"))


async def until_closed(breaker: CircuitBreaker) -> None:
    """Wait until readers use the store again."""
    async with asyncio.timeout(30):
        while breaker.is_open:
            await asyncio.sleep(0.001)


async def test_it_opens_at_the_third_failure(breaker: CircuitBreaker, redis: Redis) -> None:
    fail(breaker, TIMES - 1)
    assert not breaker.is_open
    fail(breaker, 1)
    assert breaker.is_open
    fail(breaker, 10)
    await redis.until_probed(1)
    assert breaker.is_open


async def test_failures_that_are_far_apart_do_not_open_it(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    for _ in range(10):
        fail(breaker, 1)
        clock.now += 0.6 * WITHIN
        assert not breaker.is_open
    fail(breaker, TIMES - 1)
    assert breaker.is_open


async def test_it_stays_open_while_probes_fail_and_closes_after_one_that_succeeds(
    breaker: CircuitBreaker, redis: Redis
) -> None:
    fail(breaker, TIMES)
    for error in (RedisError("down"), OSError("gone"), TimeoutError(), ValueError("a defect")):
        redis.error = error
        await redis.until_probed(2)
        assert breaker.is_open
    redis.error = None
    await until_closed(breaker)
    probes = redis.probes
    await asyncio.sleep(5 * PROBE_INTERVAL_SECONDS)
    assert redis.probes == probes, "a closed circuit breaker sends no probe"


async def test_old_failures_do_not_count_after_it_has_closed(
    breaker: CircuitBreaker, redis: Redis
) -> None:
    for _ in range(2):
        redis.error = None
        fail(breaker, TIMES)
        assert breaker.is_open
        await until_closed(breaker)
        fail(breaker, TIMES - 1)
        assert not breaker.is_open
        fail(breaker, 1)
        assert breaker.is_open
        await until_closed(breaker)
