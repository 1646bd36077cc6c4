"""Queries of lists by page or by cursor, for the cache: only the ids, or the whole rows.

SQLAlchemy needs more time to build a statement than to execute it. So each statement is built once
for each shape (filters, order, database). Values that differ between requests are parameters. Ids
are read without the ORM.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Integer, Select, bindparam, func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from service.cache import Kind, ListIds, ListQuery

STATEMENT_CACHE_SIZE = 1_000  # maximum number of cached statements of each kind
LIMIT, OFFSET = bindparam("limit", type_=Integer()), bindparam("offset", type_=Integer())


@dataclass(frozen=True)
class Page:
    """A page: its number from 1, and its size in rows."""

    number: int
    size: int

    @property
    def offset(self) -> int:
        """The number of rows before this page."""
        return (self.number - 1) * self.size

    @property
    def bounds(self) -> dict[str, int]:
        """The parameters of `page_query`."""
        return {"limit": self.size, "offset": self.offset}


@dataclass(frozen=True)
class Order:
    """A total order of rows: by a key that is never NULL, then by id, in the same direction."""

    key: ColumnElement[Any]
    id: ColumnElement[int]
    descending: bool

    def apply(self, query: Select[Any], *, follows: bool = False) -> Select[Any]:
        """Sort a query. follows: only rows after the position (:after_key, :after_id)."""
        if follows:
            here = tuple_(self.key, self.id)
            key, row_id = (
                bindparam("after_key", type_=self.key.type),
                bindparam("after_id", type_=self.id.type),
            )
            there = tuple_(key, row_id)
            query = query.where(here < there if self.descending else here > there)
        if self.descending:
            return query.order_by(self.key.desc(), self.id.desc())
        return query.order_by(self.key, self.id)


def page_query(
    selected: Any,
    where: Sequence[ColumnElement[bool]],
    order: Order,
    counted: Select[int] | None = None,
) -> Select[Any]:
    """Make the query of a page. selected: a model or a column. counted: adds the total to rows."""
    total = () if counted is None else (counted.scalar_subquery(),)
    query = select(selected, *total).where(*where)
    return order.apply(query).limit(LIMIT).offset(OFFSET)


async def fetch_page(
    db: AsyncSession,
    query: Select[Any],
    counted: Select[int],
    page: Page,
    values: Mapping[str, Any] | None = None,
) -> tuple[list[Any], int]:
    """Return a page of rows, or of a column, and the total, from one snapshot."""
    rows = (await db.execute(query, {**(values or {}), **page.bounds})).all()
    if not rows:
        # The count reads a second snapshot; `min` keeps it consistent with this empty page.
        return [], min(await db.scalar(counted, values) or 0, page.offset)
    return [row[0] for row in rows], rows[0][1]


def count_of(model: Any, where: Sequence[ColumnElement[bool]]) -> Select[int]:
    """Make the query that counts the rows of a model that match `where`."""
    return select(func.count()).select_from(model.__table__).where(*where).correlate(None)


@dataclass(frozen=True, eq=False)
class ListDefinition:
    """How rows of a kind can be listed. `names` are the names of the filters that are set.

    conditions: called with names, sort and dialect; each value is a parameter. order: called with
    sort. known_count: called with names; returns the query of a maintained count, or None.
    """

    kind: Kind
    model: Any
    conditions: Callable[[tuple[str, ...], str, str], Sequence[ColumnElement[bool]]]
    order: Callable[[str], Order]
    known_count: Callable[[tuple[str, ...]], Select[int] | None]


class FilterSelection(NamedTuple):
    """The filters and the order of a list.

    conditions: the filters that are set, as text. values: called with the dialect; returns the
    parameters of the filters.
    """

    conditions: Mapping[str, str]
    sort: str
    values: Callable[[str], Mapping[str, Any]]


class _Shape(NamedTuple):
    definition: ListDefinition
    names: tuple[str, ...]
    sort: str
    dialect: str


def list_page(definition: ListDefinition, selection: FilterSelection, page: Page) -> ListQuery:
    """Return the ListQuery of a page of rows. The total counts the rows of all pages."""

    async def find(db: AsyncSession, wanted: tuple[bool, bool]) -> ListIds:
        shape, values = _of(db, definition, selection)
        if wanted == (True, True):
            ids, total = await fetch_page(db, _page(shape, True), _count(shape), page, values)
            return ListIds(tuple(ids), total)
        if wanted[0]:
            scalars = await db.scalars(_ids(shape), {**values, **page.bounds})
            return ListIds(tuple(scalars), None)
        return ListIds(None, await db.scalar(_count(shape), values) or 0)

    async def read_all(db: AsyncSession) -> tuple[list[bytes], int, None]:
        shape, values = _of(db, definition, selection)
        rows, total = await fetch_page(db, _page(shape, False), _count(shape), page, values)
        return [definition.kind.write(row) for row in rows], total, None

    part = [selection.sort, page.number, page.size]
    return ListQuery(
        definition.kind, selection.conditions, part, counted=True, find=find, read_all=read_all
    )


def list_after(
    definition: ListDefinition,
    selection: FilterSelection,
    after: tuple[Any, int] | None,
    limit: int,
) -> ListQuery:
    """Return the ListQuery of `limit` rows after a position (key, id); None: from the start.

    `more` of its result: the position of the last row, or None if no rows follow.
    """

    async def fetch(db: AsyncSession, by_id: bool) -> tuple[list[Any], list[Any] | None]:
        shape, values = _of(db, definition, selection)
        parameters = {**values, "limit": limit + 1}
        if after is not None:
            parameters["after_key"], parameters["after_id"] = after
        rows = (await db.execute(_slice(shape, by_id, after is not None), parameters)).all()
        if len(rows) <= limit:
            return [row[0] for row in rows], None
        _, key, last = rows[limit - 1]
        key_text = key.isoformat() if isinstance(key, datetime) else str(key)
        return [row[0] for row in rows[:limit]], [key_text, last]

    async def find(db: AsyncSession, wanted: tuple[bool, bool]) -> ListIds:
        ids, more = await fetch(db, True)
        return ListIds(tuple(ids), None, more)

    async def read_all(db: AsyncSession) -> tuple[list[bytes], int, Any]:
        rows, more = await fetch(db, False)
        return [definition.kind.write(row) for row in rows], 0, more

    part = [selection.sort, "after", after and [str(after[0]), after[1]], limit]
    return ListQuery(
        definition.kind, selection.conditions, part, counted=False, find=find, read_all=read_all
    )


def _of(
    db: AsyncSession, definition: ListDefinition, selection: FilterSelection
) -> tuple[_Shape, Mapping[str, Any]]:
    dialect = db.get_bind().dialect.name
    shape = _Shape(definition, tuple(selection.conditions), selection.sort, dialect)
    return shape, selection.values(dialect)


def _parts(shape: _Shape) -> tuple[Sequence[ColumnElement[bool]], Order]:
    where = shape.definition.conditions(shape.names, shape.sort, shape.dialect)
    return where, shape.definition.order(shape.sort)


@lru_cache(STATEMENT_CACHE_SIZE)
def _page(shape: _Shape, by_id: bool) -> Select[Any]:
    where, order = _parts(shape)
    selected = order.id if by_id else shape.definition.model
    return page_query(selected, where, order, _count(shape))


@lru_cache(STATEMENT_CACHE_SIZE)
def _ids(shape: _Shape) -> Select[Any]:
    where, order = _parts(shape)
    return page_query(order.id, where, order)


@lru_cache(STATEMENT_CACHE_SIZE)
def _count(shape: _Shape) -> Select[int]:
    known = shape.definition.known_count(shape.names)
    return count_of(shape.definition.model, _parts(shape)[0]) if known is None else known


@lru_cache(STATEMENT_CACHE_SIZE)
def _slice(shape: _Shape, by_id: bool, follows: bool) -> Select[Any]:
    where, order = _parts(shape)
    selected = order.id if by_id else shape.definition.model
    query = select(selected, order.key.label("sort_key"), order.id.label("row_id")).where(*where)
    return order.apply(query, follows=follows).limit(LIMIT)
