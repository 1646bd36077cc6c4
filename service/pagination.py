"""Pagination: pages and cursors, with the same rules for every list."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from itsdangerous import BadSignature, URLSafeSerializer
from pydantic import BaseModel, Field
from pydantic.config import JsonDict
from pydantic.json_schema import SkipJsonSchema
from quart import Quart
from sqlalchemy import ColumnElement, Integer, Select, bindparam, func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from service.config import Settings
from service.errors import InvalidInputError
from service.links import RequestUrl
from service.validation import Int64, QueryCount, QueryFlag, Schema

DEFAULT_SIZE = 20
MAX_SIZE = 100  # a larger per_page is reduced to this
MAX_OFFSET = 100_000  # rows that a page may skip; beyond, use a cursor
LIMIT, OFFSET = bindparam("limit", type_=Integer()), bindparam("offset", type_=Integer())


def unsaid_default(schema: JsonDict) -> None:
    """Remove a default from the OpenAPI document: generated clients would send it.

    The presence of such a parameter selects pages or cursors.
    """
    del schema["default"]


class PageQuery(Schema):
    """Which page of a list: `page` counts from 1."""

    too_deep: ClassVar[str] = "Too deep: a page may skip 100000 rows."

    page: QueryCount = Field(
        1,
        description="which page, from 1, which is also the default",
        examples=[1],
        json_schema_extra=unsaid_default,
    )
    per_page: QueryCount = Field(
        DEFAULT_SIZE,
        description=f"rows of a page, by default {DEFAULT_SIZE}; above {MAX_SIZE} it is {MAX_SIZE}",
        examples=[DEFAULT_SIZE],
        json_schema_extra=unsaid_default,
    )

    def to_page(self) -> "Page":
        """Check the offset. Raises InvalidInputError if it is too deep."""
        size = min(self.per_page, MAX_SIZE)
        page = Page(self.page, size)
        if page.offset > MAX_OFFSET:
            raise InvalidInputError({"page": [self.too_deep]})
        return page


class CachedQuery(Schema):
    """Whether something cached is read past the cache."""

    nocache: QueryFlag = Field(
        False, description="read past the cache", json_schema_extra={"default": 0}
    )


class CachedPageQuery(PageQuery, CachedQuery):
    """Which page of a list that is cached."""


class Pagination(BaseModel):
    """Where a page stands. The numbers of its neighbours are null at the ends."""

    page: Int64
    per_page: int
    total_pages: Int64
    total_items: Int64
    has_next: bool
    has_prev: bool
    next_page: Int64 | None
    prev_page: Int64 | None


class Links(BaseModel):
    """Absolute links to pages, absent where there is no such page, or it is too deep."""

    self: str
    first: str
    last: str | SkipJsonSchema[None] = None
    next: str | SkipJsonSchema[None] = None
    prev: str | SkipJsonSchema[None] = None


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

    def envelope(self, total: int, here: RequestUrl) -> dict[str, Any]:
        """Return the members of a list's response beside its items: total, pagination, links."""
        last = max(1, -(-total // self.size))
        has_next = self.number < last
        links = here.pages(
            self.number,
            last=last if (last - 1) * self.size <= MAX_OFFSET else None,
            has_next=has_next and self.number * self.size <= MAX_OFFSET,
        )
        return {
            "total": total,
            "pagination": {
                "page": self.number,
                "per_page": self.size,
                "total_pages": -(-total // self.size),
                "total_items": total,
                "has_next": has_next,
                "has_prev": self.number > 1,
                "next_page": self.number + 1 if has_next else None,
                "prev_page": self.number - 1 if self.number > 1 else None,
            },
            "links": links,
        }


@dataclass(frozen=True)
class Order:
    """A total order of rows: a key without NULL, then the id, both in one direction."""

    key: ColumnElement[Any]
    id: ColumnElement[int]
    descending: bool

    def apply(self, query: Select[Any], *, follows: bool = False) -> Select[Any]:
        """Sort a query. `follows`: only rows after the parameters after_key and after_id."""
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
    """Make the query of a page of rows, or of a column. `counted` adds the total to each row."""
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
        # The count is a second snapshot. Limit it: the total must not claim that this empty page
        # has rows.
        return [], min(await db.scalar(counted, values) or 0, page.offset)
    return [row[0] for row in rows], rows[0][1]


def count_of(model: Any, where: Sequence[ColumnElement[bool]]) -> Select[int]:
    """Make the query of the number of rows."""
    return select(func.count()).select_from(model.__table__).where(*where).correlate(None)


class Cursors:
    """Opaque, signed cursors. A changed cursor is invalid, and so is a cursor of another list."""

    def __init__(self, settings: Settings) -> None:
        keys = [settings.secret_key_previous, settings.secret_key]
        self._signers = [
            URLSafeSerializer(key.get_secret_value(), salt="octavo.cursor") for key in keys if key
        ]

    def write(self, purpose: list[Any], key: str, row_id: int) -> str:
        """Return the cursor after a row, for the list that `purpose` describes."""
        return str(self._signers[-1].dumps([purpose, key, row_id]))

    def read(self, cursor: str, purpose: list[Any]) -> tuple[str, int]:
        """Return the key and id of a cursor. Raises InvalidInputError if it is invalid."""
        for signer in self._signers:
            try:
                signed_purpose, key, row_id = signer.loads(cursor)
            except BadSignature:
                continue
            # Base64 has several encodings of some bytes: only the canonical one is accepted.
            if signed_purpose == purpose and signer.dumps([purpose, key, row_id]) == cursor:
                return key, row_id
        raise InvalidInputError({"cursor": ["Not a cursor of this list."]})


def init_app(app: Quart, settings: Settings) -> None:
    """Add the cursors to the application."""
    app.extensions["cursors"] = Cursors(settings)
