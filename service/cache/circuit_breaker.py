"""A circuit breaker: while it is open, reads skip a store that does not reply."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable

from redis.exceptions import RedisError

from service.cache.counters import Counters
from service.timeouts import LoopTimeout, cancel_and_wait

FAILURES = (RedisError, OSError)  # TimeoutError is an OSError
TIMES, WITHIN = 3, 1.0  # number of failures, within this number of seconds
PROBE_INTERVAL_SECONDS = 1.0
PROBE_SECONDS = 0.1  # timeout of a probe


class CircuitBreaker:
    """Opens at the third failure within one second. A successful probe closes it.

    The probe runs in a task of its own: no reader waits for it.
    """

    def __init__(
        self, probe: Callable[[], Awaitable[object]], counters: Counters, logger: logging.Logger
    ) -> None:
        self._probe = probe
        self._counters = counters
        self._logger = logger
        self._failures: deque[float] = deque(maxlen=TIMES)
        self._probing: asyncio.Task[None] | None = None
        self.is_open = False  # readers skip the store

    def failed(self, error: Exception) -> None:
        """Count a failure, and open at the third within one second."""
        if self.is_open:
            return
        now = time.monotonic()
        self._failures.append(now)
        if len(self._failures) == TIMES and now - self._failures[0] <= WITHIN:
            self._failures.clear()
            self._counters.breaker_openings += 1
            self._logger.warning(
                "The cache's Redis is unavailable (%s): reads use SQL", type(error).__name__
            )
            self.is_open = True
            self._probing = asyncio.create_task(self._probe_until_well())

    async def close(self) -> None:
        """Stop probing."""
        if self._probing is not None:
            await cancel_and_wait(self._probing)

    async def _probe_until_well(self) -> None:
        while True:
            await asyncio.sleep(PROBE_INTERVAL_SECONDS)
            try:
                async with LoopTimeout(PROBE_SECONDS):
                    await self._probe()
            except FAILURES:
                continue
            except Exception:
                self._logger.exception("The probe of the cache's Redis failed")
                continue
            break
        self._probing, self.is_open = None, False
        self._logger.warning("The cache's Redis is available again")
