"""The warm path: an answer is looked up in one tick of the event loop, together with its limit.

No route is known here by its name. What its operation declares decides: `cached_item` names the
entry that it answers with, and a list that was read through the cache may be kept.
"""

import asyncio
import time
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

from quart import Quart

from service.additions import Additions
from service.admission import Admission, AdmissionQueue
from service.asgi import LONGEST_PATH
from service.cache import Cache, Entry, Replied
from service.cache.entries import read
from service.config import Settings
from service.context import context_of
from service.cors import Origins
from service.errors import APIError
from service.fast_path.lookup import Callback, LookupPlan, PreparedResponse, Route, WarmLookup
from service.fast_path.remembered import Key, RememberedList, RememberedLists
from service.fast_path.routes import ItemRequest, Routes
from service.fields import RequestHeaders, parse_headers
from service.front import NO_PAGE, VARY, Front, error_response, request_name
from service.guard import USERS, read_account
from service.http1.config import EarlyResponse
from service.limits import Limiter
from service.limits.headers import lines
from service.limits.identity import Caller
from service.limits.middleware import complete
from service.limits.types import Decision
from service.logs import request_id
from service.security import Claims
from service.web import (
    CACHE_STATUS,
    LIMITED_VARY,
    PERSONAL,
    as_lines,
    cache_status,
    etag,
    is_known,
    sized,
    spelled,
)

KEPT = 2_048  # items that are remembered, by their bytes
ALWAYS = [
    (b"cache-control", b"no-cache"),
    (b"cache-status", f"Octavo; {CACHE_STATUS['hit']}".encode()),
    (b"vary", LIMITED_VARY.encode()),
    NO_PAGE,
]


class WarmResponder:
    """Looks for answers that are at hand."""

    def __init__(self, app: Quart, settings: Settings) -> None:
        self.front: Front = app.extensions["front"]
        self._additions: Additions = app.extensions["additions"]
        self.logger = app.logger
        self._app = app
        self._cache: Cache = app.extensions["cache"]
        self.store = self._cache.store
        self._limiter: Limiter = app.extensions["limiter"]
        self._queue: AdmissionQueue = app.extensions["load_shedding"].queue
        self._origins: Origins = app.extensions["origins"]
        self._base = None if settings.public_url is None else settings.public_url.encode()
        is_kept = settings.cache_pages == "generation"
        seconds = min(settings.cache_page_seconds, settings.cache_count_seconds)
        self._pages = RememberedLists(seconds if is_kept else 0)
        self._keeps_items = settings.cache_item_seconds > 0
        self._read = lru_cache(KEPT)(self._read_item)
        self._routes = Routes(app, self._limiter, settings.ratelimit_enabled)
        self._always = as_lines([*ALWAYS, *self.front.protection])
        self._refused = as_lines([NO_PAGE, *self.front.protection])
        unlimited = [(b"cache-control", b"no-store"), (b"vary", VARY.encode()), NO_PAGE]
        self._constant = as_lines([*unlimited, *self.front.protection])

    def look(self, scope: Any, tell: Callback) -> bool:
        """Begin to look for the answer to a GET, if it is one of these."""
        context = context_of(scope)
        context.is_looked_up = True
        if self._additions.are_there:
            return False
        raw_path = scope["raw_path"]
        told = parse_headers(scope["headers"])
        if told.is_special or told.has_body or not told.host or scope.get("root_path"):
            return False
        if len(raw_path) > LONGEST_PATH:
            return False
        if not scope["query_string"] and (constant := self._routes.constant(raw_path)) is not None:
            loop, begun = asyncio.get_running_loop(), time.perf_counter()
            loop.call_soon(self._tell_constant, scope, tell, constant, begun)
            return True
        if self._limiter.ledger.is_away:
            return False
        wanted = None if scope["query_string"] else self._routes.item(raw_path)
        if wanted is not None:
            sought = self._seek_item(wanted)
        else:
            sought = self._seek_page(self._key(scope, told))
        if sought is None or (sought.route.plan is not None and sought.route.plan.custom):
            return False
        credentials = self._limiter.callers.read(scope)
        has_token = credentials.claims is not None
        if has_token and not self._keeps_items:
            return False

        def begin(waited: float) -> None:
            if waited:
                context.admission = Admission(self._queue, waited)
            WarmLookup(self, scope, sought, credentials, tell)

        self._queue.submit_quick(begin)
        return True

    def _tell_constant(self, scope: Any, tell: Callback, body: bytes, begun: float) -> None:
        """Answer in the next turn of the loop: under load, Quart's ten take their time."""
        context_of(scope).route = scope["raw_path"].decode()
        lines = as_lines(sized(body)) + self._constant + _named(parse_headers(scope["headers"]))
        tell(EarlyResponse(200, lines, body))
        self.front.tell(scope, 200, begun)

    def _seek_item(self, wanted: ItemRequest) -> LookupPlan | None:
        if not self._keeps_items or (state := self._cache.access.enter()) is None:
            return None
        take = partial(self._take_item, wanted)
        return LookupPlan(wanted.route, state, state.prefix + wanted.key, take)

    def _take_item(self, wanted: ItemRequest, value: bytes | None) -> PreparedResponse | None:
        """Give the answer. Raises the error of a row that is not there."""
        entry, ready = self._read(value, wanted.own_key, wanted.item.show)
        if entry is not None:
            self._cache.items.hit(wanted.item.kind, wanted.id, entry)
            if ready is None:
                raise wanted.item.missing(wanted.id)
        return ready

    def _read_item(
        self, value: bytes | None, key: str, show: Callable[[bytes], bytes]
    ) -> tuple[Entry | None, PreparedResponse | None]:
        entry = read(value, key)
        if entry is None or not entry.body:
            return entry, None
        body = show(entry.body)
        return entry, self._ready(etag(body), as_lines(sized(body)), body)

    def _ready(self, tag: str, lines: bytes, body: bytes) -> PreparedResponse:
        had = b'etag: "%b"\r\n%b' % (tag.encode(), self._always)
        return PreparedResponse(tag, lines + had, had, body)

    def _seek_page(self, key: Key) -> LookupPlan | None:
        page = self._pages.get(key)
        if page is None or (state := self._cache.access.enter()) is None:
            return None
        take = partial(self._take_page, page)
        generation_key = state.prefix + page.listing.kind.generation_key
        return LookupPlan(page.route, state, generation_key, take)

    def _take_page(self, page: RememberedList, generation: bytes | None) -> PreparedResponse | None:
        return page.ready if self._cache.lists.hit(page.listing, page.rows, generation) else None

    def decide(self, route: Route, caller: Caller, tell: Callable[[Any], None]) -> None:
        """Begin to decide the limits of a caller, and tell. None: there are none."""
        if route.plan is None:
            return tell(None)
        limiter = self._limiter
        claims = limiter.claims(route.endpoint, route.plan, caller)
        return limiter.ledger.call(claims, tell)

    def answer(
        self,
        scope: Any,
        sought: LookupPlan,
        claims: Claims | None,
        found: Replied,
        decision: Decision | None,
    ) -> EarlyResponse | None:
        """Give the answer, if what was found is one, and still is one, and the token is valid."""
        run_id, (value, *accounts) = found
        state = sought.state
        if run_id != state.run_id or not self._cache.access.is_still(state):
            return None
        entry, context = None, context_of(scope)
        if claims is not None:
            entry, account = read_account(accounts[0], USERS.own_key(claims.user_id))
            if account is None or not account.accepts(claims):
                return None
        missing: APIError | None = None
        try:
            ready = sought.take(value)
        except APIError as error:
            ready, missing = None, error
        if ready is None and missing is None:
            return None
        if claims is not None and entry is not None:
            self._cache.items.hit(USERS, claims.user_id, entry)
            context.user_id = claims.user_id
        context.cache_status, context.route = "hit", sought.route.rule
        if ready is None:
            assert missing is not None
            missing.headers = {**missing.headers, **cache_status(scope, "hit")}
            return self._fail(scope, missing, decision)
        allowed = limits = b""
        asked = parse_headers(scope["headers"])
        if asked.has_origin:
            allowed = as_lines(spelled(self._origins.headers(scope)))
        if decision is not None:
            limits = lines(self._limiter.settle(scope, decision).standings)
        if asked.tags and is_known(ready.tag, asked.tags):
            return EarlyResponse(304, ready.had + allowed + limits + _named(asked), b"")
        return EarlyResponse(200, ready.shown + allowed + limits + _named(asked), ready.body)

    def refuse(
        self,
        scope: Any,
        sought: LookupPlan,
        refuse: Callable[[], APIError] | None,
        decision: Decision | None,
    ) -> EarlyResponse:
        """Give the answer to a request that its limits or its token refuse, as the gate does."""
        context_of(scope).route = sought.route.rule
        return self._fail(scope, None if refuse is None else refuse(), decision)

    def _fail(self, scope: Any, error: APIError | None, decision: Decision | None) -> EarlyResponse:
        """Answer with an error. The limits come first, and then there need be no other one."""
        named = _named(parse_headers(scope["headers"]))
        try:
            if decision is not None:
                self._limiter.settle(scope, decision)
        except APIError as refusal:
            error = refusal
        assert error is not None
        error.__traceback__ = None  # its frames hold the request
        headers, body = error_response(complete(error, scope, self._origins))
        return EarlyResponse(error.status_code, as_lines(headers) + self._refused + named, body)

    def fail(self, undecided: Exception | None, unread: Exception | None) -> None:
        """Hear, within the request, that Redis did not answer: it is not asked a second time."""
        if undecided is not None:
            self._limiter.ledger.failed(undecided)
        if unread is not None:
            self._cache.access.failed(unread)

    def learn(self, scope: Any, status: int, _: float) -> None:
        """Keep what the ordinary way has answered, if it can be asked for again."""
        context = context_of(scope)
        page, matched = context.listed, context.matched
        if page is None or matched is None or status not in {200, 304} or not page.rows.generation:
            return
        told = parse_headers(scope["headers"])
        is_odd = told.is_special or told.has_body or not told.host or scope.get("root_path")
        if not is_odd and scope["path"].startswith(PERSONAL):
            lines = as_lines([*sized(page.body), *spelled(page.headers)])
            ready = self._ready(page.tag, lines, page.body)
            route = self._routes.route(matched[0].endpoint)
            self._pages.put(
                self._key(scope, told), RememberedList(route, ready, page.listing, page.rows)
            )

    def _key(self, scope: Any, told: RequestHeaders) -> Key:
        """Name a list by all that its answer depends on: links are absolute."""
        base = self._base or b"%b://%b" % (scope["scheme"].encode(), told.host)
        return scope.get("raw_path") or b"", scope["query_string"], base


def _named(told: RequestHeaders) -> bytes:
    """Give the line of a request's id, which is that of all that is logged from now on."""
    name = request_name(told)
    request_id.set(name)
    return f"x-request-id: {name}\r\n".encode()
