"""Health for people, monitors and load balancers, also while a dependency is down or hangs.

With SOAK in the environment, times are asserted as well.
"""

import asyncio
import os
import re
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from service.db import migrations
from service.system import health
from tests.conftest import Site, free_port, settings_for, visiting
from tests.http_client import TIMEOUT

SOAK = bool(os.environ.get("SOAK"))


@asynccontextmanager
async def black_hole() -> AsyncIterator[int]:
    """A port that accepts connections and never responds."""
    silent = socket.socket()
    silent.bind(("127.0.0.1", 0))
    silent.listen(100)
    try:
        yield silent.getsockname()[1]
    finally:
        silent.close()


async def test_a_healthy_service_reports_its_state(client: httpx.AsyncClient) -> None:
    response = await client.get("/health")
    assert response.status_code == 200
    body = response.json()
    assert list(body) == [
        "status", "database", "timestamp", "version", "checks", "revision", "uptime_seconds",
        "workers",
        "fast_path",
    ]  # fmt: skip
    assert body["revision"] is None or re.fullmatch(r"[0-9a-f]{40}", body["revision"])
    assert (body["uptime_seconds"] >= 0, body["workers"]) == (True, 1)
    assert (body["status"], body["database"]) == ("healthy", "connected")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", body["timestamp"])
    assert body["checks"].keys() - {"redis"} == {"database"}
    assert body["checks"]["database"]["status"] == "ok"
    assert 0 < body["checks"]["database"]["latency_ms"] < 30_000
    live, ready = await client.get("/health/live"), await client.get("/health/ready")
    assert (live.status_code, live.json()) == (200, {"status": "alive"})
    assert (ready.status_code, ready.json()) == (200, {"status": "ready"})


async def get(client: httpx.AsyncClient, path: str) -> tuple[int, dict[str, Any]]:
    """Return status and body of a response. Under SOAK it has 3 seconds."""
    begun = time.perf_counter()
    response = await client.get(path, timeout=TIMEOUT)
    assert not SOAK or time.perf_counter() - begun < 3
    return response.status_code, response.json()


async def test_a_service_without_a_database_is_unhealthy(folder: Path) -> None:
    down = f"postgresql://nobody@127.0.0.1:{free_port()}/nothing"
    async with visiting(settings_for(down, folder)) as client:
        status, body = await get(client, "/health")
        assert status == 500
        assert body["status"] == "unhealthy"
        assert body["error"] == "database unavailable"
        assert body["database"] == "disconnected"
        status, body = await get(client, "/health/ready")
        assert (status, body["reasons"]) == (503, ["database unavailable"])
        assert (await client.get("/health/live")).status_code == 200
        response = await client.get("/api/books")
        assert response.status_code == 503
        assert response.headers["Retry-After"] == "1"
        assert response.json()["error"] == "Service Unavailable"
        assert "127.0.0.1" not in response.text


async def test_a_hanging_database_makes_no_health_request_hang(folder: Path) -> None:
    async with black_hole() as port:
        hung = f"postgresql://nobody@127.0.0.1:{port}/nothing"
        async with visiting(settings_for(hung, folder)) as client:
            responses = await asyncio.gather(
                *(get(client, "/health") for _ in range(5)), get(client, "/health/live")
            )
            for status, body in responses[:-1]:
                assert (status, body["status"]) == (500, "unhealthy")
                # A check that began earlier ends by its own timeout, and has failed.
                outcome = body["checks"]["database"]["status"]
                assert outcome in {"timeout", "failed"}
            assert responses[-1][0] == 200
            assert (await get(client, "/health/ready"))[0] == 503
            begun = time.perf_counter()
            assert (await client.get("/api/books")).status_code == 503
            assert not SOAK or time.perf_counter() - begun < 15


async def test_redis_is_checked_but_not_required(site: Site, folder: Path, redis_url: str) -> None:
    url = site.another_url
    async with black_hole() as port:
        for redis, outcome in (
            (redis_url, "ok"),
            (f"redis://127.0.0.1:{free_port()}/0", "failed"),
            (f"redis://127.0.0.1:{port}/0", "timeout"),
        ):
            async with visiting(settings_for(url, folder, redis_url=redis)) as client:
                status, body = await get(client, "/health")
                assert status == 200
                assert body["status"] == ("healthy" if outcome == "ok" else "degraded")
                assert body["checks"]["redis"]["status"] == outcome
                assert (await client.get("/health/ready")).status_code == 200


@pytest.mark.parametrize("revision", [None, "0001", "9999"])
async def test_a_service_whose_migrations_are_behind_is_not_ready(
    site: Site,
    client: httpx.AsyncClient,
    revision: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health, "SHARED_SECONDS", 0.0)
    engine = site.database.writer

    async def execute(command: str) -> None:
        async with engine.begin() as connection:
            await connection.execute(text(command))

    if revision is None:
        await execute("ALTER TABLE alembic_version RENAME TO elsewhere")
    else:
        await execute(f"UPDATE alembic_version SET version_num = '{revision}'")
    try:
        status, body = await get(client, "/health/ready")
        assert status == (200 if revision == "9999" else 503)
        assert revision == "9999" or body == {
            "status": "not ready",
            "reasons": ["migrations are behind: run octavo migrate"],
        }
        assert (await client.get("/health")).status_code == 200
    finally:
        if revision is None:
            await execute("ALTER TABLE elsewhere RENAME TO alembic_version")
        else:
            await execute(f"UPDATE alembic_version SET version_num = '{migrations.head()}'")
    assert (await client.get("/health/ready")).status_code == 200


async def test_a_draining_service_is_not_ready(site: Site, client: httpx.AsyncClient) -> None:
    state = site.app.extensions["health"]
    state.serving = False
    try:
        status, body = await get(client, "/health/ready")
        assert (status, body["reasons"]) == (503, ["starting or draining"])
        assert (await client.get("/health/live")).status_code == 200
    finally:
        state.serving = True


async def test_an_outcome_is_shared_for_a_second(
    site: Site, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Concurrent and close requests run a check once; a later request runs it again."""
    state, checks, now = site.app.extensions["health"], 0, time.monotonic()

    async def check() -> None:
        nonlocal checks
        checks += 1
        await asyncio.sleep(0.05)

    assert health.SHARED_SECONDS == 1
    known = state._known  # private: earlier outcomes must not count
    monkeypatch.setitem(state._checks, "database", check)  # private: counts checks
    clock = SimpleNamespace(monotonic=lambda: now, perf_counter=time.perf_counter)
    monkeypatch.setattr(health, "time", clock)
    known.clear()
    try:
        await asyncio.gather(*(client.get("/health") for _ in range(20)))
        assert checks == 1
        now += 0.9
        await client.get("/health")
        assert checks == 1
        now += 0.2
        await client.get("/health")
        assert checks == 2
    finally:
        known.clear()


def test_a_checkout_knows_its_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    git_revision = health._git_revision  # private: its callers cache the revision
    revision = git_revision()
    assert revision is None or re.fullmatch(r"[0-9a-f]{40}", revision)
    monkeypatch.setattr(health, "__file__", str(tmp_path / "service" / "health.py"))
    assert git_revision() is None, "a repository around it is not the service's"
    monkeypatch.setenv("PATH", "")
    assert git_revision() is None
