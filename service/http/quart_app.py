"""A Quart application that handles complete requests without extra tasks or a second routing.

Quart creates four asyncio tasks for a request: to read the request, to handle it, and for the
timeouts of its body and its response. A complete request with a short response needs none of them.
"""

from functools import lru_cache
from typing import Any, cast

import quart
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable
from quart import Quart, Response
from quart.asgi import ASGIHTTPConnection
from quart.typing import ResponseTypes
from quart.utils import encode_headers
from quart.wrappers.base import BaseRequestWebsocket
from quart.wrappers.response import DataBody
from werkzeug.routing import MapAdapter

from service.http.context import context_of
from service.http.responses import send_stream
from service.server.http1 import COMPLETE

SENT_AT_ONCE = 65_536  # bytes that `server.http1` buffers without waiting for the client


class Connection(ASGIHTTPConnection):
    """Handles a complete request in the calling task."""

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Respond to a request; if it is incomplete, as Quart does."""
        if not is_complete(self.scope):
            return await super().__call__(receive, send)
        message: Any = await receive()
        return await self.answer(message.get("body", b""), send)

    async def answer(self, body: bytes, send: ASGISendCallable) -> None:
        """Respond to a request with the body `body`."""
        request = self._create_request_from_scope(send)
        request.body.set_result(body)
        return await self.handle_request(request, send)

    async def _send_response(self, send: ASGISendCallable, response: ResponseTypes) -> None:
        """Send a response of bytes in one body message, where Quart sends two.

        Send a stream in parts. Quart has no timeout for a part.
        """
        if not isinstance(response, Response):
            return await super()._send_response(send, response)
        start: Any = {
            "type": "http.response.start",
            "status": response.status_code,
            "headers": encode_headers(response.headers),
        }
        await send(start)
        if not isinstance(response.response, DataBody):
            async with response.response as parts:
                return await send_stream(send, parts)
        data = b"".join([piece async for piece in response.response])
        body: Any = {"type": "http.response.body", "body": data, "more_body": False}
        return await send(body)


class Request(quart.Request):
    """A request whose list of blueprints is cached by endpoint."""

    @property
    def blueprints(self) -> list[str]:
        """Return the names of the route's blueprint and of its parents."""
        return list(_blueprints(self.endpoint or ""))


@lru_cache
def _blueprints(endpoint: str) -> tuple[str, ...]:
    names = endpoint.split(".")[:-1]
    return tuple(".".join(names[:n]) for n in range(len(names), 0, -1))


class _Matched:
    """A URL adapter for a request that the limit middleware has already matched to a rule."""

    def __init__(self, app: "Application", request: BaseRequestWebsocket) -> None:
        self._app, self._request = app, request

    def match(self, **_: object) -> Any:
        return context_of(self._request.scope).matched

    def __getattr__(self, name: str) -> Any:
        return getattr(self._app.bind(self._request), name)  # used to build URLs


class Application(Quart):
    """Quart with the optimisations of this module."""

    asgi_http_class = Connection

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        once: Any = lru_cache(1_024)  # a cache: the same functions come with every request
        self.ensure_async = once(self.ensure_async)  # type: ignore[method-assign]  # Quart's, kept

    async def handle_request(self, request: quart.Request) -> ResponseTypes:
        """Respond to a request. A short response needs no timeout: it is sent at once."""
        response = await super().handle_request(request)
        body = response.response
        is_short = isinstance(body, DataBody) and len(body.data) <= SENT_AT_ONCE
        if is_short and is_complete(request.scope):
            cast(Response, response).timeout = None
        return response

    async def dispatch_request(self, *args: Any) -> Any:
        """Call the view, or raise the context's `error`. Runs after all `before_request` hooks."""
        context = context_of(quart.request.scope)
        error, context.error = context.error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # its traceback refers to this frame: a cycle
        return await super().dispatch_request(*args)

    def bind(self, request: BaseRequestWebsocket | None) -> MapAdapter | None:
        """Return Quart's own URL adapter, which can match and build URLs."""
        return super().create_url_adapter(request)

    def create_url_adapter(self, request: BaseRequestWebsocket | None) -> Any:
        """Return the URL adapter of a request. A matched request is not matched again."""
        if request is None or request.root_path or context_of(request.scope).matched is None:
            return self.bind(request)
        return _Matched(self, request)


def is_complete(scope: Any) -> bool:
    """Return whether the server has read the whole request (ASGI extension COMPLETE)."""
    return COMPLETE in (scope.get("extensions") or ())
