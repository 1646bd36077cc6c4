"""ASGI middleware that sets what every response has, also a response made without Quart.

It sets the request id, limits the size of a request body, adds security headers, and sends an error
response if the inner application raises an exception.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, cast

from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, Scope
from quart import Quart

from service.config import Settings
from service.http.context import context_of
from service.http.error_handler import as_api_error, error_response
from service.http.headers import RequestHeaders, parse_headers
from service.http.requests import max_body_bytes
from service.http.responses import send_response
from service.ids import random_id
from service.logs import request_id

# For responses that are no HTML page.
DEFAULT_CSP = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
END = {"type": "http.request", "body": b"", "more_body": False}
GONE = {"type": "http.disconnect"}

# Called at the end of a request with its scope, its status (0: there was no response), and its
# duration in seconds.
Observe = Callable[[Any, int, float], None]


def request_id_of(headers: RequestHeaders) -> str:
    """Return the request id: the client's X-Request-ID if it is valid, else a new id."""
    return headers.request_id or random_id()


class RequestEdge:
    """Wraps an ASGI application. in_flight: number of requests that run. protection: headers."""

    def __init__(self, app: Quart, inner: ASGIFramework, settings: Settings) -> None:
        self._app = app
        self._inner = inner
        self._settings = settings
        self._observers: list[Observe] = app.extensions.setdefault("observers", [])
        self.in_flight = 0
        self.protection = [
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
        ]
        if settings.is_https:
            year = b"max-age=31536000"  # no includeSubDomains: other services may use them
            self.protection.append((b"strict-transport-security", year))

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        if scope["type"] == "lifespan":
            return await self._inner(scope, receive, send)
        if scope["type"] == "websocket":  # websockets are not supported
            return await send({"type": "websocket.close", "code": 1000, "reason": ""})
        name = request_id_of(parse_headers(scope["headers"]))
        request_id.set(name)
        context = context_of(scope)
        begun, status = context.begun or time.perf_counter(), 0
        started = complete = gone = False
        responded = asyncio.Event()
        left: int | None = None  # bytes that the rest of the body may have

        async def send_with_id(message: Any) -> None:
            nonlocal started, status
            if message["type"] == "http.response.start":
                started, status = True, message["status"]
                headers = message["headers"]
                policy = [] if any(key == DEFAULT_CSP[0] for key, _ in headers) else [DEFAULT_CSP]
                named = (b"x-request-id", name.encode())
                message["headers"] = [*headers, named, *self.protection, *policy]
            await send(message)
            if message["type"] == "http.response.body":
                responded.set()

        async def receive_capped() -> Any:
            """Return a body of at most its maximum size. Delay a disconnect until the response.

            At `http.disconnect`, Quart cancels the handler and its database queries. The delay
            lets a complete request run to its end; it ends with the first part of a stream. A
            disconnect before the end of the body ends the body (`is_cut_short`).
            """
            nonlocal left, complete, gone
            while True:
                message: Any = GONE if gone else await receive()  # a server may send it only once
                if message["type"] == "http.disconnect":
                    if complete:
                        await responded.wait()
                        return message
                    gone, message = True, END
                    context.is_cut_short = True
                elif complete:
                    continue  # discard the body after its maximum size
                if left is None:
                    left = max_body_bytes(self._app, self._settings, scope)
                left -= len(message.get("body", b""))
                if left < 0:
                    context.is_too_large = True
                    message = END
                complete = not message.get("more_body", False)
                return message

        self.in_flight += 1
        try:
            await self._inner(scope, receive_capped, send_with_id)
        except Exception as error:
            rendered = as_api_error(error)
            if started or (rendered.status_code >= 500 and rendered is not error):
                self._app.logger.exception("%s %s", scope["method"], scope["path"])
            if started:
                raise  # the server aborts the connection: a partial response must not look complete
            headers, body = error_response(rendered)
            await send_response(cast(Any, send_with_id), rendered.status_code, headers, body)
        finally:
            self.in_flight -= 1
            self.notify(scope, status, begun)
        return None

    def notify(self, scope: Any, status: int, begun: float) -> None:
        """Call the observers at the end of a request. begun: from `time.perf_counter`."""
        seconds = time.perf_counter() - begun
        for observe in self._observers:
            observe(scope, status, seconds)


def init_app(app: Quart, settings: Settings) -> None:
    """Wrap the application in the request edge."""
    edge = app.extensions["request_edge"] = RequestEdge(app, app.asgi_app, settings)
    app.asgi_app = edge  # type: ignore[method-assign]  # Quart's extension point
