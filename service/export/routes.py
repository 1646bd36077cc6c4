"""HTTP operation that exports the catalogue."""

from quart import Blueprint
from quart_rate_limiter import rate_limit

from service.errors import InvalidInputError
from service.export.formats import CSV_TYPE, FORMATS, NDJSON_TYPE
from service.export.schemas import MAX_PAGE_SIZE, DataPage, DataQuery
from service.export.service import Exports
from service.http.call import Call
from service.http.documentation import document_status
from service.http.negotiation import best_media_type
from service.http.operations import Reply, operation, validate_querystring
from service.http.priority import costly
from service.http.responses import JSON
from service.limits import named

export_bp = Blueprint("export", __name__, url_prefix="/api/data")


@export_bp.get("")
@rate_limit(limits=named("data"))
@operation
@document_status(200, DataPage, "ETag")
@document_status(200, None, "Content-Encoding", media=NDJSON_TYPE)
@document_status(200, None, "Content-Encoding", media=CSV_TYPE)
@validate_querystring(DataQuery)
@costly
async def export_books(call: Call, query_args: DataQuery) -> Reply:
    """Export the catalogue by id: a page, or as one stream of JSON Lines or CSV.

    `Accept: application/x-ndjson` or `text/csv` selects a stream of all books after `cursor`.
    """
    call.context.is_negotiated = True
    exports: Exports = call.extensions["exports"]
    media = best_media_type(call.scope, [JSON, *FORMATS])
    if media == JSON:
        return await _page(exports, query_args)
    if "limit" in query_args.model_fields_set:
        raise InvalidInputError({"limit": ["A stream holds all books: leave it out."]})
    form = FORMATS[media]
    coding = call.coding
    headers = {"Content-Type": form.content_type}
    if coding is not None:
        headers["Content-Encoding"] = coding
    return Reply(await exports.stream(query_args.cursor, form, coding), headers=headers)


async def _page(exports: Exports, query: DataQuery) -> Reply:
    bodies, last = await exports.page(query.cursor, min(query.limit, MAX_PAGE_SIZE))
    more = b"" if last is None else b',"next_cursor":%d' % last
    return Reply(b'{"data":[%b]%b}' % (b",".join(bodies), more), is_public=True)
