"""Sparse representations: `fields` selects members of books, in all lists and in the item."""

import json
from decimal import Decimal
from hashlib import blake2b
from typing import Any

import httpx
import pytest
from pydantic_core import to_json

from service.books.schemas import BookOut
from service.http.fields import select_fields
from tests.factories import Factory
from tests.http_client import assert_problem

NAMES = list(BookOut.model_fields)
FULL = {"isbn": "9780441478125", "published_year": 1969, "genre": "Fiction", "price": 99999999.99}


def items_of(response: httpx.Response) -> list[dict[str, Any]]:
    """Return the books of a response: of a page, a slice, an array, or an item."""
    body: Any = response.json()
    items: list[dict[str, Any]] = body if isinstance(body, list) else body.get("items", [body])
    return items


async def paths_of(make: Factory) -> list[str]:
    """Make two books, one with all fields. Return the paths of the item and of all lists."""
    owner = await make.member()
    await make.book(owner)
    book = await make.book(owner, title='Ünï "書" \\ \x7f/', **FULL)
    places = (f"books/{book.id}?", "books?", "books?limit=9&", "books?sort=title&limit=9&")
    return [f"/api/{place}" for place in (*places, f"users/{owner.id}/books?")]


async def test_a_sparse_body_has_the_selected_members_in_their_order(
    client: httpx.AsyncClient, make: Factory
) -> None:
    client.headers["Accept-Encoding"] = "identity"  # a compressed body has another ETag
    for path in await paths_of(make):
        whole = await client.get(path.rstrip("?&"))
        for names in (["id"], ["title", "price", "id"], ["isbn", "isbn"], NAMES):
            selected = [name for name in NAMES if name in names]
            for _ in range(3):  # loaded, cached, and remembered
                response = await client.get(f"{path}fields={','.join(names)}")
                items = items_of(response)
                assert items == [
                    {name: book[name] for name in selected} for book in items_of(whole)
                ]
                assert [*items[0]] == selected
                digest = blake2b(response.content, digest_size=12).hexdigest()
                assert response.headers["ETag"] == f'"{digest}"'
            assert response.headers["Cache-Status"] == "Octavo; hit"
        if "links" not in whole.text:
            assert response.content == whole.content, "all members, so the same bytes"
        known = {"If-None-Match": response.headers["ETag"]}
        assert (await client.get(str(response.url), headers=known)).status_code == 304


async def test_an_unknown_or_empty_name_is_refused(
    client: httpx.AsyncClient, make: Factory
) -> None:
    sentence = f"Must be some of: {', '.join(NAMES)}; comma-separated."
    for path in await paths_of(make):
        for value in ("", ",", "id,", "id,,title", "Title", "id, title", "owner", "*"):
            response = await client.get(f"{path}fields={value}")
            assert_problem(response, 400, "Validation Error")
            assert response.json()["messages"] == {"fields": [sentence]}
        twice = await client.get(f"{path}fields=id&fields=title")
        assert twice.json()["messages"] == {"fields": ["Given more than once."]}


async def test_a_sparse_list_follows_each_write(client: httpx.AsyncClient, make: Factory) -> None:
    owner = await make.member()
    book = await make.book(owner)
    for path in ("/api/books?fields=title", f"/api/books/{book.id}?fields=title"):
        for title in ("First", "Second"):
            for _ in range(3):
                tag = (await client.get(path)).headers["ETag"]
            change = {"title": f"{title} {path}"}
            await client.patch(f"/api/books/{book.id}", json=change, headers=owner.headers)
            response = await client.get(path, headers={"If-None-Match": tag})
            assert items_of(response) == [change]


async def test_a_sparse_body_does_not_change_with_other_members(
    client: httpx.AsyncClient, make: Factory
) -> None:
    owner = await make.member()
    book = await make.book(owner)
    path = f"/api/books/{book.id}?fields=id,title"
    tag = (await client.get(path)).headers["ETag"]
    await client.patch(f"/api/books/{book.id}", json={"price": 3}, headers=owner.headers)
    assert (await client.get(path, headers={"If-None-Match": tag})).status_code == 304


@pytest.mark.parametrize("sort", ["id", "title"])
async def test_a_cursor_is_valid_with_other_fields(
    client: httpx.AsyncClient, make: Factory, sort: str
) -> None:
    books = [await make.book(title=f"Book {number}") for number in range(3)]
    first = (await client.get(f"/api/books?limit=1&sort={sort}&fields=title")).json()
    assert first == {
        "items": [{"title": "Book 0"}],
        "has_more": True,
        "next_cursor": first["next_cursor"],
    }
    params = {"sort": sort, "cursor": first["next_cursor"]}
    second = (await client.get("/api/books", params=params | {"fields": "id"})).json()
    assert second["items"] == [{"id": book.id} for book in books[1:]]


async def test_links_keep_the_fields(client: httpx.AsyncClient, make: Factory) -> None:
    owner = await make.member()
    for _ in range(2):
        await make.book(owner)
    for path in ("/api/books", f"/api/users/{owner.id}/books"):
        first = await client.get(f"{path}?fields=id,title&per_page=1")
        following = await client.get(first.links["next"]["url"])
        assert [[*book] for book in items_of(following)] == [["id", "title"]]


def test_prices_keep_their_digits() -> None:
    """Every number of cents within 20 of a power of two, where floats lose digits first."""
    cents = {max(0, 2**power + n) for power in range(34) for n in range(-20, 21)}
    for number in {*cents, 9_999_999_999, 995, 0}:
        price = float(Decimal(number) / 100)
        body = to_json({"id": 2**63 - 1, "price": price, "title": "T"})
        (sparse,) = select_fields([body], ["id", "price"])
        assert sparse == body.replace(b',"title":"T"', b"")
        assert Decimal(json.loads(sparse, parse_float=str)["price"]) == Decimal(number) / 100
