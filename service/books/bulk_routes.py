"""HTTP operations on many books at once."""

from collections.abc import Callable

from service.books import bulk, service
from service.books.bulk_schemas import (
    BookBatch,
    BookChange,
    BookIds,
    BookRef,
    BooksCreate,
    BooksDelete,
    BooksUpdate,
)
from service.books.routes import books_bp
from service.books.schemas import BookCreate
from service.http.auth import CurrentUser, token_required
from service.http.bulk import (
    BulkQuery,
    BulkResults,
    bulk_reply,
    refuse_repeated,
    require_all,
    validate_each,
)
from service.http.call import Call
from service.http.documentation import document_status
from service.http.operations import Reply, operation, validate_querystring, validate_request
from service.http.pagination import CachedQuery
from service.http.parsing import BULK
from service.http.priority import costly
from service.http.responses import with_items
from service.idempotency import REPLAYED, Attempt, idempotent
from service.limits import cost, units_of


def _isbn_check(call: Call) -> Callable[[BookCreate | BookChange], None] | None:
    """Return the check of the check digits, if the setting requires it."""
    if call.settings.isbn_checksum == "lenient":
        return None
    return lambda book: service.check_isbn(book.isbn)


def _rules(call: Call, query: BulkQuery) -> bulk.BulkRules:
    return bulk.BulkRules(query.atomic, call.settings.require_if_match)


@books_bp.post("/batch-get")
@operation
@document_status(200, BookBatch, "Cache-Status")
@validate_querystring(CachedQuery)
@validate_request(BookIds)
@cost(lambda data: units_of(len(data.ids)))
@costly
async def batch_get_books(call: Call, data: BookIds, query_args: CachedQuery) -> Reply:
    """Return books by their ids, in the order of the ids, repeated as they are."""
    ids = [*dict.fromkeys(data.ids)]
    bypass = query_args.nocache
    entries, status = await call.cache.items.read_many(service.BOOKS, ids, bypass=bypass)
    bodies = [entries[book_id].body for book_id in data.ids if book_id in entries]
    missing = [book_id for book_id in ids if book_id not in entries]
    return Reply(with_items(bodies, {"missing": missing}), cached=status)


@books_bp.post("/bulk")
@operation
@document_status(201, BulkResults, REPLAYED)
@document_status(207, BulkResults, REPLAYED)
@token_required
@idempotent
@validate_querystring(BulkQuery)
@validate_request(BooksCreate, BULK)
@cost(lambda data: units_of(len(data.items)))
@costly
async def bulk_create_books(
    call: Call,
    data: BooksCreate,
    query_args: BulkQuery,
    current_user: CurrentUser,
    attempt: Attempt,
) -> Reply:
    """Add up to 500 books, owned by the caller, in one transaction."""
    books = await validate_each(BookCreate, data.items, _isbn_check(call))
    if query_args.atomic:
        require_all(books)
    rows = await bulk.values_of(books, current_user)
    return await attempt.write(
        lambda db: bulk.create_books(db, rows, current_user),
        lambda outcomes: bulk_reply(outcomes, 201 if query_args.atomic else 207),
    )


@books_bp.patch("/bulk")
@operation
@document_status(200, BulkResults)
@document_status(207, BulkResults)
@token_required
@validate_querystring(BulkQuery)
@validate_request(BooksUpdate, BULK)
@cost(lambda data: units_of(len(data.items)))
@costly
async def bulk_update_books(
    call: Call, data: BooksUpdate, query_args: BulkQuery, current_user: CurrentUser
) -> Reply:
    """Change up to 500 books in one transaction, each as PATCH of the book does."""
    changes = refuse_repeated(await validate_each(BookChange, data.items, _isbn_check(call)))
    rules = _rules(call, query_args)
    outcomes = await call.database.write(
        lambda db: bulk.update_books(db, changes, current_user, rules)
    )
    return bulk_reply(outcomes, 200 if rules.atomic else 207)


@books_bp.delete("/bulk")
@operation
@document_status(200, BulkResults)
@document_status(207, BulkResults)
@token_required
@validate_querystring(BulkQuery)
@validate_request(BooksDelete, BULK)
@cost(lambda data: units_of(len(data.items)))
@costly
async def bulk_delete_books(
    call: Call, data: BooksDelete, query_args: BulkQuery, current_user: CurrentUser
) -> Reply:
    """Delete up to 500 books in one transaction, each as DELETE of the book does."""
    refs = refuse_repeated(await validate_each(BookRef, data.items))
    rules = _rules(call, query_args)
    outcomes = await call.database.write(
        lambda db: bulk.delete_books(db, refs, current_user, rules)
    )
    return bulk_reply(outcomes, 200 if rules.atomic else 207)
