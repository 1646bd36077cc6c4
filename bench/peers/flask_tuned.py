"""Flask as an expert tunes it: threads that share a pool of connections, bytes, no ORM."""

from typing import Any

from flask import Flask, Response, request
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool
from redis import BlockingConnectionPool, Redis

from bench.peers import listing, settings, wire
from bench.peers.catalogue import without_total

THREADS = 16  # of gunicorn: with 8 too few wait for PostgreSQL, 32 get in each other's way
Admitted = tuple[Response | None, list[tuple[str, str]], list[Any]]


class Catalogue:
    """Books, as bytes: what catalogue.py is for threads."""

    def __init__(self) -> None:
        connections = BlockingConnectionPool.from_url(settings.REDIS_URL, max_connections=THREADS)
        self._redis: Any = Redis(connection_pool=connections)
        self._ask = self._redis.script_load(wire.ASK)
        self._pool: Any = ConnectionPool(
            settings.DATABASE_URL,
            min_size=THREADS,
            max_size=THREADS,
            kwargs={"autocommit": True, "row_factory": dict_row},
        )
        self._pages = wire.Pages()
        wire.collect_seldom()

    def item(self, book_id: int, caller: str) -> Response:
        """Give a book."""
        key = f"tuned:book:{book_id}"
        refused, headers, found = self._admit(caller, key)
        if refused is not None:
            return refused
        if found[0] is None:
            rows = self._fetch(listing.Statement(listing.ITEM, (book_id,)))
            if not rows:
                return error(404, "Not Found", headers)
            found[0] = wire.pack(wire.book_body(rows[0]))
            self._redis.set(key, found[0], ex=settings.ITEM_SECONDS)
        return tagged(found[0], headers)

    def page(self, query: str, caller: str) -> Response:
        """Give a list of books, of the present generation."""
        key, held = f"tuned:page:{query}", self._pages.get(query)
        keys = () if held else (key,)
        refused, headers, values = self._admit(caller, wire.GENERATION, *keys)
        if refused is not None:
            return refused
        generation, found = values[0] or b"0", held or values[1]
        if found is None or wire.unpack(found)[0] != generation:
            try:
                asked = listing.read(query)
            except listing.BadRequestError as wrong:
                return error(400, str(wrong), headers)
            found = wire.pack(self._read(asked), generation)
            self._redis.set(key, found, ex=settings.PAGE_SECONDS)
        self._pages.keep(query, found)
        return tagged(found, headers)

    def create(self, body: bytes, authorization: str | None) -> Response:
        """Add a book; pages end with their generation, before this is answered."""
        try:
            user_id, version = wire.user_of(authorization)
        except wire.UnauthorizedError as wrong:
            return error(401, str(wrong), [])
        refused, headers, _ = self._admit(f"user:{user_id}")
        if refused is not None:
            return refused
        try:
            book = wire.read_book(body)
        except ValueError as wrong:  # msgspec's own are such
            return error(400, str(wrong), headers)
        rows = self._fetch(wire.new_values(book, user_id, version))
        if not rows:
            return error(401, "Invalid or expired token", headers)
        self._redis.incr(wire.GENERATION)
        location = f"{settings.PUBLIC_URL}/api/books/{rows[0]['id']}"
        return respond(201, wire.book_body(rows[0]), [*headers, ("Location", location)])

    def _read(self, asked: listing.Listing) -> bytes:
        rows = self._fetch(asked.rows)
        if asked.page is None:
            return asked.body(rows, 0)
        if not rows:
            ((total,),) = (row.values() for row in self._fetch(asked.total))
            return asked.body([], total)
        return asked.body([without_total(row) for row in rows], rows[0]["total"])

    def _fetch(self, statement: listing.Statement) -> list[dict[str, Any]]:
        with self._pool.connection() as connection:
            found: list[dict[str, Any]] = connection.execute(
                statement.unnamed(), statement.values
            ).fetchall()
        return found

    def _admit(self, caller: str, *keys: str) -> Admitted:
        """Count a request and read `keys`, in one call."""
        left, reset, *found = self._redis.evalsha(
            self._ask, 1 + len(keys), f"tuned:limit:{caller}", *keys, settings.RATE, 60
        )
        headers = wire.limit_headers(left, reset)
        return error(429, "Rate limit exceeded", headers) if left < 0 else None, headers, found


def respond(status: int, body: bytes, headers: list[tuple[str, str]]) -> Response:
    """Send an answer as it is."""
    return Response(body, status, headers, content_type="application/json")


def error(status: int, message: str, headers: list[tuple[str, str]]) -> Response:
    """Say what is wrong."""
    return respond(status, listing.to_json({"error": message}), headers)


def tagged(found: bytes, headers: list[tuple[str, str]]) -> Response:
    """Answer by what is cached, or that the client has it."""
    _, tag, body = wire.unpack(found)
    headers += [("ETag", tag), ("Cache-Control", "no-cache")]
    if request.environ.get("HTTP_IF_NONE_MATCH") == tag:
        return Response(b"", 304, headers)
    return respond(200, body, headers)


def caller() -> str:
    """Give the address of who asks."""
    environ = request.environ
    return wire.address_of(environ.get("HTTP_X_FORWARDED_FOR"), environ.get("REMOTE_ADDR", ""))


def create_app() -> Flask:
    """Make the application."""
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
