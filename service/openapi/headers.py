"""Descriptions of all response headers, for the OpenAPI document."""

from typing import Any

from service.http.responses import CACHE_STATUS
from service.idempotency import REPLAYED

STRICT_TRANSPORT = "Strict-Transport-Security"  # only if PUBLIC_URL is https


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
        "id of the request in the log; a valid id that the client sent is kept",
        {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
    ),
    "Cache-Control": _header(
        "`no-cache`: store it, and revalidate with If-None-Match; `no-store`: do not store it",
        {"type": "string", "enum": ["no-cache", "no-store"]},
    ),
    "Vary": _header("request headers on which the response depends"),
    "X-Content-Type-Options": _header(
        "browsers must not guess another content type", {"const": "nosniff"}
    ),
    "Referrer-Policy": _header("browsers send no Referer from here", {"const": "no-referrer"}),
    "Content-Security-Policy": _header("actions that a browser may take with the response"),
    STRICT_TRANSPORT: _header("browsers must use https only"),
    "ETag": _header(
        "strong validator of this representation", {"type": "string", "pattern": '^".+"$'}
    ),
    "Content-Encoding": _header(
        "compression of the body, which Accept-Encoding allows",
        {"enum": ["gzip", "zstd"]},
        required=False,
    ),
    "Location": _header("URL of the new resource", {"type": "string", "format": "uri"}),
    "Link": _header("the links of the page (RFC 8288); in page mode", required=False),
    "Cache-Status": _header(
        "whether the response came from the cache (RFC 9211)",
        {"enum": [f"Octavo; {value}" for value in CACHE_STATUS.values()]},
        required=False,
    ),
    "X-Total-Count": _count("number of items on all pages"),
    "RateLimit-Policy": _header(
        'limits of the caller on this route, as `"minute";q=10;w=60`: 10 within any 60 seconds',
        required=False,
    ),
    "RateLimit": _header(
        'remaining requests, as `"minute";r=9;t=60`: 9 left, one more in 60 seconds',
        required=False,
    ),
    "RateLimit-Limit": _count("number of requests of the tightest limit", required=False),
    "RateLimit-Remaining": _count("remaining requests of that limit", required=False),
    "RateLimit-Reset": _count("seconds until that limit allows one more request", required=False),
    "WWW-Authenticate": _header(
        "authentication scheme; `invalid_token`: the token that was sent is not valid",
        {"enum": ["Bearer", 'Bearer error="invalid_token"']},
    ),
    REPLAYED: _header(
        "the response is that of an earlier request with this Idempotency-Key",
        {"const": "true"},
        required=False,
    ),
    "Retry-After": _header(
        "seconds to wait before the next attempt", {"type": "integer", "minimum": 1}
    ),
}
# Sent by all routes that are not exempt from rate limits.
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
