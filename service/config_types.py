"""Pydantic types of the settings, and the parsers of their values in environment variables."""

import json
import os
import warnings
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from dotenv import dotenv_values
from limits import parse_many
from pydantic import AfterValidator, BeforeValidator
from pydantic_settings import NoDecode
from redis.asyncio.connection import parse_url as parse_redis_url
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

ASYNC_DRIVERS = {
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
}
MAX_LIMIT_NUMBER = 1_000_000_000  # amount or seconds of a limit; doubles are exact for it
RETIRED = {
    "SHED_LAG_SECONDS": "set MAX_WAIT_SECONDS, the longest wait of a request",
    "POOL_TIMEOUT": "MAX_WAIT_SECONDS bounds the wait for a connection as well",
    "PASSWORD_QUEUE": "MAX_WAIT_SECONDS bounds the wait for a thread as well",
}
RENAMED = {"SHORT_WAY": "FAST_PATH", "HTTP1": "HTTP1_PARSER"}  # the old names still work
DATABASE_FORMS = "write postgresql://user:password@host/name or sqlite:///file.db"


def parse_database_url(value: str) -> URL:
    """Parse a database URL, and set its async driver.

    libpq's parameter `sslmode` becomes asyncpg's `ssl`. Raises ValueError for an invalid URL, or a
    database that Octavo does not support.
    """
    try:
        url = make_url(value)
        url = url.set(drivername=ASYNC_DRIVERS[url.drivername])
    except (ArgumentError, KeyError, ValueError):
        raise ValueError(DATABASE_FORMS) from None
    if "sslmode" in url.query:
        query = dict(url.query)
        query["ssl"] = query.pop("sslmode")
        url = url.set(query=query)
    return url


def _is_database(value: str) -> str:
    parse_database_url(value)
    return value


def _is_redis(value: str) -> str:
    parse_redis_url(value)
    return value


def _absolute(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise ValueError("write an absolute URL that starts with http:// or https://")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("write it without user, password, query and fragment: the URL is public")
    return value.rstrip("/")


def _comma_separated(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(part for item in value.split(",") if (part := item.strip()))
    return value


def _json(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError('write JSON, as {"books": ["https://a.example"]}') from None
    return value


def _are_origins(value: Any) -> Any:
    for origin in chain(*value.values()) if isinstance(value, dict) else value:
        parts = urlsplit(origin)
        if origin != "*" and f"{parts.scheme}://{parts.netloc}" != origin:
            raise ValueError(f"{origin!r} is no origin: write scheme://host[:port], no path")
    return value


def parse_rates(value: str) -> list[tuple[int, int]]:
    """Parse `10 per minute;100 per hour` into pairs (amount, seconds). Raises ValueError."""
    try:
        limits = [(limit.amount, limit.get_expiry()) for limit in parse_many(value)]
    except ValueError:
        raise ValueError("write limits as `10 per minute;100 per hour`") from None
    if not all(amount and seconds for amount, seconds in limits):
        raise ValueError("a limit is at least 1; RATELIMIT_ENABLED=false turns limits off")
    if any(number > MAX_LIMIT_NUMBER for limit in limits for number in limit):
        raise ValueError(f"a limit is at most {MAX_LIMIT_NUMBER:,} in as many seconds")
    return limits


def _are_rates(value: str) -> str:
    parse_rates(value)
    return value


def _none_by_name(value: Any) -> Any:
    return None if isinstance(value, str) and value.lower() == "none" else value


def warn_of_retired_settings() -> None:
    """Warn about each retired or renamed variable in the environment or in `.env`."""
    variables = {*os.environ, *dotenv_values(".env")}
    for name in RETIRED.keys() & variables:
        warnings.warn(
            f"{name} has no effect any more: {RETIRED[name]}", FutureWarning, stacklevel=3
        )
    for name in RENAMED.keys() & variables:
        warnings.warn(f"{name} is called {RENAMED[name]} now", FutureWarning, stacklevel=3)


DatabaseUrl = Annotated[str, AfterValidator(_is_database)]
RedisUrl = Annotated[str, AfterValidator(_is_redis)]
StorageUrl = Literal["memory://"] | RedisUrl
AbsoluteUrl = Annotated[str, AfterValidator(_absolute)]
Origins = Annotated[
    tuple[str, ...], NoDecode, BeforeValidator(_comma_separated), AfterValidator(_are_origins)
]
BlueprintOrigins = Annotated[
    dict[Literal["auth", "books", "users"], tuple[str, ...]],
    NoDecode,
    BeforeValidator(_json),
    AfterValidator(_are_origins),
]
Rates = Annotated[str, AfterValidator(_are_rates)]
Folder = Annotated[Path | None, BeforeValidator(_none_by_name)]
