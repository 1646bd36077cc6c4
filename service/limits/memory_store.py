"""The limiter of one process: the same decision as decide.lua, bounded in keys."""

import time
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence

from service.limits.types import Charge, Decision, QuotaStatus

MOST_SLOTS = 4_096  # of a log: units of a larger limit share a slot, and its latest time
MOST_KEYS = 100_000


class Log:
    """The last units of a key: a ring of slots, each with the time of its last unit.

    count: how many units it ever took. expires: when all of them are out of every window.
    """

    __slots__ = ("count", "expires", "grain", "slots", "times")

    def __init__(self, largest: int) -> None:
        self.grain = -(-largest // MOST_SLOTS)
        self.slots = -(-largest // self.grain) + 1
        self.count = self.expires = 0
        self.times: dict[int, int] = {}

    @property
    def first(self) -> int:
        """The first unit that is still at hand."""
        blocks = -(-self.count // self.grain)
        return max(0, blocks - self.slots) * self.grain

    def at(self, unit: int) -> int:
        """Give the time of a unit, counted from the first ever; 0 if it is no longer known."""
        return self.times.get(unit // self.grain % self.slots, 0)

    def add(self, units: int, now: int) -> None:
        """Take units."""
        for unit in range(self.count, self.count + units):
            self.times[unit // self.grain % self.slots] = now
        self.count += units

    def remove(self, stamp: int) -> None:
        """Take out a unit of this time, if it is at hand and has a slot to itself."""
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
        """Give a log of the same units that has room for a larger limit."""
        log = Log(largest)
        if log.slots * log.grain <= self.slots * self.grain:
            return self
        for unit in range(self.first, self.count):
            log.times[unit // log.grain % log.slots] = self.at(unit)
        log.count, log.expires = self.count, self.expires
        return log


class MemoryLimits:
    """Decides within one process, which holds at most `most_keys` logs.

    Beyond that the log that was longest without a unit goes: whoever wants to be forgotten must
    come from as many other addresses, each of which has a limit of its own.
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
        """How many logs there are."""
        return len(self._logs)

    def decide(self, claims: Sequence[Charge]) -> Decision:
        """Admit all claims, or none."""
        asked = self._clock()
        logs = [self._find(claim, asked) for claim in claims]
        nows = [max(asked, log.at(log.count - 1)) if log.count else asked for log in logs]
        wait = 0
        for claim, log, now in zip(claims, logs, nows, strict=True):
            for policy in claim.policies:
                before = policy.amount - claim.cost  # units that may stand in the window already
                if before < 0:
                    wait = max(wait, policy.period)
                elif log.count - log.first > before:
                    free = log.at(log.count - 1 - before) + policy.period
                    wait = max(wait, free - now)
        if wait == 0:
            for claim, log, now in zip(claims, logs, nows, strict=True):
                if claim.cost == 0:
                    continue
                log.add(claim.cost, now)
                log.expires = now + max(policy.period for policy in claim.policies)
                self._logs[claim.key] = log
                self._logs.move_to_end(claim.key)
            while len(self._logs) > self._most_keys:
                self._logs.popitem(last=False)
        return Decision(wait == 0, wait, tuple(nows), self._standings(claims, logs, nows))

    def give_back(self, key: str, stamp: int) -> None:
        """Undo one unit that was admitted at `stamp`: it was not what the limit is about."""
        if key in self._logs:
            self._logs[key].remove(stamp)

    def _find(self, claim: Charge, now: int) -> Log:
        """Give the log of a claim, not kept before it has admitted something."""
        largest = max(policy.amount for policy in claim.policies)
        log = self._logs.get(claim.key)
        if log is None or log.expires <= now:
            return Log(largest)
        return log.grown(largest)

    @staticmethod
    def _standings(
        claims: Sequence[Charge], logs: Sequence[Log], nows: Sequence[int]
    ) -> tuple[QuotaStatus, ...]:
        found = []
        for claim, log, now in zip(claims, logs, nows, strict=True):
            units = range(log.first, log.count)
            for policy in claim.policies:
                # The first unit within the window, by halving: times never run back.
                within = bisect_left(units, now - policy.period + 1, key=log.at)
                used = len(units) - within
                reset = log.at(units[within]) + policy.period - now if used else 0
                found.append(QuotaStatus(policy, max(0, policy.amount - used), reset))
        return tuple(found)
