"""Pagination of all lists: by page number, and by signed cursor."""

from typing import Any, ClassVar

from itsdangerous import BadSignature, URLSafeSerializer
from pydantic import BaseModel, Field
from pydantic.config import JsonDict
from pydantic.json_schema import SkipJsonSchema
from quart import Quart

from service.config import Settings
from service.db.list_queries import Page
from service.errors import InvalidInputError
from service.http.schemas import Int64, QueryCount, QueryFlag, Schema
from service.http.urls import RequestUrl

DEFAULT_SIZE = 20
MAX_SIZE = 100  # a larger per_page is reduced to this
MAX_OFFSET = 100_000  # rows before a page; a client that wants more uses a cursor


def hide_default(schema: JsonDict) -> None:
    """Remove a parameter's default from the OpenAPI document.

    Generated clients would send the default, and the presence of the parameter selects pages.
    """
    del schema["default"]


class PageQuery(Schema):
    """Query parameters that select a page of a list. `page` counts from 1."""

    too_deep: ClassVar[str] = "Too deep: a page may skip 100000 rows."

    page: QueryCount = Field(
        1,
        description="which page, from 1, which is also the default",
        examples=[1],
        json_schema_extra=hide_default,
    )
    per_page: QueryCount = Field(
        DEFAULT_SIZE,
        description=f"rows of a page, by default {DEFAULT_SIZE}; above {MAX_SIZE} it is {MAX_SIZE}",
        examples=[DEFAULT_SIZE],
        json_schema_extra=hide_default,
    )

    def to_page(self) -> "Page":
        """Return the page, of at most MAX_SIZE rows. Raises InvalidInputError above MAX_OFFSET."""
        size = min(self.per_page, MAX_SIZE)
        page = Page(self.page, size)
        if page.offset > MAX_OFFSET:
            raise InvalidInputError({"page": [self.too_deep]})
        return page


class CachedQuery(Schema):
    """Query parameter that bypasses the cache."""

    nocache: QueryFlag = Field(
        False, description="read past the cache", json_schema_extra={"default": 0}
    )


class CachedPageQuery(PageQuery, CachedQuery):
    """Query parameters of a cached list."""


class Pagination(BaseModel):
    """The position of a page. `prev_page` and `next_page` are null if there is no such page."""

    page: Int64
    per_page: int
    total_pages: Int64
    total_items: Int64
    has_next: bool
    has_prev: bool
    next_page: Int64 | None
    prev_page: Int64 | None


class Links(BaseModel):
    """Absolute links to pages. A link is absent if its page does not exist or is too deep."""

    self: str
    first: str
    last: str | SkipJsonSchema[None] = None
    next: str | SkipJsonSchema[None] = None
    prev: str | SkipJsonSchema[None] = None


def page_envelope(page: Page, total: int, here: RequestUrl) -> dict[str, Any]:
    """Return the members `total`, `pagination` and `links` of a list response."""
    last = max(1, -(-total // page.size))
    has_next = page.number < last
    links = here.pages(
        page.number,
        last=last if (last - 1) * page.size <= MAX_OFFSET else None,
        has_next=has_next and page.number * page.size <= MAX_OFFSET,
    )
    return {
        "total": total,
        "pagination": {
            "page": page.number,
            "per_page": page.size,
            "total_pages": -(-total // page.size),
            "total_items": total,
            "has_next": has_next,
            "has_prev": page.number > 1,
            "next_page": page.number + 1 if has_next else None,
            "prev_page": page.number - 1 if page.number > 1 else None,
        },
        "links": links,
    }


class Cursors:
    """Signs and verifies cursors. A changed cursor is invalid; so is a cursor of another list."""

    def __init__(self, settings: Settings) -> None:
        keys = [settings.secret_key_previous, settings.secret_key]
        self._signers = [
            URLSafeSerializer(key.get_secret_value(), salt="octavo.cursor") for key in keys if key
        ]

    def write(self, purpose: list[Any], key: str, row_id: int) -> str:
        """Return the cursor after a row. purpose: identifies the list. key: the row's sort key."""
        return str(self._signers[-1].dumps([purpose, key, row_id]))

    def read(self, cursor: str, purpose: list[Any]) -> tuple[str, int]:
        """Return the sort key and id in a cursor. Raises InvalidInputError."""
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
    """Install `Cursors` as an extension of the application."""
    app.extensions["cursors"] = Cursors(settings)
