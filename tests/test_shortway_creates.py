"""Creates that go the short way, and the ordinary one: nobody can tell which."""

import asyncio
import json
import os
import random
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from hashlib import blake2b
from pathlib import Path
from typing import Any

import httpx
import pytest
from quart_rate_limiter import QUART_RATE_LIMITER_LIMITS_ATTRIBUTE as ATTRIBUTE
from quart_rate_limiter import rate_limit
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from service import logs, requests
from service.context import KEY, RequestContext
from service.errors import ServiceUnavailableError, UnauthorizedError
from tests.conftest import Site
from tests.cycles import kinds, left_by
from tests.factories import Factory, Member
from tests.ways import CHANCE, ELSEWHERE, RATE, SHOP, Answered, Asked, Question, asked, plain

pytestmark = pytest.mark.no_cover  # what it runs, others cover, and it is far faster without

QUESTIONS = 20_000 if os.environ.get("SOAK") else 500
EACH = 40  # questions of a user: the last of them are refused
MOST_BYTES = 8_192
NEW = re.compile(r'"(?:id|user_id|created_at|updated_at)":("[^"]*"|\d+),?')
PLACE = re.compile(r"/\d+$")
BOOK: dict[str, Any] = {"title": "A Book", "author": "Somebody"}


@asynccontextmanager
async def both(
    site: Site, folder: Path, one: Member, other: Member
) -> AsyncIterator[tuple[Asked, Asked]]:
    """Serve the short way, and the ordinary one."""
    told: dict[str, Any] = {"ratelimit_default": RATE, "max_body_bytes": MOST_BYTES}
    async with (
        asked(site, folder, 1, one, [], **told) as short,
        asked(site, folder, 2, other, [], short_way=False, **told) as ordinary,
    ):
        yield short, ordinary


@pytest.fixture
async def ways(site: Site, make: Factory, folder: Path) -> AsyncIterator[tuple[Asked, Asked]]:
    """Both ways."""
    async with both(site, folder, await make.member(), await make.member()) as found:
        yield found


class Questions:
    """Makes requests to create books up, by chance: most of them are good ones."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def _book(self) -> dict[str, Any]:
        choice, chance = self._chance.choice, self._chance.random
        book = dict(BOOK)
        good: dict[str, list[Any]] = {
            "title": ["Emma", " Emma ", "Ünï – 書", 'a\\b"c\n', "x" * 200, "7"],
            "author": ["Jane Austen", "Ångström", "x" * 100],
            "isbn": ["9780306406157", "978-0-306-40615-7", "030640615X", None],
            "published_year": [1815, 1815.0, 1000, 2100, None],
            "genre": ["Fiction", "Non-Fiction", "Science", "History", None],
            "price": [0, 9.95, 12, 99_999_999.99, -0.0, None],
        }
        bad: dict[str, list[Any]] = {
            "title": ["", " ", "x" * 201, 1, None, "\u200b", "?!"],
            "author": ["", "x" * 101, [], {}],
            "isbn": ["12", 5, "97803064061570"],
            "published_year": [999, 2101, "1815", 1.5, True, 10**30],
            "genre": ["Poetry", "fiction", 1],
            "price": [-1, 1.001, 10**9, "9.95", 1e400, True],
            "owner": [1],
        }
        for name, values in good.items():
            if chance() < 0.4:
                book[name] = choice(values)
        if chance() < 0.15:
            name = choice([*bad])
            book[name] = choice(bad[name])
        if chance() < 0.05:
            del book[choice(["title", "author"])]
        return book

    def _body(self) -> bytes:
        choice, chance = self._chance.choice, self._chance.random
        body = json.dumps(self._book(), ensure_ascii=chance() < 0.5).encode()
        if chance() < 0.03:
            return body + b" " * MOST_BYTES
        if chance() < 0.12:
            return choice([
                b"", b"{}", b"[]", b"null", body[:-1], body + b" ", b" " + body, body + b"x",
                body[:-1] + b',"title":"B"}', body[:-1] + b',"price":NaN}', b"\xff" + body,
                body.replace(b"A Book", b"\xe9"), body.replace(b"A Book", b"\\u0000"),
                body.replace(b"A Book", b"\\ud800"),
                body[:-1] + b" " * (MOST_BYTES - len(body)) + b"}", b"[" * 100,
                b'{"title":' * 50, b"\xef\xbb\xbf" + body,
            ])  # fmt: skip
        return body

    def _headers(self, body: bytes) -> Iterator[tuple[str, str]]:
        choice, chance = self._chance.choice, self._chance.random
        hosts = [
            "localhost",
            "a.example:8080",
            "a.example:80",
            "a.example:443",
            "a.example:99999",
            "a_b",
            "é",
            "a..b",
        ]
        yield "Host", choice(hosts) if chance() < 0.2 else "books.example.org"
        media = ["application/json; charset=utf-8", "APPLICATION/JSON", "application/json ", "json"]
        media += ["application/vnd.api+json", "text/plain", "application/json,text/plain", ""]
        if chance() < 0.95:
            yield "Content-Type", choice(media) if chance() < 0.1 else "application/json"
        if chance() < 0.03:
            yield "Content-Type", choice(["application/json", "text/plain"])
        if chance() < 0.3:
            yield "Origin", choice([SHOP, ELSEWHERE, "null"])
            if chance() < 0.1:
                yield "Origin", SHOP
        if chance() < 0.3:
            yield "X-Request-ID", choice(["mine", "no good", "x" * 65])
        rare = [("Accept", "text/html"), ("Cookie", "session=x"), ("Content-Encoding", "gzip")]
        rare += [("Content-Encoding", "identity"), ("Expect", "100-continue")]
        rare += [("Upgrade", "websocket"), ("If-Match", '"x"'), ("If-None-Match", "*")]
        if chance() < 0.15:
            yield choice(rare)
        yield "Content-Length", str(len(body))

    def ask(self) -> Question:
        """Give a request, whose caller is yet to be said."""
        chance = self._chance
        (method,) = chance.choices(("POST", "PUT", "OPTIONS"), (95, 2, 3))
        targets = ("/api/books", "/api/books?", "/api/books?x=1", "/api/books/", "/api//books")
        (target,) = chance.choices(targets, (90, 2, 4, 2, 2))
        tokens = chance.choices(("", "own", "false", "two"), (1, 15, 1, 1))[0]
        body = self._body()
        return Question(f"{method} {target} HTTP/1.1", [*self._headers(body)], tokens, body)


def told(answer: Answered) -> Any:
    """Leave out what differs from book to book."""
    status, headers, body = plain(answer)
    if status != 201:
        return status, headers, body
    assert answer.header("etag") == f'"{blake2b(body, digest_size=12).hexdigest()}"'
    assert (answer.header("location") or "").endswith(f"/{json.loads(body)['id']}")
    kept = [
        (name, PLACE.sub("", value))
        for name, value in headers
        if name not in {"etag", "content-length"}  # ids have more digits one day
    ]
    assert answer.header("content-length") == str(len(body))
    return status, kept, NEW.sub("", body.decode())


@pytest.mark.timeout(max(120, QUESTIONS // 10))
async def test_nobody_can_tell_them_apart(
    site: Site, make: Factory, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "REFUSAL_LINES", sys.maxsize)  # how many there are depends on time
    seed = int(os.environ.get("SEED") or random.randrange(1 << 32))
    print(f"SEED={seed}")
    # Each is asked by users of its own, because limits are theirs.
    pairs = [(await make.member(), await make.member()) for _ in range(QUESTIONS // EACH + 1)]
    async with both(site, folder, *pairs[-1]) as ways:
        await compare(ways, pairs, random.Random(seed))


async def compare(
    ways: tuple[Asked, Asked], pairs: list[tuple[Member, Member]], chance: random.Random
) -> None:
    """Ask both the same."""
    questions, statuses = Questions(chance), Counter[int]()
    for n in range(QUESTIONS):
        question, shares = questions.ask(), sorted(chance.random() for _ in range(n % 5 // 3))
        answers = []
        for way, member in zip(ways, pairs[n // EACH], strict=True):
            raw = question.by(way.address(n), member.token)
            answers.append(await way.ask(raw, *(1 + int(x * (len(raw) - 1)) for x in shares)))
        one, other = answers
        assert told(one) == told(other), question
        statuses[one.status] += 1
    await asyncio.sleep(0.5)  # a line is written after its answer has been sent
    short, ordinary = ways
    print(f"{statuses}, {short.framework} and {ordinary.framework} seen by the framework")
    assert {201, 400, 401, 404, 413, 415, 429} <= set(statuses)
    assert ordinary.framework - short.framework > statuses[201] // 2
    assert await short.metrics() == await ordinary.metrics()
    assert Counter(lines(short)) == Counter(lines(ordinary))


def lines(way: Asked) -> list[str]:
    """Give what was logged, but for who asked."""
    return [CHANCE.sub("", line) for line in way.lines]


def create(way: Asked, **fields: Any) -> bytes:
    """Give a request that creates a book."""
    body = json.dumps(BOOK | fields).encode()
    headers = [("Host", "a"), ("Content-Type", "application/json")]
    question = Question(
        "POST /api/books HTTP/1.1", [*headers, ("Content-Length", str(len(body)))], "own", body
    )
    return question.by(f"10.9.{way.number}.1", way.token)  # who pays if the token is not valid


async def test_a_create_is_not_seen_by_the_framework(ways: tuple[Asked, Asked]) -> None:
    for way, seen in zip(ways, (0, 1), strict=True):
        assert (await way.ask(create(way))).status == 201
        assert way.framework == seen


ERRORS: list[Callable[[], Exception]] = [
    UnauthorizedError,
    ServiceUnavailableError,
    PoolTimeoutError,
    lambda: OperationalError("INSERT", {}, OSError("gone")),
    lambda: DBAPIError("INSERT", {}, ValueError("unfit")),
    lambda: ValueError("a defect"),
]


@pytest.mark.parametrize("make_error", ERRORS)
async def test_an_error_of_the_write_is_told_in_the_same_way(
    ways: tuple[Asked, Asked], make_error: Callable[[], Exception]
) -> None:
    answers = []
    for way in ways:
        tried = 0

        async def fail(*asked: Any) -> None:
            nonlocal tried
            tried += 1
            raise make_error()

        way.site.app.extensions["database"].write_together = fail
        answers.append(plain(await way.ask(create(way))))
        assert tried == 1, "what has failed is not tried a second time"
        assert way.framework == (way is ways[1])
    await asyncio.sleep(0.05)
    assert answers[0] == answers[1]
    assert answers[0][0] >= 400
    assert lines(ways[0]) == lines(ways[1])


async def test_what_nobody_foresaw_is_told_in_the_same_way(
    ways: tuple[Asked, Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def parse(body: bytes) -> Any:
        read.append(len(body))
        raise ArithmeticError

    monkeypatch.setattr(requests, "parse_json", parse)
    answers = [plain(await way.ask(create(way))) for way in ways]
    assert answers[0] == answers[1]
    assert answers[0][0] == 500
    assert len(read) == 2, "each has read its body once"
    await asyncio.sleep(0.05)
    assert lines(ways[0]) == lines(ways[1])


async def test_an_error_leaves_no_cycle(ways: tuple[Asked, Asked]) -> None:
    """It would hold all that the client has sent until cycles are looked for, which is seldom."""

    async def fail(*asked: Any) -> None:
        raise ValueError

    short = ways[0]
    short.site.app.extensions["database"].write_together = fail

    async def ask() -> None:
        assert (await short.ask(create(short))).status == 500
        await asyncio.sleep(0.1)

    left = kinds(await left_by(ask))
    assert not {"traceback", "frame", "Request", "ValueError"} & left


async def test_below_a_root_path_it_is_the_frameworks(ways: tuple[Asked, Asked]) -> None:
    app = ways[0].site.app
    scope: Any = {
        "method": "GET",
        "raw_path": b"/api/books/7",
        "path": "/api/books/7",
        "query_string": b"",
        "headers": [(b"host", b"a")],
        "client": ("127.0.0.1", 1),
        "scheme": "http",
        KEY: RequestContext(),
    }
    matched = app.url_map.bind("").match("/api/books/7", "GET", return_rule=True)
    scope[KEY].matched = matched
    for root_path in ("", "/x"):
        scope["root_path"] = root_path
        answers = app.extensions["shortway"].look(scope, lambda found: None)
        operation = app.extensions["plain"].find(scope)
        assert answers is (operation is not None) is (not root_path)


@pytest.mark.parametrize("is_gone", [True, False])
async def test_who_may_not_act_any_more_is_refused(
    site: Site, make: Factory, folder: Path, is_gone: bool
) -> None:
    admin, answers = await make.admin(), []
    for number, member in enumerate([await make.member(), await make.member()]):
        async with (
            asked(site, folder, number, member, [], short_way=number == 0) as way,
            httpx.AsyncClient(base_url=way.site.url) as client,
        ):
            assert (await way.ask(create(way))).status == 201
            if is_gone:
                answer = await client.delete(f"/admin/users/{member.id}", headers=admin.headers)
            else:
                answer = await client.post("/api/auth/logout", headers=member.headers)
            assert answer.status_code == 204
            answers.append(plain(await way.ask(create(way))))
    assert answers[0] == answers[1]
    assert answers[0][0] == 401


async def test_custom_limits_are_decided_by_the_framework(
    site: Site, make: Factory, folder: Path
) -> None:
    """A function beside a route says whose units are spent."""

    async def nobody() -> str:
        return "nobody"

    member = await make.member()
    view = site.app.view_functions["books.create_book"]
    limit = rate_limit(3, timedelta(hours=1), key_function=nobody)
    setattr(view, ATTRIBUTE, getattr(limit(lambda: None), ATTRIBUTE))
    try:
        async with asked(site, folder, 1, member, []) as way:
            statuses = [(await way.ask(create(way))).status for _ in range(5)]
    finally:
        delattr(view, ATTRIBUTE)
    assert statuses == [201] * 3 + [429] * 2


async def test_the_check_digit_counts_if_it_shall(site: Site, make: Factory, folder: Path) -> None:
    one, other = await make.member(), await make.member()
    strict = {"isbn_checksum": "strict"}
    async with (
        asked(site, folder, 1, one, [], **strict) as short,
        asked(site, folder, 2, other, [], short_way=False, **strict) as ordinary,
    ):
        for isbn, status in (("9780306406157", 201), ("9780306406158", 400)):
            answers = [told(await way.ask(create(way, isbn=isbn))) for way in (short, ordinary)]
            assert answers[0] == answers[1]
            assert answers[0][0] == status
    assert (short.framework, ordinary.framework) == (0, 2)
