"""Group commit: concurrent writes share transactions, and each has the result of a single write."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from service.books import service
from service.books.service import book_values
from service.db import engines, group_commit
from service.db.group_commit import MAX_GROUP_SIZE, MAX_TRANSACTIONS, GroupCommit, RetryAloneError
from service.models import User
from tests.conftest import Site, patient_client, serving, settings_for
from tests.factories import Factory, Member

TITLES = [
    "Quotes \" and ' and \\",
    "Line\nbreak,\ttab, \u0001 and \u007f",
    "Éclair 書 𝔘 \u2028 \ufeff \uffff",
    '{"n": 0, "title": "not mine"}',
    "null",
    "two  spaces",
    "%s $1 :given ?",
    "9" * 200,
]
FIELDS: list[dict[str, Any]] = [
    {},
    {"price": 0},
    {"price": 0.1, "genre": "History"},
    {"price": 99_999_999.99, "published_year": 2100},
    {"price": 10.50, "isbn": "9780306406157", "published_year": 1000, "genre": "Non-Fiction"},
]


class FakeDatabase:
    """Stands in for a database: records each transaction, and lets it wait or fail.

    error: what each transaction raises, if it has several items or runs `alone`.
    """

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.may_end = asyncio.Event()
        self.refused: set[int] = set()
        self.error: DBAPIError | None = None
        self.commit = GroupCommit[int, str](self.begin, self.write_group)

    def begin(self, work: Any) -> asyncio.Task[Any]:
        """Begin a transaction."""
        return asyncio.create_task(work(None))

    async def occupy(self) -> list[asyncio.Task[str]]:
        """Begin as many transactions of one item as may be under way."""
        writes = []
        for n in range(MAX_TRANSACTIONS):
            writes.append(asyncio.create_task(self.commit.write(n)))
            await self.has_groups(n + 1)
        assert self.groups == [[n] for n in range(MAX_TRANSACTIONS)]
        return writes

    async def has_groups(self, number: int) -> None:
        """Wait until so many transactions have begun."""
        async with asyncio.timeout(30):
            while len(self.groups) < number:
                await asyncio.sleep(0)

    async def write_group(self, _: Any, numbers: Sequence[int], alone: bool) -> list[str]:
        """Write numbers as text."""
        self.groups.append(list(numbers))
        await self.may_end.wait()
        if self.error is not None and (len(numbers) > 1 or alone):
            raise self.error
        if refused := {place for place, n in enumerate(numbers) if n in self.refused}:
            raise LookupError(numbers[0]) if alone else RetryAloneError(refused)
        return [str(n) for n in numbers]


async def post(client: httpx.AsyncClient, member: Member, title: str, **fields: Any) -> Any:
    """Create a book."""
    body = {"title": title, "author": "Ä. Author", **fields}
    return await client.post("/api/books", json=body, headers=member.headers)


@asynccontextmanager
async def commits(site: Site) -> AsyncIterator[list[None]]:
    """Record each commit of the application's writes."""
    recorded: list[None] = []
    engine = site.database.writer.sync_engine

    def record(_: Any) -> None:
        recorded.append(None)

    event.listen(engine, "commit", record)
    try:
        yield recorded
    finally:
        event.remove(engine, "commit", record)


async def test_a_batched_request_has_the_response_of_a_single_request(
    site: Site, client: httpx.AsyncClient, make: Factory
) -> None:
    members = [await make.member() for _ in range(3)]
    requests = [
        (members[n % 3], title, fields)
        for n, (title, fields) in enumerate((t, f) for t in TITLES for f in FIELDS)
    ]
    alone = [
        (await post(client, member, title, **fields)).json() for member, title, fields in requests
    ]
    async with commits(site) as recorded:
        responses = await asyncio.gather(
            *(post(client, member, title, **fields) for member, title, fields in requests)
        )
    assert len(recorded) < len(requests) / 2
    batched = [response.json() for response in responses]
    assert {response.status_code for response in responses} == {201}
    own = ("id", "created_at", "updated_at")
    for (member, title, fields), single, book in zip(requests, alone, batched, strict=True):
        assert {**single, **{name: book[name] for name in own}} == book
        assert {**book, "title": title, "user_id": member.id, **fields} == book
    assert len({book["id"] for book in batched}) == len(batched)
    for response, book in zip(responses, batched, strict=True):
        shown = await client.get(response.headers["Location"])
        assert shown.json() == book
        assert shown.headers["ETag"] == response.headers["ETag"]
    page = (await client.get("/api/books?q=éclair&per_page=100")).json()
    assert page["total"] == 2 * len(FIELDS)  # the search index has them as well


Patient = tuple[Site, httpx.AsyncClient, Factory]


@pytest.fixture
async def patient(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Patient]:
    """An application whose transactions may wait for locks as long as a slow machine needs."""
    for limit in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
        monkeypatch.setitem(engines.SESSION, limit, "60000")
    monkeypatch.setattr(
        engines, "TRANSACTION_LIMIT", engines.TRANSACTION_LIMIT.replace("10000", "60000")
    )
    monkeypatch.setattr(engines, "SILENCE_SECONDS", 60.0)
    async with (
        serving(settings_for(site.another_url, folder)) as patient_site,
        patient_client(patient_site) as client,
    ):
        yield patient_site, client, Factory(patient_site.app)


async def test_a_user_who_signs_out_meanwhile_is_refused_alone(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All requests are authorised; before they are written, one user has signed out."""
    site, client, make = patient
    gone, busy = await make.member(), await make.member()
    others = [await make.member() for _ in range(8)]
    locked, arrived, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()
    senders = [busy] * MAX_TRANSACTIONS + [*others, gone, gone]
    number = 0
    write = GroupCommit.write

    async def count(self: Any, item: Any) -> Any:
        nonlocal number
        number += 1
        if number == len(senders):
            arrived.set()
        return await write(self, item)

    async def sign_out(db: Any) -> None:
        for member in (gone, busy):
            row = await db.get(User, member.id, with_for_update=True)
            row.token_version += member is gone
        await db.flush()
        locked.set()
        await go_on.wait()

    monkeypatch.setattr(GroupCommit, "write", count)
    signing_out = asyncio.ensure_future(site.database.write(sign_out))
    try:
        await locked.wait()
        posts = [asyncio.ensure_future(post(client, m, f"Of {m.id}")) for m in senders]
        await arrived.wait()
    finally:
        go_on.set()
    await signing_out
    responses = await asyncio.gather(*posts)
    statuses = [response.status_code for response in responses]
    assert statuses == [201] * (MAX_TRANSACTIONS + 8) + [401] * 2
    for member, response in zip(senders[:-2], responses, strict=False):
        assert response.json()["user_id"] == member.id
    assert (await client.get("/api/books")).json()["total"] == MAX_TRANSACTIONS + 8


async def test_a_locked_user_delays_no_other_user(patient: Patient) -> None:
    site, client, make = patient
    if site.database.writer.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    locked, others = await make.member(), [await make.member() for _ in range(5)]
    held, go_on = asyncio.Event(), asyncio.Event()

    async def change(db: Any) -> None:
        await db.get(User, locked.id, with_for_update=True)
        held.set()
        await go_on.wait()

    changing = asyncio.ensure_future(site.database.write(change))
    try:
        await held.wait()
        waiting = [asyncio.ensure_future(post(client, locked, f"Waits {n}")) for n in range(3)]
        for _ in range(3):
            responses = await asyncio.gather(*(post(client, m, "Goes on") for m in others))
            assert [response.status_code for response in responses] == [201] * len(others)
        assert not any(request.done() for request in waiting)
    finally:
        go_on.set()
    await changing
    assert [response.status_code for response in await asyncio.gather(*waiting)] == [201] * 3


async def test_a_value_that_the_database_refuses_fails_its_request_alone(
    site: Site, client: httpx.AsyncClient, make: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = await make.member()

    def spoil(owner_id: int, data: Any) -> dict[str, Any]:
        values: dict[str, Any] = book_values(owner_id, data)
        return values | ({"published_year": 1} if data.title == "Bad" else {})

    monkeypatch.setattr(service, "book_values", spoil)
    titles = [*(f"Good {n}" for n in range(10)), "Bad", *(f"Good {n}" for n in range(10, 20))]
    responses = await asyncio.gather(*(post(client, owner, title) for title in titles))
    assert {
        a.status_code for a, title in zip(responses, titles, strict=True) if title != "Bad"
    } == {201}
    assert responses[10].status_code == 400
    assert (await client.get("/api/books")).json()["total"] == 20


async def test_items_that_arrive_during_a_transaction_share_the_next_transaction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(group_commit, "SLOW_SECONDS", 60.0)  # no further transaction begins
    database = FakeDatabase()
    writes = await database.occupy()
    writes += [
        asyncio.create_task(database.commit.write(n))
        for n in range(MAX_TRANSACTIONS, 2 * MAX_GROUP_SIZE)
    ]
    await next_ticks()
    assert len(database.groups) == MAX_TRANSACTIONS
    database.may_end.set()
    assert await asyncio.gather(*writes) == [str(n) for n in range(2 * MAX_GROUP_SIZE)]
    assert database.groups[MAX_TRANSACTIONS] == list(
        range(MAX_TRANSACTIONS, MAX_TRANSACTIONS + MAX_GROUP_SIZE)
    )
    assert all(group[-1] + 1 == following[0] for group, following in pairwise(database.groups))


async def next_ticks() -> None:
    """Let every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_items_of_one_tick_share_a_transaction() -> None:
    database = FakeDatabase()
    database.may_end.set()
    writes = [asyncio.create_task(database.commit.write(n)) for n in range(MAX_GROUP_SIZE + 3)]
    assert await asyncio.gather(*writes) == [str(n) for n in range(MAX_GROUP_SIZE + 3)]
    assert database.groups == [
        list(range(MAX_GROUP_SIZE)),
        list(range(MAX_GROUP_SIZE, MAX_GROUP_SIZE + 3)),
    ]


async def test_a_further_transaction_begins_if_those_under_way_are_slow() -> None:
    database = FakeDatabase()
    slow = await database.occupy()
    slow_may_end, database.may_end = database.may_end, asyncio.Event()
    database.may_end.set()
    try:
        async with asyncio.timeout(30):
            results = await asyncio.gather(database.commit.write(7), database.commit.write(8))
        assert list(results) == ["7", "8"]
        assert not any(write.done() for write in slow)
        assert database.groups[MAX_TRANSACTIONS:] == [[7, 8]]
    finally:
        slow_may_end.set()
    await asyncio.gather(*slow)


async def test_items_that_cannot_be_written_together_are_written_apart() -> None:
    database = FakeDatabase()
    database.may_end.set()
    database.refused = {5, 9}
    writes = [database.commit.write(n) for n in range(12)]
    results = await asyncio.gather(*writes, return_exceptions=True)
    assert [*map(type, results)] == [LookupError if n in {5, 9} else str for n in range(12)]
    alone, others = [[5], [9]], [n for n in range(12) if n not in database.refused]
    assert sorted(database.groups[1:]) == sorted([*alone, others])
    assert await database.commit.write(12) == "12"  # no transaction is left under way


@pytest.mark.parametrize(
    ("state", "is_lost", "is_shared"),
    [("57014", False, True), ("57P01", True, False), ("23514", False, False)],
    ids=["took too long", "lost", "refused"],
)
async def test_an_error_of_the_whole_group_is_not_retried_item_by_item(
    state: str, is_lost: bool, is_shared: bool
) -> None:
    """After a timeout a second wait would be too late; after a lost connection it is not."""
    database, driver = FakeDatabase(), Exception()
    vars(driver)["sqlstate"] = state
    database.error = DBAPIError("INSERT", {}, driver, connection_invalidated=is_lost)
    database.may_end.set()
    writes = [database.commit.write(n) for n in range(4)]
    results = await asyncio.gather(*writes, return_exceptions=True)
    assert results == [database.error] * 4
    assert len(database.groups) == (1 if is_shared else 5)


async def test_a_cancelled_caller_cancels_no_other_write() -> None:
    database = FakeDatabase()
    writes = await database.occupy()
    writes += [asyncio.create_task(database.commit.write(MAX_TRANSACTIONS + n)) for n in range(3)]
    await next_ticks()
    writes[0].cancel()
    writes[MAX_TRANSACTIONS].cancel()
    database.may_end.set()
    results = await asyncio.gather(*writes, return_exceptions=True)
    cancelled = {0, MAX_TRANSACTIONS}
    assert [isinstance(result, asyncio.CancelledError) for result in results] == [
        n in cancelled for n in range(len(writes))
    ]
    assert sorted(n for group in database.groups for n in group) == list(range(len(writes)))
