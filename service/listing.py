"""Lists as the cache reads them: by their ids alone, or with their rows."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, select
from sqlalchemy.ext.asyncio import AsyncSession

from service.cache import Found, Kind, Listing
from service.pagination import Order, Page, count_of, fetch_page

Where = Callable[[AsyncSession], list[ColumnElement[bool]]]


def list_page(
    kind: Kind,
    model: Any,
    conditions: Mapping[str, str],
    where: Where,
    sort: tuple[str, Order],
    page: Page,
    counted: Callable[[], Select[int] | None],
) -> Listing:
    """List a page of rows; its total is that of all pages.

    conditions: names the rows that `where` chooses. sort: the name of the order, and the order.
    counted: the query of the total, where it is known without counting the rows.
    """
    name, order = sort

    async def find(db: AsyncSession, wanted: tuple[bool, bool]) -> Found:
        if wanted == (True, True):
            ids, total = await fetch_page(db, model.id, where(db), order, page, counted())
            return Found(tuple(ids), total)
        if wanted[0]:
            query = order.apply(select(model.id).where(*where(db)))
            return Found(tuple(await db.scalars(page.cut(query))), None)
        kept = counted()
        count = count_of(model, where(db)) if kept is None else kept
        return Found(None, await db.scalar(count) or 0)

    async def read_all(db: AsyncSession) -> tuple[list[bytes], int, None]:
        rows, total = await fetch_page(db, model, where(db), order, page, counted())
        return [kind.write(row) for row in rows], total, None

    part = [name, page.number, page.size]
    return Listing(kind, conditions, part, counted=True, find=find, read_all=read_all)


def list_after(
    kind: Kind,
    model: Any,
    conditions: Mapping[str, str],
    where: Where,
    sort: tuple[str, Order],
    after: tuple[Any, int] | None,
    limit: int,
) -> Listing:
    """List `limit` rows behind a key and id; `more` says where to go on, if there are more."""
    name, order = sort

    async def fetch(db: AsyncSession, what: Any) -> tuple[list[Any], list[Any] | None]:
        query = select(what, order.key, model.id).where(*where(db))
        rows = (await db.execute(order.apply(query, after).limit(limit + 1))).all()
        if len(rows) <= limit:
            return [row[0] for row in rows], None
        _, key, last = rows[limit - 1]
        spelled = key.isoformat() if isinstance(key, datetime) else str(key)
        return [row[0] for row in rows[:limit]], [spelled, last]

    async def find(db: AsyncSession, wanted: tuple[bool, bool]) -> Found:
        ids, more = await fetch(db, model.id)
        return Found(tuple(ids), None, more)

    async def read_all(db: AsyncSession) -> tuple[list[bytes], int, Any]:
        rows, more = await fetch(db, model)
        return [kind.write(row) for row in rows], 0, more

    part = [name, "after", after and [str(after[0]), after[1]], limit]
    return Listing(kind, conditions, part, counted=False, find=find, read_all=read_all)
