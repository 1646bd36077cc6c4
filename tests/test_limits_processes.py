"""Limits over real processes that share a Redis. `make soak` asks ten times as much."""

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

from tests.test_cli import octavo, served

SOAK = bool(os.environ.get("SOAK"))
ROUNDS, REQUESTS = (20, 2_000) if SOAK else (2, 200)
ROUTES = {  # a limit each: a path of its own, and a setting
    "RATELIMIT_DEFAULT": "/none",
    "RATELIMIT_BOOKS_LIST": "/api/books?page=0",
    "RATELIMIT_BOOKS_ITEM": "/api/books/7",
}
LATE = """
import time
now = time.time
time.time = lambda: now() + 3_600
"""


@pytest.mark.no_cover  # the other processes are what is looked at, and their speed
@pytest.mark.timeout(1_200 if SOAK else 120)
@pytest.mark.parametrize("processes", [4, 1])
async def test_exactly_as_many_as_the_limit(tmp_path: Path, redis_url: str, processes: int) -> None:
    """Ask at once for one key; four processes share a Redis, and the clock of one of them is off.

    One process alone keeps its limits in memory.
    """
    server: Any = redis.Redis.from_url(redis_url)
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
        "RATELIMIT_REDIS_SECONDS": "2",  # a busy machine is no outage
    }
    limits = {name: chance.randrange(1, REQUESTS // 2) for name in ROUTES}
    limits["RATELIMIT_DEFAULT"] = 100
    environment |= {name: f"{limit} per hour" for name, limit in limits.items()}
    code, _, said = await octavo(tmp_path, "migrate", **environment)
    assert code == 0, said
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
            answers = await asyncio.gather(
                *(
                    clients[number % processes].get(ROUTES[name], headers=caller)
                    for number in range(REQUESTS)
                )
            )
            found = Counter(answer.status_code for answer in answers)
            refused = found.pop(429, 0)
            assert sum(found.values()) == limits[name], found
            assert refused == REQUESTS - limits[name]
            assert set(found) <= {400, 404}, "no error of ours"
            print(f"{turn + 1}: {limits[name]} of {REQUESTS} admitted, {refused} refused")
    keys = list(server.scan_iter("octavo:limit:*"))
    assert bool(keys) == (processes > 1)
    assert all(server.pttl(key) > 0 for key in keys), "every key expires"
