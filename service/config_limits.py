"""Settings of rate limits. The amounts apply to tier `free` and to anonymous clients."""

from pydantic import Field
from pydantic_settings import BaseSettings

from service.config_values import Rates, StorageUrl

MOST_HOPS = 10


class LimitSettings(BaseSettings):
    """Amounts of the limits, and how clients and processes are counted."""

    total_workers: int = Field(
        1,
        ge=1,
        description="number of serving processes on all machines; without Redis, each applies its"
        " share of a limit",
    )
    ratelimit_storage_url: StorageUrl | None = Field(
        None,
        description="URL of Redis for the limits, if it differs from `REDIS_URL`; with "
        "`memory://`, each process applies its share",
    )
    trusted_proxy_hops: int = Field(
        0,
        ge=0,
        le=MOST_HOPS,
        description="number of trusted proxies in front, whose `X-Forwarded-For` is used",
    )
    ratelimit_enabled: bool = Field(
        True, description="`false` turns all limits off, for load tests"
    )
    ratelimit_redis_seconds: float = Field(
        0.05, gt=0, le=5, description="maximum wait for Redis; then each process decides alone"
    )
    ratelimit_default: Rates = Field(
        "50 per hour;200 per day",
        description="limit of all routes without their own limit, counted together",
    )
    ratelimit_books_list: Rates = Field(
        "10 per minute;100 per hour;1000 per day",
        description="limit of requests for the list of books",
    )
    ratelimit_books_item: Rates = Field(
        "30 per minute", description="limit of requests for single books"
    )
    ratelimit_login: Rates = Field("20 per minute", description="limit of sign-ins from an address")
    ratelimit_login_failures: Rates = Field(
        "5 per 15 minutes", description="limit of wrong passwords for an account from an address"
    )
    ratelimit_register: Rates = Field(
        "10 per hour", description="limit of new accounts from an address"
    )
    ratelimit_standard: int = Field(
        10, ge=1, description="factor for the limits of tier `standard`"
    )
    ratelimit_premium: int = Field(100, ge=1, description="factor for the limits of tier `premium`")
    ratelimit_service: Rates = Field(
        "100000 per minute", description="value of each limit for tier `service`"
    )
