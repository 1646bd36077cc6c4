"""The rules of books, and their SQL."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from functools import partial
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Select,
    SQLColumnExpression,
    and_,
    bindparam,
    cast,
    column,
    func,
    select,
    table,
    text,
)
from sqlalchemy.dialects.postgresql import TSQUERY
from sqlalchemy.ext.asyncio import AsyncSession
from stdnum import isbn as isbn_numbers

from service.books.schemas import (
    MAX_PRICE,
    MAX_YEAR,
    BookCreate,
    BookFilters,
    BookOut,
    BookUpdate,
)
from service.cache import Entry, Kind, Listing, shape_of
from service.errors import (
    ForbiddenError,
    InvalidInputError,
    ResourceNotFoundError,
)
from service.guard import CurrentUser, confirm
from service.listing import list_after, list_page
from service.models import (
    PRICE_ASC,
    PRICE_DESC,
    YEAR_ASC,
    YEAR_DESC,
    Book,
    BookCount,
    fold,
    words,
)
from service.pagination import Order, Page

CENT = Decimal("0.01")
MANY = select(Book).where(Book.id.in_(bindparam("ids", expanding=True)))  # made once


@dataclass(frozen=True)
class _SortKey:
    """The key of a sort in both directions, and how a cursor spells its values."""

    ascending: SQLColumnExpression[Any]
    descending: SQLColumnExpression[Any]
    read: Callable[[str], Any]


SORTS = {
    "id": _SortKey(Book.id, Book.id, int),
    "created_at": _SortKey(Book.created_at, Book.created_at, datetime.fromisoformat),
    "title": _SortKey(Book.title, Book.title, str),
    "published_year": _SortKey(YEAR_ASC, YEAR_DESC, int),
    "price": _SortKey(PRICE_ASC, PRICE_DESC, Decimal),
}


def order_of(sort: str) -> Order:
    """Give the order that a `sort` names: `-` for descending, NULLs last in both."""
    key = SORTS[sort.removeprefix("-")]
    descending = sort.startswith("-")
    return Order(key.descending if descending else key.ascending, Book.id, descending)


def key_of(sort: str, spelled: str) -> Any:
    """Read the value of a sort's key as a cursor spells it."""
    return SORTS[sort.removeprefix("-")].read(spelled)


def list_books(filters: BookFilters, sort: str, page: Page) -> Listing:
    """List a page of books."""
    order, where = order_of(sort), partial(_matching, filters, sort)
    named = filters.conditions()
    return list_page(BOOKS, Book, named, where, (sort, order), page, partial(_kept_count, filters))


def list_books_after(
    filters: BookFilters, sort: str, after: tuple[Any, int] | None, limit: int
) -> Listing:
    """List `limit` books behind a key and id."""
    order, where = order_of(sort), partial(_matching, filters, sort)
    return list_after(BOOKS, Book, filters.conditions(), where, (sort, order), after, limit)


def _bytes(book: Book) -> bytes:
    return BookOut.model_validate(book).model_dump_json().encode()


async def load_books(db: AsyncSession, ids: Sequence[int]) -> dict[int, Entry]:
    """Give the entries of those books that there are."""
    books = await db.scalars(MANY, {"ids": ids})
    return {book.id: Entry(b"%d" % book.version, _bytes(book)) for book in books}


BOOKS = Kind("book", shape_of(BookOut), load_books, _bytes)


def book_values(owner_id: int | None, data: BookCreate) -> dict[str, Any]:
    """Give the columns of a new book; without an owner, administrators alone may change it."""
    return {"user_id": owner_id, **data.model_dump(), **Book.derived(data.title, data.author)}


def new_book(owner_id: int | None, data: BookCreate) -> Book:
    """Make the row of a new book."""
    return Book(**book_values(owner_id, data))


async def create_book(db: AsyncSession, data: BookCreate, user: CurrentUser) -> Book:
    """Add a book, owned by `user`."""
    owner = await confirm(db, user)
    book = new_book(owner.id, data)
    db.add(book)
    await db.flush()
    return book


async def update_book(db: AsyncSession, book_id: int, data: BookUpdate, user: CurrentUser) -> Book:
    """Change the fields that were given. A change of nothing keeps the version."""
    book = await _owned_book(db, book_id, user)
    before = (book.title, book.author)
    for name in data.model_fields_set:
        setattr(book, name, getattr(data, name))
    if (book.title, book.author) != before:
        for name, value in Book.derived(book.title, book.author).items():
            setattr(book, name, value)
    await db.flush()
    return book


async def delete_book(db: AsyncSession, book_id: int, user: CurrentUser) -> None:
    """Delete a book for good."""
    await db.delete(await _owned_book(db, book_id, user))
    await db.flush()


def check_isbn(isbn: str | None) -> None:
    """Raise InvalidInputError if the check digit of an ISBN is wrong."""
    if isbn is not None and not isbn_numbers.is_valid(isbn):
        raise InvalidInputError({"isbn": ["The check digit is wrong."]})


async def _owned_book(db: AsyncSession, book_id: int, user: CurrentUser) -> Book:
    """Give a book that `user` may change, locked until the transaction ends."""
    user = await confirm(db, user)
    book = await db.get(Book, book_id, with_for_update=True)
    if book is None:
        raise not_found(book_id)
    if book.user_id != user.id and not user.is_admin:
        raise ForbiddenError("Only the owner of a book or an administrator may change it")
    return book


def not_found(book_id: int, headers: Mapping[str, str] | None = None) -> ResourceNotFoundError:
    """Give the error of a book that is not there."""
    return ResourceNotFoundError(f"Book with id {book_id} not found", headers=headers)


def _kept_count(filters: BookFilters) -> Select[int] | None:
    """Give the number of books that the database keeps: of all of them, and of a genre."""
    if filters.conditions().keys() - {"genre"}:
        return None
    kept = select(cast(func.coalesce(func.sum(BookCount.n), 0), BigInteger))
    return kept if filters.genre is None else kept.where(BookCount.genre == filters.genre)


def _matching(filters: BookFilters, sort: str, db: AsyncSession) -> list[ColumnElement[bool]]:
    """Put filters into SQL."""
    found: list[ColumnElement[bool]] = []
    if filters.genre is not None:
        found.append(Book.genre == filters.genre)
    if filters.author is not None:
        found.append(Book.author_key == fold(filters.author))
    if filters.isbn is not None:
        found.append(Book.isbn == filters.isbn)
    if filters.user_id is not None:
        found.append(Book.user_id == filters.user_id)
    if filters.year_min is not None or filters.year_max is not None:
        years = (filters.year_min, filters.year_max, MAX_YEAR)
        found.append(_between("published_year", sort, *years))
    if filters.price_min is not None or filters.price_max is not None:
        found.append(_between("price", sort, filters.price_min, filters.price_max, MAX_PRICE))
    if filters.q is not None:
        found.append(_found_by(db, words(filters.q)))
    return found


def _between(
    name: str,
    sort: str,
    least: Decimal | int | None,
    most: Decimal | int | None,
    highest: Decimal | int,
) -> ColumnElement[bool]:
    """Bound a key that is NULL nowhere to what its column can hold: that leaves NULLs out.

    The key is the one that the list is sorted by, if it is of the same column, so that one walk
    through one index does for both; the planner has statistics of its values.
    """
    key = SORTS[name]
    value = key.ascending if sort == name else key.descending
    lower = 0 if least is None else _whole_cents(min(max(least, 0), highest + 1), ROUND_CEILING)
    upper = highest if most is None else _whole_cents(min(max(most, -1), highest), ROUND_FLOOR)
    return and_(value >= lower, value <= upper)


def _whole_cents(value: Decimal | int, rounding: str) -> Decimal | int:
    return value if isinstance(value, int) else value.quantize(CENT, rounding)


def _found_by(db: AsyncSession, terms: list[str]) -> ColumnElement[bool]:
    """Match books that hold all terms, the last one as a prefix. Terms are letters and digits."""
    if db.get_bind().dialect.name == "postgresql":
        query = " & ".join(f"'{term}'" for term in terms) + ":*"
        return Book.search.bool_op("@@")(cast(query, TSQUERY))
    match = " ".join(f'"{term}"' for term in terms) + "*"
    found = text("books_fts MATCH :match").bindparams(match=match)
    return Book.id.in_(select(column("rowid")).select_from(table("books_fts")).where(found))
