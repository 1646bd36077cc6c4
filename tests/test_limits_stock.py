"""Why there is a core of our own: what quart-rate-limiter does as installed, beside ours.

`stock` is its own RateLimiter with its RedisStore in place of the limit middleware. Each row fails
for `ours` if the middleware is taken out.
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

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # its own, as installed
KINDS = pytest.mark.parametrize("kind", ["stock", "ours"])


@pytest.fixture
async def ask(site: Site, folder: Path, redis_url: str, kind: str) -> Any:
    """Ask `/hour` (10 per hour) or `/seconds` (10 per 4 seconds): status and headers."""
    redis.Redis.from_url(redis_url).flushdb()

    def prepare(app: Quart) -> None:
        @app.get("/hour")
        @rate_limit(10, timedelta(hours=1))
        async def hour() -> str:
            return ""

        @app.get("/seconds")
        @rate_limit(10, timedelta(seconds=4))
        async def seconds() -> str:
            return ""

        if kind == "stock":
            RateLimiter(app, store=RedisStore(redis_url))

    ours = kind == "ours"
    settings = settings_for(
        site.another_url, folder, ratelimit_storage_url=redis_url, ratelimit_enabled=ours
    )
    async with visiting(settings, prepare) as client:

        async def one(path: str, **headers: str) -> httpx.Response:
            return await client.get(path, headers=headers)

        yield one


@KINDS
async def test_a_hundred_at_once(ask: Any, kind: str) -> None:
    answers = await asyncio.gather(*(ask("/hour") for _ in range(100)))
    admitted = sum(answer.status_code == 200 for answer in answers)
    if kind == "stock":
        assert admitted > 10, "it reads, then writes"
    else:
        assert admitted == 10


@KINDS
async def test_a_forged_header(ask: Any, kind: str) -> None:
    for _ in range(10):
        await ask("/hour")
    found = {
        (await ask("/hour", **{"X-Forwarded-For": f"1.1.1.{n}"})).status_code for n in range(9)
    }
    assert found == ({200} if kind == "stock" else {429})


@KINDS
async def test_keys_that_stay(ask: Any, kind: str, redis_url: str) -> None:
    await ask("/hour")
    server: Any = redis.Redis.from_url(redis_url)
    keys = [key for key in server.scan_iter() if not key.startswith(b"octavo:cache:")]
    (left,) = [server.ttl(key) for key in keys]
    assert left == -1 if kind == "stock" else 0 < left <= 3_600


@KINDS
async def test_more_than_ten_within_a_window_of_ten(ask: Any, kind: str) -> None:
    begun = time.monotonic()
    admitted: list[float] = []
    while time.monotonic() < begun + 2.5:
        asked = time.monotonic()
        if (await ask("/seconds")).status_code == 200:
            admitted.append(asked)
        await asyncio.sleep(0.05)
    assert len(admitted) > 10 if kind == "stock" else len(admitted) == 10


@KINDS
async def test_how_a_refusal_looks(ask: Any, kind: str) -> None:
    for _ in range(11):
        refused = await ask("/hour")
    assert refused.status_code == 429
    times = len(refused.headers.get_list("Retry-After"))
    unknown = (await ask("/none")).headers
    if kind == "stock":
        assert "RateLimit" not in unknown, "unknown paths are free"
        assert "message" not in refused.text or refused.json()["message"] != "10 per 1 hour"
    else:
        assert times == 1
        assert "RateLimit" in unknown
        assert refused.json()["message"] == "10 per 1 hour"


def test_what_we_lean_on_is_still_there() -> None:
    """Names of the package that are no promise of its: this says so, should they move."""
    assert {"_get_limits_for_view_function", "_should_skip"} <= set(vars(RateLimiter))
    assert QUART_RATE_LIMITER_EXEMPT_ATTRIBUTE == "_quart_rate_limiter_exempt"
