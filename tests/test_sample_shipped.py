"""The shipped books: real, and enough of them."""

import asyncio
from collections import Counter

import httpx
from stdnum import isbn

from service.models import GENRES
from service.sample_data.shipped import fill_if_empty, shipped_books
from tests.conftest import Site


def test_the_shipped_books_have_valid_isbns_years_and_all_genres() -> None:
    books = shipped_books()
    assert len(books) >= 150
    for book in books:
        assert book.isbn, book
        assert isbn.is_valid(book.isbn), book
        assert book.published_year
    genres = Counter(book.genre for book in books)
    assert set(genres) == set(GENRES)
    assert min(genres.values()) >= 30
    assert len({book.isbn for book in books}) == len(books)
    assert len({(book.title, book.author) for book in books}) == len(books)


async def test_an_empty_catalogue_is_filled_once(site: Site, client: httpx.AsyncClient) -> None:
    books = shipped_books()
    added = await asyncio.gather(
        *(site.database.write(lambda db: fill_if_empty(db, books)) for _ in range(3))
    )
    assert sorted(added) == [0, 0, len(books)]
    listed = (await client.get("/api/books?q=time")).json()
    assert any(book["author"] == "Stephen Hawking" for book in listed["items"])
    assert {book["user_id"] for book in listed["items"]} == {None}
    assert (await client.get("/api/books")).json()["total"] == len(books)
