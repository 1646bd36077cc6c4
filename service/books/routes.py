"""Books over HTTP."""

from typing import Any

from quart import Response, current_app, request
from quart_rate_limiter import rate_limit
from quart_schema import validate_querystring, validate_request

from service.books import books_bp, service
from service.books.schemas import (
    BookCreate,
    BookLists,
    BookOut,
    BookQuery,
    BookUpdate,
)
from service.cache import Lists
from service.cache import of_app as cache
from service.db import write, write_together
from service.errors import InvalidInputError
from service.guard import CurrentUser, token_required
from service.limits import named
from service.links import Here, absolute, here, link_header
from service.openapi.answers import answers, fails
from service.pagination import MAX_SIZE, Cursors
from service.precedence import costly
from service.validation import ID, INT64
from service.web import (
    Public,
    cache_status,
    etag,
    no_content,
    respond,
    respond_list,
    respond_public,
    to_bytes,
    with_items,
)

BOOK = {"book_id": "$response.body#/id"}
FOLLOW_UPS = {"get_book": BOOK, "update_book": BOOK, "delete_book": BOOK}


@books_bp.get("")
@answers(200, BookLists, "ETag", "Link", "Cache-Status")
@rate_limit(limits=named("books.list"))
@validate_querystring(BookQuery)
@costly
async def list_books(query_args: BookQuery) -> Response:
    """List books: a page (newest first), or what follows a cursor (by id)."""
    return respond_list(await listed(query_args, here(), cache().lists, Cursors.of_app()))


async def listed(query: BookQuery, here: Here, lists: Lists, cursors: Cursors) -> Public:
    """Give what such a list is answered with."""
    if query.by_cursor:
        return await _listed_by_cursor(query, lists, cursors)
    page = query.to_page()
    listing = service.list_books(query, query.sort or "-created_at", page)
    rows = await lists.read(listing, past=query.nocache)
    envelope = page.envelope(rows.total, here)
    body = with_items(rows.bodies, envelope)
    return Public(body, etag(body), link_header(envelope["links"]), listing, rows)


async def _listed_by_cursor(query: BookQuery, lists: Lists, cursors: Cursors) -> Public:
    sort = query.sort or "id"
    purpose = [sort, query.conditions()]
    limit = min(query.limit, MAX_SIZE)
    start = _start(query.cursor, sort, purpose, cursors)
    listing = service.list_books_after(query, sort, start, limit)
    rows = await lists.read(listing, past=query.nocache)
    others: dict[str, Any] = {"has_more": rows.more is not None}
    if rows.more is not None:
        key, last = rows.more
        others["next_cursor"] = last if sort == "id" else cursors.write(purpose, key, last)
    body = with_items(rows.bodies, others)
    return Public(body, etag(body), {}, listing, rows)


def _start(
    cursor: str | None, sort: str, purpose: list[Any], cursors: Cursors
) -> tuple[Any, int] | None:
    """Give the key and id that a cursor stands for: an id in the default order (guide)."""
    if cursor is None:
        return None
    if sort == "id":
        if not ID.fullmatch(cursor) or int(cursor) > INT64:
            raise InvalidInputError({"cursor": ["Not a cursor of this list."]})
        return int(cursor), int(cursor)
    key, book_id = cursors.read(cursor, purpose)
    return service.key_of(sort, key), book_id


@books_bp.get("/<id:book_id>")
@answers(200, BookOut, "ETag", "Cache-Status")
@rate_limit(limits=named("books.item"))
async def get_book(book_id: int) -> Response:
    """Give one book."""
    entry, status = await cache().items.read(service.BOOKS, book_id)
    if not entry.body:
        raise service.not_found(book_id, cache_status(request.scope, status))
    return respond_public(entry.body, cached=status)


@books_bp.post("")
@answers(201, BookOut, "ETag", "Location", links=FOLLOW_UPS)
@token_required
@validate_request(BookCreate)
async def create_book(data: BookCreate, current_user: CurrentUser) -> Response:
    """Add a book, owned by the caller."""
    _check_isbn(data)
    book = await write_together(service.create_books, (data, current_user))
    body = to_bytes(BookOut.model_validate(book))
    return respond(body, 201, tagged=True, headers={"Location": absolute(f"/api/books/{book.id}")})


@books_bp.route("/<id:book_id>", methods=["PUT", "PATCH"])
@answers(200, BookOut, "ETag")
@fails(403)
@token_required
@validate_request(BookUpdate)
async def update_book(book_id: int, data: BookUpdate, current_user: CurrentUser) -> Response:
    """Change a book: absent fields keep their value, null clears an optional one."""
    _check_isbn(data)
    book = await write(lambda db: service.update_book(db, book_id, data, current_user))
    return respond(to_bytes(BookOut.model_validate(book)), tagged=True)


@books_bp.delete("/<id:book_id>")
@answers(204)
@fails(403)
@token_required
async def delete_book(book_id: int, current_user: CurrentUser) -> Response:
    """Delete a book."""
    await write(lambda db: service.delete_book(db, book_id, current_user))
    return no_content()


def _check_isbn(data: BookCreate | BookUpdate) -> None:
    if current_app.extensions["settings"].isbn_checksum == "strict":
        service.check_isbn(data.isbn)
