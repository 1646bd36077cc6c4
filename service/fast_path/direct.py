"""The direct path: run the operation of a complete request in its task, without Quart's cycle.

The limit middleware has already admitted the request and checked its token. Decorators, handler,
response and errors are the same as within Quart.
"""

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

from hypercorn.typing import ASGISendCallable
from quart import Quart
from werkzeug.exceptions import RequestEntityTooLarge

from service.config import Settings
from service.errors import MIMETYPE, problem
from service.http.additions import Additions
from service.http.call import Call
from service.http.context import RequestContext, context_of
from service.http.cors import Origins
from service.http.error_handler import render
from service.http.headers import parse_headers
from service.http.operations import Operation, RawResponse, operation_of
from service.http.quart_app import Connection
from service.http.requests import check_names
from service.http.responses import content_headers, encode_headers, send_stream, vary_of
from service.limits import Limiter


class DirectResponder:
    """Finds the operation of a request, and runs it."""

    def __init__(self, app: Quart) -> None:
        self._app = app
        self._additions: Additions = app.extensions["additions"]
        self._limiter: Limiter = app.extensions["limiter"]
        self._origins: Origins = app.extensions["origins"]

    def find(self, scope: Any) -> Operation | None:
        """Return the operation of a request. None: the request needs Quart's request cycle."""
        context, parsed = context_of(scope), parse_headers(scope["headers"])
        if context.matched is None or context.error is not None or self._additions.exist:
            return None
        if parsed.is_special or not parsed.host or scope.get("root_path"):
            return None
        endpoint = context.matched[0].endpoint
        if scope["method"] == "OPTIONS" or self._limiter.plan(self._app, endpoint).custom:
            return None
        return operation_of(self._app, endpoint)

    async def answer(self, operation: Operation, scope: Any, body: bytes) -> RawResponse:
        """Run an operation with the request body `body`. An error becomes an error response."""
        context = context_of(scope)
        call = Call(self._app.extensions, scope, scope["path"], _body_reader(body))
        try:
            status, headers, content = await self._run(operation, call, context)
        except Exception as error:
            rendered = render(error, scope["method"], scope["path"], self._app.logger)
            status, content = rendered.status_code, problem(rendered)
            fields = {"content-type": MIMETYPE, "cache-control": "no-store", **rendered.headers}
            headers = [*content_headers(content)[1:], *encode_headers(fields)]
        headers.append((b"vary", vary_of(scope).encode()))
        if call.headers.has_origin:
            headers += encode_headers(self._origins.headers(scope))
        return RawResponse(status, headers, content)

    async def _run(self, operation: Operation, call: Call, context: RequestContext) -> RawResponse:
        if context.is_too_large:
            raise RequestEntityTooLarge
        if call.scope["query_string"]:
            check_names([name for name, _ in call.args], operation.view)
        assert context.matched is not None
        return await operation.run(call, context.matched[1])


def _body_reader(body: bytes) -> Callable[[], Awaitable[bytes]]:
    async def read_body() -> bytes:
        return body

    return read_body


class DirectConnection(Connection):
    """An ASGI connection class for Quart that runs operations without its request cycle."""

    async def answer(self, body: bytes, send: ASGISendCallable) -> None:
        """Respond to a complete request with the body `body`."""
        responder: DirectResponder = self.app.extensions["direct"]
        operation = responder.find(self.scope)
        if operation is None:
            return await super().answer(body, send)
        status, headers, content = await responder.answer(operation, self.scope, body)
        start: Any = {"type": "http.response.start", "status": status, "headers": headers}
        await send(start)
        if not isinstance(content, bytes):
            async with aclosing(content):
                return await send_stream(send, content)
        end: Any = {"type": "http.response.body", "body": content, "more_body": False}
        return await send(end)


def init_app(app: Quart, settings: Settings) -> None:
    """Set the connection class of Quart, inside the request edge and the limit middleware."""
    app.extensions["direct"] = DirectResponder(app)
    app.asgi_http_class = DirectConnection
