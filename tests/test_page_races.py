"""A row that is added or deleted between two statements of one page: rows and total still agree."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import delete, func, select

from service.db.list_queries import Order, Page, count_of, fetch_page, page_query
from service.models import Book
from tests.conftest import Site
from tests.factories import Factory

COLUMNS = Book.__table__.c
COUNT = count_of(Book, [])
BY_ID = page_query(COLUMNS.id, [], Order(COLUMNS.id, COLUMNS.id, descending=False), COUNT)


class Session:
    """A session, and a change by another client after its first statement."""

    def __init__(self, db: Any, change: Callable[[], Awaitable[object]]) -> None:
        self._db = db
        self._change = change

    async def execute(self, *arguments: Any) -> Any:
        """Run the first statement. Then the other client's change is committed."""
        result = await self._db.execute(*arguments)
        await self._change()
        return result

    async def scalar(self, *arguments: Any) -> Any:
        """Run the second statement."""
        return await self._db.scalar(*arguments)


async def fetch(
    site: Site, page: Page, change: Callable[[], Awaitable[object]]
) -> tuple[list[int], int]:
    """Return a page of ids and the total."""
    async with site.database.session() as db:
        session: Any = Session(db, change)
        return await fetch_page(session, BY_ID, COUNT, page)


@pytest.mark.parametrize(
    ("page", "rows", "added", "total"),
    [
        (Page(1, 2), 0, 1, 0),  # an empty first page: there was no row
        (Page(1, 2), 0, 5, 0),
        (Page(2, 2), 2, 1, 2),  # an empty second page: it would have shown the new row
        (Page(3, 2), 2, 3, 4),
        (Page(3, 2), 4, 3, 4),
        (Page(4, 2), 2, 1, 3),  # a page far behind the last: the total is exact
        (Page(4, 2), 0, 0, 0),
    ],
)
async def test_the_total_of_an_empty_page_does_not_claim_that_it_has_rows(
    site: Site, make: Factory, page: Page, rows: int, added: int, total: int
) -> None:
    for _ in range(rows):
        await make.book()

    async def add() -> None:
        for _ in range(added):
            await make.book()

    ids, counted = await fetch(site, page, add)
    assert (ids, counted) == ([], total)
    assert counted <= page.offset


async def test_the_total_of_a_page_with_rows_is_of_the_same_moment(
    site: Site, make: Factory
) -> None:
    books = [await make.book() for _ in range(3)]

    async def delete_all() -> None:
        async with site.database.writer.begin() as connection:
            await connection.execute(delete(Book))

    assert await fetch(site, Page(2, 2), delete_all) == ([books[2].id], 3)
    async with site.database.session() as db:
        assert await db.scalar(select(func.count()).select_from(Book)) == 0
