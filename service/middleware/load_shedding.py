"""Shed load: an ASGI middleware that runs a bounded number of requests, and queues more requests.

The queue is in `service.admission`. A request that cannot run within MAX_WAIT_SECONDS gets 503.
Routes with `never_shed` (health, metrics) never wait. While requests are being refused, routes with
`costly` (lists) run after all other requests. The metric `octavo_shed_total` counts the refusals;
they are not logged.

A request with an incomplete body enters the queue when the body is complete, so that a slow client
occupies no turn. `service.server.http1` calls `submit` before it creates a task for a complete
request. Under another server, the middleware itself enters the queue.
"""

import asyncio
from collections.abc import Callable
from functools import cached_property, lru_cache, partial
from typing import Any

from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, Scope
from quart import Quart
from werkzeug.exceptions import HTTPException

from service.admission import OVERLOADED, Admission, AdmissionQueue, current
from service.config import Settings
from service.db.database import Database
from service.errors import MIMETYPE, ServiceUnavailableError, problem
from service.http.context import context_of
from service.http.cors import Origins
from service.http.headers import parse_headers
from service.http.priority import COSTLY, NEVER_SHED
from service.http.quart_app import is_complete
from service.http.responses import VARY, send_response
from service.logs import request_id
from service.middleware.request_edge import DEFAULT_CSP, END, RequestEdge, request_id_of

# Enough to keep the event loop and all database connections busy, and few enough that one
# tick takes milliseconds (docs/decisions.md).
CONCURRENT_REQUESTS = 64
MAX_CACHED_PATH = 100  # characters of a path whose priority is cached

Headers = list[tuple[bytes, bytes]]
Refuse = Callable[[int, Headers, bytes], None]


class LoadShedding:
    """Wraps an ASGI application, and admits requests through a queue. budget: in seconds."""

    def __init__(self, app: Quart, inner: ASGIFramework, budget: float) -> None:
        self._app = app
        self._inner = inner
        database: Database = app.extensions["database"]
        self.queue = AdmissionQueue(CONCURRENT_REQUESTS, budget, database.oldest_wait)
        self._origins: Origins = app.extensions["origins"]
        edge: RequestEdge = app.extensions["request_edge"]
        self._match = app.url_map.bind("").match
        self._known_costly = lru_cache(1_024)(self._find_costly)
        self._headers = [
            (b"content-type", MIMETYPE.encode()),
            (b"cache-control", b"no-store"),
            (b"vary", VARY.encode()),
            *edge.protection,
            DEFAULT_CSP,
        ]

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        """Run a request at its turn, or send 503."""
        if scope["type"] != "http" or scope["path"] in self._never_shed:
            return await self._inner(scope, receive, send)
        admission = context_of(scope).admission or Admission(self.queue)
        if not admission.is_running:
            if not is_complete(scope) and parse_headers(scope["headers"]).has_body:
                receive = _Body(self, admission, scope, receive)
            elif not await self.enter(scope, admission):
                headers, body = self.refusal(scope)
                return await send_response(send, 503, headers, body)
        token = current.set(admission)
        try:
            return await self._inner(scope, receive, send)
        finally:
            current.reset(token)
            admission.end()

    def submit(self, scope: Any, start: Callable[[], None], refuse: Refuse) -> Admission:
        """Call `start` at the turn of a request, or `refuse` with status, headers and body.

        `start` must begin a call of this middleware, which ends the admission. If the client
        disconnects before `start`, the caller ends the admission.
        """
        context = context_of(scope)
        admission = context.admission or Admission(self.queue)
        if scope["path"] in self._never_shed:
            start()
        else:
            context.admission = admission
            self._join(scope, admission, start, lambda: refuse(503, *self.refusal(scope)))
        return admission

    def _join(
        self,
        scope: Any,
        admission: Admission,
        start: Callable[[], None],
        refuse: Callable[[], None],
    ) -> None:
        is_costly = self.queue.is_full and self._is_costly(scope["method"], scope["path"])
        self.queue.submit(admission, start, refuse, is_costly=is_costly)

    async def enter(self, scope: Any, admission: Admission) -> bool:
        """Wait for the turn of a request. Return False if the request is refused."""
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def settle(is_admitted: bool) -> None:
            if not turn.done():
                turn.set_result(is_admitted)

        self._join(scope, admission, partial(settle, True), partial(settle, False))
        try:
            return await turn
        except asyncio.CancelledError:
            admission.end()
            raise

    @cached_property
    def _never_shed(self) -> set[str]:
        views = self._app.view_functions
        rules = self._app.url_map.iter_rules()
        return {rule.rule for rule in rules if hasattr(views[rule.endpoint], NEVER_SHED)}

    def _is_costly(self, method: str, path: str) -> bool:
        find = self._known_costly if len(path) <= MAX_CACHED_PATH else self._find_costly
        return find(method, path)

    def _find_costly(self, method: str, path: str) -> bool:
        try:
            endpoint, _ = self._match(path, method)
        except HTTPException:
            return False
        return hasattr(self._app.view_functions[endpoint], COSTLY)

    def refusal(self, scope: Any) -> tuple[Headers, bytes]:
        """Return the headers and the body of a 503, and set its request id."""
        request_id.set(request_id_of(parse_headers(scope["headers"])))
        error = ServiceUnavailableError(OVERLOADED)
        body = problem(error)
        headers = {
            "content-length": str(len(body)),
            "x-request-id": request_id.get(),
            **error.headers,
            **self._origins.headers(scope),
        }
        encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        return [*self._headers, *encoded], body


class _Body:
    """An ASGI `receive` that waits for the request's turn when the body is complete."""

    def __init__(
        self,
        load_shedding: LoadShedding,
        admission: Admission,
        scope: Any,
        receive: ASGIReceiveCallable,
    ) -> None:
        self._load_shedding = load_shedding
        self._admission = admission
        self._scope = scope
        self._receive = receive
        self._is_complete = False

    async def __call__(self) -> Any:
        """Return the next message. If refused, it ends the body, and `read_json` raises 503."""
        message: Any = await self._receive()
        if self._is_complete or message.get("more_body", False):
            return message
        self._is_complete = True
        if message["type"] != "http.request":
            return message
        if await self._load_shedding.enter(self._scope, self._admission):
            return message
        context_of(self._scope).is_shed = True
        return END


def init_app(app: Quart, settings: Settings) -> None:
    """Wrap the request edge in this middleware, which the fast path wraps."""
    load_shedding = LoadShedding(app, app.asgi_app, settings.max_wait_seconds)
    app.extensions["load_shedding"] = load_shedding
    app.asgi_app = load_shedding  # type: ignore[method-assign]  # Quart's extension point
