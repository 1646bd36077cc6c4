"""The limiter of many processes: one call of decide.lua, by Redis's clock.

What one tick of the loop asks, and whatever comes while an answer is on its way, goes together.
"""

import asyncio
import struct
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha1
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from service.limits.claims import Claim, Decision, Policy, Standing
from service.patience import Patience

ROOM = files("service.limits")
LOG = (ROOM / "log.lua").read_text(encoding="utf-8")
DECIDE, GIVE_BACK = (
    LOG + (ROOM / name).read_text(encoding="utf-8") for name in ("decide.lua", "give_back.lua")
)
SHA = {script: sha1(script.encode()).hexdigest() for script in (DECIDE, GIVE_BACK)}  # noqa: S324
AT_ONCE = 100  # decisions of one call: Redis does nothing else meanwhile

Call = list[Claim] | tuple[str, int]  # what is to be decided, or given back


class Shared:
    """Decides in Redis, for every process that asks it.

    deadline: seconds; whoever has waited longer gets TimeoutError.
    """

    def __init__(self, redis: Redis, deadline: float) -> None:
        self._redis = redis
        self._deadline = deadline
        self._waiting: list[tuple[Call, asyncio.Future[Any]]] = []
        self._sending: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        """Connect beforehand, so that the first request need not wait. Raises as `decide`."""
        async with Patience(self._deadline):
            await self._load()

    async def decide(self, claims: list[Claim]) -> Decision:
        """Admit all claims, or none. Raises RedisError, OSError or TimeoutError."""
        return decision(claims, await self._call(claims))

    async def give_back(self, key: str, stamp: int) -> None:
        """Undo one unit that was admitted at `stamp`. Raises as `decide`."""
        await self._call((key, stamp))

    async def _call(self, call: Call) -> Any:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((call, answer))
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send())
        return await answer

    async def _send(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                async with Patience(self._deadline):
                    found = await self._ask([call for call, _ in batch])
            except Exception as error:
                batch += self._waiting  # whoever queued behind has waited as well
                self._waiting = []
                found = [error] * len(batch)
            for (_, answer), one in zip(batch, found, strict=True):
                if answer.done():
                    continue  # nobody waits for it any more
                if isinstance(one, Exception):
                    answer.set_exception(one)
                else:
                    answer.set_result(one)

    async def _ask(self, calls: list[Call]) -> list[Any]:
        """Give the answers to all calls: of those that decide, by one call of the script."""
        found: dict[int, Any] = {}
        deciding = [(n, call) for n, call in enumerate(calls) if isinstance(call, list)]
        for begin in range(0, len(deciding), AT_ONCE):
            numbers, claims = zip(*deciding[begin : begin + AT_ONCE], strict=True)
            found |= zip(numbers, await self._run(DECIDE, *arguments(claims)), strict=True)
        for n, call in enumerate(calls):
            if isinstance(call, tuple):
                found[n] = await self._run(GIVE_BACK, [call[0]], [call[1]])
        return [found[n] for n in range(len(calls))]

    async def _run(self, script: str, keys: list[str], told: list[Any]) -> Any:
        try:
            return await self._redis.evalsha(SHA[script], len(keys), *keys, *told)
        except NoScriptError:  # a new Redis, or one that was flushed
            await self._load()
            return await self._redis.evalsha(SHA[script], len(keys), *keys, *told)

    async def _load(self) -> None:
        for script in SHA:
            await self._redis.script_load(script)


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
