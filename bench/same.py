"""The same work for all: each contestant's answers are held to Octavo's before it is measured."""

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

CREATED = 10  # books that a contestant adds while it is looked at
TIMES = {"created_at", "updated_at"}
OF_SERVERS = {"date", "server", "connection", "transfer-encoding"}  # not the application's
UNSEEN = WARMING - 1  # a filter that nobody else asks for
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

Answers = dict[str, httpx.Response]


class UnequalWorkError(Exception):
    """A contestant does something else than the others: it would not be fair to measure it."""


class Examiner:
    """Looks at what one contestant answers. Every method raises UnequalWorkError."""

    def __init__(self, name: str, url: str, facts: Facts) -> None:
        self._name = name
        self._facts = facts
        self._client = httpx.Client(base_url=url, headers={"X-Forwarded-For": caller(999)})

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def tags(self) -> dict[str, str]:
        """Give the ETag of every book that will be asked for; they are in the cache then."""
        paths = [item_path(self._facts, n) for n in range(len(self._facts.ids))]
        return {path: self._get(path).headers["etag"] for path in paths}

    def answers(self) -> Answers:
        """Give an answer of each kind."""
        item = self._get(item_path(self._facts, 0))
        self._expect("etag" in item.headers, "an item has an ETag")
        found = {
            "item": item,
            "304": self._get(
                item_path(self._facts, 0), 304, {"If-None-Match": item.headers["etag"]}
            ),
            "page": self._get(page_path(0)),
            "cursor": self._get(cursor_path(self._facts, 0)),
            "filtered": self._get(filtered_path(UNSEEN)),
        }
        found["create"] = self._create(0)
        return found

    def compare(self, reference: Mapping[str, Any]) -> None:
        """Hold the answers to those of Octavo, which have come from such a database as well."""
        self._refuses()
        self._counts_limits()
        for n in range(PAGES):  # twice, so that what is cached is looked at, too
            for path in (page_path(n), cursor_path(self._facts, n)):
                first, second = self._get(path).json(), self._get(path).json()
                self._expect(normal(first) == normal(second), f"{path} stays the same")
        for kind, answer in self.answers().items():
            status, _, body = reference[kind]
            self._expect(answer.status_code == status, f"{kind} is answered by {status}")
            if kind == "304":
                self._expect(not answer.content, "a 304 has no body")
                continue
            self._says_who_may_keep(kind, answer)
            mine, theirs = normal(answer.json()), normal(json.loads(body))
            if kind == "create":
                for book in (mine, theirs):
                    for name in ("id", *TIMES):
                        book.pop(name, None)
            self._expect(mine == theirs, f"{kind} answers\n{theirs}\nand not\n{mine}")
        self._counts_books()

    def _refuses(self) -> None:
        # A server may close a connection whose request it has refused before reading all of it.
        headers = {"Content-Type": "application/json", "Connection": "close"}
        found = self._client.post("/api/books", content=new_book(0), headers=headers)
        self._expect(found.status_code == 401, "nobody creates a book without a token")
        headers["Authorization"] = f"Bearer {self._facts.tokens[0]}x"
        found = self._client.post("/api/books", content=new_book(0), headers=headers)
        self._expect(found.status_code == 401, "nobody creates a book with a forged token")
        headers["Authorization"] = f"Bearer {self._facts.tokens[0]}"
        for book in WRONG_BOOKS:
            found = self._client.post("/api/books", json=book, headers=headers)
            self._expect(found.status_code in {400, 422}, f"{book} is refused")

    def _counts_limits(self) -> None:
        """Look whether a caller's requests are counted, and another caller's are not theirs."""
        path = item_path(self._facts, 0)
        before, after = (remaining(self._get(path)) for _ in range(2))
        self._expect(after == before - 1, f"{before} requests and no more, then {after}")
        other = remaining(self._get(path, headers={"X-Forwarded-For": caller(998)}))
        self._expect(other > after, "another caller has a limit of their own")

    def _counts_books(self) -> None:
        """Look whether total and newest book are right the moment a write has answered."""
        for n in range(CREATED):
            before = self._get(page_path(0)).json()
            created = self._create(n).json()
            after = self._get(page_path(0)).json()
            self._expect(after["total"] == before["total"] + 1, "a new book is counted at once")
            self._expect(after["items"][0]["id"] == created["id"], "a new book is seen at once")

    def _says_who_may_keep(self, kind: str, answer: httpx.Response) -> None:
        remaining(answer)
        if kind != "create":
            self._expect("etag" in answer.headers, f"{kind} has an ETag")
            self._expect(
                answer.headers.get("cache-control") == "no-cache", f"{kind} is revalidated"
            )

    def _create(self, number: int) -> httpx.Response:
        headers = {
            "Authorization": f"Bearer {self._facts.tokens[0]}",
            "Content-Type": "application/json",
        }
        found = self._client.post("/api/books", content=new_book(number), headers=headers)
        self._expect(found.status_code == 201, f"a book is created, not {found.text}")
        return found

    def _get(
        self, path: str, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        found = self._client.get(path, headers=headers)
        self._expect(found.status_code == status, f"{path} is {status}, not {found.status_code}")
        return found

    def _expect(self, is_so: bool, what: str) -> None:
        if not is_so:
            raise UnequalWorkError(f"{self._name}: it should be that {what}")


def remaining(answer: httpx.Response) -> int:
    """Give how many more requests a caller may make, by whatever name the header has."""
    for name, value in answer.headers.items():
        if name.endswith("ratelimit-remaining"):
            return int(value)
    raise UnequalWorkError(f"No limit is told of in {dict(answer.headers)}")


def normal(value: Any) -> Any:
    """Give an answer so that two can be compared: instants, links without their host."""
    return _normal(value, "", lambda text: text)


def _normal(value: Any, name: str, read: Callable[[str], Any]) -> Any:
    if isinstance(value, dict):
        inner = _link if name == "links" else read
        return {key: _normal(one, key, inner) for key, one in value.items()}
    if isinstance(value, list):
        return [_normal(one, name, read) for one in value]
    if isinstance(value, str):
        return datetime.fromisoformat(value) if name in TIMES else read(value)
    return value


def _link(url: str) -> Any:
    parts = urlsplit(url)
    return (parts.path, sorted(parse_qsl(parts.query)))


def keep(answers: Answers, path: Path) -> dict[str, Any]:
    """Write the reference's answers down for the ceilings, and give them."""
    kept = {
        kind: (
            answer.status_code,
            [(k, v) for k, v in answer.headers.multi_items() if k.lower() not in OF_SERVERS],
            answer.text,
        )
        for kind, answer in answers.items()
    }
    path.write_text(json.dumps(kept), encoding="utf-8")
    return kept
