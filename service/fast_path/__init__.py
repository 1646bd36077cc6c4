"""The fast path: operations without Quart's request cycle.

    Quart      edge, limits (Redis) -> Quart: hooks, view, operation
    direct     edge, limits (Redis) ->                     operation
    warm       the limits, the account and the body, in one write to Redis

*Warm.* The server calls `WarmResponder.lookup` before it makes a task for a request. The cached
item or the remembered list is looked up while the limits are decided. If it is cached and the
request is admitted, the callback of Redis's reply sends the response. The same callback sends a
cached 404, and the refusal of an address. All other requests (a miss, a write under way, an error
of Redis, a header that may change the response) continue on the ordinary path, with their limits
decided.

*Direct.* An operation whose request is complete runs without Quart's cycle, which costs more than
the operation. A request that needs more of the framework goes to Quart.

No route has code here: the declarations of an operation decide. While anything is added to the
application (`service.http.additions`), every request goes to Quart. The responses of the three
paths differ only in time and in the order of headers: `tests/test_fast_path.py` compares them.
`FAST_PATH=false` turns the fast path off.

    warm         which requests are looked up, and their responses
    routes       what operations declare, by path
    lookup       one request, from its lookup to its response
    remembered   responses of lists, each valid for its generation
    middleware   the warm path under other servers, and for HTTP/2
    direct       operations without Quart's cycle
"""

from quart import Quart

from service.config import Settings
from service.fast_path import direct
from service.fast_path.middleware import FastPathMiddleware
from service.fast_path.warm import WarmResponder

__all__ = ["WarmResponder", "init_app"]


def init_app(app: Quart, settings: Settings) -> None:
    """Install the fast path before the request edge, and where the server looks for it."""
    if settings.fast_path:
        responder = app.extensions["fast_path"] = WarmResponder(app, settings)
        app.extensions["observers"].append(responder.remember_list)
        app.asgi_app = FastPathMiddleware(app.asgi_app, responder)  # type: ignore[method-assign]  # as Quart documents
        direct.init_app(app, settings)
