"""What clients saw, one operation after the other, and whether it can be true.

Each key is a register whose versions order the writes. For all X that ended before Y began:
version(X) <= version(Y), and < if Y is a write. What nobody answered is no operation: such a write
may have come to pass or not, until somebody has seen its version.

Where keys vanish during a write, readers may see the version before it and the new one until it is
answered, in any order: there a read of the new version counts from that answer on.
"""

import asyncio
import random
import time
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
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
LONGEST = 22.0  # seconds from a write's request to its commit, if it had no answer
Spans = Sequence[tuple[float, float]]
GONE = 1 << 62  # the version of what was deleted: ids are never used twice


@dataclass(frozen=True, slots=True)
class Operation:
    """What one client saw of one key, between two moments of the monotonic clock.

    read: a version, and what it held. write: the version that it made.
    total: how many there are. create: there is one more, whatever the total was.
    how: who answered, for whoever looks into a violation.
    """

    kind: Kind
    key: str
    start: float
    end: float
    version: int = 0
    value: str = ""
    how: str = ""


@dataclass(frozen=True, slots=True)
class Violation:
    """Two operations that cannot both be true."""

    rule: Literal["stale read", "lost update", "two contents", "stale total"]
    earlier: Operation
    later: Operation

    def __str__(self) -> str:
        return f"{self.rule}: {self.later}\n    after {self.earlier}"


def violations(history: Iterable[Operation], losses: Spans = ()) -> list[Violation]:
    """Give whatever cannot be true, at most one for each operation and rule. O(n log n).

    losses: when keys vanished, from and to.
    """
    registers: dict[str, list[Operation]] = defaultdict(list)
    totals: dict[str, list[Operation]] = defaultdict(list)
    for operation in history:
        kinds = registers if operation.kind in {"read", "write"} else totals
        kinds[operation.key].append(operation)
    found: list[Violation] = []
    for operations in registers.values():
        found += _going_back(operations, losses)
        found += _two_of_one_version(operations)
    for operations in totals.values():
        found += _forgetting(operations)
    return found


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
    """Give each operation with the moment from which on it counts."""
    writes = {one.version: (one.start, one.end) for one in operations if one.kind == "write"}
    for one in sorted(operations, key=lambda operation: operation.start):
        if losses and one.version not in writes:  # nobody knows when it began, and it has no end
            writes[one.version] = (one.start - LONGEST, inf)
    lossy = {version: end for version, (start, end) in writes.items()
             if any(begin <= end and start <= until for begin, until in losses)}  # fmt: skip
    return [(max(one.end, lossy.get(one.version, 0.0)), one) for one in operations]


def _two_of_one_version(operations: Sequence[Operation]) -> Iterator[Violation]:
    """Find writes, also at once, that made the same version, and versions that hold two things."""
    first: dict[int, Operation] = {}
    writer: dict[int, Operation] = {}
    for one in operations:
        other = first.setdefault(one.version, one)
        if one.value != other.value:
            yield Violation("two contents", other, one)
        if one.kind == "write" and (other := writer.setdefault(one.version, one)) is not one:
            yield Violation("lost update", other, one)


def _forgetting(operations: Sequence[Operation]) -> Iterator[Violation]:
    """Find totals without something that had been created, where nothing is ever deleted.

    A total of n, seen when at most s had been created, and e now, means n + e - s at least.
    """
    creates = [one for one in operations if one.kind == "create"]
    started = sorted(one.start for one in creates)
    ended = sorted(one.end for one in creates)
    totals = [one for one in operations if one.kind == "total"]
    seen = sorted(totals, key=lambda one: one.end)
    most, newest, position = 0, None, 0
    for later in sorted(totals, key=lambda one: one.start):
        while (one := seen[position]).end < later.start:
            before = one.version - bisect_right(started, one.end)
            if newest is None or before > most:
                most, newest = before, one
            position += 1
        if newest is not None and later.version < most + bisect_left(ended, later.start):
            yield Violation("stale total", newest, later)


class Answer(NamedTuple):
    """What a worker said, and when."""

    status: int
    headers: httpx.Headers
    body: Any
    start: float
    end: float
    how: str


class Recorder:
    """Asks the workers, any of them, and writes down what they say."""

    def __init__(self, workers: Sequence[Worker], chance: random.Random) -> None:
        self.log: list[Operation] = []
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []  # what may never be, whatever the history
        self.waits: list[tuple[float, float]] = []  # of who wrote
        self.writes: list[tuple[float, float]] = []  # also without an answer: until it is over
        self.workers = workers
        self.chance = chance
        self.ids: dict[str, int] = {}  # of users
        self.tokens: dict[str, str] = {}
        self.newest = 0  # of the books: what follows is not there yet
        self._number = count(1)

    async def ask(
        self, method: str, path: str, user: str = "", body: object = None, patience: float = 60
    ) -> Answer | None:
        """Ask one of them. None: nobody can say what became of it."""
        worker, kind = self.chance.choice(self.workers), "read" if method == "GET" else "write"
        self.counts[kind] += 1
        start = time.monotonic()
        try:
            async with asyncio.timeout(patience):
                response = await worker.request(method, path, self.tokens.get(user, ""), body)
        except httpx.TimeoutException:
            self.wrong.append(f"{method} {path}: worker {worker.number} does not answer")
            return None
        except (httpx.TransportError, TimeoutError, AttributeError):  # anyio's, of a lost socket
            self.counts[f"{kind}, unanswered"] += 1
            if kind == "write":
                self.writes.append((start, start + LONGEST))
            await asyncio.sleep(0.02)
            return None
        end, status = time.monotonic(), response.status_code
        cache = response.headers.get("Cache-Status", "past the cache").removeprefix("Octavo; ")
        if kind == "write":
            self.waits.append((start, end))
            self.writes.append((start, end if status < 500 else start + LONGEST))
        elif status < 500:
            self.counts[cache] += 1
        if status >= 500:
            self.counts[f"{kind}, {status}"] += 1
            return None
        content = response.json() if response.content else None
        how = f"worker {worker.number}, {cache}"
        return Answer(status, response.headers, content, start, end, how)

    def is_unsure(self, seen: Answer, losses: Spans) -> bool:
        """Whether keys vanished during a write that had no answer when a read began."""
        return any(
            start < seen.end and seen.start < end
            and any(start <= until and begin <= end for begin, until in losses)
            for start, end in self.writes
        )  # fmt: skip

    def note(self, kind: Kind, key: str, seen: Answer, version: int = 0, value: str = "") -> None:
        """Write an operation down."""
        self.log.append(Operation(kind, key, seen.start, seen.end, version, value, seen.how))

    def note_book(self, kind: Kind, seen: Answer, book: Any) -> None:
        """Write down what was said of one book."""
        value = f"{book['title']}, {book['genre']}, {book['price']}"
        self.note(kind, f"book {book['id']}", seen, book["version"], value)

    async def read_book(self, book_id: int, absent: int) -> None:
        """Read a book; `absent`: its version if there is none."""
        seen = await self.ask("GET", f"/api/books/{book_id}")
        if seen is not None and seen.status == 404:
            self.note("read", f"book {book_id}", seen, absent)
        elif seen is not None:
            self.note_book("read", seen, seen.body)

    async def read_total(self, user: str) -> int:
        """Read how many books a user has, who deletes none."""
        owner, in_body = self.ids[user], self.chance.random() < 0.5
        path = f"/api/books?user_id={owner}" if in_body else f"/api/users/{owner}/books"
        if (seen := await self.ask("GET", path)) is None:
            return -1
        total = int(seen.body["total"] if in_body else seen.headers["X-Total-Count"])
        self.note("total", f"books of {user}", seen, total)
        return total

    async def create(self, user: str) -> int:
        """Make a book of such a user: its id."""
        if (seen := await self.ask("POST", "/api/books", user, self.book())) is None:
            return -1
        self.note("create", f"books of {user}", seen)
        self.note_book("write", seen, seen.body)
        book_id: int = seen.body["id"]
        self.newest = max(self.newest, book_id)
        return book_id

    async def insist(self, path: str, body: object, user: str = "") -> Any:
        """Write until it is done."""
        while (seen := await self.ask("POST", path, user, body)) is None:
            pass
        assert seen.status in {200, 201}, seen
        return seen.body

    async def register(self, name: str) -> None:
        """Make a user, and sign them in."""
        body = {"username": name, "email": f"{name}@example.org", "password": PASSWORD}
        self.ids[name] = (await self.insist("/api/auth/register", body))["id"]
        self.tokens[name] = await self.sign_in(name)

    async def sign_in(self, name: str) -> str:
        """Give a new token of a user."""
        body = {"email": f"{name}@example.org", "password": PASSWORD}
        token: str = (await self.insist("/api/auth/login", body))["token"]
        return token

    def book(self) -> dict[str, object]:
        """Give a book as none was before."""
        genre, price = self.chance.choice(GENRES), self.chance.randrange(10_000) / 100
        title = f"Title {next(self._number)}"
        return {"title": title, "author": "Somebody", "genre": genre, "price": price}
