"""The rules of books, and their SQL."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from functools import lru_cache, partial
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Insert,
    Row,
    Select,
    Update,
    and_,
    bindparam,
    cast,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession
from stdnum import isbn as isbn_numbers

from service.books.schemas import MAX_PRICE, MAX_YEAR, BookCreate, BookFilters, BookOut, BookUpdate
from service.cache import Entry, Kind, ListQuery, delete_row, shape_of, write_rows
from service.errors import ForbiddenError, InvalidInputError, ResourceNotFoundError
from service.group_commit import RetryAloneError
from service.guard import (
    ACTOR_TYPES,
    CurrentUser,
    actor_in,
    actor_values,
    recheck_user,
    valid_actor_id,
    with_actor,
)
from service.json_rows import ORDER, JsonRows
from service.listing import FilterSelection, ListDefinition, list_after, list_page
from service.models import (
    PRICE_ASC,
    PRICE_DESC,
    YEAR_ASC,
    YEAR_DESC,
    Book,
    BookCount,
    fold,
)
from service.pagination import Order, Page
from service.search import found_by, query_of

CENT = Decimal("0.01")
TABLE: Any = Book.__table__
COLUMNS = Book.__table__.c
# Made once, and without the ORM: what is shown of a book.
OUTPUT_COLUMNS = [COLUMNS[name] for name in BookOut.model_fields]
INPUT_COLUMNS = [*BookCreate.model_fields, *Book.derived("", "")]
NEW_ROWS = JsonRows("new", {**ACTOR_TYPES, **{name: COLUMNS[name].type for name in INPUT_COLUMNS}})
SELECT_OWNED = with_actor(select(*OUTPUT_COLUMNS).where(COLUMNS.id == bindparam("book_id")), TABLE)
SELECT_MANY = select(*OUTPUT_COLUMNS).where(COLUMNS.id.in_(bindparam("ids", expanding=True)))


class _SortKey(NamedTuple):
    """The key of a sort in both directions, and how a cursor spells its values."""

    ascending: ColumnElement[Any]
    descending: ColumnElement[Any]
    read: Callable[[str], Any]


SORTS = {
    "id": _SortKey(COLUMNS.id, COLUMNS.id, int),
    "created_at": _SortKey(COLUMNS.created_at, COLUMNS.created_at, datetime.fromisoformat),
    "title": _SortKey(COLUMNS.title, COLUMNS.title, str),
    "published_year": _SortKey(YEAR_ASC, YEAR_DESC, int),
    "price": _SortKey(PRICE_ASC, PRICE_DESC, Decimal),
}


def key_of(sort: str, spelled: str) -> Any:
    """Read the value of a sort's key as a cursor spells it."""
    return SORTS[sort.removeprefix("-")].read(spelled)


def list_books(filters: BookFilters, sort: str, page: Page) -> ListQuery:
    """List a page of books."""
    return list_page(LIST_DEFINITION, _chosen(filters, sort), page)


def list_books_after(
    filters: BookFilters, sort: str, after: tuple[Any, int] | None, limit: int
) -> ListQuery:
    """List `limit` books behind a key and id."""
    return list_after(LIST_DEFINITION, _chosen(filters, sort), after, limit)


def _bytes(book: Book | Row[Any]) -> bytes:
    return BookOut.model_validate(book).model_dump_json().encode()


async def load_books(db: AsyncSession, ids: Sequence[int]) -> dict[int, Entry]:
    """Give the entries of those books that there are."""
    books = await db.execute(SELECT_MANY, {"ids": ids})
    return {book.id: Entry(b"%d" % book.version, _bytes(book)) for book in books}


BOOKS = Kind("book", shape_of(BookOut), load_books, _bytes)


def book_values(owner_id: int | None, data: BookCreate) -> dict[str, Any]:
    """Give the columns of a new book; without an owner, administrators alone may change it."""
    return {"user_id": owner_id, **data.model_dump(), **Book.derived(data.title, data.author)}


def new_book(owner_id: int | None, data: BookCreate) -> Book:
    """Make the row of a new book."""
    return Book(**book_values(owner_id, data))


async def create_books(
    db: AsyncSession, given: Sequence[tuple[BookCreate, CurrentUser]], apart: bool
) -> Sequence[Row[Any]]:
    """Add books, each owned by its user. Raises ApartError if some may not act, or are locked.

    apart: it is one, and what has to be waited for is waited for.
    """
    if apart:
        await recheck_user(db, given[0][1])
    dialect = db.get_bind().dialect
    rows = [actor_values(user) | book_values(user.id, data) for data, user in given]
    made = await write_rows(db, Book, _insert(dialect.name), NEW_ROWS.write(rows, dialect))
    books = sorted(made, key=lambda book: book.id)  # ids are given out in the order of the rows
    if orphans := {n for n, book in enumerate(books) if book.user_id is None}:
        raise RetryAloneError(orphans)
    return books


@lru_cache
def _insert(dialect: str) -> Insert:
    new = NEW_ROWS.read(dialect)
    what = select(valid_actor_id(new.c), *(new.c[name] for name in INPUT_COLUMNS)).order_by(
        new.c[ORDER]
    )
    return insert(TABLE).from_select(["user_id", *INPUT_COLUMNS], what).returning(*OUTPUT_COLUMNS)


async def update_book(
    db: AsyncSession, book_id: int, data: BookUpdate, user: CurrentUser
) -> Row[Any]:
    """Change the fields that were given. A change of nothing keeps the version."""
    book = await _lock_owned(db, book_id, user)
    given = {name: getattr(data, name) for name in data.model_fields_set}
    changes = {name: value for name, value in given.items() if value != getattr(book, name)}
    if not changes:
        return book
    if not changes.keys().isdisjoint({"title", "author"}):
        title, author = (changes.get(name, getattr(book, name)) for name in ("title", "author"))
        changes |= Book.derived(title, author)
    values = {f"new_{name}": value for name, value in changes.items()}
    statement = _update(tuple(sorted(changes)))
    (changed,) = await write_rows(db, Book, statement, {"book_id": book_id, **values})
    return changed


@lru_cache
def _update(names: tuple[str, ...]) -> Update:
    values = {name: bindparam(f"new_{name}", type_=COLUMNS[name].type) for name in names}
    changed = update(TABLE).where(COLUMNS.id == bindparam("book_id"))
    return changed.values(version=COLUMNS.version + 1, **values).returning(*OUTPUT_COLUMNS)


async def delete_book(db: AsyncSession, book_id: int, user: CurrentUser) -> None:
    """Delete a book for good."""
    await _lock_owned(db, book_id, user)
    await delete_row(db, Book, book_id)


def check_isbn(isbn: str | None) -> None:
    """Raise InvalidInputError if the check digit of an ISBN is wrong."""
    if isbn is not None and not isbn_numbers.is_valid(isbn):
        raise InvalidInputError({"isbn": ["The check digit is wrong."]})


async def _lock_owned(db: AsyncSession, book_id: int, user: CurrentUser) -> Row[Any]:
    """Give a book that `user` may change, locked until the transaction ends."""
    keys = {"book_id": book_id, "actor_id": user.id}
    book: Row[Any] | None = (await db.execute(SELECT_OWNED, keys)).one_or_none()
    if book is None:
        await recheck_user(db, user)
        raise not_found(book_id)
    user = actor_in(book, user)
    if book.user_id != user.id and not user.is_admin:
        raise ForbiddenError("Only the owner of a book or an administrator may change it")
    return book


def not_found(book_id: int, headers: Mapping[str, str] | None = None) -> ResourceNotFoundError:
    """Give the error of a book that is not there."""
    return ResourceNotFoundError(f"Book with id {book_id} not found", headers=headers)


EQUALITY_FILTERS = {
    "genre": COLUMNS.genre,
    "author": COLUMNS.author_key,
    "isbn": COLUMNS.isbn,
    "user_id": COLUMNS.user_id,
}
RANGE_FILTERS: dict[str, tuple[str, Any]] = {
    "year": ("published_year", MAX_YEAR),
    "price": ("price", MAX_PRICE),
}


def _order_of(sort: str) -> Order:
    """Give the order that a `sort` names: `-` for descending, NULLs last in both."""
    key = SORTS[sort.removeprefix("-")]
    descending = sort.startswith("-")
    return Order(key.descending if descending else key.ascending, COLUMNS.id, descending)


def _kept_count(names: tuple[str, ...]) -> Select[int] | None:
    """Give the number of books that the database keeps: of all of them, and of a genre."""
    if set(names) - {"genre"}:
        return None
    counts = BookCount.__table__.c
    kept = select(cast(func.coalesce(func.sum(counts.n), 0), BigInteger))
    return kept.where(counts.genre == bindparam("genre")) if names else kept


def _conditions(names: tuple[str, ...], sort: str, dialect: str) -> list[ColumnElement[bool]]:
    """Put filters into SQL: `_values` has their parameters."""
    found = [
        EQUALITY_FILTERS[name] == bindparam(name) for name in names if name in EQUALITY_FILTERS
    ]
    bounded = [key for key in RANGE_FILTERS if {f"{key}_min", f"{key}_max"}.intersection(names)]
    found += [_between(key, sort) for key in bounded]
    return [*found, found_by(COLUMNS, dialect)] if "q" in names else found


LIST_DEFINITION = ListDefinition(BOOKS, Book, _conditions, _order_of, _kept_count)


def _chosen(filters: BookFilters, sort: str) -> FilterSelection:
    return FilterSelection(filters.conditions(), sort, partial(_values, filters))


def _values(filters: BookFilters, dialect: str) -> dict[str, Any]:
    """Give the values of all parameters that filters may have."""
    found = {name: getattr(filters, name) for name in EQUALITY_FILTERS}
    if filters.author is not None:
        found["author"] = fold(filters.author)
    for name, (_, highest) in RANGE_FILTERS.items():
        # Bounded to what the column can hold: that leaves NULLs out.
        least, most = getattr(filters, f"{name}_min"), getattr(filters, f"{name}_max")
        least = 0 if least is None else min(max(least, 0), highest + 1)
        most = highest if most is None else min(max(most, -1), highest)
        found[f"{name}_least"] = _whole_cents(least, ROUND_CEILING)
        found[f"{name}_most"] = _whole_cents(most, ROUND_FLOOR)
    if filters.q is not None:
        found["q"] = query_of(filters.q, dialect)
    return found


def _between(name: str, sort: str) -> ColumnElement[bool]:
    """Bound a key that is NULL nowhere.

    The key is the one that the list is sorted by, if it is of the same column, so that one walk
    through one index does for both; the planner has statistics of its values.
    """
    column = RANGE_FILTERS[name][0]
    key = SORTS[column]
    value = key.ascending if sort == column else key.descending
    return and_(value >= bindparam(f"{name}_least"), value <= bindparam(f"{name}_most"))


def _whole_cents(value: Decimal | int, rounding: str) -> Decimal | int:
    return value if isinstance(value, int) else value.quantize(CENT, rounding)
