"""Bulk writes of books: each is one transaction, with one statement of each kind.

Every write locks the user, then the books in the order of their ids, so that two writes cannot
deadlock.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import (
    Dialect,
    Insert,
    Row,
    Select,
    Update,
    bindparam,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql.dml import ReturningDelete

from service.books.bulk_schemas import BookChange, BookRef
from service.books.schemas import BookCreate
from service.books.service import (
    COLUMNS,
    IDS,
    INPUT_COLUMNS,
    TABLE,
    book_values,
    check_owner,
    not_found,
)
from service.cache import delete_rows, write_rows
from service.db.json_rows import ORDER, JsonRows
from service.errors import APIError
from service.http.auth import CurrentUser, recheck_user
from service.http.bulk import ItemDone, ItemError, require_all
from service.models import Book
from service.slices import in_slices

FIELDS = tuple(BookCreate.model_fields)
INPUT_TYPES = {name: COLUMNS[name].type for name in INPUT_COLUMNS}
NEW_ROWS = JsonRows("new", INPUT_TYPES)
CHANGED_ROWS = JsonRows("changed", {"id": COLUMNS.id.type, **INPUT_TYPES})
DERIVED = tuple(Book.derived("", ""))

Values = Mapping[str, Any]  # the columns of a row
Outcome = ItemDone | ItemError


class BulkRules(NamedTuple):
    """Rules of a bulk request. atomic: all items, or none. requires_version: REQUIRE_IF_MATCH."""

    atomic: bool
    requires_version: bool


async def values_of(
    items: Sequence[BookCreate | ItemError], user: CurrentUser
) -> list[Values | ItemError]:
    """Return the columns of new books, owned by `user`."""
    return [
        item if isinstance(item, ItemError) else book_values(user.id, item)
        async for item in in_slices(items)
    ]


async def create_books(
    db: AsyncSession, items: Sequence[Values | ItemError], user: CurrentUser
) -> Sequence[Outcome]:
    """Add books, and return the result of each item."""
    user = await recheck_user(db, user)
    books: list[Row[Any]] = []
    if rows := [item for item in items if not isinstance(item, ItemError)]:
        dialect = db.get_bind().dialect
        values = {"owner_id": user.id, **NEW_ROWS.write(rows, dialect)}
        inserted = await write_rows(db, Book, _insert(dialect.name), values)
        books = sorted(inserted, key=lambda book: book.id)  # ids are assigned in order of rows
    created = iter(books)
    return [item if isinstance(item, ItemError) else _done(201, next(created)) for item in items]


def _done(status: int, book: Row[Any]) -> ItemDone:
    return ItemDone(status, book.id, book.version)


@lru_cache
def _insert(dialect: str) -> Insert:
    new = NEW_ROWS.read(dialect)
    owner_id = bindparam("owner_id", type_=COLUMNS.user_id.type)
    rows = select(owner_id, *(new.c[name] for name in INPUT_COLUMNS)).order_by(new.c[ORDER])
    statement = insert(TABLE).from_select(["user_id", *INPUT_COLUMNS], rows)
    return statement.returning(COLUMNS.id, COLUMNS.version)


async def update_books(
    db: AsyncSession, items: Sequence[BookChange | ItemError], user: CurrentUser, rules: BulkRules
) -> Sequence[Outcome]:
    """Change books, and return the result of each item. Equal values keep the version.

    Raises InvalidInputError if an item of an atomic request is refused.
    """
    books = await _lock(db, items, user, rules)
    pairs = zip(items, books, strict=True)
    changes = [
        values
        async for item, book in in_slices(pairs)
        if not isinstance(item, ItemError)
        and not isinstance(book, ItemError)
        and (values := _changed(item, book))
    ]
    versions: dict[int, int] = {}
    if changes:
        dialect = db.get_bind().dialect
        given = CHANGED_ROWS.write(changes, dialect)
        changed = await write_rows(db, Book, _update(dialect.name), given)
        versions = {book.id: book.version for book in changed}
    return [
        book
        if isinstance(book, ItemError)
        else ItemDone(200, book.id, versions.get(book.id, book.version))
        for book in books
    ]


def _changed(item: BookChange, book: Row[Any]) -> Values | None:
    """Return the columns of a changed book, or None if no value differs.

    Columns that are derived from title and author are None if neither changes.
    """
    given = {name: getattr(item, name) for name in item.model_fields_set.intersection(FIELDS)}
    present = {name: getattr(book, name) for name in FIELDS}
    values = present | given
    if values == present:
        return None
    names = [values[name] for name in ("title", "author")]
    is_renamed = names != [book.title, book.author]
    derived = Book.derived(*names) if is_renamed else dict.fromkeys(DERIVED)
    return {"id": book.id, **values, **derived}


@lru_cache
def _update(dialect: str) -> Update:
    new = CHANGED_ROWS.read(dialect)
    values: dict[str, Any] = {name: new.c[name] for name in FIELDS}
    values |= {name: func.coalesce(new.c[name], COLUMNS[name]) for name in DERIVED}
    statement = update(TABLE).where(COLUMNS.id == new.c.id)
    statement = statement.values(version=COLUMNS.version + 1, **values)
    return statement.returning(COLUMNS.id, COLUMNS.version)


async def delete_books(
    db: AsyncSession, items: Sequence[BookRef | ItemError], user: CurrentUser, rules: BulkRules
) -> Sequence[Outcome]:
    """Delete books, and return the result of each item.

    Raises InvalidInputError if an item of an atomic request is refused.
    """
    books = await _lock(db, items, user, rules)
    if ids := [book.id for book in books if not isinstance(book, ItemError)]:
        dialect = db.get_bind().dialect
        await delete_rows(db, Book, ids, _delete(dialect.name), _ids(ids, dialect))
    return [book if isinstance(book, ItemError) else _done(204, book) for book in books]


@lru_cache
def _delete(dialect: str) -> ReturningDelete[Any]:
    ids = select(IDS.read(dialect).c.id)
    return delete(TABLE).where(COLUMNS.id.in_(ids)).returning(COLUMNS.id)


async def _lock(
    db: AsyncSession, items: Sequence[BookRef | ItemError], user: CurrentUser, rules: BulkRules
) -> Sequence[Row[Any] | ItemError]:
    """Return the book of each item, locked until the transaction ends.

    Refused are items whose book does not exist, may not be changed by `user`, or has another
    version, and items without a required version.
    """
    user = await recheck_user(db, user)
    dialect = db.get_bind().dialect
    ids = [item.id for item in items if not isinstance(item, ItemError)]
    query = _select_locked(dialect.name)
    books = {book.id: book for book in await db.execute(query, _ids(ids, dialect))}
    checked = [
        item if isinstance(item, ItemError) else _check(item, books.get(item.id), user, rules)
        for item in items
    ]
    if rules.atomic:
        require_all(checked)
    return checked


def _check(
    item: BookRef, book: Row[Any] | None, user: CurrentUser, rules: BulkRules
) -> Row[Any] | ItemError:
    if book is None:
        return ItemError.of(not_found(item.id))
    try:
        check_owner(book, user)
    except APIError as error:
        return ItemError.of(error)
    if "version" not in item.model_fields_set and rules.requires_version:
        return ItemError(428, {"version": ["Missing data for required field."]})
    if "version" in item.model_fields_set and item.version != book.version:
        return ItemError(412, {"version": [f"The book has version {book.version}"]})
    return book


@lru_cache
def _select_locked(dialect: str) -> Select[Any]:
    wanted = IDS.read(dialect)
    columns = [COLUMNS[name] for name in ("id", "user_id", "version", *FIELDS)]
    query = select(*columns).join_from(TABLE, wanted, COLUMNS.id == wanted.c.id)
    return query.order_by(COLUMNS.id).with_for_update(of=TABLE)


def _ids(ids: Sequence[int], dialect: Dialect) -> dict[str, str]:
    return IDS.write([{"id": row_id} for row_id in ids], dialect)
