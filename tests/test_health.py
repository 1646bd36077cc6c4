"""Health: what people, monitors and balancers are told, also when something is down or hangs."""

import asyncio
import re
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from service.db import migrations
from service.system import health
from tests.conftest import Site, free_port, settings_for, visiting


@asynccontextmanager
async def black_hole() -> AsyncIterator[int]:
    """A port where connections are taken and nothing is ever said."""
    silent = socket.socket()
    silent.bind(("127.0.0.1", 0))
    silent.listen(100)
    try:
        yield silent.getsockname()[1]
    finally:
        silent.close()


async def test_all_is_well(client: httpx.AsyncClient) -> None:
    answer = await client.get("/health")
    assert answer.status_code == 200
    body = answer.json()
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
    assert 0 < body["checks"]["database"]["latency_ms"] < 1_000
    live, ready = await client.get("/health/live"), await client.get("/health/ready")
    assert (live.status_code, live.json()) == (200, {"status": "alive"})
    assert (ready.status_code, ready.json()) == (200, {"status": "ready"})


async def told(client: httpx.AsyncClient, path: str) -> tuple[int, dict[str, Any], float]:
    """Ask, and take the time."""
    begun = time.perf_counter()
    answer = await client.get(path, timeout=10)
    return answer.status_code, answer.json(), time.perf_counter() - begun


async def test_without_a_database(folder: Path) -> None:
    down = f"postgresql://nobody@127.0.0.1:{free_port()}/nothing"
    async with visiting(settings_for(down, folder)) as client:
        status, body, _ = await told(client, "/health")
        assert status == 500
        assert body["status"] == "unhealthy"
        assert body["error"] == "database unavailable"
        assert body["database"] == "disconnected"
        status, body, _ = await told(client, "/health/ready")
        assert (status, body["reasons"]) == (503, ["database unavailable"])
        assert (await client.get("/health/live")).status_code == 200
        answer = await client.get("/api/books")
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "1"
        assert answer.json()["error"] == "Service Unavailable"
        assert "127.0.0.1" not in answer.text


async def test_with_a_database_that_hangs(folder: Path) -> None:
    async with black_hole() as port:
        hung = f"postgresql://nobody@127.0.0.1:{port}/nothing"
        async with visiting(settings_for(hung, folder)) as client:
            answers = await asyncio.gather(
                *(told(client, "/health") for _ in range(5)), told(client, "/health/live")
            )
            for status, body, seconds in answers[:-1]:
                assert (status, body["status"]) == (500, "unhealthy")
                # A check that began earlier ends by its own limit, and has failed.
                outcome = body["checks"]["database"]["status"]
                assert outcome in {"timeout", "failed"}
                assert seconds < 3
            assert answers[-1][0] == 200
            status, _, seconds = await told(client, "/health/ready")
            assert (status, seconds < 3) == (503, True)
            begun = time.perf_counter()
            busy = await client.get("/api/books", timeout=15)
            assert (busy.status_code, time.perf_counter() - begun < 15) == (503, True)


async def test_redis_is_watched_but_not_needed(site: Site, folder: Path, redis_url: str) -> None:
    url = site.another_url
    async with black_hole() as port:
        for redis, outcome in (
            (redis_url, "ok"),
            (f"redis://127.0.0.1:{free_port()}/0", "failed"),
            (f"redis://127.0.0.1:{port}/0", "timeout"),
        ):
            async with visiting(settings_for(url, folder, redis_url=redis)) as client:
                status, body, seconds = await told(client, "/health")
                assert status == 200
                assert body["status"] == ("healthy" if outcome == "ok" else "degraded")
                assert body["checks"]["redis"]["status"] == outcome
                assert seconds < 3
                assert (await client.get("/health/ready")).status_code == 200


@pytest.mark.parametrize("revision", [None, "0001", "9999"])
async def test_not_ready_while_migrations_are_behind(
    site: Site,
    client: httpx.AsyncClient,
    revision: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health, "SHARED_SECONDS", 0.0)
    engine = site.database.writer

    async def become(command: str) -> None:
        async with engine.begin() as connection:
            await connection.execute(text(command))

    if revision is None:
        await become("ALTER TABLE alembic_version RENAME TO elsewhere")
    else:
        await become(f"UPDATE alembic_version SET version_num = '{revision}'")
    try:
        status, body, _ = await told(client, "/health/ready")
        assert status == (200 if revision == "9999" else 503)
        assert revision == "9999" or body == {
            "status": "not ready",
            "reasons": ["migrations are behind: run octavo migrate"],
        }
        assert (await client.get("/health")).status_code == 200
    finally:
        if revision is None:
            await become("ALTER TABLE elsewhere RENAME TO alembic_version")
        else:
            await become(f"UPDATE alembic_version SET version_num = '{migrations.head()}'")
    assert (await client.get("/health/ready")).status_code == 200


async def test_not_ready_while_draining(site: Site, client: httpx.AsyncClient) -> None:
    state = site.app.extensions["health"]
    state.serving = False
    try:
        status, body, _ = await told(client, "/health/ready")
        assert (status, body["reasons"]) == (503, ["starting or draining"])
        assert (await client.get("/health/live")).status_code == 200
    finally:
        state.serving = True


async def test_an_outcome_is_shared_for_a_second(
    site: Site, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many monitors ask, a dependency is asked once; and soon again."""
    state, asked = site.app.extensions["health"], 0

    async def ask() -> None:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.05)

    monkeypatch.setitem(state._checks, "database", ask)
    state._known.clear()
    await asyncio.gather(*(client.get("/health") for _ in range(20)))
    assert asked == 1
    await asyncio.sleep(health.SHARED_SECONDS)
    await client.get("/health")
    assert asked == 2
    state._known.clear()


def test_a_checkout_knows_its_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known = health._git_revision()
    assert known is None or re.fullmatch(r"[0-9a-f]{40}", known)
    monkeypatch.setattr(health, "__file__", str(tmp_path / "service" / "health.py"))
    assert health._git_revision() is None, "somebody else's, if any"
    monkeypatch.setenv("PATH", "")
    assert health._git_revision() is None
