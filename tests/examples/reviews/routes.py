"""Reviews over HTTP."""

from datetime import timedelta

from quart import Blueprint
from quart_rate_limiter import rate_limit

from service.books.service import BOOKS
from service.books.service import not_found as book_not_found
from service.http.auth import CurrentUser, token_required
from service.http.call import Call
from service.http.documentation import document_errors, document_status
from service.http.operations import Reply, operation, validate_querystring, validate_request
from service.http.pagination import CachedPageQuery, page_envelope
from service.http.priority import costly
from service.http.responses import cache_status, with_items
from service.http.urls import link_header
from tests.examples.reviews import service
from tests.examples.reviews.schemas import ReviewCreate, ReviewOut, ReviewPage

reviews_bp = Blueprint("reviews", __name__, url_prefix="/api/books/<id:book_id>/reviews")


@reviews_bp.get("")
@rate_limit(100, timedelta(minutes=1))
@operation
@document_status(200, ReviewPage, "ETag", "Link", "Cache-Status")
@validate_querystring(CachedPageQuery)
@costly
async def list_reviews(call: Call, book_id: int, query_args: CachedPageQuery) -> Reply:
    """List the reviews of a book, newest first."""
    book, status = await call.cache.items.read(BOOKS, book_id, bypass=query_args.nocache)
    if not book.body:
        raise book_not_found(book_id, cache_status(call.scope, status))
    page = query_args.to_page()
    listing = service.list_reviews(book_id, page)
    rows = await call.cache.lists.read(listing, bypass=query_args.nocache)
    envelope = page_envelope(page, rows.total, call.url)
    body = with_items(rows.bodies, envelope)
    return Reply.of_list(body, listing, rows, link_header(envelope["links"]))


@reviews_bp.post("")
@operation
@document_status(201, ReviewOut, "ETag")
@token_required
@validate_request(ReviewCreate)
async def create_review(
    call: Call, book_id: int, data: ReviewCreate, current_user: CurrentUser
) -> Reply:
    """Review a book."""
    review = await call.database.write(
        lambda db: service.create_review(db, book_id, data, current_user)
    )
    return Reply(ReviewOut.model_validate(review), 201, is_tagged=True)


@reviews_bp.delete("/<id:review_id>")
@operation
@document_status(204)
@document_errors(403)
@token_required
async def delete_review(
    call: Call, book_id: int, review_id: int, current_user: CurrentUser
) -> Reply:
    """Delete a review."""
    await call.database.write(
        lambda db: service.delete_review(db, book_id, review_id, current_user)
    )
    return Reply(status=204)
