"""Books over HTTP: validation, representation, authorisation and conditional requests."""

import asyncio
import json
import re
from decimal import Decimal
from pathlib import Path

import httpx
import pytest

from tests.conftest import Site, settings_for, visiting
from tests.factories import Factory

FULL = {
    "title": "The Left Hand of Darkness",
    "author": "Ursula K. Le Guin",
    "isbn": "978-0-441-47812-5",
    "published_year": 1969,
    "genre": "Fiction",
    "price": 9.95,
}


async def test_create_returns_the_whole_book(client: httpx.AsyncClient, make: Factory) -> None:
    owner = await make.member()
    response = await client.post("/api/books", json=FULL, headers=owner.headers)
    assert response.status_code == 201
    book = response.json()
    assert list(book) == [
        "id", "title", "author", "isbn", "published_year", "genre", "price", "user_id",
        "version", "created_at", "updated_at",
    ]  # fmt: skip
    assert book | {"isbn": "9780441478125"} == book
    assert (book["user_id"], book["version"], book["price"]) == (owner.id, 1, 9.95)
    assert book["created_at"] == book["updated_at"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", book["created_at"])
    assert response.headers["Location"] == f"{client.base_url}/api/books/{book['id']}"
    shown = await client.get(f"/api/books/{book['id']}")
    assert shown.json() == book
    assert shown.headers["ETag"] == response.headers["ETag"]


async def test_only_title_and_author_are_required(client: httpx.AsyncClient, make: Factory) -> None:
    owner = await make.member()
    response = await client.post(
        "/api/books", json={"title": " Emma ", "author": "Jane Austen"}, headers=owner.headers
    )
    assert response.status_code == 201
    book = response.json()
    assert book["title"] == "Emma"
    assert [book[k] for k in ("isbn", "published_year", "genre", "price")] == [None] * 4


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("title", None, "Field may not be null."),
        ("title", "   ", "Shorter than minimum length 1."),
        ("title", "\x1c\x1c", "Field may not be blank."),
        ("author", "\u200b", "Field may not be blank."),
        ("title", "x" * 201, "Longer than maximum length 200."),
        ("title", 7, "Not a valid string."),
        ("author", "x" * 101, "Longer than maximum length 100."),
        ("isbn", "123", "String does not match expected pattern: 10 or 13 digits."),
        ("isbn", "٠١٢٣٤٥٦٧٨٩", "String does not match expected pattern: 10 or 13 digits."),
        ("published_year", 999, "Must be greater than or equal to 1000."),
        ("published_year", 2101, "Must be less than or equal to 2100."),
        ("published_year", "1999", "Not a valid integer."),
        ("published_year", 1999.5, "Not a valid integer."),
        ("published_year", True, "Not a valid integer."),
        ("genre", "Poetry", "Must be one of: 'Fiction', 'Non-Fiction', 'Science' or 'History'."),
        ("price", "9.5", "Not a valid number."),
        ("price", True, "Not a valid number."),
        ("price", -0.01, "Must be greater than or equal to 0."),
        ("price", 1.999, "Must have at most 2 decimal places."),
        ("price", 100000000, "Must be less than or equal to 99999999.99."),
        ("shelf", 3, "Unknown field."),
        ("id", 3, "Unknown field."),
        ("user_id", 3, "Unknown field."),
        ("version", 3, "Unknown field."),
        ("created_at", "2020-01-01T00:00:00Z", "Unknown field."),
    ],
)
async def test_an_invalid_field_is_named(
    client: httpx.AsyncClient, make: Factory, field: str, value: object, sentence: str
) -> None:
    owner = await make.member()
    before = await client.post("/api/books", json=FULL, headers=owner.headers)
    for send, path in (
        (client.post, "/api/books"),
        (client.patch, before.headers["Location"]),
        (client.put, before.headers["Location"]),
    ):
        response = await send(path, json=FULL | {field: value}, headers=owner.headers)
        assert response.status_code == 400
        assert response.json()["error"] == "Validation Error"
        assert response.json()["messages"] == response.json()["errors"] == {field: [sentence]}
    assert (await client.get(before.headers["Location"])).json() == before.json()


async def test_missing_fields_are_all_named(client: httpx.AsyncClient, make: Factory) -> None:
    owner = await make.member()
    response = await client.post("/api/books", json={}, headers=owner.headers)
    missing = ["Missing data for required field."]
    assert response.json()["messages"] == {"title": missing, "author": missing}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("0-306-40615-2", "0306406152"),
        ("080442957x", "080442957X"),
        ("978 0 306 40615 7", "9780306406157"),
    ],
)
async def test_isbns_are_stored_without_separators(
    client: httpx.AsyncClient, make: Factory, given: str, kept: str
) -> None:
    owner = await make.member()
    response = await client.post("/api/books", json=FULL | {"isbn": given}, headers=owner.headers)
    assert response.json()["isbn"] == kept
    page = await client.get("/api/books", params={"isbn": given})
    assert [book["isbn"] for book in page.json()["items"]] == [kept]


async def test_a_wrong_check_digit_is_refused_if_the_setting_is_strict(
    site: Site, client: httpx.AsyncClient, make: Factory, folder: Path
) -> None:
    owner = await make.member()
    wrong = FULL | {"isbn": "9780441478126"}
    kept = await client.post("/api/books", json=wrong, headers=owner.headers)
    assert kept.status_code == 201
    strict = settings_for(site.another_url, folder, isbn_checksum="strict")
    async with visiting(strict) as strict_client:
        path = f"/api/books/{kept.json()['id']}"
        for response in (
            await strict_client.post("/api/books", json=wrong, headers=owner.headers),
            await strict_client.patch(path, json={"isbn": "080442957"}, headers=owner.headers),
            await strict_client.patch(path, json={"isbn": "0804429570"}, headers=owner.headers),
        ):
            assert response.status_code == 400
            assert list(response.json()["messages"]) == ["isbn"]
        for isbn in ("9780441478125", "080442957X", None):
            response = await strict_client.patch(path, json={"isbn": isbn}, headers=owner.headers)
            assert (response.status_code, response.json()["isbn"]) == (200, isbn)


@pytest.mark.parametrize("price", ["0", "0.1", "0.01", "19.99", "99999999.99", "4503599.63", "-0"])
async def test_prices_are_exact(client: httpx.AsyncClient, make: Factory, price: str) -> None:
    owner = await make.member()
    body = json.dumps({"title": "T", "author": "A"})[:-1] + f', "price": {price}}}'
    response = await client.post(
        "/api/books",
        content=body,
        headers={**owner.headers, "Content-Type": "application/json"},
    )
    assert response.status_code == 201
    shown = json.loads((await client.get(response.headers["Location"])).text, parse_float=Decimal)
    assert Decimal(shown["price"]) == abs(Decimal(price))


async def test_an_update_keeps_absent_fields_and_clears_null_fields(
    client: httpx.AsyncClient, make: Factory
) -> None:
    owner = await make.member()
    before = (await client.post("/api/books", json=FULL, headers=owner.headers)).json()
    path = f"/api/books/{before['id']}"
    for send in (client.put, client.patch):
        response = await send(path, json={"price": None, "title": "New"}, headers=owner.headers)
        assert response.status_code == 200
    after = response.json()
    assert after["version"] == 2
    assert after["updated_at"] >= before["updated_at"]
    changed = {"price": None, "title": "New", "version": 2, "updated_at": after["updated_at"]}
    assert after == before | changed
    assert (await client.get(path)).json() == after


async def test_an_update_without_a_change_keeps_version_and_etag(
    client: httpx.AsyncClient, make: Factory
) -> None:
    owner = await make.member()
    made = await client.post("/api/books", json=FULL, headers=owner.headers)
    padded = {"price": 9.950, "title": f" {FULL['title']} "}
    same: list[dict[str, object]] = [{}, {"price": 9.95}, FULL, padded]
    for body in same:
        response = await client.put(made.headers["Location"], json=body, headers=owner.headers)
        assert response.status_code == 200
        assert response.json() == made.json()
        assert response.headers["ETag"] == made.headers["ETag"]


async def test_each_update_raises_the_version_and_changes_the_etag(
    client: httpx.AsyncClient, make: Factory
) -> None:
    owner = await make.member()
    made = await client.post("/api/books", json=FULL, headers=owner.headers)
    tags = {made.headers["ETag"]}
    for version, price in enumerate((1, 2, 1, 9.95), 2):
        response = await client.patch(
            made.headers["Location"], json={"price": price}, headers=owner.headers
        )
        assert response.json()["version"] == version
        tags.add(response.headers["ETag"])
    assert len(tags) == 5


async def test_a_deleted_book_is_gone_and_its_id_is_never_used_again(
    client: httpx.AsyncClient, make: Factory
) -> None:
    owner = await make.member()
    ids = []
    for _ in range(3):
        made = await client.post("/api/books", json=FULL, headers=owner.headers)
        ids.append(made.json()["id"])
        gone = await client.delete(made.headers["Location"], headers=owner.headers)
        assert gone.status_code == 204
        assert gone.content == b""
        assert "Content-Type" not in gone.headers
    assert len(set(ids)) == 3
    for method in ("GET", "PUT", "PATCH", "DELETE"):
        body: dict[str, str] | None = {} if method in {"PUT", "PATCH"} else None
        response = await client.request(
            method, f"/api/books/{ids[-1]}", json=body, headers=owner.headers
        )
        assert response.status_code == 404
        assert response.json()["message"] == f"Book with id {ids[-1]} not found"


async def test_only_its_owner_and_administrators_may_change_a_book(
    client: httpx.AsyncClient, make: Factory
) -> None:
    owner, other, admin = await make.member(), await make.member(), await make.admin()
    book = await make.book(owner)
    path = f"/api/books/{book.id}"
    for send in (client.put, client.patch):
        refused = await send(path, json={"title": "Mine"}, headers=other.headers)
        assert refused.status_code == 403
        assert refused.json()["error"] == "Forbidden"
    assert (await client.delete(path, headers=other.headers)).status_code == 403
    assert (await client.get(path)).json()["title"] == book.title
    changed = await client.patch(path, json={"title": "Corrected"}, headers=admin.headers)
    assert (changed.status_code, changed.json()["user_id"]) == (200, owner.id)
    assert (await client.delete(path, headers=owner.headers)).status_code == 204


async def test_only_administrators_may_change_a_book_without_owner(
    client: httpx.AsyncClient, make: Factory
) -> None:
    member, admin = await make.member(), await make.admin()
    book = await make.book()
    path = f"/api/books/{book.id}"
    assert (await client.get(path)).json()["user_id"] is None
    assert (await client.delete(path, headers=member.headers)).status_code == 403
    assert (await client.delete(path, headers=admin.headers)).status_code == 204


async def test_a_matching_if_none_match_is_a_304(client: httpx.AsyncClient, make: Factory) -> None:
    owner = await make.member()
    book = await make.book(owner)
    for path in (
        "/api/books?limit=5",
        f"/api/users/{owner.id}",
        f"/api/users/{owner.id}/books",
        "/api/books",
        f"/api/books/{book.id}",
    ):
        fresh = await client.get(path)
        tag = fresh.headers["ETag"]
        assert tag.startswith('"')
        assert fresh.headers["Cache-Control"] == "no-cache"
        for given in (tag, f'"x", {tag}', f"W/{tag}", "*"):
            for send in (client.get, client.head):
                response = await send(path, headers={"If-None-Match": given})
                assert response.status_code == 304
                assert response.content == b""
                assert response.headers["ETag"] == tag
                assert response.headers["Vary"] == fresh.headers["Vary"]
        assert (await client.get(path, headers={"If-None-Match": '"x"'})).status_code == 200
    await client.patch(f"/api/books/{book.id}", json={"price": 3}, headers=owner.headers)
    changed = await client.get(f"/api/books/{book.id}", headers={"If-None-Match": tag})
    assert changed.status_code == 200


async def test_head_is_get_without_the_body(client: httpx.AsyncClient, make: Factory) -> None:
    book = await make.book()
    for path in (f"/api/books/{book.id}", "/api/books"):
        full, head = await client.get(path), await client.head(path)
        assert head.status_code == 200
        assert head.content == b""
        for name in ("Content-Type", "Content-Length", "ETag", "Vary", "Cache-Control"):
            assert head.headers[name] == full.headers[name]


async def test_concurrent_changes_are_all_kept(client: httpx.AsyncClient, make: Factory) -> None:
    owner = await make.member()
    book = await make.book(owner)
    responses = await asyncio.gather(
        *(
            client.patch(f"/api/books/{book.id}", json={"price": number}, headers=owner.headers)
            for number in range(1, 21)
        )
    )
    assert {response.status_code for response in responses} == {200}
    assert sorted(response.json()["version"] for response in responses) == list(range(2, 22))


async def test_the_books_of_a_user_are_an_array_with_a_total_in_a_header(
    client: httpx.AsyncClient, make: Factory
) -> None:
    owner = await make.member()
    books = [await make.book(owner) for _ in range(3)]
    await make.book(await make.member())
    response = await client.get(f"/api/users/{owner.id}/books", params={"per_page": 2})
    assert [book["id"] for book in response.json()] == [books[2].id, books[1].id]
    assert response.headers["X-Total-Count"] == "3"
    assert response.links["next"]["url"].endswith("per_page=2&page=2")
    following = await client.get(response.links["next"]["url"])
    assert [book["id"] for book in following.json()] == [books[0].id]
    missing = await client.get("/api/users/999999/books")
    assert (missing.status_code, missing.json(), missing.headers["X-Total-Count"]) == (200, [], "0")
