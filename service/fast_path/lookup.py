"""One look: a limit and an answer's bytes are asked for together, and waited for without a task."""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from service.cache import Prefetch, Replied, State
from service.context import context_of
from service.guard import USERS
from service.http1.config import EarlyResponse
from service.limits.identity import Credentials
from service.limits.limiter import Plan
from service.limits.middleware import LookupResult
from service.limits.types import Decision

if TYPE_CHECKING:
    from service.fast_path.warm import WarmResponder

Callback = Callable[[EarlyResponse | None], None]


class PreparedResponse(NamedTuple):
    """An answer to anybody who asks for it.

    shown, had: its header lines as a 200, and as a 304; those are there that all of them have.
    """

    tag: str
    shown: bytes
    had: bytes
    body: bytes


class Route(NamedTuple):
    """A route that goes this way. plan: its limits; None: there are none."""

    endpoint: str
    rule: str
    plan: Plan | None


class LookupPlan(NamedTuple):
    """Where an answer is, if there is one. `take`: makes it of what stands under the key."""

    route: Route
    state: State
    key: str
    take: Callable[[bytes | None], PreparedResponse | None]


class WarmLookup:
    """What is asked for one request. It begins when it is made; `tell` is called later, once."""

    __slots__ = (
        "_begun", "_claims", "_decision", "_found", "_left", "_refuse", "_scope", "_sought",
        "_tell", "_way",
    )  # fmt: skip

    def __init__(
        self,
        way: "WarmResponder",
        scope: Any,
        sought: LookupPlan,
        credentials: Credentials,
        tell: Callback,
    ) -> None:
        self._way, self._scope, self._sought, self._tell = way, scope, sought, tell
        self._claims = claims = credentials.claims
        self._refuse = credentials.refuse
        self._begun = time.perf_counter()
        way.front.in_flight += 1
        self._left = 3  # of what is waited for: two answers, and the end of this
        way.decide(sought.route, credentials.caller, self._decided)
        keys = [sought.key]
        if claims is not None:
            keys.append(sought.state.prefix + USERS.key(claims.user_id))
        way.store.call(keys, self._replied)
        self._left -= 1
        if not self._left:  # not at once: who calls is still at the request
            asyncio.get_running_loop().call_soon(self._end)

    def _decided(self, decision: Decision | Exception | None) -> None:
        self._decision = decision
        self._left -= 1
        if not self._left:
            self._end()

    def _replied(self, found: Replied | Exception) -> None:
        self._found = found
        self._left -= 1
        if not self._left:
            self._end()

    def _end(self) -> None:
        way, scope, told = self._way, self._scope, None
        way.front.in_flight -= 1
        decision, found = self._decision, self._found
        if not (isinstance(decision, Exception) or isinstance(found, Exception)):
            try:
                is_admitted = decision is None or decision.admitted
                if is_admitted and self._refuse is None:
                    told = way.answer(scope, self._sought, self._claims, found, decision)
                elif self._claims is None:  # else the account may say that the token was revoked
                    told = way.refuse(scope, self._sought, self._refuse, decision)
            except Exception:
                way.logger.exception("The fast path")
        if told is None:
            context = context_of(scope)
            context.begun = self._begun
            decided, undecided = _outcome(decision)
            replied, unread = _outcome(found)
            account = None
            if self._claims is not None and replied is not None:
                account = Prefetch(self._sought.state)
                account.receive((replied[0], replied[1][1:]))
            context.handed = LookupResult(decided, account, partial(way.fail, undecided, unread))
            return self._tell(None)
        self._tell(told)
        return way.front.tell(scope, told.status, self._begun)


def _outcome(told: Any) -> tuple[Any, Any]:
    """Give what came of something, or why nothing did."""
    return (None, told) if isinstance(told, Exception) else (told, None)
