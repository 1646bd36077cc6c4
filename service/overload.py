"""Overload: what is turned away, so that the rest is answered in time.

A process that takes whatever comes answers nothing in time once it is asked for more than it can
bear: each turn of its loop takes longer, and whoever waits gives up. So its lateness has a budget.
Beyond that only so many requests may be in flight as keep it; what comes on top gets 503, and may
come again. Lists go first, they cost most; health is never turned away, and nothing that was let
in is. A refusal has to be cheap, or refusing is itself what there is too much of: it is made before
all else, and counted, but not logged.
"""

import math
import time
from functools import cached_property, lru_cache
from typing import Any

from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, Scope
from quart import Quart
from werkzeug.exceptions import HTTPException

from service.asgi import answer
from service.config import Settings
from service.cors import Origins
from service.engines import Waits
from service.errors import MIMETYPE, ServiceUnavailableError, problem
from service.fields import told_by
from service.front import NO_PAGE, VARY, Front, request_name
from service.lag import Lag
from service.logs import request_id
from service.precedence import COSTLY, LET_IN, NEVER_SHED

WAITED_SECONDS = 0.2  # for a database connection
LEAST = 10  # requests in flight: it is not they that make it late
FIRST, LESS, MORE = 0.5, 0.8, 1.03  # of the room, by each look
CALM_SECONDS = 2.0  # without being late, nor turning anybody away: there is room to be found
KEPT_LENGTH = 100  # characters of a path whose route is remembered: others come once
LISTS_ALONE = 1.0  # of the strain
MESSAGE = "There is more to do than can be done at the moment"


class Overload:
    """Wraps an ASGI application, and lets in what can be borne.

    budget: seconds that the event loop may be late; 0: nothing is ever turned away. `room` is how
    many requests may be in flight: without bound, until it is late; then fewer, as long as it is,
    and more and more, as long as it is not, until no bound is felt any more. Additive changes
    would come to the same at this size. Lateness alone would be told too late: much is let in
    between two looks at it.

    Lists are also turned away where a database connection has been waited for too long: what the
    cache knows needs none, and writes wait for theirs.
    """

    def __init__(self, app: Quart, inner: ASGIFramework, budget: float) -> None:
        self._inner = inner
        self._budget = budget
        self._waits: Waits = app.extensions["database"].waits
        self._origins: Origins = app.extensions["origins"]
        front: Front = app.extensions["front"]
        self._front = front
        self.room = math.inf
        self._strained_at = -math.inf
        lag: Lag = app.extensions["lag"]
        if budget:
            lag.observers.append(self.seen_late)
        self._app = app
        self._match = app.url_map.bind("").match
        self._known_costly = lru_cache(1_024)(self._find_costly)
        self._always_told = [
            (b"content-type", MIMETYPE.encode()),
            (b"cache-control", b"no-store"),
            (b"vary", VARY.encode()),
            *front.protection,
            NO_PAGE,
        ]
        self.shed = 0

    @property
    def strain(self) -> float:
        """How much of what can be borne is there: from 1 lists are turned away, from 2 all is."""
        strain = self._front.in_flight / self.room
        if self._budget and self._waits.begun:
            waited = self._waits.longest(time.monotonic()) / WAITED_SECONDS
            strain = max(strain, min(waited, LISTS_ALONE))
        return strain

    def seen_late(self, seconds: float) -> None:
        """Make room for less, or for more, as late as the event loop is."""
        now, in_flight = time.monotonic(), self._front.in_flight
        if seconds > self._budget:
            self._strained_at = now
            less = LESS if self.room < math.inf else FIRST
            self.room = max(LEAST, min(self.room, in_flight) * less)
        elif in_flight >= self.room or now > self._strained_at + CALM_SECONDS:
            self.room *= MORE  # what could be borne is forgotten little by little

    @cached_property
    def _never(self) -> set[str]:
        views = self._app.view_functions
        rules = self._app.url_map.iter_rules()
        return {rule.rule for rule in rules if hasattr(views[rule.endpoint], NEVER_SHED)}

    def turns_away(self, method: str, path: str) -> bool:
        """Tell whether a request should not be let in now."""
        strain = self.strain
        if strain < 1 or path in self._never:
            return False
        return strain >= 2 or self._is_costly(method, path)

    def _is_costly(self, method: str, path: str) -> bool:
        find = self._known_costly if len(path) <= KEPT_LENGTH else self._find_costly
        return find(method, path)

    def _find_costly(self, method: str, path: str) -> bool:
        try:
            endpoint, _ = self._match(path, method)
        except HTTPException:
            return False
        return hasattr(self._app.view_functions[endpoint], COSTLY)

    def refusal(self, scope: Any) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Give the headers and the body of a 503, and count it."""
        self.shed += 1
        # It is in time because it refuses: without a bound all of them would be let in at once.
        self._strained_at = time.monotonic()
        request_id.set(request_name(told_by(scope["headers"])))
        refused = ServiceUnavailableError(MESSAGE)
        body = problem(refused)
        told = {
            "content-length": str(len(body)),
            "x-request-id": request_id.get(),
            **refused.headers,
            **self._origins.headers(scope),
        }
        spelled = [(name.lower().encode(), value.encode()) for name, value in told.items()]
        return [*self._always_told, *spelled], body

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        """Let a request in, or not."""
        if (
            scope["type"] != "http"
            or LET_IN in scope
            or not self.turns_away(scope["method"], scope["path"])
        ):
            return await self._inner(scope, receive, send)
        headers, body = self.refusal(scope)
        return await answer(send, 503, headers, body)


def init_app(app: Quart, settings: Settings) -> None:
    """Put it before all else, also before the front."""
    app.extensions["overload"] = overload = Overload(app, app.asgi_app, settings.shed_lag_seconds)
    app.asgi_app = overload  # type: ignore[method-assign]  # Quart's way in
