"""The limit store of one process: the algorithm of acquire.lua, with a bounded number of keys."""

import time
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence

from service.limits.types import Charge, Decision, QuotaStatus

MOST_SLOTS = 4_096  # of a log; units of a larger limit share slots, and the slot's latest time
MOST_KEYS = 100_000


class Log:
    """The last units of a key: a ring of slots, each with the time of its last unit.

    count: number of units ever added. expires: the time when all units have left every window.
    """

    __slots__ = ("count", "expires", "grain", "slots", "times")

    def __init__(self, largest: int) -> None:
        self.grain = -(-largest // MOST_SLOTS)
        self.slots = -(-largest // self.grain) + 1
        self.count = self.expires = 0
        self.times: dict[int, int] = {}

    @property
    def first(self) -> int:
        """The first unit that the log still holds."""
        blocks = -(-self.count // self.grain)
        return max(0, blocks - self.slots) * self.grain

    def at(self, unit: int) -> int:
        """Return the time of a unit, numbered from the first ever; 0 if it is no longer known."""
        return self.times.get(unit // self.grain % self.slots, 0)

    def add(self, units: int, now: int) -> None:
        """Add units."""
        for unit in range(self.count, self.count + units):
            self.times[unit // self.grain % self.slots] = now
        self.count += units

    def remove(self, stamp: int) -> None:
        """Remove a unit with this time, if the log holds it and slots hold one unit each."""
        if self.grain > 1:
            return
        units = range(self.first, self.count)
        after = bisect_right(units, stamp, key=self.at)
        if after == 0 or self.at(units[after - 1]) != stamp:
            return
        for unit in range(units[after - 1], self.count - 1):
            self.times[unit % self.slots] = self.at(unit + 1)
        self.count -= 1
        self.times.pop(self.count % self.slots)

    def grown(self, largest: int) -> "Log":
        """Return a log with the same units and enough slots for the limit `largest`."""
        log = Log(largest)
        if log.slots * log.grain <= self.slots * self.grain:
            return self
        for unit in range(self.first, self.count):
            log.times[unit // log.grain % log.slots] = self.at(unit)
        log.count, log.expires = self.count, self.expires
        return log


class MemoryLimits:
    """Decides within one process, which holds at most `most_keys` logs.

    Beyond that, the log whose last unit is oldest is dropped. To have its log dropped, a client
    needs requests from as many other addresses, and each of them has its own limit.
    """

    def __init__(
        self,
        clock: Callable[[], int] = lambda: time.monotonic_ns() // 1_000,
        most_keys: int = MOST_KEYS,
    ) -> None:
        self._clock = clock
        self._most_keys = most_keys
        self._logs: OrderedDict[str, Log] = OrderedDict()

    def __len__(self) -> int:
        """Number of logs."""
        return len(self._logs)

    def acquire(self, charges: Sequence[Charge]) -> Decision:
        """Admit all claims, or none."""
        clock_time = self._clock()
        logs = [self._find(charge, clock_time) for charge in charges]
        nows = [max(clock_time, log.at(log.count - 1)) if log.count else clock_time for log in logs]
        wait = 0
        for charge, log, now in zip(charges, logs, nows, strict=True):
            for policy in charge.policies:
                room = policy.amount - charge.cost  # units that the window may already hold
                if room < 0:
                    wait = max(wait, policy.period)
                elif log.count - log.first > room:
                    free = log.at(log.count - 1 - room) + policy.period
                    wait = max(wait, free - now)
        if wait == 0:
            for charge, log, now in zip(charges, logs, nows, strict=True):
                if charge.cost == 0:
                    continue
                log.add(charge.cost, now)
                log.expires = now + max(policy.period for policy in charge.policies)
                self._logs[charge.key] = log
                self._logs.move_to_end(charge.key)
            while len(self._logs) > self._most_keys:
                self._logs.popitem(last=False)
        return Decision(wait == 0, wait, tuple(nows), self._quotas(charges, logs, nows))

    def refund(self, key: str, stamp: int) -> None:
        """Undo one unit that was admitted at `stamp`."""
        if key in self._logs:
            self._logs[key].remove(stamp)

    def _find(self, charge: Charge, now: int) -> Log:
        """Return the log of a claim. A new log is stored only when it admits a unit."""
        largest = max(policy.amount for policy in charge.policies)
        log = self._logs.get(charge.key)
        if log is None or log.expires <= now:
            return Log(largest)
        return log.grown(largest)

    @staticmethod
    def _quotas(
        charges: Sequence[Charge], logs: Sequence[Log], nows: Sequence[int]
    ) -> tuple[QuotaStatus, ...]:
        quotas = []
        for charge, log, now in zip(charges, logs, nows, strict=True):
            units = range(log.first, log.count)
            for policy in charge.policies:
                # Binary search for the first unit in the window: times never decrease.
                within = bisect_left(units, now - policy.period + 1, key=log.at)
                used = len(units) - within
                reset = log.at(units[within]) + policy.period - now if used else 0
                quotas.append(QuotaStatus(policy, max(0, policy.amount - used), reset))
        return tuple(quotas)
