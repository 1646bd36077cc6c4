"""What goes the short way: recognised by its bytes, looked up in one tick with its limit."""

import re
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from quart import Quart

from service.books.service import BOOKS
from service.cache import FAILURES, GEN, Cache, State
from service.config import Settings
from service.cors import Origins
from service.front import CACHED
from service.limits import Limiter
from service.limits.gate import Answer, Begun
from service.shortway.pages import Key, Pages
from service.web import CACHE_STATUS, JSON, LIMITED_VARY, PUBLIC, Public, etag, is_known
from service.wire import READ

ITEM = re.compile(rb"/api/books/([1-9][0-9]{0,17})")
LIST = b"/api/books"
HOST = re.compile(rb"[A-Za-z0-9.-]{1,255}(:[0-9]{1,5})?")
# Of a GET: it has a body, or wants what only the framework knows.
SPECIAL = {b"content-length", b"transfer-encoding", b"content-encoding", b"expect", b"upgrade"}
ALWAYS = [
    (b"cache-control", b"no-cache"),
    (b"cache-status", f"Octavo; {CACHE_STATUS['hit']}".encode()),
    (b"vary", LIMITED_VARY.encode()),
]
JSON_TYPED = (b"content-type", JSON.encode())

Found = tuple[str, list[bytes | None]]  # who replied, and what stands under the key
Take = Callable[[bytes | None], Answer | None]  # makes an answer of it, if it is one


class Asker(NamedTuple):
    """What a request says of itself, as far as it matters here."""

    scope: Any
    host: bytes
    has_origin: bool
    tags: list[str]  # If-None-Match, its lines


class ShortWay:
    """Looks for answers that are at hand."""

    def __init__(self, app: Quart, settings: Settings) -> None:
        self._app = app
        self._cache: Cache = app.extensions["cache"]
        self._limiter: Limiter = app.extensions["limiter"]
        self._origins: Origins = app.extensions["origins"]
        self._base = None if settings.public_url is None else settings.public_url.encode()
        is_kept = settings.cache_pages == "generation"
        seconds = min(settings.cache_page_seconds, settings.cache_count_seconds)
        self._pages = Pages(seconds if is_kept else 0)
        self._keeps_items = settings.cache_item_seconds > 0
        self._rules: dict[str, str] = {}
        self._store = self._cache.store

    def look(self, scope: Any) -> Begun | None:
        """Begin to look for the answer to a request, if it is one of these."""
        if scope["method"] != "GET" or self._limiter.ledger.is_away:
            return None
        if scope["raw_path"] == LIST:
            return self._begin_page(scope)
        item = ITEM.fullmatch(scope["raw_path"])
        if item is None or scope["query_string"] or not self._keeps_items:
            return None
        asker, state = _read(scope), self._cache.access.enter()
        if asker is None or state is None:
            return None
        book_id = int(item[1])
        take = partial(self._take_item, asker, state, book_id)
        return self._begun("books.get_book", state, state.prefix + BOOKS.key(book_id), take)

    def _begin_page(self, scope: Any) -> Begun | None:
        asker = _read(scope)
        if asker is None or (page := self._pages.get(self._key(asker))) is None:
            return None
        if (state := self._cache.access.enter()) is None:
            return None
        take = partial(self._take_page, asker, page)
        return self._begun("books.list_books", state, state.prefix + GEN, take)

    def _begun(self, endpoint: str, state: State, key: str, take: Take) -> Begun:
        if endpoint not in self._rules:
            self._rules[endpoint] = next(self._app.url_map.iter_rules(endpoint)).rule
        wire = self._store.wire  # in one write with the limit, if that is asked there
        looking = None if wire is None else wire.ask(READ, (key,))
        finish = partial(self._finish, state, key, looking, take)
        return Begun(endpoint, self._rules[endpoint], finish)

    async def _finish(
        self, state: State, key: str, looking: Awaitable[Found] | None, take: Take
    ) -> Answer | None:
        try:
            if looking is None:
                who, found = state.run_id, await self._store.get(key)
            else:
                who, (found,) = await looking
        except FAILURES as error:
            self._cache.access.failed(error)  # so the ordinary way does not wait for it again
            return None
        now = self._cache.access.enter()
        if who != state.run_id or now is None or now.token != state.token:
            return None
        return take(found)

    def _take_item(
        self, asker: Asker, state: State, book_id: int, found: bytes | None
    ) -> Answer | None:
        entry = self._cache.items.hit(BOOKS, book_id, found)
        return None if entry is None else self._answer(asker, entry.body, etag(entry.body))

    def _take_page(self, asker: Asker, page: Public, generation: bytes | None) -> Answer | None:
        if not self._cache.lists.hit(page.listing, page.rows, generation):
            return None
        return self._answer(asker, page.body, page.tag, page.headers)

    def _answer(
        self, asker: Asker, body: bytes, tag: str, told: Sequence[tuple[bytes, bytes]] = ()
    ) -> Answer:
        asker.scope[CACHED] = "hit"
        headers = [(b"etag", b'"%b"' % tag.encode()), *ALWAYS]
        if asker.has_origin:
            allowed = self._origins.headers(asker.scope).items()
            headers += ((name.lower().encode(), value.encode()) for name, value in allowed)
        if asker.tags and is_known(tag, asker.tags):
            return Answer(304, headers, b"")
        size = (b"content-length", b"%d" % len(body))
        return Answer(200, [JSON_TYPED, size, *told, *headers], body)

    def learn(self, scope: Any) -> None:
        """Keep what the ordinary way has answered, if it can be asked for again."""
        page: Public | None = scope.pop(PUBLIC, None)
        is_kept = page is not None and scope["raw_path"] == LIST and page.rows.generation
        if page is not None and is_kept and (asker := _read(scope)) is not None:
            self._pages.put(self._key(asker), page)

    def _key(self, asker: Asker) -> Key:
        """Name a list by all that its answer depends on: links are absolute."""
        base = self._base or b"%b://%b" % (asker.scope["scheme"].encode(), asker.host)
        return asker.scope["query_string"], base


def _read(scope: Any) -> Asker | None:
    """Read the headers of a GET. None: one of them is for the ordinary way."""
    hosts: list[bytes] = []
    tags: list[str] = []
    has_origin = False
    for name, value in scope["headers"]:
        if name == b"host":
            hosts.append(value)
        elif name == b"if-none-match":
            tags.append(value.decode("latin-1"))
        elif name == b"origin":
            has_origin = True
        elif name in SPECIAL:
            return None
    if len(hosts) != 1 or HOST.fullmatch(hosts[0]) is None:
        return None
    return Asker(scope, hosts[0], has_origin, tags)
