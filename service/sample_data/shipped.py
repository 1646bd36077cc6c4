"""Read the books that Octavo ships (real books), and add them to an empty catalogue.

`books.csv`: title, author, ISBN-13 of one edition, year of first publication, genre. Typed
by hand; the ISBNs were compared with those of goodbooks-10k (Zygmunt Zając, CC BY-SA 4.0).
"""

import csv
from importlib.resources import files

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from service.books.schemas import BookCreate
from service.books.service import new_book
from service.models import Book


def shipped_books() -> list[BookCreate]:
    """Read the shipped books, and validate them like a client's books."""
    table = files("service.sample_data").joinpath("books.csv").read_text(encoding="utf-8")
    return [
        BookCreate.model_validate({**row, "published_year": int(row["published_year"])})
        for row in csv.DictReader(table.splitlines())
    ]


async def fill_if_empty(db: AsyncSession, books: list[BookCreate]) -> int:
    """Add `books` without an owner to an empty catalogue. Return the number of added books."""
    if db.get_bind().dialect.name == "postgresql":
        await db.execute(text("LOCK TABLE books IN SHARE ROW EXCLUSIVE MODE"))
    if await db.scalar(select(func.count()).select_from(Book)):
        return 0
    db.add_all(new_book(None, book) for book in books)
    await db.flush()
    return len(books)
