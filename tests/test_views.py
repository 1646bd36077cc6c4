"""Views: each GET of a book counts one, on every path, and no writer of books waits for a view.

With SOAK in the environment there are more requests.
"""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from quart import Quart
from sqlalchemy import event, select

from service.books.schemas import BookCreate
from service.books.service import new_book
from service.cache import Cache
from service.db.database import Database
from service.http.context import context_of
from service.models import Book, BookViews
from service.views import counter
from service.views.counter import WRITE_SECONDS, ViewCounter
from service.views.service import add_views
from tests.conftest import (
    SECRET,
    Site,
    cache_on,
    fresh_catalogue,
    serving,
    settings_for,
)
from tests.factories import Factory
from tests.http_client import TIMEOUT
from tests.test_cli import served
from tests.test_http2 import encrypted
from tests.test_serve import until, workers_of

GETS = 10_000 if os.environ.get("SOAK") else 2_000
DATA = BookCreate(title="Viewed", author="Somebody")


def counter_of(app: Quart) -> ViewCounter:
    """Return the counter of an application."""
    result: ViewCounter = app.extensions["view_counter"]
    return result


async def stored(database: Database) -> dict[int, int]:
    """Read the numbers of views, by the id of the book."""
    columns = BookViews.__table__.c
    async with database.session() as db:
        rows = await db.execute(select(columns.book_id, columns.views))
        return {row.book_id: row.views for row in rows}


async def until_stored(database: Database, number: int) -> dict[int, int]:
    """Wait until at least so many views are stored; return the numbers of views."""
    async with asyncio.timeout(TIMEOUT):
        while sum((views := await stored(database)).values()) < number:
            await asyncio.sleep(0.02)
    return views


@contextmanager
def statements(database: Database) -> Iterator[list[str]]:
    """Note every statement, except reads of books and of views, and SQLite's BEGIN."""
    seen: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if not statement.startswith(("SELECT book", "BEGIN")):
            seen.append(statement)

    engine = database.writer.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", note)


async def test_each_get_counts_on_every_path(
    site: Site, client: httpx.AsyncClient, make: Factory
) -> None:
    member = await make.member()
    book = await make.book(member)
    path = f"/api/books/{book.id}"
    seen = []

    async def send(method: str = "GET", path: str = path, **headers: str) -> httpx.Response:
        response = await client.request(method, path, headers=headers)
        cached = response.headers.get("Cache-Status", "").removeprefix("Octavo; ")
        seen.append(f"{method} {response.status_code} {cached}".strip())
        return response

    first = await send()
    tag = {"If-None-Match": first.headers["ETag"]}
    await send()
    await send(**tag)
    await send(**member.headers)
    await send(path=f"{path}?nocache=1")
    await send(path=f"{path}?nocache=1", **tag)
    await send(**{"Content-Encoding": "identity"})  # Quart's request cycle
    assert seen == [
        "GET 200 fwd=miss", "GET 200 hit", "GET 304 hit", "GET 200 hit", "GET 200 fwd=bypass",
        "GET 304 fwd=bypass", "GET 200 hit",
    ]  # fmt: skip
    counted = len(seen)
    await send("HEAD")
    await send(path="/api/books/7000")
    await send(path=f"{path}?page=1")
    await send(Authorization="Bearer x")
    await send(path="/api/books")
    changed = await client.patch(path, json={"price": 1}, headers=member.headers)
    assert changed.status_code == 200
    assert [line.split()[1] for line in seen[counted:]] == ["200", "404", "400", "401", "200"]
    assert await until_stored(site.database, counted) == {book.id: counted}
    await counter_of(site.app).write()
    assert await stored(site.database) == {book.id: counted}


async def test_http2_and_other_servers_count(site: Site, folder: Path, make: Factory) -> None:
    book = await make.book()
    path = f"/api/books/{book.id}"
    app: Any = site.app
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://other") as other:
        for _ in range(3):
            assert (await other.get(path)).status_code == 200
    assert await until_stored(site.database, 3) == {book.id: 3}
    async with (
        encrypted(site, folder) as (there, trusted),
        httpx.AsyncClient(http2=True, verify=trusted, timeout=TIMEOUT) as client,
    ):
        url = f"https://127.0.0.1:{there.port}{path}"
        before = sum((await stored(there.database)).values())
        for _ in range(4):
            response = await client.get(url)
            assert (response.status_code, response.http_version) == (200, "HTTP/2")
        assert sum((await until_stored(there.database, before + 4)).values()) == before + 4


async def test_many_gets_are_few_statements(site: Site, folder: Path, make: Factory) -> None:
    books = [(await make.book()).id for _ in range(20)]
    requests = b"".join(b"GET /api/books/%d HTTP/1.1\r\nHost: x\r\n\r\n" % id_ for id_ in books)
    async with serving(settings_for(site.another_url, folder), prepare=lambda app: None) as there:
        reader, writer = await asyncio.open_connection("127.0.0.1", there.port)
        begun = time.monotonic()
        try:
            with statements(there.database) as seen:
                async with asyncio.timeout(TIMEOUT):
                    for _ in range(GETS // len(books)):
                        writer.write(requests)
                        for _ in books:
                            head = await reader.readuntil(b"\r\n\r\n")
                            assert head.startswith(b"HTTP/1.1 200 ")
                            length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
                            await reader.readexactly(int(length))
                views = await until_stored(there.database, GETS)
        finally:
            writer.close()
        seconds = time.monotonic() - begun
    assert views == dict.fromkeys(books, GETS // len(books))
    assert all("INSERT INTO book_views" in statement for statement in seen)
    assert 1 <= len(seen) <= 1 + seconds / WRITE_SECONDS


async def test_views_change_no_version_and_no_tag_and_mark_nothing(
    site: Site, client: httpx.AsyncClient, make: Factory
) -> None:
    cache: Cache = site.app.extensions["cache"]
    book = await make.book()
    path = f"/api/books/{book.id}"
    first = await client.get(path)
    await until_stored(site.database, 1)
    marks = cache.counters.marks
    with statements(site.database) as seen:
        second = await client.get(path)
        await until_stored(site.database, 2)
    assert len(seen) == 1, "no statement but the INSERT: the row of the epoch is not read"
    assert cache.counters.marks == marks
    past = await client.get(f"{path}?nocache=1")
    assert second.headers["Cache-Status"] == "Octavo; hit", "the entry is still there"
    assert first.content == second.content == past.content
    assert first.headers["ETag"] == past.headers["ETag"]
    assert past.json()["version"] == 1


async def test_no_writer_of_books_waits_for_views(
    site: Site, client: httpx.AsyncClient, make: Factory
) -> None:
    if site.database.url.get_backend_name() == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    member = await make.member()
    viewed, new = await make.book(member), await make.book(member)
    await site.database.write(lambda db: add_views(db, {viewed.id: 1}))
    has_written, may_commit = asyncio.Event(), asyncio.Event()

    async def write(db: Any) -> None:
        await add_views(db, {viewed.id: 1, new.id: 1})
        has_written.set()
        await may_commit.wait()

    writing = asyncio.create_task(site.database.write(write))
    try:
        async with asyncio.timeout(TIMEOUT):
            await has_written.wait()
            for book in (viewed, new):
                path = f"/api/books/{book.id}"
                # A write that waited for a lock would get 503 after 3 s.
                changed = await client.put(path, json={"price": 2}, headers=member.headers)
                assert changed.status_code == 200
                deleted = await client.delete(path, headers=member.headers)
                assert deleted.status_code == 204
        assert not writing.done()
    finally:
        may_commit.set()
        await writing
    response = await client.get("/api/popular-books?nocache=1")
    assert response.json() == [], "views that were written meanwhile belong to no book"


async def test_views_of_deleted_books_are_deleted_and_dropped(
    site: Site, client: httpx.AsyncClient, make: Factory
) -> None:
    member = await make.member()
    books = [await make.book(member) for _ in range(3)]
    views = {book.id: 5 for book in books}
    await site.database.write(lambda db: add_views(db, views))
    await client.delete(f"/api/books/{books[0].id}", headers=member.headers)
    assert await stored(site.database) == {book.id: 5 for book in books[1:]}
    await site.database.write(lambda db: add_views(db, views))
    assert await stored(site.database) == {book.id: 10 for book in books[1:]}


async def test_views_are_kept_while_the_database_fails_up_to_a_number_of_books(
    site: Site, client: httpx.AsyncClient, make: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counter, "MAX_BOOKS", 3)
    monkeypatch.setattr(counter, "BATCH_SIZE", 2)
    views = counter_of(site.app)
    await views.write()
    written, lost = views.written, views.lost
    books = [(await make.book()).id for _ in range(4)]

    async def fail(work: Callable[[Any], Awaitable[None]]) -> None:
        raise OSError

    with monkeypatch.context() as patch:
        patch.setattr(site.database, "write", fail)
        for book_id in (*books[:3], *books[:3]):
            assert (await client.get(f"/api/books/{book_id}")).status_code == 200
        with pytest.raises(OSError):
            await views.write()
        for book_id in (books[0], books[3]):
            assert (await client.get(f"/api/books/{book_id}")).status_code == 200
        async with asyncio.timeout(TIMEOUT):
            while views.lost == lost:
                await asyncio.sleep(0.01)
    await views.write()
    assert await stored(site.database) == {books[0]: 3, books[1]: 2, books[2]: 2}
    assert (views.written - written, views.lost - lost) == (7, 1)


async def test_views_that_are_counted_during_the_last_write_are_written(
    site: Site, make: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = await make.book()
    views, stop = ViewCounter(site.app), asyncio.Event()
    write = site.database.write

    def view() -> None:
        scope = {"type": "http", "method": "GET", "path": f"/api/books/{book.id}"}
        context_of(scope).route = "/api/books/<id:book_id>"
        views.observe(scope, 200, 0.0)

    async def write_late(work: Callable[[Any], Awaitable[None]]) -> None:
        if not stop.is_set():
            stop.set()
            view()
        await write(work)

    view()
    monkeypatch.setattr(site.database, "write", write_late)
    await views.run(stop)
    assert await stored(site.database) == {book.id: 2}


@pytest.mark.alone
@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
async def test_kill_9_loses_no_written_view_and_a_stop_loses_none(
    backend: str, request: pytest.FixtureRequest, folder: Path, tmp_path: Path
) -> None:
    async def add_book(db: Any) -> int:
        book = new_book(None, DATA)
        db.add(book)
        await db.flush()
        return book.id

    async with fresh_catalogue(backend, request, folder) as database:
        book_id = await database.write(add_book)
        environment = {
            "OCTAVO_ENV": "testing",
            "TESTING_DATABASE_URL": database.url.render_as_string(hide_password=False),
            "SECRET_KEY": SECRET,
            "RATELIMIT_ENABLED": "false",
        }
        if backend == "postgresql":
            environment |= {"REDIS_URL": request.getfixturevalue("redis_url"), "WORKERS": "2"}
            await cache_on(database, environment["REDIS_URL"])
        async with served(tmp_path, **environment) as (supervisor, url, _):

            async def view() -> None:
                """View the book 20 times, over 4 connections, which reach all workers."""
                for _ in range(4):
                    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT) as client:
                        for _ in range(5):
                            response = await client.get(f"/api/books/{book_id}")
                            assert response.status_code == 200

            await view()
            assert await until_stored(database, 20) == {book_id: 20}
            for worker in (killed := workers_of(supervisor.pid)):
                os.kill(worker, signal.SIGKILL)
            await until(
                lambda: (
                    bool(set(workers_of(supervisor.pid)))
                    and not set(killed) & set(workers_of(supervisor.pid))
                )
            )
            await view()
            supervisor.terminate()
            await supervisor.communicate()
        assert await stored(database) == {book_id: 40}


async def popular(client: httpx.AsyncClient, query: str = "") -> list[tuple[str, int]]:
    """Read the popular books: pairs of title and number of views."""
    response = await client.get(f"/api/popular-books{query}")
    assert response.status_code == 200
    return [(book["title"], book["views"]) for book in response.json()]


async def viewed_books(site: Site, make: Factory, *views: int) -> list[Book]:
    """Make books with these numbers of views. Their titles are their places."""
    books = [await make.book(title=str(place)) for place in range(len(views))]
    numbers = {book.id: n for book, n in zip(books, views, strict=True) if n}
    await site.database.write(lambda db: add_views(db, numbers))
    return books


async def test_popular_books_are_the_ten_most_viewed(
    site: Site, client: httpx.AsyncClient, make: Factory
) -> None:
    for query in ("?nocache=1", "", ""):
        assert await popular(client, query) == []
    await site.app.extensions["cache"].clear()
    books = await viewed_books(site, make, 1, 5, 0, 7, 5, *[2] * 9)
    response = await client.get("/api/popular-books")
    assert [(book["title"], book["views"]) for book in response.json()] == [
        ("3", 7), ("4", 5), ("1", 5), *((str(place), 2) for place in range(13, 6, -1)),
    ]  # fmt: skip
    book = (await client.get(f"/api/books/{books[3].id}")).json()
    assert list(response.json()[0].items()) == [*book.items(), ("views", 7)]


async def test_numbers_of_views_are_cached_and_books_are_current(
    site: Site, client: httpx.AsyncClient, make: Factory
) -> None:
    admin = await make.admin()
    low, high, gone = await viewed_books(site, make, 1, 2, 3)
    first = await client.get("/api/popular-books")
    second = await client.get("/api/popular-books")
    assert [each.headers["Cache-Status"] for each in (first, second)] == [
        "Octavo; fwd=miss", "Octavo; hit",
    ]  # fmt: skip
    tag = {"If-None-Match": first.headers["ETag"]}
    assert (await client.get("/api/popular-books", headers=tag)).status_code == 304
    await site.database.write(lambda db: add_views(db, {low.id: 9}))
    assert await popular(client) == [("2", 3), ("1", 2), ("0", 1)]
    paths = [f"/api/books/{book.id}" for book in (high, gone)]
    await client.put(paths[0], json={"title": "new"}, headers=admin.headers)
    await client.delete(paths[1], headers=admin.headers)
    assert await popular(client) == [("new", 2), ("0", 1)]
    assert await popular(client, "?nocache=1") == [("0", 10), ("new", 2)]
    assert await popular(client) == [("new", 2), ("0", 1)]
    await client.post("/admin/clear-cache", headers=admin.headers)
    assert await popular(client) == [("0", 10), ("new", 2)]


async def test_numbers_of_views_may_be_uncached(site: Site, folder: Path) -> None:
    settings = settings_for(site.another_url, folder, cache_popular_seconds=0)
    async with (
        serving(settings) as there,
        httpx.AsyncClient(base_url=there.url, timeout=TIMEOUT) as client,
    ):
        await viewed_books(there, Factory(there.app), 1, 2)
        for _ in range(2):
            response = await client.get("/api/popular-books")
            assert response.headers["Cache-Status"] == "Octavo; fwd=bypass"
            assert [book["views"] for book in response.json()] == [2, 1]
