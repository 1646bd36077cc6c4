"""What needs a task, but not the framework: plain reads of books, and plain creates.

The gate has let a request in, and has checked its token, as it does for all; the work is what the
views do. What is not plain has not begun, and is the framework's from the start.
What was begun is done once: its error is raised again within the framework, which says what it
means.
"""

from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, cast

from hypercorn.typing import ASGISendCallable
from quart import Quart, request
from werkzeug.sansio.utils import get_host

from service.asgi import MATCHED, Connection
from service.books import service as books
from service.books.routes import listed
from service.books.schemas import BookCreate, BookQuery
from service.cache import Cache, Status
from service.config import Settings
from service.cors import Origins
from service.db import Database
from service.fields import Told, told_by
from service.guard import CURRENT_USER, CurrentUser
from service.limits import Limiter
from service.links import Here
from service.pagination import Cursors
from service.validation import parse_json, parse_query
from service.web import (
    JSON,
    LIMITED_VARY,
    PUBLIC,
    cache_status,
    etag,
    is_known,
    sized,
    spelled,
)

FAILED = "octavo.failed"  # in the scope: the error that an answer has come to
MEDIA = [JSON.encode()]
VARY = (b"vary", LIMITED_VARY.encode())
NO_CACHE, NO_STORE = (b"cache-control", b"no-cache"), (b"cache-control", b"no-store")
LARGEST = 4_096  # bytes of a body: no book is larger, and what is wrong is read a second time

Headers = list[tuple[bytes, bytes]]


class Answer(NamedTuple):
    """An answer, but for what the gate and the front add."""

    status: int
    headers: Headers
    body: bytes


Work = Coroutine[Any, Any, Answer]


class Plain:
    """Answers what is plain."""

    def __init__(self, app: Quart, settings: Settings) -> None:
        self._app = app
        self._cache: Cache = app.extensions["cache"]
        self._cursors: Cursors = app.extensions["cursors"]
        self._database: Database = app.extensions["database"]
        self._limiter: Limiter = app.extensions["limiter"]
        self._origins: Origins = app.extensions["origins"]
        self._public_url = settings.public_url
        self._checks_isbn = settings.isbn_checksum == "strict"
        self._routes: dict[str, tuple[str, Callable[[Any, Told, bytes], Work | None]]] = {
            "books.get_book": ("GET", self._read_book),
            "books.list_books": ("GET", self._read_list),
            "books.create_book": ("POST", self._read_create),
        }

    def work(self, scope: Any, body: bytes) -> Work | None:
        """Give the work on a request that has come as a whole, if it is plain: to be done."""
        if MATCHED not in scope or scope[MATCHED][0].endpoint not in self._routes:
            return None
        endpoint = scope[MATCHED][0].endpoint
        method, read = self._routes[endpoint]
        told = told_by(scope["headers"])
        is_odd = scope["method"] != method or told.is_special or not told.host
        if is_odd or scope.get("root_path") or self._limiter.plan(self._app, endpoint).custom:
            return None
        return read(scope, told, body)

    def allowed(self, scope: Any) -> Headers:
        """Give what browsers of other origins are told."""
        has_origin = told_by(scope["headers"]).has_origin
        return spelled(self._origins.headers(scope)) if has_origin else []

    def _read_book(self, scope: Any, told: Told, _: bytes) -> Work | None:
        if told.has_body or scope["query_string"]:
            return None
        return self._give_book(scope, told, scope[MATCHED][1]["book_id"])

    async def _give_book(self, scope: Any, told: Told, book_id: int) -> Answer:
        entry, status = await self._cache.items.read(books.BOOKS, book_id)
        if not entry.body:
            raise books.not_found(book_id, cache_status(scope, status))
        return _public(scope, told, entry.body, etag(entry.body), status, [])

    def _read_list(self, scope: Any, told: Told, _: bytes) -> Work | None:
        try:
            args = parse_query(scope["query_string"])
            query = BookQuery.model_validate(dict(args))
        except Exception:  # whatever it is: nothing has begun
            return None
        if told.has_body or len(dict(args)) < len(args):
            return None
        return self._give_list(scope, told, query, Here(self._base(scope), scope["path"], args))

    async def _give_list(self, scope: Any, told: Told, query: BookQuery, here: Here) -> Answer:
        found = scope[PUBLIC] = await listed(query, here, self._cache.lists, self._cursors)
        others = spelled(found.headers)
        return _public(scope, told, found.body, found.tag, found.rows.status, others)

    def _read_create(self, scope: Any, told: Told, body: bytes) -> Work | None:
        user: CurrentUser | None = scope.get(CURRENT_USER)
        if user is None or scope["query_string"] or told.media != MEDIA or len(body) > LARGEST:
            return None
        try:
            book = BookCreate.model_validate(parse_json(body))  # over the cap it comes empty
            if self._checks_isbn:
                books.check_isbn(book.isbn)
        except Exception:  # whatever it is: nothing has begun
            return None
        return self._create(scope, user, book)

    async def _create(self, scope: Any, user: CurrentUser, data: BookCreate) -> Answer:
        book = await self._database.write_together(books.create_books, (data, user))
        body = books.BOOKS.write(book)
        place = (b"location", f"{self._base(scope)}/api/books/{book.id}".encode())
        return Answer(201, [*sized(body), place, _tagged(etag(body)), NO_STORE, VARY], body)

    def _base(self, scope: Any) -> str:
        """Give what links begin with, as the framework does."""
        if self._public_url is not None:
            return self._public_url
        host = get_host(scope["scheme"], told_by(scope["headers"]).host.decode())
        return f"{scope['scheme']}://{host}" if host else ""


def _public(
    scope: Any, told: Told, body: bytes, tag: str, status: Status, others: Headers
) -> Answer:
    """Answer a public GET. `others`: headers of a 200 alone."""
    headers = [_tagged(tag), NO_CACHE, VARY, *spelled(cache_status(scope, status))]
    if is_known(tag, told.tags):
        return Answer(304, headers, b"")
    return Answer(200, [*sized(body), *others, *headers], body)


def _tagged(tag: str) -> tuple[bytes, bytes]:
    return b"etag", b'"%b"' % tag.encode()


class Plainly(Connection):
    """A connection to the framework that answers what is plain without it."""

    async def answer(self, body: bytes, send: ASGISendCallable) -> None:
        """Answer a request."""
        plain: Plain = self.app.extensions["plain"]
        scope: Any = self.scope
        if (work := plain.work(scope, body)) is None:
            return await super().answer(body, send)
        try:
            found = await work
        except Exception as error:
            scope[FAILED] = error
        else:
            headers = [*found.headers, *plain.allowed(scope)]
            start: Any = {"type": "http.response.start", "status": found.status, "headers": headers}
            end: Any = {"type": "http.response.body", "body": found.body, "more_body": False}
            await send(start)
            return await send(end)
        return await super().answer(body, send)


def init_app(app: Quart, settings: Settings) -> None:
    """Put it in the place of Quart's connection: within the front and the gate."""
    app.extensions["plain"] = Plain(app, settings)
    app.asgi_http_class = Plainly

    async def fail() -> None:
        """Meet, in the place of the view, the error that an answer has come to."""
        error: Exception | None = cast(Any, request.scope).pop(FAILED, None)
        try:
            if error is not None:
                raise error
        finally:
            del error  # its traceback holds this frame

    app.before_request_funcs["books"].append(fail)
