"""Limits over HTTP: headers, refusals, tiers, keys."""

import asyncio
import re
import time
import unicodedata
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from pydantic import SecretStr
from quart import Blueprint, Quart, request
from quart_rate_limiter import RateLimit, limit_blueprint, rate_exempt, rate_limit

from service import config
from service.app import create_app
from service.config import Production
from service.limits.policies import Policies
from service.limits.types import Policy
from tests.conftest import Site, settings_for, visiting
from tests.factories import PASSWORD, Factory, Member
from tests.http_client import assert_problem

SHOP = {"Origin": "https://shop.example"}
DEFAULTS = {
    "ratelimit_default": "50 per hour;200 per day",
    "ratelimit_books_list": "10 per minute;100 per hour;1000 per day",
    "ratelimit_books_item": "30 per minute",
    "ratelimit_data": "10 per hour",
    "ratelimit_report": "1 per hour",
    "ratelimit_login": "20 per minute",
    "ratelimit_login_failures": "5 per 15 minutes",
    "ratelimit_register": "10 per hour",
    "ratelimit_service": "100000 per minute",
}


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of the store that keeps the limits."""
    if request.param == "memory":
        yield "memory://"
        return
    url: str = request.getfixturevalue("redis_url")
    server: Any
    with redis.Redis.from_url(url) as server:
        server.flushdb()
        yield url
        keys = list(server.scan_iter("octavo:limit:*"))
        assert all(server.pttl(key) > 0 for key in keys), "every key expires"


@asynccontextmanager
async def limited(
    site: Site, folder: Path, prepare: Any = None, **changed: object
) -> AsyncIterator[httpx.AsyncClient]:
    """Serve with the default limits of the settings."""
    settings = settings_for(site.another_url, folder, **(DEFAULTS | changed))
    async with visiting(settings, prepare) as client:
        yield client


async def statuses(client: httpx.AsyncClient, number: int, path: str, **options: Any) -> list[int]:
    """Send requests at once, and return the statuses in ascending order."""
    responses = await asyncio.gather(*(client.get(path, **options) for _ in range(number)))
    return sorted(response.status_code for response in responses)


async def test_every_response_has_the_state_of_its_limits(
    site: Site, folder: Path, store: str
) -> None:
    async with limited(site, folder, ratelimit_storage_url=store) as client:
        response = await client.get("/api/books")
        assert response.headers["RateLimit-Policy"] == (
            '"minute";q=10;w=60, "hour";q=100;w=3600, "day";q=1000;w=86400'
        )
        assert response.headers["RateLimit"] == (
            '"minute";r=9;t=60, "hour";r=99;t=3600, "day";r=999;t=86400'
        )
        assert response.headers["RateLimit-Limit"] == "10"
        assert response.headers["RateLimit-Remaining"] == "9"
        assert response.headers["RateLimit-Reset"] == "60"
        tag = {"If-None-Match": response.headers["ETag"]}
        again = await client.get("/api/books", headers=tag)
        assert (again.status_code, again.headers["RateLimit-Remaining"]) == (304, "8")
        for path, status in (("/api/books?page=0", 400), ("/api/books/7", 404), ("/none", 404)):
            response = await client.get(path)
            assert response.status_code == status
            assert "RateLimit" in response.headers
            assert "Authorization" in response.headers["Vary"]


async def test_requests_beyond_a_limit_are_refused(site: Site, folder: Path, store: str) -> None:
    async with limited(site, folder, ratelimit_storage_url=store) as client:
        begun = time.monotonic()
        plain = await client.get("/api/books", headers=SHOP)
        assert await statuses(client, 49, "/api/books", headers=SHOP) == [200] * 9 + [429] * 40
        response = await client.get("/api/books", headers=SHOP | {"X-Request-ID": "mine"})
        assert_problem(response, 429, "Rate limit exceeded")
        assert response.json()["message"] == "10 per 1 minute"
        assert response.json()["retry_after"] == int(response.headers["Retry-After"])
        assert begun + 59 - time.monotonic() <= response.json()["retry_after"] <= 60
        assert response.headers.get_list("Retry-After") == [response.headers["Retry-After"]]
        assert response.headers["X-Request-ID"] == response.json()["request_id"] == "mine"
        assert response.headers["RateLimit-Remaining"] == "0"
        assert '"hour";r=90' in response.headers["RateLimit"], "a refusal spends nothing"
        for name in plain.headers:
            if name.startswith("access-control-") or name == "vary":
                assert response.headers[name] == plain.headers[name]
        assert (await client.get("/api/books/7")).status_code == 404, "a route with another limit"
        assert (await client.head("/api/books")).status_code == 429
        preflight = SHOP | {"Access-Control-Request-Method": "GET"}
        assert (await client.options("/api/books", headers=preflight)).status_code == 200


async def test_a_request_after_retry_after_is_admitted(
    site: Site, folder: Path, store: str
) -> None:
    async with limited(
        site, folder, ratelimit_storage_url=store, ratelimit_default="2 per 3 seconds"
    ) as client:
        assert await statuses(client, 3, "/none") == [404, 404, 429]
        refused = await client.get("/none")
        assert refused.json()["message"] == "2 per 3 second"
        await asyncio.sleep(int(refused.headers["Retry-After"]))
        assert (await client.get("/none")).status_code == 404


async def test_all_routes_without_their_own_limit_share_the_default_limit(
    site: Site, folder: Path
) -> None:
    async with limited(site, folder, ratelimit_default="5 per hour") as client:
        for method, path, status in (
            ("GET", "/none", 404),
            ("GET", "//api/books", 404),
            ("DELETE", "/api/books", 405),
            ("GET", "/api/users/7", 404),
            ("GET", "/api/profile", 401),
        ):
            url = httpx.URL(f"{client.base_url}").copy_with(raw_path=path.encode())
            response = await client.request(method, url)
            assert response.status_code == status, path
        for path in ("/elsewhere", "/api/users/8", "/admin/users", "//"):
            url = httpx.URL(f"{client.base_url}").copy_with(raw_path=path.encode())
            assert_problem(await client.get(url), 429, "Rate limit exceeded")
        for path in ("/", "/health", "/health/live", "/health/ready", "/docs", "/openapi.json"):
            response = await client.get(path)
            assert response.status_code == 200
            assert "RateLimit" not in response.headers


async def test_a_tier_multiplies_the_limits(site: Site, folder: Path, make: Factory) -> None:
    policies = {
        "free": '"minute";q=10;w=60, "hour";q=100;w=3600, "day";q=1000;w=86400',
        "standard": '"minute";q=100;w=60, "hour";q=1000;w=3600, "day";q=10000;w=86400',
        "premium": '"minute";q=1000;w=60, "hour";q=10000;w=3600, "day";q=100000;w=86400',
        "service": '"minute";q=100000;w=60',
    }
    members = {tier: await make.member(tier=tier) for tier in policies}
    standard = (await make.member(tier="standard")).headers
    async with limited(site, folder) as client:
        for tier, policy in policies.items():
            response = await client.get("/api/books", headers=members[tier].headers)
            assert response.headers["RateLimit-Policy"] == policy
        assert await statuses(client, 101, "/api/books", headers=standard) == [200] * 100 + [429]


def test_the_limits_of_export_and_report_follow_the_tier() -> None:
    policies = Policies(config.Testing())
    limits = {
        name: [policies.of(name, tier) for tier in ("free", "standard", "premium", "service")]
        for name in ("data", "report")
    }
    hour = 3_600
    assert limits == {
        "data": [*((Policy(n, hour),) for n in (10, 100, 1_000)), (Policy(100_000, 60),)],
        "report": [(Policy(n, hour),) for n in (1, 1, 1, 60)],
    }


async def test_a_limit_is_counted_for_a_user_or_an_address(
    site: Site, folder: Path, make: Factory
) -> None:
    member, other = await make.member(), await make.member()
    async with limited(site, folder, ratelimit_books_list="2 per hour") as client:
        assert await statuses(client, 3, "/api/books", headers=member.headers) == [200, 200, 429]
        assert await statuses(client, 3, "/api/books", headers=other.headers) == [200, 200, 429]
        bare = {"Authorization": member.token}
        assert await statuses(client, 1, "/api/books", headers=bare) == [429], "the same user"
        # Tokens that are not valid count for the address, all together.
        forged = member.token[:-3] + "abc"
        by_address = [
            (await client.get("/api/books", headers={"Authorization": value})).status_code
            for value in (f"Bearer {forged}", "Bearer x", "", "Basic eDp5")
        ]
        assert by_address == [401, 401, 429, 429], "an empty header counts for the address, too"
        assert (await client.get("/api/books")).status_code == 429
        twice = [("Authorization", f"Bearer {member.token}"), ("Authorization", "x")]
        assert (await client.get("/api/books", headers=twice)).status_code == 429
        again = await client.post(
            "/api/auth/login", json={"email": member.email, "password": PASSWORD}
        )
        fresh = {"Authorization": f"Bearer {again.json()['token']}"}
        assert await statuses(client, 1, "/api/books", headers=fresh) == [429], "a new token"


async def test_a_forged_address_changes_nothing(site: Site, folder: Path) -> None:
    async with limited(site, folder) as client:
        forged = [{"X-Forwarded-For": f"203.0.113.{n}"} for n in range(50)]
        responses = [await client.get("/api/books", headers=headers) for headers in forged]
        assert [each.status_code for each in responses] == [200] * 10 + [429] * 40


async def test_a_trusted_proxy_names_the_address_of_the_client(site: Site, folder: Path) -> None:
    async def send(client: httpx.AsyncClient, *values: str) -> int:
        headers = [("X-Forwarded-For", value) for value in values]
        return (await client.get("/api/books", headers=headers)).status_code

    changed = {"ratelimit_books_list": "1 per hour"}
    async with limited(site, folder, trusted_proxy_hops=1, **changed) as client:
        assert await send(client, "203.0.113.1") == 200
        assert await send(client, "203.0.113.1:4711") == 429, "the port does not count"
        assert await send(client, "198.51.100.9, 203.0.113.1") == 429, (
            "the right-most address counts"
        )
        assert await send(client, "198.51.100.9", "203.0.113.1") == 429, "on two lines, too"
        assert await send(client, "203.0.113.1, 198.51.100.9") == 200
        assert await send(client, "::ffff:203.0.113.1") == 429
        assert await send(client, "2001:db8:1:2::1") == 200
        assert await send(client, "[2001:db8:1:2:ffff::9]:443") == 429, "a /64 is one client"
        assert await send(client, "2001:db8:1:3::1") == 200
        assert await send(client, "nonsense") == 200, "the address of the proxy counts"
        assert await send(client) == 429
    async with limited(site, folder, trusted_proxy_hops=2, **changed) as client:
        assert await send(client, "1.1.1.1, 203.0.113.1, 10.0.0.1") == 200
        assert await send(client, "2.2.2.2, 203.0.113.1, 10.0.0.2") == 429
        assert await send(client, "203.0.113.1") == 429


async def test_the_state_of_the_limits_costs_no_unit(
    site: Site, folder: Path, make: Factory, store: str
) -> None:
    member = await make.member(tier="standard")
    async with limited(site, folder, ratelimit_storage_url=store) as client:
        begun = time.monotonic()
        await client.get("/api/books", headers=member.headers)
        for _ in range(60):
            response = await client.get("/api/rate-limit", headers=member.headers)
            assert response.status_code == 200
        body = response.json()
        assert (body["caller"], body["tier"]) == (f"user:{member.id}", "standard")
        policies = {(policy["limit"], policy["policy"]): policy for policy in body["policies"]}
        reset = policies["books.list", "minute"].pop("reset")
        assert begun + 59 - time.monotonic() <= reset <= 60
        assert policies["books.list", "minute"] == {
            "limit": "books.list",
            "policy": "minute",
            "quota": 100,
            "window": 60,
            "remaining": 99,
        }
        assert policies["default", "hour"]["remaining"] == 500
        assert policies["login", "minute"]["quota"] == 20, "by address, for every tier"
        assert {name for name, _ in policies} == {
            "default", "books.list", "books.item", "search", "data", "report", "login", "register",
        }  # fmt: skip
        assert (await client.get("/api/rate-limit")).json()["caller"] == "address:127.0.0.1"


async def test_an_added_route_declares_its_limits_as_the_package_documents(
    site: Site, folder: Path, store: str
) -> None:
    def prepare(app: Quart) -> None:
        @app.get("/single")
        @rate_limit(2, timedelta(hours=1))
        async def single() -> str:
            return ""

        @app.get("/several")
        @rate_limit(limits=[RateLimit(3, timedelta(minutes=1)), RateLimit(2, timedelta(hours=1))])
        async def several() -> str:
            return ""

        async def by_language() -> str:
            return request.headers.get("Accept-Language", "")

        async def is_free() -> bool:
            return "free" in request.args

        @app.get("/own-key")
        @rate_limit(1, timedelta(hours=1), key_function=by_language)
        async def own_key() -> str:
            return ""

        @app.get("/exempt")
        @rate_exempt
        async def exempt() -> str:
            return ""

        rooms = limit_blueprint(Blueprint("rooms", __name__), 2, timedelta(hours=1))

        @rooms.get("/rooms/a")
        async def a() -> str:
            return ""

        @rooms.get("/rooms/b")
        @rate_limit(1, timedelta(minutes=1), skip_function=is_free)
        async def b() -> str:
            return ""

        app.register_blueprint(rooms)

    async with limited(site, folder, prepare, ratelimit_storage_url=store) as client:
        for path, admitted, message in (
            ("/single", 2, "2 per 1 hour"),
            ("/several", 2, "2 per 1 hour"),
            ("/rooms/a", 2, "2 per 1 hour"),
            ("/rooms/b", 1, "1 per 1 minute"),
        ):
            assert await statuses(client, 9, path) == [200] * admitted + [429] * (9 - admitted)
            refused = await client.get(path, headers=SHOP)
            assert_problem(refused, 429, "Rate limit exceeded")
            assert refused.json()["message"] == message
            assert refused.headers["RateLimit-Remaining"] == "0"
        assert await statuses(client, 99, "/exempt") == [200] * 99
        for language in ("de", "fr"):
            headers = {"Accept-Language": language}
            assert await statuses(client, 5, "/own-key", headers=headers) == [200] + [429] * 4


async def test_passwords_cannot_be_guessed(
    site: Site, folder: Path, make: Factory, store: str
) -> None:
    anna, bert = await make.member("andr\u00e9"), await make.member()

    async def sign_in(
        client: httpx.AsyncClient, email: str, password: str, address: str = "203.0.113.1"
    ) -> httpx.Response:
        body = {"email": email, "password": password}
        return await client.post("/api/auth/login", json=body, headers={"X-Forwarded-For": address})

    more = {"ratelimit_login": "100 per minute", "trusted_proxy_hops": 1}
    async with limited(site, folder, ratelimit_storage_url=store, **more) as client:
        for _ in range(7):
            assert (await sign_in(client, anna.email, PASSWORD)).status_code == 200, (
                "the unit is given back"
            )
        # Each spelling of the address counts for the same account.
        forms = [anna.email, anna.email.upper(), unicodedata.normalize("NFD", anna.email)]
        assert len(set(forms)) == 3
        wrong = [sign_in(client, forms[n % 3], f"wrong {n}") for n in range(30)]
        attempts = sorted(each.status_code for each in await asyncio.gather(*wrong))
        assert attempts == [401] * 5 + [429] * 25, "concurrent requests do not evade the limit"
        refused = await sign_in(client, anna.email, PASSWORD)
        assert_problem(refused, 429, "Rate limit exceeded")
        assert refused.json()["message"] == "5 per 15 minute"
        assert re.search('"15-minute";r=0;t=[0-9]+', refused.headers["RateLimit"])
        assert (await sign_in(client, bert.email, PASSWORD)).status_code == 200
        elsewhere = await sign_in(client, anna.email, PASSWORD, "198.51.100.1")
        assert elsewhere.status_code == 200, "no client locks the account for another address"
        unknown = [(await sign_in(client, "nobody@example.org", "x")).status_code for _ in range(6)]
        assert unknown == [401] * 5 + [429], "the responses do not show whether the account exists"


async def test_the_current_password_cannot_be_guessed(
    site: Site, folder: Path, make: Factory, store: str
) -> None:
    anna, bert = await make.member(), await make.member()

    async def change(
        client: httpx.AsyncClient, member: Member, password: str, address: str = "203.0.113.1"
    ) -> httpx.Response:
        body = {"email": member.email, "current_password": password}
        headers = member.headers | {"X-Forwarded-For": address}
        return await client.patch("/api/profile", json=body, headers=headers)

    more = {"ratelimit_default": "1000 per hour", "trusted_proxy_hops": 1}
    async with limited(site, folder, ratelimit_storage_url=store, **more) as client:
        for _ in range(7):
            assert (await change(client, anna, PASSWORD)).status_code == 200, (
                "the unit is given back"
            )
        guesses = [change(client, anna, f"wrong {n}") for n in range(30)]
        attempts = sorted(each.status_code for each in await asyncio.gather(*guesses))
        assert attempts == [400] * 5 + [429] * 25, "concurrent requests do not evade the limit"
        refused = await change(client, anna, PASSWORD)
        assert_problem(refused, 429, "Rate limit exceeded")
        assert refused.json()["message"] == "5 per 15 minute"
        assert re.search('"15-minute";r=0;t=[0-9]+', refused.headers["RateLimit"])
        body = {"email": anna.email, "password": PASSWORD}
        address = {"X-Forwarded-For": "203.0.113.1"}
        login = await client.post("/api/auth/login", json=body, headers=address)
        assert login.status_code == 429, "both routes count for the same account"
        assert (await change(client, bert, PASSWORD)).status_code == 200
        elsewhere = await change(client, anna, PASSWORD, "198.51.100.1")
        assert elsewhere.status_code == 200, "no client locks the account for another address"
        headers = anna.headers | address
        name = await client.patch("/api/profile", json={"username": "renamed"}, headers=headers)
        assert name.status_code == 200, "a change without a password is not limited by it"


async def test_sign_in_and_registration_count_for_the_address(
    site: Site, folder: Path, make: Factory
) -> None:
    members = [await make.member() for _ in range(3)]
    async with limited(
        site, folder, ratelimit_login="2 per minute", ratelimit_register="2 per hour"
    ) as client:
        for path in ("/api/auth/login", "/api/auth/register"):
            responses = [
                await client.post(path, json={}, headers=member.headers) for member in members
            ]
            assert [each.status_code for each in responses] == [400, 400, 429], "for all users"


async def test_without_limits_all_requests_are_admitted(site: Site, folder: Path) -> None:
    async with limited(site, folder, ratelimit_enabled=False) as client:
        assert await statuses(client, 60, "/none") == [404] * 60
        assert "RateLimit" not in (await client.get("/api/books")).headers
        body = {"email": "anna@example.org", "password": "wrong"}
        responses = [await client.post("/api/auth/login", json=body) for _ in range(7)]
        assert [each.status_code for each in responses] == [401] * 7


async def test_production_without_limits_logs_a_warning(tmp_path: Path) -> None:
    app = create_app(
        Production(
            ratelimit_enabled=False,
            secret_key=SecretStr("s" * 32),
            database_url="postgresql://nobody@127.0.0.1/nothing",
            public_url="https://books.example.org",
            log_dir=tmp_path,
        )
    )
    async with app.test_app():
        pass
    log = (tmp_path / "app.log").read_text(encoding="utf-8")
    assert "WARNING: RATELIMIT_ENABLED is false" in log
