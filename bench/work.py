"""The kinds of work, and the bytes of their requests.

The requests come from 1,000 clients behind one proxy, as in production. A rate limit counts each
client separately, so no server has to count 1,000 requests a second for a single client.
"""

import json
from collections.abc import Iterator, Mapping
from itertools import count, islice

from bench.stage import Facts

CALLERS = 1_000
PAGES = 10
UNSEEN = 6_000  # cold requests a second: more than any server can process
WARMING = 1_000_000  # number of the first cold request of the warm-up, after all others

KINDS = {
    "item": "a book, from the cache",
    "304": "the same book, with the `If-None-Match` of a client that has it already",
    "page": "20 books, newest first, with total and links",
    "cursor": "20 books after an id in the middle of the catalogue",
    "filtered": "20 books of a genre and a range of prices; each filter is requested only once",
    "mix": "90 % item, 10 % create",
    "create": "a new book, with a token",
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

    series: number of the measurement of a server; each measurement uses other filters.
    """
    if kind == "filtered":
        number = UNSEEN * seconds
        first, number = (WARMING, CALLERS) if warming else (series * number, number)
        return [get(filtered_path(n), n) for n in range(first, first + number)]
    return list(islice(_requests(kind, facts, tags), CALLERS))


def _requests(kind: str, facts: Facts, tags: Mapping[str, str]) -> Iterator[bytes]:
    for n in count():
        path = item_path(facts, n)
        match kind:
            case "item":
                yield get(path, n)
            case "304":
                yield get(path, n, {"If-None-Match": tags[path]})
            case "page":
                yield get(page_path(n), n)
            case "cursor":
                yield get(cursor_path(facts, n), n)
            case "mix":
                yield create(facts, n) if n % 10 == 9 else get(path, n)
            case "create":
                yield create(facts, n)
            case _:
                raise ValueError(
                    f"Unknown kind of work {kind!r}. Expected one of {', '.join(KINDS)}"
                )


def get(path: str, number: int, headers: Mapping[str, str] | None = None) -> bytes:
    """Return a GET of one client."""
    return _write("GET", path, number, headers or {}, b"")


def create(facts: Facts, number: int) -> bytes:
    """Return the POST that creates a book."""
    body = new_book(number)
    headers = {
        "Authorization": f"Bearer {facts.tokens[number % len(facts.tokens)]}",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
    }
    return _write("POST", "/api/books", number, headers, body)


def _write(method: str, path: str, number: int, headers: Mapping[str, str], body: bytes) -> bytes:
    all_headers = {"Host": "127.0.0.1", "X-Forwarded-For": caller(number), **headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in all_headers.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body
