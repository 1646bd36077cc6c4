"""A short way for the few reads that are asked the most: a book, a page of books, their 304.

    ordinary   gate: the limit (Redis) -> Quart: routing, hooks, schema, view -> cache (Redis)
    short      gate: the limit, and the answer's bytes, of one tick and in one write to Redis

The gate asks here first. What is recognised is looked up while the limit is decided; if it is
there, and the request was let in, its bytes are sent. Whatever else there is (a miss, a mark, a
doubt about Redis, a header that might matter) goes the ordinary way, with the limit decided.
Nobody can tell the two apart, but by the time it takes: `tests/test_shortway.py` asks both.

    way      what is recognised, and how it is looked up and answered
    pages    pages that were answered, each for as long as its generation is the present one

A book is looked up in the cache. A page, once it was answered, stays in this process as bytes: any
write ends the generation that it is of, so one key, the same for all of them, says whether it is
still true. `SHORT_WAY=false` switches all of it off.
"""

from quart import Quart

from service.config import Settings
from service.shortway.way import ShortWay

__all__ = ["ShortWay", "init_app"]


def init_app(app: Quart, settings: Settings) -> None:
    """Show the gate the way."""
    if settings.short_way:
        app.extensions["gate"].shortcut = ShortWay(app, settings)
