"""Define the types of policies, charges, quotas and decisions."""

from typing import NamedTuple

SECOND = 1_000_000  # microseconds. Times and durations of limits are in microseconds


class Policy(NamedTuple):
    """At most `amount` units in every half-open sliding window of `seconds`."""

    amount: int
    seconds: int

    @property
    def period(self) -> int:
        """The length of the window, in microseconds."""
        return self.seconds * SECOND


class Charge(NamedTuple):
    """`cost` units for the log `key`, under all its policies. Cost 0 only reads the quotas."""

    key: str
    policies: tuple[Policy, ...]
    cost: int = 1


class Charges(tuple[Charge, ...]):
    """All charges of a request. packed: the cached encoding for acquire.lua; empty at first."""

    packed = b""


class QuotaStatus(NamedTuple):
    """The quota left under one policy. reset: microseconds until one more unit is available."""

    policy: Policy
    remaining: int
    reset: int


class Decision(NamedTuple):
    """The decision of all charges of a request.

    wait: microseconds until the charges can be admitted. stamps: the time of the decision in the
    log of each charge (microseconds), which `refund` needs. quotas: of each policy of each charge.
    """

    admitted: bool
    wait: int
    stamps: tuple[int, ...]
    quotas: tuple[QuotaStatus, ...]

    @property
    def retry_after(self) -> int:
        """Whole seconds to wait until the request succeeds, rounded up."""
        return -(-self.wait // SECOND)
