"""The words of a decision."""

from typing import NamedTuple

SECOND = 1_000_000  # microseconds: every instant and span here is counted in them


class Policy(NamedTuple):
    """At most `amount` units within any half-open window of `seconds`."""

    amount: int
    seconds: int

    @property
    def period(self) -> int:
        """The window, in microseconds."""
        return self.seconds * SECOND


class Charge(NamedTuple):
    """What a request wants of one log: `cost` units, under all its policies. 0: only to know."""

    key: str
    policies: tuple[Policy, ...]
    cost: int = 1


class Charges(tuple[Charge, ...]):
    """All that a request wants. told: that as decide.lua reads it, once it was written."""

    told = b""


class QuotaStatus(NamedTuple):
    """How a caller stands with a policy: units left, and microseconds until one more is."""

    policy: Policy
    remaining: int
    reset: int


class Decision(NamedTuple):
    """Whether all claims were admitted; if not, after how many microseconds they will be.

    stamps: the time of the decision, as each claim's log has it: what `give_back` asks for.
    """

    admitted: bool
    wait: int
    stamps: tuple[int, ...]
    standings: tuple[QuotaStatus, ...]

    @property
    def retry_after(self) -> int:
        """Whole seconds after which it succeeds; one less is too early."""
        return -(-self.wait // SECOND)
