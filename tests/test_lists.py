"""Lists: pages, cursors, filters, sorts and links, the same on both databases."""

import asyncio
import itertools
import json
from typing import Any

import httpx
import pytest
from sqlalchemy import event

from service.http import pagination
from tests.conftest import Site
from tests.factories import Factory, Member

SORTS = ["id", "created_at", "title", "published_year", "price"]


async def walk(client: httpx.AsyncClient, **params: Any) -> list[dict[str, Any]]:
    """Read a whole list by cursor."""
    items: list[dict[str, Any]] = []
    for _ in range(200):
        response = await client.get("/api/books", params=params)
        assert response.status_code == 200, response.text
        page = response.json()
        items += page["items"]
        assert page["has_more"] == ("next_cursor" in page)
        if not page["has_more"]:
            return items
        params["cursor"] = page["next_cursor"]
    raise AssertionError("the list does not end")


async def shelf(make: Factory) -> list[dict[str, Any]]:
    """Create books with equal and missing values in every field by which lists are sorted."""
    owner = await make.member()
    years = [None, 1000, 1969, 1969, 2100]
    prices = [None, 0, 0.01, 10, 10, 99999999.99]
    titles = ["a", "A", "Z", "é", "ﬁ", "𝒳", "z"]
    made = []
    for number, (year, price) in enumerate(itertools.product(years, prices)):
        book = await make.book(
            owner,
            title=titles[number % len(titles)],
            author=["Émile Zola", "émile zola", "Anna"][number % 3],
            published_year=year,
            price=price,
            genre=[None, "Fiction", "Science"][number % 3],
        )
        made.append({"id": book.id, "title": book.title, "published_year": year, "price": price})
    return made


def sorted_by(books: list[dict[str, Any]], sort: str) -> list[int]:
    """Return the ids in the documented order."""
    key, descending = sort.removeprefix("-"), sort.startswith("-")
    if key == "created_at":
        key = "id"  # books are created in the order of their ids
    known = sorted(
        (book for book in books if book[key] is not None),
        key=lambda book: (book[key], book["id"]),
        reverse=descending,
    )
    unknown = sorted((book["id"] for book in books if book[key] is None), reverse=descending)
    return [book["id"] for book in known] + unknown


@pytest.mark.parametrize("sort", [*SORTS, *("-" + sort for sort in SORTS)])
async def test_every_sort_is_a_total_order_with_nulls_last_in_pages_and_by_cursor(
    client: httpx.AsyncClient, make: Factory, sort: str
) -> None:
    expected = sorted_by(await shelf(make), sort)
    whole = (await client.get("/api/books", params={"sort": sort, "per_page": 100})).json()
    assert [book["id"] for book in whole["items"]] == expected
    paged: list[int] = []
    for page in range(1, 6):
        response = await client.get(
            "/api/books", params={"sort": sort, "per_page": 7, "page": page}
        )
        paged += [book["id"] for book in response.json()["items"]]
    assert paged == expected
    for limit in (1, 7, 30):
        assert [book["id"] for book in await walk(client, sort=sort, limit=limit)] == expected


async def test_the_default_page_is_newest_first(client: httpx.AsyncClient, make: Factory) -> None:
    books = [await make.book() for _ in range(25)]
    response = await client.get("/api/books")
    page = response.json()
    assert list(page) == ["items", "total", "pagination", "links"]
    assert [book["id"] for book in page["items"]] == [book.id for book in books[:4:-1]]
    assert page["total"] == 25
    assert page["pagination"] == {
        "page": 1, "per_page": 20, "total_pages": 2, "total_items": 25,
        "has_next": True, "has_prev": False, "next_page": 2, "prev_page": None,
    }  # fmt: skip
    base = f"{client.base_url}/api/books"
    assert page["links"] == {
        "self": f"{base}?page=1",
        "first": f"{base}?page=1",
        "last": f"{base}?page=2",
        "next": f"{base}?page=2",
    }
    assert {rel: link["url"] for rel, link in response.links.items()} == page["links"]
    last = (await client.get(page["links"]["last"])).json()
    assert [book["id"] for book in last["items"]] == [book.id for book in books[4::-1]]
    assert "next" not in last["links"]
    assert (last["pagination"]["next_page"], last["pagination"]["prev_page"]) == (None, 1)


async def test_links_keep_the_other_parameters(client: httpx.AsyncClient, make: Factory) -> None:
    for _ in range(3):
        await make.book(author="Å & B=C", genre="Science")
    given = {"author": "å & b=c", "per_page": "1", "genre": "Science", "page": "2", "nocache": "1"}
    page = (await client.get("/api/books", params=given)).json()
    assert page["total"] == 3
    for rel, number in (("first", 1), ("prev", 1), ("self", 2), ("next", 3), ("last", 3)):
        url = httpx.URL(page["links"][rel])
        assert dict(url.params) == given | {"page": str(number)}
        assert (await client.get(url)).json()["pagination"]["page"] == number


async def test_a_page_past_the_end_is_empty(client: httpx.AsyncClient, make: Factory) -> None:
    await make.book()
    page = (await client.get("/api/books?page=7")).json()
    assert (page["items"], page["total"]) == ([], 1)
    assert (
        page["pagination"] | {"page": 7, "total_pages": 1, "has_next": False} == page["pagination"]
    )
    assert page["links"]["last"].endswith("page=1")


async def test_an_empty_list_has_no_items_and_no_pages(client: httpx.AsyncClient) -> None:
    page = (await client.get("/api/books")).json()
    assert (page["items"], page["total"]) == ([], 0)
    assert page["pagination"] == {
        "page": 1, "per_page": 20, "total_pages": 0, "total_items": 0,
        "has_next": False, "has_prev": False, "next_page": None, "prev_page": None,
    }  # fmt: skip
    assert page["links"]["last"].endswith("page=1")
    by_cursor = await client.get("/api/books?limit=5")
    assert by_cursor.json() == {"items": [], "has_more": False}


async def test_page_sizes_have_a_maximum(client: httpx.AsyncClient, make: Factory) -> None:
    for _ in range(101):
        await make.book()
    page = (await client.get("/api/books?per_page=1000")).json()
    assert (len(page["items"]), page["pagination"]["per_page"]) == (100, 100)
    cursor = (await client.get("/api/books?limit=1000")).json()
    assert (len(cursor["items"]), cursor["has_more"]) == (100, True)


@pytest.mark.parametrize(
    ("query", "field", "part"),
    [
        ("page=0", "page", "greater than or equal to 1"),
        ("page=-1", "page", "greater"),
        ("page=abc", "page", "integer"),
        ("page=1.0", "page", "integer"),
        ("page=", "page", "integer"),
        ("page=%D9%A1", "page", "integer"),
        ("page=+1", "page", "integer"),
        ("page=1_0", "page", "integer"),
        ("page=" + "9" * 30, "page", "integer"),
        ("page=9223372036854775807", "page", "cursor mode"),
        ("page=5002", "page", "cursor mode"),
        ("page=1002&per_page=100", "page", "cursor mode"),
        ("per_page=0", "per_page", "greater"),
        ("limit=0", "limit", "greater"),
        ("limit=x", "limit", "integer"),
        ("page=1&page=2", "page", "more than once"),
        ("genre=Fiction&genre=Science", "genre", "more than once"),
        ("page=1&limit=2", "_schema", "not both"),
        ("cursor=3&per_page=2", "_schema", "not both"),
        ("cursor=x", "cursor", "Not a cursor"),
        ("cursor=-1", "cursor", "Not a cursor"),
        ("cursor=05", "cursor", "Not a cursor"),
        ("cursor=-0", "cursor", "Not a cursor"),
        ("cursor=%205", "cursor", "Not a cursor"),
        ("cursor=9223372036854775808", "cursor", "Not a cursor"),
        ("cursor=12&sort=title", "cursor", "Not a cursor"),
        ("sort=author", "sort", "Must be one of"),
        ("sort=--id", "sort", "Must be one of"),
        ("genre=Poetry", "genre", "Must be one of"),
        ("isbn=12", "isbn", "pattern"),
        ("user_id=x", "user_id", "integer"),
        ("year_min=x", "year_min", "integer"),
        ("price_min=x", "price_min", "number"),
        ("price_max=NaN", "price_max", "number"),
        ("price_max=1e", "price_max", "number"),
        ("q=%21%21", "q", "letter or a digit"),
        ("q=" + "x" * 201, "q", "Longer"),
        ("nocache=yes", "nocache", "0 or 1"),
        ("colour=red", "colour", "Unknown field."),
    ],
)
async def test_an_invalid_query_is_refused(
    client: httpx.AsyncClient, query: str, field: str, part: str
) -> None:
    response = await client.get(f"/api/books?{query}")
    assert response.status_code == 400
    assert list(response.json()["messages"]) == [field]
    assert part in response.json()["messages"][field][0]


async def test_no_link_points_past_the_deepest_page(
    client: httpx.AsyncClient, make: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await client.get("/api/books?page=5001")).status_code == 200
    monkeypatch.setattr(pagination, "MAX_OFFSET", 2)
    for _ in range(5):
        await make.book()
    links = (await client.get("/api/books?per_page=2&page=1")).json()["links"]
    assert set(links) == {"self", "first", "next"}
    deepest = (await client.get(links["next"])).json()
    assert set(deepest["links"]) == {"self", "first", "prev"}
    assert deepest["pagination"] | {"has_next": True, "next_page": 3} == deepest["pagination"]
    assert (await client.get("/api/books?per_page=2&page=3")).status_code == 400


@pytest.mark.parametrize(
    ("query", "titles"),
    [
        ("genre=Fiction", "ac"),
        ("author=ÉMILE zola", "ab"),
        ("author=zola", ""),
        ("isbn=0-306-40615-2", "b"),
        ("year_min=1969", "bc"),
        ("year_max=1969", "ab"),
        ("year_min=1969&year_max=1969", "b"),
        ("year_min=0", "abc"),
        ("year_min=-99999999999", "abc"),
        ("year_min=99999999999", ""),
        ("year_max=99999999999", "abc"),
        ("year_max=-5", ""),
        ("price_min=0", "acd"),
        ("price_min=-3", "acd"),
        ("price_min=0.01", "ad"),
        ("price_min=99999999.99", "d"),
        ("price_min=9999999999999", ""),
        ("price_max=0", "c"),
        ("price_max=19.99", "ac"),
        ("price_max=9999999999999", "acd"),
        ("price_max=-1", ""),
        ("price_min=0.005&price_max=19.994", "a"),
        ("genre=Fiction&year_max=1950", "a"),
    ],
)
async def test_filters_select_books(
    client: httpx.AsyncClient, make: Factory, query: str, titles: str
) -> None:
    zola = {"a": "Émile Zola", "b": "émile zola", "c": "Anna", "d": "Anna Zola"}
    await make.book(title="a", author=zola["a"], genre="Fiction", published_year=1867, price=19.99)
    await make.book(title="b", author=zola["b"], isbn="0306406152", published_year=1969)
    await make.book(title="c", author=zola["c"], genre="Fiction", published_year=2100, price=0)
    await make.book(title="d", author=zola["d"], price=99999999.99)
    page = (await client.get(f"/api/books?{query}")).json()
    assert sorted(book["title"] for book in page["items"]) == list(titles)
    assert page["total"] == len(titles)
    assert sorted(
        book["title"] for book in await walk(client, limit=1, **dict(httpx.QueryParams(query)))
    ) == list(titles)


@pytest.mark.parametrize(
    ("q", "titles"),
    [
        ("war", "War and Peace|Warlight"),
        ("WAR peace", "War and Peace"),
        ("peace war", "War and Peace"),
        ("tolstoy war", "War and Peace"),
        ("germinal emile", "Germinal"),
        ("émile germ", "Germinal"),
        ("germinal' OR 1=1", ""),
        ("and", "War and Peace|Die Straße"),
        ("NOT and", ""),
        ("war:*", "War and Peace|Warlight"),
        ('"peace', "War and Peace"),
        ("三体", "三体"),
        ("三", "三体"),
        ("strasse", "Die Straße"),
        ("1984", "1984"),
        ("19", "1984"),
        ("ﬁre", "Fire"),
        ("x" * 150, "x" * 150),
    ],
)
async def test_words_find_titles_and_authors(
    client: httpx.AsyncClient, make: Factory, q: str, titles: str
) -> None:
    for title, author in (
        ("War and Peace", "Leo Tolstoy"),
        ("Warlight", "Michael Ondaatje"),
        ("Germinal", "Émile Zola"),
        ("三体", "刘慈欣"),
        ("Die Straße", "Andreas Maier"),
        ("1984", "George Orwell"),
        ("Fire", "Anna"),
        ("x" * 150, "A" + "㌀" * 99),  # a word longer than PostgreSQL's index takes
    ):
        await make.book(title=title, author=author)
    page = (await client.get("/api/books", params={"q": q, "sort": "id"})).json()
    assert "|".join(book["title"] for book in page["items"]) == titles


async def test_the_search_follows_every_change(client: httpx.AsyncClient, make: Factory) -> None:
    owner = await make.member()
    book = await make.book(owner, title="Alpha", author="Beta")

    async def finds(q: str) -> bool:
        return bool((await client.get("/api/books", params={"q": q})).json()["total"])

    assert await finds("alpha beta")
    await client.patch(f"/api/books/{book.id}", json={"title": "Gamma"}, headers=owner.headers)
    assert (await finds("gamma beta"), await finds("alpha")) == (True, False)
    await client.patch(f"/api/books/{book.id}", json={"author": "Delta"}, headers=owner.headers)
    assert (await finds("gamma delta"), await finds("beta")) == (True, False)
    by_author = await client.get("/api/books?author=delta")
    assert by_author.json()["total"] == 1
    await client.delete(f"/api/books/{book.id}", headers=owner.headers)
    assert not await finds("gamma")


async def test_the_default_cursor_is_the_id(client: httpx.AsyncClient, make: Factory) -> None:
    books = [await make.book() for _ in range(3)]
    first = (await client.get("/api/books?limit=2")).json()
    assert list(first) == ["items", "has_more", "next_cursor"]
    assert first["next_cursor"] == books[1].id
    rest = (await client.get("/api/books", params={"cursor": books[1].id})).json()
    assert [book["id"] for book in rest["items"]] == [books[2].id]
    assert "next_cursor" not in rest
    whole = (await client.get("/api/books?cursor=0")).json()
    assert len(whole["items"]) == 3


async def test_a_signed_cursor_with_another_bit_or_filter_is_refused(
    client: httpx.AsyncClient, make: Factory
) -> None:
    for _ in range(3):
        await make.book(genre="Fiction", price=2)
    params = {"sort": "price", "limit": "1", "genre": "Fiction"}
    cursor = (await client.get("/api/books", params=params)).json()["next_cursor"]
    assert isinstance(cursor, str)
    assert (await client.get("/api/books", params=params | {"cursor": cursor})).status_code == 200

    async def refused(**changed: str) -> bool:
        response = await client.get("/api/books", params=params | {"cursor": cursor} | changed)
        return response.status_code == 400 and response.json()["messages"] == {
            "cursor": ["Not a cursor of this list."]
        }

    for place, bit in itertools.product(range(len(cursor)), range(7)):
        flipped = cursor[:place] + chr(ord(cursor[place]) ^ (1 << bit)) + cursor[place + 1 :]
        if "\x00" not in flipped:
            assert await refused(cursor=flipped), flipped
    for length in range(1, len(cursor), 7):
        assert await refused(cursor=cursor[:length])
    for other in (
        cursor + "A",
        cursor + "=",
        "." + cursor,
        cursor * 2,
        " " + cursor,
        cursor + "\n",
    ):
        assert await refused(cursor=other)
    assert await refused(sort="-price")
    assert await refused(sort="published_year")
    assert await refused(genre="Science")
    assert await refused(price_min="1")
    # The size of a page is no part of the list's identity.
    assert not await refused(limit="2")


async def test_a_walk_is_complete_under_concurrent_writes(
    client: httpx.AsyncClient, make: Factory
) -> None:
    owner = await make.member()
    stay = {(await make.book(owner, price=n % 7)).id for n in range(60)}
    passing = [await make.book(owner, price=n % 7) for n in range(20)]

    async def disturb(books: list[Any], owner: Member) -> None:
        for book in books:
            await make.book(owner, price=3)
            path = f"/api/books/{book.id}"
            await client.patch(path, json={"price": 8}, headers=owner.headers)
            await client.delete(path, headers=owner.headers)

    for sort in ("id", "price", "-price", "title"):
        half, passing = passing[:5], passing[5:]
        walked, _ = await asyncio.gather(walk(client, sort=sort, limit=3), disturb(half, owner))
        ids = [book["id"] for book in walked if book["id"] in stay]
        assert len(ids) == len(set(ids))
        assert set(ids) == stay


async def test_items_and_total_are_read_at_the_same_moment(
    client: httpx.AsyncClient, make: Factory
) -> None:
    owner = await make.member()

    async def write() -> None:
        for _ in range(30):
            await make.book(owner)

    async def read() -> None:
        for _ in range(30):
            page = (await client.get("/api/books?per_page=100")).json()
            assert len(page["items"]) == page["total"]

    await asyncio.gather(write(), read(), read())


async def test_the_total_is_exact_directly_after_the_response_to_a_write(
    client: httpx.AsyncClient, make: Factory
) -> None:
    owner = await make.member()
    for before in range(10):
        assert (await client.get("/api/books")).json()["total"] == before
        await client.post("/api/books", json={"title": "T", "author": "A"}, headers=owner.headers)


async def test_a_list_past_the_cache_costs_one_statement(
    site: Site, client: httpx.AsyncClient, make: Factory
) -> None:
    for _ in range(3):
        await make.book()
    seen: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        seen.append(statement)

    engine = site.database.reader.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        for path in ("/api/books", "/api/books?limit=2", "/api/books?limit=2&sort=price"):
            seen.clear()
            past = f"{path}{'&' if '?' in path else '?'}nocache=1"
            assert json.loads((await client.get(past)).content)["items"]
            assert len(seen) == 1, seen
    finally:
        event.remove(engine, "before_cursor_execute", note)
