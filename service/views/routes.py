"""HTTP operation on the most viewed books."""

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
    views: dict[int, int] = dict(from_json(ranking))
    if not views:
        return Reply(b"[]", is_public=True, cached=status)
    books, books_status = await call.cache.items.read_many(BOOKS, [*views], bypass=bypass)
    bodies = [
        b'%b,"views":%d}' % (books[book_id].body[:-1], number)
        for book_id, number in views.items()
        if book_id in books
    ]
    body = b"[%b]" % b",".join(bodies[: service.POPULAR])
    return Reply(body, is_public=True, cached=books_status if status == "hit" else status)
