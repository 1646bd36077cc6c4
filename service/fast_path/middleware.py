"""ASGI middleware for the warm path under servers other than `service.server.http1`."""

import asyncio

from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, Scope

from service.http.context import context_of
from service.http.responses import send_response
from service.server.http1.config import EarlyResponse, Shortcut


class FastPathMiddleware:
    """Wraps an ASGI application, and sends the responses that a Shortcut finds."""

    def __init__(self, inner: ASGIFramework, shortcut: Shortcut) -> None:
        self._inner = inner
        self._shortcut = shortcut

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        if (
            scope["type"] == "http"
            and scope["method"] in {"GET", "HEAD"}  # the server omits the body of HEAD
            and not context_of(scope).is_looked_up
            and scope.get("raw_path")  # optional in ASGI
        ):
            loop = asyncio.get_running_loop()
            future: asyncio.Future[EarlyResponse | None] = loop.create_future()

            def callback(response: EarlyResponse | None) -> None:
                if not future.done():
                    future.set_result(response)

            if self._shortcut.lookup(scope, callback) and (response := await future) is not None:
                return await send_response(send, response.status, response.headers, response.body)
        return await self._inner(scope, receive, send)
