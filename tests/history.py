"""The operations that clients saw, and whether they are linear.

Each key is a register whose versions order the writes. For all X that ended before Y began:
version(X) <= version(Y), and < if Y is a write. A request without a response is no operation: such
a write may be committed or not, until a client has seen its version.

Where keys vanish during a write, readers may see the version before it and the new one until its
response, in any order: there a read of the new version counts from that response on.
"""

import asyncio
import random
import time
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from math import inf
from operator import itemgetter
from typing import Any, Literal, NamedTuple

import httpx

from tests.factories import PASSWORD
from tests.proxies import Worker

Kind = Literal["read", "write", "total", "create"]
GENRES = ("Fiction", "Non-Fiction", "Science", "History")
MAX_WRITE_SECONDS = 22.0  # seconds from a write's request to its commit, if it had no response
Spans = Sequence[tuple[float, float]]
BATCH = "/api/books/batch-get"
GONE = 1 << 62  # the version of a deleted row: ids are never used twice


@dataclass(frozen=True, slots=True)
class Operation:
    """What a client saw of a key, between two moments of the monotonic clock.

    read: the version and its value. write: the version that it made.
    total: the number of rows. create: the number of rows grows by 1.
    source: worker and cache status, to explain a violation.
    """

    kind: Kind
    key: str
    start: float
    end: float
    version: int = 0
    value: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Violation:
    """Two operations that contradict each other."""

    rule: Literal["stale read", "lost update", "two contents", "stale total"]
    earlier: Operation
    later: Operation

    def __str__(self) -> str:
        return f"{self.rule}: {self.later}\n    after {self.earlier}"


def violations(history: Iterable[Operation], losses: Spans = ()) -> list[Violation]:
    """Return the contradictions, at most 1 for each operation and rule. O(n log n).

    losses: when keys vanished, from and to.
    """
    registers: dict[str, list[Operation]] = defaultdict(list)
    totals: dict[str, list[Operation]] = defaultdict(list)
    for operation in history:
        kinds = registers if operation.kind in {"read", "write"} else totals
        kinds[operation.key].append(operation)
    result: list[Violation] = []
    for operations in registers.values():
        result += _going_back(operations, losses)
        result += _same_version(operations)
    for operations in totals.values():
        result += _forgetting(operations)
    return result


def _going_back(operations: Sequence[Operation], losses: Spans) -> Iterator[Violation]:
    ended = sorted(_counting(operations, losses), key=itemgetter(0))
    newest, position = ended[0][1], 0
    for later in sorted(operations, key=lambda operation: operation.start):
        while position < len(ended) and ended[position][0] < later.start:  # its own end is not
            newest = max(newest, ended[position][1], key=lambda operation: operation.version)
            position += 1
        if position == 0:
            continue
        if later.version < newest.version:
            yield Violation("stale read" if later.kind == "read" else "lost update", newest, later)
        elif later.version == newest.version and later.kind == "write":
            yield Violation("lost update", newest, later)


def _counting(operations: Sequence[Operation], losses: Spans) -> list[tuple[float, Operation]]:
    """Return each operation with the moment from which it counts."""
    writes = {
        operation.version: (operation.start, operation.end)
        for operation in operations
        if operation.kind == "write"
    }
    for operation in sorted(operations, key=lambda operation: operation.start):
        if losses and operation.version not in writes:  # of a write without a response
            writes[operation.version] = (operation.start - MAX_WRITE_SECONDS, inf)
    lossy = {version: end for version, (start, end) in writes.items()
             if any(begin <= end and start <= until for begin, until in losses)}  # fmt: skip
    return [
        (max(operation.end, lossy.get(operation.version, 0.0)), operation)
        for operation in operations
    ]


def _same_version(operations: Sequence[Operation]) -> Iterator[Violation]:
    """Find two writes, also concurrent ones, of the same version, and a version with two values."""
    first: dict[int, Operation] = {}
    writer: dict[int, Operation] = {}
    for operation in operations:
        version = operation.version
        other = first.setdefault(version, operation)
        if operation.value != other.value:
            yield Violation("two contents", other, operation)
        if operation.kind == "write":
            other = writer.setdefault(version, operation)
            if other is not operation:
                yield Violation("lost update", other, operation)


def _forgetting(operations: Sequence[Operation]) -> Iterator[Violation]:
    """Find totals that miss a created row, where no row is ever deleted.

    A total of n after at most s creates, and e creates now: the total is now n + e - s at least.
    """
    creates = [operation for operation in operations if operation.kind == "create"]
    started = sorted(create.start for create in creates)
    ended = sorted(create.end for create in creates)
    totals = [operation for operation in operations if operation.kind == "total"]
    by_end = sorted(totals, key=lambda total: total.end)
    most, newest, position = 0, None, 0
    for later in sorted(totals, key=lambda total: total.start):
        while (earlier := by_end[position]).end < later.start:
            before = earlier.version - bisect_right(started, earlier.end)
            if newest is None or before > most:
                most, newest = before, earlier
            position += 1
        if newest is not None and later.version < most + bisect_left(ended, later.start):
            yield Violation("stale total", newest, later)


class Response(NamedTuple):
    """The response of a worker, and when."""

    status: int
    headers: httpx.Headers
    body: Any
    start: float
    end: float
    source: str


class Recorder:
    """Sends requests to random workers, and records their responses."""

    def __init__(self, workers: Sequence[Worker], chance: random.Random) -> None:
        self.log: list[Operation] = []
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []  # responses that no history can explain
        self.waits: list[tuple[float, float]] = []  # of writes with a response
        self.writes: list[
            tuple[float, float]
        ] = []  # of all writes: a write without a response ends MAX_WRITE_SECONDS later
        self.workers = workers
        self.chance = chance
        self.ids: dict[str, int] = {}  # of users
        self.tokens: dict[str, str] = {}
        self.newest = 0  # id of a book: no row has a greater id yet
        self._number = count(1)

    async def send(
        self,
        method: str,
        path: str,
        user: str = "",
        body: object = None,
        seconds: float = 60,
        headers: Mapping[str, str] | None = None,
    ) -> Response | None:
        """Send a request to a random worker. None: no response says whether it was done."""
        is_read = method == "GET" or path == BATCH
        worker, kind = self.chance.choice(self.workers), "read" if is_read else "write"
        self.counts[kind] += 1
        start = time.monotonic()
        try:
            async with asyncio.timeout(seconds):
                response = await worker.request(
                    method, path, self.tokens.get(user, ""), body, headers or {}
                )
        except httpx.TimeoutException:
            self.wrong.append(f"{method} {path}: worker {worker.number} does not reply")
            return None
        except (httpx.TransportError, TimeoutError, AttributeError):  # anyio's, of a lost socket
            self.counts[f"{kind}, no response"] += 1
            if kind == "write":
                self.writes.append((start, start + MAX_WRITE_SECONDS))
            await asyncio.sleep(0.02)
            return None
        end, status = time.monotonic(), response.status_code
        cache = response.headers.get("Cache-Status", "past the cache").removeprefix("Octavo; ")
        if kind == "write":
            self.waits.append((start, end))
            self.writes.append((start, end if status < 500 else start + MAX_WRITE_SECONDS))
        elif status < 500:
            self.counts[cache] += 1
        if status >= 500:
            self.counts[f"{kind}, {status}"] += 1
            return None
        content = response.json() if response.content else None
        source = f"worker {worker.number}, {cache}"
        return Response(status, response.headers, content, start, end, source)

    def is_unsure(self, response: Response, losses: Spans) -> bool:
        """Whether keys vanished during a write that had no response when a read began."""
        return any(
            start < response.end and response.start < end
            and any(start <= until and begin <= end for begin, until in losses)
            for start, end in self.writes
        )  # fmt: skip

    def note(
        self, kind: Kind, key: str, response: Response, version: int = 0, value: str = ""
    ) -> None:
        """Record an operation."""
        start, end, source = response.start, response.end, response.source
        self.log.append(Operation(kind, key, start, end, version, value, source))

    def note_book(self, kind: Kind, response: Response, book: Any) -> None:
        """Record an operation on a book."""
        value = f"{book['title']}, {book['genre']}, {book['price']}"
        self.note(kind, f"book {book['id']}", response, book["version"], value)

    def note_review(self, kind: Kind, response: Response, review: Any) -> None:
        """Record an operation on a review, which never changes."""
        value = f"{review['stars']}, {review['text']}"
        self.note(kind, f"review {review['id']}", response, 1, value)

    async def create_review(self, book_id: int, user: str) -> int:
        """Review a book, and return the id of the review. -1: there was no response."""
        body = {"stars": self.chance.randint(1, 5), "text": f"Text {next(self._number)}"}
        response = await self.send("POST", f"/api/books/{book_id}/reviews", user, body)
        if response is None:
            return -1
        self.note("create", f"reviews of {book_id}", response)
        self.note_review("write", response, response.body)
        review_id: int = response.body["id"]
        return review_id

    async def read_reviews(self, book_id: int) -> tuple[Response, set[int]] | None:
        """Read the reviews of a book, at most 100; return their ids. None: there was no response.

        A book that is gone has none.
        """
        response = await self.send("GET", f"/api/books/{book_id}/reviews?per_page=100")
        if response is None:
            return None
        reviews = response.body["items"] if response.status == 200 else []
        for review in reviews:
            self.note_review("read", response, review)
        return response, {review["id"] for review in reviews}

    async def read_book(self, book_id: int, absent: int) -> None:
        """Read a book; `absent`: its version if there is none."""
        response = await self.send("GET", f"/api/books/{book_id}")
        if response is not None and response.status == 404:
            self.note("read", f"book {book_id}", response, absent)
        elif response is not None:
            self.note_book("read", response, response.body)

    async def read_total(self, user: str) -> int:
        """Read the number of books of a user who deletes none. -1: there was no response."""
        owner, in_body = self.ids[user], self.chance.random() < 0.5
        path = f"/api/books?user_id={owner}" if in_body else f"/api/users/{owner}/books"
        if (response := await self.send("GET", path)) is None:
            return -1
        total = int(response.body["total"] if in_body else response.headers["X-Total-Count"])
        self.note("total", f"books of {user}", response, total)
        return total

    async def add_one(self, book_id: int, user: str) -> None:
        """Add 1 to the number in a book's title by a loop with If-Match.

        Each write of the title adds 1 to the version, too. If an update is lost, the number is
        below the version from then on.
        """
        path = f"/api/books/{book_id}"
        while read := await self.send("GET", path):
            self._note_number("read", read)
            body = {"title": f"Number {1 + int(read.body['title'].split()[1])}"}
            tag = {"If-Match": read.headers["ETag"]}
            write = await self.send("PUT", path, user, body, headers=tag)
            if write is None:
                break
            self.counts[f"If-Match, {write.status}"] += 1
            if write.status != 412:
                self._note_number("write", write)
                break

    def _note_number(self, kind: Kind, response: Response) -> None:
        self.note_book(kind, response, response.body)
        if response.body["title"] != f"Number {response.body['version']}":
            self.wrong.append(f"An update is lost: {response}")

    async def create(self, user: str, **fields: object) -> int:
        """Create a book of such a user, and return its id. Repeat the request until it is done."""
        body, start = self.book() | fields, time.monotonic()
        key = {"Idempotency-Key": str(body["title"]).replace(" ", "-")}
        while (
            response := await self.send("POST", "/api/books", user, body, headers=key)
        ) is None or response.status == 409:  # an earlier attempt is in flight
            await asyncio.sleep(0.05)
        self.counts["create, replayed"] += "Idempotency-Replayed" in response.headers
        response = response._replace(start=start)  # private: of every named tuple
        self.note("create", f"books of {user}", response)
        self.note_book("write", response, response.body)
        book_id: int = response.body["id"]
        self.newest = max(self.newest, book_id)
        return book_id

    async def insist(self, path: str, body: object, user: str = "") -> Any:
        """Repeat a write until it has a response."""
        while (response := await self.send("POST", path, user, body)) is None:
            pass
        assert response.status in {200, 201}, response
        return response.body

    async def register(self, name: str) -> None:
        """Create a user, and sign them in."""
        body = {"username": name, "email": f"{name}@example.org", "password": PASSWORD}
        self.ids[name] = (await self.insist("/api/auth/register", body))["id"]
        self.tokens[name] = await self.sign_in(name)

    async def sign_in(self, name: str) -> str:
        """Return a new token of a user."""
        body = {"email": f"{name}@example.org", "password": PASSWORD}
        token: str = (await self.insist("/api/auth/login", body))["token"]
        return token

    def book(self) -> dict[str, object]:
        """Return the fields of a new book."""
        genre, price = self.chance.choice(GENRES), self.chance.randrange(10_000) / 100
        title = f"Title {next(self._number)}"
        return {"title": title, "author": "Somebody", "genre": genre, "price": price}
