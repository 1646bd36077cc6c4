"""ASGI middleware that checks the limits and the token of a request before Quart handles it.

If the application has additions (`http.additions`), a refusal is raised within Quart's request
cycle, so that added hooks and handlers see it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, Scope
from quart import Quart
from werkzeug.exceptions import HTTPException

from service.cache import Items, Prefetch
from service.errors import APIError, InternalError, ResourceNotFoundError
from service.http.additions import Additions
from service.http.auth import USERS, load_user
from service.http.context import RequestContext, context_of
from service.http.cors import Origins
from service.http.error_handler import as_api_error
from service.http.responses import AUTHENTICATED_PREFIXES, LIMITED_VARY
from service.http.urls import MAX_DECODED_PATH
from service.limits.headers import rate_limit_headers
from service.limits.identity import Credentials
from service.limits.limiter import UNKNOWN, Limiter, Plan
from service.limits.types import Decision
from service.security import InvalidTokenError


class LookupResult(NamedTuple):
    """Results of the warm path for a request that it could not respond to.

    decision: of the limits; None: not decided. account: the cached entry of the user. fail: reports
    failures of Redis to the limits and the cache; must be called in the context of the request.
    """

    decision: Decision | None
    account: Prefetch | None
    fail: Callable[[], None]


class LimitMiddleware:
    """Wraps an ASGI application: checks limits before it, and adds headers to its response."""

    def __init__(self, app: Quart, inner: ASGIFramework, limiter: Limiter, enabled: bool) -> None:
        self._app = app
        self._inner = inner
        self._limiter = limiter
        self._enabled = enabled
        self._match = app.url_map.bind("").match
        self._origins: Origins = app.extensions["origins"]
        self._items: Items = app.extensions["cache"].items
        self._additions: Additions = app.extensions["additions"]

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        if scope["type"] != "http":
            return await self._inner(scope, receive, send)
        context = context_of(scope)
        lookup_result = context.lookup_result
        if lookup_result is not None:
            lookup_result.fail()
        is_known = is_path(scope.get("raw_path") or scope["path"].encode())
        endpoint = self._endpoint(scope) if is_known else None
        if scope["method"] != "OPTIONS":
            try:
                await self._admit(scope, endpoint, lookup_result)
            except APIError as error:
                if not self._additions.exist:
                    raise complete(error, scope, self._origins) from None
                context.error = error
            send = partial(self._send, context, send)
        if not is_known:
            raise ResourceNotFoundError
        return await self._inner(scope, receive, send)

    async def _admit(
        self, scope: Any, endpoint: str | None, lookup_result: LookupResult | None
    ) -> None:
        """Charge a request and check its token, unless its route is exempt from both.

        Raises RateLimitedError; InvalidTokenError for an invalid or revoked token; APIError for two
        Authorization headers. For a route with custom limits, `Limiter` raises these errors later,
        in Quart's request cycle.
        """
        plan = UNKNOWN if endpoint is None else self._limiter.plan(self._app, endpoint)
        if not (plan.is_limited or scope["path"].startswith(AUTHENTICATED_PREFIXES)):
            return
        refuse = (await self._check(scope, endpoint, plan, lookup_result)).refuse
        if refuse is not None and not (self._enabled and plan.custom):
            raise refuse()

    async def _check(
        self, scope: Any, endpoint: str | None, plan: Plan, lookup_result: LookupResult | None
    ) -> Credentials:
        """Charge the caller of a request. Return its credentials, checked against the account.

        Decision and account are requested together. So the user of a revoked token is charged
        before the account shows the revocation. Then the user's units are refunded, and the address
        is charged.
        """
        limiter = self._limiter
        credentials = limiter.identities.read(scope)
        claims, account = credentials.claims, None
        if lookup_result is not None:
            account = lookup_result.account
        elif claims is not None:
            account = self._items.prefetch(USERS, claims.user_id)
        charges = self._charges(endpoint, plan, credentials)
        decision = None if lookup_result is None else lookup_result.decision
        if decision is None and charges:
            decision = await limiter.limit_store.acquire(charges)
        try:
            if claims is not None:
                is_refused = decision is not None and not decision.admitted
                await self._check_account(scope, claims, account, is_refused)
        except InvalidTokenError as error:
            credentials = limiter.identities.revoke(scope, error)
            if decision is not None:
                await limiter.refund(charges, decision)
                decision = await limiter.limit_store.acquire(
                    self._charges(endpoint, plan, credentials)
                )
        finally:
            if decision is not None:
                context_of(scope).charged = charges, decision
                limiter.apply(scope, decision)
        return credentials

    def _charges(self, endpoint: str | None, plan: Plan, credentials: Credentials) -> Any:
        if not self._enabled or plan.custom or not plan.is_limited:
            return ()
        return self._limiter.charges(endpoint, plan, credentials.caller)

    async def _check_account(
        self, scope: Any, claims: Any, account: Prefetch | None, is_refused: bool
    ) -> None:
        """Check a token against its user's account.

        Raises InvalidTokenError, or ServiceUnavailableError if the account cannot be read. A
        request that its limits refuse runs no SQL.
        """
        entry = self._items.take(account, USERS, claims.user_id)
        if entry is None and is_refused:
            return
        try:
            if entry is None:
                entry, _ = await self._items.read(USERS, claims.user_id)
        except Exception as error:
            known = as_api_error(error)
            if isinstance(known, InternalError):
                raise
            self._app.logger.warning(
                "An account could not be read (%s: %s)", type(error).__name__, error
            )
            raise known from None
        load_user(scope, claims, entry)

    async def _send(self, context: RequestContext, send: ASGISendCallable, message: Any) -> None:
        if message["type"] == "http.response.start" and context.quotas is not None:
            message["headers"] = [*message["headers"], *rate_limit_headers(context.quotas)]
        await send(message)

    def _endpoint(self, scope: Any) -> str | None:
        try:
            matched = self._match(scope["path"], scope["method"], return_rule=True)
        except HTTPException:
            return None
        context = context_of(scope)
        context.matched, rule = matched, matched[0]
        context.route = rule.rule
        endpoint: str = rule.endpoint
        return endpoint


def complete(error: APIError, scope: Any, origins: Origins) -> APIError:
    """Add Vary, CORS and RateLimit headers to an error that does not pass through Quart."""
    quotas = context_of(scope).quotas
    quota = () if quotas is None else rate_limit_headers(quotas)
    limits = {key.decode(): value.decode() for key, value in quota}
    more = {"Vary": LIMITED_VARY} | origins.headers(scope) | limits
    error.headers = {**error.headers, **more}
    return error


def is_path(target: bytes) -> bool:
    """Whether a request target is a canonical path. Quart would treat `x:/a` and `///a` as `/a`."""
    if len(target) > MAX_DECODED_PATH:
        return False
    return target.startswith(b"/") and b"//" not in target and b"%2f" not in target.lower()
