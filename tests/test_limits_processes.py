"""Limits over real processes that share a Redis. `make soak` sends ten times as many requests."""

import asyncio
import os
import random
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from tests.conftest import migrate
from tests.test_cli import served

SOAK = bool(os.environ.get("SOAK"))
ROUNDS, REQUESTS = (20, 2_000) if SOAK else (2, 200)
ROUTES = {  # the setting of each limit, and a path under it
    "RATELIMIT_DEFAULT": "/none",
    "RATELIMIT_BOOKS_LIST": "/api/books?page=0",
    "RATELIMIT_BOOKS_ITEM": "/api/books/7",
}
LATE = """
import time
now = time.time
time.time = lambda: now() + 3_600
"""


@pytest.mark.no_cover  # the code under test runs in other processes
@pytest.mark.timeout(1_200 if SOAK else 240)
@pytest.mark.parametrize("processes", [4, 1])
async def test_processes_together_admit_exactly_the_limit(
    tmp_path: Path, redis_url: str, processes: int
) -> None:
    """Four processes share a Redis, and the clock of one process is an hour late.

    One process alone keeps its limits in memory.
    """
    server: Any
    with redis.Redis.from_url(redis_url) as server:
        server.flushdb()
    late = tmp_path / "late"
    late.mkdir()
    (late / "sitecustomize.py").write_text(LATE)
    chance = random.Random(5)
    environment = {
        "DATABASE_URL": f"sqlite:///{tmp_path}/books.db",
        "REDIS_URL": redis_url if processes > 1 else "",
        "TOTAL_WORKERS": str(processes),
        "TRUSTED_PROXY_HOPS": "1",
        "LOG_LEVEL": "WARNING",
        "RATELIMIT_REDIS_SECONDS": "5",  # a busy machine is no outage
    }
    limits = {name: chance.randrange(1, REQUESTS // 2) for name in ROUTES}
    limits["RATELIMIT_DEFAULT"] = 100
    environment |= {name: f"{limit} per hour" for name, limit in limits.items()}
    await migrate(environment["DATABASE_URL"])
    async with AsyncExitStack() as stack:
        clients = []
        for number in range(processes):
            clock = {"PYTHONPATH": str(late)} if number == 0 else {}
            _, url, _ = await stack.enter_async_context(served(tmp_path, **environment, **clock))
            most = httpx.Limits(max_connections=100)
            client = httpx.AsyncClient(base_url=url, limits=most, timeout=60)
            clients.append(await stack.enter_async_context(client))
        for turn in range(ROUNDS):
            name = list(ROUTES)[turn % len(ROUTES)]
            caller = {"X-Forwarded-For": f"203.0.113.{turn}"}
            responses = await asyncio.gather(
                *(
                    clients[number % processes].get(ROUTES[name], headers=caller)
                    for number in range(REQUESTS)
                )
            )
            statuses = Counter(response.status_code for response in responses)
            refused = statuses.pop(429, 0)
            assert sum(statuses.values()) == limits[name], statuses
            assert refused == REQUESTS - limits[name]
            assert set(statuses) <= {400, 404}, "no server error"
            print(f"{turn + 1}: {limits[name]} of {REQUESTS} admitted, {refused} refused")
    with redis.Redis.from_url(redis_url) as server:
        keys = list(server.scan_iter("octavo:limit:*"))
        assert bool(keys) == (processes > 1)
        assert all(server.pttl(key) > 0 for key in keys), "every key expires"
