"""Flask as an expert tunes it: threads with a connection pool, responses as bytes, no ORM."""

from typing import Any

from flask import Flask, Response, request
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool
from redis import BlockingConnectionPool, Redis

from bench.peers import listing, settings, wire
from bench.peers.catalogue import without_total

THREADS = 16  # of gunicorn: 8 keep PostgreSQL too idle, 32 compete with each other
Admitted = tuple[Response | None, list[tuple[str, str]], list[Any]]


class Catalogue:
    """The catalogue for threads, as catalogue.py for asyncio: returns books as bytes."""

    def __init__(self) -> None:
        connections = BlockingConnectionPool.from_url(settings.REDIS_URL, max_connections=THREADS)
        self._redis: Any = Redis(connection_pool=connections)
        self._script = self._redis.script_load(wire.LIMIT_AND_GET)
        self._pool: Any = ConnectionPool(
            settings.DATABASE_URL,
            min_size=THREADS,
            max_size=THREADS,
            kwargs={"autocommit": True, "row_factory": dict_row},
        )
        self._pages = wire.Pages()
        wire.collect_seldom()

    def item(self, book_id: int, caller: str) -> Response:
        """Return a book."""
        key = f"tuned:book:{book_id}"
        refused, headers, values = self._admit(caller, key)
        if refused is not None:
            return refused
        if values[0] is None:
            rows = self._fetch(listing.Statement(listing.ITEM, (book_id,)))
            if not rows:
                return error(404, "Not Found", headers)
            values[0] = wire.pack(wire.book_body(rows[0]))
            self._redis.set(key, values[0], ex=settings.ITEM_SECONDS)
        return tagged(values[0], headers)

    def page(self, query: str, caller: str) -> Response:
        """Return a list of books of the current generation."""
        key, held = f"tuned:page:{query}", self._pages.get(query)
        keys = () if held else (key,)
        refused, headers, values = self._admit(caller, wire.GENERATION, *keys)
        if refused is not None:
            return refused
        generation, cached = values[0] or b"0", held or values[1]
        if cached is None or wire.unpack(cached)[0] != generation:
            try:
                parsed = listing.read(query)
            except listing.BadRequestError as exc:
                return error(400, str(exc), headers)
            cached = wire.pack(self._read(parsed), generation)
            self._redis.set(key, cached, ex=settings.PAGE_SECONDS)
        self._pages.keep(query, cached)
        return tagged(cached, headers)

    def create(self, body: bytes, authorization: str | None) -> Response:
        """Create a book; a new generation invalidates the cached pages before the response."""
        try:
            user_id, version = wire.user_of(authorization)
        except wire.UnauthorizedError as exc:
            return error(401, str(exc), [])
        refused, headers, _ = self._admit(f"user:{user_id}")
        if refused is not None:
            return refused
        try:
            book = wire.read_book(body)
        except ValueError as exc:  # the exceptions of msgspec are ValueErrors
            return error(400, str(exc), headers)
        rows = self._fetch(wire.new_values(book, user_id, version))
        if not rows:
            return error(401, "Invalid or expired token", headers)
        self._redis.incr(wire.GENERATION)
        location = f"{settings.PUBLIC_URL}/api/books/{rows[0]['id']}"
        return respond(201, wire.book_body(rows[0]), [*headers, ("Location", location)])

    def _read(self, books: listing.Listing) -> bytes:
        rows = self._fetch(books.rows)
        if books.page is None:
            return books.body(rows, 0)
        if not rows:
            ((total,),) = (row.values() for row in self._fetch(books.total))
            return books.body([], total)
        return books.body([without_total(row) for row in rows], rows[0]["total"])

    def _fetch(self, statement: listing.Statement) -> list[dict[str, Any]]:
        with self._pool.connection() as connection:
            rows: list[dict[str, Any]] = connection.execute(
                statement.unnamed(), statement.values
            ).fetchall()
        return rows

    def _admit(self, caller: str, *keys: str) -> Admitted:
        """Count a request and read `keys`, in one call to Redis."""
        left, reset, *values = self._redis.evalsha(
            self._script, 1 + len(keys), f"tuned:limit:{caller}", *keys, settings.RATE, 60
        )
        headers = wire.limit_headers(left, reset)
        return error(429, "Rate limit exceeded", headers) if left < 0 else None, headers, values


def respond(status: int, body: bytes, headers: list[tuple[str, str]]) -> Response:
    """Return a response."""
    return Response(body, status, headers, content_type="application/json")


def error(status: int, message: str, headers: list[tuple[str, str]]) -> Response:
    """Return an error response."""
    return respond(status, listing.to_json({"error": message}), headers)


def tagged(cached: bytes, headers: list[tuple[str, str]]) -> Response:
    """Return the cached body, or 304 if the client has it."""
    _, tag, body = wire.unpack(cached)
    headers += [("ETag", tag), ("Cache-Control", "no-cache")]
    if request.environ.get("HTTP_IF_NONE_MATCH") == tag:
        return Response(b"", 304, headers)
    return respond(200, body, headers)


def caller() -> str:
    """Return the address of the client."""
    environ = request.environ
    return wire.address_of(environ.get("HTTP_X_FORWARDED_FOR"), environ.get("REMOTE_ADDR", ""))


def create_app() -> Flask:
    """Create the application."""
    app = Flask(__name__, static_folder=None)
    catalogue = Catalogue()

    @app.get("/api/books/<int:book_id>")
    def get_book(book_id: int) -> Response:
        return catalogue.item(book_id, caller())

    @app.get("/api/books")
    def list_books() -> Response:
        return catalogue.page(request.environ["QUERY_STRING"], caller())

    @app.post("/api/books")
    def create_book() -> Response:
        return catalogue.create(request.get_data(), request.environ.get("HTTP_AUTHORIZATION"))

    return app
