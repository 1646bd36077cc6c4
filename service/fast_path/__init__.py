"""The fast path: respond to requests without Quart's request cycle, on the direct or warm path.

    Quart      request edge, limits (Redis) -> Quart: hooks, view, operation
    direct     request edge, limits (Redis) ->                     operation
    warm       limits, account and cached body, in one write to Redis

*Warm path.* The server calls `WarmResponder.lookup` before it creates a task for a request. The
cached item or the generation of the remembered list is read while the limits are decided. If the
response is cached and the request is admitted, the callback of Redis's reply sends the response.
The same callback sends a cached 404, and a 429 or 401 to a caller without a valid token. All other
requests (a miss, a write under way, an error of Redis, a header that may change the response)
continue on the ordinary path (direct or Quart), with their limits decided.

*Direct path.* An operation with a complete request runs without Quart's request cycle, which costs
more than the operation. A request that needs other functions of Quart goes through Quart.

No code here names a route: the declarations of its operation decide. While the application has
additions (`service.http.additions`), every request goes through Quart. The responses of the three
paths differ only in time and in the order of headers: `tests/test_fast_path.py` compares them.
`FAST_PATH=false` turns the fast path off.

    warm         selects the requests that are looked up, and builds their responses
    routes       the declarations of operations, by path
    lookup       one request, from its lookup to its response
    remembered   responses of lists, each valid for one generation
    middleware   the warm path under other servers, and for HTTP/2
    direct       operations without Quart's request cycle
"""

from quart import Quart

from service.config import Settings
from service.fast_path import direct
from service.fast_path.middleware import FastPathMiddleware
from service.fast_path.warm import WarmResponder

__all__ = ["WarmResponder", "init_app"]


def init_app(app: Quart, settings: Settings) -> None:
    """Install the warm path, as extension `fast_path` and as middleware, and the direct path."""
    if settings.fast_path:
        responder = app.extensions["fast_path"] = WarmResponder(app, settings)
        app.extensions["observers"].append(responder.remember_list)
        app.asgi_app = FastPathMiddleware(app.asgi_app, responder)  # type: ignore[method-assign]  # as Quart documents
        direct.init_app(app, settings)
