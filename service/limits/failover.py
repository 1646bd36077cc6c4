"""Selects the store that decides: Redis, or process memory while Redis is unreachable."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import RedisError

from service.limits.memory_store import MemoryLimits
from service.limits.redis_store import RedisLimits
from service.limits.types import Charge, Decision, Policy

PAUSE = 0.25  # seconds without a request to Redis after a failure; then one request retries


class LimitStore:
    """Decides without raising errors. A limit always applies.

    workers: number of processes that share a limit, over all machines. Without Redis each process
    admits its share of the limit, at least one unit.
    """

    def __init__(self, shared: RedisLimits | None, workers: int, logger: logging.Logger) -> None:
        self._shared = shared
        self._workers = workers
        self._logger = logger
        self._local = MemoryLimits()
        self._retry_at = 0.0
        self.lost = 0  # number of outages of Redis
        self.decided_locally = 0  # number of decisions during outages

    @property
    def is_away(self) -> bool:
        """Whether Redis is unreachable at present."""
        return self._retry_at > 0

    async def open(self) -> None:
        """Connect to Redis, if it is reachable."""
        if self._shared is not None:
            try:
                await self._shared.connect()
            except (RedisError, OSError) as error:
                self.failed(error)

    def call(self, charges: Sequence[Charge], callback: Callable[[Any], None]) -> None:
        """Decide while Redis is reachable. `callback` gets a decision or an error for `failed`."""
        if self._shared is None:
            callback(self._decide_locally(charges))
        else:
            self._shared.call(charges, callback)

    async def acquire(self, charges: Sequence[Charge]) -> Decision:
        """Admit all claims, or none."""
        if self._shared is not None:
            now = time.monotonic()
            if now >= self._retry_at:
                if self.is_away:
                    self._retry_at = now + PAUSE  # only this request retries Redis
                try:
                    decision = await self._shared.acquire(charges)
                except (RedisError, OSError) as error:
                    self.failed(error)
                else:
                    self._return()
                    return decision
            self.decided_locally += 1
        return self._decide_locally(charges)

    def _decide_locally(self, charges: Sequence[Charge]) -> Decision:
        if self._workers == 1:
            return self._local.acquire(charges)
        shares = [charge._replace(policies=self._shares(charge.policies)) for charge in charges]
        decision = self._local.acquire(shares)
        whole = [policy for charge in charges for policy in charge.policies]
        return decision._replace(
            quotas=tuple(
                quota._replace(policy=policy)
                for quota, policy in zip(decision.quotas, whole, strict=True)
            ),
        )

    async def refund(self, key: str, stamp: int) -> None:
        """Undo one unit that was admitted at `stamp`, in either store."""
        self._local.refund(key, stamp)
        if self._shared is not None and not self.is_away:
            try:
                await self._shared.refund(key, stamp)
            except (RedisError, OSError) as error:
                self.failed(error)

    def _shares(self, policies: tuple[Policy, ...]) -> tuple[Policy, ...]:
        return tuple(
            policy._replace(amount=max(1, policy.amount // self._workers)) for policy in policies
        )

    def failed(self, error: Exception) -> None:
        """Record a failure of Redis: no request uses Redis for PAUSE seconds."""
        if not self.is_away:
            self.lost += 1
            self._logger.warning(
                "Redis is away (%s): each of %d workers enforces its share of the limits",
                type(error).__name__,
                self._workers,
            )
        self._retry_at = time.monotonic() + PAUSE

    def _return(self) -> None:
        if self.is_away:
            self._retry_at = 0.0
            self._logger.warning("Redis is back: limits are decided in Redis again")
