"""The limit store that processes share: acquire.lua in Redis, by Redis's clock.

One call decides all requests of one tick of the event loop.
"""

import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any

from service.limits.types import Charge, Charges, Decision, Policy, QuotaStatus
from service.redis_client import Command, RedisBatcher, Script, digest_of

ROOM = files("service.limits")
LOG = (ROOM / "log.lua").read_text(encoding="utf-8")
DECIDE, GIVE_BACK = (
    LOG + (ROOM / name).read_text(encoding="utf-8") for name in ("acquire.lua", "refund.lua")
)
DECIDE_DIGEST = digest_of(DECIDE)
SINGLE = struct.Struct(">5q")  # reply for one claim under one policy, the most common case
AT_ONCE = 100  # decisions in one call: Redis runs nothing else meanwhile


class Acquire:
    """Decides requests in order. Each request is a sequence of claims."""

    scripts = (DECIDE,)

    def commands(self, requests: Sequence[Sequence[Charge]]) -> list[Command]:
        """Call the script once for each AT_ONCE requests."""
        calls = []
        for begin in range(0, len(requests), AT_ONCE):
            keys, values = arguments(requests[begin : begin + AT_ONCE])
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
    """Decides in Redis, for all processes. Raises RedisError or OSError."""

    def __init__(self, batcher: RedisBatcher) -> None:
        self.batcher = batcher

    async def connect(self) -> None:
        """Connect in advance, so that the first request does not wait."""
        await self.batcher.load(DECIDING)

    def call(self, charges: Sequence[Charge], callback: Callable[[Any], None]) -> None:
        """Admit all claims, or none. `callback` gets the decision or the error."""
        self.batcher.submit(DECIDING, charges, callback)

    async def acquire(self, charges: Sequence[Charge]) -> Decision:
        """Admit all claims, or none."""
        decision: Decision = await self.batcher.request(DECIDING, charges)
        return decision

    async def refund(self, key: str, stamp: int) -> None:
        """Undo one unit that was admitted at `stamp`."""
        await self.batcher.request(GIVING_BACK, ((key,), (stamp,)))


def arguments(
    requests: Sequence[Sequence[Charge]], now: int | None = None
) -> tuple[list[str], list[Any]]:
    """Return the keys and arguments of acquire.lua. `now` (microseconds) is for tests."""
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
