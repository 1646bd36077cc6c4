"""The limiter of many processes: one call of decide.lua, by Redis's clock.

What one tick of the loop asks is decided by one call.
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
ONE = struct.Struct(">5q")  # what is said of one claim under one policy, as most are
AT_ONCE = 100  # decisions of one call: Redis does nothing else meanwhile


class Decide:
    """Decides requests, each a list of claims, one after the other."""

    scripts = (DECIDE,)

    def commands(self, asked: Sequence[Sequence[Charge]]) -> list[Command]:
        """Call the script for up to so many of them."""
        calls = []
        for begin in range(0, len(asked), AT_ONCE):
            keys, told = arguments(asked[begin : begin + AT_ONCE])
            calls.append(("EVALSHA", DECIDE_DIGEST, len(keys), *keys, *told))
        return calls

    def answers(
        self, asked: Sequence[Sequence[Charge]], replies: Sequence[list[bytes]], who: str
    ) -> list[Decision]:
        """Read what the script says of each."""
        told = [answer for reply in replies for answer in reply]
        return [decision(claims, answer) for claims, answer in zip(asked, told, strict=True)]


DECIDING, GIVING_BACK = Decide(), Script(GIVE_BACK)


class RedisLimits:
    """Decides in Redis, for every process that asks it. Raises RedisError or OSError."""

    def __init__(self, batcher: RedisBatcher) -> None:
        self.batcher = batcher

    async def connect(self) -> None:
        """Connect beforehand, so that the first request need not wait."""
        await self.batcher.load(DECIDING)

    def call(self, claims: Sequence[Charge], tell: Callable[[Any], None]) -> None:
        """Admit all claims, or none, and tell the decision, or why there is none."""
        self.batcher.submit(DECIDING, claims, tell)

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
    """Give the keys and arguments of decide.lua. `now` (microseconds) is for tests."""
    keys = [claim.key for claims in requests for claim in claims]
    return keys, ["" if now is None else now, *map(_told, requests)]


def _told(claims: Sequence[Charge]) -> bytes:
    if not isinstance(claims, Charges):
        claims = Charges(claims)
    if not claims.told:
        parts = [_told_one(claim.cost, claim.policies) for claim in claims]
        claims.told = struct.pack(">d", len(claims)) + b"".join(parts)
    return claims.told


@lru_cache
def _told_one(cost: int, policies: tuple[Policy, ...]) -> bytes:
    numbers = [number for policy in policies for number in (policy.amount, policy.period)]
    return struct.pack(f">{2 + len(numbers)}d", cost, len(policies), *numbers)


def decision(claims: Sequence[Charge], answer: bytes) -> Decision:
    """Read what the script answers."""
    if len(answer) == ONE.size:
        admitted, wait, stamp, remaining, reset = ONE.unpack(answer)
        standing = QuotaStatus(claims[0].policies[0], remaining, reset)
        return Decision(bool(admitted), wait, (stamp,), (standing,))
    admitted, wait, *words = struct.unpack(f">{len(answer) // 8}q", answer)
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
