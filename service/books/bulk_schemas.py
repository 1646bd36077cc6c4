"""Pydantic schemas of requests and responses for many books."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, SkipValidation

from service.books.schemas import EXAMPLE, BookCreate, BookOut, BookUpdate, whole
from service.http.bulk import MAX_ITEMS
from service.http.schemas import Int64, Schema
from service.models.types import INT64

MAX_IDS = 1_000  # of a request

RowId = Annotated[int, Field(ge=0, le=INT64), BeforeValidator(whole)]
Version = Annotated[int, Field(ge=1, le=INT64), BeforeValidator(whole)]
SEVERAL = Field(min_length=1, max_length=MAX_ITEMS, description="each item is validated alone")


class BookIds(Schema):
    """The ids of books to read. Ids may be repeated."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"ids": [2, 1]}]})

    ids: Annotated[list[RowId], FailFast()] = Field(min_length=1, max_length=MAX_IDS)


class BookBatch(BaseModel):
    """Books in the order of the requested ids, and the ids without a book, each once."""

    items: list[BookOut]
    missing: list[Int64]


class BooksCreate(Schema):
    """Books to create."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"items": [EXAMPLE]}]})

    items: list[SkipValidation[BookCreate]] = SEVERAL


class BookRef(Schema):
    """A book by its id. If `version` is present, it must be the present version of the book."""

    id: RowId
    version: Version = Field(default_factory=int)


class BookChange(BookRef, BookUpdate):
    """A change of a book: absent fields keep their value, null clears an optional field."""


class BooksUpdate(Schema):
    """Changes of books. No book can be given twice."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"items": [{"id": 1, "version": 1, "price": 7.5}]}]}
    )

    items: list[SkipValidation[BookChange]] = SEVERAL


class BooksDelete(Schema):
    """Books to delete. No book can be given twice."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"items": [{"id": 1}]}]})

    items: list[SkipValidation[BookRef]] = SEVERAL
