"""The limiter of many processes: one call of decide.lua, by Redis's clock.

What one tick of the loop asks is decided by one call.
"""

import struct
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any

from service.limits.claims import Claim, Decision, Policy, Standing
from service.wire import Command, Script, Wire, digest_of

ROOM = files("service.limits")
LOG = (ROOM / "log.lua").read_text(encoding="utf-8")
DECIDE, GIVE_BACK = (
    LOG + (ROOM / name).read_text(encoding="utf-8") for name in ("decide.lua", "give_back.lua")
)
DECIDE_DIGEST = digest_of(DECIDE)
AT_ONCE = 100  # decisions of one call: Redis does nothing else meanwhile


class Decide:
    """Decides requests, each a list of claims, one after the other."""

    scripts = (DECIDE,)

    def commands(self, asked: Sequence[Sequence[Claim]]) -> list[Command]:
        """Call the script for up to so many of them."""
        calls = []
        for begin in range(0, len(asked), AT_ONCE):
            keys, told = arguments(asked[begin : begin + AT_ONCE])
            calls.append(("EVALSHA", DECIDE_DIGEST, len(keys), *keys, *told))
        return calls

    def answers(
        self, asked: Sequence[Sequence[Claim]], replies: Sequence[list[bytes]], who: str
    ) -> list[bytes]:
        """Give what the script says of each."""
        return [answer for reply in replies for answer in reply]


DECIDING, GIVING_BACK = Decide(), Script(GIVE_BACK)


class Shared:
    """Decides in Redis, for every process that asks it. Raises RedisError or OSError."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    async def connect(self) -> None:
        """Connect beforehand, so that the first request need not wait."""
        await self.wire.load(DECIDING)

    async def decide(self, claims: list[Claim]) -> Decision:
        """Admit all claims, or none."""
        return decision(claims, await self.wire.ask(DECIDING, claims))

    async def give_back(self, key: str, stamp: int) -> None:
        """Undo one unit that was admitted at `stamp`."""
        await self.wire.ask(GIVING_BACK, ((key,), (stamp,)))


def arguments(
    requests: Sequence[Sequence[Claim]], now: int | None = None
) -> tuple[list[str], list[Any]]:
    """Give the keys and arguments of decide.lua. `now` (microseconds) is for tests."""
    keys = [claim.key for claims in requests for claim in claims]
    told = [
        struct.pack(">d", len(claims))
        + b"".join([_told(claim.cost, claim.policies) for claim in claims])
        for claims in requests
    ]
    return keys, ["" if now is None else now, *told]


@lru_cache
def _told(cost: int, policies: tuple[Policy, ...]) -> bytes:
    numbers = [number for policy in policies for number in (policy.amount, policy.period)]
    return struct.pack(f">{2 + len(numbers)}d", cost, len(policies), *numbers)


def decision(claims: Sequence[Claim], answer: bytes) -> Decision:
    """Read what the script answers."""
    words = map(int, struct.unpack(f">{len(answer) // 8}d", answer))
    admitted, wait = next(words), next(words)
    stamps: list[int] = []
    standings: list[Standing] = []
    for claim in claims:
        stamps.append(next(words))
        standings += [Standing(policy, next(words), next(words)) for policy in claim.policies]
    return Decision(bool(admitted), wait, tuple(stamps), tuple(standings))
