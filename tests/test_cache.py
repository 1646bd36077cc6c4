"""The cache over HTTP: hits, misses, no stale reads, and the cost of reads."""

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
    """Note every statement of reads."""
    seen: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        seen.append(statement)

    engine, access = site.database.reader.sync_engine, cache_of(site).access
    sampled, access.sampled = access.sampled, 0  # a sample reads as well
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", note)
        access.sampled = sampled


def cache_of(site: Site) -> Cache:
    """Return the cache of an application."""
    cache: Cache = site.app.extensions["cache"]
    return cache


async def status(client: httpx.AsyncClient, path: str, **options: Any) -> str:
    """Send a GET, and return the Cache-Status of the response."""
    response = await client.get(path, **options)
    return response.headers["Cache-Status"]


@asynccontextmanager
async def another(site: Site, folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A second worker on the same database and Redis. With memory the only worker serves again."""
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
    """A user with books."""
    return await make.member()


async def test_cache_status_says_hit_miss_or_bypass(
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


async def test_responses_from_the_cache_equal_responses_past_it(
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
        cached, expected = warm.json(), past.json()
        for body in (cached, expected):
            if isinstance(body, dict):
                body.pop("links", None)  # they contain nocache
        assert cached == expected


async def test_the_total_is_exact_directly_after_a_write(
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


async def test_a_change_is_visible_in_every_worker_directly_after_the_write(
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
                books = (await there.get("/api/books", params={"genre": shelf})).json()["items"]
                assert [each["id"] for each in books] == ([book.id] if shelf == genre else [])
        await client.delete(path, headers=owner.headers)
        for reader in (client, other):
            assert (await reader.get(path)).status_code == 404
            assert (await reader.get("/api/books")).json()["total"] == 0


async def test_a_missing_book_is_cached_until_it_is_created(
    client: httpx.AsyncClient, make: Factory, owner: Member
) -> None:
    book = await make.book(owner)
    coming = f"/api/books/{book.id + 1}"
    assert [await status(client, coming) for _ in range(2)] == [MISS, HIT]
    await make.book(owner)
    assert (await client.get(coming)).status_code == 200


async def test_a_deleted_user_and_their_books_are_not_found(
    client: httpx.AsyncClient, make: Factory
) -> None:
    admin, gone = await make.admin(), await make.member()
    books = [await make.book(gone) for _ in range(3)]
    paths = ["/api/books", *(f"/api/books/{book.id}" for book in books)]
    for path in paths:
        await status(client, path)
    assert (await client.get("/api/profile", headers=gone.headers)).status_code == 200
    response = await client.delete(f"/admin/users/{gone.id}", headers=admin.headers)
    assert response.status_code == 204
    assert (await client.get("/api/books")).json()["total"] == 0
    for path in paths[1:]:
        assert (await client.get(path)).status_code == 404
    assert (await client.get("/api/profile", headers=gone.headers)).status_code == 401


async def test_a_changed_account_is_visible_directly_after_the_write(
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
            response = await here.patch(
                "/api/profile", json={"username": name}, headers=member.headers
            )
            assert response.status_code == 200
            shown = (await there.get("/api/profile", headers=member.headers)).json()
            past = await there.get("/api/profile?nocache=1", headers=member.headers)
            assert past.headers["Cache-Status"] == BYPASS
            assert shown == response.json() == past.json()
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


async def test_a_write_without_a_change_sets_no_mark(
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


async def test_a_read_sends_sql_only_for_changes(
    site: Site, client: httpx.AsyncClient, make: Factory, owner: Member
) -> None:
    """Without a change: no SQL. After a change of a book: a query of ids, and one of that book."""
    books = [await make.book(owner) for _ in range(20)]
    item = f"/api/books/{books[3].id}"
    for path in (item, "/api/books", "/api/books?per_page=5"):
        await status(client, path)
    await client.get("/api/profile", headers=owner.headers)
    with statements(site) as seen:
        for path in (item, "/api/books", "/api/books?per_page=5"):
            assert await status(client, path) == HIT
        assert seen == []
        # The account was read to check the token: the same entry is shown.
        await client.get("/api/profile", headers=owner.headers)
        assert await status(client, f"/api/users/{owner.id}") == HIT
        assert seen == []
        await client.get("/api/profile?nocache=1", headers=owner.headers)
        assert len(seen) == 1
    await client.patch(item, json={"price": 3}, headers=owner.headers)
    with statements(site) as seen:
        assert await status(client, "/api/books") == MISS
        assert len(seen) == 2, "ids with their total, and the changed book"
        assert "title" not in seen[0]
        assert await status(client, "/api/books?per_page=5") == MISS
        assert len(seen) == 3, "ids: the total is known"
        assert "count" not in seen[2]
        assert await status(client, item) == HIT


async def test_a_cached_read_sends_one_command_to_redis(
    site: Site,
    client: httpx.AsyncClient,
    make: Factory,
    owner: Member,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the fast path; on the ordinary path a list sends two."""
    url = site.app.extensions["settings"].redis_url
    if url is None:
        pytest.skip("memory has no round trips")
    books = [await make.book(owner) for _ in range(20)]
    item = f"/api/books/{books[3].id}"
    redis: Any

    async def commands(path: str) -> dict[str, int]:
        await redis.config_resetstat()
        assert await status(client, path) == HIT
        statistics = await redis.info("commandstats")
        return {
            name.removeprefix("cmdstat_"): values["calls"]
            for name, values in statistics.items()
            if name.startswith(("cmdstat_get", "cmdstat_mget", "cmdstat_eval"))
        }

    async with Redis.from_url(url) as redis:
        for path in (item, "/api/books"):
            await status(client, path)
        assert await commands(item) == {"mget": 1}
        assert await commands("/api/books") == {"mget": 1}
        monkeypatch.setattr(site.app.extensions["fast_path"], "lookup", lambda *args: False)
        assert await commands(item) == {"mget": 1}
        assert await commands("/api/books") == {"mget": 2}


async def test_the_account_of_a_request_is_read_together_with_its_limit(
    site: Site, folder: Path, make: Factory, owner: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = await make.book(owner)
    url = site.app.extensions["settings"].redis_url
    if url is None:
        pytest.skip("memory has no round trips")
    sent: list[set[Any]] = []
    send = RedisConnection.send

    def note(connection: RedisConnection, requests: Any, **options: Any) -> None:
        sent.append(set(requests))
        send(connection, requests, **options)

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


INVALID: dict[str, Callable[[Prefetch], None]] = {
    "from another Redis": lambda prefetch: setattr(
        prefetch, "state", replace(prefetch.state, run_id="another")
    ),
    "from another epoch": lambda prefetch: setattr(
        prefetch, "state", replace(prefetch.state, token="over")
    ),
    "of another row": lambda prefetch: prefetch.receive(
        (prefetch.state.run_id, [Entry(b"1", b"made up").write(USERS.own_key(0))])
    ),
    "without a reply": lambda prefetch: setattr(prefetch, "reply", None),
    "with an error": lambda prefetch: prefetch.receive(RedisError()),
}


@pytest.mark.parametrize("case", ["valid", *INVALID])
async def test_a_prefetched_entry_is_used_only_while_it_is_valid(
    site: Site, client: httpx.AsyncClient, owner: Member, case: str
) -> None:
    cache = cache_of(site)
    true, _ = await cache.items.read(USERS, owner.id)
    if cache.access.under_way:  # it is filled after the response
        await asyncio.wait(set(cache.access.under_way))
    state = cache.access.enter()
    assert state is not None
    prefetch = cache.items.prefetch(USERS, owner.id)
    assert prefetch is not None
    async with asyncio.timeout(30):
        while prefetch.reply is None:
            await asyncio.sleep(0.001)
    assert cache.items.take(prefetch, USERS, owner.id) == true
    false = Entry(true.stamp, b"made up")
    prefetch.receive((state.run_id, [false.write(USERS.own_key(owner.id))]))
    if case in INVALID:
        INVALID[case](prefetch)
    entry = cache.items.take(prefetch, USERS, owner.id)
    assert entry == (false if case == "valid" else None)


async def test_an_administrator_clears_the_cache(
    site: Site, client: httpx.AsyncClient, make: Factory, owner: Member
) -> None:
    admin, book = await make.admin(), await make.book(owner)
    path = f"/api/books/{book.id}"
    assert [await status(client, path) for _ in range(2)] == [MISS, HIT]
    assert (await client.post("/admin/clear-cache", headers=owner.headers)).status_code == 403
    response = await client.post("/admin/clear-cache", headers=admin.headers)
    assert (response.status_code, response.json()) == (200, {"message": "Cache cleared"})
    assert [await status(client, path) for _ in range(2)] == [MISS, HIT]


async def test_concurrent_readers_of_a_cold_book_share_its_reads(
    site: Site, folder: Path, make: Factory, owner: Member
) -> None:
    """Fifty readers in each of four workers. With the cache in memory there is one worker."""
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
            try:
                async with service() as db:
                    await asyncio.sleep(0.02)
                    yield db
            finally:
                under_way[n] -= 1

        cache_of(served).access.session = slow
        cache_of(served).access.sampled = 0  # a sample reads as well

    async with asyncio.TaskGroup() as group, _several(site, url, folder, workers) as sites:
        for n, served in enumerate(sites):
            watch(served, n)
        clients = [httpx.AsyncClient(base_url=served.url, timeout=60) for served in sites]
        try:
            requests = [
                group.create_task(client.get(f"/api/books/{book.id}"))
                for client in clients
                for _ in range(50)
            ]
            responses = [await request for request in requests]
        finally:
            for client in clients:
                await client.aclose()
    assert {response.json()["version"] for response in responses} == {1}
    assert most == [1] * workers
    assert sum(count) < 50 * workers / 4


@asynccontextmanager
async def _several(site: Site, url: str, folder: Path, workers: int) -> AsyncIterator[list[Site]]:
    if workers == 1:
        access = cache_of(site).access
        session, sampled = access.session, access.sampled
        try:
            yield [site]
        finally:
            access.session, access.sampled = session, sampled
        return
    async with (
        serving(settings_for(url, folder)) as a,
        serving(settings_for(url, folder)) as b,
        serving(settings_for(url, folder)) as c,
        serving(settings_for(url, folder)) as d,
    ):
        yield [a, b, c, d]


@pytest.mark.parametrize("keeping", ["none", "ttl"])
async def test_pages_are_kept_as_the_setting_says(
    site: Site, folder: Path, make: Factory, owner: Member, keeping: str
) -> None:
    """`none`: pages are not cached. `ttl`: they are cached for their seconds, also if stale."""
    await make.book(owner)
    settings = settings_for(site.another_url, folder, cache_pages=keeping, cache_page_seconds=60)
    async with serving(settings) as served, patient_client(served) as client:
        first = [await status(client, "/api/books") for _ in range(2)]
        assert first == ([MISS, MISS] if keeping == "none" else [MISS, HIT])
        body = {"title": "New", "author": "A"}
        await client.post("/api/books", json=body, headers=owner.headers)
        response = (await client.get("/api/books")).json()
        assert response["total"] == 2, "exact with each setting"
        assert len(response["items"]) == (2 if keeping == "none" else 1)


async def test_a_lifetime_of_zero_seconds_caches_nothing(
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
        await cache.items._compare(kind, 7000, entries.NONE)  # private: a sample is random
        assert counted.stale == stale


async def test_the_sampler_counts_stale_entries(
    site: Site,
    client: httpx.AsyncClient,
    make: Factory,
    owner: Member,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache, counted = cache_of(site), Counters()  # the counters of the site never fall
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
    async with site.database.writer.begin() as connection:  # a write that the cache does not see
        await connection.exec_driver_sql(
            f"UPDATE books SET title = 'Other', version = 2 WHERE id = {book.id}"
        )
    assert await status(client, path) == HIT
    assert counted.stale == 1
    shelf = f"/api/users/{owner.id}/books"
    assert await status(client, shelf) == HIT
    assert counted.stale == 2, "the stale row of the page was counted before"
    monkeypatch.setattr(cache.access, "sampling_seconds", 60.0)
    assert await status(client, shelf) == HIT
    assert counted.stale == 2, "it was compared just now"


@pytest.mark.parametrize("is_checked", [True, False])
async def test_an_entry_of_another_release_is_not_used(
    site: Site,
    client: httpx.AsyncClient,
    make: Factory,
    owner: Member,
    monkeypatch: pytest.MonkeyPatch,
    is_checked: bool,
) -> None:
    """Without the key in the entry it would be used: then this test would fail."""
    book = await make.book(owner)
    cache, path = cache_of(site), f"/api/books/{book.id}"
    state = cache.lease.lease()
    assert state is not None
    key = f"{state.prefix}book:{book.id}"
    await cache.store.fill([(key, Entry(b"1", b'{"old": 1}').write(f"old:book:{book.id}"), 30.0)])
    if not is_checked:

        def read(value: bytes | None, key: str) -> Entry | None:
            return entries.read(value, (value or b"V\n\n").split(b"\n")[1].decode())

        monkeypatch.setattr(items, "read", read)
        assert (await client.get(path)).content == b'{"old": 1}'
        documented_violations.clear()
        return
    assert (await client.get(path)).json()["title"] == book.title
    assert await status(client, path) == HIT, "the entry was replaced"
