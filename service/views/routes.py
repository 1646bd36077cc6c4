"""HTTP operation on the most viewed books."""

import asyncio

from pydantic_core import from_json
from quart import Blueprint

from service.books.service import BOOKS
from service.http.call import Call
from service.http.documentation import document_status
from service.http.operations import Reply, operation, validate_querystring
from service.http.pagination import CachedQuery
from service.http.priority import costly
from service.views import service
from service.views.schemas import PopularBooks

views_bp = Blueprint("views", __name__, url_prefix="/api")


@views_bp.get("/popular-books")
@operation
@document_status(200, PopularBooks, "ETag", "Cache-Status")
@validate_querystring(CachedQuery)
@costly
async def get_popular_books(call: Call, query_args: CachedQuery) -> Reply:
    """Return the most viewed books. The books are current; their numbers of views may be older."""
    bypass = query_args.nocache
    ranking, status = await call.cache.dated.read(
        "popular-books", call.settings.cache_popular_seconds, service.most_viewed, bypass=bypass
    )
    views: list[tuple[int, int]] = from_json(ranking)
    books = await asyncio.gather(
        *(call.cache.items.read(BOOKS, book_id, bypass=bypass) for book_id, _ in views)
    )
    bodies = [
        b'%b,"views":%d}' % (book.body[:-1], number)
        for (book, _), (_, number) in zip(books, views, strict=True)
        if book.body
    ]
    statuses = [status, *(book_status for _, book_status in books)]
    cached = next((each for each in statuses if each != "hit"), status)
    body = b"[%b]" % b",".join(bodies[: service.POPULAR])
    return Reply(body, is_public=True, cached=cached)
