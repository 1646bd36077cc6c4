"""The catalogue of the tuned asynchronous peers: asyncpg, and one call to Redis for each request.

Commands of the same moment are sent to Redis together, on one connection.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import asyncpg
from redis.asyncio import Redis

from bench.peers import listing, settings, wire


class BookResponse(NamedTuple):
    """A response, ready to be sent."""

    status: int
    body: bytes
    headers: list[tuple[str, str]]


class Pipeline:
    """Sends the commands of many requests together, when the previous batch has its replies."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiting: list[tuple[Sequence[Any], asyncio.Future[Any]]] = []
        self._sending: asyncio.Task[None] | None = None

    def send(self, *command: Any) -> asyncio.Future[Any]:
        """Send a command; return a future for its reply."""
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((command, reply))
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send())
        return reply

    async def _send(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            pipe = self._redis.pipeline(transaction=False)
            for command, _ in batch:
                pipe.execute_command(*command)
            try:
                results = await pipe.execute(raise_on_error=False)
            except Exception as error:
                results = [error] * len(batch)
            for (_, reply), result in zip(batch, results, strict=True):
                if reply.done():
                    continue
                if isinstance(result, Exception):
                    reply.set_exception(result)
                else:
                    reply.set_result(result)


class Catalogue:
    """The catalogue: returns books as bytes."""

    async def open(self) -> None:
        """Connect."""
        self._redis: Redis = Redis.from_url(settings.REDIS_URL)
        self._script = await self._redis.script_load(wire.LIMIT_AND_GET)
        self._pipeline = Pipeline(self._redis)
        self._pages = wire.Pages()
        self._pool = await asyncpg.create_pool(
            settings.DATABASE_URL, min_size=16, max_size=16, reset=_no_reset
        )
        wire.collect_seldom()

    async def close(self) -> None:
        """Disconnect."""
        await self._pool.close()
        await self._redis.aclose()

    async def item(self, book_id: int, caller: str, known: str | None) -> BookResponse:
        """Return a book. known: the ETag that the client has."""
        key = f"tuned:book:{book_id}"
        refused, headers, (cached,) = await self._admit(caller, key)
        if refused is not None:
            return refused
        if cached is None:
            statement = listing.Statement(listing.ITEM, (book_id,))
            row = await self._pool.fetchrow(statement.numbered(), *statement.values)
            if row is None:
                return _error(404, "Not Found", headers)
            cached = wire.pack(wire.book_body(row))
            self._pipeline.send("SET", key, cached, "EX", settings.ITEM_SECONDS)
        return _tagged(cached, headers, known)

    async def page(self, query: str, caller: str, known: str | None) -> BookResponse:
        """Return a list of books of the current generation, cached or read from PostgreSQL."""
        key, held = f"tuned:page:{query}", self._pages.get(query)
        keys = () if held else (key,)
        refused, headers, (generation, *others) = await self._admit(caller, wire.GENERATION, *keys)
        if refused is not None:
            return refused
        generation, cached = generation or b"0", held or others[0]
        if cached is None or wire.unpack(cached)[0] != generation:
            try:
                parsed = listing.read(query)
            except listing.BadRequestError as error:
                return _error(400, str(error), headers)
            cached = wire.pack(await self._read(parsed), generation)
            self._pipeline.send("SET", key, cached, "EX", settings.PAGE_SECONDS)
        self._pages.keep(query, cached)
        return _tagged(cached, headers, known)

    async def create(self, body: bytes, authorization: str | None) -> BookResponse:
        """Create a book; a new generation invalidates the cached pages before the response."""
        try:
            user_id, version = wire.user_of(authorization)
        except wire.UnauthorizedError as error:
            return _error(401, str(error), [])
        refused, headers, _ = await self._admit(f"user:{user_id}")
        if refused is not None:
            return refused
        try:
            book = wire.read_book(body)
        except ValueError as error:  # the exceptions of msgspec are ValueErrors
            return _error(400, str(error), headers)
        statement = wire.new_values(book, user_id, version)
        row = await self._pool.fetchrow(statement.numbered(), *statement.values)
        if row is None:
            return _error(401, "Invalid or expired token", headers)
        await self._pipeline.send("INCR", wire.GENERATION)
        location = f"{settings.PUBLIC_URL}/api/books/{row['id']}"
        return BookResponse(201, wire.book_body(row), [*headers, ("Location", location)])

    async def _read(self, books: listing.Listing) -> bytes:
        rows = await self._pool.fetch(books.rows.numbered(), *books.rows.values)
        if books.page is None:
            return books.body(rows, 0)
        if not rows:
            total = await self._pool.fetchval(books.total.numbered(), *books.total.values)
            return books.body([], total)
        return books.body([without_total(row) for row in rows], rows[0]["total"])

    async def _admit(
        self, caller: str, *keys: str
    ) -> tuple[BookResponse | None, list[tuple[str, str]], list[bytes | None]]:
        """Count a request and read `keys`. Return a rejection or None, the headers, the values."""
        left, reset, *values = await self._pipeline.send(
            "EVALSHA",
            self._script,
            1 + len(keys),
            f"tuned:limit:{caller}",
            *keys,
            settings.RATE,
            60,
        )
        headers = wire.limit_headers(left, reset)
        if left < 0:
            return _error(429, "Rate limit exceeded", headers), headers, [None] * len(keys)
        return None, headers, values


async def _no_reset(_: Any) -> None:
    """Skip the round trip in which asyncpg resets a session: no statement changes a session."""


def without_total(row: Any) -> dict[str, Any]:
    """Return the book of a row that also has the total."""
    book = dict(row)
    del book["total"]
    return book


def _tagged(cached: bytes, headers: list[tuple[str, str]], known: str | None) -> BookResponse:
    _, tag, body = wire.unpack(cached)
    headers += [("ETag", tag), ("Cache-Control", "no-cache")]
    return BookResponse(304, b"", headers) if known == tag else BookResponse(200, body, headers)


def _error(status: int, message: str, headers: list[tuple[str, str]]) -> BookResponse:
    return BookResponse(status, listing.to_json({"error": message}), headers)
