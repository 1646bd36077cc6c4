"""A worker that has no free file descriptors. A real server."""

import asyncio
import resource
from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import SECRET
from tests.http_client import TIMEOUT
from tests.test_cli import served

SPARE, CLIENTS = 20, 200
WARNING = "New connections are closed"


@pytest.mark.alone
async def test_a_lack_of_file_descriptors_is_logged_once_and_survived(tmp_path: Path) -> None:
    settings = {
        "OCTAVO_ENV": "testing",
        "TESTING_DATABASE_URL": f"sqlite:///{tmp_path / 'books.db'}",
        "SECRET_KEY": SECRET,
        "RATELIMIT_ENABLED": "false",
    }
    log = tmp_path / "logs" / "app.log"
    limits = httpx.Limits(keepalive_expiry=600)
    async with (
        served(tmp_path, "--prepare", **settings) as (process, url, _),
        httpx.AsyncClient(base_url=url, timeout=TIMEOUT, limits=limits) as client,
    ):
        assert (await client.get("/api/books")).status_code == 200
        (server,) = psutil.Process(process.pid).children()
        (worker,) = server.children()
        most = worker.num_fds() + SPARE
        resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (most, most))
        port = int(url.rpartition(":")[2])
        pairs = []
        try:
            for _ in range(CLIENTS):
                pair = await asyncio.open_connection("127.0.0.1", port)
                pairs.append(pair)  # at once, to close it in any case
            async with asyncio.timeout(TIMEOUT):
                while WARNING not in log.read_text("utf-8"):
                    await asyncio.sleep(0.1)
            before = worker.cpu_times()
            await asyncio.sleep(5)
            after = worker.cpu_times()
            assert after.user + after.system - before.user - before.system < 2, (
                "the worker does not spin"
            )
            for _ in range(20):  # on the open connection
                assert (await client.get("/api/books")).status_code == 200
            assert worker.is_running()
        finally:
            for _, writer in pairs:
                writer.transport.abort()
        async with asyncio.timeout(TIMEOUT):
            while True:
                try:
                    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT) as other:
                        assert (await other.get("/api/books")).status_code == 200
                    break
                except httpx.TransportError:
                    await asyncio.sleep(0.1)
        text = log.read_text("utf-8")
    assert text.count(WARNING) == 1
    assert f"ulimit -n: {most})" in text
    assert "Traceback" not in text
