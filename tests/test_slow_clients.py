"""Clients that send or read as slowly as they can: what they cost others. A real server."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest
from quart import Quart

from tests.conftest import Site, serving, settings_for

DEADLINE = 30  # seconds


@pytest.mark.parametrize("http1", ["httptools", "h11"])
async def test_the_system_cuts_who_never_reads_whatever_protocol_serves(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch, http1: str
) -> None:
    """Hypercorn's own protocols wait for such a client without a bound."""
    monkeypatch.setattr("service.server.hypercorn.STALL_SECONDS", 1.0)

    def large(app: Quart) -> None:
        @app.get("/large")
        async def large() -> bytes:
            return b"a" * 30_000_000

    changed: dict[str, Any] = {"http1": http1, "keep_alive_seconds": 600}
    async with serving(settings_for(site.another_url, folder, **changed), large) as served_site:
        loop, client = asyncio.get_running_loop(), socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", served_site.port))
        here = client.getsockname()
        await loop.sock_sendall(client, b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")

        def is_open() -> bool:
            found = psutil.Process().net_connections(kind="tcp")
            return any(c.raddr == here and c.laddr.port == served_site.port for c in found)

        try:
            assert is_open()
            async with asyncio.timeout(DEADLINE):
                while is_open():
                    await asyncio.sleep(0.1)
        finally:
            client.close()
