"""The catalogue of the tuned asynchronous peers: asyncpg, and one call to Redis for each request.

What is asked of Redis in the same moment goes out together, on one connection.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import asyncpg
from redis.asyncio import Redis

from bench.peers import listing, settings, wire


class Answer(NamedTuple):
    """An answer, ready to be sent."""

    status: int
    body: bytes
    headers: list[tuple[str, str]]


class Pipeline:
    """Sends the commands of many requests together, as soon as those before are answered."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiting: list[tuple[Sequence[Any], asyncio.Future[Any]]] = []
        self._sending: asyncio.Task[None] | None = None

    def send(self, *command: Any) -> asyncio.Future[Any]:
        """Send a command; its answer may be waited for."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((command, answer))
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send())
        return answer

    async def _send(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            pipe = self._redis.pipeline(transaction=False)
            for command, _ in batch:
                pipe.execute_command(*command)
            try:
                found = await pipe.execute(raise_on_error=False)
            except Exception as error:
                found = [error] * len(batch)
            for (_, answer), one in zip(batch, found, strict=True):
                if answer.done():
                    continue
                if isinstance(one, Exception):
                    answer.set_exception(one)
                else:
                    answer.set_result(one)


class Catalogue:
    """Books, as bytes."""

    async def open(self) -> None:
        """Connect."""
        self._redis: Redis = Redis.from_url(settings.REDIS_URL)
        self._ask = await self._redis.script_load(wire.ASK)
        self._pipeline = Pipeline(self._redis)
        self._pages = wire.Pages()
        self._pool = await asyncpg.create_pool(
            settings.DATABASE_URL, min_size=16, max_size=16, reset=_leave_as_it_is
        )
        wire.collect_seldom()

    async def close(self) -> None:
        """Disconnect."""
        await self._pool.close()
        await self._redis.aclose()

    async def item(self, book_id: int, caller: str, known: str | None) -> Answer:
        """Give a book. `known`: the tag that the client has."""
        key = f"tuned:book:{book_id}"
        refused, headers, (found,) = await self._admit(caller, key)
        if refused is not None:
            return refused
        if found is None:
            statement = listing.Statement(listing.ITEM, (book_id,))
            row = await self._pool.fetchrow(statement.numbered(), *statement.values)
            if row is None:
                return _error(404, "Not Found", headers)
            found = wire.pack(wire.book_body(row))
            self._pipeline.send("SET", key, found, "EX", settings.ITEM_SECONDS)
        return _tagged(found, headers, known)

    async def page(self, query: str, caller: str, known: str | None) -> Answer:
        """Give a list of books: of the present generation, however it was come by."""
        key, held = f"tuned:page:{query}", self._pages.get(query)
        keys = () if held else (key,)
        refused, headers, (generation, *others) = await self._admit(caller, wire.GENERATION, *keys)
        if refused is not None:
            return refused
        generation, found = generation or b"0", held or others[0]
        if found is None or wire.unpack(found)[0] != generation:
            try:
                asked = listing.read(query)
            except listing.BadRequestError as error:
                return _error(400, str(error), headers)
            found = wire.pack(await self._read(asked), generation)
            self._pipeline.send("SET", key, found, "EX", settings.PAGE_SECONDS)
        self._pages.keep(query, found)
        return _tagged(found, headers, known)

    async def create(self, body: bytes, authorization: str | None) -> Answer:
        """Add a book; pages end with their generation, before this is answered."""
        try:
            user_id, version = wire.user_of(authorization)
        except wire.UnauthorizedError as error:
            return _error(401, str(error), [])
        refused, headers, _ = await self._admit(f"user:{user_id}")
        if refused is not None:
            return refused
        try:
            book = wire.read_book(body)
        except ValueError as error:  # msgspec's own are such
            return _error(400, str(error), headers)
        statement = wire.new_values(book, user_id, version)
        row = await self._pool.fetchrow(statement.numbered(), *statement.values)
        if row is None:
            return _error(401, "Invalid or expired token", headers)
        await self._pipeline.send("INCR", wire.GENERATION)
        location = f"{settings.PUBLIC_URL}/api/books/{row['id']}"
        return Answer(201, wire.book_body(row), [*headers, ("Location", location)])

    async def _read(self, asked: listing.Listing) -> bytes:
        rows = await self._pool.fetch(asked.rows.numbered(), *asked.rows.values)
        if asked.page is None:
            return asked.body(rows, 0)
        if not rows:
            total = await self._pool.fetchval(asked.total.numbered(), *asked.total.values)
            return asked.body([], total)
        return asked.body([without_total(row) for row in rows], rows[0]["total"])

    async def _admit(
        self, caller: str, *keys: str
    ) -> tuple[Answer | None, list[tuple[str, str]], list[bytes | None]]:
        """Count a request and read `keys`; gives a refusal, the limit's headers, the values."""
        left, reset, *found = await self._pipeline.send(
            "EVALSHA", self._ask, 1 + len(keys), f"tuned:limit:{caller}", *keys, settings.RATE, 60
        )
        headers = wire.limit_headers(left, reset)
        if left < 0:
            return _error(429, "Rate limit exceeded", headers), headers, [None] * len(keys)
        return None, headers, found


async def _leave_as_it_is(_: Any) -> None:
    """Save the round trip by which asyncpg cleans a session: nothing here changes one."""


def without_total(row: Any) -> dict[str, Any]:
    """Give a book out of a row that has the total beside it."""
    book = dict(row)
    del book["total"]
    return book


def _tagged(found: bytes, headers: list[tuple[str, str]], known: str | None) -> Answer:
    _, tag, body = wire.unpack(found)
    headers += [("ETag", tag), ("Cache-Control", "no-cache")]
    return Answer(304, b"", headers) if known == tag else Answer(200, body, headers)


def _error(status: int, message: str, headers: list[tuple[str, str]]) -> Answer:
    return Answer(status, listing.to_json({"error": message}), headers)
