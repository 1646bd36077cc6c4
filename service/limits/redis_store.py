"""Decide limits in Redis for all processes, with acquire.lua and the clock of Redis.

One call of the script decides the requests of one tick, at most MAX_REQUESTS_PER_CALL.
"""

import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any

from service.limits.types import Charge, Charges, Decision, Policy, QuotaStatus
from service.redis_client import Command, RedisBatcher, Script, digest_of

FOLDER = files("service.limits")
LOG = (FOLDER / "log.lua").read_text(encoding="utf-8")
DECIDE, GIVE_BACK = (
    LOG + (FOLDER / name).read_text(encoding="utf-8") for name in ("acquire.lua", "refund.lua")
)
DECIDE_DIGEST = digest_of(DECIDE)
SINGLE = struct.Struct(">5q")  # the reply for one charge under one policy, the most common case
MAX_REQUESTS_PER_CALL = 100  # requests in one call: Redis runs no other command meanwhile


class Acquire:
    """The CommandKind that decides requests in order. A request is a sequence of charges."""

    scripts = (DECIDE,)

    def commands(self, requests: Sequence[Sequence[Charge]]) -> list[Command]:
        """Return the calls of the script, each for at most MAX_REQUESTS_PER_CALL requests."""
        calls = []
        for begin in range(0, len(requests), MAX_REQUESTS_PER_CALL):
            keys, values = arguments(requests[begin : begin + MAX_REQUESTS_PER_CALL])
            calls.append(("EVALSHA", DECIDE_DIGEST, len(keys), *keys, *values))
        return calls

    def answers(
        self, requests: Sequence[Sequence[Charge]], replies: Sequence[list[bytes]], run_id: str
    ) -> list[Decision]:
        """Parse the script's reply to each request."""
        parts = [part for reply in replies for part in reply]
        return [decision(charges, part) for charges, part in zip(requests, parts, strict=True)]


DECIDING, GIVING_BACK = Acquire(), Script(GIVE_BACK)


class RedisLimits:
    """Decides in Redis, for all processes. Coroutines raise RedisError or OSError."""

    def __init__(self, batcher: RedisBatcher) -> None:
        self.batcher = batcher

    async def connect(self) -> None:
        """Connect and load the script, so that the first request does not wait."""
        await self.batcher.load(DECIDING)

    def call(self, charges: Sequence[Charge], callback: Callable[[Any], None]) -> None:
        """Admit all charges, or none. `callback` gets the Decision or an exception."""
        self.batcher.submit(DECIDING, charges, callback)

    async def acquire(self, charges: Sequence[Charge]) -> Decision:
        """Admit all charges of a request, or none."""
        decision: Decision = await self.batcher.request(DECIDING, charges)
        return decision

    async def refund(self, key: str, stamp: int) -> None:
        """Remove one unit with the time `stamp` (microseconds) from a log."""
        await self.batcher.request(GIVING_BACK, ((key,), (stamp,)))


def arguments(
    requests: Sequence[Sequence[Charge]], now: int | None = None
) -> tuple[list[str], list[Any]]:
    """Return KEYS and ARGV of acquire.lua. now: a time in microseconds, for tests."""
    keys = [charge.key for charges in requests for charge in charges]
    return keys, ["" if now is None else now, *map(_pack, requests)]


def _pack(charges: Sequence[Charge]) -> bytes:
    if not isinstance(charges, Charges):
        charges = Charges(charges)
    if not charges.packed:
        parts = [_pack_charge(charge.cost, charge.policies) for charge in charges]
        charges.packed = struct.pack(">d", len(charges)) + b"".join(parts)
    return charges.packed


@lru_cache
def _pack_charge(cost: int, policies: tuple[Policy, ...]) -> bytes:
    numbers = [number for policy in policies for number in (policy.amount, policy.period)]
    return struct.pack(f">{2 + len(numbers)}d", cost, len(policies), *numbers)


def decision(charges: Sequence[Charge], reply: bytes) -> Decision:
    """Parse the script's reply to one request."""
    if len(reply) == SINGLE.size:
        admitted, wait, stamp, remaining, reset = SINGLE.unpack(reply)
        quota = QuotaStatus(charges[0].policies[0], remaining, reset)
        return Decision(bool(admitted), wait, (stamp,), (quota,))
    admitted, wait, *words = struct.unpack(f">{len(reply) // 8}q", reply)
    stamps: list[int] = []
    quotas: list[QuotaStatus] = []
    at = 0
    for charge in charges:
        stamps.append(words[at])
        at += 1
        for policy in charge.policies:
            quotas.append(QuotaStatus(policy, words[at], words[at + 1]))
            at += 2
    return Decision(bool(admitted), wait, tuple(stamps), tuple(quotas))
