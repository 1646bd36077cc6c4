"""The SQL of views: add the views of many books, and find the most viewed books."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pydantic_core import to_json
from sqlalchemy import BigInteger, Insert, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from service.db.json_rows import JsonRows
from service.models import Book, BookViews

POPULAR = 10  # books in the response
CANDIDATES = 2 * POPULAR  # of these, books that are deleted before the next query are left out

TABLE: Any = BookViews.__table__
VIEWS = BookViews.__table__.c
BOOK_IDS: Any = Book.__table__.c.id
NEW_VIEWS = JsonRows("rows", {"book_id": BigInteger(), "views": BigInteger()})
MOST_VIEWED = (
    select(VIEWS.book_id, VIEWS.views)
    .where(select(BOOK_IDS).where(BOOK_IDS == VIEWS.book_id).exists())
    .order_by(VIEWS.views.desc(), VIEWS.book_id.desc())
    .limit(CANDIDATES)
)


async def add_views(db: AsyncSession, views: Mapping[int, int]) -> None:
    """Add to the numbers of views, by the id of the book. Ids without a book have no effect.

    Rows are locked in the order of their ids, so that two processes cannot deadlock.
    """
    rows = [{"book_id": book_id, "views": number} for book_id, number in sorted(views.items())]
    await db.execute(_upsert(db.get_bind().dialect.name), {"rows": to_json(rows).decode()})


@lru_cache
def _upsert(dialect: str) -> Insert:
    new = NEW_VIEWS.read(dialect).c
    rows = select(new.book_id, new.views).where(new.book_id == BOOK_IDS).order_by(new.book_id)
    statement: Any = postgresql.insert(TABLE) if dialect == "postgresql" else sqlite.insert(TABLE)
    upsert: Insert = statement.from_select(["book_id", "views"], rows).on_conflict_do_update(
        index_elements=[VIEWS.book_id], set_={"views": VIEWS.views + statement.excluded.views}
    )
    return upsert


async def most_viewed(db: AsyncSession) -> bytes:
    """Return the most viewed books as a JSON array of [id, views]; of equals, the newest first."""
    rows = await db.execute(MOST_VIEWED)
    return to_json([list(row) for row in rows])
