"""Short ways for what is asked the most: to read a book or books, and to create one.

    ordinary   front, gate: the limit (Redis) -> Quart: hooks, schema, view -> cache, database
    plain      front, gate: the limit (Redis) ->        what the view does  -> cache, database
    warm       the limit, the account and the answer's bytes, of one tick, in one write to Redis

*Warm.* The server asks here before it makes a task for a request. What is recognised is looked up
while its limit is decided; if it is there, and the request is let in, its bytes are sent from the
callback of Redis's reply. Whatever else there is (a miss, a mark, a refusal, a doubt about Redis, a
header that might matter) goes on, with the limit decided.

*Plain.* What has come as a whole and asks for nothing unusual is answered without the framework's
cycle, which costs more than the work does. Whatever is not quite so, or goes wrong, is Quart's.

Nobody can tell the three apart, but by the time they take and the order of headers:
`tests/test_shortway.py` and `test_shortway_creates.py` ask side by side.

    way      what is warm: recognised, where it is, and how it is answered
    look     one request, from its first question to its answer
    pages    pages that were answered, each for as long as its generation is the present one
    ahead    the same for other servers, and for HTTP/2
    plain    what is plain

A book is looked up in the cache. A page, once it was answered, stays in this process as bytes: any
write ends the generation that it is of, so one key, the same for all of them, says whether it is
still true. `SHORT_WAY=false` switches all of it off.
"""

from quart import Quart

from service.config import Settings
from service.shortway import plain
from service.shortway.ahead import Ahead
from service.shortway.way import ShortWay

__all__ = ["ShortWay", "init_app"]


def init_app(app: Quart, settings: Settings) -> None:
    """Put it before the front, and where a server finds it."""
    if settings.short_way:
        way = app.extensions["shortway"] = ShortWay(app, settings)
        app.extensions["observers"].append(way.learn)
        app.asgi_app = Ahead(app.asgi_app, way)  # type: ignore[method-assign]  # Quart's way in
        plain.init_app(app, settings)
