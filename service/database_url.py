"""Database URLs: the plain forms that people know, turned into those of the async drivers."""

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

ASYNC_DRIVERS = {
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
}
FORMS = "write postgresql://user:password@host/name or sqlite:///file.db"


def parse(value: str) -> URL:
    """Read a URL, its driver async and libpq's `sslmode` as asyncpg's `ssl`.

    Raises ValueError if it names no database that Octavo knows.
    """
    try:
        url = make_url(value)
        url = url.set(drivername=ASYNC_DRIVERS[url.drivername])
    except (ArgumentError, KeyError, ValueError):
        raise ValueError(FORMS) from None
    if "sslmode" in url.query:
        query = dict(url.query)
        query["ssl"] = query.pop("sslmode")
        url = url.set(query=query)
    return url
