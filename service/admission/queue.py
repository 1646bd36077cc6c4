"""Run a bounded number of requests at once, and queue or refuse other requests."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import inf
from typing import NamedTuple

from service.admission.quick import QuickRequests, Start
from service.admission.timeout import QueueTimeout

MAX_REFUSALS_PER_TICK = 100  # refusals in one tick
LONG_WAIT = 8  # a wait of budget / LONG_WAIT makes quick requests give way
GIVING_WAY = 4  # quick requests give way for at most budget / GIVING_WAY


class Waiting(NamedTuple):
    """A queued request. arrived: monotonic time, minus the time that it had already waited."""

    arrived: float
    admission: "Admission"
    start: Callable[[], None]
    refuse: Callable[[], None]


class AdmissionQueue:
    """Runs up to `limit` requests at once. Other requests wait, and are refused after the timeout.

    The oldest request runs first. While requests are being refused, costly requests run after all
    other requests.

    budget: maximum wait in seconds. oldest_elsewhere: returns since when (monotonic time) a running
    request waits for other work on the CPU of this process (threads of SQLite); inf: none waits.
    """

    def __init__(
        self, limit: int, budget: float, oldest_elsewhere: Callable[[], float] = lambda: inf
    ) -> None:
        self.limit = limit
        self._oldest_elsewhere = oldest_elsewhere
        self.timeout = QueueTimeout(budget)
        self.running = self.waiting = 0  # current numbers of requests
        self.refused = 0  # requests since the start of the process
        self._ordinary: deque[Waiting] = deque()
        self._costly: deque[Waiting] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._quick = QuickRequests(self._is_wait_long, budget / GIVING_WAY)

    @property
    def budget(self) -> float:
        """The maximum wait of a request, in seconds."""
        return self.timeout.budget

    @property
    def is_full(self) -> bool:
        """Whether a new request has to wait."""
        return self.running >= self.limit

    def submit(
        self,
        admission: "Admission",
        start: Callable[[], None],
        refuse: Callable[[], None],
        *,
        is_costly: bool = False,
    ) -> None:
        """Call `start` now or at the request's turn, or `refuse` after the timeout.

        Neither is called if the admission ends before.
        """
        if self.running < self.limit:
            return self._start(admission, start)
        now = time.monotonic()
        queue = self._costly if is_costly else self._ordinary
        queue.append(Waiting(now - admission.waited, admission, start, refuse))
        admission.is_waiting = True
        self.waiting += 1
        before = self.timeout.seconds
        self.timeout.arrived(now)
        if self._timer is None or self.timeout.seconds < before:
            self._set_timer(now)
        return None

    def submit_quick(self, start: Start) -> None:
        """Call `start` of a quick request, which is likely to cost little and needs no turn.

        A quick request starts at once, unless another request has waited for an eighth of the
        budget. Then it gives way, for at most a quarter of the budget. While requests are being
        refused, it starts at once again, because the server can still serve it.
        """
        if self.waiting or self._oldest_elsewhere() < inf:
            self._quick.submit(start)
        else:
            start(0.0)

    def release(self) -> None:
        """Start waiting requests, because a running request has ended or is paused."""
        self.running -= 1
        now = time.monotonic()
        while self.running < self.limit and self.waiting:
            arrived, admission, start, _ = self._next()
            admission.waited = now - arrived
            self._start(admission, start)
        if self._timer is not None and not self.waiting:
            self._timer.cancel()
            self._timer = None
            self.timeout.emptied()
        self._quick.release_held(now)

    def resume(self) -> None:
        """Count a paused request as running again, even above the limit."""
        self.running += 1

    def _start(self, admission: "Admission", start: Callable[[], None]) -> None:
        self.running += 1
        admission.is_running = True
        start()

    def _next(self) -> Waiting:
        ordinary, costly = self._oldest(self._ordinary), self._oldest(self._costly)
        if costly is None or (
            ordinary is not None
            and (self.timeout.is_overloaded or ordinary.arrived <= costly.arrived)
        ):
            return self._take(self._ordinary)
        return self._take(self._costly)

    def _oldest(self, queue: deque[Waiting]) -> Waiting | None:
        while queue and not queue[0].admission.is_waiting:
            queue.popleft()  # its client has disconnected
        return queue[0] if queue else None

    def _oldest_arrival(self) -> float:
        """Return the arrival of the oldest waiting request (monotonic); inf: none waits."""
        oldest = (self._oldest(queue) for queue in (self._ordinary, self._costly))
        return min((waiting.arrived for waiting in oldest if waiting), default=inf)

    def _is_wait_long(self, now: float) -> bool:
        oldest = min(self._oldest_arrival(), self._oldest_elsewhere())
        is_long = now - oldest > self.budget / LONG_WAIT
        return is_long and not self.timeout.is_overloaded

    def _take(self, queue: deque[Waiting]) -> Waiting:
        waiting = queue.popleft()
        waiting.admission.is_waiting = False
        self.waiting -= 1
        return waiting

    def _set_timer(self, now: float) -> None:
        """Set the timer to the time when the oldest request will reach the timeout."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        oldest = self._oldest_arrival()
        if oldest < inf:
            seconds = max(0.0, oldest + self.timeout.seconds - now)
            self._timer = asyncio.get_running_loop().call_later(seconds, self._refuse_oldest)

    def _refuse_oldest(self) -> None:
        """Refuse requests that have reached the timeout, costly requests first."""
        now, number = time.monotonic(), 0
        for queue in (self._costly, self._ordinary):
            while (
                number < MAX_REFUSALS_PER_TICK
                and (oldest := self._oldest(queue)) is not None
                and oldest.arrived + self.timeout.seconds <= now
            ):
                number += 1
                self.refused += 1
                self.timeout.refused(now)
                self._take(queue).refuse()
        self._timer = None
        self._set_timer(now)
        if not self.waiting:
            self.timeout.emptied()


class Admission:
    """The turn of one request, and the time that it has spent waiting.

    waited: total seconds of waiting: in the queue, as a quick request, for a database connection,
    and for a thread that hashes passwords. is_waiting: the request is in the queue. is_running: the
    queue counts the request as running.
    """

    __slots__ = ("_queue", "is_running", "is_waiting", "waited")

    def __init__(self, queue: AdmissionQueue, waited: float = 0.0) -> None:
        self._queue = queue
        self.waited = waited
        self.is_waiting = self.is_running = False

    @property
    def seconds_left(self) -> float:
        """The rest of the budget, in seconds."""
        return max(0.0, self._queue.budget - self.waited)

    def end(self) -> None:
        """End the turn, or leave the queue. A second call has no effect."""
        if self.is_waiting:
            self.is_waiting = False
            self._queue.waiting -= 1
        if self.is_running:
            self.is_running = False
            self._queue.release()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let another request run while this request does not need the event loop."""
        is_running, self.is_running = self.is_running, False
        if is_running:
            self._queue.release()
        try:
            yield
        finally:
            if is_running:
                self._queue.resume()
                self.is_running = True


# The admission of the current request; None in a background task.
current: ContextVar[Admission | None] = ContextVar("admission", default=None)


def seconds_left(budget: float) -> float:
    """Return how many seconds the current request may still wait; outside a request, `budget`."""
    admission = current.get()
    return budget if admission is None else admission.seconds_left


@contextmanager
def waiting() -> Iterator[None]:
    """Add the duration of the block to the waiting time of the current request."""
    admission, begun = current.get(), time.monotonic()
    try:
        yield
    finally:
        if admission is not None:
            admission.waited += time.monotonic() - begun
