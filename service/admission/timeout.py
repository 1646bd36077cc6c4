"""Compute the timeout of the admission queue: the budget, or less while requests are refused."""

from math import inf

STEP, SHORTEST = 4, 8  # a step divides the timeout by STEP; the minimum is budget / SHORTEST
GROWTH = 1.5  # a step after which the arrivals grow by more than this factor is undone
FIRST_PAUSE, MAX_PAUSE = 8, 64  # windows without a step after an undone step; doubles


class QueueTimeout:
    """The timeout of the queue: `seconds`, at most the budget.

    The queue reports its events by `arrived`, `refused` and `emptied`. `now` is monotonic time.
    Arrivals and refusals are counted in windows of one budget.
    """

    def __init__(self, budget: float) -> None:
        self.budget = budget
        self.emptied()

    @property
    def is_overloaded(self) -> bool:
        """Whether requests have been refused and the queue has not been empty since."""
        return self._window_end < inf

    def emptied(self) -> None:
        """Reset the timeout to the budget, because the queue is empty."""
        self.seconds = self.budget
        self._window_end = inf
        self._most_arrivals = inf  # in this window; more undo the last step
        self._pause, self._next_pause = 0, FIRST_PAUSE

    def arrived(self, now: float) -> None:
        """Count a request that enters the queue. May undo a step, or end a window."""
        if self._window_end == inf:
            return
        self._arrivals += 1
        if self._arrivals > self._most_arrivals:
            self.seconds = min(STEP * self.seconds, self.budget)
            self._pause = self._next_pause
            self._next_pause = min(2 * self._next_pause, MAX_PAUSE)
            self._begin_window(now)
        elif now >= self._window_end:
            self._end_window(now)

    def refused(self, now: float) -> None:
        """Count a refusal."""
        if self._window_end == inf:
            self._begin_window(now)
        self._refusals += 1

    def _begin_window(self, now: float) -> None:
        self._window_end = now + self.budget
        self._arrivals = self._refusals = 0
        self._most_arrivals = inf

    def _end_window(self, now: float) -> None:
        arrivals = self._arrivals * self.budget / (now - self._window_end + self.budget)
        refusals = self._refusals
        self._begin_window(now)
        if not refusals:
            self.seconds = self.budget
        elif self._pause:
            self._pause -= 1
        elif self.seconds > self.budget / SHORTEST:
            self.seconds = max(self.seconds / STEP, self.budget / SHORTEST)
            self._most_arrivals = GROWTH * arrivals
