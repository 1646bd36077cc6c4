"""Flask as an expert tunes it: threads with a connection pool, responses as bytes, no ORM."""

import gzip
from collections.abc import Callable
from typing import Any

from flask import Flask, Response, request
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool
from redis import BlockingConnectionPool, Redis

from bench.peers import listing, settings, wire, writes
from bench.peers.wire import BookResponse, error_response

THREADS = 16  # of gunicorn: 8 keep PostgreSQL too idle, 32 compete with each other
Admitted = tuple[BookResponse | None, list[tuple[str, str]], list[Any]]
Read = Callable[[str], listing.Listing | listing.Search]


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

    def item(self, book_id: int, caller: str, known: str | None) -> BookResponse:
        """Return a book. known: the ETag that the client has."""
        refused, headers, (cached,) = self._admit(caller, f"tuned:book:{book_id}")
        if refused is not None:
            return refused
        if cached is None:
            row = self._row(listing.Statement(listing.ITEM, (book_id,)))
            if row is None:
                return error_response(404, "Not Found", headers)
            cached = wire.pack_book(row)
            self._keep({book_id: cached})
        return wire.tagged(cached, headers, known)

    def page(
        self, query: str, caller: str, known: str | None, read: Read = listing.read
    ) -> BookResponse:
        """Return a list of books of the current generation."""
        key = f"tuned:{read.__name__}:{query}"
        held = self._pages.get(key)
        keys = () if held else (key,)
        refused, headers, values = self._admit(caller, wire.GENERATION, *keys)
        if refused is not None:
            return refused
        generation, cached = values[0] or b"0", held or values[1]
        if cached is None or wire.unpack(cached)[0] != generation:
            try:
                parsed = read(query)
            except listing.BadRequestError as error:
                return error_response(400, str(error), headers)
            cached = wire.pack(self._read(parsed), generation)
            self._redis.set(key, cached, ex=settings.PAGE_SECONDS)
        self._pages.keep(key, cached)
        return wire.tagged(cached, headers, known)

    def create(self, body: bytes, authorization: str | None, key: str | None) -> BookResponse:
        """Create a book; a new generation invalidates the cached pages before the response.

        key: Idempotency-Key. A retry with the same key gets the recorded response.
        """
        user, headers = self._admit_user(authorization)
        if isinstance(user, BookResponse):
            return user
        try:
            statement = writes.new_values(writes.read_book(body), *user)
        except ValueError as error:
            return error_response(400, str(error), headers)
        if key is None:
            response = wire.created(self._row(statement), headers)
        elif writes.KEY.fullmatch(key):
            response = self._create_once(statement, user[0], key, body, headers)
        else:
            return error_response(400, "Invalid Idempotency-Key", headers)
        if response.status == 201:
            self._redis.incr(wire.GENERATION)
        return response

    def _create_once(
        self,
        statement: listing.Statement,
        user_id: int,
        key: str,
        body: bytes,
        headers: list[tuple[str, str]],
    ) -> BookResponse:
        """Create a book and record the response, in one transaction."""
        with self._pool.connection() as db:
            try:
                with db.transaction():
                    row = db.execute(statement.unnamed(), statement.values).fetchone()
                    response = wire.created(row, headers)
                    record = writes.record_values(user_id, key, body, response)
                    if row and not db.execute(record.unnamed(), record.values).fetchone():
                        raise writes.KeyInUseError
                    return response
            except writes.KeyInUseError:
                recorded = listing.Statement(writes.RECORDED, (user_id, key))
                row = db.execute(recorded.unnamed(), recorded.values).fetchone()
        return writes.replay(row, body, headers)

    def change(
        self, book_id: int, body: bytes, authorization: str | None, if_match: str | None
    ) -> BookResponse:
        """Change a book, under the precondition If-Match."""
        user, headers = self._admit_user(authorization)
        if isinstance(user, BookResponse):
            return user
        try:
            change = writes.read_change(body)
        except ValueError as error:
            return error_response(400, str(error), headers)
        if writes.is_renamed(change):
            present = self._row(listing.Statement(listing.ITEM, (book_id,)))
            if present is None:
                return error_response(404, "Not Found", headers)
            change = writes.with_derived(change, present)
        row = self._row(writes.change_values(book_id, change, if_match, *user))
        if row is None:
            row = self._row(listing.Statement(writes.UNCHANGED, (book_id, user[0])))
            return writes.unchanged(book_id, user, row, headers)
        cached = wire.pack_book(row)
        self._keep({book_id: cached}, ends_generation=True)
        _, tag, body = wire.unpack(cached)
        return BookResponse(200, body, [*headers, ("ETag", tag)])

    def bulk(self, body: bytes, authorization: str | None, *, atomic: bool) -> BookResponse:
        """Create the valid books of a request, or all or none of them (atomic)."""
        user, headers = self._admit_user(authorization)
        if isinstance(user, BookResponse):
            return user
        try:
            items = writes.read_items(body)
        except ValueError as error:
            return error_response(400, str(error), headers)
        valid = len(items) - sum(isinstance(item, str) for item in items)
        if atomic and valid < len(items):
            return error_response(400, "An item is invalid", headers)
        rows = self._rows(writes.bulk_values(items, *user)) if valid else []
        if len(rows) < valid:
            return error_response(401, "Invalid or expired token", headers)
        self._redis.incr(wire.GENERATION)
        return BookResponse(201 if atomic else 207, writes.bulk_body(items, rows), headers)

    def batch(self, body: bytes, caller: str) -> BookResponse:
        """Return many books by their ids: one call to Redis, and one statement for the misses."""
        try:
            ids = writes.read_ids(body).ids
        except ValueError as error:
            refused, headers, _ = self._admit(caller)
            return refused or error_response(400, str(error), headers)
        wanted = [*dict.fromkeys(ids)]
        keys = [f"tuned:book:{book_id}" for book_id in wanted]
        refused, headers, values = self._admit(caller, *keys, units=wire.units_of(len(ids)))
        if refused is not None:
            return refused
        cached = {book_id: value for book_id, value in zip(wanted, values, strict=True) if value}
        if missing := [book_id for book_id in wanted if book_id not in cached]:
            rows = self._rows(listing.Statement(writes.MANY, (missing,)))
            loaded = {row["id"]: wire.pack_book(row) for row in rows}
            self._keep(loaded)
            cached |= loaded
        bodies = {book_id: wire.unpack(value)[2] for book_id, value in cached.items()}
        return BookResponse(200, writes.batch_body(ids, bodies), headers)

    def _keep(self, books: dict[int, bytes], *, ends_generation: bool = False) -> None:
        pipe = self._redis.pipeline(transaction=False)
        for book_id, cached in books.items():
            pipe.set(f"tuned:book:{book_id}", cached, ex=settings.ITEM_SECONDS)
        if ends_generation:
            pipe.incr(wire.GENERATION)
        pipe.execute()

    def _read(self, books: listing.Listing | listing.Search) -> bytes:
        rows = self._rows(books.rows)
        if books.page is None:
            return books.body(rows, 0)
        if not rows:
            ((total,),) = (row.values() for row in self._rows(books.total))
            return books.body([], total)
        return books.body([wire.without_total(row) for row in rows], rows[0]["total"])

    def _row(self, statement: listing.Statement) -> Any:
        with self._pool.connection() as connection:
            return connection.execute(statement.unnamed(), statement.values).fetchone()

    def _rows(self, statement: listing.Statement) -> list[dict[str, Any]]:
        with self._pool.connection() as connection:
            rows: list[dict[str, Any]] = connection.execute(
                statement.unnamed(), statement.values
            ).fetchall()
        return rows

    def _admit_user(
        self, authorization: str | None
    ) -> tuple[tuple[int, int] | BookResponse, list[tuple[str, str]]]:
        """Count a request of a user. Return the id and the token's version or a rejection."""
        try:
            user = wire.user_of(authorization)
        except wire.UnauthorizedError as error:
            return error_response(401, str(error), []), []
        refused, headers, _ = self._admit(f"user:{user[0]}")
        return user if refused is None else refused, headers

    def _admit(self, caller: str, *keys: str, units: int = 1) -> Admitted:
        """Count a request and read `keys`, in one call to Redis."""
        left, reset, *values = self._redis.evalsha(
            self._script, 1 + len(keys), f"tuned:limit:{caller}", *keys, settings.RATE, 60, units
        )
        headers = wire.limit_headers(left, reset)
        if left < 0:
            return error_response(429, "Rate limit exceeded", headers), headers, [None] * len(keys)
        return None, headers, values


def respond(response: BookResponse) -> Response:
    """Send a response, compressed if the client accepts gzip."""
    status, body, headers = response
    if len(body) >= wire.GZIP_MIN_SIZE:
        headers.append(("Vary", "Accept-Encoding"))
        if "gzip" in request.environ.get("HTTP_ACCEPT_ENCODING", ""):
            headers.append(("Content-Encoding", "gzip"))
            body = gzip.compress(body, wire.GZIP_LEVEL, mtime=0)
    return Response(body, status, headers, content_type="application/json" if body else None)


def caller() -> str:
    """Return the address of the client."""
    environ = request.environ
    return wire.address_of(environ.get("HTTP_X_FORWARDED_FOR"), environ.get("REMOTE_ADDR", ""))


def header(name: str) -> str | None:
    """Return a header of the request. name: as in WSGI, without the prefix."""
    value: str | None = request.environ.get(f"HTTP_{name}")
    return value


def create_app() -> Flask:
    """Create the application."""
    app = Flask(__name__, static_folder=None)
    catalogue = Catalogue()

    @app.get("/api/books/<int:book_id>")
    def get_book(book_id: int) -> Response:
        return respond(catalogue.item(book_id, caller(), header("IF_NONE_MATCH")))

    @app.get("/api/books")
    def list_books() -> Response:
        query = request.environ["QUERY_STRING"]
        return respond(catalogue.page(query, caller(), header("IF_NONE_MATCH")))

    @app.get("/api/search")
    def search_books() -> Response:
        query, known = request.environ["QUERY_STRING"], header("IF_NONE_MATCH")
        return respond(catalogue.page(query, caller(), known, listing.read_search))

    @app.post("/api/books")
    def create_book() -> Response:
        authorization, key = header("AUTHORIZATION"), header("IDEMPOTENCY_KEY")
        return respond(catalogue.create(request.get_data(), authorization, key))

    @app.put("/api/books/<int:book_id>")
    def update_book(book_id: int) -> Response:
        authorization, if_match = header("AUTHORIZATION"), header("IF_MATCH")
        return respond(catalogue.change(book_id, request.get_data(), authorization, if_match))

    @app.post("/api/books/bulk")
    def create_books() -> Response:
        atomic = request.args.get("atomic") == "true"
        return respond(catalogue.bulk(request.get_data(), header("AUTHORIZATION"), atomic=atomic))

    @app.post("/api/books/batch-get")
    def batch_get_books() -> Response:
        return respond(catalogue.batch(request.get_data(), caller()))

    return app
