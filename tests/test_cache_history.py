"""Over real processes: no read is older than a response before it, also during faults.

Four workers on one PostgreSQL, each with its own proxy to one Redis. SEED=... chooses the same
faults again; SOAK=1 runs 200,000 operations.
"""

import asyncio
import os
import random
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import func, select, text

from service.db.database import Database
from service.models import Book
from tests.conftest import SECRET, cache_on, fresh_catalogue
from tests.examples.added import Reviews
from tests.history import BATCH, GENRES, GONE, Kind, Operation, Recorder, Response, violations
from tests.proxies import STANDSTILL, Nemesis, OwnRedis, Proxy, Worker

pytestmark = pytest.mark.alone
SOAK = bool(os.environ.get("SOAK"))
WORKERS, READERS, WRITERS = 4, 16, 6
HOT, DOOMED, LEAVERS = (12, 1_000, 200) if SOAK else (12, 50, 20)
OPERATIONS, MAX_SECONDS, CREATES = (200_000, 0, 1_000) if SOAK else (0, 20, 60)
MAX_FAULT_SECONDS = 25 if SOAK else 3  # of a proxy: other workers recover before
Action = Callable[[], Awaitable[object]]
WRITE_SECONDS = 6.0  # to turn the cache off takes 2.2 s, perhaps twice


def did(kind: Kind, start: float, end: float, version: int = 0, value: str = "") -> Operation:
    """Make an operation on the only key."""
    return Operation(kind, "key", start, end, version, value)


@pytest.mark.parametrize(
    ("rule", "history"),
    [
        ("", [did("write", 0, 1, 1), did("read", 2, 3, 1), did("write", 2, 4, 2)]),
        ("", [did("write", 0, 9, 2), did("read", 1, 2, 2), did("read", 1, 3, 1)]),
        ("", [did("read", 0, 1, 3), did("write", 0.5, 2, 2), did("read", 3, 4, 3)]),
        ("", [did("read", 0, 1, 1), did("write", 1, 2, GONE), did("read", 1, 3, 1)]),
        ("", [did("total", 0, 1, 5), did("create", 1, 3), did("total", 2, 3, 5)]),
        ("", [did("create", 0, 3), did("total", 1, 2, 6), did("total", 4, 5, 6)]),
        ("stale read", [did("write", 0, 1, 2), did("read", 2, 3, 1)]),
        ("stale read", [did("read", 5, 6, 1), did("read", 0, 4, 2), did("write", 3, 9, 3)]),
        ("stale read", [did("write", 0, 1, GONE), did("read", 2, 3, 7)]),
        ("lost update", [did("write", 0, 1, 2), did("write", 2, 3, 2)]),
        ("lost update", [did("write", 0, 2, 2), did("write", 1, 3, 2)]),
        ("lost update", [did("read", 0, 1, 4), did("write", 2, 3, 4)]),
        ("two contents", [did("write", 0, 3, 2, "a"), did("read", 1, 2, 2, "b")]),
        ("stale total", [did("total", 0, 1, 5), did("create", 2, 3), did("total", 4, 5, 5)]),
        ("stale total", [did("total", 0, 1, 5), did("total", 2, 3, 4)]),
    ],
)
def test_a_history_is_linear_or_has_a_violation(rule: str, history: list[Operation]) -> None:
    others = [Operation("read", "another key", 0, 99, 0)]
    assert {violation.rule for violation in violations(history + others)} == (
        {rule} if rule else set()
    )


@pytest.mark.parametrize(
    ("rule", "history"),
    [
        ("", [did("write", 0, 9, 2), did("read", 4, 5, 2), did("read", 6, 7, 1)]),
        ("", [did("read", 4, 5, 2), did("read", 6, 7, 1)]),
        ("", [did("read", 0, 1, 1), did("read", 4, 5, 2), did("read", 6, 7, 1)]),
        ("stale read", [did("write", 0, 6, 2), did("read", 4, 5, 2), did("read", 7, 8, 1)]),
        ("stale read", [did("write", 4, 9, 2), did("read", 5, 6, 2), did("read", 7, 8, 1)]),
        ("stale read", [did("write", 0, 1, 2), did("read", 4, 5, 2), did("read", 6, 7, 1)]),
        ("stale read", [did("read", 40, 41, 2), did("read", 42, 43, 1)]),
    ],
)
def test_a_history_while_keys_vanish_is_linear_or_has_a_violation(
    rule: str, history: list[Operation]
) -> None:
    """Only rows of a write without a response may be seen in any order."""
    assert {violation.rule for violation in violations(history, [(2, 3)])} == (
        {rule} if rule else set()
    )


class Clients(Recorder):
    """Sends requests of five users.

    Anna's books are changed. Ben's books are deleted in order. Clara creates books. Dora signs out
    and in. Root deletes users, each with their only book. Clara reviews the books of Anna and Ben.
    Anna reviews a book of Dora's, and deletes her reviews in order. Creates are repeated until they
    have a response. Two clients of Clara at a time add 1 to a number in a title.
    """

    async def prepare(self, database: Database) -> None:
        """Create the users and their books."""
        self._leavers = [f"leaver{number}" for number in range(LEAVERS)]
        for name in ("anna", "ben", "clara", "dora", "root", *self._leavers):
            await self.register(name)
        async with database.writer.begin() as connection:  # the row is not cached yet
            query = text("UPDATE users SET is_admin = true WHERE username = 'root'")
            await connection.execute(query)
        self._left = 0
        self._last = {name: await self.create(name) for name in self._leavers}
        self._hot = [await self.create("anna") for _ in range(HOT)]
        self._doomed = [await self.create("ben") for _ in range(DOOMED)]
        self.mixed: list[Response] = []  # lists with a book that is not of their genre
        self._opinions = {book: await self.create_review(book, "clara") for book in self._doomed}
        self._farewells = {}
        for name in self._leavers:
            book_id = await self.create("dora")
            self._farewells[name] = book_id, await self.create_review(book_id, name)
        self._numbered = await self.create("clara", title="Number 1")
        self._reviewed = await self.create("dora")  # its reviews are deleted one by one
        self._present: deque[int] = deque()  # the reviews that nobody deletes yet
        self._known: deque[int] = deque(maxlen=30)  # the newest reviews of that book
        self._retracted: set[int] = set()
        self._deleted = 0
        self._sessions = 1
        self.tokens["session 0"] = self.tokens["dora"]
        self._leaving = asyncio.Lock()
        self.going = True
        await self.create("clara")
        await self.read_total("clara")

    async def read(self) -> None:
        """Read until `going` is false."""
        count = partial(self.read_total, "clara")
        actions: list[Action] = [
            self._read_row, self._read_list, count, self._read_as_dora, self._read_leaver,
            self._read_reviews, self._read_batch,
        ]  # fmt: skip
        while self.going:
            await self.chance.choices(actions, (63, 11, 6, 3, 4, 8, 5))[0]()
            await asyncio.sleep(self.chance.uniform(0, 0.02))

    async def write(self) -> None:
        """Send a write for nine reads."""
        create = partial(self.create, "clara")
        actions: list[Action] = [
            self._update, create, self._delete, self._sign_out, self._dismiss, self._review,
            self._retract, self._add, self._update_several,
        ]  # fmt: skip
        while self.going:
            if self.counts["write"] * 9 < self.counts["read"]:
                await self.chance.choices(actions, (46, 14, 4, 3, 2, 8, 7, 10, 6))[0]()
            await asyncio.sleep(0.01)

    async def _read_row(self) -> None:
        hot = (self.chance.choice(self._hot), 0)
        doomed = (self.chance.choice(self._doomed[: self._deleted + 1][-2:]), GONE)
        new = (self.newest + self.chance.randrange(3), 0)
        await self.read_book(*self.chance.choices((hot, doomed, new), (90, 5, 5))[0])

    async def _read_batch(self) -> None:
        doomed = self._doomed[: self._deleted + 1][-2:]
        ids = [*self.chance.sample(self._hot, min(3, len(self._hot))), *doomed]
        if not (response := await self.send("POST", BATCH, "", {"ids": ids})):
            return
        self.counts["batch"] += 1
        for book in response.body["items"]:
            self.note_book("read", response, book)
        for book_id in response.body["missing"]:
            absent = 0 if book_id in self._hot else GONE
            self.note("read", f"book {book_id}", response, absent)

    async def _read_list(self) -> None:
        genre, anna = self.chance.choice(GENRES), self.ids["anna"]
        query, is_whole = self.chance.choice([
            (f"books?user_id={anna}&per_page=50", True),
            (f"books?user_id={anna}&limit=50", True),
            (f"users/{anna}/books", True),
            (f"books?user_id={anna}&limit=50&genre={genre}", False),
            (f"books?user_id={self.ids['ben']}&limit=5", False),
        ])  # fmt: skip
        if not (response := await self.send("GET", f"/api/{query}")):
            return
        self.counts["list"] += 1
        books = response.body if isinstance(response.body, list) else response.body["items"]
        for book in books:
            self.note_book("read", response, book)
        if is_whole and sorted(book["id"] for book in books) != self._hot:
            self.wrong.append(f"{query}: {response}")
        if "genre" in query and {book["genre"] for book in books} - {genre}:
            self.mixed.append(response)

    async def _read_as_dora(self) -> None:
        session = f"session {max(0, self._sessions - self.chance.choice((1, 2)))}"
        if response := await self.send("GET", "/api/profile", session):
            self.note("read", session, response, GONE if response.status == 401 else 0)

    async def _read_leaver(self) -> None:
        """Read the account of a user who was deleted, or soon will be, their book, or its list."""
        name = self.chance.choice(self._leavers[: self._left + 2][-4:])
        book_id = self._last[name]
        match self.chance.choice(("account", "book", "list", "review")):
            case "review":
                book, review_id = self._farewells[name]
                result = await self.read_reviews(book)
                if result is not None and review_id not in result[1]:
                    self.note("read", f"review {review_id}", result[0], GONE)
            case "account":
                if response := await self.send("GET", "/api/profile", name):
                    version = GONE if response.status == 401 else 0
                    self.note("read", f"account {name}", response, version)
            case "book":
                await self.read_book(book_id, GONE)
            case _:
                path = f"/api/books?user_id={self.ids[name]}"
                if not (response := await self.send("GET", path)):
                    return
                for book in response.body["items"]:
                    self.note_book("read", response, book)
                if not response.body["items"]:
                    self.note("read", f"book {book_id}", response, GONE)

    async def _dismiss(self) -> None:
        if self._left == LEAVERS:
            return
        name = self._leavers[self._left]
        self._left += 1
        if response := await self.send("DELETE", f"/admin/users/{self.ids[name]}", "root"):
            assert response.status == 204, response
            self.note("write", f"account {name}", response, GONE)
            self.note("write", f"book {self._last[name]}", response, GONE)
            self.note("write", f"review {self._farewells[name][1]}", response, GONE)

    async def _read_reviews(self) -> None:
        """Read the reviews of a book that has ever more, of one that is deleted, or of Dora's."""
        doomed = self.chance.choice(self._doomed[: self._deleted + 1][-2:])
        book_id = self.chance.choice((self.chance.choice(self._hot), doomed, self._reviewed))
        if (result := await self.read_reviews(book_id)) is None:
            return
        response, ids = result
        if book_id in self._hot:
            self.note("total", f"reviews of {book_id}", response, response.body["total"])
        elif book_id == doomed and self._opinions[doomed] not in ids:
            self.note("read", f"review {self._opinions[doomed]}", response, GONE)
        elif book_id == self._reviewed:
            for review_id in {*self._known} - ids:
                absent = GONE if review_id in self._retracted else 0
                self.note("read", f"review {review_id}", response, absent)

    async def _review(self) -> None:
        await self.create_review(self.chance.choice(self._hot), "clara")

    async def _retract(self) -> None:
        """Add a review of Dora's book, or delete the oldest."""
        if len(self._present) < self.chance.randrange(20):
            review_id = await self.create_review(self._reviewed, "anna")
            if review_id > 0:
                self._present.append(review_id)
                self._known.append(review_id)
            return
        review_id = self._present.popleft()
        self._retracted.add(review_id)
        path = f"/api/books/{self._reviewed}/reviews/{review_id}"
        if response := await self.send("DELETE", path, "anna"):
            self.note("write", f"review {review_id}", response, GONE)

    async def _update(self) -> None:
        path = f"/api/books/{self.chance.choice(self._hot)}"
        disconnects = self.chance.random() < 0.03
        seconds = self.chance.uniform(0, 0.03) if disconnects else 60
        if response := await self.send("PATCH", path, "anna", self.book(), seconds):
            self.note_book("write", response, response.body)

    async def _add(self) -> None:
        """Let two clients change the same book at the same time."""
        await asyncio.gather(*(self.add_one(self._numbered, "clara") for _ in range(2)))

    async def _update_several(self) -> None:
        """Change some of Anna's books in one transaction; its order of books is not theirs."""
        ids = self.chance.sample(self._hot, min(3, len(self._hot)))
        items = [{"id": book_id, **self.book()} for book_id in ids]
        if response := await self.send("PATCH", "/api/books/bulk", "anna", {"items": items}):
            self.counts["bulk"] += 1
            for item, result in zip(items, response.body["results"], strict=True):
                self.note_book("write", response, {**item, "version": result["version"]})

    async def _delete(self) -> None:
        if self._deleted == DOOMED:
            return
        book_id = self._doomed[self._deleted]
        self._deleted += 1
        if response := await self.send("DELETE", f"/api/books/{book_id}", "ben"):
            self.note("write", f"book {book_id}", response, GONE)
            self.note("write", f"review {self._opinions[book_id]}", response, GONE)

    async def _sign_out(self) -> None:
        if self._leaving.locked():
            return
        async with self._leaving:
            session = f"session {self._sessions - 1}"
            response = await self.send("POST", "/api/auth/logout", session)
            if response:  # 401: an earlier request without a response had ended the session
                kind: Kind = "write" if response.status == 204 else "read"
                self.note(kind, session, response, GONE)
            self.tokens[f"session {self._sessions}"] = await self.sign_in("dora")
            self._sessions += 1


@asynccontextmanager
async def four_workers(
    request: pytest.FixtureRequest, folder: Path, cwd: Path
) -> AsyncIterator[tuple[random.Random, OwnRedis, list[Worker], Database]]:
    """Serve a new catalogue, with reviews, with four processes; the cache is on at once.

    Print the seed.
    """
    seed = int(os.environ.get("SEED") or random.randrange(1 << 32))
    print(f"SEED={seed}")
    chance = random.Random(seed)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(fresh_catalogue("postgresql", request, folder))
        reviews = stack.enter_context(Reviews.added())
        await reviews.create_table(database)
        redis = OwnRedis(cwd)
        stack.callback(redis.kill)
        await cache_on(database, f"redis://127.0.0.1:{redis.port}/0")
        environment = {
            "OCTAVO_ENV": "testing",  # with a log in a file
            "TESTING_DATABASE_URL": database.url.render_as_string(hide_password=False),
            "SECRET_KEY": SECRET,
            "PYTHONPATH": str(Path(__file__).parent.parent),
            "TOTAL_WORKERS": str(WORKERS),
            "RATELIMIT_ENABLED": "false",
            "LOG_LEVEL": "WARNING",
        }
        if not SOAK:  # a busy machine is no outage
            environment |= {"CACHE_REDIS_SECONDS": "0.5", "RATELIMIT_REDIS_SECONDS": "0.5"}
        workers = []
        for number in range(WORKERS):
            worker = Worker(number, Proxy(redis, chance), cwd, environment)
            stack.push_async_callback(worker.close)
            await worker.proxy.turn("pass")
            await worker.start()
            workers.append(worker)
        yield chance, redis, workers, database


@pytest.mark.timeout(3_600 if SOAK else 300)
async def test_no_read_is_older_than_a_response(
    request: pytest.FixtureRequest, folder: Path, tmp_path: Path
) -> None:
    async with four_workers(request, folder, tmp_path) as (chance, redis, workers, database):
        clients = Clients(workers, chance)
        await clients.prepare(database)
        counts, begun = clients.counts, time.monotonic()

        async def in_use() -> bool:
            """Wait until the cache serves hits again, and return whether to go on."""
            well = 0
            async with asyncio.timeout(120):  # a recovery takes 20 s
                while well < 5:
                    before = counts["hit"]
                    await asyncio.sleep(0.5)
                    well = well + 1 if counts["hit"] > before else 0
            few = counts["read"] + counts["write"] < OPERATIONS
            return few or time.monotonic() - begun < MAX_SECONDS

        nemesis = Nemesis(redis, workers, chance, MAX_FAULT_SECONDS)
        async with asyncio.TaskGroup() as group:
            for action in (clients.read,) * READERS + (clients.write,) * WRITERS:
                group.create_task(action())
            try:
                await nemesis.run(in_use)
            finally:
                clients.going = False
        async with database.session() as db:
            of_clara = select(func.count()).where(Book.user_id == clients.ids["clara"])
            stored = (await db.execute(of_clara)).scalar_one()
    still = [(a, b) for a, b, name in nemesis.faults if name == STANDSTILL]
    slowest = max(
        end - start - sum(max(0, min(end, b) - max(start, a)) for a, b in still)
        for start, end in clients.waits
    )
    created = sum(o.kind == "create" and o.key == "books of clara" for o in clients.log)
    contradictions = violations(clients.log, nemesis.losses)
    clients.wrong += map(str, (
        response for response in clients.mixed if not clients.is_unsure(response, nemesis.losses)
    ))  # fmt: skip
    print(f"{counts['read'] + counts['write']} operations: {dict(counts)}")
    print(f"faults: {dict(Counter(name for _, _, name in nemesis.faults))}")
    print(f"keys lost: {nemesis.lost}")
    print(f"slowest write: {slowest:.2f} s; violations: {len(contradictions)}")
    if contradictions or clients.wrong:
        print(*(f"{a:.3f} {b:.3f} {name}" for a, b, name in nemesis.faults), sep="\n")
    assert not contradictions, "\n".join(map(str, contradictions[:10]))
    assert not clients.wrong, "\n".join(clients.wrong[:10])
    assert stored == created, "each create is done exactly once, however often it is repeated"
    assert not SOAK or slowest < WRITE_SECONDS
    assert not [status for status in counts if status.startswith("read, 5")]
    assert nemesis.lost
    assert counts["hit"] > counts["read"] / 10
    assert counts["If-Match, 200"]
    assert counts["If-Match, 412"]
    logs = "".join(file.read_text(encoding="utf-8") for file in tmp_path.glob("logs-*/*"))
    assert "stale" not in logs
    assert "Traceback" not in logs


@pytest.mark.timeout(600 if SOAK else 120)
async def test_a_new_book_is_counted_at_once(
    request: pytest.FixtureRequest, folder: Path, tmp_path: Path
) -> None:
    async with four_workers(request, folder, tmp_path) as (chance, _, workers, database):
        clients = Clients(workers, chance)
        await clients.prepare(database)
        for _ in range(CREATES):
            a, b, c = chance.sample(workers, 3)
            clients.workers = [a]
            before = await clients.read_total("clara")
            clients.workers = [b]
            await clients.create("clara")
            clients.workers = [c]
            assert await clients.read_total("clara") == before + 1
    assert not violations(clients.log)
    print(f"{CREATES} creates: {dict(clients.counts)}")
    assert clients.counts["hit"] > CREATES / 4, "workers use entries that other workers filled"
