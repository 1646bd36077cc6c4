"""Check that all servers do the same work: compare their responses with those of Octavo."""

import json
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit
from uuid import uuid4

import httpx

from bench.stage import Facts
from bench.work import (
    PAGES,
    WARMING,
    batch_body,
    caller,
    cursor_path,
    filtered_path,
    item_path,
    new_book,
    page_path,
    token,
)

CREATED = 10  # books that a server creates during the check
TIMES = {"created_at", "updated_at"}
PUBLIC = {"item", "page", "cursor", "filtered", "search", "gzip"}  # kinds with an ETag
SERVER_HEADERS = {"date", "server", "connection", "transfer-encoding"}  # not from the application
UNSEEN = WARMING - 1  # a filter that no other request uses
WRONG_BOOKS: list[Any] = [
    {},
    {"title": "", "author": "A"},
    {"title": "T" * 201, "author": "A"},
    {"title": "T"},
    {"title": "T", "author": 1},
    {"title": "T", "author": "A", "published_year": 999},
    {"title": "T", "author": "A", "genre": "Poetry"},
    {"title": "T", "author": "A", "isbn": "12"},
    {"title": "T", "author": "A", "price": -1},
    {"title": "T", "author": "A", "owner": 1},
]

Responses = dict[str, httpx.Response]


class UnequalWorkError(Exception):
    """A server does other work than Octavo, so its figures could not be compared."""


class ResponseChecker:
    """Checks the responses of one server. Every method raises UnequalWorkError."""

    def __init__(self, name: str, url: str, facts: Facts) -> None:
        self._name = name
        self._facts = facts
        headers = {"X-Forwarded-For": caller(999), "Accept-Encoding": "identity"}
        self._client = httpx.Client(base_url=url, headers=headers)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def tags(self) -> dict[str, str]:
        """Return the ETag of each book that the load requests; this also fills the cache."""
        paths = [item_path(self._facts, n) for n in range(len(self._facts.ids))]
        return {path: self._get(path).headers["etag"] for path in paths}

    def responses(self, kinds: Collection[str]) -> Responses:
        """Return a response of each kind of work, the reads before the writes."""
        path = item_path(self._facts, 0)
        item = self._get(path)
        self._expect("etag" in item.headers, "an item has an ETag")
        known = {"If-None-Match": item.headers["etag"]}
        shortest = min(self._facts.searches, key=lambda query: (len(query), query))
        requests: dict[str, Callable[[], httpx.Response]] = {
            "item": lambda: item,
            "304": lambda: self._get(path, 304, known),
            "page": lambda: self._get(page_path(0)),
            "cursor": lambda: self._get(cursor_path(self._facts, 0)),
            "filtered": lambda: self._get(filtered_path(UNSEEN)),
            # A short query matches many books.
            "search": lambda: self._get(f"/api/search?{urlencode({'q': shortest})}"),
            "gzip": lambda: self._get(page_path(0), headers={"Accept-Encoding": "gzip"}),
            "batch": self._batch,
            "create": lambda: self._create(0),
            "put": self._put,
            "create_key": self._create_once,
            "bulk": self._bulk,
        }
        return {kind: request() for kind, request in requests.items() if kind in kinds}

    def compare(self, reference: Mapping[str, Any], kinds: Collection[str]) -> None:
        """Compare the responses with those of Octavo, which come from an equal database."""
        self._check_rejections()
        self._check_rate_limit()
        for n in range(PAGES):  # twice, to compare a cached response too
            for path in (page_path(n), cursor_path(self._facts, n)):
                first, second = self._get(path).json(), self._get(path).json()
                self._expect(normal(first) == normal(second), f"{path} stays the same")
        for kind, response in self.responses(kinds).items():
            status, _, body = reference[kind]
            self._expect(response.status_code == status, f"{kind} has status {status}")
            if kind == "304":
                self._expect(not response.content, "a 304 has no body")
                continue
            self._check_headers(kind, response)
            mine, theirs = (
                _without_new(kind, normal(json.loads(text))) for text in (response.text, body)
            )
            self._expect(mine == theirs, f"{kind} returns\n{theirs}\nand not\n{mine}")
        self._check_total()

    def _check_rejections(self) -> None:
        # A server may close the connection if it rejects a request before it has read the body.
        headers = {"Content-Type": "application/json", "Connection": "close"}
        response = self._client.post("/api/books", content=new_book(0), headers=headers)
        self._expect(response.status_code == 401, "a book cannot be created without a token")
        headers["Authorization"] = f"Bearer {self._facts.tokens[0]}x"
        response = self._client.post("/api/books", content=new_book(0), headers=headers)
        self._expect(response.status_code == 401, "a book cannot be created with a forged token")
        headers["Authorization"] = f"Bearer {self._facts.tokens[0]}"
        for book in WRONG_BOOKS:
            response = self._client.post("/api/books", json=book, headers=headers)
            self._expect(response.status_code in {400, 422}, f"{book} is rejected")

    def _check_rate_limit(self) -> None:
        """Check that each client's requests are counted separately."""
        path = item_path(self._facts, 0)
        before, after = (remaining(self._get(path)) for _ in range(2))
        self._expect(
            after == before - 1,
            f"remaining requests go from {before} to {before - 1}, not to {after}",
        )
        other = remaining(self._get(path, headers={"X-Forwarded-For": caller(998)}))
        self._expect(other > after, "another client has its own limit")

    def _check_total(self) -> None:
        """Check that the total and the newest book are correct directly after a create."""
        for n in range(CREATED):
            before = self._get(page_path(0)).json()
            created = self._create(n).json()
            after = self._get(page_path(0)).json()
            self._expect(
                after["total"] == before["total"] + 1, "a new book is in the total at once"
            )
            self._expect(
                after["items"][0]["id"] == created["id"], "a new book is on the page at once"
            )

    def _check_headers(self, kind: str, response: httpx.Response) -> None:
        remaining(response)
        headers = response.headers
        if kind in PUBLIC:
            self._expect("etag" in headers, f"{kind} has an ETag")
            self._expect(headers.get("cache-control") == "no-cache", f"{kind} is revalidated")
        if kind == "gzip":
            self._expect(headers.get("content-encoding") == "gzip", "a page is compressed")
            varying = "accept-encoding" in headers.get("vary", "").lower()
            self._expect(varying, "a compressed page varies with Accept-Encoding")

    def _batch(self) -> httpx.Response:
        """Read books, one of them twice and one that does not exist."""
        ids = json.loads(batch_body(self._facts, 1))["ids"]
        body = {"ids": [ids[0], self._facts.books * 1_000, *ids]}
        return self._write("POST", "/api/books/batch-get", 200, body)

    def _put(self) -> httpx.Response:
        """Change a book with its ETag; the ETag before and another user are rejected."""
        path, price = f"/api/books/{self._facts.owned[0]}", {"price": 12.34}
        before = {"If-Match": self._get(path).headers["etag"]}
        changed = self._write("PUT", path, 200, price, before)
        self._expect(self._get(path).json() == changed.json(), "a change is visible at once")
        self._write("PUT", path, 412, {"price": 1}, before)
        now = {"If-Match": changed.headers["etag"]}
        if len(self._facts.tokens) > 1:
            self._write("PUT", path, 403, {"price": 1}, {**now, **token(self._facts, 1)})
        return self._write("PUT", path, 200, {"price": 43.21}, now)

    def _create_once(self) -> httpx.Response:
        """Create a book twice with the same key, which creates it once."""
        key, book = {"Idempotency-Key": uuid4().hex}, json.loads(new_book(1))
        first = self._write("POST", "/api/books", 201, book, key)
        again = self._write("POST", "/api/books", 201, book, key)
        self._expect(again.content == first.content, "a retry has the response of the first")
        self._expect("idempotency-replayed" in again.headers, "a retry is replayed")
        self._write("POST", "/api/books", 422, {**book, "price": 1}, key)
        return first

    def _bulk(self) -> httpx.Response:
        """Create two books; the item between them is invalid."""
        books = [json.loads(new_book(2)), WRONG_BOOKS[1], json.loads(new_book(3))]
        return self._write("POST", "/api/books/bulk", 207, {"items": books})

    def _create(self, number: int) -> httpx.Response:
        return self._write("POST", "/api/books", 201, json.loads(new_book(number)))

    def _write(
        self,
        method: str,
        path: str,
        status: int,
        body: Any,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Send a body as the first user. The response must have the status."""
        headers = {**token(self._facts, 0), **(headers or {})}
        response = self._client.request(method, path, json=body, headers=headers)
        expected = f"{method} {path} is {status}, not {response.status_code} {response.text}"
        self._expect(response.status_code == status, expected)
        return response

    def _get(
        self, path: str, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        response = self._client.get(path, headers=headers)
        self._expect(
            response.status_code == status, f"{path} is {status}, not {response.status_code}"
        )
        return response

    def _expect(self, condition: bool, expected: str) -> None:
        if not condition:
            raise UnequalWorkError(f"{self._name} does not do the same work. Expected: {expected}")


def _without_new(kind: str, body: Any) -> Any:
    """Return a body without the values that the database makes, and without texts of errors."""
    new = {"put": TIMES, "create": {"id", *TIMES}, "create_key": {"id", *TIMES}}
    if kind == "bulk":
        ours = [item | {"id": 0} if "id" in item else item for item in body["results"]]
        return [item | {"errors": {}} if "errors" in item else item for item in ours]
    return {name: value for name, value in body.items() if name not in new.get(kind, ())}


def remaining(response: httpx.Response) -> int:
    """Return the number of requests that the client has left; the header has several names."""
    for name, value in response.headers.items():
        if name.endswith("ratelimit-remaining"):
            return int(value)
    raise UnequalWorkError(f"No rate limit header in {dict(response.headers)}")


def normal(value: Any) -> Any:
    """Normalize a body for comparison: times as datetime, links without their host."""
    return _normal(value, "", lambda text: text)


def _normal(value: Any, name: str, read: Callable[[str], Any]) -> Any:
    if isinstance(value, dict):
        inner = _link if name == "links" else read
        return {key: _normal(item, key, inner) for key, item in value.items()}
    if isinstance(value, list):
        return [_normal(item, name, read) for item in value]
    if isinstance(value, str):
        return datetime.fromisoformat(value) if name in TIMES else read(value)
    return value


def _link(url: str) -> Any:
    parts = urlsplit(url)
    return (parts.path, sorted(parse_qsl(parts.query)))


def save(responses: Responses, path: Path) -> dict[str, Any]:
    """Write the reference responses to a file for the ceilings, and return them."""
    saved = {
        kind: (
            response.status_code,
            [(k, v) for k, v in response.headers.multi_items() if k.lower() not in SERVER_HEADERS],
            response.text,
        )
        for kind, response in responses.items()
    }
    path.write_text(json.dumps(saved), encoding="utf-8")
    return saved
