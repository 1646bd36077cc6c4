"""Shared by the tuned peers: bodies, cached bytes, tokens and headers. No ORM, no models."""

import gc
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Literal

import jwt
import msgspec

from bench.peers import settings
from bench.peers.derived import author_key, search_words
from bench.peers.listing import COLUMNS, Statement, to_json

LIMIT_AND_GET = Path(__file__).with_name("limit_and_get.lua").read_text(encoding="utf-8")
GENERATION = (
    "tuned:generation"  # counts the writes; a page belongs to the generation in which it was read
)
# One statement checks that the token is still valid, and adds the book.
CREATE = (
    "INSERT INTO books (title, author, isbn, published_year, genre, price, author_key, search, "  # noqa: S608  (no input)
    "user_id) SELECT {}::text, {}::text, {}::text, {}::int4, {}::text, {}::float8::numeric(13, 2), "
    "{}::text, {}::text::tsvector, id FROM users WHERE id = {}::int8 AND token_version = {}::int8 "
    f"RETURNING {COLUMNS}"
)


class UnauthorizedError(Exception):
    """The token is missing or invalid."""


class NewBook(msgspec.Struct, forbid_unknown_fields=True):  # type: ignore[call-arg]  # no types when absent
    """The body of a request that creates a book."""

    title: Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern=r"\S")]
    author: Annotated[str, msgspec.Meta(min_length=1, max_length=100, pattern=r"\S")]
    isbn: Annotated[str, msgspec.Meta(pattern=r"^(\d{9}[\dX]|\d{13})$")] | None = None
    published_year: Annotated[int, msgspec.Meta(ge=1000, le=2100)] | None = None
    genre: Literal["Fiction", "Non-Fiction", "Science", "History"] | None = None
    price: Annotated[float, msgspec.Meta(ge=0, le=99_999_999.99)] | None = None


read_book = msgspec.json.Decoder(NewBook).decode


def book_body(row: Any) -> bytes:
    """Return the JSON of a book from a row with named columns."""
    return to_json(dict(row))


def new_values(book: NewBook, user_id: int, version: int) -> Statement:
    """Return the statement that adds a book, if the user's token version is still `version`."""
    return Statement(
        CREATE,
        (
            book.title, book.author, book.isbn, book.published_year, book.genre, book.price,
            author_key(book.author), search_words(book.title, book.author), user_id, version,
        ),
    )  # fmt: skip


class Pages(dict[str, bytes]):
    """A cache of pages, with their generations, in this process: Redis need not send them."""

    most = 512

    def keep(self, query: str, page: bytes) -> None:
        """Store a page; if the cache is full, evict the oldest page."""
        if query not in self and len(self) >= self.most:
            self.pop(next(iter(self)), None)
        self[query] = page


def pack(body: bytes, generation: bytes = b"") -> bytes:
    """Return the cached form of a response: its generation, its ETag, its body."""
    tag = blake2b(body, digest_size=12).hexdigest().encode()
    return b'%b\n"%b"\n%b' % (generation, tag, body)


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


def collect_seldom() -> None:
    """Exclude loaded objects from garbage collection, and collect the rest rarely."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
