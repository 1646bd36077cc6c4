"""The cache over HTTP: seen to work, never seen to be old; and what it costs."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import httpx
import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import event

from service.books.service import BOOKS
from service.cache import Cache, Counters, Entry, Prefetch, entries, items
from service.http.auth import USERS
from service.limits.redis_store import DECIDING
from service.redis_client import GET_MANY
from service.redis_client.connection import RedisConnection
from tests.conformance import violations as documented_violations
from tests.conftest import Site, patient_client, serving, settings_for
from tests.factories import PASSWORD, Factory, Member

HIT, MISS, BYPASS = "Octavo; hit", "Octavo; fwd=miss", "Octavo; fwd=bypass"


@contextmanager
def statements(site: Site) -> Iterator[list[str]]:
    """Note every statement that reads."""
    seen: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        seen.append(statement)

    engine, access = site.database.reader.sync_engine, cache_of(site).access
    sampled, access.sampled = access.sampled, 0  # a sample is a reading as well
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", note)
        access.sampled = sampled


def cache_of(site: Site) -> Cache:
    """Give the cache of an application."""
    cache: Cache = site.app.extensions["cache"]
    return cache


async def status(client: httpx.AsyncClient, path: str, **words: Any) -> str:
    """Ask, and give the Cache-Status of the answer."""
    answer = await client.get(path, **words)
    return answer.headers["Cache-Status"]


@asynccontextmanager
async def another(site: Site, folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A second worker on the same database and Redis; memory has one: the same again."""
    url = site.database.url.render_as_string(hide_password=False)
    if site.database.url.get_backend_name() == "sqlite":
        async with patient_client(site) as client:
            yield client
        return
    async with (
        serving(settings_for(url, folder)) as other,
        patient_client(other) as client,
    ):
        yield client


@pytest.fixture
async def owner(make: Factory) -> Member:
    """Somebody with books."""
    return await make.member()


async def test_how_an_answer_was_come_by_is_said(
    client: httpx.AsyncClient, make: Factory, owner: Member
) -> None:
    book = await make.book(owner)
    for path in (
        f"/api/books/{book.id}", "/api/books", "/api/books?limit=5",
        "/api/books?sort=price&limit=5", f"/api/users/{owner.id}/books?per_page=7",
        "/api/books?q=book", "/api/books?genre=Fiction",
    ):  # fmt: skip
        assert [await status(client, path) for _ in range(2)] == [MISS, HIT], path
    for path in (
        "/api/books?nocache=1", f"/api/users/{owner.id}/books?nocache=1",
        f"/api/books/{book.id}?nocache=1", "/api/books/7000?nocache=1",
        f"/api/users/{owner.id}?nocache=1", "/api/users/7000?nocache=1",
    ):  # fmt: skip
        assert [await status(client, path) for _ in range(2)] == [BYPASS, BYPASS]
    tag = (await client.get("/api/books")).headers["ETag"]
    assert await status(client, "/api/books", headers={"If-None-Match": tag}) == HIT


async def test_what_comes_from_the_cache_is_what_comes_past_it(
    client: httpx.AsyncClient, make: Factory, owner: Member
) -> None:
    for n in range(25):
        await make.book(owner, price=n, genre="Fiction" if n % 2 else None)
    for path in (
        "/api/books", "/api/books?page=2", "/api/books?page=9", "/api/books?genre=Fiction",
        "/api/books?sort=-price&per_page=5", "/api/books?limit=7", "/api/books?sort=title&limit=7",
        f"/api/users/{owner.id}/books", "/api/users/0/books",
    ):  # fmt: skip
        past = await client.get(path, params={**httpx.URL(path).params, "nocache": "1"})
        cold, warm = await client.get(path), await client.get(path)
        assert cold.content == warm.content
        assert cold.headers["ETag"] == warm.headers["ETag"]
        found, wanted = warm.json(), past.json()
        for answer in (found, wanted):
            if isinstance(answer, dict):
                answer.pop("links", None)  # which say nocache
        assert found == wanted


async def test_total_is_exact_at_once(
    site: Site, folder: Path, client: httpx.AsyncClient, make: Factory, owner: Member
) -> None:
    async with another(site, folder) as other:
        for n in range(20):
            here, there = random.sample((client, other), 2)
            before = (await there.get("/api/books")).json()["total"]
            assert before == n
            body = {"title": "New", "author": "A"}
            made = await here.post("/api/books", json=body, headers=owner.headers)
            after = (await there.get("/api/books")).json()
            assert (after["total"], after["items"][0]["id"]) == (n + 1, made.json()["id"])
            mine = await there.get(f"/api/users/{owner.id}/books")
            assert mine.headers["X-Total-Count"] == str(n + 1)


async def test_a_change_is_seen_at_once_everywhere(
    site: Site, folder: Path, client: httpx.AsyncClient, make: Factory, owner: Member
) -> None:
    book = await make.book(owner, genre="Fiction")
    path = f"/api/books/{book.id}"
    async with another(site, folder) as other:
        for n in range(20):
            here, there = random.sample((client, other), 2)
            assert (await there.get(path)).json()["version"] == n + 1
            genre = ("History", "Fiction")[n % 2]
            changed = await here.patch(path, json={"genre": genre}, headers=owner.headers)
            assert (await there.get(path)).content == changed.content
            for shelf in ("History", "Fiction"):
                found = (await there.get("/api/books", params={"genre": shelf})).json()["items"]
                assert [one["id"] for one in found] == ([book.id] if shelf == genre else [])
        await client.delete(path, headers=owner.headers)
        for one in (client, other):
            assert (await one.get(path)).status_code == 404
            assert (await one.get("/api/books")).json()["total"] == 0


async def test_that_there_is_none_is_known_as_well(
    client: httpx.AsyncClient, make: Factory, owner: Member
) -> None:
    book = await make.book(owner)
    coming = f"/api/books/{book.id + 1}"
    assert [await status(client, coming) for _ in range(2)] == [MISS, HIT]
    await make.book(owner)
    assert (await client.get(coming)).status_code == 200


async def test_a_user_deleted_with_their_books_is_gone(
    client: httpx.AsyncClient, make: Factory
) -> None:
    admin, gone = await make.admin(), await make.member()
    books = [await make.book(gone) for _ in range(3)]
    paths = ["/api/books", *(f"/api/books/{book.id}" for book in books)]
    for path in paths:
        await status(client, path)
    assert (await client.get("/api/profile", headers=gone.headers)).status_code == 200
    answer = await client.delete(f"/admin/users/{gone.id}", headers=admin.headers)
    assert answer.status_code == 204
    assert (await client.get("/api/books")).json()["total"] == 0
    for path in paths[1:]:
        assert (await client.get(path)).status_code == 404
    assert (await client.get("/api/profile", headers=gone.headers)).status_code == 401


async def test_a_changed_account_is_shown_at_once(
    site: Site, folder: Path, client: httpx.AsyncClient, make: Factory
) -> None:
    admin, member = await make.admin(), await make.member()
    public = f"/api/users/{member.id}"
    async with another(site, folder) as other:
        for n in range(5):
            here, there = random.sample((client, other), 2)
            for path in (public, "/api/profile"):
                await there.get(path, headers=member.headers)
            name = f"renamed{n}"
            answer = await here.patch(
                "/api/profile", json={"username": name}, headers=member.headers
            )
            assert answer.status_code == 200
            shown = (await there.get("/api/profile", headers=member.headers)).json()
            past = await there.get("/api/profile?nocache=1", headers=member.headers)
            assert past.headers["Cache-Status"] == BYPASS
            assert shown == answer.json() == past.json()
            assert (await there.get(public)).json()["username"] == name
        await client.delete(f"/admin/users/{member.id}", headers=admin.headers)
        assert (await other.get(public)).status_code == 404


async def test_a_new_user_ends_no_list_of_books(
    client: httpx.AsyncClient, make: Factory, owner: Member
) -> None:
    await make.book(owner)
    assert [await status(client, "/api/books") for _ in range(2)] == [MISS, HIT]
    body = {"username": "somebody", "email": "somebody@example.org", "password": PASSWORD}
    assert (await client.post("/api/auth/register", json=body)).status_code == 201
    assert await status(client, "/api/books") == HIT


async def test_a_deleted_user_without_books_ends_lists_of_theirs(
    client: httpx.AsyncClient, make: Factory
) -> None:
    admin, gone = await make.admin(), await make.member()
    path = f"/api/books?user_id={gone.id}"
    assert [await status(client, path) for _ in range(2)] == [MISS, HIT]
    await client.delete(f"/admin/users/{gone.id}", headers=admin.headers)
    assert await status(client, path) == MISS


async def test_a_write_of_nothing_marks_nothing(
    site: Site, client: httpx.AsyncClient, make: Factory, owner: Member
) -> None:
    book = await make.book(owner, title="The same")
    path = f"/api/books/{book.id}"
    for warmed in (path, "/api/books"):
        await status(client, warmed)
    marks = cache_of(site).counters.marks
    await client.patch(path, json={"title": "The same"}, headers=owner.headers)
    assert cache_of(site).counters.marks == marks
    assert await status(client, path) == await status(client, "/api/books") == HIT


async def test_what_a_read_may_cost(
    site: Site, client: httpx.AsyncClient, make: Factory, owner: Member
) -> None:
    """No SQL where nothing changed; after one change, one query of ids and one of that book."""
    books = [await make.book(owner) for _ in range(20)]
    item = f"/api/books/{books[3].id}"
    for path in (item, "/api/books", "/api/books?per_page=5"):
        await status(client, path)
    await client.get("/api/profile", headers=owner.headers)
    with statements(site) as seen:
        for path in (item, "/api/books", "/api/books?per_page=5"):
            assert await status(client, path) == HIT
        assert seen == []
        # The account was read to check the token: it is what is shown.
        await client.get("/api/profile", headers=owner.headers)
        assert await status(client, f"/api/users/{owner.id}") == HIT
        assert seen == []
        await client.get("/api/profile?nocache=1", headers=owner.headers)
        assert len(seen) == 1
    await client.patch(item, json={"price": 3}, headers=owner.headers)
    with statements(site) as seen:
        assert await status(client, "/api/books") == MISS
        assert len(seen) == 2, "ids with their total, and the one book"
        assert "title" not in seen[0]
        assert await status(client, "/api/books?per_page=5") == MISS
        assert len(seen) == 3, "ids: the total is known"
        assert "count" not in seen[2]
        assert await status(client, item) == HIT


async def test_what_a_read_may_cost_of_redis(
    site: Site,
    client: httpx.AsyncClient,
    make: Factory,
    owner: Member,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The fast path and the ordinary one."""
    url = site.app.extensions["settings"].redis_url
    if url is None:
        pytest.skip("memory has no round trips")
    books = [await make.book(owner) for _ in range(20)]
    item = f"/api/books/{books[3].id}"
    redis: Any = Redis.from_url(url)

    async def commands(path: str) -> dict[str, int]:
        await redis.config_resetstat()
        assert await status(client, path) == HIT
        found = await redis.info("commandstats")
        return {
            name.removeprefix("cmdstat_"): one["calls"]
            for name, one in found.items()
            if name.startswith(("cmdstat_get", "cmdstat_mget", "cmdstat_eval"))
        }

    for path in (item, "/api/books"):
        await status(client, path)
    assert await commands(item) == {"mget": 1}
    assert await commands("/api/books") == {"mget": 1}
    monkeypatch.setattr(site.app.extensions["fast_path"], "look", lambda *args: False)
    assert await commands(item) == {"mget": 1}
    assert await commands("/api/books") == {"mget": 2}
    await redis.aclose()


async def test_who_asks_is_read_together_with_their_limit(
    site: Site, folder: Path, make: Factory, owner: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = await make.book(owner)
    url = site.app.extensions["settings"].redis_url
    if url is None:
        pytest.skip("memory has no round trips")
    sent: list[set[Any]] = []
    send = RedisConnection.send

    def note(line: RedisConnection, asked: Any, **more: Any) -> None:
        sent.append(set(asked))
        send(line, asked, **more)

    settings = settings_for(site.another_url, folder, redis_url=url)
    async with serving(settings) as served, patient_client(served) as client:
        paths = ("/api/profile", f"/api/books/{book.id}", "/api/books")
        for path in paths * 3:
            await client.get(path, headers=owner.headers)
        monkeypatch.setattr(RedisConnection, "send", note)
        for path in paths:
            sent.clear()
            assert (await client.get(path, headers=owner.headers)).status_code == 200
            assert sent == [{GET_MANY, DECIDING}], path


SPOILT: dict[str, Callable[[Prefetch], None]] = {
    "by another Redis": lambda prefetch: setattr(
        prefetch, "state", replace(prefetch.state, run_id="another")
    ),
    "in another epoch": lambda prefetch: setattr(
        prefetch, "state", replace(prefetch.state, token="over")
    ),
    "of another row": lambda prefetch: prefetch.receive(
        (prefetch.state.run_id, [Entry(b"1", b"made up").write(USERS.own_key(0))])
    ),
    "not yet": lambda prefetch: setattr(prefetch, "reply", None),
    "by an error": lambda prefetch: prefetch.receive(RedisError()),
}


@pytest.mark.parametrize("how", ["well", *SPOILT])
async def test_what_was_asked_for_beforehand_is_taken_if_it_still_holds(
    site: Site, client: httpx.AsyncClient, owner: Member, how: str
) -> None:
    cache = cache_of(site)
    true, _ = await cache.items.read(USERS, owner.id)
    if cache.access.under_way:  # it is filled behind the answer
        await asyncio.wait(set(cache.access.under_way))
    state = cache.access.enter()
    assert state is not None
    prefetch = cache.items.prefetch(USERS, owner.id)
    assert prefetch is not None
    while prefetch.reply is None:
        await asyncio.sleep(0.001)
    assert cache.items.take(prefetch, USERS, owner.id) == true
    false = Entry(true.stamp, b"made up")
    prefetch.receive((state.run_id, [false.write(USERS.own_key(owner.id))]))
    if how in SPOILT:
        SPOILT[how](prefetch)
    entry = cache.items.take(prefetch, USERS, owner.id)
    assert entry == (false if how == "well" else None)


async def test_clearing_takes_the_cache_alone(
    site: Site, client: httpx.AsyncClient, make: Factory, owner: Member
) -> None:
    admin, book = await make.admin(), await make.book(owner)
    path = f"/api/books/{book.id}"
    assert [await status(client, path) for _ in range(2)] == [MISS, HIT]
    assert (await client.post("/admin/clear-cache", headers=owner.headers)).status_code == 403
    answer = await client.post("/admin/clear-cache", headers=admin.headers)
    assert (answer.status_code, answer.json()) == (200, {"message": "Cache cleared"})
    assert [await status(client, path) for _ in range(2)] == [MISS, HIT]


async def test_one_cold_book_is_read_once_at_a_time(
    site: Site, folder: Path, make: Factory, owner: Member
) -> None:
    """Fifty readers in each of four workers (of one, where memory is the cache)."""
    book = await make.book(owner)
    url = site.database.url.render_as_string(hide_password=False)
    workers = 1 if site.database.url.get_backend_name() == "sqlite" else 4
    under_way, most, count = [0] * workers, [0] * workers, [0] * workers

    def watch(served: Site, n: int) -> None:
        service = cache_of(served).access.session

        @asynccontextmanager
        async def slow() -> AsyncIterator[Any]:
            under_way[n] += 1
            count[n] += 1
            most[n] = max(most[n], under_way[n])
            async with service() as db:
                await asyncio.sleep(0.02)
                yield db
            under_way[n] -= 1

        cache_of(served).access.session = slow
        cache_of(served).access.sampled = 0  # a sample is a reading as well

    async with asyncio.TaskGroup() as group, _several(site, url, folder, workers) as sites:
        for n, served in enumerate(sites):
            watch(served, n)
        clients = [httpx.AsyncClient(base_url=served.url) for served in sites]
        asked = [
            group.create_task(one.get(f"/api/books/{book.id}"))
            for one in clients
            for _ in range(50)
        ]
        answers = [await one for one in asked]
        for one in clients:
            await one.aclose()
    assert {answer.json()["version"] for answer in answers} == {1}
    assert most == [1] * workers
    assert sum(count) < 50 * workers / 4


@asynccontextmanager
async def _several(site: Site, url: str, folder: Path, workers: int) -> AsyncIterator[list[Site]]:
    if workers == 1:
        session = cache_of(site).access.session
        yield [site]
        cache_of(site).access.session = session
        cache_of(site).access.sampled = 0.001
        return
    async with (
        serving(settings_for(url, folder)) as a,
        serving(settings_for(url, folder)) as b,
        serving(settings_for(url, folder)) as c,
        serving(settings_for(url, folder)) as d,
    ):
        yield [a, b, c, d]


@pytest.mark.parametrize("keeping", ["none", "ttl"])
async def test_pages_may_be_kept_otherwise(
    site: Site, folder: Path, make: Factory, owner: Member, keeping: str
) -> None:
    """The guide's matrix: no pages at all, or pages for their life."""
    await make.book(owner)
    settings = settings_for(site.another_url, folder, cache_pages=keeping, cache_page_seconds=60)
    async with serving(settings) as served, patient_client(served) as client:
        first = [await status(client, "/api/books") for _ in range(2)]
        assert first == ([MISS, MISS] if keeping == "none" else [MISS, HIT])
        body = {"title": "New", "author": "A"}
        await client.post("/api/books", json=body, headers=owner.headers)
        answer = (await client.get("/api/books")).json()
        assert answer["total"] == 2, "exact in any case"
        assert len(answer["items"]) == (2 if keeping == "none" else 1)


async def test_nothing_is_kept_for_no_seconds(
    site: Site, folder: Path, make: Factory, owner: Member
) -> None:
    book = await make.book(owner)
    off = {"cache_item_seconds": 0, "cache_count_seconds": 0, "cache_pages": "none"}
    settings = settings_for(site.another_url, folder, **off)
    async with serving(settings) as served, patient_client(served) as client:
        for _ in range(2):
            assert await status(client, f"/api/books/{book.id}") == BYPASS
            assert await status(client, "/api/books") == MISS


async def test_a_row_that_comes_and_goes_during_a_sample_is_not_stale(
    site: Site, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, counted = cache_of(site), Counters()
    monkeypatch.setattr(cache.access, "counters", counted)
    assert (await client.get("/api/books/7000")).status_code == 404
    row = Entry(b"1", b"{}")
    for rows, stale in (([{7000: row}, {}], 0), ([{7000: row}, {7000: row}], 1)):
        kind = replace(BOOKS, load=AsyncMock(side_effect=rows))
        await cache.items._compare(kind, 7000, entries.NONE)
        assert counted.stale == stale


async def test_the_sampler_finds_what_is_stale(
    site: Site,
    client: httpx.AsyncClient,
    make: Factory,
    owner: Member,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache, counted = cache_of(site), Counters()  # those of the site never fall
    monkeypatch.setattr(cache.access, "counters", counted)
    monkeypatch.setattr(cache.access, "sampled", 1.0)
    monkeypatch.setattr(cache.access, "sampling_seconds", 0.0)
    book = await make.book(owner)
    path = f"/api/books/{book.id}"
    assert [await status(client, path) for _ in range(3)] == [MISS, HIT, HIT]
    for query in (f"user_id={owner.id}", f"user_id={owner.id}&limit=1", "limit=1&sort=title"):
        for expected in (MISS, HIT, HIT):
            assert await status(client, f"/api/books?{query}") == expected
    assert counted.stale == 0
    async with site.database.writer.begin() as connection:  # behind the cache's back
        await connection.exec_driver_sql(
            f"UPDATE books SET title = 'Other', version = 2 WHERE id = {book.id}"
        )
    assert await status(client, path) == HIT
    assert counted.stale == 1
    shelf = f"/api/users/{owner.id}/books"
    assert await status(client, shelf) == HIT
    assert counted.stale == 2, "its row was known"
    monkeypatch.setattr(cache.access, "sampling_seconds", 60.0)
    assert await status(client, shelf) == HIT
    assert counted.stale == 2, "it was compared just now"


@pytest.mark.parametrize("is_checked", [True, False])
async def test_another_releases_entry_is_not_taken(
    site: Site,
    client: httpx.AsyncClient,
    make: Factory,
    owner: Member,
    monkeypatch: pytest.MonkeyPatch,
    is_checked: bool,
) -> None:
    """Without the key in the entry it would be: then this test would fail."""
    book = await make.book(owner)
    cache, path = cache_of(site), f"/api/books/{book.id}"
    state = cache.lease.lease()
    assert state is not None
    key = f"{state.prefix}book:{book.id}"
    await cache.store.fill([(key, Entry(b"1", b'{"old": 1}').write(f"old:book:{book.id}"), 30.0)])
    if not is_checked:

        def read(found: bytes | None, key: str) -> Entry | None:
            return entries.read(found, (found or b"V\n\n").split(b"\n")[1].decode())

        monkeypatch.setattr(items, "read", read)
        assert (await client.get(path)).content == b'{"old": 1}'
        documented_violations.clear()
        return
    assert (await client.get(path)).json()["title"] == book.title
    assert await status(client, path) == HIT, "it was taken over"
