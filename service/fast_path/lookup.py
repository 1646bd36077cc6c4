"""Look up one request: request its limits and its cached response together, without a task."""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from service.cache import Prefetch, Replied, State
from service.http.auth import USERS
from service.http.context import context_of
from service.limits.identity import Credentials
from service.limits.limiter import Plan
from service.limits.middleware import LookupResult
from service.limits.types import Decision
from service.server.http1.config import EarlyResponse

if TYPE_CHECKING:
    from service.fast_path.warm import WarmResponder

Callback = Callable[[EarlyResponse | None], None]  # None: the ordinary path must respond


class PreparedResponse(NamedTuple):
    """A cached response. tag: the ETag of its plain form, without quotes.

    headers, headers_304: the field lines of a 200 and of a 304 that are the same for all clients.
    """

    tag: str
    headers: bytes
    headers_304: bytes
    body: bytes


class Route(NamedTuple):
    """A route of the warm path. rule: its path, for the log. plan: its limits; None: no limits."""

    endpoint: str
    rule: str
    plan: Plan | None


class LookupPlan(NamedTuple):
    """Where a response may be cached. state: the epoch of the cache. key: in the store.

    take: makes the response from the stored value; None: not cached. Raises APIError for a 404.
    """

    route: Route
    state: State
    key: str
    take: Callable[[bytes | None], PreparedResponse | None]


class WarmLookup:
    """The lookup of one request. The constructor starts it; `callback` is called later, once."""

    __slots__ = (
        "_begun", "_callback", "_claims", "_decision", "_left", "_plan", "_refuse", "_reply",
        "_responder", "_scope",
    )  # fmt: skip

    def __init__(
        self,
        responder: "WarmResponder",
        scope: Any,
        plan: LookupPlan,
        credentials: Credentials,
        callback: Callback,
    ) -> None:
        self._responder, self._scope = responder, scope
        self._plan, self._callback = plan, callback
        self._claims = claims = credentials.claims
        self._refuse = credentials.refuse
        self._begun = time.perf_counter()
        responder.edge.in_flight += 1
        self._left = 3  # events to wait for: decision, reply of the store, end of __init__
        responder.decide(plan.route, credentials.caller, self._decided)
        keys = [plan.key]
        if claims is not None:
            keys.append(plan.state.prefix + USERS.key(claims.user_id))
        responder.store.call(keys, self._replied)
        self._left -= 1
        if not self._left:  # not now: the caller of `lookup` is still handling the request
            asyncio.get_running_loop().call_soon(self._end)

    def _decided(self, decision: Decision | Exception | None) -> None:
        self._decision = decision
        self._left -= 1
        if not self._left:
            self._end()

    def _replied(self, reply: Replied | Exception) -> None:
        self._reply = reply
        self._left -= 1
        if not self._left:
            self._end()

    def _end(self) -> None:
        responder, scope, response = self._responder, self._scope, None
        responder.edge.in_flight -= 1
        decision, reply = self._decision, self._reply
        if not (isinstance(decision, Exception) or isinstance(reply, Exception)):
            try:
                is_admitted = decision is None or decision.admitted
                if is_admitted and self._refuse is None:
                    response = responder.answer(scope, self._plan, self._claims, reply, decision)
                elif self._claims is None:  # a token may be revoked: ordinary path
                    response = responder.refuse(scope, self._plan, self._refuse, decision)
            except Exception:
                responder.logger.exception("The fast path failed")
        if response is None:
            context = context_of(scope)
            context.begun = self._begun
            decided, undecided = _outcome(decision)
            stored, unread = _outcome(reply)
            account = None
            if self._claims is not None and stored is not None:
                account = Prefetch(self._plan.state)
                account.receive((stored[0], stored[1][1:]))
            context.lookup_result = LookupResult(
                decided, account, partial(responder.fail, undecided, unread)
            )
            return self._callback(None)
        self._callback(response)
        return responder.edge.notify(scope, response.status, self._begun)


def _outcome(result: Any) -> tuple[Any, Any]:
    """Return (result, None), or (None, error)."""
    return (None, result) if isinstance(result, Exception) else (result, None)
