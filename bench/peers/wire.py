"""What the tuned peers share: their SQL, their bytes, and who may come in. No ORM, no models.

Statements are written with `{}` for a value: asyncpg numbers them, psycopg names none.
"""

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlencode

import jwt
import msgspec
import orjson

from bench.peers import settings
from bench.peers.derived import author_key, search_words

ASK = Path(__file__).with_name("ask.lua").read_text(encoding="utf-8")
GENERATION = "tuned:generation"  # counts the writes: a page is of the generation it was read in
COLUMNS = (
    "id, title, author, isbn, published_year, genre, price::float8 AS price, user_id, version, "
    "created_at, updated_at"
)
ITEM = f"SELECT {COLUMNS} FROM books WHERE id = {{}}"  # noqa: S608
KEPT_TOTAL = "SELECT coalesce(sum(n), 0)::int8 FROM book_counts"
# One statement looks whether the token is still good, and adds the book.
CREATE = (
    "INSERT INTO books (title, author, isbn, published_year, genre, price, author_key, search, "  # noqa: S608
    "user_id) SELECT {}::text, {}::text, {}::text, {}::int4, {}::text, {}::float8::numeric(13, 2), "
    "{}::text, {}::text::tsvector, id FROM users WHERE id = {}::int8 AND token_version = {}::int8 "
    f"RETURNING {COLUMNS}"
)
MAX_ROWS = 100
PARAMETERS = {"page", "per_page", "cursor", "limit", "genre", "price_min", "price_max"}
GENRES = ("Fiction", "Non-Fiction", "Science", "History")


class BadRequestError(Exception):
    """The request cannot be answered as it is."""


class UnauthorizedError(Exception):
    """Nobody is let in by this token."""


class NewBook(msgspec.Struct, forbid_unknown_fields=True):  # type: ignore[call-arg]
    """A book to be made."""

    title: Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern=r"\S")]
    author: Annotated[str, msgspec.Meta(min_length=1, max_length=100, pattern=r"\S")]
    isbn: Annotated[str, msgspec.Meta(pattern=r"^(\d{9}[\dX]|\d{13})$")] | None = None
    published_year: Annotated[int, msgspec.Meta(ge=1000, le=2100)] | None = None
    genre: Literal["Fiction", "Non-Fiction", "Science", "History"] | None = None
    price: Annotated[float, msgspec.Meta(ge=0, le=99_999_999.99)] | None = None


read_book = msgspec.json.Decoder(NewBook).decode


@dataclass(frozen=True)
class Statement:
    """SQL with its values."""

    sql: str
    values: tuple[Any, ...]

    def numbered(self) -> str:
        """Write the places of values as asyncpg wants them."""
        return self.sql.format(*(f"${n}" for n in range(1, len(self.values) + 1)))

    def unnamed(self) -> str:
        """Write the places of values as psycopg wants them."""
        return self.sql.format(*["%s"] * len(self.values))


@dataclass(frozen=True)
class Listing:
    """A list that was asked for: `page` is None in cursor mode, where `size + 1` rows are read."""

    rows: Statement
    total: Statement
    size: int
    page: int | None
    query: Sequence[tuple[str, str]]

    def body(self, rows: Sequence[Any], total: int) -> bytes:
        """Write the answer."""
        if self.page is None:
            kept = [dict(row) for row in rows[: self.size]]
            more = len(rows) > self.size
            found: dict[str, Any] = {"items": kept, "has_more": more}
            if more:
                found["next_cursor"] = kept[-1]["id"]
            return to_json(found)
        last = -(-total // self.size)
        has_next, has_prev = self.page < last, self.page > 1
        links = {"self": self._to(self.page), "first": self._to(1), "last": self._to(max(1, last))}
        if has_next:
            links["next"] = self._to(self.page + 1)
        if has_prev:
            links["prev"] = self._to(self.page - 1)
        found = {
            "items": [dict(row) for row in rows],
            "total": total,
            "pagination": {
                "page": self.page,
                "per_page": self.size,
                "total_pages": last,
                "total_items": total,
                "has_next": has_next,
                "has_prev": has_prev,
                "next_page": self.page + 1 if has_next else None,
                "prev_page": self.page - 1 if has_prev else None,
            },
            "links": links,
        }
        return to_json(found)

    def _to(self, number: int) -> str:
        others = [(name, value) for name, value in self.query if name != "page"]
        return f"{settings.PUBLIC_URL}/api/books?{urlencode([*others, ('page', number)])}"


def listing(query: str) -> Listing:
    """Read a query. Raises BadRequestError."""
    pairs = parse_qsl(query, keep_blank_values=True)
    given = dict(pairs)
    if len(given) < len(pairs) or given.keys() - PARAMETERS:
        raise BadRequestError("A parameter is unknown, or given twice")
    where, values = _conditions(given)
    if "cursor" in given or "limit" in given:
        size = min(_number(given, "limit", 20), MAX_ROWS)
        if "cursor" in given:
            where.append("id > {}")
            values.append(_number(given, "cursor", 1))
        sql = f"SELECT {COLUMNS} FROM books{_where(where)} ORDER BY id LIMIT {{}}"  # noqa: S608
        rows = Statement(sql, (*values, size + 1))
        return Listing(rows, Statement("SELECT 0", ()), size, None, pairs)
    size = min(_number(given, "per_page", 20), MAX_ROWS)
    page = _number(given, "page", 1)
    total = f"SELECT count(*) FROM books{_where(where)}" if where else KEPT_TOTAL  # noqa: S608
    sql = (
        f"SELECT {COLUMNS}, (SELECT total FROM found) AS total FROM books{_where(where)} "  # noqa: S608
        "ORDER BY created_at DESC, id DESC LIMIT {} OFFSET {}"
    )
    rows = Statement(
        f"WITH found (total) AS ({total}) {sql}", (*values, *values, size, (page - 1) * size)
    )
    return Listing(rows, Statement(total, tuple(values)), size, page, pairs)


def _conditions(given: Mapping[str, str]) -> tuple[list[str], list[Any]]:
    where: list[str] = []
    values: list[Any] = []
    if "genre" in given:
        if given["genre"] not in GENRES:
            raise BadRequestError("Unknown genre")
        where.append("genre = {}")
        values.append(given["genre"])
    for name, compared in (("price_min", ">="), ("price_max", "<=")):
        if name in given:
            # The schema has its index on this expression.
            where.append(f"coalesce(price, -1) {compared} {{}}")
            values.append(max(_price(given[name]), Decimal(0)))
    if where and "price_max" in given and "price_min" not in given:
        where.append("price IS NOT NULL")
    return where, values


def _where(conditions: Sequence[str]) -> str:
    return f" WHERE {' AND '.join(conditions)}" if conditions else ""


def _number(given: Mapping[str, str], name: str, default: int) -> int:
    value = given.get(name)
    if value is None:
        return default
    if not (value.isascii() and value.isdigit()) or not 0 < int(value) < 2**63:
        raise BadRequestError(f"{name} is no positive number")
    return int(value)


def _price(value: str) -> Decimal:
    try:
        price = Decimal(value)
    except InvalidOperation:
        raise BadRequestError(f"{value} is no price") from None
    if not price.is_finite():
        raise BadRequestError(f"{value} is no price")
    return price


def book_body(row: Any) -> bytes:
    """Write a book, of a row by the names of its columns."""
    return to_json(dict(row))


def to_json(value: Any) -> bytes:
    """Write JSON."""
    written: bytes = orjson.dumps(value, option=orjson.OPT_UTC_Z)
    return written


def new_values(book: NewBook, user_id: int, version: int) -> Statement:
    """Give the statement that adds a book for a user whose token is of this version."""
    return Statement(
        CREATE,
        (
            book.title, book.author, book.isbn, book.published_year, book.genre, book.price,
            author_key(book.author), search_words(book.title, book.author), user_id, version,
        ),
    )  # fmt: skip


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
