"""The fast path: operations without Quart's cycle.

    ordinary   front, gate: the limit (Redis) -> Quart: hooks, view, operation
    plain      front, gate: the limit (Redis) ->                     operation
    warm       the limit, the account and the answer's bytes, of one tick, in one write to Redis

*Warm.* The server asks here before it makes a task for a request. An item that is cached, or a list
that is remembered, is looked up while the limit is decided. If it is there, and the request is let
in, its bytes are sent from the callback of Redis's reply. Everything else (a miss, a mark, a
refusal, a doubt about Redis, a header that might matter) goes on, with the limit decided.

*Plain.* An operation whose request has come as a whole is run without the framework's cycle, which
costs more than the work does. Requests that need more of the framework are Quart's.

No route has code here: what stands on an operation decides. As long as anything was added to the
application (`service.additions`), every request takes the ordinary way. Nobody can tell the three
apart but by their time and the order of headers: `tests/test_fast_path.py` sends
both the same requests. `SHORT_WAY=false` switches all of it off.

    way      what is warm: where it is, and how it is answered
    routes   what operations declare, by path
    look     one request, from its first question to its answer
    pages    lists that were answered, each for as long as its generation is the present one
    ahead    the same for other servers, and for HTTP/2
    plain    what is plain
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
