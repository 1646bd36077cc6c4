"""Operations: an added route is on the fast path by its declarations."""

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
    operation_of,
    validate_querystring,
    validate_request,
)
from service.http.pagination import CachedQuery
from service.http.responses import cache_status
from service.http.schemas import Schema
from tests.conftest import Site, patient_client, serving, settings_for
from tests.factories import Factory

HIT = "Octavo; hit"


class Word(Schema):
    """The body of a request and of a response in this test."""

    word: str


def add_routes(app: Quart) -> None:
    """Add operations as a user of the package does, after the application was made."""

    @app.get("/api/shelf/<id:book_id>")
    @operation
    @document_status(200, None, "ETag", "Cache-Status")
    @validate_querystring(CachedQuery)
    @cached_item(books.BOOKS, lambda _: ResourceNotFoundError(), lambda body: b'{"book":%b}' % body)
    async def on_shelf(call: Call, book_id: int, query_args: CachedQuery) -> Reply:
        entry, status = await call.cache.items.read(books.BOOKS, book_id, bypass=query_args.nocache)
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
async def both_paths(site: Site, folder: Path) -> AsyncIterator[list[Any]]:
    """Serve with the fast path and without it. Give each client, and the paths that Quart saw."""
    seen_by: list[list[str]] = []

    def prepare(app: Quart) -> None:
        seen: list[str] = []
        add_routes(app)

        @app.before_request
        async def note() -> None:
            seen.append(request.path)

        app.extensions["additions"].accept()
        seen_by.append(seen)

    async with (
        serving(settings_for(site.another_url, folder), prepare) as fast_site,
        patient_client(fast_site) as fast,
        serving(settings_for(site.another_url, folder, fast_path=False), prepare) as slow_site,
        patient_client(slow_site) as ordinary,
    ):
        yield [*zip((fast, ordinary), seen_by, strict=True)]


def comparable(response: httpx.Response) -> Any:
    """Give a response without the parts that differ between two equal responses."""
    names = ("date", "x-request-id", "ratelimit", "ratelimit-remaining", "ratelimit-reset")
    headers = sorted(pair for pair in response.headers.multi_items() if pair[0] not in names)
    body = response.text.replace(response.headers["X-Request-ID"], "")
    return response.status_code, headers, body.replace(str(response.url.port), "")


@pytest.mark.parametrize("path", ["/api/shelf/{}", "/api/shelf"])
async def test_a_cached_response_does_not_need_the_framework(
    site: Site, make: Factory, folder: Path, path: str
) -> None:
    member = await make.member()
    book = await make.book(member)
    path = path.format(book.id)
    async with both_paths(site, folder) as paths:
        responses = []
        for client, seen in paths:
            for _ in range(3):
                await client.get(path)
            count = len(seen)
            responses.append(await client.get(path))
            assert responses[-1].headers["Cache-Status"] == HIT
            assert len(seen) - count == (client is paths[1][0])
            tag = responses[-1].headers["ETag"]
            known = await client.get(path, headers={"If-None-Match": tag})
            assert (known.status_code, known.content) == (304, b"")
            # A write is seen at once.
            change = {"title": f"Changed {client is paths[0][0]}"}
            await client.patch(f"/api/books/{book.id}", json=change, headers=member.headers)
            assert change["title"] in (await client.get(path)).text
        assert comparable(responses[0])[0] == comparable(responses[1])[0] == 200


async def test_every_response_is_the_same_on_both_paths(
    site: Site, make: Factory, folder: Path
) -> None:
    admin, member = await make.admin(), await make.member()
    async with both_paths(site, folder) as paths:
        (fast, seen), (ordinary, _) = paths
        for word, headers, status in (
            ("new", admin.headers, 201),
            ("taken", admin.headers, 409),
            ("defect", admin.headers, 500),
            (1, admin.headers, 400),
            ("new", member.headers, 403),
            ("new", {}, 401),
        ):
            given, headers = {"word": word}, {**headers, "Host": "books.example.org"}
            responses = [
                await client.post(f"/api/words{query}", json=given, headers=headers)
                for client in (fast, ordinary)
                for query in ("", "?x=1")
            ]
            assert [response.status_code for response in responses[::2]] == [status] * 2
            assert comparable(responses[0]) == comparable(responses[2])
            assert comparable(responses[1]) == comparable(responses[3])
        for path in ("/api/shelf/7000", "/api/shelf/7000?x=1", "/api/shelf?page=1"):
            for _ in range(3):  # the last response is a cached 404
                pair = [comparable(await client.get(path)) for client in (fast, ordinary)]
            assert pair[0] == pair[1]
            assert pair[0][0] in {400, 404}
        # Requests whose body arrives after the head are handled by the framework.
        assert {*seen} <= {"/api/words"}


async def test_a_response_to_a_user_is_not_cached(site: Site, make: Factory, folder: Path) -> None:
    members = [await make.member() for _ in range(2)]
    async with both_paths(site, folder) as paths:
        client = paths[0][0]
        for _ in range(3):
            for member in members:
                response = await client.get("/api/own-shelf", headers=member.headers)
                assert response.json() == {"of": member.username}
        assert (await client.get("/api/own-shelf")).status_code == 401


async def test_an_operation_runs_without_the_framework(site: Site) -> None:
    """A scope and a body are enough, as in a background task."""

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
    app = Quart(__name__)
    app.add_url_rule("/", "echo", echo)
    declared = operation_of(app, "echo")
    assert declared is not None
    response = await declared.run(call, {})
    assert (response.status, response.body) == (200, b'{"word":"a"}')
