"""A search for the most expensive request of an operation: hypothesis maximises CPU time."""

import asyncio
from dataclasses import dataclass
from statistics import median

from hypothesis import HealthCheck, Phase, given, settings, target

from tests.factories import Factory
from tests.fuzz.cost import Cost, Meter
from tests.fuzz.good import good, padded
from tests.fuzz.shapes import Case, Operation, cases

SAFE = {"GET", "HEAD", "OPTIONS"}
UNIT = 65_536  # bytes: the cost of a larger request is divided by its size


@dataclass(frozen=True)
class Measured:
    """A request and its cost."""

    case: Case
    cost: Cost

    @property
    def per_unit(self) -> float:
        """Milliseconds of CPU time, for each 64 KiB if the request is larger."""
        return self.cost.ms / max(1, self.cost.size / UNIT)

    def __str__(self) -> str:
        words = "; ".join(self.case.shape)[:150]
        cost = self.cost
        return (
            f"{self.per_unit:6.2f} ms for 64 KiB, {cost.ms:6.2f} ms for {cost.size} bytes: "
            f"{cost.status} of {len(cost.body)} bytes, {self.case.operation.label}: {words}"
        )


class Search:
    """Searches an application, and runs its event loop."""

    def __init__(self, runner: asyncio.Runner, meter: Meter) -> None:
        self.run, self.meter = runner.run, meter
        self.make = Factory(meter.app)
        self.requests = 0
        self.largest = 0  # bytes of an error response's body

    def costliest(self, operation: Operation, place: str, examples: int) -> Measured:
        """Find the most expensive request that differs from a valid request in a place."""
        costliest: list[Measured] = []
        token = self.run(self.make.admin()).token

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.target],
        )
        @given(cases(operation, place, token))
        def climb(case: Case) -> None:
            latest = self.measure(case, 1)
            target(latest.per_unit)
            if not costliest or latest.per_unit > costliest[-1].per_unit:
                again = self.measure(case, 3)  # the first cost may be noise
                if not costliest or again.per_unit > costliest[-1].per_unit:
                    costliest.append(again)

        climb()
        return costliest[-1]

    def measure(self, case: Case, rounds: int) -> Measured:
        """Measure a request; the cheapest round counts."""
        self.requests += rounds
        cost = self.run(self.meter.least(case.as_bytes(), rounds))
        if cost.status >= 400:
            self.largest = max(self.largest, len(cost.body))
        return Measured(case, cost)

    def ratio(self, case: Case, rounds: int, ordinary: Case | None = None) -> float:
        """Compare a request with another request of its size, in turns.

        The other request is a valid request of the operation, or `ordinary`. If the request is
        accepted, the valid request may miss the cache. If it is refused, the valid request hits.
        """
        is_warm = self.measure(case, 1).cost.status >= 400
        hostile, valid = [], []
        for _ in range(rounds):
            valid.append(
                self.valid_ms(case, is_warm=is_warm)
                if ordinary is None
                else self._ms(ordinary, case)
            )
            hostile.append(self.run(self.meter.send(case.as_bytes())).ms)
        return median(hostile) / median(valid)

    def valid_ms(self, case: Case, *, is_warm: bool) -> float:
        """Measure a valid request of the same operation and size.

        is_warm: the cache has the response.
        """
        request = padded(self.run(good(self.make, case.operation)), case)
        if is_warm and case.operation.method in SAFE:
            self.run(self.meter.send(request))
        cost = self.run(self.meter.send(request))
        assert 200 <= cost.status < 400, f"{case.operation.label}: {cost.status} {cost.body!r}"
        return cost.ms

    def _ms(self, ordinary: Case, case: Case) -> float:
        return self.run(self.meter.send(padded(ordinary, case))).ms
