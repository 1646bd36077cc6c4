"""Decisions in memory and in Redis, compared with an oracle that remembers every request."""

import asyncio
import multiprocessing
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Protocol

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import ConnectionPool

from service.limits.memory_store import MemoryLimits
from service.limits.redis_store import DECIDE, GIVE_BACK, RedisLimits, arguments, decision
from service.limits.types import SECOND, Charge, Decision, Policy
from service.redis_client import RedisBatcher

START = 1_800_000_000 * SECOND


class Backend(Protocol):
    """A limiter whose clock the test sets."""

    def acquire(self, charges: Sequence[Charge], now: int) -> Decision: ...
    def refund(self, key: str, stamp: int) -> None: ...
    def state(self) -> object: ...
    def clear(self) -> None: ...


class InMemory:
    """The limiter of one process."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._now = 0
        self._memory = MemoryLimits(lambda: self._now)

    def acquire(self, charges: Sequence[Charge], now: int) -> Decision:
        self._now = now - START  # as on a machine that was just started
        return self._memory.acquire(charges)

    def refund(self, key: str, stamp: int) -> None:
        self._memory.refund(key, stamp - START)

    def state(self) -> object:
        return {
            key: (log.count, log.expires, dict(log.times))
            for key, log in self._memory._logs.items()  # private: no public view of the logs
        }


class InRedis:
    """The limiter that processes share."""

    def __init__(self, url: str) -> None:
        self._redis: Any = redis.Redis.from_url(url)
        self._script = self._redis.register_script(DECIDE)
        self._give_back = self._redis.register_script(GIVE_BACK)

    def clear(self) -> None:
        self._redis.flushdb()

    def acquire(self, charges: Sequence[Charge], now: int) -> Decision:
        (reply,) = self._script(*arguments([charges], now))
        return decision(charges, reply)

    def refund(self, key: str, stamp: int) -> None:
        self._give_back([key], [stamp])

    def state(self) -> object:
        state = {}
        for key in self._redis.scan_iter():
            if key.startswith(b"octavo:cache:"):
                continue
            assert self._redis.pttl(key) > 0, "every key expires"
            state[key] = self._redis.get(key)
        return state


@pytest.fixture(params=["memory", "redis"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each of the two limiters."""
    if request.param == "memory":
        yield InMemory()
        return
    in_redis = InRedis(request.getfixturevalue("redis_url"))
    yield in_redis
    in_redis.clear()


POLICIES = st.lists(
    st.builds(Policy, st.integers(1, 6), st.sampled_from([1, 2, 3, 5, 60])), min_size=1, max_size=3
).map(tuple)
STEPS = st.lists(
    st.tuples(
        st.integers(0, 2_500_000),  # microseconds since the step before
        st.sampled_from([("a",), ("b",), ("a", "b")]),
        st.sampled_from([0, 1, 1, 1, 2, 3]),
        st.sampled_from([None, None, None, 0, 1, 4]),  # which of the last units to give back
    ),
    max_size=40,
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(first=POLICIES, second=POLICIES, steps=STEPS)
def test_a_decision_admits_exactly_the_limit_and_all_claims_or_none(
    backend: Backend, first: tuple[Policy, ...], second: tuple[Policy, ...], steps: list[Any]
) -> None:
    backend.clear()
    policies = {"a": first, "b": second}
    taken: dict[str, list[int]] = {"a": [], "b": []}
    now = START

    def used(key: str, policy: Policy, at: int) -> int:
        return sum(1 for instant in taken[key] if instant + policy.period > at)

    def has_room(charges: list[Charge], at: int) -> bool:
        return all(
            used(charge.key, policy, at) + charge.cost <= policy.amount
            for charge in charges
            for policy in charge.policies
        )

    for later, keys, cost, returned in steps:
        now += later
        if returned is not None and returned < len(taken["a"]):
            stamp = taken["a"].pop(-1 - returned)
            if any(stamp + policy.period > now for policy in first):
                backend.refund("a", stamp)
        charges = [Charge(key, policies[key], cost) for key in keys]
        before = backend.state()
        result = backend.acquire(charges, now)
        assert result.admitted == has_room(charges, now)
        if result.admitted:
            assert result.wait == 0
            for key in keys:
                taken[key] += [now] * cost
        else:
            assert backend.state() == before, "a refusal spends nothing"
            if all(0 < cost <= policy.amount for charge in charges for policy in charge.policies):
                assert has_room(charges, now + result.retry_after * SECOND)
                assert not has_room(charges, now + (result.retry_after - 1) * SECOND)
        quotas = iter(result.quotas)
        for charge in charges:
            for policy in charge.policies:
                quota = next(quotas)
                within = [t for t in taken[charge.key] if t + policy.period > now]
                assert quota.remaining == max(0, policy.amount - len(within))
                assert quota.reset == (within[0] + policy.period - now if within else 0)


@pytest.mark.parametrize("amount", [1, 4_096, 4_097, 100_000])
def test_a_large_limit_is_coarse_and_never_exceeded(backend: Backend, amount: int) -> None:
    chance = random.Random(amount)
    policy = Policy(amount, 60)
    taken: list[tuple[int, int]] = []
    now = START
    for _ in range(300):
        cost = min(amount, chance.randrange(1, 1 + max(1, amount // 20)))
        now += chance.randrange(0, 2 * SECOND)
        used = sum(n for instant, n in taken if instant + policy.period > now)
        if backend.acquire([Charge("k", (policy,), cost)], now).admitted:
            assert used + cost <= amount
            taken.append((now, cost))
        else:
            # At most the units of one slot are counted too long.
            assert used + cost > amount - -(-amount // 4_096)


def test_a_key_with_a_larger_limit_keeps_its_used_units(backend: Backend) -> None:
    small, large = Policy(3, 60), Policy(5, 60)
    for n in range(3):
        assert backend.acquire([Charge("k", (small,))], START + n * SECOND).admitted
    assert not backend.acquire([Charge("k", (small,))], START + 3 * SECOND).admitted
    assert backend.acquire([Charge("k", (large,), 2)], START + 4 * SECOND).admitted
    refused = backend.acquire([Charge("k", (large,))], START + 5 * SECOND)
    assert (refused.admitted, refused.retry_after) == (False, 55)
    assert not backend.acquire([Charge("k", (small,))], START + 61 * SECOND).admitted


def test_a_clock_that_runs_back_admits_no_more(backend: Backend) -> None:
    charge = [Charge("k", (Policy(2, 60),))]
    assert backend.acquire(charge, START).admitted
    assert backend.acquire(charge, START - 3_600 * SECOND).admitted
    assert backend.acquire(charge, START - 3_600 * SECOND).retry_after == 60


def test_the_number_of_keys_in_memory_is_bounded() -> None:
    memory = MemoryLimits(lambda: START, max_keys=100)
    for n in range(1_000):
        assert memory.acquire([Charge(str(n), (Policy(1, 60),))]).admitted
    assert len(memory) == 100
    assert not memory.acquire([Charge("999", (Policy(1, 60),))]).admitted


async def admit(url: str, key: str, requests: int, amount: int) -> int:
    """Send requests at once, and return how many were admitted."""
    batcher = RedisBatcher(ConnectionPool.from_url(url), deadline=60)
    shared = RedisLimits(batcher)
    charges = [Charge(key, (Policy(amount, 3_600),))]
    try:
        decisions = await asyncio.gather(*(shared.acquire(charges) for _ in range(requests)))
    finally:
        await batcher.close()
    return sum(decision.admitted for decision in decisions)


def process(url: str, key: str, requests: int, amount: int) -> int:
    """Send requests from a process of its own."""
    return asyncio.run(admit(url, key, requests, amount))


def test_many_processes_together_admit_exactly_the_limit(redis_url: str) -> None:
    chance = random.Random(7)
    # The executor lets its processes end; a Pool ends them by a signal, and coverage may hang.
    with ProcessPoolExecutor(4, multiprocessing.get_context("spawn")) as pool:
        for turn in range(2):
            amount = chance.randrange(1, 120)
            key = f"many-{turn}"
            admitted = [pool.submit(process, redis_url, key, 50, amount) for _ in range(4)]
            assert sum(future.result() for future in admitted) == amount
