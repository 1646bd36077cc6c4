"""Clients that send or read slowly, and their cost to other clients. Real servers.

With SOAK in the environment, load shedding by loop lag has its default.
"""

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from quart import Quart

from tests.conftest import Site, raised_open_files, serving, settings_for
from tests.factories import PASSWORD
from tests.http_client import TIMEOUT
from tests.test_cli import served

SLOW, OTHERS = 1_000, 143
SOAK = bool(os.environ.get("SOAK"))


@pytest.mark.alone
@pytest.mark.timeout(180)
async def test_a_thousand_slow_bodies_cost_other_clients_nothing(tmp_path: Path) -> None:
    """A request whose body has not arrived takes no place of a request that runs."""
    settings = {
        "DEV_DATABASE_URL": f"sqlite:///{tmp_path / 'books.db'}",
        "RATELIMIT_ENABLED": "false",
        "SHED_LAG_SECONDS": "" if SOAK else "60",  # a busy machine lags
    }
    with raised_open_files(SLOW + 500) as most:
        await send_slow_bodies(tmp_path, settings, min(SLOW, most - 500))


async def send_slow_bodies(tmp_path: Path, settings: dict[str, str], number: int) -> None:
    """Serve with settings; assert that every request succeeds beside this number of slow ones."""
    async with served(tmp_path, "--prepare", **settings) as (_, url, _):
        async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT) as client:
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
        all_have_begun = asyncio.Event()

        async def send_slowly() -> None:
            nonlocal begun
            while True:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(head)
                begun += 1
                if begun == number:
                    all_have_begun.set()
                try:
                    while not writer.is_closing():
                        await asyncio.sleep(1)
                        writer.write(b" ")
                        await writer.drain()
                except ConnectionError:
                    pass  # the server has closed the connection: open another
                finally:
                    writer.transport.abort()

        async def send(client: httpx.AsyncClient, n: int) -> int:
            if n % 4 == 0:
                book = {"title": f"Title {n}", "author": "Anna"}
                return (await client.post("/api/books", json=book, headers=headers)).status_code
            path = ("/api/books/1", "/api/books?per_page=20", "/health/live")[n % 4 - 1]
            return (await client.get(path)).status_code

        slow = [asyncio.create_task(send_slowly()) for _ in range(number)]
        try:
            await asyncio.wait_for(all_have_begun.wait(), TIMEOUT)
            statuses: list[int] = []
            async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT) as client:
                for n in range(0, OTHERS, 11):
                    wave = (send(client, k) for k in range(n, min(n + 11, OTHERS)))
                    statuses += await asyncio.gather(*wave)
                    await asyncio.sleep(0.3)
        finally:
            for task in slow:
                task.cancel()
            await asyncio.gather(*slow, return_exceptions=True)
    assert len(statuses) == OTHERS
    assert set(statuses) == {200, 201}, {status: statuses.count(status) for status in statuses}


@pytest.mark.parametrize("http1", ["httptools", "h11"])
async def test_a_client_that_never_reads_is_cut_over_either_parser(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch, http1: str
) -> None:
    """Hypercorn's own protocols wait for such a client without a timeout."""
    monkeypatch.setattr("service.server.hypercorn_config.STALL_SECONDS", 2.0)

    def large(app: Quart) -> None:
        @app.get("/large")
        async def large() -> bytes:
            return b"a" * 30_000_000

    changed: dict[str, Any] = {"http1_parser": http1, "keep_alive_seconds": 600}
    async with serving(settings_for(site.another_url, folder, **changed), large) as served_site:
        loop, client = asyncio.get_running_loop(), socket.socket()

        def is_open(address: tuple[str, int]) -> bool:
            connections = psutil.Process().net_connections(kind="tcp")
            return any(c.raddr == address and c.laddr.port == served_site.port for c in connections)

        try:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", served_site.port))
            address = client.getsockname()
            await loop.sock_sendall(client, b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
            async with asyncio.timeout(TIMEOUT):
                while not is_open(address):  # the server has yet to accept it
                    await asyncio.sleep(0.01)
                while is_open(address):
                    await asyncio.sleep(0.1)
        finally:
            client.close()
