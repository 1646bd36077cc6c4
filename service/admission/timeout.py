"""How long a request may wait in the admission queue: a budget, or less while it overflows."""

from math import inf

STEP, SHORTEST = 4, 8  # a step divides the timeout by STEP, down to budget / SHORTEST
GROWTH = 1.5  # a step that multiplies the arrivals by this is undone
FIRST_PAUSE, LONGEST_PAUSE = 8, 64  # budgets after an undone step, doubled each time


class QueueTimeout:
    """How long a request may wait in the queue: `seconds`, at most the budget.

    `arrived`, `refused` and `emptied` report what happens in the queue; `now` is monotonic time.
    """

    def __init__(self, budget: float) -> None:
        self.budget = budget
        self.emptied()

    @property
    def is_overloaded(self) -> bool:
        """Whether requests have been refused and the queue has not been empty since."""
        return self._window_end < inf

    def emptied(self) -> None:
        """Reset: the queue is empty."""
        self.seconds = self.budget
        self._window_end = inf
        self._most_arrivals = inf  # in this window, before the last step is undone
        self._pause, self._next_pause = 0, FIRST_PAUSE

    def arrived(self, now: float) -> None:
        """Count a request that joins the queue."""
        if self._window_end == inf:
            return
        self._arrivals += 1
        if self._arrivals > self._most_arrivals:
            self.seconds = min(STEP * self.seconds, self.budget)
            self._pause = self._next_pause
            self._next_pause = min(2 * self._next_pause, LONGEST_PAUSE)
            self._begin_window(now)
        elif now >= self._window_end:
            self._end_window(now)

    def refused(self, now: float) -> None:
        """Count a request that has waited too long."""
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
