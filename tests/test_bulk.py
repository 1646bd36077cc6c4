"""Bulk writes and batch reads of books over HTTP: results, rights, atomicity, order and sizes."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import event

from service.cache import Cache
from service.http.bulk import MAX_ITEMS
from tests.conftest import REAL, Site, settings_for, visiting
from tests.factories import Factory, Member
from tests.http_client import assert_problem

BULK, BATCH = "/api/books/bulk", "/api/books/batch-get"
REQUIRED = "Missing data for required field."
NULL_TITLE = {"status": 400, "errors": {"title": ["Field may not be null."]}}


def book(number: int, **fields: Any) -> dict[str, Any]:
    """Give the fields of a new book."""
    return {"title": f"Volume {number}", "author": "Somebody", **fields}


async def send(
    client: httpx.AsyncClient, method: str, member: Member, items: Any, query: str = ""
) -> httpx.Response:
    """Send a bulk request."""
    return await client.request(
        method, f"{BULK}{query}", json={"items": items}, headers=member.headers
    )


@contextmanager
def statements(site: Site) -> Iterator[list[str]]:
    """Note the statements on books that the application executes, by their first word."""
    noted: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        if re.search(r"\bbooks\b", statement) and "book_views" not in statement:
            noted.append(statement.split(maxsplit=1)[0])

    engines = {engine.pool: engine for engine in (site.database.reader, site.database.writer)}
    for engine in engines.values():
        event.listen(engine.sync_engine, "before_cursor_execute", note)
    try:
        yield noted
    finally:
        for engine in engines.values():
            event.remove(engine.sync_engine, "before_cursor_execute", note)


async def test_each_item_is_created_or_refused_alone(
    site: Site, client: httpx.AsyncClient, make: Factory
) -> None:
    owner = await make.member()
    items: list[Any] = [
        book(0, price=9.95, isbn="978-0-441-47812-5"), book(1, title=None), book(2), "no book",
        book(4, shelf=1, genre="Poetry"), book(5, published_year=1997.0), {},
        book(7, title="A, [b]"),
    ]  # fmt: skip
    with statements(site) as noted:
        response = await send(client, "POST", owner, items)
    assert noted == ["INSERT"]
    assert response.status_code == 207
    assert response.headers["Cache-Control"] == "no-store"
    results = response.json()["results"]
    assert [result["index"] for result in results] == list(range(8))
    assert [result["status"] for result in results] == [201, 400, 201, 400, 400, 201, 400, 201]
    assert results[1] == {"index": 1, **NULL_TITLE}
    assert results[3]["errors"] == {"_schema": ["Not a valid object."]}
    assert set(results[4]["errors"]) == {"shelf", "genre"}
    assert set(results[6]["errors"]) == {"title", "author"}
    for index in (0, 2, 5, 7):
        assert set(results[index]) == {"index", "status", "id", "version"}
        shown = (await client.get(f"/api/books/{results[index]['id']}")).json()
        assert (shown["title"], shown["user_id"]) == (items[index]["title"], owner.id)
        assert shown["version"] == results[index]["version"] == 1
    ids = [result["id"] for result in results if result["status"] == 201]
    assert ids == sorted(ids), "ids grow in the order of the items"
    assert (await client.get("/api/books")).json()["total"] == 4
    assert (await client.get("/api/books", params={"q": "a b"})).json()["total"] == 1


async def test_an_atomic_request_has_all_effects_or_none(
    client: httpx.AsyncClient, make: Factory
) -> None:
    owner, other = await make.member(), await make.member()
    strange = await make.book(other)
    refused = await send(client, "POST", owner, [book(0), book(1, title=None), 7], "?atomic=true")
    assert_problem(refused, 400, "Validation Error")
    assert refused.json()["errors"] == {
        "items.1.title": ["Field may not be null."],
        "items.2": ["Not a valid object."],
    }
    assert (await client.get("/api/books")).json()["total"] == 1
    created = await send(client, "POST", owner, [book(0), book(1)], "?atomic=true")
    assert created.status_code == 201
    first, second = (result["id"] for result in created.json()["results"])
    for method, fields in (("PATCH", {"price": 3}), ("DELETE", {})):
        items = [
            {"id": first, "version": 1, **fields},
            {"id": second, "version": 2, **fields},
            {"id": strange.id, **fields},
            {"id": 999_999, **fields},
        ]
        refused = await send(client, method, owner, items, "?atomic=true")
        assert_problem(refused, 400, "Validation Error")
        assert refused.json()["errors"] == {
            "items.1.version": ["The book has version 1"],
            "items.2": ["Only the owner of a book or an administrator may change it"],
            "items.3": ["Book with id 999999 not found"],
        }
        for book_id in (first, second, strange.id):
            shown = (await client.get(f"/api/books/{book_id}")).json()
            assert (shown["version"], shown["price"]) == (1, None)
    changed = await send(
        client, "PATCH", owner, [{"id": first, "price": 3}, {"id": second, "price": 4}],
        "?atomic=true",
    )  # fmt: skip
    assert changed.status_code == 200
    assert [result["version"] for result in changed.json()["results"]] == [2, 2]
    deleted = await send(client, "DELETE", owner, [{"id": first}, {"id": second}], "?atomic=true")
    assert deleted.status_code == 200
    assert (await client.get("/api/books")).json()["total"] == 1


async def test_each_book_is_changed_as_by_its_own_request(
    site: Site, client: httpx.AsyncClient, make: Factory
) -> None:
    owner, other = await make.member(), await make.member()
    books = [await make.book(owner, title=f"Title {n}", price=n, genre="Science") for n in range(6)]
    strange = await make.book(other)
    ids = [row.id for row in books]
    items: list[Any] = [
        {"id": ids[5], "title": "Emma", "price": None},
        {"id": ids[0], "price": 0},  # equal
        {"id": strange.id, "price": 1},
        {"id": ids[1], "version": 1, "genre": "History"},
        {"id": ids[2], "version": 7, "genre": "History"},
        {"id": 999_999, "price": 1},
        {"id": ids[5], "price": 2},
        {"id": ids[3]},
        {"price": 1},
        {"id": ids[4], "version": None, "author": None},
    ]
    with statements(site) as noted:
        response = await send(client, "PATCH", owner, items)
    assert noted == ["SELECT", "UPDATE"]
    results = response.json()["results"]
    assert response.status_code == 207
    assert [result["status"] for result in results] == [
        200, 200, 403, 200, 412, 404, 400, 200, 400, 400,
    ]  # fmt: skip
    assert [results[n].get("version") for n in (0, 1, 3, 7)] == [2, 1, 2, 1]
    assert results[2]["errors"] == {
        "_schema": ["Only the owner of a book or an administrator may change it"]
    }
    assert results[4]["errors"] == {"version": ["The book has version 1"]}
    assert results[5]["errors"] == {"_schema": ["Book with id 999999 not found"]}
    assert results[6]["errors"] == {"id": ["Given more than once."]}
    assert results[8]["errors"] == {"id": ["Missing data for required field."]}
    assert results[9]["errors"] == {
        "version": ["Field may not be null."],
        "author": ["Field may not be null."],
    }
    shown = [(await client.get(f"/api/books/{book_id}")).json() for book_id in ids]
    assert [(each["version"], each["price"], each["genre"]) for each in shown] == [
        (1, 0, "Science"), (2, 1, "History"), (1, 2, "Science"),
        (1, 3, "Science"), (1, 4, "Science"), (2, None, "Science"),
    ]  # fmt: skip
    assert (shown[5]["title"], shown[5]["author"]) == ("Emma", "Somebody")
    assert shown[5]["updated_at"] > shown[5]["created_at"]
    for query, number in (("q=emma", 1), ("q=title+5", 0), ("q=title+1", 1), ("genre=History", 1)):
        assert (await client.get(f"/api/books?{query}")).json()["total"] == number, query
    admin = await make.admin()
    by_admin = await send(client, "PATCH", admin, [{"id": row.id, "price": 5} for row in books])
    assert {result["status"] for result in by_admin.json()["results"]} == {200}


async def test_each_book_is_deleted_as_by_its_own_request(
    site: Site, client: httpx.AsyncClient, make: Factory
) -> None:
    owner, other = await make.member(), await make.member()
    books = [await make.book(owner) for _ in range(4)]
    strange = await make.book(other)
    first, second, third, fourth = (row.id for row in books)
    for book_id in (first, second, third, fourth):
        assert (await client.get(f"/api/books/{book_id}")).status_code == 200
    items = [
        {"id": second},
        {"id": first, "version": 1},
        {"id": third, "version": 2},
        {"id": strange.id},
        {"id": 999_999},
        {"id": second},
        {"id": fourth, "price": 1},
    ]
    with statements(site) as noted:
        response = await send(client, "DELETE", owner, items)
    assert noted == ["SELECT", "DELETE"]
    assert response.status_code == 207
    results = response.json()["results"]
    assert [result["status"] for result in results] == [204, 204, 412, 403, 404, 400, 400]
    assert results[0] == {"index": 0, "status": 204, "id": second, "version": 1}
    statuses = [
        (await client.get(f"/api/books/{book_id}")).status_code
        for book_id in (first, second, third, fourth, strange.id)
    ]
    assert statuses == [404, 404, 200, 200, 200], "no cached entry outlives its row"
    assert (await client.get("/api/books")).json()["total"] == 3


async def test_a_request_without_effect_changes_nothing(
    client: httpx.AsyncClient, make: Factory
) -> None:
    owner = await make.member()
    row = await make.book(owner, price=3)
    for method, items in (
        ("POST", [book(0, title=None)]),
        ("PATCH", [{"id": row.id, "price": 3}, {"id": 999_999, "price": 1}]),
        ("DELETE", [{"id": 999_999}, {"id": row.id, "version": 9}]),
    ):
        response = await send(client, method, owner, items)
        assert response.status_code == 207
    assert (await client.get(f"/api/books/{row.id}")).json()["version"] == 1
    assert (await client.get("/api/books")).json()["total"] == 1


async def test_the_largest_bulk_request_is_written_as_a_whole(
    site: Site, client: httpx.AsyncClient, make: Factory
) -> None:
    """Its body is larger than any other request may be, and its titles hold punctuation."""
    owner = await make.member()
    title = 'Commas, "quotes", [brackets] \\ {braces}, ' * 4
    items = [
        book(n, title=f"{title} {n}", isbn="9780441478125", published_year=1969, genre="Fiction",
             price=9.95)
        for n in range(MAX_ITEMS)
    ]  # fmt: skip
    assert len(json.dumps(items)) > site.app.extensions["settings"].max_body_bytes
    cache: Cache = site.app.extensions["cache"]
    before = cache.counters.epoch_changes
    created = await send(client, "POST", owner, items)
    assert created.status_code == 207, created.text
    results = created.json()["results"]
    assert {result["status"] for result in results} == {201}
    changes = [{**item, "id": result["id"], "version": 1, "price": 7}
               for item, result in zip(items, results, strict=True)]  # fmt: skip
    changed = await send(client, "PATCH", owner, changes)
    assert {result["version"] for result in changed.json()["results"]} == {2}
    batch = await client.post(BATCH, json={"ids": [result["id"] for result in results]})
    assert [each["title"] for each in batch.json()["items"]] == [item["title"] for item in items]
    assert {each["price"] for each in batch.json()["items"]} == {7}
    refs = [{"id": result["id"]} for result in results]
    deleted = await send(client, "DELETE", owner, refs)
    assert {result["status"] for result in deleted.json()["results"]} == {204}
    assert (await client.get("/api/books")).json()["total"] == 0
    assert cache.counters.epoch_changes == before, "the cache stays on"


@pytest.mark.parametrize(
    ("body", "errors"),
    [
        ({}, {"items": ["Missing data for required field."]}),
        ({"items": []}, {"items": ["Shorter than minimum length 1."]}),
        (
            {"items": [{}] * (MAX_ITEMS + 1)},
            {"items": [f"Longer than maximum length {MAX_ITEMS}."]},
        ),
        ({"items": {}}, {"items": ["Not a valid list."]}),
        ({"items": None}, {"items": ["Field may not be null."]}),
        ({"items": [{}], "atomic": True}, {"atomic": ["Unknown field."]}),
    ],
)
async def test_an_invalid_envelope_is_refused(
    client: httpx.AsyncClient, make: Factory, body: Any, errors: Any
) -> None:
    owner = await make.member()
    for method in ("POST", "PATCH", "DELETE"):
        response = await client.request(method, BULK, json=body, headers=owner.headers)
        assert_problem(response, 400, "Validation Error")
        assert response.json()["errors"] == errors


async def test_bulk_routes_refuse_strange_requests_as_all_routes_do(
    client: httpx.AsyncClient, make: Factory
) -> None:
    owner = await make.member()
    for path, methods in ((BULK, {"DELETE", "OPTIONS", "PATCH", "POST"}),
                          (BATCH, {"OPTIONS", "POST"})):  # fmt: skip
        response = await client.get(path)
        assert_problem(response, 405, "Method Not Allowed")
        assert set(response.headers["Allow"].split(", ")) == methods
    for query in ("?atomic=1", "?atomic=True", "?atomic=", "?x=1"):
        response = await send(client, "POST", owner, [book(0)], query)
        assert_problem(response, 400, "Validation Error")
    for method in ("POST", "PATCH", "DELETE"):
        response = await client.request(method, BULK, json={"items": [{"id": 1}]})
        assert_problem(response, 401, "Token is missing")
        response = await client.request(
            method, BULK, content=b'{"items":[{"id":1}]}', headers=owner.headers
        )
        assert_problem(response, 415, "Unsupported Media Type")


async def test_a_wrong_check_digit_refuses_an_item_if_the_setting_is_strict(
    site: Site, make: Factory, folder: Path
) -> None:
    owner = await make.member()
    row = await make.book(owner)
    strict = settings_for(site.another_url, folder, isbn_checksum="strict")
    async with visiting(strict) as client:
        wrong, right = {"isbn": "9780441478126"}, {"isbn": "9780441478125"}
        for method, base in (("POST", book(0)), ("PATCH", {"id": row.id})):
            response = await send(client, method, owner, [base | wrong, base | right])
            refused, accepted = response.json()["results"]
            assert refused["errors"] == {"isbn": ["The check digit is wrong."]}
            assert accepted["status"] in {200, 201}


async def test_each_item_needs_a_version_if_the_setting_requires_it(
    site: Site, make: Factory, folder: Path
) -> None:
    owner = await make.member()
    row = await make.book(owner)
    strict = settings_for(site.another_url, folder, require_if_match=True)
    async with visiting(strict) as client:
        for method, fields in (("PATCH", {"price": 1}), ("DELETE", {})):
            response = await send(client, method, owner, [{"id": row.id, **fields}])
            assert response.json()["results"] == [
                {"index": 0, "status": 428, "errors": {"version": [REQUIRED]}}
            ]
            response = await send(client, method, owner, [{"id": row.id + 1, **fields}])
            assert response.json()["results"][0]["status"] == 404
        response = await send(client, "DELETE", owner, [{"id": row.id, "version": 1}])
        assert response.json()["results"][0]["status"] == 204


async def test_a_repeated_key_replays_the_results(
    site: Site, client: httpx.AsyncClient, make: Factory
) -> None:
    owner = await make.member()
    headers = {**owner.headers, "Idempotency-Key": "bulk"}
    items = [book(0), {"title": None, "author": "Somebody"}, book(1)]
    first, again = [
        await client.post(BULK, json={"items": items}, headers=headers) for _ in range(2)
    ]
    assert [result["status"] for result in first.json()["results"]] == [201, 400, 201]
    assert (again.status_code, again.content) == (207, first.content)
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    assert (await client.get("/api/books")).json()["total"] == 2
    other = await client.post(BULK, json={"items": items[:1]}, headers=headers)
    assert_problem(other, 422, "Unprocessable Entity")


async def test_only_bulk_writes_may_have_large_bodies(
    site: Site, make: Factory, folder: Path
) -> None:
    owner = await make.member()
    settings = settings_for(
        site.another_url, folder, max_body_bytes=2_000, max_bulk_body_bytes=20_000
    )
    async with visiting(settings) as client:

        async def status(method: str, path: str, size: int, *, chunked: bool) -> int:
            data = b'{"items":[]}' + b" " * (size - len(b'{"items":[]}'))

            async def pieces() -> AsyncIterator[bytes]:
                yield data[: size // 2]
                yield data[size // 2 :]

            response = await client.request(
                method, path, content=pieces() if chunked else data,
                headers={**owner.headers, "Content-Type": "application/json"},
            )  # fmt: skip
            return response.status_code

        for chunked in (False, True):
            for method in ("POST", "PATCH", "DELETE"):
                assert await status(method, BULK, 20_000, chunked=chunked) == 400
                assert await status(method, BULK, 20_001, chunked=chunked) == 413
            for path in ("/api/books", BATCH):
                assert await status("POST", path, 2_000, chunked=chunked) == 400
                assert await status("POST", path, 2_001, chunked=chunked) == 413
        document = (await client.get("/openapi.json")).json()["paths"]
        sizes = [document[path]["post"]["requestBody"]["description"] for path in (BULK, BATCH)]
        assert sizes == ["at most 20000 bytes", "at most 2000 bytes"]


async def test_parallel_bulk_writes_of_the_same_books_neither_fail_nor_deadlock(
    client: httpx.AsyncClient, make: Factory
) -> None:
    owner = await make.member()
    ids = [(await make.book(owner)).id for _ in range(20)]

    async def change(number: int) -> None:
        order = ids if number % 2 else ids[::-1]
        items = [{"id": book_id, "price": number} for book_id in order]
        response = await send(client, "PATCH", owner, items)
        assert {result["status"] for result in response.json()["results"]} == {200}, response.text

    async def change_single(number: int) -> None:
        response = await client.patch(
            f"/api/books/{ids[number]}", json={"price": 100 + number}, headers=owner.headers
        )
        assert response.status_code == 200

    await asyncio.gather(*(change(n) for n in range(8)), *(change_single(n) for n in range(8)))
    batch = (await client.post(BATCH, json={"ids": ids})).json()["items"]
    assert [each["version"] for each in batch] == [10] * 8 + [9] * 12, "no update is lost"


async def test_of_parallel_writes_with_a_version_only_one_succeeds(
    client: httpx.AsyncClient, make: Factory
) -> None:
    owner = await make.member()
    ids = [(await make.book(owner)).id for _ in range(3)]
    responses = await asyncio.gather(*(
        send(client, "PATCH", owner, [{"id": n, "version": 1, "price": price} for n in ids])
        for price in range(8)
    ))  # fmt: skip
    statuses = [
        [result["status"] for result in response.json()["results"]] for response in responses
    ]
    assert sorted(statuses) == [[200] * 3, *([[412] * 3] * 7)]


async def test_a_batch_keeps_order_and_repeats_and_lists_what_is_missing(
    client: httpx.AsyncClient, make: Factory
) -> None:
    first, second = await make.book(), await make.book()
    ids = [second.id, 999_999, first.id, second.id, 0, 999_999]
    for status in ("fwd=miss", "hit"):
        response = await client.post(BATCH, json={"ids": ids})
        assert response.status_code == 200
        assert response.headers["Cache-Status"] == f"Octavo; {status}"
        assert response.headers["Cache-Control"] == "no-store"
        batch = response.json()
        assert [each["id"] for each in batch["items"]] == [second.id, first.id, second.id]
        assert batch["missing"] == [999_999, 0]
        assert batch["items"][1] == (await client.get(f"/api/books/{first.id}")).json()
    past = await client.post(f"{BATCH}?nocache=1", json={"ids": ids})
    assert past.headers["Cache-Status"] == "Octavo; fwd=bypass"
    assert past.json() == batch


async def test_a_batch_takes_one_statement_for_all_misses_and_none_when_warm(
    site: Site, client: httpx.AsyncClient, make: Factory
) -> None:
    """Warm, it takes one read of the store."""
    owner = await make.member()
    created = await send(client, "POST", owner, [book(n) for n in range(300)])
    ids = [result["id"] for result in created.json()["results"]]
    cache: Cache = site.app.extensions["cache"]
    reads = 0
    get_many = cache.store.get_many

    async def counted(keys: Any) -> Any:
        nonlocal reads
        reads += 1
        return await get_many(keys)

    for expected in (ids[:100], ids, ids, ids * 3 + [999_999] * 100):
        hits = cache.counters.hits
        with statements(site) as noted, pytest.MonkeyPatch.context() as patch:
            patch.setattr(cache.store, "get_many", counted)
            batch = (await client.post(BATCH, json={"ids": expected})).json()
        assert [each["id"] for each in batch["items"]] == [n for n in expected if n in ids]
        assert len(noted) <= 1
        assert reads == 1
        reads = 0
        counts = len(noted), cache.counters.hits - hits
    assert counts == (1, 300), "only the missing id is read from the database"
    warm = await client.post(BATCH, json={"ids": [*ids, 999_999]})
    assert warm.headers["Cache-Status"] == "Octavo; hit", "also that there is no such row"


async def test_a_batch_shows_every_write_that_was_answered(
    client: httpx.AsyncClient, make: Factory
) -> None:
    owner = await make.member()
    row = await make.book(owner)
    absent = row.id + 1
    ids = {"ids": [row.id, absent]}
    for price in range(3):
        await client.post(BATCH, json=ids)
        await send(client, "PATCH", owner, [{"id": row.id, "price": price + 1}])
        shown = (await client.post(BATCH, json=ids)).json()
        assert shown["items"][0]["price"] == price + 1
    assert shown["missing"] == [absent]
    await send(client, "POST", owner, [book(0)])
    assert (await client.post(BATCH, json=ids)).json()["missing"] == []
    await send(client, "DELETE", owner, [{"id": row.id}])
    assert (await client.post(BATCH, json=ids)).json()["missing"] == [row.id]


@pytest.mark.parametrize(
    ("ids", "errors"),
    [
        ([], {"ids": ["Shorter than minimum length 1."]}),
        ([1] * 1_001, {"ids": ["Longer than maximum length 1000."]}),
        ([1, "2", "3"], {"ids.1": ["Not a valid integer."]}),
        ([-1], {"ids.0": ["Must be greater than or equal to 0."]}),
        (None, {"ids": ["Field may not be null."]}),
    ],
)
async def test_invalid_ids_are_refused(client: httpx.AsyncClient, ids: Any, errors: Any) -> None:
    response = await client.post(BATCH, json={"ids": ids})
    assert_problem(response, 400, "Validation Error")
    assert response.json()["errors"] == errors


@asynccontextmanager
async def limited(site: Site, folder: Path, **rates: str) -> AsyncIterator[httpx.AsyncClient]:
    """Serve with other limits: in Redis beside PostgreSQL, else in memory."""
    is_real = site.database.url.get_backend_name() == "postgresql"
    storage = REAL["redis_url"] if is_real else "memory://"
    settings = settings_for(site.another_url, folder, ratelimit_storage_url=storage, **rates)
    async with visiting(settings) as client:
        yield client


async def test_a_request_costs_one_unit_for_each_hundred_items(
    site: Site, make: Factory, folder: Path
) -> None:
    owner = await make.member()
    async with limited(site, folder, ratelimit_default="12 per hour;50 per day") as client:

        async def remaining(number: int) -> list[str]:
            response = await client.post(BATCH, json={"ids": [1] * number}, headers=owner.headers)
            assert response.status_code == 200
            quotas = response.headers["RateLimit"].split(", ")
            assert response.headers["RateLimit-Remaining"] == quotas[0].split("=")[1].split(";")[0]
            return [quota.partition(";t=")[0] for quota in quotas]

        assert await remaining(100) == ['"hour";r=11', '"day";r=49']
        assert await remaining(101) == ['"hour";r=9', '"day";r=47']
        assert await remaining(500) == ['"hour";r=4', '"day";r=42']
        refused = await client.post(BATCH, json={"ids": [1] * 401}, headers=owner.headers)
        assert_problem(refused, 429, "Rate limit exceeded")
        assert refused.json()["message"] == "12 per 1 hour"
        assert 3_590 <= int(refused.headers["Retry-After"]) <= 3_600
        assert refused.headers["RateLimit-Remaining"] == "4", "it costs nothing"
        created = await send(client, "POST", owner, [book(n) for n in range(301)])
        assert created.status_code == 207
        assert created.headers["RateLimit-Remaining"] == "0"
        refused = await send(client, "POST", owner, [book(0)])
        assert_problem(refused, 429, "Rate limit exceeded")


async def test_a_request_that_no_window_admits_is_refused(
    site: Site, make: Factory, folder: Path
) -> None:
    owner = await make.member()
    async with limited(site, folder, ratelimit_default="100 per day;3 per hour") as client:
        response = await send(client, "DELETE", owner, [{"id": 1}] * 301)
        assert_problem(response, 400, "Validation Error")
        assert response.json()["errors"] == {
            "_schema": ["Costs 4 requests, and the limit is 3 per 1 hour: send less."]
        }
        assert response.headers["RateLimit-Remaining"] == "2", "as any invalid request"
        assert (await send(client, "DELETE", owner, [{"id": 1}] * 200)).status_code == 207
