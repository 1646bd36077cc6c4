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


def tightest(quotas: Iterable[QuotaStatus]) -> QuotaStatus:
    """Return the status with the fewest units left, and among these the longest reset."""
    return min(quotas, key=lambda quota: (quota.remaining, -quota.reset))


def lines(quotas: Sequence[QuotaStatus]) -> bytes:
    """Return the header lines of a caller's quotas. Of policies of one name, only the tightest."""
    if len(quotas) == 1:
        policy, remaining, reset = quotas[0]
        reset = seconds(reset)
        return _template(policy) % (remaining, reset, policy.amount, remaining, reset)
    by_name: dict[str, QuotaStatus] = {}
    for quota in quotas:
        key = name(quota.policy)
        known = by_name.get(key)
        by_name[key] = quota if known is None else tightest([known, quota])
    quotas = tuple(by_name.values())
    least = tightest(quotas)
    numbers = [n for each in quotas for n in (each.remaining, seconds(each.reset))]
    values = (*numbers, least.policy.amount, least.remaining, seconds(least.reset))
    return _template(*(each.policy for each in quotas)) % values


@lru_cache
def _template(*policies: Policy) -> bytes:
    quotas = (f'"{name(each)}";q={each.amount};w={each.seconds}' for each in policies)
    numbers = (f'"{name(each)}";r=%d;t=%d' for each in policies)
    return (
        f"ratelimit-policy: {', '.join(quotas)}\r\nratelimit: {', '.join(numbers)}\r\n"
        "ratelimit-limit: %d\r\nratelimit-remaining: %d\r\nratelimit-reset: %d\r\n"
    ).encode()


def headers(quotas: Sequence[QuotaStatus]) -> list[tuple[bytes, bytes]]:
    """Return the header lines as ASGI headers."""
    pairs = (line.partition(b": ") for line in lines(quotas).splitlines())
    return [(key, value) for key, _, value in pairs]


def refusal(decision: Decision) -> RateLimitedError:
    """Return the error of a refused request: the policy, and the seconds to wait."""
    return RateLimitedError(
        sentence(tightest(decision.quotas).policy), max(1, seconds(decision.wait))
    )
