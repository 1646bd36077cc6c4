"""Redis that loses keys while a write is under way: FLUSHALL, DEL, eviction.

Values that readers store before the commit are gone at the response to the write, whatever was
lost.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from service.cache import Invalidation
from service.cache.entries import generation_key, writers_key
from service.models import Book
from tests.conftest import IsolatedSite


class Gate:
    """Holds a write between its marks and its commit."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()


class Commits:
    """Lets a test hold writes before their commit."""

    def __init__(self, writes: Invalidation, patch: pytest.MonkeyPatch) -> None:
        self._before_commit = writes.before_commit
        self._gate: Gate | None = None
        patch.setattr(writes, "before_commit", self._wait)

    async def _wait(self, db: Any, begun: float) -> Any:
        mark = await self._before_commit(db, begun)
        if mark is None:  # a write of views
            return mark
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.reached.set()
            await gate.opened.wait()
        return mark

    @asynccontextmanager
    async def held(self, request: Awaitable[httpx.Response]) -> AsyncIterator[None]:
        """Hold the commit of a request within. At the end the request has its response."""
        gate = self._gate = Gate()
        sending = asyncio.ensure_future(request)
        try:
            async with asyncio.timeout(30):
                await gate.reached.wait()
            yield
        finally:
            gate.opened.set()
            response = await sending
        assert response.status_code < 300, response.text


@pytest.fixture
def commits(isolated: IsolatedSite, monkeypatch: pytest.MonkeyPatch) -> Commits:
    """Holds commits of the application whose Redis loses keys."""
    return Commits(isolated.cache.writes, monkeypatch)


async def lose(isolated: IsolatedSite, *names: str) -> None:
    """Delete keys of the epoch. Without names: all keys in Redis."""
    redis: Any = Redis.from_url(f"redis://127.0.0.1:{isolated.port}/0")
    try:
        if names:
            prefix = (await isolated.cache.epochs.read()).prefix
            await redis.delete(*(prefix + name for name in names))
        else:
            await redis.flushall()
    finally:
        await redis.aclose()


async def seen(isolated: IsolatedSite, book: Book) -> tuple[str, list[int], int]:
    """Read a book's genre, the books in History, and the total; each also from the cache."""
    for _ in range(2):
        item = (await isolated.client.get(f"/api/books/{book.id}")).json()
        shelf = (await isolated.client.get("/api/books?genre=History")).json()
        total = (await isolated.client.get("/api/books")).json()["total"]
    return item["genre"], [row["id"] for row in shelf["items"]], total


@pytest.mark.parametrize(
    "lost", ["", "gen", "writers", "book", "gen writers", "gen book", "writers book"]
)
async def test_reads_stay_exact_when_keys_are_lost_between_mark_and_commit(
    isolated: IsolatedSite, commits: Commits, lost: str
) -> None:
    """A change of a book and a new book, each held while keys vanish and readers fill."""
    owner = await isolated.make.member()
    book = await isolated.make.book(owner, genre="Fiction")
    assert await seen(isolated, book) == ("Fiction", [], 1)
    names = {
        "gen": generation_key("book"),
        "writers": writers_key("book"),
        "book": f"book:{book.id}",
    }
    keys = [names[name] for name in lost.split()]
    path, change = f"/api/books/{book.id}", {"genre": "History"}
    async with commits.held(isolated.client.patch(path, json=change, headers=owner.headers)):
        await lose(isolated, *keys)
        assert await seen(isolated, book) == ("Fiction", [], 1)
    assert await seen(isolated, book) == ("History", [book.id], 1)
    new = {"title": "New", "author": "A"}
    async with commits.held(isolated.client.post("/api/books", json=new, headers=owner.headers)):
        await lose(isolated, *keys)
        assert await seen(isolated, book) == ("History", [book.id], 1)
    assert await seen(isolated, book) == ("History", [book.id], 2)
    assert (await isolated.cache.epochs.read()).on


@pytest.mark.parametrize("first_marks_before_the_loss", [True, False])
async def test_reads_stay_exact_when_overlapping_writes_lose_their_marks(
    isolated: IsolatedSite, commits: Commits, first_marks_before_the_loss: bool
) -> None:
    """The write that ends first cannot see the other write in Redis any more."""
    owner = await isolated.make.member()
    books = [await isolated.make.book(owner, genre="Fiction") for _ in range(2)]
    for book in books:
        await seen(isolated, book)

    def change(book: Book) -> Awaitable[httpx.Response]:
        path, body = f"/api/books/{book.id}", {"genre": "History"}
        return isolated.client.patch(path, json=body, headers=owner.headers)

    async with commits.held(change(books[0])):
        if not first_marks_before_the_loss:
            await lose(isolated)
        async with commits.held(change(books[1])):
            if first_marks_before_the_loss:
                await lose(isolated)
            assert await seen(isolated, books[0]) == ("Fiction", [], 2)
        assert await seen(isolated, books[1]) == ("History", [books[1].id], 2)
    assert await seen(isolated, books[0]) == ("History", [books[1].id, books[0].id], 2)


async def test_lost_marks_and_an_unconfirmed_clearing_turn_the_cache_off(
    isolated: IsolatedSite, commits: Commits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write turns the cache off before its response: no mark keeps readers from old entries."""
    owner = await isolated.make.member()
    book = await isolated.make.book(owner, genre="Fiction")
    path, change = f"/api/books/{book.id}", {"genre": "History"}

    async def unanswered(*_: Any) -> None:
        raise TimeoutError

    async with commits.held(isolated.client.patch(path, json=change, headers=owner.headers)):
        await lose(isolated)
        assert await seen(isolated, book) == ("Fiction", [], 1)
        monkeypatch.setattr(isolated.cache.store, "unmark", unanswered)
    assert await seen(isolated, book) == ("History", [book.id], 1)
    assert not (await isolated.cache.epochs.read()).on
