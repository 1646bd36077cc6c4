"""Decide limits in Redis, or in the memory of the process while Redis is unreachable."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import RedisError

from service.limits.memory_store import MemoryLimits
from service.limits.redis_store import RedisLimits
from service.limits.types import Charge, Decision, Policy

RETRY_INTERVAL_SECONDS = 0.25  # without a call to Redis after a failure; then one request tries


class LimitStore:
    """Decides charges, also while Redis fails: `acquire` and `refund` raise no error of Redis.

    shared: the store in Redis; None: limits are only in memory. workers: number of processes on all
    machines. Without Redis, each process admits its share: the limit divided by `workers`, at least
    one unit.
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
        """Whether Redis has failed, and no `acquire` has succeeded in Redis since."""
        return self._retry_at > 0

    async def open(self) -> None:
        """Connect to Redis before the first request. A failure only starts the fallback."""
        if self._shared is not None:
            try:
                await self._shared.connect()
            except (RedisError, OSError) as error:
                self.failed(error)

    def call(self, charges: Sequence[Charge], callback: Callable[[Any], None]) -> None:
        """Decide without a task. Call this only while `is_away` is false.

        callback: gets the Decision, or an exception, which its owner passes to `failed`.
        """
        if self._shared is None:
            callback(self._decide_locally(charges))
        else:
            self._shared.call(charges, callback)

    async def acquire(self, charges: Sequence[Charge]) -> Decision:
        """Admit all charges of a request, or none."""
        if self._shared is not None:
            now = time.monotonic()
            if now >= self._retry_at:
                if self.is_away:
                    self._retry_at = now + RETRY_INTERVAL_SECONDS  # only this request tries Redis
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
        """Remove one unit with the time `stamp` (microseconds) from the log, in both stores."""
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
        """Record a failure of Redis: no request uses Redis for RETRY_INTERVAL_SECONDS seconds."""
        if not self.is_away:
            self.lost += 1
            self._logger.warning(
                "Redis is away (%s): each of %d workers enforces its share of the limits",
                type(error).__name__,
                self._workers,
            )
        self._retry_at = time.monotonic() + RETRY_INTERVAL_SECONDS

    def _return(self) -> None:
        if self.is_away:
            self._retry_at = 0.0
            self._logger.warning("Redis is back: limits are decided in Redis again")
