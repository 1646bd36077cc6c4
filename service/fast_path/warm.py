"""The warm path: send cached responses without a task, with the limits read in the same write.

No code here names a route. `cached_item` declares which entry an operation returns. A list response
that was read through the cache is remembered (`remembered`).
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

from quart import Quart

from service.admission import Admission, AdmissionQueue
from service.cache import Cache, Entry, Replied
from service.cache.entries import read
from service.config import Settings
from service.errors import APIError
from service.fast_path.lookup import Callback, LookupPlan, PreparedResponse, Route, WarmLookup
from service.fast_path.remembered import MAX_BODY_BYTES, Key, RememberedList, RememberedLists
from service.fast_path.routes import ItemRequest, Routes
from service.http.additions import Additions
from service.http.auth import USERS, read_account
from service.http.compression import (
    MIN_SIZE,
    THREAD_SIZE,
    Coding,
    CompressedBodies,
    coded_headers,
    compress,
    tag_with,
)
from service.http.context import context_of
from service.http.cors import Origins
from service.http.error_handler import error_response
from service.http.headers import RequestHeaders, parse_headers
from service.http.responses import (
    AUTHENTICATED_PREFIXES,
    CACHE_STATUS,
    LIMITED_VARY,
    VARY,
    cache_status,
    content_headers,
    encode_headers,
    etag,
    header_lines,
    matches_etag,
)
from service.http.urls import MAX_DECODED_PATH
from service.limits import Limiter
from service.limits.headers import rate_limit_lines
from service.limits.identity import Caller
from service.limits.middleware import complete
from service.limits.types import Decision
from service.logs import request_id
from service.middleware.request_edge import DEFAULT_CSP, RequestEdge, request_id_of
from service.security import Claims
from service.server.http1.config import EarlyResponse

ITEM_CACHE_SIZE = 2_048  # prepared responses of items, by stored value
ALWAYS = [
    (b"cache-control", b"no-cache"),
    (b"cache-status", f"Octavo; {CACHE_STATUS['hit']}".encode()),
    (b"vary", LIMITED_VARY.encode()),
    DEFAULT_CSP,
]


class WarmResponder:
    """Responds from the cache, without a task."""

    def __init__(self, app: Quart, settings: Settings) -> None:
        self.edge: RequestEdge = app.extensions["request_edge"]
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
        self._compresses = settings.compression
        self._bodies: CompressedBodies = app.extensions["compressed_bodies"]
        self._read = lru_cache(ITEM_CACHE_SIZE)(self._read_item)
        self._code = lru_cache(ITEM_CACHE_SIZE)(self._code_item)
        self._routes = Routes(app, self._limiter, settings.ratelimit_enabled)
        self._always = header_lines([*ALWAYS, *self.edge.protection])
        self._refused = header_lines([DEFAULT_CSP, *self.edge.protection])
        unlimited = [(b"cache-control", b"no-store"), (b"vary", VARY.encode()), DEFAULT_CSP]
        self._constant = header_lines([*unlimited, *self.edge.protection])

    def lookup(self, scope: Any, callback: Callback) -> bool:
        """Begin the lookup for a GET or HEAD. False: the request takes the ordinary path."""
        context = context_of(scope)
        context.is_looked_up = True
        if self._additions.exist:
            return False
        raw_path = scope["raw_path"]
        headers = parse_headers(scope["headers"])
        if headers.is_special or headers.has_body or not headers.host or scope.get("root_path"):
            return False
        if len(raw_path) > MAX_DECODED_PATH:
            return False
        if not scope["query_string"] and (constant := self._routes.constant(raw_path)) is not None:
            loop, begun = asyncio.get_running_loop(), time.perf_counter()
            loop.call_soon(self._send_constant, scope, callback, constant, begun)
            return True
        if self._limiter.limit_store.is_away:
            return False
        request = None if scope["query_string"] else self._routes.item(raw_path)
        if request is not None:
            plan = self._plan_item(request, self._coding(headers))
        else:
            plan = self._plan_page(self._key(scope, headers))
        if plan is None or (plan.route.plan is not None and plan.route.plan.custom):
            return False
        credentials = self._limiter.identities.read(scope)
        has_token = credentials.claims is not None
        if has_token and not self._keeps_items:
            return False

        def begin(waited: float) -> None:
            if waited:
                context.admission = Admission(self._queue, waited)
            WarmLookup(self, scope, plan, credentials, callback)

        self._queue.submit_quick(begin)
        return True

    def _send_constant(self, scope: Any, callback: Callback, body: bytes, begun: float) -> None:
        """Send a constant response. begun: from `time.perf_counter`."""
        context_of(scope).route = scope["raw_path"].decode()
        lines = (
            header_lines(content_headers(body))
            + self._constant
            + _id_line(parse_headers(scope["headers"]))
        )
        callback(EarlyResponse(200, lines, body))
        self.edge.notify(scope, 200, begun)

    def _coding(self, headers: RequestHeaders) -> Coding | None:
        return headers.coding if self._compresses else None

    def _plan_item(self, request: ItemRequest, coding: Coding | None) -> LookupPlan | None:
        if not self._keeps_items or (state := self._cache.access.enter()) is None:
            return None
        take = partial(self._take_item, request, coding)
        return LookupPlan(request.route, state, state.prefix + request.key, take)

    def _take_item(
        self, request: ItemRequest, coding: Coding | None, value: bytes | None
    ) -> PreparedResponse | None:
        """Return the response of an item. None: not cached. Raises APIError: there is no row."""
        entry, prepared = self._read(value, request.own_key, request.item.show)
        if entry is None:
            return None
        if prepared is not None and coding is not None and len(prepared.body) > MIN_SIZE:
            if len(prepared.body) > THREAD_SIZE:
                return None
            prepared = self._code(prepared, coding)
        self._cache.items.hit(request.item.kind, request.id, entry)
        if prepared is None:
            raise request.item.missing(request.id)
        return prepared

    def _read_item(
        self, value: bytes | None, key: str, show: Callable[[bytes], bytes]
    ) -> tuple[Entry | None, PreparedResponse | None]:
        entry = read(value, key)
        if entry is None or not entry.body:
            return entry, None
        body = show(entry.body)
        return entry, self._prepare(etag(body), body)

    def _code_item(self, plain: PreparedResponse, coding: Coding) -> PreparedResponse:
        return self._prepare(plain.tag, plain.body, coding)

    def _prepare(
        self,
        tag: str,
        body: bytes,
        coding: Coding | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> PreparedResponse:
        """Prepare a JSON response. body: in plain form. headers: not sent with 304."""
        own, quoted = content_headers(body), b'"%b"' % tag.encode()
        if coding is not None and len(body) > MIN_SIZE:
            body = self._bodies.compress_small(coding, body, tag)
            own, quoted = coded_headers(own, coding, len(body), None), tag_with(coding, quoted)
        headers_304 = b"etag: %b\r\n%b" % (quoted, self._always)
        lines = header_lines([*own, *encode_headers(headers or {})])
        return PreparedResponse(tag, lines + headers_304, headers_304, body)

    def _plan_page(self, key: Key) -> LookupPlan | None:
        page = self._pages.get(key)
        if page is None or (state := self._cache.access.enter()) is None:
            return None
        take = partial(self._take_page, page)
        generation_key = state.prefix + page.listing.kind.generation_key
        return LookupPlan(page.route, state, generation_key, take)

    def _take_page(self, page: RememberedList, generation: bytes | None) -> PreparedResponse | None:
        return page.prepared if self._cache.lists.hit(page.listing, page.rows, generation) else None

    def decide(self, route: Route, caller: Caller, callback: Callable[[Any], None]) -> None:
        """Decide the limits of a caller. callback: gets the Decision, None, or an exception."""
        if route.plan is None:
            return callback(None)
        limiter = self._limiter
        charges = limiter.charges(route.endpoint, route.plan, caller)
        return limiter.limit_store.call(charges, callback)

    def answer(
        self,
        scope: Any,
        plan: LookupPlan,
        claims: Claims | None,
        reply: Replied,
        decision: Decision | None,
    ) -> EarlyResponse | None:
        """Return the response. None: not cached, another epoch, or the token may be revoked."""
        run_id, (value, *accounts) = reply
        state = plan.state
        if run_id != state.run_id or not self._cache.access.is_still(state):
            return None
        entry, context = None, context_of(scope)
        if claims is not None:
            entry, account = read_account(accounts[0], USERS.own_key(claims.user_id))
            if account is None or not account.accepts(claims):
                return None
        missing: APIError | None = None
        try:
            prepared = plan.take(value)
        except APIError as error:
            prepared, missing = None, error
        if prepared is None and missing is None:
            return None
        if claims is not None and entry is not None:
            self._cache.items.hit(USERS, claims.user_id, entry)
            context.user_id = claims.user_id
        context.cache_status, context.route = "hit", plan.route.rule
        if prepared is None:
            assert missing is not None
            missing.headers = {**missing.headers, **cache_status(scope, "hit")}
            return self._fail(scope, missing, decision)
        cors = limits = b""
        headers = parse_headers(scope["headers"])
        if headers.has_origin:
            cors = header_lines(encode_headers(self._origins.headers(scope)))
        if decision is not None:
            limits = rate_limit_lines(self._limiter.apply(scope, decision).quotas)
        own = cors + limits + _id_line(headers)
        if headers.if_none_match and matches_etag(prepared.tag, headers.if_none_match):
            return EarlyResponse(304, prepared.headers_304 + own, b"")
        return EarlyResponse(200, prepared.headers + own, prepared.body)

    def refuse(
        self,
        scope: Any,
        plan: LookupPlan,
        refuse: Callable[[], APIError] | None,
        decision: Decision | None,
    ) -> EarlyResponse:
        """Return the response to a request that its limits (429) or its token (401) refuse."""
        context_of(scope).route = plan.route.rule
        return self._fail(scope, None if refuse is None else refuse(), decision)

    def _fail(self, scope: Any, error: APIError | None, decision: Decision | None) -> EarlyResponse:
        """Return an error response. A 429 replaces `error`, which may then be None."""
        fields = parse_headers(scope["headers"])
        id_line = _id_line(fields)
        try:
            if decision is not None:
                self._limiter.apply(scope, decision)
        except APIError as refusal:
            error = refusal
        assert error is not None
        error.__traceback__ = None  # its frames refer to the request
        headers, body = error_response(complete(error, scope, self._origins))
        if (coding := self._coding(fields)) is not None and len(body) > MIN_SIZE:
            body = compress(coding, body)
            headers = coded_headers(headers, coding, len(body), None)
        return EarlyResponse(
            error.status_code, header_lines(headers) + self._refused + id_line, body
        )

    def fail(self, undecided: Exception | None, unread: Exception | None) -> None:
        """Report failures of Redis to the limits and the cache.

        Call it in the context of the request, which then does not use Redis again.
        """
        if undecided is not None:
            self._limiter.limit_store.failed(undecided)
        if unread is not None:
            self._cache.access.failed(unread)

    def remember_list(self, scope: Any, status: int, _: float) -> None:
        """Remember a list response that the ordinary path has sent. This is an observer."""
        context = context_of(scope)
        page, matched = context.listed, context.matched
        if page is None or matched is None or status not in {200, 304} or not page.rows.generation:
            return
        headers = parse_headers(scope["headers"])
        is_odd = (
            headers.is_special or headers.has_body or not headers.host or scope.get("root_path")
        )
        if is_odd or len(page.body) > MAX_BODY_BYTES:
            return
        if scope["path"].startswith(AUTHENTICATED_PREFIXES):
            prepared = self._prepare(page.tag, page.body, self._coding(headers), page.headers)
            route = self._routes.route(matched[0].endpoint)
            self._pages.put(
                self._key(scope, headers), RememberedList(route, prepared, page.listing, page.rows)
            )

    def _key(self, scope: Any, headers: RequestHeaders) -> Key:
        """Return the key of a list response. It has the base URL, because links are absolute."""
        base = self._base or b"%b://%b" % (scope["scheme"].encode(), headers.host)
        return scope.get("raw_path") or b"", scope["query_string"], base, self._coding(headers)


def _id_line(headers: RequestHeaders) -> bytes:
    """Return the field line of X-Request-ID, and set the id for later log lines."""
    name = request_id_of(headers)
    request_id.set(name)
    return f"x-request-id: {name}\r\n".encode()
