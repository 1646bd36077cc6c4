"""Clients that send or read as slowly as they can: what they cost others. Real servers."""

import asyncio
import resource
import socket
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from quart import Quart

from tests.conftest import Site, serving, settings_for
from tests.factories import PASSWORD
from tests.test_cli import served

SLOW, OTHERS = 1_000, 143
DEADLINE = 30  # seconds


def files_for(connections: int) -> int:
    """Raise the bound of open files: how many connections it allows, at most as many as wanted."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + 500
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted - 500


@pytest.mark.alone
@pytest.mark.timeout(180)
async def test_a_thousand_slow_bodies_cost_other_clients_nothing(tmp_path: Path) -> None:
    """At default settings: a body that has not come is no work."""
    number = files_for(SLOW)
    settings = {
        "DEV_DATABASE_URL": f"sqlite:///{tmp_path / 'books.db'}",
        "RATELIMIT_ENABLED": "false",
        "SHED_LAG_SECONDS": "",  # the default
    }
    async with served(tmp_path, "--prepare", **settings) as (_, url, _):
        async with httpx.AsyncClient(base_url=url, timeout=DEADLINE) as client:
            account = {"username": "anna", "email": "anna@example.org", "password": PASSWORD}
            assert (await client.post("/api/auth/register", json=account)).status_code == 201
            del account["username"]
            token = (await client.post("/api/auth/login", json=account)).json()["token"]
        headers = {"Authorization": f"Bearer {token}"}
        head = (
            "POST /api/books HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {token}\r\nContent-Length: 1000\r\n\r\n{{"
        ).encode()
        port, begun = int(url.rpartition(":")[2]), 0
        all_begun = asyncio.Event()

        async def send_slowly() -> None:
            nonlocal begun
            while True:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(head)
                begun += 1
                if begun == number:
                    all_begun.set()
                try:
                    while not writer.is_closing():
                        await asyncio.sleep(1)
                        writer.write(b" ")
                        await writer.drain()
                except ConnectionError:
                    pass  # it was cut, and comes again
                finally:
                    writer.transport.abort()

        async def ask(client: httpx.AsyncClient, n: int) -> int:
            if n % 4 == 0:
                book = {"title": f"Title {n}", "author": "Anna"}
                return (await client.post("/api/books", json=book, headers=headers)).status_code
            path = ("/api/books/1", "/api/books?per_page=20", "/health/live")[n % 4 - 1]
            return (await client.get(path)).status_code

        slow = [asyncio.create_task(send_slowly()) for _ in range(number)]
        try:
            await asyncio.wait_for(all_begun.wait(), DEADLINE)
            statuses: list[int] = []
            async with httpx.AsyncClient(base_url=url, timeout=DEADLINE) as client:
                for n in range(0, OTHERS, 11):
                    wave = (ask(client, k) for k in range(n, min(n + 11, OTHERS)))
                    statuses += await asyncio.gather(*wave)
                    await asyncio.sleep(0.3)
        finally:
            for task in slow:
                task.cancel()
            await asyncio.gather(*slow, return_exceptions=True)
    assert len(statuses) == OTHERS
    assert set(statuses) == {200, 201}, {status: statuses.count(status) for status in statuses}


@pytest.mark.parametrize("http1", ["httptools", "h11"])
async def test_the_system_cuts_who_never_reads_whatever_protocol_serves(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch, http1: str
) -> None:
    """Hypercorn's own protocols wait for such a client without a bound."""
    monkeypatch.setattr("service.server.hypercorn_config.STALL_SECONDS", 1.0)

    def large(app: Quart) -> None:
        @app.get("/large")
        async def large() -> bytes:
            return b"a" * 30_000_000

    changed: dict[str, Any] = {"http1_parser": http1, "keep_alive_seconds": 600}
    async with serving(settings_for(site.another_url, folder, **changed), large) as served_site:
        loop, client = asyncio.get_running_loop(), socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", served_site.port))
        here = client.getsockname()
        await loop.sock_sendall(client, b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")

        def is_open() -> bool:
            connections = psutil.Process().net_connections(kind="tcp")
            return any(c.raddr == here and c.laddr.port == served_site.port for c in connections)

        try:
            assert is_open()
            async with asyncio.timeout(DEADLINE):
                while is_open():
                    await asyncio.sleep(0.1)
        finally:
            client.close()
