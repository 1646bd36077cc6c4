"""Lists as the cache reads them: by their ids alone, or with their rows.

To make a statement costs SQLAlchemy more than to execute it. So each is made once for its shape
(which filters, what order, on which database), with parameters for all that differs between
requests; and ids are read without the ORM.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, select
from sqlalchemy.ext.asyncio import AsyncSession

from service.cache import Kind, ListIds, ListQuery
from service.pagination import LIMIT, Order, Page, count_of, fetch_page, page_query

SHAPES = 1_000  # statements that are kept


@dataclass(frozen=True, eq=False)
class ListDefinition:
    """What rows of a kind can be listed by. Filters are known by the names of those that are set.

    conditions: of names, sort and dialect, with a parameter for each value. order: of a sort.
    known_count: of names, the number of rows, where it is known without counting them.
    """

    kind: Kind
    model: Any
    conditions: Callable[[tuple[str, ...], str, str], Sequence[ColumnElement[bool]]]
    order: Callable[[str], Order]
    known_count: Callable[[tuple[str, ...]], Select[int] | None]


class FilterSelection(NamedTuple):
    """The rows of a list, and their order.

    conditions: each filter that is set, as text. values: of their parameters, on a database.
    """

    conditions: Mapping[str, str]
    sort: str
    values: Callable[[str], Mapping[str, Any]]


class _Shape(NamedTuple):
    catalogue: ListDefinition
    names: tuple[str, ...]
    sort: str
    dialect: str


def list_page(catalogue: ListDefinition, chosen: FilterSelection, page: Page) -> ListQuery:
    """List a page of rows; its total is that of all pages."""

    async def find(db: AsyncSession, wanted: tuple[bool, bool]) -> ListIds:
        shape, values = _of(db, catalogue, chosen)
        if wanted == (True, True):
            ids, total = await fetch_page(db, _page(shape, True), _count(shape), page, values)
            return ListIds(tuple(ids), total)
        if wanted[0]:
            found = await db.scalars(_ids(shape), {**values, **page.bounds})
            return ListIds(tuple(found), None)
        return ListIds(None, await db.scalar(_count(shape), values) or 0)

    async def read_all(db: AsyncSession) -> tuple[list[bytes], int, None]:
        shape, values = _of(db, catalogue, chosen)
        rows, total = await fetch_page(db, _page(shape, False), _count(shape), page, values)
        return [catalogue.kind.write(row) for row in rows], total, None

    part = [chosen.sort, page.number, page.size]
    return ListQuery(
        catalogue.kind, chosen.conditions, part, counted=True, find=find, read_all=read_all
    )


def list_after(
    catalogue: ListDefinition, chosen: FilterSelection, after: tuple[Any, int] | None, limit: int
) -> ListQuery:
    """List `limit` rows behind a key and id; `more` says where to go on, if there are more."""

    async def fetch(db: AsyncSession, by_id: bool) -> tuple[list[Any], list[Any] | None]:
        shape, values = _of(db, catalogue, chosen)
        told = {**values, "limit": limit + 1}
        if after is not None:
            told["after_key"], told["after_id"] = after
        rows = (await db.execute(_slice(shape, by_id, after is not None), told)).all()
        if len(rows) <= limit:
            return [row[0] for row in rows], None
        _, key, last = rows[limit - 1]
        spelled = key.isoformat() if isinstance(key, datetime) else str(key)
        return [row[0] for row in rows[:limit]], [spelled, last]

    async def find(db: AsyncSession, wanted: tuple[bool, bool]) -> ListIds:
        ids, more = await fetch(db, True)
        return ListIds(tuple(ids), None, more)

    async def read_all(db: AsyncSession) -> tuple[list[bytes], int, Any]:
        rows, more = await fetch(db, False)
        return [catalogue.kind.write(row) for row in rows], 0, more

    part = [chosen.sort, "after", after and [str(after[0]), after[1]], limit]
    return ListQuery(
        catalogue.kind, chosen.conditions, part, counted=False, find=find, read_all=read_all
    )


def _of(
    db: AsyncSession, catalogue: ListDefinition, chosen: FilterSelection
) -> tuple[_Shape, Mapping[str, Any]]:
    dialect = db.get_bind().dialect.name
    shape = _Shape(catalogue, tuple(chosen.conditions), chosen.sort, dialect)
    return shape, chosen.values(dialect)


def _parts(shape: _Shape) -> tuple[Sequence[ColumnElement[bool]], Order]:
    where = shape.catalogue.conditions(shape.names, shape.sort, shape.dialect)
    return where, shape.catalogue.order(shape.sort)


@lru_cache(SHAPES)
def _page(shape: _Shape, by_id: bool) -> Select[Any]:
    where, order = _parts(shape)
    what = order.id if by_id else shape.catalogue.model
    return page_query(what, where, order, _count(shape))


@lru_cache(SHAPES)
def _ids(shape: _Shape) -> Select[Any]:
    where, order = _parts(shape)
    return page_query(order.id, where, order)


@lru_cache(SHAPES)
def _count(shape: _Shape) -> Select[int]:
    kept = shape.catalogue.known_count(shape.names)
    return count_of(shape.catalogue.model, _parts(shape)[0]) if kept is None else kept


@lru_cache(SHAPES)
def _slice(shape: _Shape, by_id: bool, follows: bool) -> Select[Any]:
    where, order = _parts(shape)
    what = order.id if by_id else shape.catalogue.model
    query = select(what, order.key.label("sort_key"), order.id.label("row_id")).where(*where)
    return order.apply(query, follows=follows).limit(LIMIT)
