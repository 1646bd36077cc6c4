"""The headers of rate limits (IETF draft, and the guide's), and the error of a 429."""

from collections.abc import Iterable, Sequence
from functools import lru_cache

from service.errors import RateLimitedError
from service.limits.types import SECOND, Decision, Policy, QuotaStatus

UNITS = (("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1))


def _span(policy: Policy) -> tuple[int, str]:
    """Return a window in its largest whole unit, such as 15 and minute."""
    return next((policy.seconds // n, unit) for unit, n in UNITS if policy.seconds % n == 0)


@lru_cache
def name(policy: Policy) -> str:
    """Name a policy: `minute`, or `15-minute`."""
    number, unit = _span(policy)
    return unit if number == 1 else f"{number}-{unit}"


def sentence(policy: Policy) -> str:
    """Describe a policy as the guide does: `10 per 1 minute`."""
    number, unit = _span(policy)
    return f"{policy.amount} per {number} {unit}"


def seconds(microseconds: int) -> int:
    """Return whole seconds, rounded up."""
    return -(-microseconds // SECOND)


def tightest(standings: Iterable[QuotaStatus]) -> QuotaStatus:
    """Return the status with the fewest units left, and among these the longest reset."""
    return min(standings, key=lambda standing: (standing.remaining, -standing.reset))


def lines(standings: Sequence[QuotaStatus]) -> bytes:
    """Return the header lines of a caller's quotas. Of policies of one name, only the tightest."""
    if len(standings) == 1:
        policy, remaining, reset = standings[0]
        reset = seconds(reset)
        return _template(policy) % (remaining, reset, policy.amount, remaining, reset)
    by_name: dict[str, QuotaStatus] = {}
    for standing in standings:
        key = name(standing.policy)
        known = by_name.get(key)
        by_name[key] = standing if known is None else tightest([known, standing])
    standings = tuple(by_name.values())
    least = tightest(standings)
    numbers = [n for each in standings for n in (each.remaining, seconds(each.reset))]
    values = (*numbers, least.policy.amount, least.remaining, seconds(least.reset))
    return _template(*(each.policy for each in standings)) % values


@lru_cache
def _template(*policies: Policy) -> bytes:
    quotas = (f'"{name(each)}";q={each.amount};w={each.seconds}' for each in policies)
    numbers = (f'"{name(each)}";r=%d;t=%d' for each in policies)
    return (
        f"ratelimit-policy: {', '.join(quotas)}\r\nratelimit: {', '.join(numbers)}\r\n"
        "ratelimit-limit: %d\r\nratelimit-remaining: %d\r\nratelimit-reset: %d\r\n"
    ).encode()


def headers(standings: Sequence[QuotaStatus]) -> list[tuple[bytes, bytes]]:
    """Return the header lines as ASGI headers."""
    pairs = (line.partition(b": ") for line in lines(standings).splitlines())
    return [(key, value) for key, _, value in pairs]


def refusal(decision: Decision) -> RateLimitedError:
    """Return the error of a refused request: the policy, and the seconds to wait."""
    return RateLimitedError(
        sentence(tightest(decision.standings).policy), max(1, seconds(decision.wait))
    )
