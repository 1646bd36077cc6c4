"""Decide limits in the memory of one process, by the algorithm of acquire.lua."""

import time
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence

from service.limits.types import Charge, Decision, QuotaStatus

MAX_SLOTS = 4_096  # of a log; in a larger limit, units share a slot and its latest time
MAX_KEYS = 100_000  # logs


class Log:
    """The times of the last units of a key, in a ring of slots. Times are in microseconds.

    grain: number of units that share a slot, which holds the time of the last. count: number of
    units ever added. expires: the time when all units have left every window. times: by slot.
    """

    __slots__ = ("count", "expires", "grain", "slots", "times")

    def __init__(self, largest: int) -> None:
        self.grain = -(-largest // MAX_SLOTS)
        self.slots = -(-largest // self.grain) + 1
        self.count = self.expires = 0
        self.times: dict[int, int] = {}

    @property
    def first(self) -> int:
        """The number of the oldest unit in the ring."""
        blocks = -(-self.count // self.grain)
        return max(0, blocks - self.slots) * self.grain

    def at(self, unit: int) -> int:
        """Return the time of a unit. Unit 0 is the first ever added. 0: its slot is empty."""
        return self.times.get(unit // self.grain % self.slots, 0)

    def add(self, units: int, now: int) -> None:
        """Add units with the time `now`."""
        for unit in range(self.count, self.count + units):
            self.times[unit // self.grain % self.slots] = now
        self.count += units

    def remove(self, stamp: int) -> None:
        """Remove one unit with the time `stamp`, if there is one and no units share a slot."""
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
        """Return this log, or a copy with more slots if a limit of `largest` units needs them."""
        log = Log(largest)
        if log.slots * log.grain <= self.slots * self.grain:
            return self
        for unit in range(self.first, self.count):
            log.times[unit // log.grain % log.slots] = self.at(unit)
        log.count, log.expires = self.count, self.expires
        return log


class MemoryLimits:
    """Decides in the memory of one process. clock: returns microseconds.

    Above `max_keys` logs, the log that was charged least recently is dropped. To get its own log
    dropped, a client would need requests from `max_keys` other addresses, each with its own limit.
    """

    def __init__(
        self,
        clock: Callable[[], int] = lambda: time.monotonic_ns() // 1_000,
        max_keys: int = MAX_KEYS,
    ) -> None:
        self._clock = clock
        self._max_keys = max_keys
        self._logs: OrderedDict[str, Log] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of logs."""
        return len(self._logs)

    def acquire(self, charges: Sequence[Charge]) -> Decision:
        """Admit all charges of a request, or none."""
        clock_time = self._clock()
        logs = [self._find(charge, clock_time) for charge in charges]
        nows = [max(clock_time, log.at(log.count - 1)) if log.count else clock_time for log in logs]
        wait = 0
        for charge, log, now in zip(charges, logs, nows, strict=True):
            for policy in charge.policies:
                room = policy.amount - charge.cost  # most units in the window before this request
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
            while len(self._logs) > self._max_keys:
                self._logs.popitem(last=False)
        return Decision(wait == 0, wait, tuple(nows), self._quotas(charges, logs, nows))

    def refund(self, key: str, stamp: int) -> None:
        """Remove one unit with the time `stamp` (microseconds) from a log, if it is there."""
        if key in self._logs:
            self._logs[key].remove(stamp)

    def _find(self, charge: Charge, now: int) -> Log:
        """Return the log of a charge. `acquire` stores a new log only if it admits units."""
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
