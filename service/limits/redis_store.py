"""The limit store that processes share: decide.lua in Redis, by Redis's clock.

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
    LOG + (ROOM / name).read_text(encoding="utf-8") for name in ("decide.lua", "give_back.lua")
)
DECIDE_DIGEST = digest_of(DECIDE)
SINGLE = struct.Struct(">5q")  # reply for one claim under one policy, the most common case
AT_ONCE = 100  # decisions in one call: Redis runs nothing else meanwhile


class Decide:
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
        return [decision(claims, part) for claims, part in zip(requests, parts, strict=True)]


DECIDING, GIVING_BACK = Decide(), Script(GIVE_BACK)


class RedisLimits:
    """Decides in Redis, for all processes. Raises RedisError or OSError."""

    def __init__(self, batcher: RedisBatcher) -> None:
        self.batcher = batcher

    async def connect(self) -> None:
        """Connect in advance, so that the first request does not wait."""
        await self.batcher.load(DECIDING)

    def call(self, claims: Sequence[Charge], callback: Callable[[Any], None]) -> None:
        """Admit all claims, or none. `callback` gets the decision or the error."""
        self.batcher.submit(DECIDING, claims, callback)

    async def decide(self, claims: Sequence[Charge]) -> Decision:
        """Admit all claims, or none."""
        decision: Decision = await self.batcher.request(DECIDING, claims)
        return decision

    async def give_back(self, key: str, stamp: int) -> None:
        """Undo one unit that was admitted at `stamp`."""
        await self.batcher.request(GIVING_BACK, ((key,), (stamp,)))


def arguments(
    requests: Sequence[Sequence[Charge]], now: int | None = None
) -> tuple[list[str], list[Any]]:
    """Return the keys and arguments of decide.lua. `now` (microseconds) is for tests."""
    keys = [claim.key for claims in requests for claim in claims]
    return keys, ["" if now is None else now, *map(_pack, requests)]


def _pack(claims: Sequence[Charge]) -> bytes:
    if not isinstance(claims, Charges):
        claims = Charges(claims)
    if not claims.packed:
        parts = [_pack_charge(claim.cost, claim.policies) for claim in claims]
        claims.packed = struct.pack(">d", len(claims)) + b"".join(parts)
    return claims.packed


@lru_cache
def _pack_charge(cost: int, policies: tuple[Policy, ...]) -> bytes:
    numbers = [number for policy in policies for number in (policy.amount, policy.period)]
    return struct.pack(f">{2 + len(numbers)}d", cost, len(policies), *numbers)


def decision(claims: Sequence[Charge], reply: bytes) -> Decision:
    """Parse the script's reply to one request."""
    if len(reply) == SINGLE.size:
        admitted, wait, stamp, remaining, reset = SINGLE.unpack(reply)
        standing = QuotaStatus(claims[0].policies[0], remaining, reset)
        return Decision(bool(admitted), wait, (stamp,), (standing,))
    admitted, wait, *words = struct.unpack(f">{len(reply) // 8}q", reply)
    stamps: list[int] = []
    standings: list[QuotaStatus] = []
    at = 0
    for claim in claims:
        stamps.append(words[at])
        at += 1
        for policy in claim.policies:
            standings.append(QuotaStatus(policy, words[at], words[at + 1]))
            at += 2
    return Decision(bool(admitted), wait, tuple(stamps), tuple(standings))
