"""Revoked tokens: limits and public routes refuse them, on every path of a request."""

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

from service.limits import identity
from service.limits.identity import REVOKED_CACHE_SIZE
from tests.conftest import Site, patient_client, serving, settings_for
from tests.factories import Factory
from tests.http_client import assert_problem

INVALID = 'Bearer error="invalid_token"'
PATHS: dict[str, dict[str, Any]] = {
    "warm": {},
    "framework": {"fast_path": False},
    "another server": {"http1_parser": "h11"},  # sends requests over ASGI, as HTTP/2 does
    "without limits": {"ratelimit_enabled": False},
    "without a cache of items": {"cache_item_seconds": 0},
}


@pytest.fixture(params=["memory", "shared"])
def storage(request: pytest.FixtureRequest) -> str | None:
    """The limits' store: the memory of the process, or the Redis of the cache, if there is one."""
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
    """Serve the catalogue with other settings. Give a factory of rows, and a client."""
    settings = settings_for(site.another_url, folder, ratelimit_storage_url=storage, **changed)
    async with serving(settings) as other, patient_client(other) as client:
        yield Factory(other.app), client


@pytest.mark.parametrize("path", PATHS)
async def test_tokens_of_a_changed_or_deleted_user_are_refused_on_public_routes(
    site: Site, folder: Path, storage: str | None, path: str
) -> None:
    changed = {"ratelimit_service": "100000 per minute", "ratelimit_books_item": "30 per minute"}
    is_limited = path != "without limits"
    async with served(site, folder, storage=storage, **changed, **PATHS[path]) as (make, client):
        admin, member = await make.admin(), await make.member(tier="service")
        book = await make.book(admin)
        targets = (f"/api/books/{book.id}", "/api/books", "/none")
        for target in targets:
            for _ in range(3):
                response = await client.get(target, headers=member.headers)
                assert response.status_code == (404 if target == "/none" else 200)
                if is_limited and target != "/none":
                    assert response.headers["RateLimit-Limit"] == "100000"
        response = await client.patch(
            f"/admin/users/{member.id}", json={"tier": "free"}, headers=admin.headers
        )
        assert response.status_code == 200
        for target in targets * 2:
            response = await client.get(target, headers=member.headers)
            assert_problem(response, 401, "Invalid or expired token")
            assert response.headers["WWW-Authenticate"] == INVALID
        fresh = await make.signed_in(member)
        response = await client.get(f"/api/books/{book.id}", headers=fresh.headers)
        assert response.status_code == 200
        if is_limited:
            assert response.headers["RateLimit-Limit"] == "30", "the new tier, of the database"
        response = await client.delete(f"/admin/users/{member.id}", headers=admin.headers)
        assert response.status_code == 204
        for _ in range(2):
            response = await client.get(f"/api/books/{book.id}", headers=fresh.headers)
            assert_problem(response, 401, "User not found")
            assert response.headers["WWW-Authenticate"] == INVALID


async def test_a_revoked_token_is_charged_to_the_address(
    site: Site, folder: Path, storage: str | None
) -> None:
    rate = {"ratelimit_books_list": "10 per hour"}
    async with served(site, folder, storage=storage, **rate) as (make, client):
        member, other = await make.member(), await make.member()
        out = await client.post("/api/auth/logout", headers=(await make.signed_in(member)).headers)
        assert out.status_code == 204
        fresh = await make.signed_in(member)
        responses = await asyncio.gather(
            *(client.get("/api/books", headers=member.headers) for _ in range(25))
        )
        assert sorted(response.status_code for response in responses) == [401] * 10 + [429] * 15
        response = await client.get("/api/books", headers=fresh.headers)
        assert response.headers["RateLimit-Remaining"] == "9", "the user is not charged"
        assert (await client.get("/api/books")).status_code == 429, "the address is charged"
        response = await client.get("/api/books", headers=other.headers)
        assert response.headers["RateLimit-Remaining"] == "9"


async def test_a_revoked_token_is_charged_to_the_address_if_its_users_limit_is_used_up(
    site: Site, folder: Path, storage: str | None
) -> None:
    rate = {"ratelimit_books_list": "3 per hour"}
    async with served(site, folder, storage=storage, **rate) as (make, client):
        member = await make.member()
        statuses = [
            (await client.get("/api/books", headers=member.headers)).status_code for _ in range(5)
        ]
        assert statuses == [200] * 3 + [429] * 2
        out = await client.post("/api/auth/logout", headers=member.headers)
        assert out.status_code == 204
        # It puts the account into the cache again.
        await client.get("/api/profile", headers=(await make.signed_in(member)).headers)
        statuses = [
            (await client.get("/api/books", headers=member.headers)).status_code for _ in range(5)
        ]
        assert statuses == [401] * 3 + [429] * 2, "of the address"


async def test_a_custom_limit_is_charged_for_invalid_tokens(site: Site, folder: Path) -> None:
    """Both the limit and the refusal are decided within the request."""

    async def by_language() -> str:
        return quart_request.headers.get("Accept-Language", "")

    def prepare(app: Quart) -> None:
        @app.get("/own-key")
        @rate_limit(2, timedelta(hours=1), key_function=by_language)
        async def own_key() -> str:
            return ""

    settings = settings_for(site.another_url, folder)
    async with serving(settings, prepare) as other, patient_client(other) as client:
        make = Factory(other.app)
        good, revoked = await make.member(), await make.member()
        await client.post("/api/auth/logout", headers=revoked.headers)
        for language, token, statuses in (
            ("de", good.token, [200, 200, 429]),
            ("fr", "x", [401, 401, 429]),
            ("it", revoked.token, [401, 401, 429]),
        ):
            headers = {"Accept-Language": language, "Authorization": token}
            responses = [await client.get("/own-key", headers=headers) for _ in range(3)]
            assert [response.status_code for response in responses] == statuses


async def test_a_tier_changed_by_another_program_ends_the_token(
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
        response = await client.get(path, headers=member.headers)
        assert_problem(response, 401, "Invalid or expired token")


async def test_a_password_change_ends_every_token_but_its_own(
    client: httpx.AsyncClient, make: Factory
) -> None:
    member = await make.member()
    other = await make.signed_in(member)
    change = {"password": "another password", "current_password": member.password}
    response = await client.patch("/api/profile", json=change, headers=member.headers)
    assert response.status_code == 200
    for _ in range(3):
        assert (await client.get("/api/books", headers=member.headers)).status_code == 200
        assert (await client.get("/api/books", headers=other.headers)).status_code == 401


@pytest.mark.parametrize("path", ["warm", "framework"])
async def test_an_account_that_cannot_be_read_is_a_503(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    async with served(site, folder, **PATHS[path]) as (make, client):
        member = await make.member()
        items = make.app.extensions["cache"].items

        async def fail(*arguments: Any) -> None:
            raise TimeoutError

        monkeypatch.setattr(items, "read", fail)
        shop = {"Origin": "https://shop.example.org"}
        response = await client.get("/api/books", headers=member.headers | shop)
        assert_problem(response, 503, "Service Unavailable")
        assert response.headers["Retry-After"] == "1"
        assert "Access-Control-Allow-Origin" in response.headers
        assert "RateLimit" in response.headers
        assert (await client.get("/api/books")).status_code == 200, (
            "without a token no account is read"
        )


async def test_a_bounded_number_of_revoked_tokens_is_remembered_for_a_while(
    site: Site, client: httpx.AsyncClient, make: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    identities, cache = site.app.extensions["limiter"].identities, site.app.extensions["cache"]
    member, reads, read = await make.member(), 0, cache.items.read
    await client.post("/api/auth/logout", headers=member.headers)
    await cache.clear()

    async def count(*arguments: Any) -> Any:
        nonlocal reads
        reads += 1
        return await read(*arguments)

    monkeypatch.setattr(cache.items, "read", count)
    monkeypatch.setattr(identity, "REVOKED_SECONDS", 600.0)
    for _ in range(5):
        assert (await client.get("/none", headers=member.headers)).status_code == 401
    assert reads == 1, "the account is read once"
    monkeypatch.setattr(identity, "REVOKED_SECONDS", -1.0)
    revoked = identities._revoked  # private: no request shows its size
    revoked.clear()
    revoked |= dict.fromkeys(range(REVOKED_CACHE_SIZE), (0.0, ""))
    try:
        await cache.clear()
        for _ in range(5):
            assert (await client.get("/none", headers=member.headers)).status_code == 401
        assert reads > 1, "it is remembered no longer than REVOKED_SECONDS"
        assert len(revoked) == REVOKED_CACHE_SIZE
    finally:
        revoked.clear()


async def test_the_metrics_token_is_accepted_where_no_token_is_read(
    site: Site, folder: Path
) -> None:
    async with served(site, folder, metrics_token="of the monitor") as (_, client):
        headers = {"Authorization": "Bearer of the monitor"}
        assert (await client.get("/metrics", headers=headers)).status_code == 200
        for path in ("/health", "/health/live", "/", "/openapi.json"):
            assert (await client.get(path, headers=headers)).status_code == 200, path
        assert (await client.get("/api/books", headers=headers)).status_code == 401


async def test_two_authorization_headers_are_refused_on_every_route(
    client: httpx.AsyncClient, make: Factory
) -> None:
    member = await make.member()
    twice = [("Authorization", f"Bearer {member.token}")] * 2
    for path in ("/api/books", "/api/profile", "/api/rate-limit"):
        response = await client.get(path, headers=twice)
        assert_problem(response, 400, "Bad Request")
        assert response.json()["message"] == "Authorization is given more than once"


async def test_the_access_log_names_the_user_on_every_path(site: Site, folder: Path) -> None:
    for path in ("warm", "framework"):
        logs = folder / f"logs-{uuid4().hex[:8]}"
        changed: dict[str, Any] = {"access_log_sample": 1.0, "log_dir": logs, **PATHS[path]}
        async with served(site, folder, **changed) as (make, client):
            member = await make.member()
            for _ in range(3):
                await client.get("/api/books", headers=member.headers)
        lines = (logs / "app.log").read_text(encoding="utf-8")
        assert lines.count("GET /api/books 200 ") == 3
        assert lines.count(f"user={member.id} ") == 3
