"""A search for the dearest request of an operation: hypothesis climbs by CPU time."""

import asyncio
from dataclasses import dataclass
from statistics import median

from hypothesis import HealthCheck, Phase, given, settings, target

from tests.factories import Factory
from tests.fuzz.cost import Cost, Meter
from tests.fuzz.good import good, padded
from tests.fuzz.shapes import Case, Operation, cases

SAFE = {"GET", "HEAD", "OPTIONS"}
UNIT = 65_536  # bytes that a request may cost its milliseconds for; a smaller one may, too


@dataclass(frozen=True)
class Found:
    """A request, and what it costs. per_unit: milliseconds of CPU for 64 KiB of it."""

    case: Case
    cost: Cost

    @property
    def per_unit(self) -> float:
        """Its cost, as a request of 64 KiB, if it is larger."""
        return self.cost.ms / max(1, self.cost.size / UNIT)

    def __str__(self) -> str:
        words = "; ".join(self.case.shape)[:150]
        cost = self.cost
        return (
            f"{self.per_unit:6.2f} ms for 64 KiB, {cost.ms:6.2f} ms for {cost.size} bytes: "
            f"{cost.status} of {len(cost.body)} bytes, {self.case.operation.label}: {words}"
        )


class Search:
    """Searches one application, whose loop it runs."""

    def __init__(self, runner: asyncio.Runner, meter: Meter) -> None:
        self.run, self.meter = runner.run, meter
        self.make = Factory(meter.app)
        self.requests = 0
        self.largest = 0  # bytes of an error's body

    def dearest(self, operation: Operation, place: str, examples: int) -> Found:
        """Find the dearest request that differs from a good one in a place."""
        dearest: list[Found] = []
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
            if not dearest or latest.per_unit > dearest[-1].per_unit:
                again = self.measure(case, 3)  # it may have been noise
                if not dearest or again.per_unit > dearest[-1].per_unit:
                    dearest.append(again)

        climb()
        return dearest[-1]

    def measure(self, case: Case, rounds: int) -> Found:
        """Measure a request; the cheapest of some rounds counts."""
        self.requests += rounds
        cost = self.run(self.meter.least(case.as_bytes(), rounds))
        if cost.status >= 400:
            self.largest = max(self.largest, len(cost.body))
        return Found(case, cost)

    def ratio(self, case: Case, rounds: int, ordinary: Case | None = None) -> float:
        """Compare a request with another one of its size, in turns.

        That is a good one of its operation, unless an `ordinary` mistake is given. What is
        answered may have gone past the cache; what is refused has no reason to.
        """
        is_warm = self.measure(case, 1).cost.status >= 400
        hostile, fine = [], []
        for _ in range(rounds):
            fine.append(
                self.good_ms(case, is_warm=is_warm)
                if ordinary is None
                else self._ms(ordinary, case)
            )
            hostile.append(self.run(self.meter.ask(case.as_bytes())).ms)
        return median(hostile) / median(fine)

    def good_ms(self, case: Case, *, is_warm: bool) -> float:
        """Measure a good request of the operation and size of another one.

        is_warm: the cache may have the answer.
        """
        request = padded(self.run(good(self.make, case.operation)), case)
        if is_warm and case.operation.method in SAFE:
            self.run(self.meter.ask(request))
        cost = self.run(self.meter.ask(request))
        assert 200 <= cost.status < 400, f"{case.operation.label}: {cost.status} {cost.body!r}"
        return cost.ms

    def _ms(self, ordinary: Case, case: Case) -> float:
        return self.run(self.meter.ask(padded(ordinary, case))).ms
