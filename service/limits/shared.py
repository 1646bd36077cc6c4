"""The limiter of many processes: one call of decide.lua, by Redis's clock."""

from collections.abc import Sequence
from importlib.resources import files

from redis.asyncio import Redis

from service.limits.claims import Claim, Decision, Standing

SCRIPT = (files("service.limits") / "decide.lua").read_text(encoding="utf-8")


class Shared:
    """Decides in Redis, for every process that asks it."""

    def __init__(self, redis: Redis) -> None:
        self._decide = redis.register_script(SCRIPT)

    async def decide(self, claims: Sequence[Claim]) -> Decision:
        """Admit all claims, or none."""
        answer = await self._decide([claim.key for claim in claims], arguments(claims))
        return decision(claims, answer)


def arguments(claims: Sequence[Claim], now: int | None = None) -> list[str | int]:
    """Give what the script is told. `now` (microseconds) is for tests: else Redis says it."""
    told: list[str | int] = ["" if now is None else now]
    for claim in claims:
        told += [claim.cost, len(claim.policies)]
        for policy in claim.policies:
            told += [policy.amount, policy.period]
    return told


def decision(claims: Sequence[Claim], answer: list[int]) -> Decision:
    """Read what the script answers."""
    admitted, wait, *rest = answer
    policies = [policy for claim in claims for policy in claim.policies]
    pairs = zip(policies, rest[::2], rest[1::2], strict=True)
    return Decision(bool(admitted), wait, tuple(Standing(*each) for each in pairs))
