"""The kinds of work: the requests of each, as they go over the wire.

They come from a thousand callers behind one proxy, as in production: a limit that is counted
caller by caller is not asked to count one who asks a thousand times a second.
"""

import json
from collections.abc import Iterator, Mapping
from itertools import count, islice

from bench.stage import Facts

CALLERS = 1_000
PAGES = 10
UNSEEN = 6_000  # cold requests a second that nobody reaches
WARMING = 1_000_000  # cold requests of the warming begin here, beyond all others

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
    """Give the address of a caller, as a proxy tells it."""
    return f"10.0.{number % CALLERS // 250}.{number % 250 + 1}"


def new_book(number: int) -> bytes:
    """Give the body of a book to create."""
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
    """Give one of a million filters, each of some three hundred in ten thousand books."""
    least = 5 + number * 787 % 2_000 / 100  # those that follow each other have other books
    most = least + 1 + number // 2_000 / 100
    return f"/api/books?genre=Fiction&price_min={least:.2f}&price_max={most:.2f}"


def item_path(facts: Facts, number: int) -> str:
    """Give one of the books that are asked for."""
    return f"/api/books/{facts.ids[number % len(facts.ids)]}"


def page_path(number: int) -> str:
    """Give one of the first pages."""
    return f"/api/books?page={number % PAGES + 1}"


def cursor_path(facts: Facts, number: int) -> str:
    """Give one of the pages in the middle."""
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
    """Give the requests of a kind of work. `tags`: of each path, what the client has.

    series: numbers the measurements of one server; each has filters of its own.
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
                raise ValueError(f"Unknown work {kind!r}: one of {', '.join(KINDS)}")


def get(path: str, number: int, headers: Mapping[str, str] | None = None) -> bytes:
    """Write a GET of one caller."""
    return _write("GET", path, number, headers or {}, b"")


def create(facts: Facts, number: int) -> bytes:
    """Write the POST of a new book."""
    body = new_book(number)
    headers = {
        "Authorization": f"Bearer {facts.tokens[number % len(facts.tokens)]}",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
    }
    return _write("POST", "/api/books", number, headers, body)


def _write(method: str, path: str, number: int, headers: Mapping[str, str], body: bytes) -> bytes:
    told = {"Host": "127.0.0.1", "X-Forwarded-For": caller(number), **headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body
