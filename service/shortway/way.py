"""What goes the short way: recognised by its bytes, looked up in one tick with its limit."""

import asyncio
import re
import time
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

from quart import Quart

from service.books.service import BOOKS
from service.cache import Cache, Entry, Replied
from service.cache.entries import read
from service.config import Settings
from service.cors import Origins
from service.fields import Told, told_by
from service.front import CACHED, NO_PAGE, ROUTE, USER, VARY, Front, request_name
from service.guard import USERS, account_in
from service.health import ALIVE
from service.http1.config import AtHand
from service.limits import Limiter
from service.limits.callers import Caller
from service.limits.claims import Decision
from service.limits.wording import lines
from service.logs import request_id
from service.security import Claims
from service.shortway.look import Look, Ready, Route, Sought, Tell
from service.shortway.pages import Key, Page, Pages
from service.web import (
    CACHE_STATUS,
    LIMITED_VARY,
    PUBLIC,
    Public,
    as_lines,
    etag,
    is_known,
    sized,
    spelled,
)

ITEM = re.compile(rb"/api/books/([1-9][0-9]{0,17})")
LIST, LIVE = b"/api/books", b"/health/live"
LONGEST = 30  # bytes of the path of a book
KEPT = 2_048  # books that are remembered, by their paths and by their bytes
ALWAYS = [
    (b"cache-control", b"no-cache"),
    (b"cache-status", f"Octavo; {CACHE_STATUS['hit']}".encode()),
    (b"vary", LIMITED_VARY.encode()),
    NO_PAGE,
]


class Wanted(NamedTuple):
    """A book that is asked for: its key in the cache, and the one that stands in its entry."""

    id: int
    key: str
    own_key: str


class ShortWay:
    """Looks for answers that are at hand."""

    def __init__(self, app: Quart, settings: Settings) -> None:
        self.front: Front = app.extensions["front"]
        self.logger = app.logger
        self._app = app
        self._cache: Cache = app.extensions["cache"]
        self.store = self._cache.store
        self._limiter: Limiter = app.extensions["limiter"]
        self._origins: Origins = app.extensions["origins"]
        self._base = None if settings.public_url is None else settings.public_url.encode()
        is_kept = settings.cache_pages == "generation"
        seconds = min(settings.cache_page_seconds, settings.cache_count_seconds)
        self._pages = Pages(seconds if is_kept else 0)
        self._keeps_items = settings.cache_item_seconds > 0
        self._is_limited = settings.ratelimit_enabled
        self._book = lru_cache(KEPT)(self._read_book)
        self._route = lru_cache(self._find_route)
        self._always = as_lines([*ALWAYS, *self.front.protection])
        untold = [(b"cache-control", b"no-store"), (b"vary", VARY.encode()), NO_PAGE]
        self._alive = as_lines([*sized(ALIVE), *untold, *self.front.protection])

    def look(self, scope: Any, tell: Tell) -> bool:
        """Begin to look for the answer to a GET, if it is one of these."""
        raw_path = scope["raw_path"]
        told = told_by(scope["headers"])
        if told.is_special or told.has_body or not told.host or scope.get("root_path"):
            return False
        if raw_path == LIVE and not scope["query_string"]:
            asyncio.get_running_loop().call_soon(self._tell_alive, scope, tell, time.perf_counter())
            return True
        if self._limiter.ledger.is_away:
            return False
        if raw_path == LIST:
            sought = self._seek_page(self._key(scope, told))
        elif len(raw_path) > LONGEST or scope["query_string"] or not self._keeps_items:
            return False
        else:
            sought = self._seek_book(_wanted(raw_path))
        if sought is None or (sought.route.plan is not None and sought.route.plan.custom):
            return False
        credentials = self._limiter.callers.read(scope)
        has_token = credentials.claims is not None
        if credentials.refuse is not None or (has_token and not self._keeps_items):
            return False
        Look(self, scope, sought, credentials, tell)
        return True

    def _tell_alive(self, scope: Any, tell: Tell, begun: float) -> None:
        """Answer in the next turn of the loop: under load, Quart's ten take their time."""
        scope[ROUTE] = LIVE.decode()
        tell(AtHand(200, self._alive + _named(told_by(scope["headers"])), ALIVE))
        self.front.tell(scope, 200, begun)

    def _seek_book(self, wanted: Wanted | None) -> Sought | None:
        if wanted is None or (state := self._cache.access.enter()) is None:
            return None
        take = partial(self._take_book, wanted)
        return Sought(self._route("books.get_book"), state, state.prefix + wanted.key, take)

    def _take_book(self, wanted: Wanted, found: bytes | None) -> Ready | None:
        entry, ready = self._book(found, wanted.own_key)
        if entry is not None:
            self._cache.items.hit(BOOKS, wanted.id, entry)
        return ready

    def _read_book(self, found: bytes | None, key: str) -> tuple[Entry | None, Ready | None]:
        entry = read(found, key)
        if entry is None or not entry.body:
            return None, None
        return entry, self._ready(etag(entry.body), as_lines(sized(entry.body)), entry.body)

    def _ready(self, tag: str, lines: bytes, body: bytes) -> Ready:
        had = b'etag: "%b"\r\n%b' % (tag.encode(), self._always)
        return Ready(tag, lines + had, had, body)

    def _seek_page(self, key: Key) -> Sought | None:
        page = self._pages.get(key)
        if page is None or (state := self._cache.access.enter()) is None:
            return None
        take = partial(self._take_page, page)
        generation_key = state.prefix + page.listing.kind.generation_key
        return Sought(self._route("books.list_books"), state, generation_key, take)

    def _take_page(self, page: Page, generation: bytes | None) -> Ready | None:
        return page.ready if self._cache.lists.hit(page.listing, page.rows, generation) else None

    def _find_route(self, endpoint: str) -> Route:
        rule = next(self._app.url_map.iter_rules(endpoint)).rule
        plan = self._limiter.plan(self._app, endpoint)
        is_limited = self._is_limited and (plan.names or plan.written or plan.custom)
        return Route(endpoint, rule, plan if is_limited else None)

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
        sought: Sought,
        claims: Claims | None,
        found: Replied,
        decision: Decision | None,
    ) -> AtHand | None:
        """Give the answer, if what was found is one, and still is one, and the token is valid."""
        run_id, (value, *accounts) = found
        state = sought.state
        if run_id != state.run_id or not self._cache.access.is_still(state):
            return None
        entry = None
        if claims is not None:
            entry, account = account_in(accounts[0], USERS.own_key(claims.user_id))
            if account is None or not account.accepts(claims):
                return None
        if (ready := sought.take(value)) is None:
            return None
        if claims is not None and entry is not None:
            self._cache.items.hit(USERS, claims.user_id, entry)
            scope[USER] = claims.user_id
        scope[CACHED], scope[ROUTE] = "hit", sought.route.rule
        allowed = limits = b""
        asked = told_by(scope["headers"])
        if asked.has_origin:
            allowed = as_lines(spelled(self._origins.headers(scope)))
        if decision is not None:
            limits = lines(self._limiter.settle(scope, decision).standings)
        if asked.tags and is_known(ready.tag, asked.tags):
            return AtHand(304, ready.had + allowed + limits + _named(asked), b"")
        return AtHand(200, ready.shown + allowed + limits + _named(asked), ready.body)

    def fail(self, undecided: Exception | None, unread: Exception | None) -> None:
        """Hear, within the request, that Redis did not answer: it is not asked a second time."""
        if undecided is not None:
            self._limiter.ledger.failed(undecided)
        if unread is not None:
            self._cache.access.failed(unread)

    def learn(self, scope: Any, status: int, _: float) -> None:
        """Keep what the ordinary way has answered, if it can be asked for again."""
        page: Public | None = scope.pop(PUBLIC, None)
        if page is None or status not in {200, 304} or not page.rows.generation:
            return
        told = told_by(scope["headers"])
        if scope["raw_path"] == LIST and told.host and not (told.is_special or told.has_body):
            lines = as_lines([*sized(page.body), *spelled(page.headers)])
            ready = self._ready(page.tag, lines, page.body)
            self._pages.put(self._key(scope, told), Page(ready, page.listing, page.rows))

    def _key(self, scope: Any, told: Told) -> Key:
        """Name a list by all that its answer depends on: links are absolute."""
        base = self._base or b"%b://%b" % (scope["scheme"].encode(), told.host)
        return scope["query_string"], base


def _named(told: Told) -> bytes:
    """Give the line of a request's id, which is that of all that is logged from now on."""
    name = request_name(told)
    request_id.set(name)
    return f"x-request-id: {name}\r\n".encode()


@lru_cache(KEPT)
def _wanted(raw_path: bytes) -> Wanted | None:
    """Recognise a book by its path."""
    found = ITEM.fullmatch(raw_path)
    if found is None:
        return None
    book_id = int(found[1])
    return Wanted(book_id, BOOKS.key(book_id), BOOKS.own_key(book_id))
