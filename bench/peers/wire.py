"""What the tuned peers share: their bytes, and who may come in. No ORM, no models."""

import gc
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Literal

import jwt
import msgspec

from bench.peers import settings
from bench.peers.derived import author_key, search_words
from bench.peers.listing import COLUMNS, Statement, to_json

ASK = Path(__file__).with_name("ask.lua").read_text(encoding="utf-8")
GENERATION = "tuned:generation"  # counts the writes: a page is of the generation it was read in
# One statement looks whether the token is still good, and adds the book.
CREATE = (
    "INSERT INTO books (title, author, isbn, published_year, genre, price, author_key, search, "  # noqa: S608  (no input)
    "user_id) SELECT {}::text, {}::text, {}::text, {}::int4, {}::text, {}::float8::numeric(13, 2), "
    "{}::text, {}::text::tsvector, id FROM users WHERE id = {}::int8 AND token_version = {}::int8 "
    f"RETURNING {COLUMNS}"
)


class UnauthorizedError(Exception):
    """Nobody is let in by this token."""


class NewBook(msgspec.Struct, forbid_unknown_fields=True):  # type: ignore[call-arg]  # no types when absent
    """A book to be made."""

    title: Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern=r"\S")]
    author: Annotated[str, msgspec.Meta(min_length=1, max_length=100, pattern=r"\S")]
    isbn: Annotated[str, msgspec.Meta(pattern=r"^(\d{9}[\dX]|\d{13})$")] | None = None
    published_year: Annotated[int, msgspec.Meta(ge=1000, le=2100)] | None = None
    genre: Literal["Fiction", "Non-Fiction", "Science", "History"] | None = None
    price: Annotated[float, msgspec.Meta(ge=0, le=99_999_999.99)] | None = None


read_book = msgspec.json.Decoder(NewBook).decode


def book_body(row: Any) -> bytes:
    """Write a book, of a row by the names of its columns."""
    return to_json(dict(row))


def new_values(book: NewBook, user_id: int, version: int) -> Statement:
    """Give the statement that adds a book for a user whose token is of this version."""
    return Statement(
        CREATE,
        (
            book.title, book.author, book.isbn, book.published_year, book.genre, book.price,
            author_key(book.author), search_words(book.title, book.author), user_id, version,
        ),
    )  # fmt: skip


class Pages(dict[str, bytes]):
    """The last pages of this process, each with its generation: Redis then need not send them."""

    most = 512

    def keep(self, query: str, found: bytes) -> None:
        """Keep a page, in place of the one that has been here the longest."""
        if query not in self and len(self) >= self.most:
            self.pop(next(iter(self)), None)
        self[query] = found


def pack(body: bytes, generation: bytes = b"") -> bytes:
    """Give what is cached of an answer: its generation, its tag, its bytes."""
    tag = blake2b(body, digest_size=12).hexdigest().encode()
    return b'%b\n"%b"\n%b' % (generation, tag, body)


def unpack(found: bytes) -> tuple[bytes, str, bytes]:
    """Give generation, tag and body."""
    generation, tag, body = found.split(b"\n", 2)
    return generation, tag.decode(), body


def user_of(authorization: str | None) -> tuple[int, int]:
    """Give a token's user and version. Raises UnauthorizedError."""
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
    """Give the address that the proxy in front saw."""
    return forwarded.rpartition(",")[2].strip() if forwarded else client


def limit_headers(left: int, reset: int) -> list[tuple[str, str]]:
    """Say how a caller stands."""
    return [
        ("RateLimit-Limit", str(settings.RATE)),
        ("RateLimit-Remaining", str(max(0, left))),
        ("RateLimit-Reset", str(reset)),
    ]


def collect_seldom() -> None:
    """Keep what is loaded out of garbage collection, and look through the rest seldom."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
