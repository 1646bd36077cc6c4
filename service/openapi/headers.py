"""Every header that an answer may have, as the document describes it."""

from typing import Any

from service.web import CACHE_STATUS

STRICT_TRANSPORT = "Strict-Transport-Security"  # only where PUBLIC_URL is https


def _header(
    description: str, schema: dict[str, Any] | None = None, *, required: bool = True
) -> dict[str, Any]:
    return {
        "description": description,
        "required": required,
        "schema": schema or {"type": "string"},
    }


def _count(description: str, *, required: bool = True) -> dict[str, Any]:
    return _header(description, {"type": "integer", "minimum": 0}, required=required)


HEADERS = {
    "X-Request-ID": _header(
        "names the request in the log; the one of the request, if that was fit",
        {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
    ),
    "Cache-Control": _header(
        "`no-cache`: keep it, and ask with If-None-Match; `no-store`: do not keep it",
        {"type": "string", "enum": ["no-cache", "no-store"]},
    ),
    "Vary": _header("the headers of the request on which the answer depends"),
    "X-Content-Type-Options": _header("the type is what Content-Type says", {"const": "nosniff"}),
    "Referrer-Policy": _header("no address of ours is given away", {"const": "no-referrer"}),
    "Content-Security-Policy": _header("what a browser may do with the answer"),
    STRICT_TRANSPORT: _header("come back by https alone"),
    "ETag": _header("names this very answer, strongly", {"type": "string", "pattern": '^".+"$'}),
    "Location": _header("where the new resource is", {"type": "string", "format": "uri"}),
    "Link": _header("the links of the page (RFC 8288); in page mode", required=False),
    "Cache-Status": _header(
        "whether the cache answered (RFC 9211)",
        {"enum": [f"Octavo; {value}" for value in CACHE_STATUS.values()]},
        required=False,
    ),
    "X-Total-Count": _count("how many there are on all pages"),
    "RateLimit-Policy": _header(
        'the limits of the caller here, as `"minute";q=10;w=60`: 10 within any 60 seconds',
        required=False,
    ),
    "RateLimit": _header(
        'how the caller stands, as `"minute";r=9;t=60`: 9 left, one more in 60 seconds',
        required=False,
    ),
    "RateLimit-Limit": _count("requests of the tightest limit", required=False),
    "RateLimit-Remaining": _count("requests left of it", required=False),
    "RateLimit-Reset": _count("seconds until one more is", required=False),
    "WWW-Authenticate": _header(
        "how to be recognised; `invalid_token`: the token that was sent is not valid any more",
        {"enum": ["Bearer", 'Bearer error="invalid_token"']},
    ),
    "Retry-After": _header("seconds after which it may work", {"type": "integer", "minimum": 1}),
}
# Where limits are: all routes but those that are exempt.
LIMITED = (
    "RateLimit-Policy",
    "RateLimit",
    "RateLimit-Limit",
    "RateLimit-Remaining",
    "RateLimit-Reset",
)
EVERYWHERE = (
    "X-Request-ID",
    "Cache-Control",
    "Vary",
    "X-Content-Type-Options",
    "Referrer-Policy",
    "Content-Security-Policy",
    STRICT_TRANSPORT,
)
