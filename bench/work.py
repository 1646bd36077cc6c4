"""The kinds of work, and the bytes of their requests.

The requests come from 1,000 clients behind one proxy, as in production. A rate limit counts each
client separately, so no server has to count 1,000 requests a second for a single client.
"""

import json
from collections.abc import Mapping
from urllib.parse import urlencode

from bench.stage import Facts

CALLERS = 1_000
PAGES = 10
WARMING = 1_000_000  # number of the first request of the warm-up that is sent only once
BULK_SIZE = 100  # books of a request
# Kinds whose requests are sent only once, with the requests a second: more than any server does.
SENT_ONCE = {"filtered": 6_000, "create_key": 6_000, "search": 2_000}

BASIC_KINDS = {
    "item": "a book, from the cache",
    "304": "the same book, with the `If-None-Match` of a client that has it already",
    "page": "20 books, newest first, with total and links",
    "cursor": "20 books after an id in the middle of the catalogue",
    "filtered": "20 books of a genre and a range of prices; each filter is requested only once",
    "mix": "90 % item, 10 % create",
    "create": "a new book, with a token",
}
KINDS = BASIC_KINDS | {
    "batch": f"{BULK_SIZE} books by their ids in one request, from the cache",
    "search": "the 20 books that match a word of a title and the beginning of an author's name "
    "best; each search is requested only once",
    "gzip": "page, compressed with gzip",
    "put": "a new price for a book, with the ETag of the previous response in `If-Match`",
    "create_key": "create, with an `Idempotency-Key` that is used only once",
    "bulk": f"{BULK_SIZE} new books in one request",
}


def caller(number: int) -> str:
    """Return the address of a client, as the proxy sends it in X-Forwarded-For."""
    return f"10.0.{number % CALLERS // 250}.{number % 250 + 1}"


def new_book(number: int) -> bytes:
    """Return the body of a request that creates a book."""
    book = {
        "title": f"A Book about the Number {number}",
        "author": f"Author {number % 97}",
        "isbn": "9780306406157",
        "published_year": 1900 + number % 120,
        "genre": ("Fiction", "Non-Fiction", "Science", "History")[number % 4],
        "price": number % 5_000 / 100,
    }
    return json.dumps(book).encode()


def filtered_path(number: int) -> str:
    """Return one of a million filters; each matches about 300 of 10,000 books."""
    least = 5 + number * 787 % 2_000 / 100  # filters that follow each other match different books
    most = least + 1 + number // 2_000 / 100
    return f"/api/books?genre=Fiction&price_min={least:.2f}&price_max={most:.2f}"


def item_path(facts: Facts, number: int) -> str:
    """Return the path of one of the requested books."""
    return f"/api/books/{facts.ids[number % len(facts.ids)]}"


def page_path(number: int) -> str:
    """Return the path of one of the first pages."""
    return f"/api/books?page={number % PAGES + 1}"


def cursor_path(facts: Facts, number: int) -> str:
    """Return the path of one of the cursor pages in the middle."""
    return f"/api/books?cursor={facts.middle + number % PAGES * 20}&limit=20"


def search_path(facts: Facts, number: int) -> str:
    """Return one of the searches; those of the warm-up are the last ones. Raises ValueError."""
    if len(facts.searches) - CALLERS <= number < WARMING:
        raise ValueError(f"There are only {len(facts.searches)} searches: measure fewer seconds")
    query = facts.searches[number if number < WARMING else WARMING - 1 - number]
    return f"/api/search?{urlencode({'q': query})}"


def bulk_body(number: int) -> bytes:
    """Return the body of a request that creates books."""
    books = [new_book(number * BULK_SIZE + n) for n in range(BULK_SIZE)]
    return b'{"items": [%b]}' % b", ".join(books)


def batch_body(facts: Facts, number: int) -> bytes:
    """Return the body of a request that reads books: the requested books, in another order."""
    ids = [facts.ids[(number + n) % len(facts.ids)] for n in range(BULK_SIZE)]
    return json.dumps({"ids": ids}).encode()


def requests_of(
    kind: str,
    facts: Facts,
    tags: Mapping[str, str],
    seconds: int,
    *,
    series: int = 0,
    warming: bool = False,
) -> list[bytes]:
    """Return the requests of a kind of work. tags: for each path, the ETag that the client has.

    series: number of the measurement of a server; its requests differ from those of the
    other measurements where they are sent only once.
    """
    if kind in SENT_ONCE:
        number = SENT_ONCE[kind] * seconds
        first, number = (WARMING, CALLERS) if warming else (series * number, number)
        return [_request(kind, facts, tags, n) for n in range(first, first + number)]
    number = len(facts.owned) if kind == "put" else CALLERS  # wrk sends one PUT of a book at a time
    return [_request(kind, facts, tags, n) for n in range(number)]


def _request(kind: str, facts: Facts, tags: Mapping[str, str], n: int) -> bytes:
    path = item_path(facts, n)
    match kind:
        case "item":
            return get(path, n)
        case "304":
            return get(path, n, {"If-None-Match": tags[path]})
        case "page":
            return get(page_path(n), n)
        case "cursor":
            return get(cursor_path(facts, n), n)
        case "filtered":
            return get(filtered_path(n), n)
        case "mix":
            return create(facts, n) if n % 10 == 9 else get(path, n)
        case "create":
            return create(facts, n)
        case "put":
            return put(facts, n)
        case "create_key":
            return create(facts, n, {"Idempotency-Key": f"bench-{n}"})
        case "bulk":
            body = bulk_body(n % 10)
            return _send("POST", "/api/books/bulk", n, token(facts, n), body)
        case "batch":
            return _send("POST", "/api/books/batch-get", n, {}, batch_body(facts, n))
        case "search":
            return get(search_path(facts, n), n)
        case "gzip":
            return get(page_path(n), n, {"Accept-Encoding": "gzip"})
        case _:
            raise ValueError(f"Unknown kind of work {kind!r}. Expected one of {', '.join(KINDS)}")


def get(path: str, number: int, headers: Mapping[str, str] | None = None) -> bytes:
    """Return a GET of one client."""
    return _write("GET", path, number, headers or {}, b"")


def create(facts: Facts, number: int, headers: Mapping[str, str] | None = None) -> bytes:
    """Return the POST that creates a book."""
    more = {**token(facts, number), **(headers or {})}
    return _send("POST", "/api/books", number, more, new_book(number))


def put(facts: Facts, number: int) -> bytes:
    """Return the PUT that changes the price of a book, whatever its version is.

    load.lua replaces the `*` by the ETag of the previous response, and the price.
    """
    path = f"/api/books/{facts.owned[number]}"
    headers = {**token(facts, number), "If-Match": "*"}
    return _send("PUT", path, number, headers, b'{"price": 10.00}')


def token(facts: Facts, number: int) -> dict[str, str]:
    """Return the header with the token of a user. The n-th owned book belongs to the n-th user."""
    return {"Authorization": f"Bearer {facts.tokens[number % len(facts.tokens)]}"}


def _send(method: str, path: str, number: int, headers: Mapping[str, str], body: bytes) -> bytes:
    more = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    return _write(method, path, number, {**headers, **more}, body)


def _write(method: str, path: str, number: int, headers: Mapping[str, str], body: bytes) -> bytes:
    all_headers = {"Host": "127.0.0.1", "X-Forwarded-For": caller(number), **headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in all_headers.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body
