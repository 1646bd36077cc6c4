"""The gate before the framework: whether a request may pass now, and how its caller stands."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, Scope
from quart import Quart
from werkzeug.exceptions import HTTPException

from service.asgi import LONGEST_PATH, MATCHED
from service.cache import Items
from service.cors import Origins
from service.errors import RateLimitedError, ResourceNotFoundError
from service.front import ROUTE
from service.guard import RECOGNISES, expect
from service.limits.claims import Decision
from service.limits.limiter import UNKNOWN, Limiter
from service.limits.wording import headers
from service.web import LIMITED_VARY, STANDINGS

HANDED = "octavo.handed"  # in the scope


class Handed(NamedTuple):
    """What somebody before the gate has found out of a request.

    decision: of its limits; None: it is yet to be made. fail: tells, from within the request, whom
    it concerns what did not answer.
    """

    decision: Decision | None
    fail: Callable[[], None]


class Gate:
    """Wraps an ASGI application: decides before it, and tells how the caller stands afterwards."""

    def __init__(self, app: Quart, inner: ASGIFramework, limiter: Limiter, enabled: bool) -> None:
        self._app = app
        self._inner = inner
        self._limiter = limiter
        self._enabled = enabled
        self._match = app.url_map.bind("").match
        self._origins: Origins = app.extensions["origins"]
        self._items: Items = app.extensions["cache"].items

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        if scope["type"] != "http":
            return await self._inner(scope, receive, send)
        handed: Handed | None = cast(Any, scope).pop(HANDED, None)
        if handed is not None:
            handed.fail()
        is_known = is_path(scope.get("raw_path") or scope["path"].encode())
        endpoint = self._endpoint(scope) if is_known else None
        if self._enabled and scope["method"] != "OPTIONS":
            await self._decide(scope, endpoint, None if handed is None else handed.decision)
            send = partial(self._send, scope, send)
        if not is_known:
            raise ResourceNotFoundError
        return await self._inner(scope, receive, send)

    async def _decide(
        self, scope: Any, endpoint: str | None, decision: Decision | None = None
    ) -> None:
        """Count a request that was not, unless its limits are custom. Raises RateLimitedError."""
        plan = UNKNOWN if endpoint is None else self._limiter.plan(self._app, endpoint)
        if plan.custom or not (plan.names or plan.written):
            return
        try:
            if decision is None:
                caller = self._limiter.callers.of(scope)
                if caller.user_id is not None and self._recognises(endpoint):
                    expect(scope, self._items, caller.user_id)
                await self._limiter.decide(scope, self._limiter.claims(endpoint, plan, caller))
            else:
                self._limiter.settle(scope, decision)
        except RateLimitedError as refused:
            standing = {key.decode(): value.decode() for key, value in headers(scope[STANDINGS])}
            told = {"Vary": LIMITED_VARY} | self._origins.headers(scope) | standing
            refused.headers = {**refused.headers, **told}
            raise

    def _recognises(self, endpoint: str | None) -> bool:
        return hasattr(self._app.view_functions.get(endpoint or ""), RECOGNISES)

    async def _send(self, scope: Any, send: ASGISendCallable, message: Any) -> None:
        if message["type"] == "http.response.start" and STANDINGS in scope:
            message["headers"] = [*message["headers"], *headers(scope[STANDINGS])]
        await send(message)

    def _endpoint(self, scope: Any) -> str | None:
        try:
            matched = self._match(scope["path"], scope["method"], return_rule=True)
        except HTTPException:
            return None
        scope[MATCHED], rule = matched, matched[0]
        scope[ROUTE] = rule.rule
        endpoint: str = rule.endpoint
        return endpoint


def is_path(target: bytes) -> bool:
    """Whether a target is a path in its one spelling: Quart takes `x:/a` and `///a` for `/a`."""
    if len(target) > LONGEST_PATH:
        return False
    return target.startswith(b"/") and b"//" not in target and b"%2f" not in target.lower()
