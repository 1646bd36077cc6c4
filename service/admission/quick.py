"""Quick requests, which give way while others have waited long."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from math import inf
from typing import NamedTuple

Start = Callable[[float], None]  # is called with the seconds that a request has given way


class GivingWay(NamedTuple):
    """A quick request that gives way: when it came (monotonic time), and what is called then."""

    arrived: float
    start: Start
    context: Context


class QuickRequests:
    """Holds back quick requests while `must_give_way` of the present time, up to `longest` seconds.

    Without it a thousand clients whose answers are in memory take the time of those whose answers
    are not: these are refused, though all of them together are served within the budget.
    """

    def __init__(self, must_give_way: Callable[[float], bool], longest: float) -> None:
        self._must_give_way = must_give_way
        self._longest = longest
        self._held: deque[GivingWay] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def submit(self, start: Start) -> None:
        """Call `start` now, or later in its present context."""
        now = time.monotonic()
        if not self._must_give_way(now):
            return start(0.0)
        self._held.append(GivingWay(now, start, copy_context()))
        if self._timer is None:
            self._set_timer(now)
        return None

    def go_on(self, now: float) -> None:
        """Start those that need not give way any more."""
        if not self._held:
            return
        latest = now - self._longest if self._must_give_way(now) else inf
        loop = asyncio.get_running_loop()
        while self._held and self._held[0].arrived <= latest:
            arrived, start, context = self._held.popleft()
            loop.call_soon(start, now - arrived, context=context)

    def _set_timer(self, now: float) -> None:
        """Look again when the oldest one has given way for the longest time."""
        seconds = self._held[0].arrived + self._longest - now
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look_again)

    def _look_again(self) -> None:
        self._timer, now = None, time.monotonic()
        self.go_on(now)
        if self._held:
            self._set_timer(now)
