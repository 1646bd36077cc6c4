"""The bodies and the SQL of the writes of the tuned peers, and of requests for many books."""

import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from bench.peers.derived import author_key, search_words
from bench.peers.listing import COLUMNS, Statement, to_json
from bench.peers.wire import BookResponse, book_tag, error_response

Title = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"\S")]
Author = Annotated[str, Meta(min_length=1, max_length=100, pattern=r"\S")]
Isbn = Annotated[str, Meta(pattern=r"^(\d{9}[\dX]|\d{13})$")]
Year = Annotated[int, Meta(ge=1000, le=2100)]
Genre = Literal["Fiction", "Non-Fiction", "Science", "History"]
Price = Annotated[float, Meta(ge=0, le=99_999_999.99)]
Id = Annotated[int, Meta(ge=0, le=2**63 - 1)]

COLUMN_TYPES = {
    "title": "text",
    "author": "text",
    "isbn": "text",
    "published_year": "int4",
    "genre": "text",
    "price": "float8::numeric(13, 2)",
    "author_key": "text",
    "search": "text::tsvector",
}
NAMES = ", ".join(COLUMN_TYPES)
ARRAYS = ", ".join(f"{{}}::{kind.partition('::')[0]}[]" for kind in COLUMN_TYPES.values())
# Each statement also checks that the token is still valid.
CREATE = (
    f"INSERT INTO books ({NAMES}, user_id) "  # noqa: S608  (no input)
    f"SELECT {', '.join(f'{{}}::{kind}' for kind in COLUMN_TYPES.values())}, id "
    f"FROM users WHERE id = {{}}::int8 AND token_version = {{}}::int8 RETURNING {COLUMNS}"
)
BULK = (
    f"INSERT INTO books ({NAMES}, user_id) "  # noqa: S608  (no input)
    f"SELECT {', '.join(f'new.{name}::{kind}' for name, kind in COLUMN_TYPES.items())}, u.id "
    f"FROM unnest({ARRAYS}) WITH ORDINALITY AS new ({NAMES}, n) "
    "JOIN users AS u ON u.id = {}::int8 AND u.token_version = {}::int8 "
    "ORDER BY new.n RETURNING id, version"
)
# The versions are NULL without If-Match, and for `*`.
CHANGE = (
    "UPDATE books SET {changes}version = version + 1, updated_at = statement_timestamp() "  # noqa: S608  (no input)
    "WHERE id = {{}}::int8 AND ({{}}::int8[] IS NULL OR version = ANY({{}}::int8[])) "
    "AND EXISTS (SELECT FROM users AS u WHERE u.id = {{}}::int8 AND u.token_version = {{}}::int8 "
    f"AND (u.is_admin OR u.id = books.user_id)) RETURNING {COLUMNS}"
)
UNCHANGED = (
    "SELECT b.user_id AS owner_id, b.version, u.is_admin, u.token_version FROM users AS u "
    "LEFT JOIN books AS b ON b.id = {}::int8 WHERE u.id = {}::int8"
)
RECORD = (
    "INSERT INTO idempotency_records AS r "
    "(user_id, key, fingerprint, status, headers, is_tagged, body, expires_at) "
    "VALUES ({}::int8, {}::text, {}::text, {}::int2, {}::text, false, {}::text, "
    "statement_timestamp() + interval '24 hours') ON CONFLICT (user_id, key) DO UPDATE SET "
    "fingerprint = excluded.fingerprint, status = excluded.status, headers = excluded.headers, "
    "body = excluded.body, expires_at = excluded.expires_at "
    "WHERE r.expires_at <= statement_timestamp() RETURNING true AS is_new"
)
RECORDED = (
    "SELECT fingerprint, status, headers, body FROM idempotency_records "
    "WHERE user_id = {}::int8 AND key = {}::text"
)
MANY = f"SELECT {COLUMNS} FROM books WHERE id = ANY({{}}::int8[])"  # noqa: S608  (no input)

TAG = re.compile(r'"(\d{1,18})-(\d{1,18})"')
KEY = re.compile(r"[!-~]{1,255}")


class KeyInUseError(Exception):
    """The Idempotency-Key belongs to another request: the transaction must roll back."""


class NewBook(msgspec.Struct, forbid_unknown_fields=True):  # type: ignore[call-arg]  # no types when absent
    """The body of a request that creates a book."""

    title: Title
    author: Author
    isbn: Isbn | None = None
    published_year: Year | None = None
    genre: Genre | None = None
    price: Price | None = None


class BookChange(msgspec.Struct, forbid_unknown_fields=True):  # type: ignore[call-arg]  # no types when absent
    """The body of a request that changes a book."""

    title: Title | UnsetType = UNSET
    author: Author | UnsetType = UNSET
    isbn: Isbn | UnsetType | None = UNSET
    published_year: Year | UnsetType | None = UNSET
    genre: Genre | UnsetType | None = UNSET
    price: Price | UnsetType | None = UNSET


class NewBooks(msgspec.Struct, forbid_unknown_fields=True):  # type: ignore[call-arg]  # no types when absent
    """The body of a request that creates books. Each item is validated alone."""

    items: Annotated[list[msgspec.Raw], Meta(min_length=1, max_length=500)]


class BookIds(msgspec.Struct, forbid_unknown_fields=True):  # type: ignore[call-arg]  # no types when absent
    """The body of a request that reads books."""

    ids: Annotated[list[Id], Meta(min_length=1, max_length=1_000)]


# Each raises ValueError: the exceptions of msgspec are ValueErrors.
read_book = msgspec.json.Decoder(NewBook).decode
read_books = msgspec.json.Decoder(NewBooks).decode
read_ids = msgspec.json.Decoder(BookIds).decode
_read_change = msgspec.json.Decoder(BookChange).decode


def new_values(book: NewBook, user_id: int, version: int) -> Statement:
    """Return the statement that adds a book, if the user's token version is still `version`."""
    return Statement(CREATE, (*_values(book), user_id, version))


def _values(book: NewBook) -> tuple[Any, ...]:
    return (
        book.title, book.author, book.isbn, book.published_year, book.genre, book.price,
        author_key(book.author), search_words(book.title, book.author),
    )  # fmt: skip


def read_change(body: bytes) -> dict[str, Any]:
    """Return the new values of a book, by column. Raises ValueError."""
    change = _read_change(body)
    values = {name: getattr(change, name) for name in change.__struct_fields__}
    return {name: value for name, value in values.items() if value is not UNSET}


def is_renamed(change: Mapping[str, Any]) -> bool:
    """Return whether a change needs the present title and author, for the derived columns."""
    return "title" in change or "author" in change


def with_derived(change: Mapping[str, Any], present: Any) -> dict[str, Any]:
    """Return a change of title or author, with the derived columns. present: the book now."""
    title, author = (change.get(name, present[name]) for name in ("title", "author"))
    derived = {"author_key": author_key(author), "search": search_words(title, author)}
    return {**change, **derived}


def change_values(
    book_id: int, change: Mapping[str, Any], if_match: str | None, user_id: int, version: int
) -> Statement:
    """Return the statement that changes a book, under its precondition."""
    sets = "".join(f"{name} = {{}}::{COLUMN_TYPES[name]}, " for name in change)
    versions = _versions(book_id, if_match)
    sql = CHANGE.format(changes=sets)
    return Statement(sql, (*change.values(), book_id, versions, versions, user_id, version))


def _versions(book_id: int, if_match: str | None) -> list[int] | None:
    if if_match is None or if_match.strip() == "*":
        return None
    return [int(version) for number, version in TAG.findall(if_match) if int(number) == book_id]


def unchanged(
    book_id: int, user: tuple[int, int], row: Any, headers: list[tuple[str, str]]
) -> BookResponse:
    """Return the reason why a book was not changed. row: the result of UNCHANGED, or None."""
    user_id, version = user
    if row is None or row["token_version"] != version:
        return error_response(401, "Invalid or expired token", headers)
    if row["version"] is None:
        return error_response(404, "Not Found", headers)
    if not (row["is_admin"] or row["owner_id"] == user_id):
        return error_response(403, "Forbidden", headers)
    tag = f'"{book_tag(book_id, row["version"])}"'
    return error_response(412, "Precondition Failed", [*headers, ("ETag", tag)])


def record_values(user_id: int, key: str, body: bytes, response: BookResponse) -> Statement:
    """Return the statement that records a response by its key; no row: the key is in use.

    body: of the request. The rate limit's headers are not recorded.
    """
    location = {name: value for name, value in response.headers if name == "Location"}
    written = to_json(location).decode(), response.body.decode()
    return Statement(RECORD, (user_id, key, _fingerprint(body), response.status, *written))


def replay(row: Any, body: bytes, headers: list[tuple[str, str]]) -> BookResponse:
    """Return the recorded response to a request, or an error if the body is another one."""
    if row["fingerprint"] != _fingerprint(body):
        return error_response(422, "This Idempotency-Key was used for another request", headers)
    recorded = msgspec.json.decode(row["headers"]).items()
    more = [*recorded, ("Idempotency-Replayed", "true")]
    return BookResponse(row["status"], row["body"].encode(), [*headers, *more])


def _fingerprint(body: bytes) -> str:
    return blake2b(body, digest_size=16).hexdigest()


def read_items(body: bytes) -> list[NewBook | str]:
    """Return the new books of a bulk request, and an error in place of each invalid book.

    Raises ValueError if the whole body is invalid.
    """
    return [_read_item(item) for item in read_books(body).items]


def _read_item(item: msgspec.Raw) -> NewBook | str:
    try:
        book: NewBook = read_book(item)
    except ValueError as error:
        return str(error)
    return book


def bulk_values(items: Sequence[NewBook | str], user_id: int, version: int) -> Statement:
    """Return the statement that adds all valid books of a bulk request."""
    rows = [_values(item) for item in items if isinstance(item, NewBook)]
    return Statement(BULK, (*map(list, zip(*rows, strict=True)), user_id, version))


def bulk_body(items: Sequence[NewBook | str], rows: Sequence[Any]) -> bytes:
    """Return the result of each item. rows: the id and the version of each new book."""
    created = iter(sorted(rows, key=lambda row: row["id"]))  # ids are assigned in order
    results = [
        {"index": index, "status": 400, "errors": {"_schema": [item]}}
        if isinstance(item, str)
        else {"index": index, "status": 201, **dict(next(created))}
        for index, item in enumerate(items)
    ]
    return to_json({"results": results})


def batch_body(ids: Sequence[int], bodies: Mapping[int, bytes]) -> bytes:
    """Return books in the order of their ids, and the ids without a book. bodies: by id."""
    items = b",".join([bodies[book_id] for book_id in ids if book_id in bodies])
    missing = [book_id for book_id in dict.fromkeys(ids) if book_id not in bodies]
    return b'{"items":[%b],"missing":%b}' % (items, to_json(missing))
