"""How limits are told: the headers of an answer (IETF draft, and the guide's), and a refusal."""

from collections.abc import Iterable, Sequence
from functools import lru_cache

from service.errors import RateLimitedError
from service.limits.types import SECOND, Decision, Policy, QuotaStatus

UNITS = (("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1))


def _span(policy: Policy) -> tuple[int, str]:
    """Give a window in its largest unit, as 15 and minute."""
    return next((policy.seconds // n, unit) for unit, n in UNITS if policy.seconds % n == 0)


@lru_cache
def name(policy: Policy) -> str:
    """Name a policy: `minute`, or `15-minute`."""
    number, unit = _span(policy)
    return unit if number == 1 else f"{number}-{unit}"


def sentence(policy: Policy) -> str:
    """Say a policy as the guide does: `10 per 1 minute`."""
    number, unit = _span(policy)
    return f"{policy.amount} per {number} {unit}"


def seconds(microseconds: int) -> int:
    """Give whole seconds, late rather than early."""
    return -(-microseconds // SECOND)


def tightest(standings: Iterable[QuotaStatus]) -> QuotaStatus:
    """Give the one with the fewest units left, then with the longest wait for one more."""
    return min(standings, key=lambda standing: (standing.remaining, -standing.reset))


def lines(standings: Sequence[QuotaStatus]) -> bytes:
    """Give the header lines that say how a caller stands. Of policies of one name, the tightest."""
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
    numbers = [n for one in standings for n in (one.remaining, seconds(one.reset))]
    told = (*numbers, least.policy.amount, least.remaining, seconds(least.reset))
    return _template(*(one.policy for one in standings)) % told


@lru_cache
def _template(*policies: Policy) -> bytes:
    quotas = (f'"{name(each)}";q={each.amount};w={each.seconds}' for each in policies)
    numbers = (f'"{name(each)}";r=%d;t=%d' for each in policies)
    return (
        f"ratelimit-policy: {', '.join(quotas)}\r\nratelimit: {', '.join(numbers)}\r\n"
        "ratelimit-limit: %d\r\nratelimit-remaining: %d\r\nratelimit-reset: %d\r\n"
    ).encode()


def headers(standings: Sequence[QuotaStatus]) -> list[tuple[bytes, bytes]]:
    """Give the same as ASGI has headers."""
    found = (line.partition(b": ") for line in lines(standings).splitlines())
    return [(key, value) for key, _, value in found]


def refusal(decision: Decision) -> RateLimitedError:
    """Say why a request is refused, and until when."""
    return RateLimitedError(
        sentence(tightest(decision.standings).policy), max(1, seconds(decision.wait))
    )
