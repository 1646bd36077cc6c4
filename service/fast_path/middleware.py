"""The fast path under any ASGI server. Our own HTTP/1.1 asks it without an application."""

import asyncio

from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, Scope

from service.asgi import answer
from service.context import context_of
from service.http1.config import EarlyResponse, Shortcut


class FastPathMiddleware:
    """Wraps an ASGI application, and answers what is at hand before it."""

    def __init__(self, inner: ASGIFramework, shortcut: Shortcut) -> None:
        self._inner = inner
        self._shortcut = shortcut

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        if (
            scope["type"] == "http"
            and scope["method"] == "GET"
            and not context_of(scope).is_looked_up
            and scope.get("raw_path")  # a server need not give it
        ):
            told: asyncio.Future[EarlyResponse | None] = asyncio.get_running_loop().create_future()

            def tell(found: EarlyResponse | None) -> None:
                if not told.done():
                    told.set_result(found)

            if self._shortcut.look(scope, tell) and (found := await told) is not None:
                return await answer(send, found.status, found.headers, found.body)
        return await self._inner(scope, receive, send)
