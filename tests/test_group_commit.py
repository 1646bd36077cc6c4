"""Group commit: many are written with few transactions, and none of them can tell."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import httpx
import pytest
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from service.books import service
from service.books.service import book_values
from service.db.group_commit import MOST, SLOW_SECONDS, UNDER_WAY, GroupCommit, RetryAloneError
from service.models import User
from tests.conftest import Site
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


class Bench:
    """Stands in for a database: notes each transaction, and lets it wait or fail."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.may_end = asyncio.Event()
        self.refused: set[int] = set()
        self.error: DBAPIError | None = None  # of the database, once there are several
        self.commit = GroupCommit[int, str](self.begin, self.together)

    def begin(self, work: Any) -> asyncio.Task[Any]:
        """Begin a transaction."""
        return asyncio.create_task(work(None))

    async def occupy(self) -> list[asyncio.Task[str]]:
        """Begin as many transactions as may be under way, of one each."""
        asked = []
        for n in range(UNDER_WAY):
            asked.append(asyncio.create_task(self.commit.write(n)))
            await asyncio.sleep(0.01)
        assert self.groups == [[n] for n in range(UNDER_WAY)]
        return asked

    async def together(self, _: Any, some: Sequence[int], apart: bool) -> list[str]:
        """Write some numbers as text."""
        self.groups.append(list(some))
        await self.may_end.wait()
        if self.error is not None and (len(some) > 1 or apart):
            raise self.error
        if refused := {place for place, one in enumerate(some) if one in self.refused}:
            raise LookupError(some[0]) if apart else RetryAloneError(refused)
        return [str(one) for one in some]


async def post(client: httpx.AsyncClient, member: Member, title: str, **fields: Any) -> Any:
    """Create a book; give the answer."""
    body = {"title": title, "author": "Ä. Author", **fields}
    return await client.post("/api/books", json=body, headers=member.headers)


@asynccontextmanager
async def commits(site: Site) -> AsyncIterator[list[None]]:
    """Note each commit of the application's writes."""
    seen: list[None] = []
    engine = site.database.writer.sync_engine

    def note(_: Any) -> None:
        seen.append(None)

    event.listen(engine, "commit", note)
    yield seen
    event.remove(engine, "commit", note)


async def test_each_gets_its_own_book_as_if_it_had_come_alone(
    site: Site, client: httpx.AsyncClient, make: Factory
) -> None:
    members = [await make.member() for _ in range(3)]
    wanted = [
        (members[n % 3], title, fields)
        for n, (title, fields) in enumerate((t, f) for t in TITLES for f in FIELDS)
    ]
    alone = [(await post(client, who, title, **fields)).json() for who, title, fields in wanted]
    async with commits(site) as seen:
        answers = await asyncio.gather(
            *(post(client, who, title, **fields) for who, title, fields in wanted)
        )
    assert len(seen) < len(wanted) / 2
    made = [answer.json() for answer in answers]
    assert {answer.status_code for answer in answers} == {201}
    own = ("id", "created_at", "updated_at")
    for (who, title, fields), one, other in zip(wanted, alone, made, strict=True):
        assert {**one, **{name: other[name] for name in own}} == other
        assert {**other, "title": title, "user_id": who.id, **fields} == other
    assert len({book["id"] for book in made}) == len(made)
    for answer, book in zip(answers, made, strict=True):
        got = await client.get(answer.headers["Location"])
        assert got.json() == book
        assert got.headers["ETag"] == answer.headers["ETag"]
    found = (await client.get("/api/books?q=éclair&per_page=100")).json()
    assert found["total"] == 2 * len(FIELDS)  # the words that are searched came along as well


async def test_one_who_may_not_any_more_is_refused_alone(
    site: Site, client: httpx.AsyncClient, make: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard lets all of them in; before they are written, one has signed out."""
    gone, busy = await make.member(), await make.member()
    others = [await make.member() for _ in range(8)]
    locked, come, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()
    asking = [busy] * UNDER_WAY + [*others, gone, gone]
    number = 0
    write = GroupCommit.write

    async def count(self: Any, one: Any) -> Any:
        nonlocal number
        number += 1
        if number == len(asking):
            come.set()
        return await write(self, one)

    async def sign_out(db: Any) -> None:
        for member in (gone, busy):
            row = await db.get(User, member.id, with_for_update=True)
            row.token_version += member is gone
        await db.flush()
        locked.set()
        await go_on.wait()

    monkeypatch.setattr(GroupCommit, "write", count)
    signing_out = asyncio.ensure_future(site.database.write(sign_out))
    await locked.wait()
    asked = [asyncio.ensure_future(post(client, who, f"Of {who.id}")) for who in asking]
    await come.wait()
    go_on.set()
    await signing_out
    answers = await asyncio.gather(*asked)
    assert [answer.status_code for answer in answers] == [201] * (UNDER_WAY + 8) + [401] * 2
    for who, answer in zip(asking[:-2], answers, strict=False):
        assert answer.json()["user_id"] == who.id
    assert (await client.get("/api/books")).json()["total"] == UNDER_WAY + 8


async def test_who_is_being_changed_holds_up_nobody_else(
    site: Site, client: httpx.AsyncClient, make: Factory
) -> None:
    if site.database.writer.dialect.name == "sqlite":
        pytest.skip("one writes at a time")
    locked, others = await make.member(), [await make.member() for _ in range(5)]
    held, go_on = asyncio.Event(), asyncio.Event()

    async def change(db: Any) -> None:
        await db.get(User, locked.id, with_for_update=True)
        held.set()
        await go_on.wait()

    changing = asyncio.ensure_future(site.database.write(change))
    await held.wait()
    waiting = [asyncio.ensure_future(post(client, locked, f"Waits {n}")) for n in range(3)]
    async with asyncio.timeout(10 * SLOW_SECONDS):
        for _ in range(3):
            answers = await asyncio.gather(*(post(client, who, "Goes on") for who in others))
            assert [answer.status_code for answer in answers] == [201] * len(others)
    assert not any(one.done() for one in waiting)
    go_on.set()
    await changing
    assert [answer.status_code for answer in await asyncio.gather(*waiting)] == [201] * 3


async def test_a_value_that_the_database_refuses_is_nobody_elses_fault(
    site: Site, client: httpx.AsyncClient, make: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = await make.member()

    def spoil(owner_id: int, data: Any) -> dict[str, Any]:
        found: dict[str, Any] = book_values(owner_id, data)
        return found | ({"published_year": 1} if data.title == "Bad" else {})

    monkeypatch.setattr(service, "book_values", spoil)
    titles = [*(f"Good {n}" for n in range(10)), "Bad", *(f"Good {n}" for n in range(10, 20))]
    answers = await asyncio.gather(*(post(client, owner, title) for title in titles))
    assert {a.status_code for a, title in zip(answers, titles, strict=True) if title != "Bad"} == {
        201
    }
    assert answers[10].status_code == 400
    assert (await client.get("/api/books")).json()["total"] == 20


async def test_who_comes_while_others_are_written_goes_into_the_next_transaction() -> None:
    bench = Bench()
    asked = await bench.occupy()
    asked += [asyncio.create_task(bench.commit.write(n)) for n in range(UNDER_WAY, 2 * MOST)]
    await asyncio.sleep(0.01)
    assert len(bench.groups) == UNDER_WAY
    bench.may_end.set()
    assert await asyncio.gather(*asked) == [str(n) for n in range(2 * MOST)]
    assert bench.groups[UNDER_WAY] == list(range(UNDER_WAY, UNDER_WAY + MOST))
    assert all(one[-1] + 1 == other[0] for one, other in pairwise(bench.groups))


async def test_who_comes_in_one_tick_goes_into_one_transaction() -> None:
    bench = Bench()
    bench.may_end.set()
    asked = [asyncio.create_task(bench.commit.write(n)) for n in range(MOST + 3)]
    assert await asyncio.gather(*asked) == [str(n) for n in range(MOST + 3)]
    assert bench.groups == [list(range(MOST)), list(range(MOST, MOST + 3))]


async def test_those_who_wait_for_a_lock_do_not_hold_up_the_others_for_long() -> None:
    bench = Bench()
    stuck = await bench.occupy()
    waited, bench.may_end = bench.may_end, asyncio.Event()
    bench.may_end.set()
    async with asyncio.timeout(30 * SLOW_SECONDS):
        told = await asyncio.gather(bench.commit.write(7), bench.commit.write(8))
    assert list(told) == ["7", "8"]
    assert bench.groups[UNDER_WAY:] == [[7, 8]]
    waited.set()
    await asyncio.gather(*stuck)


async def test_what_cannot_be_written_together_is_written_apart() -> None:
    bench = Bench()
    bench.may_end.set()
    bench.refused = {5, 9}
    asked = [bench.commit.write(n) for n in range(12)]
    told = await asyncio.gather(*asked, return_exceptions=True)
    assert [*map(type, told)] == [LookupError if n in {5, 9} else str for n in range(12)]
    alone, others = [[5], [9]], [n for n in range(12) if n not in bench.refused]
    assert sorted(bench.groups[1:]) == sorted([*alone, others])
    assert await bench.commit.write(12) == "12"  # nothing is left under way


@pytest.mark.parametrize(
    ("state", "is_lost", "is_told_at_once"),
    [("57014", False, True), ("57P01", True, False), ("23514", False, False)],
    ids=["took too long", "lost", "refused"],
)
async def test_an_error_that_each_would_have_is_told_to_all_at_once(
    state: str, is_lost: bool, is_told_at_once: bool
) -> None:
    """A second wait of as long would come too late; a connection that broke is no wait."""
    bench, driver = Bench(), Exception()
    vars(driver)["sqlstate"] = state
    bench.error = DBAPIError("INSERT", {}, driver, connection_invalidated=is_lost)
    bench.may_end.set()
    asked = [bench.commit.write(n) for n in range(4)]
    told = await asyncio.gather(*asked, return_exceptions=True)
    assert told == [bench.error] * 4
    assert len(bench.groups) == (1 if is_told_at_once else 5)


async def test_who_goes_away_takes_nobody_along() -> None:
    bench = Bench()
    asked = await bench.occupy()
    asked += [asyncio.create_task(bench.commit.write(UNDER_WAY + n)) for n in range(3)]
    await asyncio.sleep(0.01)
    asked[0].cancel()
    asked[UNDER_WAY].cancel()
    bench.may_end.set()
    told = await asyncio.gather(*asked, return_exceptions=True)
    gone = {0, UNDER_WAY}
    assert [isinstance(one, asyncio.CancelledError) for one in told] == [
        n in gone for n in range(len(asked))
    ]
    assert sorted(n for group in bench.groups for n in group) == list(range(len(asked)))
