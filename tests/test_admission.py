"""Admission control in simulated time: bursts, closed loops, open loops, and their mixtures."""

import heapq
import itertools
from collections.abc import Callable
from functools import partial
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest

from service.admission import Admission, AdmissionQueue, queue, quick
from service.admission.timeout import FIRST_PAUSE, SHORTEST, QueueTimeout

LIMIT, BUDGET = 64, 2.0


class Simulation:
    """A server with one core in simulated time: it runs the admitted requests in order.

    rate: requests that it completes a second. The clients record the results of their requests.
    """

    def __init__(self, rate: float) -> None:
        self.now = 1_000.0
        self.service_seconds = 1 / rate
        self.queue = AdmissionQueue(LIMIT, BUDGET)
        self.busy_until = self.quick_until = 0.0
        self.waits: list[float] = []  # seconds, of admitted requests
        self.refusals: list[float] = []  # moments
        self.longest_quick = 0.0  # wait for the response to a quick request
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Any:
        """Stand in for the event loop."""
        event = [callback]
        at = (self.now + seconds, next(self._numbers), lambda: event[0]())
        heapq.heappush(self._events, at)

        def cancel() -> None:
            event[0] = lambda: None

        return SimpleNamespace(cancel=cancel)

    def request(
        self, done: Callable[[], None] = lambda: None, *, is_costly: bool = False
    ) -> list[str]:
        """Send a request; `done` is called at its response, which the list then holds."""
        arrived, outcome = self.now, list[str]()

        def start() -> None:
            self.waits.append(self.now - arrived)
            self.busy_until = max(self.busy_until, self.now) + self.service_seconds
            self.call_later(self.busy_until - self.now, end)

        def end() -> None:
            outcome.append("ok")
            self.queue.release()
            done()

        def refuse() -> None:
            outcome.append("refused")
            self.refusals.append(self.now)
            self.call_later(0.001, done)  # from the server to the client and back

        self.queue.submit(Admission(self.queue), start, refuse, is_costly=is_costly)
        return outcome

    def call_soon(self, callback: Callable[..., None], *args: Any, context: Any) -> None:
        """Stand in for the event loop."""
        self.call_later(0.0, partial(context.run, callback, *args))

    def quick_request(self, done: Callable[[], None]) -> None:
        """Send a request whose response is in memory: it costs a twentieth of the others."""
        arrived = self.now

        def start(_: float) -> None:  # other requests continue later
            seconds = self.service_seconds / 20
            self.busy_until = max(self.busy_until, self.now) + seconds
            self.quick_until = max(self.quick_until, self.now) + seconds
            self.call_later(self.quick_until - self.now, end)

        def end() -> None:
            self.longest_quick = max(self.longest_quick, self.now - arrived)
            done()

        self.queue.submit_quick(start)

    def closed_loop(self, connections: int, until: float) -> None:
        """Let clients repeat their requests as soon as they have a response."""

        def send() -> None:
            if self.now < until:
                self.request(send)

        for _ in range(connections):
            send()

    def open_loop(self, rate: float, until: float) -> None:
        """Send requests at a rate, whatever their responses."""
        if self.now < until:
            self.request()
            self.call_later(1 / rate, lambda: self.open_loop(rate, until))

    def run(self, until: float) -> None:
        """Let time pass."""
        while self._events and self._events[0][0] <= until:
            at, _, callback = heapq.heappop(self._events)
            self.now = max(self.now, at)
            callback()
        self.now = until


@pytest.fixture
def simulate(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Simulation]:
    """Make a simulation, and let the queue use its clock and its loop."""

    def make(rate: float) -> Simulation:
        simulation = Simulation(rate)
        clock = SimpleNamespace(monotonic=lambda: simulation.now)
        loop = SimpleNamespace(get_running_loop=lambda: simulation)
        for module in (queue, quick):
            monkeypatch.setattr(module, "time", clock)
            monkeypatch.setattr(module, "asyncio", loop)
        return simulation

    return make


Simulate = Callable[[float], Simulation]


@pytest.mark.parametrize("number", [1, LIMIT, LIMIT + 1, 900])
def test_a_burst_within_the_budget_is_served_completely(simulate: Simulate, number: int) -> None:
    simulation = simulate(500)
    for _ in range(number):
        simulation.request()
    simulation.run(simulation.now + 10)
    assert len(simulation.waits) == number
    assert not simulation.refusals
    assert simulation.queue.running == simulation.queue.waiting == 0


def test_of_a_larger_burst_only_requests_beyond_the_budget_are_refused(simulate: Simulate) -> None:
    simulation = simulate(500)
    begun = simulation.now
    for _ in range(3_000):
        simulation.request()
    simulation.run(begun + 20)
    # Requests that run at once do not wait in the queue, so a few more are served.
    assert 500 * BUDGET <= len(simulation.waits) <= 500 * BUDGET + 2 * LIMIT
    assert len(simulation.waits) + len(simulation.refusals) == 3_000
    assert max(simulation.refusals) <= begun + BUDGET + 0.1


@pytest.mark.parametrize(("connections", "rate"), [(32, 100), (256, 200), (1_000, 550)])
def test_a_closed_loop_that_is_served_within_the_budget_is_never_refused(
    simulate: Simulate, connections: int, rate: float
) -> None:
    simulation = simulate(rate)
    end = simulation.now + 60
    simulation.closed_loop(connections, end)
    simulation.run(end + 10)
    assert not simulation.refusals
    assert len(simulation.waits) >= 60 * rate


@pytest.mark.parametrize("rate", [250, 350, 450])
def test_of_a_closed_loop_only_requests_beyond_the_budget_are_refused(
    simulate: Simulate, rate: float
) -> None:
    simulation = simulate(rate)
    end = simulation.now + 60
    simulation.closed_loop(1_000, end)
    simulation.run(end)
    beyond = 60 * (1_000 - LIMIT - rate * BUDGET) / BUDGET
    steps = 4 * 1_500  # each step down that is undone costs this many
    assert 0.9 * beyond <= len(simulation.refusals) <= beyond + steps
    assert len(simulation.waits) >= 59 * rate


@pytest.mark.parametrize("factor", [1.2, 1.5, 3, 10])
def test_an_open_loop_beyond_the_peak_keeps_goodput_and_short_waits(
    simulate: Simulate, factor: float
) -> None:
    simulation = simulate(500)
    end = simulation.now + 60
    simulation.open_loop(500 * factor, end)
    simulation.run(end)
    assert len(simulation.waits) >= 0.95 * 60 * 500
    assert median(simulation.waits) <= BUDGET / 4
    assert sum(wait > BUDGET / 4 for wait in simulation.waits) < 0.3 * len(simulation.waits)
    simulation.run(end + BUDGET)
    assert simulation.queue.running == simulation.queue.waiting == 0, "the queue is empty"
    assert simulation.queue.timeout.seconds == BUDGET, "the queue has forgotten the overload"


def test_costly_requests_are_refused_first_during_an_overload(simulate: Simulate) -> None:
    simulation = simulate(500)
    end = simulation.now + 20
    outcomes: dict[bool, list[list[str]]] = {True: [], False: []}

    def send(is_costly: bool) -> None:
        if simulation.now < end:
            outcomes[is_costly].append(simulation.request(is_costly=is_costly))
            simulation.call_later(1 / 450, lambda: send(is_costly))

    send(True)
    send(False)
    simulation.run(end + 10)
    refused = {kind: sum(item == ["refused"] for item in outcomes[kind]) for kind in outcomes}
    assert refused[True] > 5_000
    assert refused[False] < 0.2 * refused[True]


def test_the_oldest_request_comes_first_before_an_overload(simulate: Simulate) -> None:
    simulation = simulate(500)
    for _ in range(LIMIT):
        simulation.request()
    order: list[int] = []
    for number, is_costly in enumerate([True, False, True, True, False]):
        simulation.now += 0.0001
        simulation.request(partial(order.append, number), is_costly=is_costly)
    simulation.run(simulation.now + 5)
    assert order == [0, 1, 2, 3, 4]


def test_a_pause_of_the_machine_refuses_no_request(simulate: Simulate) -> None:
    simulation = simulate(500)
    end = simulation.now + 10
    simulation.closed_loop(256, end)
    for _ in range(2):
        simulation.run(simulation.now + 2)
        simulation.now += 0.3  # nothing happens
        simulation.busy_until += 0.3
    simulation.run(end + 10)
    assert not simulation.refusals


def test_a_request_of_a_disconnected_client_takes_no_turn(simulate: Simulate) -> None:
    simulation = simulate(500)
    for _ in range(LIMIT):
        simulation.request()
    started: list[int] = []

    turns = [Admission(simulation.queue) for _ in range(3)]
    for number, turn in enumerate(turns):
        simulation.queue.submit(turn, partial(started.append, number), lambda: None)
    for turn in turns[:2]:
        turn.end()
    assert simulation.queue.waiting == 1
    simulation.queue.release()
    assert started == [2]
    assert simulation.queue.running == LIMIT


def test_a_request_that_waits_elsewhere_lets_another_request_run(simulate: Simulate) -> None:
    simulation = simulate(500)
    turns = [Admission(simulation.queue) for _ in range(LIMIT + 1)]
    for turn in turns:
        turn.waited = 0.5
        simulation.queue.submit(turn, lambda: None, lambda: None)
    first, last = turns[0], turns[-1]
    assert simulation.queue.waiting == 1
    with first.paused():
        assert simulation.queue.waiting == 0
        assert simulation.queue.running == LIMIT
    assert simulation.queue.running == LIMIT + 1
    assert first.seconds_left == BUDGET - 0.5
    for turn in (first, first, last):
        turn.end()
    assert simulation.queue.running == LIMIT - 1, "an admission ends once"


def test_a_step_is_undone_when_it_brings_more_requests() -> None:
    timeout, now = QueueTimeout(BUDGET), 0.0

    def window(arrivals: int) -> float:
        nonlocal now
        timeout.refused(now)
        for _ in range(arrivals):
            now += BUDGET / arrivals
            timeout.arrived(now)
        now += 0.01
        timeout.arrived(now)
        return timeout.seconds

    assert timeout.seconds == BUDGET
    assert window(100) == BUDGET / 4
    assert window(200) == BUDGET
    for _ in range(FIRST_PAUSE - 1):
        assert window(100) == BUDGET
    for _ in range(10):
        window(100)
    assert timeout.seconds == BUDGET / SHORTEST


@pytest.mark.parametrize("gives_way", [True, False])
def test_quick_requests_cause_no_refusal_of_others(
    simulate: Simulate, monkeypatch: pytest.MonkeyPatch, gives_way: bool
) -> None:
    """1,000 clients read a catalogue in order, and 990 rows of it are not in memory."""
    simulation = simulate(900)
    if not gives_way:
        name = "_is_wait_long"  # private: the defect is a queue without this rule
        monkeypatch.setattr(AdmissionQueue, name, lambda *_: False)
        simulation.queue = AdmissionQueue(LIMIT, BUDGET)
    until = simulation.now + 6
    numbers = itertools.count()

    def send() -> None:
        if simulation.now >= until:
            return
        number = next(numbers)
        if number % 40_000 < 990:
            simulation.request(send)
        else:
            simulation.quick_request(send)

    for _ in range(1_000):
        send()
    simulation.run(until + 10)
    assert simulation.queue.waiting == 0
    assert (len(simulation.refusals) == 0) == gives_way
    assert simulation.longest_quick < (BUDGET / 2 if gives_way else 0.2)


def test_an_earlier_wait_of_a_request_counts_for_its_budget(simulate: Simulate) -> None:
    simulation = simulate(100)
    for _ in range(LIMIT + 400):
        simulation.request()
    outcome: list[str] = []
    simulation.queue.submit(
        Admission(simulation.queue, BUDGET * 0.75),
        lambda: outcome.append("started"),
        lambda: outcome.append("refused"),
    )
    simulation.run(simulation.now + BUDGET * 1.1)
    assert outcome == ["refused"]
    assert simulation.refusals[0] >= 1_000 + BUDGET
