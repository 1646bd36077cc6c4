"""Named limits: a route declares a name, and the settings give its numbers for each tier."""

from datetime import timedelta

from quart_rate_limiter import RateLimit

from service.config import Settings
from service.config_types import parse_rates
from service.limits.identity import FREE
from service.limits.types import Policy

DEFAULT = "default"  # shared by all routes without their own limit, and by unknown paths
FAILURES = "login.failures"  # of an account and an address; charged by `password_attempt`
REPORT = "report"  # the same for every tier, except `service`
BY_ADDRESS = {"login", "register", FAILURES}  # also with a token; every tier has the same numbers


class NamedLimit(RateLimit):
    """A limit whose numbers come from the settings and the caller's tier. Its count is unused."""

    def __init__(self, name: str) -> None:
        super().__init__(0, timedelta())
        self.name = name


def named(name: str) -> list[RateLimit]:
    """Return the limit `name` of the settings, for the argument `limits` of `rate_limit`."""
    return [NamedLimit(name)]


class Policies:
    """The policies of each named limit, by tier."""

    def __init__(self, settings: Settings) -> None:
        rates = {
            DEFAULT: settings.ratelimit_default,
            "books.list": settings.ratelimit_books_list,
            "books.item": settings.ratelimit_books_item,
            "search": settings.ratelimit_search,
            "data": settings.ratelimit_data,
            REPORT: settings.ratelimit_report,
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
        self._report_service = parse_rates(settings.ratelimit_report_service)
        self._made: dict[tuple[str, str], tuple[Policy, ...]] = {}

    @property
    def names(self) -> list[str]:
        """The names of all limits, except FAILURES, which depends also on an account."""
        return [name for name in self._rates if name != FAILURES]

    def of(self, name: str, tier: str) -> tuple[Policy, ...]:
        """Return the policies of a limit for a tier. Raises KeyError for an unknown name."""
        policies = self._made.get((name, tier))
        if policies is None:
            policies = self._made[name, tier] = self._make(name, tier)
        return policies

    def _make(self, name: str, tier: str) -> tuple[Policy, ...]:
        rates = self._rates[name]
        if name in BY_ADDRESS:
            return tuple(Policy(*rate) for rate in rates)
        if tier == "service":
            service = self._report_service if name == REPORT else self._service
            return tuple(Policy(*rate) for rate in service)
        factor = 1 if name == REPORT else self._factors.get(tier, 1)
        return tuple(Policy(amount * factor, seconds) for amount, seconds in rates)
