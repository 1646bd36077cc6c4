"""The fast path and Quart: for every request, both send the same response."""

import asyncio
import json
import os
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from itertools import count, product
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import httpx
import pytest
from quart_rate_limiter import QUART_RATE_LIMITER_LIMITS_ATTRIBUTE as ATTRIBUTE
from quart_rate_limiter import rate_limit
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from service import logs
from service.cache import ListResult
from service.cache.lists import Lists
from service.errors import ServiceUnavailableError, UnauthorizedError
from service.fast_path.lookup import PreparedResponse, Route
from service.fast_path.remembered import MAX_BODY_BYTES, MAX_PAGES, RememberedList, RememberedLists
from service.http import requests
from service.http.context import KEY, RequestContext
from service.views import counter
from tests.conftest import Site, settings_for, visiting
from tests.cycles import garbage_of, type_names
from tests.factories import Factory
from tests.fuzz.declared import SHOP, Requests
from tests.side_by_side import Server, side_by_side

pytestmark = pytest.mark.no_cover  # other tests cover the same code, and coverage makes it slow

REQUESTS = 40_000 if os.environ.get("SOAK") else 900
EACH = 30  # number of requests from the same senders
Servers = tuple[Server, Server]


@pytest.fixture(params=["sqlite", "postgresql"])
async def servers(
    request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Servers]:
    """Two servers with equal catalogues: with the fast path, and without it.

    Neither writes views, because the moment of the writing decides which books are popular.
    """
    monkeypatch.setattr(counter, "WRITE_SECONDS", 86_400.0)
    async with side_by_side(request, folder, request.param) as both:
        for server in both:
            await enrol(server, 0)
        yield both


async def enrol(server: Server, number: int) -> list[int]:
    """Create the next senders: an owner of three books, another member, and an administrator."""
    make = Factory(server.app)
    server.members = [
        await make.member(f"{role}{number}", is_admin=role == "admin")
        for role in ("owner", "other", "admin")
    ]
    genres = ("Fiction", "History", "Science")
    owner = server.members[0]
    return [
        (await make.book(owner, title=f"Book {number}.{n}", price=n, genre=genre)).id
        for n, genre in enumerate(genres)
    ]


@pytest.mark.timeout(max(240, REQUESTS // 5))
async def test_both_paths_send_the_same_response(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "REFUSAL_LINES", sys.maxsize)  # their number depends on time
    seed = int(os.environ.get("SEED") or random.randrange(1 << 32))
    print(f"SEED={seed}")
    chance = random.Random(seed)
    fast, ordinary = servers
    made = Requests(chance, fast.app)
    statuses, avoided = Counter[int](), Counter[str]()
    endpoints = {each.endpoint for each in made.declared}
    for n in count():
        # Until each operation has succeeded on the fast path, which may take longer.
        if n >= REQUESTS and (endpoints <= {*avoided} or n > 10 * REQUESTS):
            break
        if n % EACH == 0:
            (books, _) = [await enrol(server, 1 + n) for server in servers]
            made.ids = {"book_id": books, "user_id": [each.id for each in fast.members]}
        sender = chance.randrange(len(fast.members))
        made.member = fast.members[sender]
        request, address = made.make(), f"172.16.{n // EACH // 256}.{n // EACH % 256}"
        shares = sorted(chance.random() for _ in range(n % 5 // 3))
        # A list is loaded, then cached, then its response is remembered.
        for _ in range(3 if request.method in {"GET", "HEAD"} else 1):
            responses, seen = [], fast.framework
            for server in servers:
                tag = server.tags.get(request.target, '"0123456789abcdef01234567"')
                raw = request.encode(address, server.members[sender], tag)
                cuts = [1 + int(share * (len(raw) - 1)) for share in shares]
                response = await server.send(raw, *cuts)
                server.tags[request.target] = response.header("etag") or tag
                responses.append(response)
            assert responses[0].comparable() == responses[1].comparable(), request
            status = responses[0].status
            statuses[status] += 1
            if status < 400 and fast.framework == seen:
                avoided[request.declared.endpoint] += 1
        if status == 201 and "id" in (row := json.loads(responses[0].content or b"{}")):
            made.created(request, row["id"])
    await until_logged(servers)
    print(f"{statuses}; dispatched by Quart: {fast.framework} and {ordinary.framework}")
    assert {200, 201, 204, 304, 400, 401, 403, 404, 405, 413, 415, 429} <= set(statuses)
    assert endpoints <= {*avoided}
    assert fast.framework < ordinary.framework / 2
    assert await fast.metrics() == await ordinary.metrics()
    assert Counter(fast.lines) == Counter(ordinary.lines)


def get(target: str, **headers: str) -> bytes:
    """Return the bytes of a GET."""
    lines = [f"GET {target} HTTP/1.1", "Host: a", f"Origin: {SHOP}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def create(server: Server) -> bytes:
    """Return the bytes of a request that creates a book."""
    body = json.dumps({"title": "A Book", "author": "Somebody"}).encode()
    token = server.members[0].token
    lines = ["POST /api/books HTTP/1.1", "Host: a", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(body)}", f"Authorization: Bearer {token}", "Connection: close"]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def until_logged(servers: Servers) -> None:
    """Wait until both servers have logged all their requests."""
    for server in servers:
        await server.until_logged()


async def settled(servers: Servers, *requests: bytes) -> None:
    """Send requests to both until their responses are cached, and forget the notes."""
    for request, server in product(requests, servers):
        for _ in range(3):
            await server.send(request)
    await until_logged(servers)
    for server in servers:
        server.framework = 0
        server.lines.clear()


async def test_cached_responses_and_creates_are_not_dispatched_by_quart(servers: Servers) -> None:
    page, item = get("/api/books?per_page=5"), get("/api/books/1")
    await settled(servers, page, item)
    for server, dispatched in zip(servers, (0, 1), strict=True):
        own = {"Authorization": f"Bearer {server.members[0].token}"}
        for request in (page, item, get("/api/books/1", **own), get("/api/profile", **own)):
            hits = server.app.extensions["cache"].counters.hits
            response = await server.send(request)
            assert response.status == 200
            if b"profile" not in request:
                assert response.header("cache-status") == "Octavo; hit"
                assert server.app.extensions["cache"].counters.hits > hits
        assert (await server.send(create(server))).status == 201
        assert server.framework == 5 * dispatched


READS_AND_WRITES: list[tuple[str, str, Callable[[Server], bytes]]] = [
    ("cache", "items.read", lambda _: get("/api/books/7000")),
    ("cache", "lists.read", lambda _: get("/api/books?genre=Science")),
    ("database", "write_batched", create),
]
ERRORS: list[Callable[[], Exception]] = [
    TimeoutError,
    UnauthorizedError,
    ServiceUnavailableError,
    PoolTimeoutError,
    lambda: OperationalError("INSERT", {}, OSError("gone")),
    lambda: DBAPIError("INSERT", {}, ValueError("unfit")),
    lambda: ValueError("a defect"),
]


async def test_an_error_has_the_same_response_on_both_paths(servers: Servers) -> None:
    for (extension, method, build), make_error in product(READS_AND_WRITES, ERRORS):
        responses = []
        for server in servers:
            server.framework = 0
            fail = AsyncMock(side_effect=make_error())
            *parts, name = method.split(".")
            part = server.app.extensions[extension]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(getattr(part, parts[0]) if parts else part, name, fail)
                responses.append((await server.send(build(server))).comparable())
            assert fail.await_count == 1, "a failed call is not repeated"
        assert responses[0] == responses[1]
        assert responses[0][0] >= 400
        await until_logged(servers)
        assert [server.framework for server in servers] == [0, 1]
        assert servers[0].lines == servers[1].lines


async def test_an_unexpected_error_has_the_same_response_on_both_paths(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies: list[bytes] = []

    def parse(body: bytes) -> Any:
        bodies.append(body)
        raise ArithmeticError

    monkeypatch.setattr(requests, "parse_json", parse)
    responses = [(await server.send(create(server))).comparable() for server in servers]
    assert responses[0] == responses[1]
    assert responses[0][0] == 500
    assert len(bodies) == 2, "each server has read the body once"
    await until_logged(servers)
    assert servers[0].lines == servers[1].lines


async def test_an_error_leaves_no_cycle(servers: Servers) -> None:
    """A cycle would keep the body of the request until the next full collection."""
    server = servers[0]
    server.app.extensions["database"].write_batched = AsyncMock(side_effect=ValueError)

    async def send() -> None:
        assert (await server.send(create(server))).status == 500
        await asyncio.sleep(0.1)

    left = type_names(await garbage_of(send))
    assert not {"traceback", "frame", "Request", "ValueError"} & left


@pytest.mark.parametrize("is_deleted", [True, False])
async def test_a_user_who_is_gone_or_signed_out_is_refused(
    servers: Servers, is_deleted: bool
) -> None:
    responses = []
    for server in servers:
        member, admin = server.members[0], server.members[2]
        async with httpx.AsyncClient(base_url=server.site.url, timeout=60) as client:
            assert (await server.send(create(server))).status == 201
            if is_deleted:
                path = f"/admin/users/{member.id}"
                response = await client.delete(path, headers=admin.headers)
            else:
                response = await client.post("/api/auth/logout", headers=member.headers)
            assert response.status_code == 204
        responses.append((await server.send(create(server))).comparable())
    assert responses[0] == responses[1]
    assert responses[0][0] == 401


async def test_other_servers_use_the_fast_path_as_a_middleware(
    request: pytest.FixtureRequest, folder: Path
) -> None:
    """Servers that only call an ASGI application: here Hypercorn's own HTTP/1.1."""
    async with side_by_side(request, folder, "sqlite", http1_parser="h11") as servers:
        for server in servers:
            await enrol(server, 0)
        targets = [get("/api/books/1"), get("/api/books?per_page=5"), get("/health/live")]
        await settled(servers, *targets)
        for target in targets:
            responses = [(await server.send(target)).comparable() for server in servers]
            assert responses[0] == responses[1]
            assert responses[0][0] == 200
        assert [server.framework for server in servers] == [0, 3]


async def test_quart_serves_requests_below_a_root_path(site: Site) -> None:
    app = site.app
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
        is_looked_up = app.extensions["fast_path"].lookup(scope, lambda response: None)
        operation = app.extensions["direct"].find(scope)
        assert is_looked_up is (operation is not None) is (not root_path)


@pytest.mark.parametrize("endpoint", ["books.list_books", "books.create_book"])
async def test_custom_limits_are_decided_by_quart(
    site: Site, make: Factory, folder: Path, endpoint: str
) -> None:
    """A route with its own key function does not take the fast path."""

    async def shared_key() -> str:
        return "shared"

    member = await make.member()
    view = site.app.view_functions[endpoint]
    before = getattr(view, ATTRIBUTE, None)
    limit = rate_limit(3, timedelta(hours=1), key_function=shared_key)
    setattr(view, ATTRIBUTE, getattr(limit(lambda: None), ATTRIBUTE))
    is_read = endpoint == "books.list_books"
    body = None if is_read else {"title": "A Book", "author": "Somebody"}
    method, status = ("GET", 200) if is_read else ("POST", 201)
    try:
        async with visiting(settings_for(site.another_url, folder)) as client:
            statuses = [
                (
                    await client.request(method, "/api/books", json=body, headers=member.headers)
                ).status_code
                for _ in range(6)
            ]
    finally:
        if before is None:
            delattr(view, ATTRIBUTE)
        else:
            setattr(view, ATTRIBUTE, before)
    assert statuses == [status] * 3 + [429] * 3


@pytest.mark.parametrize("is_checked", [True, False])
async def test_a_remembered_page_of_an_older_generation_is_not_used(
    client: httpx.AsyncClient, make: Factory, monkeypatch: pytest.MonkeyPatch, is_checked: bool
) -> None:
    """Without a check, the page would outlive a write: then this test would fail."""
    owner = await make.member()
    book = await make.book(owner)
    for _ in range(3):
        response = await client.get("/api/books")
    assert response.headers["Cache-Status"] == "Octavo; hit"
    if not is_checked:
        monkeypatch.setattr(Lists, "hit", lambda *args: True)
    title = {"title": "New"}
    await client.patch(f"/api/books/{book.id}", json=title, headers=owner.headers)
    (shown,) = (await client.get("/api/books")).json()["items"]
    assert shown["title"] == ("New" if is_checked else book.title)


async def test_remembered_pages_are_bounded_in_number_size_and_age() -> None:
    listing: Any = None
    pages = RememberedLists(60)

    def page(size: int) -> RememberedList:
        ready = PreparedResponse("tag", b"", b"", b"x" * size)
        return RememberedList(Route("", "", None), ready, listing, ListResult((), 0, None, "hit"))

    for n in range(MAX_PAGES + 10):
        pages.put((b"%d" % n, b"", b"", None), page(1))
    assert pages.get((b"9", b"", b"", None)) is None
    assert pages.get((b"10", b"", b"", None)) is not None
    pages.put((b"large", b"", b"", None), page(MAX_BODY_BYTES + 1))
    assert pages.get((b"large", b"", b"", None)) is None
    expired = RememberedLists(-1)
    expired.put((b"", b"", b"", None), page(1))
    assert expired.get((b"", b"", b"", None)) is None
