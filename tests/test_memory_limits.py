"""The limit store of one process is bounded: the idlest callers are forgotten, and no others."""

import pytest

from service.limits.memory_store import MemoryLimits
from service.limits.types import SECOND, Charge, Decision, Policy

MAX_KEYS = 10
POLICY = (Policy(3, 3_600),)


class Limits:
    """A store of at most MAX_KEYS keys, and its clock."""

    def __init__(self) -> None:
        self.now = 1_000 * SECOND
        self.store = MemoryLimits(lambda: self.now, max_keys=MAX_KEYS)

    def acquire(self, *keys: str, cost: int = 1) -> Decision:
        """Charge keys in one request, a second after the request before."""
        self.now += SECOND
        return self.store.acquire([Charge(key, POLICY, cost) for key in keys])


def test_a_caller_who_stays_active_keeps_the_count_while_others_come() -> None:
    limits = Limits()
    for n in range(3):
        assert limits.acquire("busy").admitted
        for other in range(MAX_KEYS - 1):
            assert limits.acquire(f"{n}-{other}").admitted
    assert len(limits.store) == MAX_KEYS
    assert not limits.acquire("busy").admitted


def test_the_idlest_caller_is_forgotten_first() -> None:
    limits = Limits()
    for n in range(MAX_KEYS):
        assert limits.acquire(str(n), cost=3).admitted
    assert limits.acquire("new", cost=3).admitted
    # The newest first: the last of them, which is admitted, takes the place of another one.
    admitted = [n for n in reversed(range(MAX_KEYS)) if limits.acquire(str(n)).admitted]
    assert admitted == [0]


@pytest.mark.parametrize("cost", [0, 4])
def test_a_request_that_takes_no_unit_makes_no_key(cost: int) -> None:
    """A look at the quotas, and a refusal: neither of them may push out another caller."""
    limits = Limits()
    assert limits.acquire("known", cost=3).admitted
    for n in range(2 * MAX_KEYS):
        assert limits.acquire(f"look-{n}", cost=cost).admitted is (cost == 0)
    assert len(limits.store) == 1
    assert not limits.acquire("known").admitted


def test_a_request_of_several_keys_takes_a_unit_of_each_or_of_none() -> None:
    limits = Limits()
    assert limits.acquire("a", cost=3).admitted
    assert not limits.acquire("b", "a").admitted
    assert not limits.acquire("a", "b").admitted
    assert limits.acquire("b", cost=3).admitted


def test_a_unit_that_is_given_back_is_free_again() -> None:
    limits = Limits()
    stamps = [limits.acquire("a").stamps[0] for _ in range(3)]
    limits.store.refund("a", stamps[1] + 1)  # no unit has this time
    limits.store.refund("unknown", stamps[1])
    assert not limits.acquire("a").admitted
    limits.store.refund("a", stamps[1])
    assert limits.acquire("a").admitted
    refused = limits.acquire("a")
    assert not refused.admitted
    assert limits.now + refused.wait == stamps[0] + 3_600 * SECOND, "the oldest unit is still there"
