"""Hold back quick requests while other requests have waited long."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from math import inf
from typing import NamedTuple

Start = Callable[[float], None]  # argument: seconds for which the request was held back


class HeldRequest(NamedTuple):
    """A quick request that is held back. arrived: monotonic time."""

    arrived: float
    start: Start
    context: Context


class QuickRequests:
    """Holds back quick requests while `must_give_way(now)` is true, up to `longest` seconds.

    now: monotonic time. Without this, the quick requests of a thousand clients use all CPU time.
    Other requests are then refused, although the server could serve all within the budget.
    """

    def __init__(self, must_give_way: Callable[[float], bool], longest: float) -> None:
        self._must_give_way = must_give_way
        self._longest = longest
        self._held: deque[HeldRequest] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def submit(self, start: Start) -> None:
        """Call `start` now, or later in a copy of the current context (`contextvars`)."""
        now = time.monotonic()
        if not self._must_give_way(now):
            return start(0.0)
        self._held.append(HeldRequest(now, start, copy_context()))
        if self._timer is None:
            self._set_timer(now)
        return None

    def release_held(self, now: float) -> None:
        """Start the requests that need not be held back any more."""
        if not self._held:
            return
        latest = now - self._longest if self._must_give_way(now) else inf
        loop = asyncio.get_running_loop()
        while self._held and self._held[0].arrived <= latest:
            arrived, start, context = self._held.popleft()
            loop.call_soon(start, now - arrived, context=context)

    def _set_timer(self, now: float) -> None:
        """Set the timer to the time when the oldest request will have waited `longest` seconds."""
        seconds = self._held[0].arrived + self._longest - now
        self._timer = asyncio.get_running_loop().call_later(seconds, self._on_timer)

    def _on_timer(self) -> None:
        self._timer, now = None, time.monotonic()
        self.release_held(now)
        if self._held:
            self._set_timer(now)
