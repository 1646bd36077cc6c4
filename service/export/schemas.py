"""Pydantic schemas of the export."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, Field
from pydantic.json_schema import SkipJsonSchema

from service.books.schemas import BookOut
from service.http.pagination import hide_default
from service.http.schemas import Int64, QueryCount, Schema, query_integer
from service.models.types import INT64

MAX_PAGE_SIZE = 1_000  # books; a larger limit is reduced to this


class DataQuery(Schema):
    """Query parameters of the export."""

    cursor: Annotated[int, Field(ge=0, le=INT64), BeforeValidator(query_integer)] = Field(
        0,
        description="`next_cursor` of the page before, or the last id that was read",
        examples=[0],
    )
    limit: QueryCount = Field(
        MAX_PAGE_SIZE,
        description=f"books of a page, by default {MAX_PAGE_SIZE}; above {MAX_PAGE_SIZE} it is "
        f"{MAX_PAGE_SIZE}. Not for a stream",
        examples=[MAX_PAGE_SIZE],
        json_schema_extra=hide_default,
    )


class DataPage(BaseModel):
    """A page of the catalogue, by id. `next_cursor` is present if there are more books."""

    data: list[BookOut]
    next_cursor: Int64 | SkipJsonSchema[None] = None
