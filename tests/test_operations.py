"""Operations: a route that somebody adds is on the fast path by what it declares."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from quart import Quart, request

from service.books import service as books
from service.books.schemas import BookFilters
from service.db.list_queries import Page
from service.errors import ConflictError, ResourceNotFoundError
from service.http.auth import CurrentUser, admin_required, token_required
from service.http.call import Call
from service.http.documentation import document_status
from service.http.operations import (
    Reply,
    cached_item,
    operation,
    validate_querystring,
    validate_request,
)
from service.http.pagination import CachedQuery
from service.http.responses import cache_status
from service.http.schemas import Schema
from tests.conftest import Site, settings_for, visiting
from tests.factories import Factory

HIT = "Octavo; hit"


class Word(Schema):
    """What a route of this test takes and gives."""

    word: str


def add_routes(app: Quart) -> None:
    """Add operations as somebody else does, after the application was made."""

    @app.get("/api/shelf/<id:book_id>")
    @operation
    @document_status(200, None, "ETag", "Cache-Status")
    @validate_querystring(CachedQuery)
    @cached_item(books.BOOKS, lambda _: ResourceNotFoundError(), lambda body: b'{"book":%b}' % body)
    async def on_shelf(call: Call, book_id: int, query_args: CachedQuery) -> Reply:
        entry, status = await call.cache.items.read(books.BOOKS, book_id, past=query_args.nocache)
        if not entry.body:
            raise ResourceNotFoundError(headers=cache_status(call.scope, status))
        return Reply(b'{"book":%b}' % entry.body, is_public=True, cached=status)

    @app.get("/api/shelf")
    @operation
    @document_status(200)
    async def shelf(call: Call) -> Reply:
        listing = books.list_books(BookFilters(), "id", Page(1, 5))
        rows = await call.cache.lists.read(listing)
        return Reply.of_list(b"[%b]" % b",".join(rows.bodies), listing, rows)

    @app.get("/api/own-shelf")
    @operation
    @document_status(200)
    @token_required
    async def own_shelf(call: Call, current_user: CurrentUser) -> Reply:
        listing = books.list_books(BookFilters(), "id", Page(1, 5))
        rows = await call.cache.lists.read(listing)
        return Reply.of_list(b'{"of":"%b"}' % current_user.username.encode(), listing, rows)

    @app.post("/api/words")
    @operation
    @document_status(201)
    @admin_required
    @validate_request(Word)
    async def add_word(call: Call, data: Word, current_user: CurrentUser) -> Reply:
        if data.word == "taken":
            raise ConflictError("There is such a word")
        if data.word == "defect":
            raise ValueError("a defect")
        return Reply(data, 201, {"Location": f"{call.base}/api/words/{data.word}"}, is_tagged=True)


@asynccontextmanager
async def both_ways(site: Site, folder: Path) -> AsyncIterator[list[Any]]:
    """Serve with the fast path and without it: of each a client, and what the framework saw."""
    ways: list[Any] = []

    def prepare(app: Quart) -> None:
        seen: list[str] = []
        add_routes(app)

        @app.before_request
        async def note() -> None:
            seen.append(request.path)

        app.extensions["additions"].accept()
        ways.append(seen)

    async with (
        visiting(settings_for(site.another_url, folder), prepare) as fast,
        visiting(settings_for(site.another_url, folder, fast_path=False), prepare) as ordinary,
    ):
        yield [*zip((fast, ordinary), ways, strict=True)]


def shown(answer: httpx.Response) -> Any:
    """Leave out what is of one answer alone."""
    names = ("date", "x-request-id", "ratelimit", "ratelimit-remaining", "ratelimit-reset")
    headers = sorted(pair for pair in answer.headers.multi_items() if pair[0] not in names)
    body = answer.text.replace(answer.headers["X-Request-ID"], "")
    return answer.status_code, headers, body.replace(str(answer.url.port), "")


@pytest.mark.parametrize("path", ["/api/shelf/{}", "/api/shelf"])
async def test_what_is_cached_is_answered_without_the_framework(
    site: Site, make: Factory, folder: Path, path: str
) -> None:
    member = await make.member()
    book = await make.book(member)
    path = path.format(book.id)
    async with both_ways(site, folder) as ways:
        document_status = []
        for client, seen in ways:
            for _ in range(3):
                await client.get(path)
                await asyncio.sleep(0.05)  # what follows an answer is not waited for
            count = len(seen)
            document_status.append(await client.get(path))
            assert document_status[-1].headers["Cache-Status"] == HIT
            assert len(seen) - count == (client is ways[1][0])
            tag = document_status[-1].headers["ETag"]
            known = await client.get(path, headers={"If-None-Match": tag})
            assert (known.status_code, known.content) == (304, b"")
            # A write is seen at once.
            change = {"title": f"Changed {seen is ways[0][1]}"}
            await client.patch(f"/api/books/{book.id}", json=change, headers=member.headers)
            assert change["title"] in (await client.get(path)).text
        assert shown(document_status[0])[0] == shown(document_status[1])[0] == 200


async def test_every_outcome_is_the_same_on_both_ways(
    site: Site, make: Factory, folder: Path
) -> None:
    admin, member = await make.admin(), await make.member()
    async with both_ways(site, folder) as ways:
        (fast, seen), (ordinary, _) = ways
        for word, headers, status in (
            ("new", admin.headers, 201),
            ("taken", admin.headers, 409),
            ("defect", admin.headers, 500),
            (1, admin.headers, 400),
            ("new", member.headers, 403),
            ("new", {}, 401),
        ):
            given, headers = {"word": word}, {**headers, "Host": "books.example.org"}
            document_status = [
                await client.post(f"/api/words{query}", json=given, headers=headers)
                for client in (fast, ordinary)
                for query in ("", "?x=1")
            ]
            assert [answer.status_code for answer in document_status[::2]] == [status] * 2
            assert shown(document_status[0]) == shown(document_status[2])
            assert shown(document_status[1]) == shown(document_status[3])
        for path in ("/api/shelf/7000", "/api/shelf/7000?x=1", "/api/shelf?page=1"):
            for _ in range(3):  # then it is cached that there is no such book
                pair = [shown(await client.get(path)) for client in (fast, ordinary)]
                await asyncio.sleep(0.05)
            assert pair[0] == pair[1]
            assert pair[0][0] in {400, 404}
        # A body that comes after its head is waited for within the framework.
        assert {*seen} <= {"/api/words"}


async def test_the_answer_to_a_user_is_kept_for_nobody(
    site: Site, make: Factory, folder: Path
) -> None:
    members = [await make.member() for _ in range(2)]
    async with both_ways(site, folder) as ways:
        client = ways[0][0]
        for _ in range(3):
            for member in members:
                answer = await client.get("/api/own-shelf", headers=member.headers)
                assert answer.json() == {"of": member.username}
        assert (await client.get("/api/own-shelf")).status_code == 401


async def test_a_handler_needs_no_framework(site: Site) -> None:
    """It is called with a scope and a body, as a background task would."""

    async def read_body() -> bytes:
        return b'{"word": "a"}'

    @operation
    @validate_request(Word)
    async def echo(call: Call, data: Word) -> Reply:
        return Reply(data)

    scope: Any = {
        "method": "POST", "path": "/", "query_string": b"", "scheme": "http",
        "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip
    call = Call(site.app.extensions, scope, "/", read_body)
    response = await echo._octavo_operation.run(call, {})  # type: ignore[attr-defined]  # set by it
    assert (response.status, response.body) == (200, b'{"word":"a"}')
