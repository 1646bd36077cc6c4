"""Limits as clients meet them: headers, refusals, tiers, keys."""

import asyncio
import re
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

from service.app import create_app
from service.config import Production
from tests.conftest import Site, settings_for, visiting
from tests.factories import PASSWORD, Factory, Member
from tests.http_client import assert_problem

SHOP = {"Origin": "https://shop.example"}
DEFAULTS = {
    "ratelimit_default": "50 per hour;200 per day",
    "ratelimit_books_list": "10 per minute;100 per hour;1000 per day",
    "ratelimit_books_item": "30 per minute",
    "ratelimit_login": "20 per minute",
    "ratelimit_login_failures": "5 per 15 minutes",
    "ratelimit_register": "10 per hour",
    "ratelimit_service": "100000 per minute",
}


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where the limits are kept."""
    if request.param == "memory":
        yield "memory://"
        return
    url: str = request.getfixturevalue("redis_url")
    server: Any = redis.Redis.from_url(url)
    server.flushdb()
    yield url
    assert all(server.pttl(key) > 0 for key in server.scan_iter("octavo:limit:*")), (
        "every key expires"
    )


@asynccontextmanager
async def limited(
    site: Site, folder: Path, prepare: Any = None, **changed: object
) -> AsyncIterator[httpx.AsyncClient]:
    """Serve with the limits that are the defaults of the settings."""
    settings = settings_for(site.another_url, folder, **(DEFAULTS | changed))
    async with visiting(settings, prepare) as client:
        yield client


async def statuses(client: httpx.AsyncClient, times: int, path: str, **words: Any) -> list[int]:
    """Ask at once; give the statuses, in order of size."""
    answers = await asyncio.gather(*(client.get(path, **words) for _ in range(times)))
    return sorted(answer.status_code for answer in answers)


async def test_every_answer_tells_how_the_caller_stands(
    site: Site, folder: Path, store: str
) -> None:
    async with limited(site, folder, ratelimit_storage_url=store) as client:
        answer = await client.get("/api/books")
        assert answer.headers["RateLimit-Policy"] == (
            '"minute";q=10;w=60, "hour";q=100;w=3600, "day";q=1000;w=86400'
        )
        assert answer.headers["RateLimit"] == (
            '"minute";r=9;t=60, "hour";r=99;t=3600, "day";r=999;t=86400'
        )
        assert answer.headers["RateLimit-Limit"] == "10"
        assert answer.headers["RateLimit-Remaining"] == "9"
        assert answer.headers["RateLimit-Reset"] == "60"
        tag = {"If-None-Match": answer.headers["ETag"]}
        again = await client.get("/api/books", headers=tag)
        assert (again.status_code, again.headers["RateLimit-Remaining"]) == (304, "8")
        for path, status in (("/api/books?page=0", 400), ("/api/books/7", 404), ("/none", 404)):
            answer = await client.get(path)
            assert answer.status_code == status
            assert "RateLimit" in answer.headers
            assert "Authorization" in answer.headers["Vary"]


async def test_what_is_beyond_a_limit_is_refused(site: Site, folder: Path, store: str) -> None:
    async with limited(site, folder, ratelimit_storage_url=store) as client:
        plain = await client.get("/api/books", headers=SHOP)
        assert await statuses(client, 49, "/api/books", headers=SHOP) == [200] * 9 + [429] * 40
        answer = await client.get("/api/books", headers=SHOP | {"X-Request-ID": "mine"})
        assert_problem(answer, 429, "Rate limit exceeded")
        assert answer.json()["message"] == "10 per 1 minute"
        assert answer.json()["retry_after"] == int(answer.headers["Retry-After"])
        assert 55 <= answer.json()["retry_after"] <= 60
        assert answer.headers.get_list("Retry-After") == [answer.headers["Retry-After"]]
        assert answer.headers["X-Request-ID"] == answer.json()["request_id"] == "mine"
        assert answer.headers["RateLimit-Remaining"] == "0"
        assert '"hour";r=90' in answer.headers["RateLimit"], "a refusal spends nothing"
        for name in plain.headers:
            if name.startswith("access-control-") or name == "vary":
                assert answer.headers[name] == plain.headers[name]
        assert (await client.get("/api/books/7")).status_code == 404, "has a limit of its own"
        assert (await client.head("/api/books")).status_code == 429
        preflight = SHOP | {"Access-Control-Request-Method": "GET"}
        assert (await client.options("/api/books", headers=preflight)).status_code == 200


async def test_waiting_as_long_as_told_succeeds(site: Site, folder: Path, store: str) -> None:
    async with limited(
        site, folder, ratelimit_storage_url=store, ratelimit_default="2 per 3 seconds"
    ) as client:
        assert await statuses(client, 3, "/none") == [404, 404, 429]
        refused = await client.get("/none")
        assert refused.json()["message"] == "2 per 3 second"
        await asyncio.sleep(int(refused.headers["Retry-After"]))
        assert (await client.get("/none")).status_code == 404


async def test_the_default_is_one_limit_of_all_routes_without_their_own(
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
            answer = await client.request(method, url)
            assert answer.status_code == status, path
        for path in ("/elsewhere", "/api/users/8", "/admin/users", "//"):
            url = httpx.URL(f"{client.base_url}").copy_with(raw_path=path.encode())
            assert_problem(await client.get(url), 429, "Rate limit exceeded")
        for path in ("/", "/health", "/health/live", "/health/ready", "/docs", "/openapi.json"):
            answer = await client.get(path)
            assert answer.status_code == 200
            assert "RateLimit" not in answer.headers


async def test_a_tier_multiplies(site: Site, folder: Path, make: Factory) -> None:
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
            answer = await client.get("/api/books", headers=members[tier].headers)
            assert answer.headers["RateLimit-Policy"] == policy
        assert await statuses(client, 101, "/api/books", headers=standard) == [200] * 100 + [429]


async def test_a_key_is_who_one_is(site: Site, folder: Path, make: Factory) -> None:
    one, other = await make.member(), await make.member()
    async with limited(site, folder, ratelimit_books_list="2 per hour") as client:
        assert await statuses(client, 3, "/api/books", headers=one.headers) == [200, 200, 429]
        assert await statuses(client, 3, "/api/books", headers=other.headers) == [200, 200, 429]
        bare = {"Authorization": one.token}
        assert await statuses(client, 1, "/api/books", headers=bare) == [429], "the same user"
        # What does not verify counts for the address, and there they all are one.
        forged = one.token[:-3] + "abc"
        found = [
            (await client.get("/api/books", headers={"Authorization": value})).status_code
            for value in (f"Bearer {forged}", "Bearer x", "", "Basic eDp5")
        ]
        assert found == [401, 401, 429, 429], "an empty header is nobody, who is the address, too"
        assert (await client.get("/api/books")).status_code == 429
        twice = [("Authorization", f"Bearer {one.token}"), ("Authorization", "x")]
        assert (await client.get("/api/books", headers=twice)).status_code == 429
        again = await client.post(
            "/api/auth/login", json={"email": one.email, "password": PASSWORD}
        )
        fresh = {"Authorization": f"Bearer {again.json()['token']}"}
        assert await statuses(client, 1, "/api/books", headers=fresh) == [429], "a new token"


async def test_a_forged_address_changes_nothing(site: Site, folder: Path) -> None:
    async with limited(site, folder) as client:
        found = [
            (
                await client.get("/api/books", headers={"X-Forwarded-For": f"203.0.113.{n}"})
            ).status_code
            for n in range(50)
        ]
        assert found == [200] * 10 + [429] * 40


async def test_a_trusted_proxy_says_who_came(site: Site, folder: Path) -> None:
    async def ask(client: httpx.AsyncClient, *values: str) -> int:
        headers = [("X-Forwarded-For", value) for value in values]
        return (await client.get("/api/books", headers=headers)).status_code

    changed = {"ratelimit_books_list": "1 per hour"}
    async with limited(site, folder, trusted_proxy_hops=1, **changed) as client:
        assert await ask(client, "203.0.113.1") == 200
        assert await ask(client, "203.0.113.1:4711") == 429, "a port is nobody"
        assert await ask(client, "198.51.100.9, 203.0.113.1") == 429, "the right-most counts"
        assert await ask(client, "198.51.100.9", "203.0.113.1") == 429, "on two lines, too"
        assert await ask(client, "203.0.113.1, 198.51.100.9") == 200
        assert await ask(client, "::ffff:203.0.113.1") == 429
        assert await ask(client, "2001:db8:1:2::1") == 200
        assert await ask(client, "[2001:db8:1:2:ffff::9]:443") == 429, "a /64 is one"
        assert await ask(client, "2001:db8:1:3::1") == 200
        assert await ask(client, "nonsense") == 200, "then it is the proxy's own"
        assert await ask(client) == 429
    async with limited(site, folder, trusted_proxy_hops=2, **changed) as client:
        assert await ask(client, "1.1.1.1, 203.0.113.1, 10.0.0.1") == 200
        assert await ask(client, "2.2.2.2, 203.0.113.1, 10.0.0.2") == 429
        assert await ask(client, "203.0.113.1") == 429


async def test_how_one_stands_is_told_for_nothing(
    site: Site, folder: Path, make: Factory, store: str
) -> None:
    member = await make.member(tier="standard")
    async with limited(site, folder, ratelimit_storage_url=store) as client:
        await client.get("/api/books", headers=member.headers)
        for _ in range(60):
            answer = await client.get("/api/rate-limit", headers=member.headers)
            assert answer.status_code == 200
        told = answer.json()
        assert (told["caller"], told["tier"]) == (f"user:{member.id}", "standard")
        found = {(one["limit"], one["policy"]): one for one in told["policies"]}
        assert 30 <= found["books.list", "minute"].pop("reset") <= 60
        assert found["books.list", "minute"] == {
            "limit": "books.list",
            "policy": "minute",
            "quota": 100,
            "window": 60,
            "remaining": 99,
        }
        assert found["default", "hour"]["remaining"] == 500
        assert found["login", "minute"]["quota"] == 20, "by address, for every tier"
        assert {name for name, _ in found} == {
            "default", "books.list", "books.item", "login", "register",
        }  # fmt: skip
        assert (await client.get("/api/rate-limit")).json()["caller"] == "address:127.0.0.1"


async def test_a_route_of_ones_own_says_its_limits_as_the_package_has_it(
    site: Site, folder: Path, store: str
) -> None:
    def prepare(app: Quart) -> None:
        @app.get("/one")
        @rate_limit(2, timedelta(hours=1))
        async def one() -> str:
            return ""

        @app.get("/several")
        @rate_limit(limits=[RateLimit(3, timedelta(minutes=1)), RateLimit(2, timedelta(hours=1))])
        async def several() -> str:
            return ""

        async def by_language() -> str:
            return request.headers.get("Accept-Language", "")

        async def unless_asked() -> bool:
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
        @rate_limit(1, timedelta(minutes=1), skip_function=unless_asked)
        async def b() -> str:
            return ""

        app.register_blueprint(rooms)

    async with limited(site, folder, prepare, ratelimit_storage_url=store) as client:
        for path, admitted, message in (
            ("/one", 2, "2 per 1 hour"),
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
            words = {"headers": {"Accept-Language": language}}
            assert await statuses(client, 5, "/own-key", **words) == [200] + [429] * 4


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
            assert (await sign_in(client, anna.email, PASSWORD)).status_code == 200, "given back"
        # However the address is written, it is one account.
        forms = [anna.email, anna.email.upper(), unicodedata.normalize("NFD", anna.email)]
        assert len(set(forms)) == 3
        wrong = [sign_in(client, forms[n % 3], f"wrong {n}") for n in range(30)]
        found = sorted(answer.status_code for answer in await asyncio.gather(*wrong))
        assert found == [401] * 5 + [429] * 25, "many at once are no way round"
        refused = await sign_in(client, anna.email, PASSWORD)
        assert_problem(refused, 429, "Rate limit exceeded")
        assert refused.json()["message"] == "5 per 15 minute"
        assert re.search('"15-minute";r=0;t=[0-9]+', refused.headers["RateLimit"])
        assert (await sign_in(client, bert.email, PASSWORD)).status_code == 200
        elsewhere = await sign_in(client, anna.email, PASSWORD, "198.51.100.1")
        assert elsewhere.status_code == 200, "nobody locks another's account from elsewhere"
        unknown = [(await sign_in(client, "nobody@example.org", "x")).status_code for _ in range(6)]
        assert unknown == [401] * 5 + [429], "whether there is such an account is not told"


async def test_the_current_password_cannot_be_guessed_either(
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
            assert (await change(client, anna, PASSWORD)).status_code == 200, "given back"
        guesses = [change(client, anna, f"wrong {n}") for n in range(30)]
        found = sorted(answer.status_code for answer in await asyncio.gather(*guesses))
        assert found == [400] * 5 + [429] * 25, "many at once are no way round"
        refused = await change(client, anna, PASSWORD)
        assert_problem(refused, 429, "Rate limit exceeded")
        assert refused.json()["message"] == "5 per 15 minute"
        assert re.search('"15-minute";r=0;t=[0-9]+', refused.headers["RateLimit"])
        body = {"email": anna.email, "password": PASSWORD}
        address = {"X-Forwarded-For": "203.0.113.1"}
        login = await client.post("/api/auth/login", json=body, headers=address)
        assert login.status_code == 429, "one account, wherever its password is asked for"
        assert (await change(client, bert, PASSWORD)).status_code == 200
        elsewhere = await change(client, anna, PASSWORD, "198.51.100.1")
        assert elsewhere.status_code == 200, "nobody locks another's account from elsewhere"
        headers = anna.headers | address
        name = await client.patch("/api/profile", json={"username": "renamed"}, headers=headers)
        assert name.status_code == 200, "what needs no password is not limited by it"


async def test_signing_in_and_up_counts_for_the_address(
    site: Site, folder: Path, make: Factory
) -> None:
    members = [await make.member() for _ in range(3)]
    async with limited(
        site, folder, ratelimit_login="2 per minute", ratelimit_register="2 per hour"
    ) as client:
        for path in ("/api/auth/login", "/api/auth/register"):
            found = [
                (await client.post(path, json={}, headers=member.headers)).status_code
                for member in members
            ]
            assert found == [400, 400, 429], "whoever is signed in"


async def test_limits_can_be_off(site: Site, folder: Path) -> None:
    async with limited(site, folder, ratelimit_enabled=False) as client:
        assert await statuses(client, 60, "/none") == [404] * 60
        assert "RateLimit" not in (await client.get("/api/books")).headers
        body = {"email": "anna@example.org", "password": "wrong"}
        found = [(await client.post("/api/auth/login", json=body)).status_code for _ in range(7)]
        assert found == [401] * 7


async def test_production_without_limits_says_so_loudly(tmp_path: Path) -> None:
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
