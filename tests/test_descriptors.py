"""A worker that has no file descriptors left. A real server."""

import asyncio
import resource
from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import SECRET
from tests.test_cli import served

SPARE, CLIENTS = 20, 200
DEADLINE = 30  # seconds
WARNING = "New connections are closed"


@pytest.mark.alone
async def test_running_out_of_descriptors_is_logged_once_and_heals(tmp_path: Path) -> None:
    settings = {
        "OCTAVO_ENV": "testing",
        "TESTING_DATABASE_URL": f"sqlite:///{tmp_path / 'books.db'}",
        "SECRET_KEY": SECRET,
        "RATELIMIT_ENABLED": "false",
    }
    log = tmp_path / "logs" / "app.log"
    kept = httpx.Limits(keepalive_expiry=600)
    async with (
        served(tmp_path, "--prepare", **settings) as (process, url, _),
        httpx.AsyncClient(base_url=url, timeout=DEADLINE, limits=kept) as client,
    ):
        assert (await client.get("/api/books")).status_code == 200
        (server,) = psutil.Process(process.pid).children()
        (worker,) = server.children()
        most = worker.num_fds() + SPARE
        resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (most, most))
        port = int(url.rpartition(":")[2])
        pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(CLIENTS)]
        try:
            async with asyncio.timeout(DEADLINE):
                while WARNING not in log.read_text("utf-8"):
                    await asyncio.sleep(0.1)
            before = worker.cpu_times()
            await asyncio.sleep(5)
            after = worker.cpu_times()
            assert after.user + after.system - before.user - before.system < 2, "it spins"
            for _ in range(20):  # on the connection that is there
                assert (await client.get("/api/books")).status_code == 200
            assert worker.is_running()
        finally:
            for _, writer in pairs:
                writer.transport.abort()
        async with asyncio.timeout(DEADLINE):
            while True:
                try:
                    async with httpx.AsyncClient(base_url=url) as other:
                        assert (await other.get("/api/books")).status_code == 200
                    break
                except httpx.TransportError:
                    await asyncio.sleep(0.1)
        text = log.read_text("utf-8")
    assert text.count(WARNING) == 1
    assert f"ulimit -n: {most})" in text
    assert "Traceback" not in text
