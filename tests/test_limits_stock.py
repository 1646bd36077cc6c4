"""Why Octavo has its own limiter: quart-rate-limiter as installed, beside it.

`stock` is the package's RateLimiter with its RedisStore in place of the limit middleware. Each test
fails for `ours` without the middleware.
"""

import asyncio
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from quart import Quart
from quart_rate_limiter import QUART_RATE_LIMITER_EXEMPT_ATTRIBUTE, RateLimiter, rate_limit
from quart_rate_limiter.redis_store import RedisStore

from tests.conftest import Site, settings_for, visiting

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # of the package, as installed
KINDS = pytest.mark.parametrize("kind", ["stock", "ours"])
WINDOW = 10  # seconds


@pytest.fixture
async def get(site: Site, folder: Path, redis_url: str, kind: str) -> Any:
    """Send a GET of `/hour` (10 per hour) or `/seconds` (10 per WINDOW seconds)."""
    with redis.Redis.from_url(redis_url) as server:
        server.flushdb()

    def prepare(app: Quart) -> None:
        @app.get("/hour")
        @rate_limit(10, timedelta(hours=1))
        async def hour() -> str:
            return ""

        @app.get("/seconds")
        @rate_limit(10, timedelta(seconds=WINDOW))
        async def seconds() -> str:
            return ""

        if kind == "stock":
            RateLimiter(app, store=RedisStore(redis_url))

    ours = kind == "ours"
    settings = settings_for(
        site.another_url, folder, ratelimit_storage_url=redis_url, ratelimit_enabled=ours
    )
    async with visiting(settings, prepare) as client:

        async def send(path: str, **headers: str) -> httpx.Response:
            return await client.get(path, headers=headers)

        yield send


@KINDS
async def test_only_octavo_admits_exactly_ten_concurrent_requests(get: Any, kind: str) -> None:
    responses = await asyncio.gather(*(get("/hour") for _ in range(100)))
    admitted = sum(response.status_code == 200 for response in responses)
    if kind == "stock":
        assert admitted > 10, "the package reads, then writes"
    else:
        assert admitted == 10


@KINDS
async def test_only_octavo_ignores_a_forged_address(get: Any, kind: str) -> None:
    for _ in range(10):
        await get("/hour")
    statuses = {
        (await get("/hour", **{"X-Forwarded-For": f"1.1.1.{n}"})).status_code for n in range(9)
    }
    assert statuses == ({200} if kind == "stock" else {429})


@KINDS
async def test_only_keys_of_octavo_expire(get: Any, kind: str, redis_url: str) -> None:
    await get("/hour")
    server: Any
    with redis.Redis.from_url(redis_url) as server:
        keys = [key for key in server.scan_iter() if not key.startswith(b"octavo:cache:")]
        (left,) = [server.ttl(key) for key in keys]
    assert left == -1 if kind == "stock" else 0 < left <= 3_600


@KINDS
async def test_only_octavo_admits_ten_in_every_window(get: Any, kind: str) -> None:
    """The package gives units back within the window."""
    begun = time.monotonic()
    admitted: list[tuple[float, float]] = []  # from request to response
    while len(admitted) <= 10 and time.monotonic() < begun + 4:
        sent = time.monotonic()
        if (await get("/seconds")).status_code == 200:
            admitted.append((sent, time.monotonic()))
        await asyncio.sleep(0.05)
    assert len(admitted) >= 10
    is_exceeded = len(admitted) > 10 and admitted[10][1] - admitted[0][0] < WINDOW
    assert is_exceeded == (kind == "stock")


@KINDS
async def test_only_a_refusal_of_octavo_is_complete(get: Any, kind: str) -> None:
    for _ in range(11):
        refused = await get("/hour")
    assert refused.status_code == 429
    times = len(refused.headers.get_list("Retry-After"))
    unknown = (await get("/none")).headers
    if kind == "stock":
        assert "RateLimit" not in unknown, "unknown paths have no limit"
        assert "message" not in refused.text or refused.json()["message"] != "10 per 1 hour"
    else:
        assert times == 1
        assert "RateLimit" in unknown
        assert refused.json()["message"] == "10 per 1 hour"


def test_the_private_names_that_octavo_uses_are_in_the_package() -> None:
    """A new release of the package may rename them."""
    assert {"_get_limits_for_view_function", "_should_skip"} <= set(vars(RateLimiter))
    assert QUART_RATE_LIMITER_EXEMPT_ATTRIBUTE == "_quart_rate_limiter_exempt"
