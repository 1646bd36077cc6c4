"""A database without tables, or without a column: not ready, which is no defect of the service."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from service.db.database import Database
from tests.conftest import fresh_catalogue, fresh_database, serving, settings_for
from tests.factories import PASSWORD, Factory

BACKENDS = ["sqlite", "postgresql"]
ACCOUNT = {"username": "anna", "email": "anna@example.org", "password": PASSWORD}
REQUESTS: list[tuple[str, str, object]] = [
    ("GET", "/api/books", None),
    ("GET", "/api/books?limit=5", None),
    ("GET", "/api/books?nocache=1", None),
    ("GET", "/api/books/1", None),
    ("GET", "/api/users/1", None),
    ("GET", "/api/users/1/books", None),
    ("POST", "/api/auth/register", ACCOUNT),
    ("POST", "/api/auth/login", {"email": ACCOUNT["email"], "password": PASSWORD}),
    ("POST", "/api/auth/refresh", {"refresh_token": "unknown"}),
]


def assert_not_ready(response: httpx.Response) -> None:
    """Check that a response tells the client to retry later."""
    assert response.status_code == 503, response.request.url
    assert response.json()["error"] == "Service Unavailable"
    assert int(response.headers["Retry-After"]) > 0
    assert "table" not in response.text
    assert "relation" not in response.text


@pytest.fixture(params=BACKENDS)
async def empty(
    request: pytest.FixtureRequest, folder: Path, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application whose database has no tables."""
    async with fresh_database(request.param, request, folder) as url:
        settings = settings_for(url, folder, redis_url=None, ratelimit_storage_url="memory://")
        async with (
            serving(settings) as site,
            httpx.AsyncClient(base_url=site.url, timeout=60) as client,
        ):
            yield client


async def test_a_database_without_tables_is_not_ready(empty: httpx.AsyncClient) -> None:
    for method, path, body in REQUESTS:
        assert_not_ready(await empty.request(method, path, json=body))
    ready = await empty.get("/health/ready")
    assert ready.status_code == 503
    assert (await empty.get("/health/live")).status_code == 200


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_database_without_a_column_is_not_ready(
    request: pytest.FixtureRequest, folder: Path, backend: str
) -> None:
    """The release is newer than the database: rows are read with a column that is not there."""
    async with fresh_catalogue(backend, request, folder) as database:
        url = database.url.render_as_string(hide_password=False)
        settings = settings_for(url, folder, redis_url=None, ratelimit_storage_url="memory://")
        async with (
            serving(settings) as site,
            httpx.AsyncClient(base_url=site.url, timeout=60) as client,
        ):
            make = Factory(site.app)
            member = await make.member()
            book = await make.book(member)
            await rename_column(database, "books", "author_key", "author_key_later")
            assert_not_ready(await client.get("/api/books?author=anna"))
            body = {"author": "B"}
            path = f"/api/books/{book.id}"
            assert_not_ready(await client.patch(path, json=body, headers=member.headers))
            assert (await client.get("/api/profile", headers=member.headers)).status_code == 200
            await rename_column(database, "books", "author_key_later", "author_key")
            changed = await client.patch(path, json=body, headers=member.headers)
            assert (changed.status_code, changed.json()["author"]) == (200, "B")


async def rename_column(database: Database, table: str, old: str, new: str) -> None:
    """Rename a column, as a migration does."""
    async with database.writer.begin() as connection:
        await connection.execute(text(f"ALTER TABLE {table} RENAME COLUMN {old} TO {new}"))
