"""Check that all servers do the same work: compare their responses with those of Octavo."""

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx

from bench.stage import Facts
from bench.work import (
    PAGES,
    WARMING,
    caller,
    cursor_path,
    filtered_path,
    item_path,
    new_book,
    page_path,
)

CREATED = 10  # books that a server creates during the check
TIMES = {"created_at", "updated_at"}
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
        self._client = httpx.Client(base_url=url, headers={"X-Forwarded-For": caller(999)})

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def tags(self) -> dict[str, str]:
        """Return the ETag of each book that the load requests; this also fills the cache."""
        paths = [item_path(self._facts, n) for n in range(len(self._facts.ids))]
        return {path: self._get(path).headers["etag"] for path in paths}

    def responses(self) -> Responses:
        """Return a response of each kind of work."""
        item = self._get(item_path(self._facts, 0))
        self._expect("etag" in item.headers, "an item has an ETag")
        responses = {
            "item": item,
            "304": self._get(
                item_path(self._facts, 0), 304, {"If-None-Match": item.headers["etag"]}
            ),
            "page": self._get(page_path(0)),
            "cursor": self._get(cursor_path(self._facts, 0)),
            "filtered": self._get(filtered_path(UNSEEN)),
        }
        responses["create"] = self._create(0)
        return responses

    def compare(self, reference: Mapping[str, Any]) -> None:
        """Compare the responses with those of Octavo, which come from an equal database."""
        self._check_rejections()
        self._check_rate_limit()
        for n in range(PAGES):  # twice, to compare a cached response too
            for path in (page_path(n), cursor_path(self._facts, n)):
                first, second = self._get(path).json(), self._get(path).json()
                self._expect(normal(first) == normal(second), f"{path} stays the same")
        for kind, response in self.responses().items():
            status, _, body = reference[kind]
            self._expect(response.status_code == status, f"{kind} has status {status}")
            if kind == "304":
                self._expect(not response.content, "a 304 has no body")
                continue
            self._check_caching_headers(kind, response)
            mine, theirs = normal(response.json()), normal(json.loads(body))
            if kind == "create":
                for book in (mine, theirs):
                    for name in ("id", *TIMES):
                        book.pop(name, None)
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

    def _check_caching_headers(self, kind: str, response: httpx.Response) -> None:
        remaining(response)
        if kind != "create":
            self._expect("etag" in response.headers, f"{kind} has an ETag")
            self._expect(
                response.headers.get("cache-control") == "no-cache", f"{kind} is revalidated"
            )

    def _create(self, number: int) -> httpx.Response:
        headers = {
            "Authorization": f"Bearer {self._facts.tokens[0]}",
            "Content-Type": "application/json",
        }
        response = self._client.post("/api/books", content=new_book(number), headers=headers)
        self._expect(response.status_code == 201, f"a book is created, not {response.text}")
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
