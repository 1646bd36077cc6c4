"""Who decides: Redis if there is one, and each process by itself while it cannot be reached."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import RedisError

from service.limits.memory_store import MemoryLimits
from service.limits.redis_store import RedisLimits
from service.limits.types import Charge, Decision, Policy

PAUSE = 0.25  # seconds that Redis is left alone after a failure; then one request tries it


class LimitStore:
    """Decides. Never an error, and never without a limit.

    workers: how many processes share a limit, over all machines. Without Redis each admits its
    part, and at least one unit.
    """

    def __init__(self, shared: RedisLimits | None, workers: int, logger: logging.Logger) -> None:
        self._shared = shared
        self._workers = workers
        self._logger = logger
        self._local = MemoryLimits()
        self._retry_at = 0.0
        self.lost = 0  # how often Redis went away
        self.decided_locally = 0  # while it was away

    @property
    def is_away(self) -> bool:
        """Whether Redis is not answering at present."""
        return self._retry_at > 0

    async def open(self) -> None:
        """Connect to Redis, if it is there."""
        if self._shared is not None:
            try:
                await self._shared.connect()
            except (RedisError, OSError) as error:
                self.failed(error)

    def call(self, claims: Sequence[Charge], tell: Callable[[Any], None]) -> None:
        """Decide while Redis is there, and tell the decision; or an error, for `failed`."""
        if self._shared is None:
            tell(self._decide_here(claims))
        else:
            self._shared.call(claims, tell)

    async def decide(self, claims: Sequence[Charge]) -> Decision:
        """Admit all claims, or none."""
        if self._shared is not None:
            now = time.monotonic()
            if now >= self._retry_at:
                if self.is_away:
                    self._retry_at = now + PAUSE  # this one tries; the others go on without
                try:
                    decision = await self._shared.decide(claims)
                except (RedisError, OSError) as error:
                    self.failed(error)
                else:
                    self._return()
                    return decision
            self.decided_locally += 1
        return self._decide_here(claims)

    def _decide_here(self, claims: Sequence[Charge]) -> Decision:
        if self._workers == 1:
            return self._local.decide(claims)
        parts = [claim._replace(policies=self._parts(claim.policies)) for claim in claims]
        decision = self._local.decide(parts)
        whole = [policy for claim in claims for policy in claim.policies]
        return decision._replace(
            standings=tuple(
                standing._replace(policy=policy)
                for standing, policy in zip(decision.standings, whole, strict=True)
            ),
        )

    async def give_back(self, key: str, stamp: int) -> None:
        """Undo one unit that was admitted at `stamp`, wherever that was."""
        self._local.give_back(key, stamp)
        if self._shared is not None and not self.is_away:
            try:
                await self._shared.give_back(key, stamp)
            except (RedisError, OSError) as error:
                self.failed(error)

    def _parts(self, policies: tuple[Policy, ...]) -> tuple[Policy, ...]:
        return tuple(
            policy._replace(amount=max(1, policy.amount // self._workers)) for policy in policies
        )

    def failed(self, error: Exception) -> None:
        """Hear that Redis did not answer: for a while, it is not asked."""
        if not self.is_away:
            self.lost += 1
            self._logger.warning(
                "Redis is away (%s): each of %d workers keeps its part of the limits by itself",
                type(error).__name__,
                self._workers,
            )
        self._retry_at = time.monotonic() + PAUSE

    def _return(self) -> None:
        if self.is_away:
            self._retry_at = 0.0
            self._logger.warning("Redis is back: the limits are kept there again")
