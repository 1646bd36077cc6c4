"""Idempotency-Key: a retry gets the first response, and exactly one write is done."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from quart import Quart
from sqlalchemy import event, insert, select, text, update
from sqlalchemy.util import await_only

from service.books import service as books
from service.errors import ConflictError
from service.http.auth import CurrentUser, token_required
from service.http.call import Call
from service.http.documentation import document_status
from service.http.operations import Reply, operation, validate_request
from service.http.schemas import Schema
from service.idempotency import Attempt, idempotent, writes
from service.idempotency.records import PRUNED, Claim, save
from service.models import Book, IdempotencyRecord
from tests.conftest import Site, patient_client, serving, settings_for, visiting
from tests.factories import Factory, Member
from tests.http_client import assert_problem, send_raw
from tests.test_group_commit import Patient, patient
from tests.test_metrics import read

__all__ = ["patient"]  # a fixture

BOOK = {"title": "Once", "author": "Änne", "price": 9.5}
TITLE = 'Quotes " and \\, \u2028, \x01 and 書 𝔘'
OF_EACH_REQUEST = {"date", "x-request-id"}
VISIBLE = "".join(map(chr, range(0x21, 0x7F)))


async def post(
    client: httpx.AsyncClient, member: Member, key: str, path: str = "/api/books", **fields: Any
) -> httpx.Response:
    """Create a book with a key."""
    headers = member.headers | {"Idempotency-Key": key}
    return await client.post(path, json={**BOOK, **fields}, headers=headers)


def lasting(response: httpx.Response) -> dict[str, str]:
    """Return the headers that an equal response has as well."""
    return {
        name: value
        for name, value in response.headers.items()
        if name not in OF_EACH_REQUEST and not name.startswith("ratelimit")
    }


def assert_replayed(replay: httpx.Response, first: httpx.Response) -> None:
    """Assert that a response is the replay of another one."""
    assert lasting(replay) == lasting(first) | {"idempotency-replayed": "true"}
    assert (replay.status_code, replay.content) == (first.status_code, first.content)


async def count(site: Site, model: Any = Book) -> int:
    """Count the rows of a table."""
    async with site.database.session() as db:
        return len((await db.execute(select(model.__table__))).all())


def expire(user_id: int) -> Any:
    """Return the statement by which the records of a user expire."""
    of_user = IdempotencyRecord.user_id == user_id
    return (
        update(IdempotencyRecord).where(of_user).values(expires_at=datetime(2020, 1, 1, tzinfo=UTC))
    )


@asynccontextmanager
async def held_commits(site: Site) -> AsyncIterator[tuple[asyncio.Event, asyncio.Event]]:
    """Hold each commit of an application. Give the events that a commit waits, and may go on."""
    waits, may_go_on = asyncio.Event(), asyncio.Event()
    engine = site.database.writer.sync_engine

    def hold(_: Any) -> None:
        waits.set()
        await_only(may_go_on.wait())

    event.listen(engine, "commit", hold)
    try:
        yield waits, may_go_on
    finally:
        may_go_on.set()
        event.remove(engine, "commit", hold)


async def test_a_retry_gets_the_first_response_byte_for_byte(
    site: Site, client: httpx.AsyncClient, make: Factory, folder: Path
) -> None:
    member = await make.member()
    first = await post(client, member, "k", title=TITLE)
    assert first.status_code == 201
    assert "Idempotency-Replayed" not in first.headers
    fields = {"title": TITLE}
    assert_replayed(await post(client, member, "k", **fields), first)
    # The record shows the first response, whatever becomes of the book.
    await client.patch(first.headers["Location"], json={"price": 1}, headers=member.headers)
    await client.delete(first.headers["Location"], headers=member.headers)
    assert_replayed(await post(client, member, "k", **fields), first)
    assert await count(site) == 0
    settings = settings_for(site.another_url, folder, fast_path=False)
    async with visiting(settings) as another_worker:
        replay = await post(another_worker, member, "k", **fields)
        assert_replayed(replay, first)


async def test_a_key_belongs_to_one_request_of_one_user(
    site: Site, client: httpx.AsyncClient, make: Factory
) -> None:
    member, other = await make.member(), await make.member()
    first = await post(client, member, "k")
    for fields in ({"title": "Another"}, {"genre": None}):
        response = await post(client, member, "k", **fields)
        assert_problem(response, 422, "Unprocessable Entity")
    headers = member.headers | {"Idempotency-Key": "k", "Content-Type": "application/json"}
    content = first.request.content + b" "
    spaced = await client.post("/api/books", content=content, headers=headers)
    assert spaced.status_code == 422
    by_other = await post(client, other, "k")
    assert (by_other.status_code, by_other.json()["user_id"]) == (201, other.id)
    assert (await post(client, member, "K")).json()["id"] != first.json()["id"]
    assert await count(site) == 3
    assert_replayed(await post(client, member, "k"), first)


@pytest.mark.parametrize("key", [VISIBLE, '"8e03978e"', "x" * 255, "1"])
async def test_keys_of_visible_characters_are_valid(
    client: httpx.AsyncClient, make: Factory, key: str
) -> None:
    member = await make.member()
    first = await post(client, member, key)
    assert first.status_code == 201
    assert_replayed(await post(client, member, key), first)


@pytest.mark.parametrize(
    "lines",
    [[b""], [b" "], [b"a b"], [b"a\tb"], ["é".encode()], [b"\xff"], [b"x" * 256], [b"a", b"a"]],
)
async def test_other_keys_are_refused(site: Site, make: Factory, lines: list[bytes]) -> None:
    member, body = await make.member(), b'{"title": "T", "author": "A"}'
    head = f"POST /api/books HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {member.token}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    keys = b"".join(b"Idempotency-Key: %b\r\n" % line for line in lines)
    status, _, answer = await send_raw(site, head.encode() + keys + b"\r\n" + body)
    assert status == 400
    assert b"Idempotency-Key" in answer
    assert await count(site) == 0


async def test_operations_without_the_declaration_ignore_the_header(
    client: httpx.AsyncClient, make: Factory
) -> None:
    member = await make.member()
    book = await make.book(member)
    headers = member.headers | {"Idempotency-Key": "k"}
    for price in (1, 2):
        response = await client.patch(
            f"/api/books/{book.id}", json={"price": price}, headers=headers
        )
        assert (response.status_code, response.json()["price"]) == (200, price)
    assert (await post(client, member, "k")).status_code == 201


async def test_a_retry_while_the_first_attempt_runs_is_409(patient: Patient) -> None:
    site, client, make = patient
    member, other = await make.member(), await make.member()
    async with held_commits(site) as (waits, may_go_on):
        first = asyncio.ensure_future(post(client, member, "k"))
        await waits.wait()
        for fields in ({}, {"title": "Another"}):
            retry = await post(client, member, "k", **fields)
            assert_problem(retry, 409, "Conflict")
            assert retry.headers["Retry-After"] == "1"
        others = [
            asyncio.ensure_future(post(client, m, k)) for m, k in ((other, "k"), (member, "l"))
        ]
        may_go_on.set()
        assert [response.status_code for response in await asyncio.gather(*others)] == [201] * 2
        assert_replayed(await post(client, member, "k"), await first)
    assert await count(site) == 3


async def test_a_retry_on_another_worker_is_409_and_delays_no_other_write(
    patient: Patient, folder: Path
) -> None:
    """The other worker finds the key locked: the insert would wait for the first attempt."""
    site, client, make = patient
    if site.database.writer.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer at a time: the other worker waits, then replays")
    member, others = await make.member(), [await make.member() for _ in range(5)]
    async with (
        serving(settings_for(site.another_url, folder)) as other_site,
        patient_client(other_site) as another_worker,
        held_commits(site) as (waits, may_go_on),
    ):
        first = asyncio.ensure_future(post(client, member, "k"))
        await waits.wait()
        for n in range(3):  # the first group does not look for records
            responses = await asyncio.gather(
                post(another_worker, member, "k"),
                *(post(another_worker, m, f"{n}") for m in others),
            )
            assert [r.status_code for r in responses] == [409] + [201] * len(others)
        may_go_on.set()
        await first
        assert_replayed(await post(another_worker, member, "k"), await first)
    assert await count(site) == 1 + 3 * len(others)


async def test_of_simultaneous_attempts_exactly_one_writes(
    site: Site, client: httpx.AsyncClient, make: Factory, folder: Path
) -> None:
    member = await make.member()
    sqlite = site.database.writer.dialect.name == "sqlite"
    async with (
        serving(settings_for(site.another_url, folder)) as other_site,
        patient_client(other_site) as another_worker,
    ):
        workers = [client] if sqlite else [client, another_worker]  # SQLite: a copy
        for n in range(4):
            responses = await asyncio.gather(
                *(post(worker, member, f"{n}") for _ in range(4) for worker in workers)
            )
            done = [response for response in responses if response.status_code == 201]
            assert {r.status_code for r in responses} <= {201, 409}
            assert len({response.content for response in done}) == 1
            assert sum("Idempotency-Replayed" not in response.headers for response in done) == 1
            assert await count(site) == n + 1


async def test_a_failed_attempt_is_not_kept(
    site: Site, client: httpx.AsyncClient, make: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = await make.member()
    create = books.create_books

    async def fail(*args: Any) -> Any:
        await create(*args)
        raise ValueError("a defect after the insert")

    assert (await post(client, member, "k", price=-1)).status_code == 400
    with monkeypatch.context() as patched:
        patched.setattr(books, "create_books", fail)
        assert (await post(client, member, "k")).status_code == 500
    assert (await count(site), await count(site, IdempotencyRecord)) == (0, 0)
    response = await post(client, member, "k")
    assert response.status_code == 201
    assert "Idempotency-Replayed" not in response.headers
    assert await count(site) == 1


async def test_retries_in_a_group_do_not_roll_back_its_other_writes(
    site: Site, client: httpx.AsyncClient, make: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first conflict, groups look for records before they write."""
    monkeypatch.setattr(writes, "CAREFUL_SECONDS", 600.0)
    member = await make.member()
    first = [await post(client, member, f"old-{n}") for n in range(5)]
    rollbacks: list[None] = []
    engine = site.database.writer.sync_engine

    def note(_: Any) -> None:
        rollbacks.append(None)

    async def send_all(name: str) -> list[httpx.Response]:
        """Send new creates, with and without keys, between retries."""
        requests = []
        for n in range(5):
            requests.append(post(client, member, f"{name}{n}"))
            requests.append(post(client, member, f"old-{n}"))
            requests.append(client.post("/api/books", json=BOOK, headers=member.headers))
        return await asyncio.gather(*requests)

    for name in ("a", "b"):
        event.listen(engine, "rollback", note)
        try:
            responses = await send_all(name)
        finally:
            event.remove(engine, "rollback", note)
        assert {response.status_code for response in responses} == {201}
        for replay, original in zip(responses[1::3], first, strict=True):
            assert_replayed(replay, original)
        assert len({response.json()["id"] for response in responses}) == 15
        if name == "a":
            rollbacks.clear()
    assert not rollbacks
    assert await count(site) == 5 + 2 * 10


async def test_two_attempts_in_one_group_are_a_conflict(site: Site, make: Factory) -> None:
    """If the first attempt was cancelled, its write may wait in the same group as the retry."""
    member = await make.member()
    first, other = Claim(member.id, "k", "a"), Claim(member.id, "l", "a")
    replies = {n: (claim, Reply(b"{}", 201)) for n, claim in enumerate((first, other, first))}
    assert await site.database.write(lambda db: save(db, replies, 60)) == {2}
    assert await site.database.write(lambda db: save(db, replies, 60)) == {0, 1, 2}


async def test_an_expired_key_can_be_used_again(
    site: Site, client: httpx.AsyncClient, make: Factory
) -> None:
    member = await make.member()
    await post(client, member, "k")
    async with site.database.session() as db:
        (row,) = (await db.execute(select(IdempotencyRecord.__table__))).all()
    left = row.expires_at - datetime.now(UTC)
    assert timedelta(hours=23) < left < timedelta(hours=25)
    for title in ("Second", "Third"):  # the first of them does not look for records
        async with site.database.writer.begin() as connection:
            await connection.execute(expire(member.id))
        response = await post(client, member, "k", title=title)
        assert (response.status_code, response.json()["title"]) == (201, title)
        assert_replayed(await post(client, member, "k", title=title), response)
    assert await count(site, IdempotencyRecord) == 1
    assert await count(site) == 3


async def test_expired_records_are_pruned_without_waiting(
    site: Site, make: Factory, folder: Path
) -> None:
    """A new process prunes with its first record."""
    member, other = await make.member(), await make.member()
    async with serving(settings_for(site.another_url, folder)) as own_site:
        row = {"user_id": other.id, "fingerprint": "", "status": 201, "headers": "{}"}
        row |= {"is_tagged": False, "body": "{}", "expires_at": datetime(2020, 1, 1, tzinfo=UTC)}
        async with own_site.database.writer.begin() as connection:
            rows = [row | {"key": f"{n}"} for n in range(PRUNED + 5)]
            await connection.execute(insert(IdempotencyRecord), rows)
            await connection.execute(insert(IdempotencyRecord), [
                row | {"key": "valid", "expires_at": datetime(2100, 1, 1, tzinfo=UTC)}
            ])  # fmt: skip
        async with patient_client(own_site) as client, own_site.database.reader.connect() as locker:
            if locker.dialect.name == "postgresql":
                await locker.execution_options(isolation_level="READ COMMITTED")
                await locker.execute(text("SELECT 1 FROM idempotency_records LIMIT 3 FOR UPDATE"))
            assert (await post(client, member, "k")).status_code == 201
            assert await count(own_site, IdempotencyRecord) == 5 + 2
        async with own_site.database.session() as db:
            keys = set((await db.execute(select(IdempotencyRecord.key))).scalars())
        assert {"valid", "k"} <= keys


async def test_records_are_deleted_with_their_user(
    site: Site, client: httpx.AsyncClient, make: Factory
) -> None:
    admin, member = await make.admin(), await make.member()
    await post(client, member, "k")
    response = await client.delete(f"/admin/users/{member.id}", headers=admin.headers)
    assert response.status_code == 204
    assert await count(site, IdempotencyRecord) == 0


async def test_a_replay_needs_a_valid_token_and_is_charged(site: Site, folder: Path) -> None:
    settings = settings_for(site.another_url, folder, ratelimit_default="3 per hour")
    async with serving(settings) as limited, patient_client(limited) as client:
        make = Factory(limited.app)
        member, other = await make.member(), await make.member()
        statuses = [(await post(client, other, "k")).status_code for _ in range(4)]
        assert statuses == [201, 201, 201, 429]
        assert (await post(client, member, "k")).status_code == 201
        await client.post("/api/auth/logout", headers=member.headers)
        assert (await post(client, member, "k")).status_code == 401


async def test_requests_with_keys_are_counted_by_outcome(
    client: httpx.AsyncClient, make: Factory
) -> None:
    member = await make.member()
    before = await read(client)
    for fields in ({}, {}, {}, {"title": "Another"}):
        await post(client, member, "k", **fields)
    await client.post("/api/books", json=BOOK, headers=member.headers)
    after = await read(client)
    name = "octavo_idempotency_total"
    grown = {o: after(name, outcome=o) - before(name, outcome=o) for o in writes.OUTCOMES}
    assert grown == {"recorded": 1, "replayed": 2, "reused": 1, "in_flight": 0}


class Titles(Schema):
    """The body of a request that writes several books."""

    titles: list[str]


def add_routes(app: Quart) -> None:
    """Add operations that write in a transaction of their own."""

    @app.post("/api/shelves")
    @operation
    @document_status(207)
    @token_required
    @idempotent
    @validate_request(Titles)
    async def fill(call: Call, data: Titles, current_user: CurrentUser, attempt: Attempt) -> Reply:
        async def work(db: Any) -> list[int]:
            rows = [
                Book(title=title, author="A", **Book.derived(title, "A")) for title in data.titles
            ]
            db.add_all(rows)
            await db.flush()
            if "taken" in data.titles:
                raise ConflictError("There is such a title")
            return [row.id for row in rows]

        return await attempt.write(work, lambda ids: Reply(b"%a" % ids, 207, {"X-Kind": "shelf"}))

    @app.post("/api/nothing")
    @operation
    @document_status(204)
    @token_required
    @idempotent
    async def nothing(call: Call, current_user: CurrentUser, attempt: Attempt) -> Reply:
        async def work(db: Any) -> None:
            db.add(Book(title="Nothing", author="A", **Book.derived("Nothing", "A")))

        return await attempt.write(work, lambda _: Reply(status=204))


async def test_any_write_can_record_its_reply(site: Site, make: Factory, folder: Path) -> None:
    member = await make.member()
    async with (
        serving(settings_for(site.another_url, folder), add_routes) as own_site,
        patient_client(own_site) as client,
    ):

        async def fill(key: str | None, *titles: str, path: str = "/api/shelves") -> Any:
            headers = member.headers | ({"Idempotency-Key": key} if key else {})
            return await client.post(path, json={"titles": titles}, headers=headers)

        assert (await fill("k", "x", "taken")).status_code == 409
        first = await fill("k", "a", "b")
        assert (first.status_code, first.headers["X-Kind"]) == (207, "shelf")
        assert_replayed(await fill("k", "a", "b"), first)
        assert (await fill("k", "b", "a")).status_code == 422
        assert (await fill("k", "a", "b", path="/api/nothing")).status_code == 422
        assert await count(own_site) == 2
        none = await fill("n", path="/api/nothing")
        assert none.status_code == 204
        assert_replayed(await fill("n", path="/api/nothing"), none)
        assert await count(own_site) == 3
        both = await asyncio.gather(fill("m", "c"), fill("m", "c"))
        assert 207 in {response.status_code for response in both} <= {207, 409}
        assert len([await fill(None, "d") for _ in range(2)]) == 2
        assert await count(own_site) == 6
