"""The short way and the ordinary one: whatever is asked, nobody can tell which it went."""

import asyncio
import os
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
from quart import Quart
from quart_rate_limiter import QUART_RATE_LIMITER_LIMITS_ATTRIBUTE as ATTRIBUTE
from quart_rate_limiter import rate_limit
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from service import logs
from service.cache import Rows
from service.cache.lists import Lists
from service.shortway.look import Ready, Route
from service.shortway.pages import LARGEST, MOST, Page, Pages
from tests.conftest import Site, settings_for, visiting
from tests.factories import Factory
from tests.ways import CHANCE, ELSEWHERE, SHOP, Answered, Asked, Question, asked, plain

pytestmark = pytest.mark.no_cover  # what it runs, others cover, and it is far faster without

QUESTIONS = 20_000 if os.environ.get("SOAK") else 400
BOOKS = 12
MOST_BYTES = 4_096  # of a body


@pytest.fixture
async def ways(site: Site, make: Factory, folder: Path) -> AsyncIterator[tuple[Asked, Asked]]:
    """The short way, and the ordinary one, over the same books."""
    owner, *callers = [await make.member() for _ in range(3)]
    books = [
        (await make.book(owner, price=n, genre=("Fiction", "History")[n % 2])).id
        for n in range(BOOKS)
    ]
    async with (
        asked(site, folder, 1, callers[0], books, max_body_bytes=MOST_BYTES) as short,
        asked(
            site, folder, 2, callers[1], books, max_body_bytes=MOST_BYTES, short_way=False
        ) as ordinary,
    ):
        yield short, ordinary


class Questions:
    """Makes requests up, by chance: most of them of the kind that goes the short way."""

    def __init__(self, chance: random.Random, books: list[int]) -> None:
        self._chance = chance
        self._books = books
        self.tags = {"": '"0123456789abcdef01234567"'}  # by the target that had them last

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

    def _headers(self, target: str) -> Iterator[tuple[str, str]]:
        choice, chance = self._chance.choice, self._chance.random
        hosts = ["localhost", "a.example:8080", "a.example:99999", "[::1]:80", "a_b", "a b", "é"]
        hosts += ["a..b", ".", "a.", "x" * 64, f"{'x' * 63}.a"]
        yield "Host", choice(hosts) if chance() < 0.2 else "books.example.org"
        tag = self.tags.get(target, "") if chance() < 0.5 else choice([*self.tags.values()])
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

    def ask(self) -> Question:
        """Give a request, whose caller is yet to be said: each application has its own."""
        methods = ("GET", "HEAD", "OPTIONS", "POST", "DELETE")
        (method,) = self._chance.choices(methods, (85, 6, 3, 3, 3))
        tokens = self._chance.choices(("", "own", "false", "two"), (6, 3, 1, 1))[0]
        target, body = self._target(), b""
        headers = [*self._headers(target)]
        if self._chance.random() < 0.03:
            body = b"x" * self._chance.choice((1, MOST_BYTES, MOST_BYTES + 1))
            headers.append(("Content-Length", str(len(body))))
        return Question(f"{method} {target} HTTP/1.1", headers, tokens, body)


@pytest.mark.timeout(max(120, QUESTIONS // 10))
async def test_nobody_can_tell_them_apart(
    ways: tuple[Asked, Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "REFUSAL_LINES", sys.maxsize)  # how many there are depends on time
    seed = int(os.environ.get("SEED") or random.randrange(1 << 32))
    print(f"SEED={seed}")
    questions, statuses = Questions(random.Random(seed), ways[0].books), Counter[int]()
    for n in range(QUESTIONS):
        question = questions.ask()
        if n % 4 == 0:
            for way in ways:
                await way.site.app.extensions["cache"].clear()
        # What follows an answer is not waited for: so each is asked until the cache has it.
        for turn in range(3):
            address = f"0.{turn}.{n >> 8}.{n & 255}"
            one, other = [await way.ask(question.by(f"1{way.number}{address}")) for way in ways]
            assert cold(one) == cold(other), question
        for _ in range(3):  # an entry may end between the two
            one, other = [await way.ask(question.by(way.address(n), way.token)) for way in ways]
            if one.header("cache-status") == other.header("cache-status"):
                break
        assert plain(one) == plain(other), question
        statuses[one.status] += 1
        if (tag := one.header("etag")) is not None:
            questions.tags[question.first.split()[1]] = tag
    await asyncio.sleep(0.5)  # a line is written after its answer has been sent
    short, ordinary = ways
    print(f"{statuses}, {short.framework} and {ordinary.framework} seen by the framework")
    assert {200, 304, 400, 404, 405, 429} <= set(statuses)
    assert short.framework < ordinary.framework * 0.7
    assert await short.metrics() == await ordinary.metrics()
    seen = [Counter(CHANCE.sub("", line) for line in way.lines) for way in ways]
    assert seen[0] == seen[1]


def cold(answer: Answered) -> Any:
    """Leave out who was the first to ask."""
    status, headers, body = plain(answer)
    return status, [pair for pair in headers if pair[0] != "cache-status"], body


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
        lines = ["info GET /api/books/<id:book_id> 200 0.0 ms user=- cache=hit limit=admitted"]
        assert way.lines[-1:] == lines


@pytest.mark.parametrize("error", [TimeoutError(), PoolTimeoutError(), ValueError("a defect")])
@pytest.mark.parametrize("part", ["items", "lists"])
async def test_an_error_of_a_read_is_told_in_the_same_way(
    ways: tuple[Asked, Asked], part: str, error: Exception
) -> None:
    target = f"/api/books{'?genre=Science' if part == 'lists' else '/7000'}"
    question = Question(f"GET {target} HTTP/1.1", [("Host", "a"), ("Origin", SHOP)], "")
    answers, tried = [], 0

    async def fail(*asked: Any, **more: Any) -> None:
        nonlocal tried
        tried += 1
        raise error

    for way in ways:
        getattr(way.site.app.extensions["cache"], part).read = fail
        answers.append(plain(await way.ask(question.by(f"192.168.0.{way.number}"))))
        assert way.framework == (way is ways[1])
    await asyncio.sleep(0.05)
    assert tried == len(ways), "what has failed is not tried a second time"
    assert answers[0] == answers[1]
    assert answers[0][0] >= 500
    assert ways[0].lines == ways[1].lines


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
                    await way.ask(question.by("10.0.0.1", way.token))
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
        return Page(
            Route("", "", None),
            Ready("tag", b"", b"", b"x" * size),
            listing,
            Rows((), 0, None, "hit"),
        )

    for n in range(MOST + 10):
        pages.put((b"%d" % n, b"", b""), answer(1))
    assert pages.get((b"9", b"", b"")) is None
    assert pages.get((b"10", b"", b"")) is not None
    pages.put((b"large", b"", b""), answer(LARGEST + 1))
    assert pages.get((b"large", b"", b"")) is None
    ended = Pages(-1)
    ended.put((b"", b"", b""), answer(1))
    assert ended.get((b"", b"", b"")) is None


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
