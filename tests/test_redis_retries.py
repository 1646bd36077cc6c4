"""While Redis is away, one request at a time tries it. The others are decided at once."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from service.limits import failover
from service.limits.failover import RETRY_INTERVAL_SECONDS, LimitStore
from service.limits.types import SECOND, Charge, Decision, Policy
from tests.fake_clock import Clock

POLICY = (Policy(100, 60),)
CHARGES = (Charge("k", POLICY),)
SHARED = Decision(True, 0, (SECOND,), ())  # a decision of Redis


class Redis:
    """Stands in for the limits in Redis: it is reachable, hangs, or refuses connections."""

    def __init__(self) -> None:
        self.attempts = self.refunds = 0
        self.is_reachable = True
        self.replies = asyncio.Event()
        self.replies.set()

    async def acquire(self, charges: Sequence[Charge]) -> Decision:
        """Decide, once Redis replies."""
        self.attempts += 1
        await self.replies.wait()
        if not self.is_reachable:
            raise RedisConnectionError
        return SHARED

    async def refund(self, key: str, stamp: int) -> None:
        """Count a refund."""
        self.refunds += 1
        if not self.is_reachable:
            raise RedisConnectionError


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the limit store."""
    clock = Clock()
    monkeypatch.setattr(failover, "time", clock)
    return clock


def store_of(shared: Any, workers: int = 1) -> LimitStore:
    """Make a limit store on a stand-in for Redis."""
    return LimitStore(shared, workers, logging.getLogger("tests"))


async def test_only_one_request_tries_a_redis_that_is_away(clock: Clock) -> None:
    redis = Redis()
    store = store_of(redis)
    redis.is_reachable = False
    await store.acquire(CHARGES)
    assert (store.is_away, store.lost, redis.attempts) == (True, 1, 1)
    clock.now += RETRY_INTERVAL_SECONDS
    redis.replies.clear()  # it hangs now
    trying = asyncio.ensure_future(store.acquire(CHARGES))
    try:
        async with asyncio.timeout(30):
            while redis.attempts < 2:
                await asyncio.sleep(0)
            for _ in range(20):
                assert (await store.acquire(CHARGES)) is not SHARED
        assert redis.attempts == 2
    finally:
        redis.replies.set()
        await trying
    assert (store.is_away, store.lost) == (True, 1), "it is the same outage"


async def test_no_request_tries_redis_during_the_pause(clock: Clock) -> None:
    redis = Redis()
    store = store_of(redis)
    redis.is_reachable = False
    for n in range(1, 4):
        await store.acquire(CHARGES)
        clock.now += RETRY_INTERVAL_SECONDS * 0.99
        await store.acquire(CHARGES)
        assert redis.attempts == n
        clock.now += RETRY_INTERVAL_SECONDS * 0.02
    assert store.decided_locally == 6
    redis.is_reachable = True
    assert await store.acquire(CHARGES) is SHARED
    assert (store.is_away, store.lost) == (False, 1)
    for _ in range(3):
        assert await store.acquire(CHARGES) is SHARED
    assert redis.attempts == 3 + 1 + 3


async def test_a_second_outage_is_counted(clock: Clock) -> None:
    redis = Redis()
    store = store_of(redis)
    for _ in range(2):
        redis.is_reachable = False
        await store.acquire(CHARGES)
        clock.now += 2 * RETRY_INTERVAL_SECONDS
        redis.is_reachable = True
        await store.acquire(CHARGES)
    assert store.lost == 2


async def test_a_refund_during_an_outage_does_not_try_redis(clock: Clock) -> None:
    redis = Redis()
    store = store_of(redis)
    await store.refund("k", 1)
    assert redis.refunds == 1
    redis.is_reachable = False
    await store.refund("k", 1)
    assert (redis.refunds, store.is_away) == (2, True)
    await store.refund("k", 1)
    assert redis.refunds == 2


@pytest.mark.parametrize(("workers", "share"), [(1, 100), (3, 33), (100, 1), (1_000, 1)])
async def test_each_worker_enforces_its_share_during_an_outage(
    clock: Clock, workers: int, share: int
) -> None:
    redis = Redis()
    redis.is_reachable = False
    store = store_of(redis, workers)
    decisions = [await store.acquire(CHARGES) for _ in range(share + 1)]
    assert [decision.admitted for decision in decisions] == [True] * share + [False]
    assert {quota.policy for decision in decisions for quota in decision.quotas} == set(POLICY)
