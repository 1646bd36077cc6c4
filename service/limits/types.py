"""Types of charges, quotas and decisions."""

from typing import NamedTuple

SECOND = 1_000_000  # microseconds: the unit of every time and duration here


class Policy(NamedTuple):
    """At most `amount` units within any half-open window of `seconds`."""

    amount: int
    seconds: int

    @property
    def period(self) -> int:
        """The window, in microseconds."""
        return self.seconds * SECOND


class Charge(NamedTuple):
    """`cost` units of one log, under all its policies. Cost 0 only reads the quotas."""

    key: str
    policies: tuple[Policy, ...]
    cost: int = 1


class Charges(tuple[Charge, ...]):
    """All charges of a request. packed: their encoding for acquire.lua, once it exists."""

    packed = b""


class QuotaStatus(NamedTuple):
    """A caller's quota: remaining units, and microseconds until one more unit is available."""

    policy: Policy
    remaining: int
    reset: int


class Decision(NamedTuple):
    """Whether all claims were admitted; if not, the microseconds until they can be.

    stamps: the time of the decision in each claim's log, which `refund` needs.
    """

    admitted: bool
    wait: int
    stamps: tuple[int, ...]
    quotas: tuple[QuotaStatus, ...]

    @property
    def retry_after(self) -> int:
        """Whole seconds to wait until the request succeeds, rounded up."""
        return -(-self.wait // SECOND)
