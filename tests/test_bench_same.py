"""A server that does less than Octavo is detected before it is measured: on real servers."""

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from quart import Quart, Response, request
from sqlalchemy import make_url

from bench.same import ResponseChecker, Responses, UnequalWorkError, save
from bench.stage import Facts
from bench.work import KINDS
from service.cache import Cache
from tests.conftest import Site, fresh_catalogue, serving, settings_for
from tests.factories import Factory

Prepare = Callable[[Quart], None]


async def cached(site: Site) -> Site:
    """Wait until the cache is on."""
    cache: Cache = site.app.extensions["cache"]
    async with asyncio.timeout(30):
        while cache.lease.lease() is None:
            await asyncio.sleep(0.01)
    return site


@dataclass(frozen=True)
class Reference:
    """Octavo's responses, and a copy of its database from before they were requested."""

    database: Path
    facts: Facts
    responses: dict[str, Any]


@pytest.fixture(scope="module")
async def reference(
    request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Reference:
    """Serve Octavo with books as in the benchmark, behind a proxy, and save its responses."""
    async with fresh_catalogue("sqlite", request, folder) as database:
        url = database.url.render_as_string(hide_password=False)
    async with serving(settings_for(url, folder, trusted_proxy_hops=1)) as site:
        make = Factory(site.app)
        member = await make.member()
        other = await make.member()
        books = [await make.book(member, genre="Fiction", price=25.0 + n / 100) for n in range(60)]
        ids = tuple(book.id for book in books[:5])
        owned, searches = (books[9].id,), ("a", "b")
        tokens = (member.token, other.token)
        facts = Facts(len(books), ids, books[30].id, tokens, owned, searches)
        copy = make_url(site.another_url).database
        assert copy is not None
        await cached(site)
        responses = await reference_of(site.url, facts, tmp_path_factory.mktemp("same") / "saved")
    return Reference(Path(copy), facts, responses)


async def reference_of(url: str, facts: Facts, path: Path) -> dict[str, Any]:
    """Save the responses of a server."""

    def ask() -> Responses:
        examiner = ResponseChecker("Octavo", url, facts)
        responses = examiner.responses(KINDS)
        examiner.close()
        return responses

    return save(await asyncio.to_thread(ask), path)


async def examine(url: str, facts: Facts, reference: dict[str, Any]) -> None:
    """Hold a server to what was kept."""
    examiner = ResponseChecker("the other", url, facts)
    try:
        await asyncio.to_thread(examiner.compare, reference, KINDS)
    finally:
        examiner.close()


def without(name: str) -> Prepare:
    """Remove a header from every response."""

    def prepare(app: Quart) -> None:
        @app.after_request
        async def leave_out(response: Response) -> Response:
            response.headers.pop(name, None)
            return response

    return prepare


def deaf_to(name: bytes) -> Prepare:
    """Remove a header from every request."""

    def prepare(app: Quart) -> None:
        inner = app.asgi_app

        async def without_header(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                headers = [pair for pair in scope["headers"] if pair[0] != name]
                scope = {**scope, "headers": headers}
            await inner(scope, receive, send)

        app.asgi_app = without_header  # type: ignore[method-assign]  # Quart's extension point

    return prepare


def with_another_price(app: Quart) -> None:
    """Change every price."""

    @app.after_request
    async def spoil(response: Response) -> Response:
        body = await response.get_data(as_text=False)
        if request.method == "GET" and response.status_code == 200:
            response.set_data(body.replace(b'"price":25', b'"price":24'))
        return response


@pytest.mark.parametrize(
    ("changed", "prepare", "message"),
    [
        ({}, None, None),
        ({"ratelimit_enabled": False}, None, "No rate limit header"),
        ({"trusted_proxy_hops": 0}, None, "another client has its own limit"),
        ({"cache_pages": "ttl"}, None, "a new book is on the page at once"),
        ({"secret_key": "another secret, as long as it has to be"}, None, r"\{\} is rejected"),
        ({"compression": False}, None, "a page is compressed"),
        ({}, deaf_to(b"if-match"), "is 412, not 200"),
        ({}, deaf_to(b"idempotency-key"), "a retry has the response"),
        # Hooks of the framework's.
        ({"fast_path": False}, without("ETag"), "has an ETag"),
        ({"fast_path": False}, without("Cache-Control"), "is revalidated"),
        ({"fast_path": False}, with_another_price, "item returns"),
    ],
)
async def test_a_server_that_does_less_is_detected(
    changed: dict[str, Any],
    prepare: Prepare | None,
    message: str | None,
    reference: Reference,
    folder: Path,
    tmp_path: Path,
) -> None:
    copy = shutil.copy(reference.database, tmp_path / "books.db")
    values = {"trusted_proxy_hops": 1} | changed
    settings = settings_for(f"sqlite:///{copy}", folder, **values)
    async with serving(settings, prepare) as other:
        await cached(other)
        if message is None:
            await examine(other.url, reference.facts, reference.responses)
            return
        with pytest.raises(UnequalWorkError, match=message):
            await examine(other.url, reference.facts, reference.responses)
