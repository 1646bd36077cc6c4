"""The short way and the ordinary one: whatever is asked, nobody can tell which it went."""

import asyncio
import os
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
from quart import Quart
from quart_rate_limiter import QUART_RATE_LIMITER_LIMITS_ATTRIBUTE as ATTRIBUTE
from quart_rate_limiter import rate_limit

from service.cache import Rows
from service.cache.lists import Lists
from service.shortway.look import Ready
from service.shortway.pages import LARGEST, MOST, Page, Pages
from tests.conftest import Site, serving, settings_for, visiting
from tests.factories import Factory, Member

pytestmark = pytest.mark.no_cover  # what it runs, others cover, and it is far faster without

QUESTIONS = 20_000 if os.environ.get("SOAK") else 400
BOOKS = 12
SHOP, ELSEWHERE = "https://shop.example.org", "https://elsewhere.example.org"
RATE = "30 per hour"  # a few of the questions of each caller are refused
EACH = 200  # questions of a caller
TICKING = re.compile(r"(?<=t=)\d+")
INTERIM = re.compile(rb"\AHTTP/1.1 1.*?\r\n\r\n", re.DOTALL)
CHANCE = re.compile(r"(cache|user)=\S+ ")  # who comes first finds less; each has its own callers
OWN = {"date", "x-request-id"}  # of one answer
SECONDS = {"ratelimit-reset", "retry-after"}


@dataclass(frozen=True)
class Answered:
    """What came back."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """Give the header of a name, if there is one."""
        return dict(self.headers).get(name)


@dataclass
class Asked:
    """One of the two applications, and what was noted beside its answers."""

    site: Site
    number: int
    token: str
    books: list[int]  # their ids
    framework: int = 0  # requests that it saw
    lines: list[str] = field(default_factory=list)

    def address(self, n: int) -> str:
        """Give the address of a caller that asks a few questions of this one alone."""
        return f"172.16.{n // EACH}.{self.number}"

    @property
    def hits(self) -> int:
        """How many reads the cache has answered."""
        hits: int = self.site.app.extensions["cache"].counters.hits
        return hits

    async def ask(self, request: bytes) -> Answered:
        """Send bytes over a connection of their own."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.site.port)
        writer.write(request)
        async with asyncio.timeout(20):
            raw = await reader.read()
        writer.close()
        head, _, body = INTERIM.sub(b"", raw).partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = [line.split(": ", 1) for line in lines]
        headers = sorted((name.lower(), value) for name, value in pairs)
        return Answered(int(first.split()[1]), headers, body)

    async def metrics(self) -> Counter[str]:
        """Give how many requests there were of each kind, and what the cache counted."""
        metrics = self.site.app.extensions["metrics"]
        told = (await metrics.text()).decode()
        found = re.findall(
            r"(?m)^(octavo_(?:request_seconds_count|limit_dec\w+_total)\S*) (\S+)$", told
        )
        return Counter({name: int(float(number)) for name, number in found})


@asynccontextmanager
async def asked(
    site: Site, folder: Path, number: int, member: Member, books: list[int], **changed: Any
) -> AsyncIterator[Asked]:
    """Serve the same catalogue, and note what Quart sees of it, and what is logged."""
    found = Asked(site, number, member.headers["Authorization"].removeprefix("Bearer "), books)

    def prepare(app: Quart) -> None:
        @app.before_request
        async def note() -> None:
            found.framework += 1

        lines = app.logger.info

        def info(message: str, *told: Any, **more: Any) -> None:
            if told and isinstance(told[0], dict):
                kept = {**told[0], "milliseconds": 0.0}
                found.lines.append(message % kept)
            lines(message, *told, **more)

        app.logger.info = info  # type: ignore[assignment, method-assign]  # a spy

    settings = settings_for(
        site.another_url,
        folder,
        ratelimit_storage_url=None,
        ratelimit_books_item=RATE,
        ratelimit_books_list=f"{RATE};1000 per day",
        trusted_proxy_hops=1,
        cors_origins=[SHOP],
        **changed,
    )
    async with serving(settings, prepare) as served:
        found.site = served
        yield found


@pytest.fixture
async def ways(site: Site, make: Factory, folder: Path) -> AsyncIterator[tuple[Asked, Asked]]:
    """The short way, and the ordinary one, over the same books."""
    owner, *callers = [await make.member() for _ in range(3)]
    books = [
        (await make.book(owner, price=n, genre=("Fiction", "History")[n % 2])).id
        for n in range(BOOKS)
    ]
    async with (
        asked(site, folder, 1, callers[0], books) as short,
        asked(site, folder, 2, callers[1], books, short_way=False) as ordinary,
    ):
        yield short, ordinary


class Questions:
    """Makes requests up, by chance: most of them of the kind that goes the short way."""

    def __init__(self, chance: random.Random, books: list[int]) -> None:
        self._chance = chance
        self._books = books
        self.tags: list[str] = ['"0123456789abcdef01234567"']

    def _target(self) -> str:
        choice = self._chance.choice
        item = choice(
            [*self._books, 0, 10**6, "007", "1x", "9" * 18, "9" * 19, "9" * 25, "%31", "-1"]
        )
        lists = ["", "?", "?page=1", "?page=2&per_page=5", "?per_page=0", "?genre=Fiction"]
        lists += ["?genre=History&sort=-price", "?limit=5", "?limit=5&cursor=3", "?page=1&limit=1"]
        lists += [
            "?sort=title&limit=3",
            "?nocache=1",
            "?x=1",
            "?page=1&page=2",
            "?q=%ff",
            "?q=book",
        ]
        lists += ["?genre=Fiction%00", "?user_id=1", "?year_min=x", "?price_min=2.5"]
        return choice([
            f"/api/books/{item}", f"/api/books/{item}", f"/api/books/{item}{choice(['?', '?a=b'])}",
            *(f"/api/books{choice(lists)}" for _ in range(3)),
            choice(["/health/live", "/health/live?", "/health/live?x=1", "/health/live/"]),
            choice(["/api//books", "/api/books/", "/api%2Fbooks", "/API/books", "/api/books/1/"]),
        ])  # fmt: skip

    def _headers(self) -> Iterator[tuple[str, str]]:
        choice, chance = self._chance.choice, self._chance.random
        hosts = ["localhost", "a.example:8080", "a.example:99999", "[::1]:80", "a_b", "a b", "é"]
        hosts += ["a..b", ".", "a.", "x" * 64, f"{'x' * 63}.a"]
        yield "Host", choice(hosts) if chance() < 0.2 else "books.example.org"
        tag = choice(self.tags)
        known = [tag, f"W/{tag}", "*", f'"x", {tag}', tag.strip('"'), '"', "", f"{tag},,", '"é"']
        if chance() < 0.4:
            yield "If-None-Match", choice(known)
            if chance() < 0.1:
                yield "If-None-Match", choice(known)
        if chance() < 0.3:
            yield "Origin", choice([SHOP, ELSEWHERE, "null", f"{SHOP}.evil.example"])
            if chance() < 0.1:
                yield "Origin", SHOP
        if chance() < 0.3:
            yield "X-Request-ID", choice(["mine", "no good", "x" * 65])
        rare = [("Accept", "text/html"), ("Content-Length", "0"), ("Cookie", "session=x")]
        rare += [("Range", "bytes=0-3"), ("Expect", "100-continue"), ("Upgrade", "websocket")]
        rare += [("If-Match", tag), ("Content-Encoding", "gzip"), ("Accept-Encoding", "gzip")]
        if chance() < 0.2:
            yield choice(rare)

    def ask(self) -> "Question":
        """Give a request, whose caller is yet to be said: each application has its own."""
        methods = ("GET", "HEAD", "OPTIONS", "POST", "DELETE")
        (method,) = self._chance.choices(methods, (85, 6, 3, 3, 3))
        tokens = self._chance.choices(("", "own", "false", "two"), (6, 3, 1, 1))[0]
        return Question(f"{method} {self._target()} HTTP/1.1", [*self._headers()], tokens)


@dataclass(frozen=True)
class Question:
    """A request, but for who asks."""

    first: str
    headers: list[tuple[str, str]]
    tokens: str

    def by(self, address: str, token: str = "") -> bytes:
        """Give the bytes of it."""
        tokens = {"": [], "own": [token], "false": [f"{token}x"], "two": [token, token]}
        lines = [self.first, *(f"{name}: {value}" for name, value in self.headers)]
        lines += [f"Authorization: Bearer {one}" for one in tokens[self.tokens] if token]
        return "\r\n".join(
            [*lines, f"X-Forwarded-For: {address}", "Connection: close", "", ""]
        ).encode("latin-1")


def plain(answer: Answered) -> Any:
    """Leave out what differs from answer to answer: the time, and an id that was given."""
    headers = [
        (name, "s" if name in SECONDS else TICKING.sub("s", value))
        for name, value in answer.headers
        if name not in OWN
    ]
    body = re.sub(rb'"(request_id":"\w+|retry_after":\d+)"?', b"", answer.body)
    return answer.status, headers, body


@pytest.mark.timeout(max(120, QUESTIONS // 10))
async def test_nobody_can_tell_them_apart(ways: tuple[Asked, Asked]) -> None:
    seed = int(os.environ.get("SEED") or random.randrange(1 << 32))
    print(f"SEED={seed}")
    questions, statuses = Questions(random.Random(seed), ways[0].books), Counter[int]()
    for n in range(QUESTIONS):
        question = questions.ask()
        # What follows an answer is not waited for: so each is asked until the cache has it.
        for turn, way in product(range(3), ways):
            await way.ask(question.by(f"10.{turn}.{n >> 8}.{n & 255}"))
        for _ in range(3):  # an entry may end between the two
            one, other = [await way.ask(question.by(way.address(n), way.token)) for way in ways]
            if one.header("cache-status") == other.header("cache-status"):
                break
        assert plain(one) == plain(other), question
        statuses[one.status] += 1
        if (tag := one.header("etag")) is not None:
            questions.tags = [*questions.tags[-20:], tag]
    await asyncio.sleep(0.5)  # a line is written after its answer has been sent
    short, ordinary = ways
    print(f"{statuses}, {short.framework} and {ordinary.framework} seen by the framework")
    assert {200, 304, 400, 404, 405, 429} <= set(statuses)
    assert short.framework < ordinary.framework * 0.7
    assert await short.metrics() == await ordinary.metrics()
    seen = [Counter(CHANCE.sub("", line) for line in way.lines) for way in ways]
    assert seen[0] == seen[1]


async def test_what_is_warm_is_not_seen_by_the_framework(ways: tuple[Asked, Asked]) -> None:
    ordinary = ways[1]
    page = Question("GET /api/books?per_page=5 HTTP/1.1", [("Host", "a")], "own")
    item = Question(f"GET /api/books/{ordinary.books[0]} HTTP/1.1", [("Host", "a")], "")
    for question, way in product((page, item), ways):
        for _ in range(3):
            await way.ask(question.by("10.0.0.1"))
            await asyncio.sleep(0.05)
        before, reads = way.framework, way.hits
        answer = await way.ask(question.by("10.0.0.2", way.token))
        assert (answer.status, answer.header("cache-status")) == (200, "Octavo; hit")
        assert way.framework - before == (way is ordinary)
        assert way.hits - reads >= 1
    await asyncio.sleep(0.1)
    for way in ways:
        lines = ["GET /api/books/<id:book_id> 200 0.0 ms user=- cache=hit limit=admitted"]
        assert way.lines[-1:] == lines


async def test_other_servers_have_it_as_asgi(
    site: Site, ways: tuple[Asked, Asked], make: Factory, folder: Path
) -> None:
    """Those that cannot ask before they make a task: here Hypercorn's own HTTP/1.1."""
    short, member = ways[0], await make.member()
    async with asked(site, folder, 3, member, short.books, http1="h11") as other:
        for target in (f"/api/books/{short.books[0]}", "/api/books?per_page=5", "/health/live"):
            question = Question(f"GET {target} HTTP/1.1", [("Host", "a")], "own")
            for way in (short, other):
                for _ in range(3):
                    await way.ask(question.by("10.0.0.1"))
                    await asyncio.sleep(0.05)
            before = other.framework
            answers = [
                await way.ask(question.by(way.address(0), way.token)) for way in (short, other)
            ]
            assert plain(answers[0]) == plain(answers[1])
            assert answers[0].status == 200
            assert other.framework == before


@pytest.mark.parametrize("is_asked", [True, False])
async def test_a_page_is_of_its_generation(
    site: Site,
    client: httpx.AsyncClient,
    make: Factory,
    monkeypatch: pytest.MonkeyPatch,
    is_asked: bool,
) -> None:
    """Kept without asking for it, a page would outlive a write: then this test would fail."""
    owner = await make.member()
    book = await make.book(owner)
    for _ in range(3):
        answer = await client.get("/api/books")
    assert answer.headers["Cache-Status"] == "Octavo; hit"
    if not is_asked:
        monkeypatch.setattr(Lists, "hit", lambda *asked: True)
    title = {"title": "New"}
    await client.patch(f"/api/books/{book.id}", json=title, headers=owner.headers)
    found = (await client.get("/api/books")).json()["items"][0]
    assert found["title"] == ("New" if is_asked else book.title)


async def test_pages_are_bounded() -> None:
    listing: Any = None
    pages = Pages(60)

    def answer(size: int) -> Page:
        return Page(Ready("tag", b"", b"", b"x" * size), listing, Rows((), 0, None, "hit"))

    for n in range(MOST + 10):
        pages.put((b"%d" % n, b""), answer(1))
    assert pages.get((b"9", b"")) is None
    assert pages.get((b"10", b"")) is not None
    pages.put((b"large", b""), answer(LARGEST + 1))
    assert pages.get((b"large", b"")) is None
    ended = Pages(-1)
    ended.put((b"", b""), answer(1))
    assert ended.get((b"", b"")) is None


async def test_custom_limits_are_decided_by_the_framework(site: Site, folder: Path) -> None:
    """A function beside a route says whose units are spent: the short way has to leave it alone."""

    async def nobody() -> str:
        return "nobody"

    def prepare(app: Quart) -> None:
        view = app.view_functions["books.list_books"]
        limit = rate_limit(3, timedelta(hours=1), key_function=nobody)
        setattr(view, ATTRIBUTE, getattr(limit(lambda: None), ATTRIBUTE))

    settings = settings_for(site.another_url, folder)
    before = getattr(site.app.view_functions["books.list_books"], ATTRIBUTE)
    try:
        async with visiting(settings, prepare) as client:
            statuses = [(await client.get("/api/books")).status_code for _ in range(6)]
    finally:
        setattr(site.app.view_functions["books.list_books"], ATTRIBUTE, before)
    assert statuses == [200] * 3 + [429] * 3
