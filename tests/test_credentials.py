"""Tokens that were good: whoever lost their rights has none at the limits either, on every way."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import redis
from quart import Quart
from quart import request as quart_request
from quart_rate_limiter import rate_limit
from sqlalchemy import text

from service.limits import identity as callers_module
from service.limits.identity import MOST_REVOKED
from tests.conftest import Site, serving, settings_for
from tests.factories import Factory
from tests.http_client import assert_problem

INVALID = 'Bearer error="invalid_token"'
WAYS: dict[str, dict[str, Any]] = {
    "warm": {},
    "framework": {"fast_path": False},
    "another server": {"http1_parser": "h11"},  # asks as HTTP/2 does: over ASGI
    "without limits": {"ratelimit_enabled": False},
    "without a cache of items": {"cache_item_seconds": 0},
}


@pytest.fixture(params=["memory", "shared"])
def storage(request: pytest.FixtureRequest) -> str | None:
    """Where the limits are kept: in the process, or in the Redis of the cache, if there is one."""
    if request.param == "memory":
        return "memory://"
    server: Any = redis.Redis.from_url(request.getfixturevalue("redis_url"))
    for key in server.scan_iter("octavo:limit:*"):
        server.delete(key)
    return None


@asynccontextmanager
async def served(
    site: Site, folder: Path, *, storage: str | None = "memory://", **changed: Any
) -> AsyncIterator[tuple[Factory, httpx.AsyncClient]]:
    """Serve the catalogue with other settings: a maker of rows in it, and a client."""
    settings = settings_for(site.another_url, folder, ratelimit_storage_url=storage, **changed)
    async with (
        serving(settings) as other,
        httpx.AsyncClient(base_url=other.url, timeout=30) as client,
    ):
        yield Factory(other.app), client


@pytest.mark.parametrize("way", WAYS)
async def test_a_demoted_user_is_unknown_on_public_routes_too(
    site: Site, folder: Path, storage: str | None, way: str
) -> None:
    changed = {"ratelimit_service": "100000 per minute", "ratelimit_books_item": "30 per minute"}
    async with served(site, folder, storage=storage, **changed, **WAYS[way]) as (make, client):
        admin, member = await make.admin(), await make.member(tier="service")
        book = await make.book(admin)
        for path in (f"/api/books/{book.id}", "/api/books", "/none"):
            for _ in range(3):
                answer = await client.get(path, headers=member.headers)
                assert answer.status_code == (404 if path == "/none" else 200)
                if way != "without limits" and path != "/none":
                    assert answer.headers["RateLimit-Limit"] == "100000"
                await asyncio.sleep(0.02)  # what follows an answer: the cache is filled
        path = f"/admin/users/{member.id}"
        answer = await client.patch(path, json={"tier": "free"}, headers=admin.headers)
        assert answer.status_code == 200
        for n in range(6):
            path = (f"/api/books/{book.id}", "/api/books", "/none")[n % 3]
            answer = await client.get(path, headers=member.headers)
            assert_problem(answer, 401, "Invalid or expired token")
            assert answer.headers["WWW-Authenticate"] == INVALID
        fresh = await make.signed_in(member)
        answer = await client.get(f"/api/books/{book.id}", headers=fresh.headers)
        assert answer.status_code == 200
        if way != "without limits":
            assert answer.headers["RateLimit-Limit"] == "30", "the tier is the database's"
        answer = await client.delete(f"/admin/users/{member.id}", headers=admin.headers)
        assert answer.status_code == 204
        for _ in range(2):
            answer = await client.get(f"/api/books/{book.id}", headers=fresh.headers)
            assert_problem(answer, 401, "User not found")
            assert answer.headers["WWW-Authenticate"] == INVALID


async def test_the_address_pays_for_a_revoked_token(
    site: Site, folder: Path, storage: str | None
) -> None:
    rate = {"ratelimit_books_list": "10 per hour"}
    async with served(site, folder, storage=storage, **rate) as (make, client):
        member, other = await make.member(), await make.member()
        out = await client.post("/api/auth/logout", headers=(await make.signed_in(member)).headers)
        assert out.status_code == 204
        fresh = await make.signed_in(member)
        answers = await asyncio.gather(
            *(client.get("/api/books", headers=member.headers) for _ in range(25))
        )
        assert sorted(answer.status_code for answer in answers) == [401] * 10 + [429] * 15
        answer = await client.get("/api/books", headers=fresh.headers)
        assert answer.headers["RateLimit-Remaining"] == "9", "the user's units are their own"
        assert (await client.get("/api/books")).status_code == 429, "those of the address are gone"
        answer = await client.get("/api/books", headers=other.headers)
        assert answer.headers["RateLimit-Remaining"] == "9"


async def test_a_revoked_token_finds_its_users_limit_full(
    site: Site, folder: Path, storage: str | None
) -> None:
    rate = {"ratelimit_books_list": "3 per hour"}
    async with served(site, folder, storage=storage, **rate) as (make, client):
        member = await make.member()
        seen = [
            (await client.get("/api/books", headers=member.headers)).status_code for _ in range(5)
        ]
        assert seen == [200] * 3 + [429] * 2
        await asyncio.sleep(0.05)
        out = await client.post("/api/auth/logout", headers=member.headers)
        assert out.status_code == 204
        await client.get("/api/profile", headers=(await make.signed_in(member)).headers)
        await asyncio.sleep(0.05)  # the account is in the cache again
        seen = [
            (await client.get("/api/books", headers=member.headers)).status_code for _ in range(5)
        ]
        assert seen == [401] * 3 + [429] * 2, "for the address"


async def test_custom_limits_are_charged_for_tokens_that_are_not_valid(
    site: Site, folder: Path
) -> None:
    """They are decided within the request, and so is the refusal."""

    async def by_language() -> str:
        return quart_request.headers.get("Accept-Language", "")

    def prepare(app: Quart) -> None:
        @app.get("/own-key")
        @rate_limit(2, timedelta(hours=1), key_function=by_language)
        async def own_key() -> str:
            return ""

    settings = settings_for(site.another_url, folder)
    async with (
        serving(settings, prepare) as other,
        httpx.AsyncClient(base_url=other.url, timeout=30) as client,
    ):
        make = Factory(other.app)
        good, revoked = await make.member(), await make.member()
        await client.post("/api/auth/logout", headers=revoked.headers)
        for language, token, statuses in (
            ("de", good.token, [200, 200, 429]),
            ("fr", "x", [401, 401, 429]),
            ("it", revoked.token, [401, 401, 429]),
        ):
            headers = {"Accept-Language": language, "Authorization": token}
            seen = [(await client.get("/own-key", headers=headers)).status_code for _ in range(3)]
            assert seen == statuses


async def test_a_tier_that_was_changed_by_hand_counts_as_well(
    site: Site, client: httpx.AsyncClient, make: Factory
) -> None:
    member = await make.member(tier="service")
    assert (await client.get("/api/books", headers=member.headers)).status_code == 200
    async with site.database.writer.begin() as connection:
        await connection.execute(
            text("UPDATE users SET tier = 'free' WHERE id = :id"), {"id": member.id}
        )
    await site.app.extensions["cache"].clear()
    for path in ("/api/books", "/api/profile"):
        answer = await client.get(path, headers=member.headers)
        assert_problem(answer, 401, "Invalid or expired token")


async def test_the_token_that_changed_a_password_goes_on(
    client: httpx.AsyncClient, make: Factory
) -> None:
    member = await make.member()
    other = await make.signed_in(member)
    change = {"password": "another password", "current_password": member.password}
    answer = await client.patch("/api/profile", json=change, headers=member.headers)
    assert answer.status_code == 200
    for _ in range(3):
        assert (await client.get("/api/books", headers=member.headers)).status_code == 200
        assert (await client.get("/api/books", headers=other.headers)).status_code == 401


@pytest.mark.parametrize("way", ["warm", "framework"])
async def test_an_account_that_cannot_be_read_is_no_defect(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    async with served(site, folder, **WAYS[way]) as (make, client):
        member = await make.member()
        items = make.app.extensions["cache"].items

        async def fail(*arguments: Any) -> None:
            raise TimeoutError

        monkeypatch.setattr(items, "read", fail)
        shop = {"Origin": "https://shop.example.org"}
        answer = await client.get("/api/books", headers=member.headers | shop)
        assert_problem(answer, 503, "Service Unavailable")
        assert answer.headers["Retry-After"] == "1"
        assert "Access-Control-Allow-Origin" in answer.headers
        assert "RateLimit" in answer.headers
        assert (await client.get("/api/books")).status_code == 200, "nobody's account is read"


async def test_revoked_tokens_are_remembered_for_a_while_and_bounded(
    site: Site, client: httpx.AsyncClient, make: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    callers, cache = site.app.extensions["limiter"].identities, site.app.extensions["cache"]
    member, reads, read = await make.member(), 0, cache.items.read
    await client.post("/api/auth/logout", headers=member.headers)
    await cache.clear()

    async def count(*arguments: Any) -> Any:
        nonlocal reads
        reads += 1
        return await read(*arguments)

    monkeypatch.setattr(cache.items, "read", count)
    for _ in range(5):
        assert (await client.get("/none", headers=member.headers)).status_code == 401
    assert reads == 1, "the account is read once"
    monkeypatch.setattr(callers_module, "REVOKED_SECONDS", -1.0)
    callers._revoked.clear()
    callers._revoked |= dict.fromkeys(range(MOST_REVOKED), (0.0, ""))
    await cache.clear()
    for _ in range(5):
        assert (await client.get("/none", headers=member.headers)).status_code == 401
    assert reads > 1, "the memory ends"
    assert len(callers._revoked) == MOST_REVOKED
    callers._revoked.clear()


async def test_metrics_go_on_with_a_token_of_their_own(site: Site, folder: Path) -> None:
    async with served(site, folder, metrics_token="of the monitor") as (_, client):
        headers = {"Authorization": "Bearer of the monitor"}
        assert (await client.get("/metrics", headers=headers)).status_code == 200
        for path in ("/health", "/health/live", "/", "/openapi.json"):
            assert (await client.get(path, headers=headers)).status_code == 200, path
        assert (await client.get("/api/books", headers=headers)).status_code == 401


async def test_a_token_given_twice_is_a_mistake_on_every_route(
    client: httpx.AsyncClient, make: Factory
) -> None:
    member = await make.member()
    twice = [("Authorization", f"Bearer {member.token}")] * 2
    for path in ("/api/books", "/api/profile", "/api/rate-limit"):
        answer = await client.get(path, headers=twice)
        assert_problem(answer, 400, "Bad Request")
        assert answer.json()["message"] == "Authorization is given more than once"


async def test_who_is_served_stands_in_the_log_on_every_way(site: Site, folder: Path) -> None:
    for way in ("warm", "framework"):
        logs = folder / f"logs-{uuid4().hex[:8]}"
        changed: dict[str, Any] = {"access_log_sample": 1.0, "log_dir": logs, **WAYS[way]}
        async with served(site, folder, **changed) as (make, client):
            member = await make.member()
            for _ in range(3):
                await client.get("/api/books", headers=member.headers)
        lines = (logs / "app.log").read_text(encoding="utf-8")
        assert lines.count("GET /api/books 200 ") == 3
        assert lines.count(f"user={member.id} ") == 3
