"""Load typed, immutable settings from the environment and `.env`, and refuse unsafe ones.

The environment variable of a field has the same name in capitals (`SECRET_KEY`, `DATABASE_URL`,
...). `docs/settings.md` repeats the descriptions of the fields.
"""

import os
from itertools import chain
from pathlib import Path
from typing import ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import URL

from service.config_types import (
    AbsoluteUrl,
    BlueprintOrigins,
    DatabaseUrl,
    Folder,
    Origins,
    Rates,
    RedisUrl,
    StorageUrl,
    parse_database_url,
    warn_of_retired_settings,
)

DEVELOPMENT_SECRET = "dev-secret-key-for-development-only"  # noqa: S105  (refused in production)
PUBLISHED_SECRETS = {DEVELOPMENT_SECRET, "dev-secret-key", "your-secret-key-here"}
MIN_SECRET_BYTES = 32  # RFC 7518, 3.2: an HS256 key is at least as long as the hash


MAX_HOPS = 10


class ConfigurationError(Exception):
    """Invalid or unsafe settings. problems: for each, a sentence with the reason and the fix."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class CacheSettings(BaseSettings):
    """Lifetimes (seconds) and limits of the cache.

    A read that begins after a write's response shows the write, except with `cache_pages=ttl`.
    """

    cache_item_seconds: int = Field(
        300, ge=0, le=86_400, description="lifetime of a cached book or user; 0 caches none"
    )
    cache_count_seconds: int = Field(
        30, ge=0, le=86_400, description="lifetime of a cached total; 0 caches none"
    )
    cache_pages: Literal["generation", "ttl", "none"] = Field(
        "generation",
        description="pages of lists: `generation` keeps them until the next write, `ttl` for "
        "their lifetime, **even if stale**, `none` caches no pages",
    )
    cache_page_seconds: int = Field(30, ge=1, le=86_400, description="lifetime of a cached page")
    cache_popular_seconds: int = Field(
        600,
        ge=0,
        le=600,
        description="maximum age of the numbers of views at `/api/popular-books`; 0 caches none",
    )
    cache_redis_seconds: float = Field(
        0.1,
        gt=0,
        le=2,
        description="maximum total wait of a read for Redis; then it reads the database. A write "
        "waits 1.5 times as long, then turns the cache off",
    )
    cache_memory_entries: int = Field(
        20_000, ge=100, description="maximum number of entries in memory, without Redis"
    )


class LimitSettings(BaseSettings):
    """Rate limits by route and tier, and the numbers of trusted proxies and of processes."""

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
        le=MAX_HOPS,
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
    ratelimit_search: Rates = Field("5 per minute", description="limit of searches")
    ratelimit_data: Rates = Field(
        "10 per hour", description="limit of requests for the export of the catalogue"
    )
    ratelimit_report: Rates = Field(
        "1 per hour",
        description="limit of requests for the report, of every tier except `service`",
    )
    ratelimit_report_service: Rates = Field(
        "60 per hour", description="limit of requests for the report, of tier `service`"
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


class ServeSettings(BaseSettings):
    """Settings of `octavo serve`. Names that end in `_seconds` are in seconds."""

    workers: int = Field(
        1,
        ge=0,
        le=256,
        description="number of supervised worker processes; 0 serves in this process, unsupervised",
    )
    backlog: int = Field(
        2_048, ge=1, description="maximum number of connections that wait to be accepted"
    )
    keep_alive_seconds: float = Field(
        75.0,
        gt=0,
        description="lifetime of an idle connection; must exceed that of a load balancer",
    )
    header_seconds: float = Field(
        5.0,
        gt=0,
        description="maximum time from the first byte of a request to the end of its headers",
    )
    http1_parser: Literal["httptools", "h11"] = Field(
        "httptools",
        validation_alias=AliasChoices("http1_parser", "http1"),
        description="HTTP/1.1 parser: `httptools` is fast, `h11` is Hypercorn's own",
    )
    max_requests: int = Field(
        0, ge=0, description="number of requests after which a worker is replaced; 0 replaces none"
    )
    max_requests_jitter: int = Field(
        0,
        ge=0,
        description="maximum random addition to `MAX_REQUESTS`, so that workers are not replaced "
        "all at once",
    )
    drain_seconds: float = Field(
        1.0,
        ge=0,
        le=300,
        description="time before shutdown in which `/health/ready` returns 503 and clients are "
        "asked to close connections; a load balancer must notice within it",
    )
    grace_seconds: float = Field(
        30.0, gt=0, description="maximum time for requests in flight to end after that"
    )
    tls_certfile: Path | None = Field(
        None, description="certificate chain (PEM file); enables HTTPS"
    )
    tls_keyfile: Path | None = Field(None, description="private key of the certificate (PEM file)")
    http2: bool = Field(False, description="also offer HTTP/2 over TLS")
    max_wait_seconds: float = Field(
        2.0,
        gt=0,
        le=600,
        description="maximum total wait of a request in the queue, for a database connection and "
        "for a thread that hashes passwords; then 503",
    )
    compression: bool = Field(
        True,
        description="compress responses of more than 1 KiB with zstd or gzip, as `Accept-Encoding` "
        "prefers; `false` leaves this to a proxy",
    )
    fast_path: bool = Field(
        True,
        validation_alias=AliasChoices("fast_path", "short_way"),
        description="`false` sends every request through Quart's request cycle. Hooks, handlers "
        "and middleware that are added to the application have the same effect",
    )
    access_log_sample: float = Field(
        1.0,
        ge=0,
        le=1,
        description="fraction of successful requests (status below 400) that are logged",
    )
    metrics_token: SecretStr | None = Field(
        None,
        description="bearer token for `/metrics`; without it, production does not serve metrics",
    )
    revision: str | None = Field(
        None,
        description="deployed revision, shown at `/health`; default: the revision of the git "
        "checkout",
    )


class Settings(CacheSettings, LimitSettings, ServeSettings):
    """The settings of an application. Unknown environment variables are ignored."""

    model_config = SettingsConfigDict(
        frozen=True,
        env_file=".env",
        extra="ignore",
        populate_by_name=True,
        hide_input_in_errors=True,
        env_ignore_empty=True,
    )

    env: ClassVar[Literal["development", "production", "testing"]]

    secret_key: SecretStr = Field(
        SecretStr(DEVELOPMENT_SECRET), description="signs tokens and cursors; 32 bytes or more"
    )
    secret_key_previous: SecretStr | None = Field(
        None, description="key before the last rotation: verifies, never signs"
    )
    database_url: DatabaseUrl = Field(
        "sqlite:///octavo.db",
        description="`postgresql://...` or `sqlite:///file.db`, with or without an async driver",
    )
    redis_url: RedisUrl | None = Field(
        None, description="URL of Redis, for the cache and the limits of all workers"
    )
    public_url: AbsoluteUrl | None = Field(
        None, description="address at which clients reach this service; base of absolute links"
    )
    cors_origins: Origins = Field(("*",), description="exact origins, comma-separated; `*` for any")
    cors_credentials: bool = Field(False, description="allow cookies and HTTP auth across origins")
    cors_blueprint_origins: BlueprintOrigins = Field(
        {},
        description='other origins for one blueprint, as JSON: `{"books": ["https://a.example"]}`',
    )
    spa_fallback_url: AbsoluteUrl | None = Field(
        None,
        description="target of redirects from unknown pages outside the API, for requests that "
        "accept HTML",
    )
    report_seconds: int = Field(
        3_600, ge=1, le=31_536_000, description="lifetime of the report, for all processes"
    )
    isbn_checksum: Literal["lenient", "strict"] = Field(
        "lenient", description="`strict` refuses an ISBN whose check digit is wrong"
    )
    require_if_match: bool = Field(
        False, description="`true` refuses changes and deletions of books without `If-Match` (428)"
    )
    max_body_bytes: int = Field(
        65_536, ge=1_024, description="maximum size of a request body, in bytes"
    )
    max_bulk_body_bytes: int = Field(
        1_048_576,
        ge=1_024,
        description="maximum size of the body of a request for many books, in bytes",
    )
    access_token_seconds: int = Field(
        86_400, ge=1, le=31_536_000, description="lifetime of an access token"
    )
    refresh_token_seconds: int = Field(
        2_592_000, ge=1, le=315_360_000, description="lifetime of a refresh token"
    )
    idempotency_seconds: int = Field(
        86_400,
        ge=1,
        le=31_536_000,
        description="how long an `Idempotency-Key` is remembered; then it can be used again",
    )
    password_workers: int = Field(
        2, ge=1, le=64, description="number of threads that hash passwords"
    )
    pool_size: int = Field(
        15, ge=1, description="number of database connections that a process keeps open"
    )
    pool_overflow: int = Field(
        0,
        ge=0,
        description="number of additional connections; each is opened for one use and then closed",
    )
    log_dir: Folder = Field(
        Path("logs"),
        description="folder of the rotating `app.log` (not in development); `none` writes no file",
    )
    log_json: bool = Field(False, description="write log lines as JSON to stderr")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="lowest level of the lines that are logged"
    )

    @property
    def database(self) -> URL:
        """The URL of the database, with an async driver."""
        return parse_database_url(self.database_url)

    @property
    def is_sqlite(self) -> bool:
        """Whether the database is SQLite."""
        return self.database.get_backend_name() == "sqlite"

    @property
    def is_https(self) -> bool:
        """Whether PUBLIC_URL is https."""
        return urlsplit(self.public_url or "").scheme == "https"

    def check(self) -> Self:
        """Return these settings. Raises ConfigurationError if they are unsafe or inconsistent."""
        problems = self._problems()
        if problems:
            raise ConfigurationError(problems)
        return self

    def _problems(self) -> list[str]:
        any_origin = {
            "CORS_ORIGINS": self.cors_origins,
            "CORS_BLUEPRINT_ORIGINS": tuple(chain(*self.cors_blueprint_origins.values())),
        }
        problems = [
            f"{name} is * together with CORS_CREDENTIALS, which browsers refuse: "
            "name the exact origins, or turn credentials off"
            for name, origins in any_origin.items()
            if "*" in origins and self.cors_credentials
        ]
        if (self.tls_certfile is None) != (self.tls_keyfile is None):
            problems.append("TLS_CERTFILE and TLS_KEYFILE go together: name both, or neither")
        for name, file in (("TLS_CERTFILE", self.tls_certfile), ("TLS_KEYFILE", self.tls_keyfile)):
            if file is not None and not (file.is_file() and os.access(file, os.R_OK)):
                problems.append(f"{name} {file} cannot be read: name a file, readable to this user")
        if os.environ.get("AIOCACHE_DISABLE") == "1":
            problems.append(
                "AIOCACHE_DISABLE breaks the cache: unset it, and turn the cache off "
                "by CACHE_ITEM_SECONDS=0, CACHE_COUNT_SECONDS=0 and CACHE_PAGES=none"
            )
        if self.redis_url is None and max(self.workers, self.total_workers) > 1:
            name = "WORKERS" if self.workers > 1 else "TOTAL_WORKERS"
            problems.append(
                f"{name} is more than one and REDIS_URL is missing, so each process would "
                "have separate limits and a separate cache: set REDIS_URL to redis://host:6379/0"
            )
        return problems


class Development(Settings):
    """Defaults for development: SQLite, and a cache in memory. They need no other server."""

    env = "development"
    database_url: DatabaseUrl = Field(
        "sqlite:///dev.db", validation_alias=AliasChoices("DEV_DATABASE_URL", "DATABASE_URL")
    )


class Production(Settings):
    """Production: `check` requires PostgreSQL, PUBLIC_URL and a private key (32 bytes or more)."""

    env = "production"
    cors_origins: Origins = ()

    def _problems(self) -> list[str]:
        problems = super()._problems()
        cure = "set it to the output of: python -c 'import secrets; print(secrets.token_hex())'"
        for name, key in (
            ("SECRET_KEY", self.secret_key),
            ("SECRET_KEY_PREVIOUS", self.secret_key_previous),
        ):
            secret = None if key is None else key.get_secret_value()
            if secret in PUBLISHED_SECRETS:
                problems.append(f"{name} is missing or a published default: {cure}")
            elif secret is not None and len(secret.encode()) < MIN_SECRET_BYTES:
                problems.append(f"{name} is shorter than {MIN_SECRET_BYTES} bytes: {cure}")
        if self.is_sqlite:
            problems.append(
                "DATABASE_URL is missing or SQLite, which serves one process only: "
                "set it to postgresql://user:password@host/name"
            )
        if self.public_url is None:
            problems.append(
                "PUBLIC_URL is missing, so links would repeat whatever Host a client sends: "
                "set it to the address that clients use, as https://books.example.org"
            )
        return problems


class Testing(Settings):
    """Defaults for tests: an in-memory SQLite database. `.env` is not read."""

    model_config = SettingsConfigDict(env_file=None)

    env = "testing"
    database_url: DatabaseUrl = Field("sqlite:///:memory:", validation_alias="TESTING_DATABASE_URL")


CONFIGURATIONS: dict[str, type[Settings]] = {
    cls.env: cls for cls in (Development, Production, Testing)
}


class _Environment(BaseSettings):
    model_config = SettingsConfigDict(env_file=".env", extra="ignore", env_ignore_empty=True)

    octavo_env: str = "development"


def load_from_environment() -> Settings:
    """Load and check the configuration that OCTAVO_ENV names, for the command line.

    Raises ConfigurationError for invalid or unsafe settings. Every command checks them: else a
    command meant for production could change the default database.
    """
    return load(_Environment().octavo_env).check()


def load(config_name: str) -> Settings:
    """Load the configuration `config_name` from the environment and `.env`, without `check`.

    Raises ConfigurationError with a sentence for each invalid variable.
    """
    if config_name not in CONFIGURATIONS:
        known = ", ".join(CONFIGURATIONS)
        raise ConfigurationError([f"OCTAVO_ENV is {config_name!r}: choose one of {known}."])
    try:
        warn_of_retired_settings()
        return CONFIGURATIONS[config_name]()
    except ValidationError as error:
        raise ConfigurationError(
            [
                f"{'.'.join(map(str, item['loc'])).upper()}: "
                f"{item['msg'].removeprefix('Value error, ')}"
                for item in error.errors(include_url=False)
            ]
        ) from None
    except UnicodeDecodeError:
        raise ConfigurationError([".env is not UTF-8: save it as UTF-8"]) from None
