"""The named limits: routes refer to a name, and settings give the numbers for each tier."""

from datetime import timedelta

from quart_rate_limiter import RateLimit

from service.config import Settings
from service.config_types import parse_rates
from service.limits.identity import FREE
from service.limits.types import Policy

DEFAULT = "default"  # one log for each caller: all routes without limits, and unknown paths
FAILURES = "login.failures"  # of an account and an address: decided when both are known
BY_ADDRESS = {"login", "register", FAILURES}  # whether signed in or not; the same for every tier


class NamedLimit(RateLimit):
    """A limit whose numbers come from the settings, by the caller's tier."""

    def __init__(self, name: str) -> None:
        super().__init__(0, timedelta())
        self.name = name


def named(name: str) -> list[RateLimit]:
    """Return a limit of the settings for the decorators of quart-rate-limiter."""
    return [NamedLimit(name)]


class Policies:
    """The policies of every name and tier."""

    def __init__(self, settings: Settings) -> None:
        rates = {
            DEFAULT: settings.ratelimit_default,
            "books.list": settings.ratelimit_books_list,
            "books.item": settings.ratelimit_books_item,
            "login": settings.ratelimit_login,
            FAILURES: settings.ratelimit_login_failures,
            "register": settings.ratelimit_register,
        }
        self._rates = {name: parse_rates(text) for name, text in rates.items()}
        self._factors = {
            FREE: 1,
            "standard": settings.ratelimit_standard,
            "premium": settings.ratelimit_premium,
        }
        self._service = parse_rates(settings.ratelimit_service)
        self._made: dict[tuple[str, str], tuple[Policy, ...]] = {}

    @property
    def names(self) -> list[str]:
        """Every limit that depends only on the caller, not on an account."""
        return [name for name in self._rates if name != FAILURES]

    def of(self, name: str, tier: str) -> tuple[Policy, ...]:
        """Return the policies of a limit. Raises KeyError for an unknown name."""
        policies = self._made.get((name, tier))
        if policies is None:
            policies = self._made[name, tier] = self._make(name, tier)
        return policies

    def _make(self, name: str, tier: str) -> tuple[Policy, ...]:
        rates = self._rates[name]
        if name in BY_ADDRESS:
            return tuple(Policy(*rate) for rate in rates)
        if tier == "service":
            return tuple(Policy(*rate) for rate in self._service)
        factor = self._factors.get(tier, 1)
        return tuple(Policy(amount * factor, seconds) for amount, seconds in rates)
