"""What goes the short way: recognised by its bytes, looked up in one tick with its limit."""

import asyncio
import re
import time
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

from quart import Quart

from service.books.service import BOOKS
from service.cache import GEN, Cache, Replied
from service.config import Settings
from service.cors import Origins
from service.fields import Told, told_by
from service.front import CACHED, NO_PAGE, ROUTE, VARY, Front, Seen, request_name
from service.health import ALIVE
from service.http1.config import AtHand
from service.limits import Limiter
from service.limits.claims import Decision
from service.limits.wording import lines
from service.logs import request_id
from service.shortway.look import Look, Ready, Sought, Tell
from service.shortway.pages import Key, Pages
from service.web import CACHE_STATUS, LIMITED_VARY, PUBLIC, Public, as_lines, etag, is_known, sized

ITEM = re.compile(rb"/api/books/([1-9][0-9]{0,17})")
LIST, LIVE = b"/api/books", b"/health/live"
ALWAYS = [
    (b"cache-control", b"no-cache"),
    (b"cache-status", f"Octavo; {CACHE_STATUS['hit']}".encode()),
    (b"vary", LIMITED_VARY.encode()),
    NO_PAGE,
]


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
        self._rules: dict[str, str] = {}
        self._always = as_lines([*ALWAYS, *self.front.protection])
        untold = [(b"cache-control", b"no-store"), (b"vary", VARY.encode()), NO_PAGE]
        self._alive = sized(ALIVE) + as_lines([*untold, *self.front.protection])

    def look(self, scope: Any, tell: Tell) -> bool:
        """Begin to look for the answer to a GET, if it is one of these."""
        raw_path = scope["raw_path"]
        told = told_by(scope["headers"])
        if told.is_special or not told.host:
            return False
        if raw_path == LIVE and not scope["query_string"]:
            asyncio.get_running_loop().call_soon(self._tell_alive, scope, tell, time.perf_counter())
            return True
        if self._limiter.ledger.is_away:
            return False
        if raw_path == LIST:
            sought = self._seek_page(self._key(scope, told))
        else:
            item = ITEM.fullmatch(raw_path)
            if item is None or scope["query_string"] or not self._keeps_items:
                return False
            sought = self._seek_item(int(item[1]))
        if sought is None:
            return False
        if self._is_limited and self._limiter.plan(self._app, sought.endpoint).custom:
            return False
        Look(self, scope, sought, tell)
        return True

    def _tell_alive(self, scope: Any, tell: Tell, begun: float) -> None:
        """Answer in the next turn of the loop: under load, Quart's ten take their time."""
        scope[ROUTE] = LIVE.decode()
        tell(AtHand(200, self._alive + _named(scope), ALIVE))
        self.front.tell(scope, 200, begun)

    def _seek_item(self, book_id: int) -> Sought | None:
        if (state := self._cache.access.enter()) is None:
            return None
        key, take = state.prefix + BOOKS.key(book_id), partial(self._take_item, book_id)
        return Sought("books.get_book", state, key, take)

    def _take_item(self, book_id: int, found: bytes | None) -> Ready | None:
        entry = self._cache.items.hit(BOOKS, book_id, found)
        return None if entry is None else _ready(entry.body)

    def _seek_page(self, key: Key) -> Sought | None:
        page = self._pages.get(key)
        if page is None or (state := self._cache.access.enter()) is None:
            return None
        take = partial(self._take_page, page)
        return Sought("books.list_books", state, state.prefix + GEN, take)

    def _take_page(self, page: Public, generation: bytes | None) -> Ready | None:
        if not self._cache.lists.hit(page.listing, page.rows, generation):
            return None
        return Ready(page.tag, page.lines, page.body)

    def decide(self, endpoint: str, scope: Any, tell: Callable[[Any], None]) -> None:
        """Begin to decide the limits of a request, and tell. None: it has none."""
        plan = self._limiter.plan(self._app, endpoint)
        if self._is_limited and (plan.names or plan.written):
            claims = self._limiter.claims(endpoint, plan, self._limiter.callers.of(scope))
            self._limiter.ledger.call(claims, tell)
        else:
            tell(None)

    def answer(
        self, scope: Any, sought: Sought, found: Replied, decision: Decision | None
    ) -> AtHand | None:
        """Give the answer, if what was found is one, and still is one."""
        who, (value,) = found
        now = self._cache.access.enter()
        if who != sought.state.run_id or now is None or now.token != sought.state.token:
            return None
        if (ready := sought.take(value)) is None:
            return None
        scope[CACHED], scope[ROUTE] = "hit", self._rule(sought.endpoint)
        allowed = limits = b""
        asked = told_by(scope["headers"])
        if asked.has_origin:
            headers = self._origins.headers(scope).items()
            allowed = as_lines([(name.lower().encode(), value.encode()) for name, value in headers])
        if decision is not None:
            limits = lines(self._limiter.settle(scope, decision).standings)
        is_had = bool(asked.tags) and is_known(ready.tag, asked.tags)
        told = b'%betag: "%b"\r\n%b%b%b%b' % (
            b"" if is_had else ready.lines,
            ready.tag.encode(),
            self._always,
            allowed,
            limits,
            _named(scope),
        )
        return AtHand(304, told, b"") if is_had else AtHand(200, told, ready.body)

    def _rule(self, endpoint: str) -> str:
        if endpoint not in self._rules:
            self._rules[endpoint] = next(self._app.url_map.iter_rules(endpoint)).rule
        return self._rules[endpoint]

    def fail(self, undecided: Exception | None, unread: Exception | None) -> None:
        """Hear, within the request, that Redis did not answer: it is not asked a second time."""
        if undecided is not None:
            self._limiter.ledger.failed(undecided)
        if unread is not None:
            self._cache.access.failed(unread)

    def learn(self, seen: Seen) -> None:
        """Keep what the ordinary way has answered, if it can be asked for again."""
        scope, status, _ = seen
        page: Public | None = scope.pop(PUBLIC, None)
        if page is None or status not in {200, 304} or not page.rows.generation:
            return
        told = told_by(scope["headers"])
        if scope["raw_path"] == LIST and told.host and not told.is_special:
            self._pages.put(self._key(scope, told), page)

    def _key(self, scope: Any, told: Told) -> Key:
        """Name a list by all that its answer depends on: links are absolute."""
        base = self._base or b"%b://%b" % (scope["scheme"].encode(), told.host)
        return scope["query_string"], base


def _named(scope: Any) -> bytes:
    """Give the line of a request's id, which is that of all that is logged from now on."""
    name = request_name(scope)
    request_id.set(name)
    return b"x-request-id: %b\r\n" % name.encode()


@lru_cache(1_024)
def _ready(body: bytes) -> Ready:
    return Ready(etag(body), sized(body), body)
