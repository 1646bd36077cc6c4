"""The settings of limits. Amounts are those of tier `free`, and of who is not signed in."""

from pydantic import Field
from pydantic_settings import BaseSettings

from service.config_values import Rates, StorageUrl

MOST_HOPS = 10


class LimitSettings(BaseSettings):
    """How much may be asked, and by whom it is counted."""

    total_workers: int = Field(
        1,
        ge=1,
        description="processes that serve, over all machines: without Redis each has its "
        "part of a limit",
    )
    ratelimit_storage_url: StorageUrl | None = Field(
        None,
        description="Redis of the limits, where it is not that of `REDIS_URL`; `memory://`: each "
        "process has its part",
    )
    trusted_proxy_hops: int = Field(
        0,
        ge=0,
        le=MOST_HOPS,
        description="proxies in front whose `X-Forwarded-For` is believed",
    )
    ratelimit_enabled: bool = Field(True, description="`false`: no limits, for load tests")
    ratelimit_redis_seconds: float = Field(
        0.05, gt=0, le=5, description="wait for Redis; then each process decides by itself"
    )
    ratelimit_default: Rates = Field(
        "50 per hour;200 per day", description="limit of all routes without their own, together"
    )
    ratelimit_books_list: Rates = Field(
        "10 per minute;100 per hour;1000 per day", description="limit of the list of books"
    )
    ratelimit_books_item: Rates = Field("30 per minute", description="limit of single books")
    ratelimit_login: Rates = Field("20 per minute", description="sign-ins of an address")
    ratelimit_login_failures: Rates = Field(
        "5 per 15 minutes", description="wrong passwords for an account from an address"
    )
    ratelimit_register: Rates = Field("10 per hour", description="new accounts of an address")
    ratelimit_standard: int = Field(
        10, ge=1, description="how many times as much the tier `standard` may"
    )
    ratelimit_premium: int = Field(
        100, ge=1, description="how many times as much the tier `premium` may"
    )
    ratelimit_service: Rates = Field(
        "100000 per minute", description="each limit of the tier `service`"
    )
