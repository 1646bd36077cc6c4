"""HTTP operations on books."""

from typing import Any

from quart import Blueprint
from quart_rate_limiter import rate_limit

from service.books import service
from service.books.schemas import (
    BookCreate,
    BookItem,
    BookItemQuery,
    BookLists,
    BookOut,
    BookQuery,
    BookUpdate,
)
from service.errors import InvalidInputError
from service.http.auth import CurrentUser, token_required
from service.http.call import Call
from service.http.documentation import document_errors, document_status
from service.http.fields import select_fields
from service.http.operations import (
    Reply,
    cached_item,
    counts_views,
    operation,
    validate_querystring,
    validate_request,
)
from service.http.pagination import MAX_SIZE, Cursors, page_envelope
from service.http.parsing import ID
from service.http.preconditions import Preconditions, conditional
from service.http.priority import costly
from service.http.responses import cache_status, with_items
from service.http.urls import link_header
from service.idempotency import REPLAYED, Attempt, idempotent
from service.limits import named
from service.models.types import INT64

books_bp = Blueprint("books", __name__, url_prefix="/api/books")

BOOK = {"book_id": "$response.body#/id"}
FOLLOW_UPS = {"get_book": BOOK, "update_book": BOOK, "delete_book": BOOK}


@books_bp.get("")
@rate_limit(limits=named("books.list"))
@operation
@document_status(200, BookLists, "ETag", "Link", "Cache-Status")
@validate_querystring(BookQuery)
@costly
async def list_books(call: Call, query_args: BookQuery) -> Reply:
    """List books: a page (newest first), or the books after a cursor (by id)."""
    if query_args.by_cursor:
        return await _list_after(call, query_args)
    page = query_args.to_page()
    listing = service.list_books(query_args, query_args.sort or "-created_at", page)
    rows = await call.cache.lists.read(listing, bypass=query_args.nocache)
    envelope = page_envelope(page, rows.total, call.url)
    body = with_items(select_fields(rows.bodies, query_args.fields), envelope)
    return Reply.of_list(body, listing, rows, link_header(envelope["links"]))


async def _list_after(call: Call, query: BookQuery) -> Reply:
    sort = query.sort or "id"
    purpose = [sort, query.conditions()]
    limit = min(query.limit, MAX_SIZE)
    start = _start(query.cursor, sort, purpose, call.cursors)
    listing = service.list_books_after(query, sort, start, limit)
    rows = await call.cache.lists.read(listing, bypass=query.nocache)
    envelope: dict[str, Any] = {"has_more": rows.more is not None}
    if rows.more is not None:
        key, last = rows.more
        envelope["next_cursor"] = last if sort == "id" else call.cursors.write(purpose, key, last)
    body = with_items(select_fields(rows.bodies, query.fields), envelope)
    return Reply.of_list(body, listing, rows)


def _start(
    cursor: str | None, sort: str, purpose: list[Any], cursors: Cursors
) -> tuple[Any, int] | None:
    """Return the position (key, id) of a cursor. In order of id, a cursor is an id (Flask guide).

    Raises InvalidInputError.
    """
    if cursor is None:
        return None
    if sort == "id":
        if not ID.fullmatch(cursor) or int(cursor) > INT64:
            raise InvalidInputError({"cursor": ["Not a cursor of this list."]})
        return int(cursor), int(cursor)
    key, book_id = cursors.read(cursor, purpose)
    return service.key_of(sort, key), book_id


@books_bp.get("/<id:book_id>")
@rate_limit(limits=named("books.item"))
@operation
@document_status(200, BookItem, "ETag", "Cache-Status")
@validate_querystring(BookItemQuery)
@cached_item(service.BOOKS, service.not_found)
@counts_views
async def get_book(call: Call, book_id: int, query_args: BookItemQuery) -> Reply:
    """Return a book."""
    entry, status = await call.cache.items.read(service.BOOKS, book_id, bypass=query_args.nocache)
    if not entry.body:
        raise service.not_found(book_id, cache_status(call.scope, status))
    (body,) = select_fields([entry.body], query_args.fields)
    return Reply(body, is_public=True, cached=status)


@books_bp.post("")
@operation
@document_status(201, BookOut, "ETag", "Location", REPLAYED, links=FOLLOW_UPS)
@token_required
@idempotent
@validate_request(BookCreate)
async def create_book(
    call: Call, data: BookCreate, current_user: CurrentUser, attempt: Attempt
) -> Reply:
    """Add a book, owned by the caller."""
    _check_isbn(call, data)
    base = call.base

    def created(book: Any) -> Reply:
        place = {"Location": f"{base}/api/books/{book.id}"}
        return Reply(service.BOOKS.write(book), 201, place, is_tagged=True)

    return await attempt.write_batched(service.create_books, (data, current_user), created)


@books_bp.route("/<id:book_id>", methods=["PUT", "PATCH"])
@operation
@document_status(200, BookOut, "ETag")
@document_errors(403)
@token_required
@conditional
@validate_request(BookUpdate)
async def update_book(
    call: Call,
    book_id: int,
    data: BookUpdate,
    current_user: CurrentUser,
    preconditions: Preconditions,
) -> Reply:
    """Change a book: absent fields keep their value, null clears an optional one."""
    _check_isbn(call, data)
    book = await call.database.write(
        lambda db: service.update_book(db, book_id, data, current_user, preconditions)
    )
    return Reply(service.BOOKS.write(book), is_tagged=True)


@books_bp.delete("/<id:book_id>")
@operation
@document_status(204)
@document_errors(403)
@token_required
@conditional
async def delete_book(
    call: Call, book_id: int, current_user: CurrentUser, preconditions: Preconditions
) -> Reply:
    """Delete a book."""
    await call.database.write(
        lambda db: service.delete_book(db, book_id, current_user, preconditions)
    )
    return Reply(status=204)


def _check_isbn(call: Call, data: BookCreate | BookUpdate) -> None:
    if call.settings.isbn_checksum == "strict":
        service.check_isbn(data.isbn)
