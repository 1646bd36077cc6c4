"""The gate before the framework: whether a request may pass now, and how its caller stands."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, Scope
from quart import Quart
from werkzeug.exceptions import HTTPException

from service.cors import Origins
from service.errors import RateLimitedError, ResourceNotFoundError
from service.front import ROUTE
from service.limits.limiter import UNKNOWN, Limiter
from service.limits.wording import headers
from service.web import LIMITED_VARY, STANDINGS


class Answer(NamedTuple):
    """An answer that is at hand."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Begun(NamedTuple):
    """A look for an answer that has begun, beside the decision. `finish` gives it, or None."""

    endpoint: str
    rule: str
    finish: Callable[[], Awaitable[Answer | None]]


class Shortcut(Protocol):
    """Knows answers that need no framework."""

    def look(self, scope: Any) -> Begun | None:
        """Begin to look for the answer to a request, if it is one of these."""

    def learn(self, scope: Any) -> None:
        """Look at a request that was answered the ordinary way."""


class Gate:
    """Wraps an ASGI application: decides before it, and tells how the caller stands afterwards."""

    shortcut: Shortcut | None = None

    def __init__(self, app: Quart, inner: ASGIFramework, limiter: Limiter, enabled: bool) -> None:
        self._app = app
        self._inner = inner
        self._limiter = limiter
        self._enabled = enabled
        self._match = app.url_map.bind("").match
        self._origins: Origins = app.extensions["origins"]

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        if scope["type"] != "http":
            return await self._inner(scope, receive, send)
        begun = None if self.shortcut is None else self.shortcut.look(scope)
        if begun is None:
            is_known = is_path(scope.get("raw_path") or scope["path"].encode())
            endpoint = self._endpoint(scope) if is_known else None
        else:
            is_known, endpoint = True, begun.endpoint
            cast(Any, scope)[ROUTE] = begun.rule
        is_decided = True
        if self._enabled and scope["method"] != "OPTIONS":
            is_decided = await self._decide(scope, endpoint)
            send = partial(self._send, scope, send)
        if not is_known:
            raise ResourceNotFoundError
        if begun and is_decided and (answer := await begun.finish()) is not None:
            status, headers, body = answer
            await send({"type": "http.response.start", "status": status, "headers": headers})
            return await send({"type": "http.response.body", "body": body, "more_body": False})
        await self._inner(scope, receive, send)
        if self.shortcut is not None:
            self.shortcut.learn(scope)
        return None

    async def _decide(self, scope: Any, endpoint: str | None) -> bool:
        """Count a request. False: its limits are custom, and yet to be decided.

        Raises RateLimitedError.
        """
        plan = UNKNOWN if endpoint is None else self._limiter.plan(self._app, endpoint)
        if plan.custom or not (plan.names or plan.written):
            return not plan.custom
        caller = self._limiter.callers.of(scope)
        try:
            await self._limiter.decide(scope, self._limiter.claims(endpoint, plan, caller))
        except RateLimitedError as refused:
            told = {"Vary": LIMITED_VARY} | self._origins.headers(scope) | headers(scope[STANDINGS])
            refused.headers = {**refused.headers, **told}
            raise
        return True

    async def _send(self, scope: Any, send: ASGISendCallable, message: Any) -> None:
        if message["type"] == "http.response.start" and STANDINGS in scope:
            told = headers(scope[STANDINGS]).items()
            message["headers"] = [
                *message["headers"],
                *((key.lower().encode(), value.encode()) for key, value in told),
            ]
        await send(message)

    def _endpoint(self, scope: Any) -> str | None:
        try:
            rule, _ = self._match(scope["path"], scope["method"], return_rule=True)
        except HTTPException:
            return None
        scope[ROUTE] = rule.rule
        endpoint: str = rule.endpoint
        return endpoint


def is_path(target: bytes) -> bool:
    """Whether a target is a path in its one spelling: Quart takes `x:/a` and `///a` for `/a`."""
    return target.startswith(b"/") and b"//" not in target and b"%2f" not in target.lower()
