"""HTTP operation of the search."""

from quart import Blueprint
from quart_rate_limiter import rate_limit

from service.http.call import Call
from service.http.documentation import document_status
from service.http.operations import Reply, operation, validate_querystring
from service.http.pagination import page_envelope
from service.http.priority import costly
from service.http.responses import with_items
from service.http.urls import link_header
from service.limits import named
from service.search import service
from service.search.schemas import SearchPage, SearchQuery

search_bp = Blueprint("search", __name__, url_prefix="/api/search")


@search_bp.get("")
@rate_limit(limits=named("search"))
@operation
@document_status(200, SearchPage, "ETag", "Link", "Cache-Status")
@validate_querystring(SearchQuery)
@costly
async def search_books(call: Call, query_args: SearchQuery) -> Reply:
    """Search titles and authors: all words are required, the last one as a prefix.

    Books are ranked by where the words are (in the title, close together), then by id. Of more than
    1000 books that match, the newest 1000 are ranked, and `total` is 1000. If no book matches, the
    search is repeated with similar words, and `fuzzy` is true if that finds books.
    """
    page = query_args.to_page()
    listing = service.search_books(query_args.q, page)
    rows = await call.cache.lists.read(listing, bypass=query_args.nocache)
    total, fuzzy = rows.more
    links = page_envelope(page, total, call.url)["links"]
    body = with_items(rows.bodies, {"total": total, "fuzzy": fuzzy}, name="results")
    return Reply.of_list(body, listing, rows, link_header(links))
