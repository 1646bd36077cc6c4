"""Shared by the tuned peers: responses, cached bytes, tokens and headers. No ORM, no models."""

import gc
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import jwt

from bench.peers import settings
from bench.peers.listing import to_json

LIMIT_AND_GET = Path(__file__).with_name("limit_and_get.lua").read_text(encoding="utf-8")
GENERATION = (
    "tuned:generation"  # counts the writes; a page belongs to the generation in which it was read
)
UNIT_SIZE = 100  # items of a request that cost as much as one request
# Compressed at the level that Octavo uses.
GZIP_LEVEL, GZIP_MIN_SIZE = 5, 1_024


class UnauthorizedError(Exception):
    """The token is missing or invalid."""


class BookResponse(NamedTuple):
    """A response, ready to be sent."""

    status: int
    body: bytes
    headers: list[tuple[str, str]]


def error_response(status: int, message: str, headers: list[tuple[str, str]]) -> BookResponse:
    """Return a response with an error."""
    return BookResponse(status, to_json({"error": message}), headers)


def created(row: Any, headers: list[tuple[str, str]]) -> BookResponse:
    """Return the response to a request that creates a book. row: None if there is no such user."""
    if row is None:
        return error_response(401, "Invalid or expired token", headers)
    location = f"{settings.PUBLIC_URL}/api/books/{row['id']}"
    return BookResponse(201, book_body(row), [*headers, ("Location", location)])


def tagged(cached: bytes, headers: list[tuple[str, str]], known: str | None) -> BookResponse:
    """Return a cached response, or 304 if the client has it. known: the ETag that it has."""
    _, tag, body = unpack(cached)
    headers += [("ETag", tag), ("Cache-Control", "no-cache")]
    return BookResponse(304, b"", headers) if known == tag else BookResponse(200, body, headers)


def book_body(row: Any) -> bytes:
    """Return the JSON of a book from a row with named columns."""
    return to_json(dict(row))


def without_total(row: Any) -> dict[str, Any]:
    """Return the book of a row that also has the total."""
    book = dict(row)
    del book["total"]
    return book


class Pages(dict[str, bytes]):
    """A cache of pages, with their generations, in this process: Redis need not send them."""

    most = 512

    def keep(self, key: str, page: bytes) -> None:
        """Store a page; if the cache is full, evict the oldest page."""
        if key not in self and len(self) >= self.most:
            self.pop(next(iter(self)), None)
        self[key] = page


def pack(body: bytes, generation: bytes = b"") -> bytes:
    """Return the cached form of a response: its generation, its ETag, its body."""
    return _pack(generation, blake2b(body, digest_size=12).hexdigest(), body)


def pack_book(row: Any) -> bytes:
    """Return the cached form of a book. Its ETag has the version, which one UPDATE can compare."""
    return _pack(b"", book_tag(row["id"], row["version"]), book_body(row))


def book_tag(book_id: int, version: int) -> str:
    """Return the ETag of a book, without quotes."""
    return f"{book_id}-{version}"


def _pack(generation: bytes, tag: str, body: bytes) -> bytes:
    return b'%b\n"%b"\n%b' % (generation, tag.encode(), body)


def unpack(cached: bytes) -> tuple[bytes, str, bytes]:
    """Return generation, ETag and body."""
    generation, tag, body = cached.split(b"\n", 2)
    return generation, tag.decode(), body


def user_of(authorization: str | None) -> tuple[int, int]:
    """Return the user id and the version of a token. Raises UnauthorizedError."""
    if authorization is None or not authorization.startswith("Bearer "):
        raise UnauthorizedError("Token is missing")
    try:
        claims = jwt.decode(
            authorization[7:],
            settings.SECRET_KEY,
            algorithms=[settings.ALGORITHM],
            audience=settings.AUDIENCE,
            issuer=settings.ISSUER,
            options={"require": ["user_id", "exp", "ver"]},
        )
    except jwt.PyJWTError:
        raise UnauthorizedError("Invalid or expired token") from None
    return claims["user_id"], claims["ver"]


def address_of(forwarded: str | None, client: str) -> str:
    """Return the client address that the proxy sent, or the address of the connection."""
    return forwarded.rpartition(",")[2].strip() if forwarded else client


def limit_headers(left: int, reset: int) -> list[tuple[str, str]]:
    """Return the rate limit headers of a client."""
    return [
        ("RateLimit-Limit", str(settings.RATE)),
        ("RateLimit-Remaining", str(max(0, left))),
        ("RateLimit-Reset", str(reset)),
    ]


def units_of(items: int) -> int:
    """Return what a request with so many items costs."""
    return max(1, -(-items // UNIT_SIZE))


def collect_seldom() -> None:
    """Exclude loaded objects from garbage collection, and collect the rest rarely."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
