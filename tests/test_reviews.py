"""A resource that is added from outside is cached, limited, documented, and on the fast path."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from quart import Quart, request

from tests.conformance import Watched
from tests.conftest import Site, fresh_catalogue, patient_client, serving, settings_for
from tests.examples.added import Reviews
from tests.factories import Factory, Member
from tests.test_cli import octavo, served

HIT, MISS, BYPASS = "Octavo; hit", "Octavo; fwd=miss", "Octavo; fwd=bypass"
FOLDER = Path(__file__).parent / "examples" / "reviews"


@dataclass
class Shop:
    """An application with reviews. seen: the paths of requests that Quart has dispatched."""

    site: Site
    client: httpx.AsyncClient
    make: Factory
    seen: list[str]

    async def review(self, book_id: int, member: Member, stars: int = 5) -> dict[str, Any]:
        """Write a review."""
        given = {"stars": stars, "text": "Well told."}
        path = f"/api/books/{book_id}/reviews"
        response = await self.client.post(path, json=given, headers=member.headers)
        assert response.status_code == 201
        review: dict[str, Any] = response.json()
        return review

    async def status(self, path: str) -> str:
        """Send a GET, and return the Cache-Status of the response."""
        status: str = (await self.client.get(path)).headers["Cache-Status"]
        return status


@pytest.fixture
async def shop(site: Site, folder: Path) -> AsyncIterator[Shop]:
    """An application to which the example was added."""
    seen: list[str] = []

    def prepare(app: Quart) -> None:
        app.register_blueprint(reviews.blueprint)

        @app.before_request
        async def note() -> None:
            seen.append(request.path)

        app.asgi_app = Watched(app)  # type: ignore[method-assign]  # Quart's way in
        app.extensions["additions"].accept()

    settings = settings_for(site.another_url, folder)
    with Reviews.added() as reviews:
        async with serving(settings, prepare) as served, patient_client(served) as client:
            await reviews.create_table(served.database)
            try:
                yield Shop(served, client, Factory(served.app), seen)
            finally:
                await reviews.drop_table(served.database)


async def test_reviews_are_cached_and_never_stale(shop: Shop) -> None:
    author, reader = await shop.make.member(), await shop.make.member()
    book, other = await shop.make.book(author), await shop.make.book(author)
    path = f"/api/books/{book.id}/reviews"
    assert [await shop.status(path) for _ in range(2)] == [MISS, HIT]
    review = await shop.review(book.id, reader)
    response = await shop.client.get(path)
    assert (response.headers["Cache-Status"], response.json()["items"]) == (MISS, [review])
    assert await shop.status(path) == HIT
    assert await shop.status(f"{path}?nocache=1") == BYPASS
    assert (await shop.client.get(f"/api/books/{other.id}/reviews")).json()["total"] == 0
    removed = await shop.client.delete(f"{path}/{review['id']}", headers=reader.headers)
    assert removed.status_code == 204
    assert (await shop.client.get(path)).json()["total"] == 0


async def test_a_review_ends_no_page_of_books(shop: Shop) -> None:
    member = await shop.make.member()
    book = await shop.make.book(member)
    assert [await shop.status("/api/books") for _ in range(2)] == [MISS, HIT]
    await shop.review(book.id, member)
    assert await shop.status("/api/books") == HIT


@pytest.mark.parametrize("has_reviews", [True, False])
async def test_reviews_that_the_database_deletes_with_a_book_are_not_found(
    shop: Shop, has_reviews: bool
) -> None:
    member = await shop.make.member()
    book = await shop.make.book(member)
    path = f"/api/books/{book.id}/reviews"
    if has_reviews:
        await shop.review(book.id, member)
    for _ in range(2):
        assert (await shop.client.get(path)).json()["total"] == has_reviews
    await shop.client.delete(f"/api/books/{book.id}", headers=member.headers)
    assert (await shop.client.get(path)).status_code == 404


async def test_reviews_that_the_database_deletes_with_a_user_are_not_found(shop: Shop) -> None:
    """Their reviews of others' books, and others' reviews of their books."""
    admin, gone, other = [await shop.make.admin(), *[await shop.make.member() for _ in range(2)]]
    theirs, others = await shop.make.book(gone), await shop.make.book(other)
    await shop.review(theirs.id, other)
    await shop.review(others.id, gone)
    paths = [f"/api/books/{book.id}/reviews" for book in (theirs, others)]
    for path in paths * 2:
        assert (await shop.client.get(path)).json()["total"] == 1
    response = await shop.client.delete(f"/admin/users/{gone.id}", headers=admin.headers)
    assert response.status_code == 204
    assert (await shop.client.get(paths[0])).status_code == 404
    assert (await shop.client.get(paths[1])).json()["total"] == 0


async def test_requests_of_reviews_take_the_fast_path(shop: Shop) -> None:
    member = await shop.make.member()
    book = await shop.make.book(member)
    path = f"/api/books/{book.id}/reviews"
    review = await shop.review(book.id, member)
    for _ in range(3):
        await shop.client.get(path)
    await shop.client.delete(f"{path}/{review['id']}", headers=member.headers)
    assert (await shop.client.get(f"{path}?x=1")).status_code == 400
    assert (await shop.client.get(path, headers={"Authorization": "x"})).status_code == 401
    assert shop.seen == []


@pytest.mark.parametrize(
    ("role", "created", "deleted"),
    [("anonymous", 401, 401), ("author", 201, 204), ("other", 201, 403), ("admin", 201, 204)],
)
async def test_rights_depend_on_the_role(shop: Shop, role: str, created: int, deleted: int) -> None:
    author, other, admin = [await shop.make.member() for _ in range(2)] + [await shop.make.admin()]
    headers: dict[str, str] = {
        "anonymous": {}, "author": author.headers, "other": other.headers,
        "admin": admin.headers,
    }[role]  # fmt: skip
    book = await shop.make.book(other)
    path = f"/api/books/{book.id}/reviews"
    review = await shop.review(book.id, author)
    response = await shop.client.post(path, json={"stars": 1, "text": ""}, headers=headers)
    assert response.status_code == created
    response = await shop.client.delete(f"{path}/{review['id']}", headers=headers)
    assert response.status_code == deleted


async def test_invalid_input_is_refused(shop: Shop) -> None:
    member = await shop.make.member()
    book = await shop.make.book(member)
    path = f"/api/books/{book.id}/reviews"
    for given, field in (
        ({"stars": 6, "text": "a"}, "stars"), ({"stars": 1}, "text"),
        ({"stars": 1, "text": "a", "book_id": 7}, "book_id"),
    ):  # fmt: skip
        response = await shop.client.post(path, json=given, headers=member.headers)
        assert (response.status_code, [*response.json()["messages"]]) == (400, [field])
    good = {"stars": 1, "text": "a"}
    missing = "/api/books/7000/reviews"
    response = await shop.client.post(missing, json=good, headers=member.headers)
    assert response.status_code == 404
    assert (await shop.client.get(missing)).status_code == 404


async def test_reviews_are_documented_and_limited(shop: Shop) -> None:
    document = (await shop.client.get("/openapi.json")).json()
    operations = document["paths"]["/api/books/{book_id}/reviews"]
    assert {"get", "head", "post"} <= set(operations)
    assert "Review" in document["components"]["schemas"]
    member = await shop.make.member()
    book = await shop.make.book(member)
    response = await shop.client.get(f"/api/books/{book.id}/reviews", headers=member.headers)
    assert response.headers["RateLimit-Limit"] == "100"
    assert response.headers["RateLimit-Remaining"] == "99"


def test_the_example_is_small() -> None:
    files = FOLDER.glob("*.py")
    assert sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files) <= 250


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
async def test_an_extended_application_is_served_by_the_command(
    backend: str, request: pytest.FixtureRequest, folder: Path, tmp_path: Path
) -> None:
    """With its workers, and with the fast path: its routes are no additions that switch it off."""
    factory = "tests.examples.catalogue:create_app"
    with Reviews.added() as reviews:
        async with fresh_catalogue(backend, request, folder) as database:
            await reviews.create_table(database)
            environment = {
                "OCTAVO_ENV": "testing",
                "TESTING_DATABASE_URL": database.url.render_as_string(hide_password=False),
                "PYTHONPATH": str(FOLDER.parents[2]),
            }
            async with (
                served(tmp_path, "--app", factory, **environment) as (_, url, _),
                httpx.AsyncClient(base_url=url, timeout=30) as client,
            ):
                assert (await client.get("/api/books/1/reviews")).status_code == 404
                document = (await client.get("/openapi.json")).json()
                assert "/api/books/{book_id}/reviews" in document["paths"]
                assert (await client.get("/health")).json()["fast_path"] == "on"


@pytest.mark.parametrize("factory", ["no.such.module:create_app", "service.app:nothing", "service"])
async def test_an_application_that_cannot_be_loaded_is_named(tmp_path: Path, factory: str) -> None:
    code, _, err = await octavo(tmp_path, "serve", "--workers", "0", "--app", factory)
    assert code == 2
    assert "write module:function" in err
