"""Pydantic schemas of books in requests and responses."""

import re
from decimal import Decimal
from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    RootModel,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from pydantic.config import JsonDict
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import TypeAliasType

from service.http.fields import fields_schema, read_fields
from service.http.pagination import (
    DEFAULT_SIZE,
    MAX_SIZE,
    CachedPageQuery,
    CachedQuery,
    Links,
    Pagination,
    hide_default,
)
from service.http.schemas import (
    Instant,
    Int64,
    QueryCount,
    QueryDecimal,
    QueryInteger,
    Schema,
    not_blank,
)
from service.models.search import words

MIN_YEAR, MAX_YEAR = 1000, 2100
MAX_PRICE = Decimal("99999999.99")
# Without `multipleOf: 0.01`: JSON Schema validators that divide floats would refuse 9.95.
PRICE_SCHEMA = {"type": "number", "minimum": 0, "maximum": float(MAX_PRICE)} | {
    "description": "at most two decimals"
}
ISBN = re.compile("[0-9]{9}[0-9X]|[0-9]{13}")
ISBN_AS_WRITTEN = "^[- ]*([0-9][- ]*){9}([0-9Xx][- ]*|([0-9][- ]*){4})$"


def _isbn(value: str) -> str:
    compact = value.replace("-", "").replace(" ", "").upper()
    if not ISBN.fullmatch(compact):
        raise ValueError("String does not match expected pattern: 10 or 13 digits.")
    return compact


def _number(value: Any) -> Any:
    return Decimal(value) if type(value) is int else value


def whole(value: Any) -> Any:
    """Accept 1997.0, which is an integer in JSON Schema (2020-12, 4.2.3)."""
    if isinstance(value, Decimal) and value == value.to_integral_value():
        return int(value)
    return value


def _searchable(value: str) -> str:
    if not words(value):
        raise ValueError("Must hold a letter or a digit.")
    return value


Title = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(not_blank)]
Author = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(not_blank)]
Isbn = Annotated[
    str,
    AfterValidator(_isbn),
    WithJsonSchema({"type": "string", "pattern": ISBN_AS_WRITTEN}),
]
Year = Annotated[int, Field(ge=MIN_YEAR, le=MAX_YEAR), BeforeValidator(whole)]
# A TypeAliasType is a named schema in the OpenAPI document.
Genre = TypeAliasType("Genre", Literal["Fiction", "Non-Fiction", "Science", "History"])
Price = Annotated[
    Decimal,
    BeforeValidator(_number),
    Field(ge=0, le=MAX_PRICE, decimal_places=2),
    AfterValidator(abs),  # -0 is 0
    WithJsonSchema(PRICE_SCHEMA),
]
SearchText = Annotated[str, Field(max_length=200), AfterValidator(_searchable)]
Sort = TypeAliasType(
    "Sort",
    Literal[
        "id", "created_at", "title", "published_year", "price",
        "-id", "-created_at", "-title", "-published_year", "-price",
    ],
)  # fmt: skip


EXAMPLE: JsonDict = {
    "title": "The Selfish Gene",
    "author": "Richard Dawkins",
    "isbn": "9780192860927",
    "published_year": 1976,
    "genre": "Science",
    "price": 9.95,
}
EXAMPLE_OUT: JsonDict = {
    "id": 1,
    **EXAMPLE,
    "user_id": 1,
    "version": 1,
    "created_at": "2026-11-23T07:49:41.219000Z",
    "updated_at": "2026-11-23T07:49:41.219000Z",
}


class BookCreate(Schema):
    """A book to create. The server sets all other fields."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    title: Title
    author: Author
    isbn: Isbn | None = None
    published_year: Year | None = None
    genre: Genre | None = None
    price: Price | None = None


class BookUpdate(Schema):
    """A change of a book: absent fields keep their value, null clears an optional field."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"price": 7.5, "genre": None}]})

    title: Title = Field(default_factory=str)
    author: Author = Field(default_factory=str)
    isbn: Isbn | None = None
    published_year: Year | None = None
    genre: Genre | None = None
    price: Price | None = None


class BookOut(BaseModel):
    """A book as clients see it. `price` is exact: at most two decimals, ten digits."""

    model_config = ConfigDict(
        from_attributes=True, title="Book", json_schema_extra={"examples": [EXAMPLE_OUT]}
    )

    id: Int64
    title: str
    author: str
    isbn: str | None
    published_year: int | None
    genre: Genre | None
    price: Annotated[Decimal, PlainSerializer(float, return_type=float)] | None
    user_id: Int64 | None
    version: Int64
    created_at: Instant
    updated_at: Instant


def _optional_members(schema: JsonDict) -> None:
    del schema["required"]
    schema["examples"] = [{"id": 1, "title": EXAMPLE["title"]}]


class SparseBook(BookOut):
    """The members of a book that the parameter `fields` selects."""

    model_config = ConfigDict(title="SparseBook", json_schema_extra=_optional_members)


class BookItem(RootModel[BookOut | SparseBook]):
    """A book, or the members that `fields` selects."""


class BookPage(BaseModel):
    """A page of books, newest first unless sorted."""

    items: list[BookOut] | list[SparseBook]
    total: Int64
    pagination: Pagination
    links: Links


class BookSlice(BaseModel):
    """Books after a cursor, by id unless sorted. `next_cursor` is present if there are more."""

    items: list[BookOut] | list[SparseBook]
    has_more: bool
    next_cursor: Int64 | str | SkipJsonSchema[None] = None


class BookLists(RootModel[BookPage | BookSlice]):
    """Books, in page mode or cursor mode."""


class BookArray(RootModel[list[BookOut] | list[SparseBook]]):
    """Books as a JSON array without an envelope, as in the Flask guide."""


BookFields = Annotated[
    tuple[str, ...],
    BeforeValidator(partial(read_fields, BookOut)),
    WithJsonSchema(fields_schema(BookOut)),
]


class FieldsQuery(Schema):
    """Query parameter that selects the members of books."""

    fields: BookFields | None = Field(
        None,
        description="members of a book in the response, separated by commas; by default all",
        examples=["id,title"],
    )


class BookItemQuery(CachedQuery, FieldsQuery):
    """Query parameters of a book."""


class BookArrayQuery(CachedPageQuery, FieldsQuery):
    """Query parameters of the books of a user."""


class BookFilters(Schema):
    """Conditions on books, combined by AND."""

    genre: Genre | None = None
    author: Author | None = Field(
        None, description="full name, ignoring case", examples=["jane austen"]
    )
    isbn: Isbn | None = Field(None, examples=["978-0-306-40615-7"])
    user_id: QueryInteger | None = Field(None, description="id of the owner", examples=[1])
    year_min: QueryInteger | None = Field(None, examples=[1900])
    year_max: QueryInteger | None = Field(None, examples=[1999])
    price_min: QueryDecimal | None = Field(None, examples=[5])
    price_max: QueryDecimal | None = Field(None, examples=[9.99])
    q: SearchText | None = Field(
        None,
        description="words of title and author, the last one as a prefix",
        examples=["brief hist"],
    )

    def conditions(self) -> dict[str, str]:
        """Return the filters that are set, as canonical text. A cursor is valid only with them."""
        return {
            name: str(value)
            for name in BookFilters.model_fields
            if (value := getattr(self, name)) is not None
        }


class BookQuery(BookFilters, CachedPageQuery, FieldsQuery):
    """A list of books: page mode, or cursor mode if `cursor` or `limit` is present."""

    too_deep = "Beyond 100000 rows use cursor mode: limit instead of page and per_page."

    sort: Sort | None = None
    cursor: Annotated[str, StringConstraints(strip_whitespace=False)] | None = Field(
        None, description="`next_cursor` of the page before", examples=["20"]
    )
    limit: QueryCount = Field(
        DEFAULT_SIZE,
        description=f"books at a time in cursor mode, by default {DEFAULT_SIZE}; above {MAX_SIZE} "
        f"it is {MAX_SIZE}",
        examples=[DEFAULT_SIZE],
        json_schema_extra=hide_default,
    )

    @property
    def by_cursor(self) -> bool:
        """Whether the query selects cursor mode."""
        return not self.model_fields_set.isdisjoint({"cursor", "limit"})

    @model_validator(mode="after")
    def _one_mode(self) -> Self:
        if self.by_cursor and not self.model_fields_set.isdisjoint({"page", "per_page"}):
            raise ValueError("Give page and per_page, or cursor and limit, not both.")
        return self
