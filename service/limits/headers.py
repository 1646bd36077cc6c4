"""Build the RateLimit headers and the error of a 429.

`RateLimit` and `RateLimit-Policy` follow draft-ietf-httpapi-ratelimit-headers. `RateLimit-Limit`,
`-Remaining` and `-Reset` are those of the guide.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache

from service.errors import RateLimitedError
from service.limits.types import SECOND, Decision, Policy, QuotaStatus

UNITS = (("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1))


def _span(policy: Policy) -> tuple[int, str]:
    """Return a window as a number of its largest whole unit of time: (15, "minute")."""
    return next((policy.seconds // n, unit) for unit, n in UNITS if policy.seconds % n == 0)


@lru_cache
def policy_name(policy: Policy) -> str:
    """Return the name of a policy in the headers: `minute`, or `15-minute`."""
    number, unit = _span(policy)
    return unit if number == 1 else f"{number}-{unit}"


def describe_policy(policy: Policy) -> str:
    """Return a policy as text in the guide's form: `10 per 1 minute`."""
    number, unit = _span(policy)
    return f"{policy.amount} per {number} {unit}"


def ceil_seconds(microseconds: int) -> int:
    """Convert microseconds to whole seconds, rounded up."""
    return -(-microseconds // SECOND)


def tightest(quotas: Iterable[QuotaStatus]) -> QuotaStatus:
    """Return the quota with the fewest remaining units; of equals, that with the latest reset."""
    return min(quotas, key=lambda quota: (quota.remaining, -quota.reset))


def rate_limit_lines(quotas: Sequence[QuotaStatus]) -> bytes:
    """Return the RateLimit field lines. Of policies with the same name, only the tightest."""
    if len(quotas) == 1:
        policy, remaining, reset = quotas[0]
        reset = ceil_seconds(reset)
        return _template(policy) % (remaining, reset, policy.amount, remaining, reset)
    by_name: dict[str, QuotaStatus] = {}
    for quota in quotas:
        key = policy_name(quota.policy)
        known = by_name.get(key)
        by_name[key] = quota if known is None else tightest([known, quota])
    quotas = tuple(by_name.values())
    least = tightest(quotas)
    numbers = [n for each in quotas for n in (each.remaining, ceil_seconds(each.reset))]
    values = (*numbers, least.policy.amount, least.remaining, ceil_seconds(least.reset))
    return _template(*(each.policy for each in quotas)) % values


@lru_cache
def _template(*policies: Policy) -> bytes:
    quotas = (f'"{policy_name(each)}";q={each.amount};w={each.seconds}' for each in policies)
    numbers = (f'"{policy_name(each)}";r=%d;t=%d' for each in policies)
    return (
        f"ratelimit-policy: {', '.join(quotas)}\r\nratelimit: {', '.join(numbers)}\r\n"
        "ratelimit-limit: %d\r\nratelimit-remaining: %d\r\nratelimit-reset: %d\r\n"
    ).encode()


def rate_limit_headers(quotas: Sequence[QuotaStatus]) -> list[tuple[bytes, bytes]]:
    """Return the RateLimit headers as ASGI pairs."""
    pairs = (line.partition(b": ") for line in rate_limit_lines(quotas).splitlines())
    return [(key, value) for key, _, value in pairs]


def refusal(decision: Decision) -> RateLimitedError:
    """Return the 429 of a refused request. It names the tightest policy and the wait (seconds)."""
    return RateLimitedError(
        describe_policy(tightest(decision.quotas).policy), max(1, ceil_seconds(decision.wait))
    )
