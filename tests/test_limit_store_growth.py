"""A limit is raised while callers have used it: their units stay counted, under the new limit too.

A log of a limit above 4,096 holds several units in one slot. Its resolution changes with the limit.
"""

from collections.abc import Iterator
from typing import Any, Protocol
from uuid import uuid4

import pytest
import redis

from service.limits.memory_store import MemoryLimits
from service.limits.redis_store import DECIDE, GIVE_BACK, arguments, decision
from service.limits.types import SECOND, Charge, Decision, Policy

START = 1_800_000_000 * SECOND
MINUTE = 60 * SECOND


class Limits(Protocol):
    """A limit store whose clock is set by the test."""

    def acquire(self, charge: Charge, now: int) -> Decision:
        """Decide a charge."""

    def refund(self, key: str, stamp: int) -> None:
        """Undo a unit."""

    def lifetime(self, key: str, now: int) -> float:
        """Return for how many seconds a log is kept after `now`."""


class InMemory:
    """The store of one process."""

    def __init__(self) -> None:
        self._now = 0
        self._limits = MemoryLimits(lambda: self._now)

    def acquire(self, charge: Charge, now: int) -> Decision:
        """Decide a charge."""
        self._now = now
        return self._limits.acquire([charge])

    def refund(self, key: str, stamp: int) -> None:
        """Undo a unit."""
        self._limits.refund(key, stamp)

    def lifetime(self, key: str, now: int) -> float:
        """Return for how many seconds a unit is remembered: by a look at later times."""
        policy = Policy(1_000, 1_000_000)
        for seconds in range(0, 200_000, 600):
            if not used(self.acquire(Charge(key, (policy,), 0), now + seconds * SECOND)):
                return seconds
        raise AssertionError("The log never ends")


class InRedis:
    """The store that processes share."""

    def __init__(self, url: str) -> None:
        self._redis: Any = redis.Redis.from_url(url)
        self._script = self._redis.register_script(DECIDE)
        self._refund = self._redis.register_script(GIVE_BACK)

    def acquire(self, charge: Charge, now: int) -> Decision:
        """Decide a charge."""
        (reply,) = self._script(*arguments([[charge]], now))
        return decision([charge], reply)

    def refund(self, key: str, stamp: int) -> None:
        """Undo a unit."""
        self._refund([key], [stamp])

    def lifetime(self, key: str, now: int) -> float:
        """Return for how many seconds Redis keeps the log, by Redis's own clock."""
        return float(self._redis.pttl(key)) / 1_000

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()


def used(decided: Decision) -> int:
    """Return how many units of the first policy are used."""
    quota = decided.quotas[0]
    return quota.policy.amount - quota.remaining


@pytest.fixture(params=["memory", "redis"])
def limits(request: pytest.FixtureRequest) -> Iterator[Limits]:
    """Each of the two stores."""
    if request.param == "memory":
        yield InMemory()
        return
    store = InRedis(request.getfixturevalue("redis_url"))
    try:
        yield store
    finally:
        store.close()


@pytest.fixture
def key() -> str:
    """A key that no other test uses."""
    return f"growth:{uuid4().hex}"


@pytest.mark.parametrize(
    ("before", "after"),
    [(100, 4_096), (4_000, 10_000), (4_096, 4_097), (5_000, 9_000), (10, 1_000_000)],
)
def test_a_raised_limit_is_enforced(limits: Limits, key: str, before: int, after: int) -> None:
    small, large = (Policy(before, 60),), (Policy(after, 60),)
    assert limits.acquire(Charge(key, small, before), START).admitted
    assert not limits.acquire(Charge(key, small), START + SECOND).admitted
    now = START + 2 * SECOND
    rest = after - before
    grain = -(-after // 4_096)
    assert not limits.acquire(Charge(key, large, rest + 1), now).admitted, "the old units count"
    assert limits.acquire(Charge(key, large, max(1, rest - 2 * grain)), now).admitted
    while limits.acquire(Charge(key, large), now).admitted:
        rest -= 1
        assert rest >= 0, "more units are admitted than the limit allows"
    refused = limits.acquire(Charge(key, large), now)
    assert not refused.admitted
    assert refused.retry_after in {58, 60}, "the first units end first; a slot ends with its last"
    assert limits.acquire(Charge(key, large, after), now + MINUTE).admitted
    assert not limits.acquire(Charge(key, large), now + MINUTE).admitted


@pytest.mark.parametrize(("before", "after", "is_free"), [(3, 6, True), (3, 5_000, False)])
def test_a_refund_after_growth(
    limits: Limits, key: str, before: int, after: int, is_free: bool
) -> None:
    """A unit of a slot of its own is given back. A slot of several units stays as it is."""
    small, large = (Policy(before, 60),), (Policy(after, 60),)
    stamps = [
        limits.acquire(Charge(key, small), START + n * SECOND).stamps[0] for n in range(before)
    ]
    now = START + before * SECOND
    assert limits.acquire(Charge(key, large), now).admitted
    rest = after - before - 1
    limits.refund(key, stamps[1])
    limits.refund(key, stamps[1])  # it is given back already
    assert not limits.acquire(Charge(key, large, rest + 1 + is_free), now).admitted
    assert limits.acquire(Charge(key, large, rest + is_free), now).admitted
    assert not limits.acquire(Charge(key, large), now).admitted


@pytest.mark.parametrize("largest", [1, 100, 4_095, 4_096])
def test_a_limit_admits_its_amount_and_no_more(limits: Limits, key: str, largest: int) -> None:
    policy = (Policy(largest, 60),)
    for turn in range(3):
        now = START + turn * MINUTE
        assert not limits.acquire(Charge(key, policy, largest + 1), now).admitted
        for cost in filter(None, (largest - 1, 1)):
            assert limits.acquire(Charge(key, policy, cost), now).admitted
        assert not limits.acquire(Charge(key, policy), now).admitted
        last = limits.acquire(Charge(key, policy), now + MINUTE - 1)
        assert (last.admitted, last.wait, last.retry_after) == (False, 1, 1)


@pytest.mark.parametrize("largest", [4_097, 8_192, 10_000])
def test_a_limit_of_several_units_a_slot_admits_no_more_than_its_amount(
    limits: Limits, key: str, largest: int
) -> None:
    """It may refuse the last units of a window: as many as share a slot with older units."""
    policy, grain = (Policy(largest, 60),), -(-largest // 4_096)
    for turn in range(3):
        now = START + turn * MINUTE
        admitted = largest - grain
        assert limits.acquire(Charge(key, policy, admitted), now).admitted
        while limits.acquire(Charge(key, policy), now).admitted:
            admitted += 1
        assert admitted <= largest
        assert not limits.acquire(Charge(key, policy), now + MINUTE - 1).admitted


@pytest.mark.parametrize(
    "policies",
    [
        (Policy(100, 3_600), Policy(10, 60)),
        (Policy(10, 60), Policy(100, 3_600)),
        (Policy(10, 60), Policy(100, 3_600), Policy(50, 1_800)),
    ],
)
def test_a_log_lives_as_long_as_its_longest_policy(
    limits: Limits, key: str, policies: tuple[Policy, ...]
) -> None:
    assert limits.acquire(Charge(key, policies), START).admitted
    lifetime = limits.lifetime(key, START)
    assert 3_540 <= lifetime <= 3_600


def test_an_hour_is_not_forgotten_after_a_quiet_minute() -> None:
    """Ten units a minute, then a pause that is longer than a minute, ten times."""
    limits = InMemory()
    policies = (Policy(100, 3_600), Policy(10, 60))
    now = START
    for _ in range(10):
        assert limits.acquire(Charge("k", policies, 10), now).admitted
        assert not limits.acquire(Charge("k", policies), now).admitted
        now += 5 * MINUTE
    refused = limits.acquire(Charge("k", policies), now)
    assert (refused.admitted, refused.retry_after) == (False, 3_600 - 50 * 60)
    assert limits.acquire(Charge("k", policies, 10), START + 60 * MINUTE).admitted
