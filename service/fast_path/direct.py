"""What needs a task, but not the framework: operations whose request has come as a whole.

The gate has let a request in, and has checked its token, as it does for all. The operation is run
here as it is within Quart: the same decorators, the same handler, the same answers and errors.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from hypercorn.typing import ASGISendCallable
from quart import Quart
from werkzeug.exceptions import RequestEntityTooLarge

from service.additions import Additions
from service.asgi import Connection
from service.config import Settings
from service.context import RequestContext, context_of
from service.cors import Origins
from service.error_handler import render
from service.errors import MIMETYPE, problem
from service.fields import parse_headers
from service.limits import Limiter
from service.operations import Call, Operation, RawResponse, operation_of
from service.requests import check_names
from service.web import sized, spelled, vary_of


class DirectResponder:
    """Answers operations."""

    def __init__(self, app: Quart) -> None:
        self._app = app
        self._additions: Additions = app.extensions["additions"]
        self._limiter: Limiter = app.extensions["limiter"]
        self._origins: Origins = app.extensions["origins"]

    def find(self, scope: Any) -> Operation | None:
        """Give the operation that a request is for, if it needs nothing of the framework."""
        context, fields = context_of(scope), parse_headers(scope["headers"])
        if context.matched is None or context.error is not None or self._additions.are_there:
            return None
        if fields.is_special or not fields.host or scope.get("root_path"):
            return None
        endpoint = context.matched[0].endpoint
        if scope["method"] == "OPTIONS" or self._limiter.plan(self._app, endpoint).custom:
            return None
        return operation_of(self._app, endpoint)

    async def answer(self, operation: Operation, scope: Any, body: bytes) -> RawResponse:
        """Run an operation on a request that has this body, and give the whole answer."""
        context = context_of(scope)
        call = Call(self._app.extensions, scope, scope["path"], _given(body))
        try:
            status, headers, body = await self._run(operation, call, context)
        except Exception as error:
            rendered = render(error, scope["method"], scope["path"], self._app.logger)
            status, body = rendered.status_code, problem(rendered)
            fields = {"content-type": MIMETYPE, "cache-control": "no-store", **rendered.headers}
            headers = [*sized(body)[1:], *spelled(fields)]
        headers.append((b"vary", vary_of(scope).encode()))
        if call.headers.has_origin:
            headers += spelled(self._origins.headers(scope))
        return RawResponse(status, headers, body)

    async def _run(self, operation: Operation, call: Call, context: RequestContext) -> RawResponse:
        if context.is_too_large:
            raise RequestEntityTooLarge
        if call.scope["query_string"]:
            check_names([name for name, _ in call.args], operation.view)
        assert context.matched is not None
        return await operation.run(call, context.matched[1])


def _given(body: bytes) -> Callable[[], Awaitable[bytes]]:
    async def read_body() -> bytes:
        return body

    return read_body


class DirectConnection(Connection):
    """A connection to the framework that runs operations without it."""

    async def answer(self, body: bytes, send: ASGISendCallable) -> None:
        """Answer a request."""
        plain: DirectResponder = self.app.extensions["plain"]
        operation = plain.find(self.scope)
        if operation is None:
            return await super().answer(body, send)
        status, headers, data = await plain.answer(operation, self.scope, body)
        start: Any = {"type": "http.response.start", "status": status, "headers": headers}
        end: Any = {"type": "http.response.body", "body": data, "more_body": False}
        await send(start)
        return await send(end)


def init_app(app: Quart, settings: Settings) -> None:
    """Put it in the place of Quart's connection: within the front and the gate."""
    app.extensions["plain"] = DirectResponder(app)
    app.asgi_http_class = DirectConnection
