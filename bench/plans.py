"""The plan and the time of PostgreSQL for the statements that Octavo sends for each list.

    DATABASE_URL=postgresql://... python -m bench.plans

For every filter and every sort: the first page with its total, and a cursor page from the
middle. The script prints a table in Markdown. Its exit code is 1 if a plan reads the whole table.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import event, select
from sqlalchemy.ext.asyncio import AsyncSession

from service.books.schemas import BookFilters
from service.books.service import LIST_DEFINITION, SORTS, list_books, list_books_after
from service.config import Settings, Testing
from service.db.database import Database
from service.db.list_queries import Page
from service.models import Book

PAGE = 20
SORT_NAMES = [*SORTS, *("-" + name for name in SORTS)]


@dataclass(frozen=True)
class Plan:
    """One statement: its page, filter and sort, the nodes of its plan, and its milliseconds."""

    page: str
    filter: str
    sort: str
    nodes: tuple[str, ...]
    ms: float

    @property
    def reads_everything(self) -> bool:
        """Whether the plan scans the whole table of books."""
        return "Seq Scan on books" in self.nodes


async def plans(database: Database, filters: list[dict[str, Any]]) -> AsyncIterator[Plan]:
    """Yield the plan of each statement of every list."""
    async with database.session() as db:
        for sort in SORT_NAMES:
            middle = await _middle(db, sort)
            for conditions in filters:
                book_filters = BookFilters.model_validate(
                    {k: str(v) for k, v in conditions.items()}
                )
                named = " ".join(f"{name}={value}" for name, value in conditions.items()) or "-"
                for page, listing, wanted in (
                    ("first", list_books(book_filters, sort, Page(1, PAGE)), (True, True)),
                    (
                        "deep cursor",
                        list_books_after(book_filters, sort, middle, PAGE),
                        (True, False),
                    ),
                ):
                    for query, work in (
                        ("rows", partial(listing.read_all, db)),
                        ("ids", partial(listing.find, db, wanted)),
                    ):
                        async for nodes, ms in _explained(database, db, work):
                            yield Plan(f"{page}, {query}", named, sort, nodes, ms)


async def every_filter(db: AsyncSession) -> list[dict[str, Any]]:
    """Return no filter, and each filter with a value that some books have."""
    known = select(Book).where(Book.isbn.is_not(None), Book.genre.is_not(None)).order_by(Book.id)
    book = (await db.scalars(known.offset(1_000).limit(1))).one()
    return [
        {}, {"genre": book.genre}, {"author": book.author}, {"isbn": book.isbn}, {"user_id": 1},
        {"year_min": 2020}, {"year_max": 1950}, {"year_min": 2000, "year_max": 2001},
        {"price_min": 40}, {"price_max": 5}, {"price_min": 10, "price_max": 11},
        {"q": "luminous"}, {"q": "the silent"}, {"q": book.author},
    ]  # fmt: skip


async def _middle(db: AsyncSession, sort: str) -> tuple[Any, int]:
    """Return the key and the id of the row in the middle of an order."""
    order = LIST_DEFINITION.order(sort)
    last = (await db.scalars(select(Book.id).order_by(Book.id.desc()).limit(1))).one()
    half = order.apply(select(order.key, Book.id)).offset(last // 2).limit(1)
    key, row_id = (await db.execute(half)).one()
    return key, row_id


async def _explained(
    database: Database, db: AsyncSession, work: Callable[[], Awaitable[Any]]
) -> AsyncIterator[tuple[tuple[str, ...], float]]:
    sent: list[tuple[str, Any]] = []

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        sent.append((statement, parameters))

    await work()  # loads the pages of the database into memory
    event.listen(database.writer.sync_engine, "before_cursor_execute", note)
    began = time.perf_counter()
    await work()
    event.remove(database.writer.sync_engine, "before_cursor_execute", note)
    ms = (time.perf_counter() - began) * 1_000
    connection = await db.connection()
    for statement, parameters in sent:
        result = await connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters)
        plan = result.scalar_one()
        plan = json.loads(plan) if isinstance(plan, str) else plan
        yield tuple(_nodes(plan[0]["Plan"])), ms


def _nodes(plan: dict[str, Any]) -> Iterator[str]:
    target = plan.get("Index Name") or plan.get("Relation Name")
    yield plan["Node Type"] + (f" on {target}" if target else "")
    for part in plan.get("Plans", ()):
        yield from _nodes(part)


async def main() -> int:
    """Print the table for the database at DATABASE_URL."""
    settings: Settings = Testing.model_validate({"database_url": os.environ["DATABASE_URL"]})
    database = Database(settings)
    await database.open()
    async with database.session() as db:
        filters = await every_filter(db)
    worst = 0
    print("| page | filter | sort | plan | ms |\n|---|---|---|---|---|")
    async for plan in plans(database, filters):
        worst |= plan.reads_everything
        nodes = ", ".join(dict.fromkeys(plan.nodes))
        print(f"| {plan.page} | {plan.filter} | {plan.sort} | {nodes} | {plan.ms:.1f} |")
    await database.close()
    return worst


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
