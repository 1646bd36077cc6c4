"""Workers are killed between commit and response: a retry with the key creates no second book.

Real processes. With SOAK in the environment there are 200 kills on each database.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select

from service.db.database import Database
from service.models import Book, IdempotencyRecord
from tests.conftest import SECRET, cache_on, fresh_catalogue
from tests.factories import PASSWORD
from tests.killed import AFTER, BEFORE
from tests.test_cli import served

pytestmark = pytest.mark.alone

SOAK = bool(os.environ.get("SOAK"))
TIMEOUT = 60  # seconds: for any event, also on a busy machine
KILLS = {AFTER: 200, BEFORE: 20} if SOAK else {AFTER: 3, BEFORE: 1}  # on each database


class Client:
    """A client that repeats its requests until it gets a response."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._headers: dict[str, str] = {}

    async def insist(
        self, path: str, body: object, name: str = "", **headers: str
    ) -> httpx.Response:
        """Send a request until there is a response. name: the X-Request-ID of the first attempt."""
        tries = [name] if name else []
        async with asyncio.timeout(TIMEOUT):
            while True:
                own = {"X-Request-ID": tries.pop()} if tries else {}
                try:
                    async with httpx.AsyncClient(base_url=self._url, timeout=TIMEOUT) as client:
                        return await client.post(
                            path, json=body, headers=self._headers | headers | own
                        )
                except httpx.TransportError:
                    await asyncio.sleep(0.02)

    async def sign_in(self) -> None:
        """Create a user, and sign in."""
        account = {"username": "anna", "email": "anna@example.org", "password": PASSWORD}
        await self.insist("/api/auth/register", account)
        del account["username"]
        token = (await self.insist("/api/auth/login", account)).json()["token"]
        self._headers = {"Authorization": f"Bearer {token}"}

    async def create(self, key: str, killed: str) -> tuple[int, bool]:
        """Create a book; the worker of the first attempt dies. Return its id, and if replayed."""
        body = {"title": key, "author": "Somebody"}
        response = await self.insist("/api/books", body, killed, **{"Idempotency-Key": key})
        assert response.status_code == 201, response.text
        assert response.json()["title"] == key
        return response.json()["id"], "Idempotency-Replayed" in response.headers


@pytest.fixture(params=["sqlite", "postgresql"])
async def killed(
    request: pytest.FixtureRequest, folder: Path, tmp_path: Path
) -> AsyncIterator[tuple[Client, Database]]:
    """A service whose workers die: one on SQLite, two on PostgreSQL."""
    async with fresh_catalogue(request.param, request, folder) as database:
        environment = {
            "OCTAVO_ENV": "testing",
            "TESTING_DATABASE_URL": database.url.render_as_string(hide_password=False),
            "SECRET_KEY": SECRET,
            "RATELIMIT_ENABLED": "false",
            "PYTHONPATH": str(Path(__file__).parent.parent),
        }
        if request.param == "postgresql":
            redis_url = request.getfixturevalue("redis_url")
            await cache_on(database, redis_url)
            environment |= {"REDIS_URL": redis_url, "WORKERS": "2"}
        async with served(tmp_path, "--app", "tests.killed:create_app", **environment) as (
            _,
            url,
            _,
        ):
            client = Client(url)
            await client.sign_in()
            yield client, database


@pytest.mark.timeout(1_800 if SOAK else 180)
async def test_a_retry_after_a_kill_creates_exactly_one_book(
    killed: tuple[Client, Database],
) -> None:
    """A worker that dies before the commit leaves its key free; after it, the reply."""
    client, database = killed
    ids = set()
    for name, number in KILLS.items():
        for n in range(number):
            book_id, is_replayed = await client.create(f"{name}-{n}", name)
            assert is_replayed is (name == AFTER)
            ids.add(book_id)
    async with database.session() as db:
        rows = (await db.execute(select(Book.id))).scalars().all()
        keys = (await db.execute(select(IdempotencyRecord.key))).scalars().all()
    assert sorted(rows) == sorted(ids)
    assert len(ids) == len(keys) == sum(KILLS.values())
