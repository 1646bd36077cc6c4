"""The catalogue of the tuned asynchronous peers: asyncpg, and one call to Redis for each request.

Commands of the same moment are sent to Redis together, on one connection.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import asyncpg
from redis.asyncio import Redis

from bench.peers import listing, settings, wire, writes
from bench.peers.wire import BookResponse, error_response

Read = Callable[[str], listing.Listing | listing.Search]


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
            row = await self._row(listing.Statement(listing.ITEM, (book_id,)))
            if row is None:
                return error_response(404, "Not Found", headers)
            cached = wire.pack_book(row)
            self._keep(book_id, cached)
        return wire.tagged(cached, headers, known)

    async def page(
        self, query: str, caller: str, known: str | None, read: Read = listing.read
    ) -> BookResponse:
        """Return a list of books of the current generation, cached or read from PostgreSQL."""
        key = f"tuned:{read.__name__}:{query}"
        held = self._pages.get(key)
        keys = () if held else (key,)
        refused, headers, (generation, *others) = await self._admit(caller, wire.GENERATION, *keys)
        if refused is not None:
            return refused
        generation, cached = generation or b"0", held or others[0]
        if cached is None or wire.unpack(cached)[0] != generation:
            try:
                parsed = read(query)
            except listing.BadRequestError as error:
                return error_response(400, str(error), headers)
            cached = wire.pack(await self._read(parsed), generation)
            self._pipeline.send("SET", key, cached, "EX", settings.PAGE_SECONDS)
        self._pages.keep(key, cached)
        return wire.tagged(cached, headers, known)

    async def search(self, query: str, caller: str, known: str | None) -> BookResponse:
        """Return a page of the books that match best."""
        return await self.page(query, caller, known, listing.read_search)

    async def create(
        self, body: bytes, authorization: str | None, key: str | None = None
    ) -> BookResponse:
        """Create a book; a new generation invalidates the cached pages before the response.

        key: Idempotency-Key. A retry with the same key gets the recorded response.
        """
        user, headers = await self._admit_user(authorization)
        if isinstance(user, BookResponse):
            return user
        try:
            statement = writes.new_values(writes.read_book(body), *user)
        except ValueError as error:
            return error_response(400, str(error), headers)
        if key is None:
            response = wire.created(await self._row(statement), headers)
        elif writes.KEY.fullmatch(key):
            response = await self._create_once(statement, user[0], key, body, headers)
        else:
            return error_response(400, "Invalid Idempotency-Key", headers)
        if response.status == 201:
            await self._pipeline.send("INCR", wire.GENERATION)
        return response

    async def _create_once(
        self,
        statement: listing.Statement,
        user_id: int,
        key: str,
        body: bytes,
        headers: list[tuple[str, str]],
    ) -> BookResponse:
        """Create a book and record the response, in one transaction."""
        async with self._pool.acquire() as db:
            try:
                async with db.transaction():
                    row = await db.fetchrow(statement.numbered(), *statement.values)
                    response = wire.created(row, headers)
                    record = writes.record_values(user_id, key, body, response)
                    if row and not await db.fetchval(record.numbered(), *record.values):
                        raise writes.KeyInUseError
                    return response
            except writes.KeyInUseError:
                recorded = listing.Statement(writes.RECORDED, (user_id, key))
                row = await db.fetchrow(recorded.numbered(), *recorded.values)
        return writes.replay(row, body, headers)

    async def change(
        self, book_id: int, body: bytes, authorization: str | None, if_match: str | None
    ) -> BookResponse:
        """Change a book, under the precondition If-Match."""
        user, headers = await self._admit_user(authorization)
        if isinstance(user, BookResponse):
            return user
        try:
            change = writes.read_change(body)
        except ValueError as error:
            return error_response(400, str(error), headers)
        if writes.is_renamed(change):
            present = await self._row(listing.Statement(listing.ITEM, (book_id,)))
            if present is None:
                return error_response(404, "Not Found", headers)
            change = writes.with_derived(change, present)
        row = await self._row(writes.change_values(book_id, change, if_match, *user))
        if row is None:
            row = await self._row(listing.Statement(writes.UNCHANGED, (book_id, user[0])))
            return writes.unchanged(book_id, user, row, headers)
        cached = wire.pack_book(row)
        self._keep(book_id, cached)
        await self._pipeline.send("INCR", wire.GENERATION)
        _, tag, body = wire.unpack(cached)
        return BookResponse(200, body, [*headers, ("ETag", tag)])

    async def bulk(self, body: bytes, authorization: str | None, *, atomic: bool) -> BookResponse:
        """Create the valid books of a request, or all or none of them (atomic)."""
        user, headers = await self._admit_user(authorization)
        if isinstance(user, BookResponse):
            return user
        try:
            items = writes.read_items(body)
        except ValueError as error:
            return error_response(400, str(error), headers)
        valid = len(items) - sum(isinstance(item, str) for item in items)
        if atomic and valid < len(items):
            return error_response(400, "An item is invalid", headers)
        rows = await self._rows(writes.bulk_values(items, *user)) if valid else []
        if len(rows) < valid:
            return error_response(401, "Invalid or expired token", headers)
        await self._pipeline.send("INCR", wire.GENERATION)
        return BookResponse(201 if atomic else 207, writes.bulk_body(items, rows), headers)

    async def batch(self, body: bytes, caller: str) -> BookResponse:
        """Return many books by their ids: one call to Redis, and one statement for the misses."""
        try:
            ids = writes.read_ids(body).ids
        except ValueError as error:
            refused, headers, _ = await self._admit(caller)
            return refused or error_response(400, str(error), headers)
        wanted = [*dict.fromkeys(ids)]
        keys = [f"tuned:book:{book_id}" for book_id in wanted]
        refused, headers, values = await self._admit(caller, *keys, units=wire.units_of(len(ids)))
        if refused is not None:
            return refused
        cached = {book_id: value for book_id, value in zip(wanted, values, strict=True) if value}
        if missing := [book_id for book_id in wanted if book_id not in cached]:
            for row in await self._rows(listing.Statement(writes.MANY, (missing,))):
                cached[row["id"]] = wire.pack_book(row)
                self._keep(row["id"], cached[row["id"]])
        bodies = {book_id: wire.unpack(value)[2] for book_id, value in cached.items()}
        return BookResponse(200, writes.batch_body(ids, bodies), headers)

    async def _row(self, statement: listing.Statement) -> Any:
        return await self._pool.fetchrow(statement.numbered(), *statement.values)

    async def _rows(self, statement: listing.Statement) -> list[Any]:
        rows: list[Any] = await self._pool.fetch(statement.numbered(), *statement.values)
        return rows

    def _keep(self, book_id: int, cached: bytes) -> None:
        key = f"tuned:book:{book_id}"
        self._pipeline.send("SET", key, cached, "EX", settings.ITEM_SECONDS)

    async def _read(self, books: listing.Listing | listing.Search) -> bytes:
        rows = await self._rows(books.rows)
        if books.page is None:
            return books.body(rows, 0)
        if not rows:
            total = await self._pool.fetchval(books.total.numbered(), *books.total.values)
            return books.body([], total)
        return books.body([wire.without_total(row) for row in rows], rows[0]["total"])

    async def _admit_user(
        self, authorization: str | None
    ) -> tuple[tuple[int, int] | BookResponse, list[tuple[str, str]]]:
        """Count a request of a user. Return the id and the token's version or a rejection."""
        try:
            user = wire.user_of(authorization)
        except wire.UnauthorizedError as error:
            return error_response(401, str(error), []), []
        refused, headers, _ = await self._admit(f"user:{user[0]}")
        return user if refused is None else refused, headers

    async def _admit(
        self, caller: str, *keys: str, units: int = 1
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
            units,
        )
        headers = wire.limit_headers(left, reset)
        if left < 0:
            return error_response(429, "Rate limit exceeded", headers), headers, [None] * len(keys)
        return None, headers, values


async def _no_reset(_: Any) -> None:
    """Skip the round trip in which asyncpg resets a session: no statement changes a session."""
