"""Business rules and SQL of books."""

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
from service.db.group_commit import RetryAloneError
from service.db.json_rows import ORDER, JsonRows
from service.db.list_queries import (
    FilterSelection,
    ListDefinition,
    Order,
    Page,
    list_after,
    list_page,
)
from service.errors import ForbiddenError, InvalidInputError, ResourceNotFoundError
from service.http.auth import (
    ACTOR_TYPES,
    CurrentUser,
    actor_in,
    actor_values,
    recheck_user,
    valid_actor_id,
    with_actor,
)
from service.http.preconditions import NO_PRECONDITIONS, Preconditions
from service.models import PRICE_ASC, PRICE_DESC, YEAR_ASC, YEAR_DESC, Book, BookCount, fold
from service.models.search import found_by, query_of
from service.slices import in_slices

CENT = Decimal("0.01")
MAX_PARAMETERS = 100  # ids in a statement; more ids are one parameter, a JSON array
TABLE: Any = Book.__table__
COLUMNS = Book.__table__.c
# The statements below are built once, without the ORM.
OUTPUT_COLUMNS = [COLUMNS[name] for name in BookOut.model_fields]
INPUT_COLUMNS = [*BookCreate.model_fields, *Book.derived("", "")]
NEW_ROWS = JsonRows("new", {**ACTOR_TYPES, **{name: COLUMNS[name].type for name in INPUT_COLUMNS}})
IDS = JsonRows("ids", {"id": COLUMNS.id.type})
SELECT_OWNED = with_actor(select(*OUTPUT_COLUMNS).where(COLUMNS.id == bindparam("book_id")), TABLE)
SELECT_MANY = select(*OUTPUT_COLUMNS).where(COLUMNS.id.in_(bindparam("ids", expanding=True)))


class _SortKey(NamedTuple):
    """A sort key, ascending and descending. read: parses a value of the key from a cursor."""

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


def key_of(sort: str, text: str) -> Any:
    """Parse a value of a sort key from the text in a cursor."""
    return SORTS[sort.removeprefix("-")].read(text)


def list_books(filters: BookFilters, sort: str, page: Page) -> ListQuery:
    """Return the query of a page of books."""
    return list_page(LIST_DEFINITION, _selection(filters, sort), page)


def list_books_after(
    filters: BookFilters, sort: str, after: tuple[Any, int] | None, limit: int
) -> ListQuery:
    """Return the query of `limit` books after a position (key, id)."""
    return list_after(LIST_DEFINITION, _selection(filters, sort), after, limit)


def _bytes(book: Book | Row[Any]) -> bytes:
    return BookOut.model_validate(book).model_dump_json().encode()


async def load_books(db: AsyncSession, ids: Sequence[int]) -> dict[int, Entry]:
    """Return the cache entries of the books, by id. Ids without a book are absent."""
    if len(ids) <= MAX_PARAMETERS:
        books = await db.execute(SELECT_MANY, {"ids": ids})
        return {book.id: _entry(book) for book in books}
    dialect = db.get_bind().dialect
    values = IDS.write([{"id": book_id} for book_id in ids], dialect)
    books = await db.execute(_select_by_json(dialect.name), values)
    return {book.id: _entry(book) async for book in in_slices(books)}


def _entry(book: Row[Any]) -> Entry:
    return Entry(b"%d" % book.version, _bytes(book))


@lru_cache
def _select_by_json(dialect: str) -> Select[Any]:
    return select(*OUTPUT_COLUMNS).where(COLUMNS.id.in_(select(IDS.read(dialect).c.id)))


BOOKS = Kind("book", shape_of(BookOut), load_books, _bytes)


def book_values(owner_id: int | None, data: BookCreate) -> dict[str, Any]:
    """Return the columns of a new book. owner_id: None: only administrators may change the book."""
    return {"user_id": owner_id, **data.model_dump(), **Book.derived(data.title, data.author)}


def new_book(owner_id: int | None, data: BookCreate) -> Book:
    """Make the row of a new book."""
    return Book(**book_values(owner_id, data))


async def create_books(
    db: AsyncSession, given: Sequence[tuple[BookCreate, CurrentUser]], alone: bool
) -> Sequence[Row[Any]]:
    """Add books. given: pairs of a book and its owner. Return the rows, in the same order.

    Raises RetryAloneError for items whose user's row is locked, or whose user is no longer valid.
    alone: there is only one item, so waiting for locks is allowed.
    """
    if alone:
        await recheck_user(db, given[0][1])
    dialect = db.get_bind().dialect
    rows = [actor_values(user) | book_values(user.id, data) for data, user in given]
    inserted = await write_rows(db, Book, _insert(dialect.name), NEW_ROWS.write(rows, dialect))
    books = sorted(inserted, key=lambda book: book.id)  # ids are assigned in the order of rows
    if orphans := {n for n, book in enumerate(books) if book.user_id is None}:
        raise RetryAloneError(orphans)
    return books


@lru_cache
def _insert(dialect: str) -> Insert:
    new = NEW_ROWS.read(dialect)
    rows = select(valid_actor_id(new.c), *(new.c[name] for name in INPUT_COLUMNS)).order_by(
        new.c[ORDER]
    )
    return insert(TABLE).from_select(["user_id", *INPUT_COLUMNS], rows).returning(*OUTPUT_COLUMNS)


async def update_book(
    db: AsyncSession,
    book_id: int,
    data: BookUpdate,
    user: CurrentUser,
    preconditions: Preconditions = NO_PRECONDITIONS,
) -> Row[Any]:
    """Change the fields that the request contains. If no value differs, the version stays.

    Raises as `_lock_owned` does.
    """
    book = await _lock_owned(db, book_id, user, preconditions)
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


async def delete_book(
    db: AsyncSession,
    book_id: int,
    user: CurrentUser,
    preconditions: Preconditions = NO_PRECONDITIONS,
) -> None:
    """Delete a book. Raises as `_lock_owned` does."""
    await _lock_owned(db, book_id, user, preconditions)
    await delete_row(db, Book, book_id)


def check_isbn(isbn: str | None) -> None:
    """Raise InvalidInputError if the check digit of an ISBN is wrong."""
    if isbn is not None and not isbn_numbers.is_valid(isbn):
        raise InvalidInputError({"isbn": ["The check digit is wrong."]})


async def _lock_owned(
    db: AsyncSession, book_id: int, user: CurrentUser, preconditions: Preconditions
) -> Row[Any]:
    """Return a book that `user` may change, locked until the transaction ends.

    Raises ResourceNotFoundError, ForbiddenError, PreconditionRequiredError or
    PreconditionFailedError, in this order.
    """
    keys = {"book_id": book_id, "actor_id": user.id}
    book: Row[Any] | None = (await db.execute(SELECT_OWNED, keys)).one_or_none()
    if book is None:
        await recheck_user(db, user)
        raise not_found(book_id)
    user = actor_in(book, user)
    check_owner(book, user)
    preconditions.check(partial(_bytes, book))
    return book


def check_owner(book: Row[Any], user: CurrentUser) -> None:
    """Raise ForbiddenError unless a user may change a book."""
    if book.user_id != user.id and not user.is_admin:
        raise ForbiddenError("Only the owner of a book or an administrator may change it")


def not_found(book_id: int, headers: Mapping[str, str] | None = None) -> ResourceNotFoundError:
    """Return the error for a book that does not exist."""
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
    """Return the order for `sort`: a leading `-` is descending. NULLs are always last."""
    key = SORTS[sort.removeprefix("-")]
    descending = sort.startswith("-")
    return Order(key.descending if descending else key.ascending, COLUMNS.id, descending)


def _known_count(names: tuple[str, ...]) -> Select[int] | None:
    """Return the query of a count that triggers maintain (all books, or a genre), else None."""
    if set(names) - {"genre"}:
        return None
    counts = BookCount.__table__.c
    kept = select(cast(func.coalesce(func.sum(counts.n), 0), BigInteger))
    return kept.where(counts.genre == bindparam("genre")) if names else kept


def _conditions(names: tuple[str, ...], sort: str, dialect: str) -> list[ColumnElement[bool]]:
    """Return the SQL conditions of the filters `names`. `_values` returns their parameters."""
    conditions = [
        EQUALITY_FILTERS[name] == bindparam(name) for name in names if name in EQUALITY_FILTERS
    ]
    bounded = [key for key in RANGE_FILTERS if {f"{key}_min", f"{key}_max"}.intersection(names)]
    conditions += [_between(key, sort) for key in bounded]
    return [*conditions, found_by(COLUMNS, dialect)] if "q" in names else conditions


LIST_DEFINITION = ListDefinition(BOOKS, Book, _conditions, _order_of, _known_count)


def _selection(filters: BookFilters, sort: str) -> FilterSelection:
    return FilterSelection(filters.conditions(), sort, partial(_values, filters))


def _values(filters: BookFilters, dialect: str) -> dict[str, Any]:
    """Return the values of all parameters of `_conditions`."""
    values = {name: getattr(filters, name) for name in EQUALITY_FILTERS}
    if filters.author is not None:
        values["author"] = fold(filters.author)
    for name, (_, highest) in RANGE_FILTERS.items():
        # Clamp to the range of the column, so that the keys that stand for NULL are excluded.
        least, most = getattr(filters, f"{name}_min"), getattr(filters, f"{name}_max")
        least = 0 if least is None else min(max(least, 0), highest + 1)
        most = highest if most is None else min(max(most, -1), highest)
        values[f"{name}_least"] = _whole_cents(least, ROUND_CEILING)
        values[f"{name}_most"] = _whole_cents(most, ROUND_FLOOR)
    if filters.q is not None:
        values["q"] = query_of(filters.q, dialect)
    return values


def _between(name: str, sort: str) -> ColumnElement[bool]:
    """Return the condition that a sort key (never NULL) is within its bounds.

    In a list that is sorted by the same column, the key of that order is used. Then one index scan
    serves both the filter and the order, and the planner has statistics of the key's values.
    """
    column = RANGE_FILTERS[name][0]
    key = SORTS[column]
    value = key.ascending if sort == column else key.descending
    return and_(value >= bindparam(f"{name}_least"), value <= bindparam(f"{name}_most"))


def _whole_cents(value: Decimal | int, rounding: str) -> Decimal | int:
    return value if isinstance(value, int) else value.quantize(CENT, rounding)
