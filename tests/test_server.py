"""HTTP/1.1 as Hypercorn speaks it for Octavo, over a raw socket."""

import asyncio
import json
import socket
from collections import Counter
from typing import Any

import hypercorn.protocol
import pytest
from hypercorn.protocol.h11 import H11Protocol

from service.server.http1 import Http1, install
from service.server.worker import ACCEPTED_AT_ONCE, Loop
from tests.conftest import Site
from tests.test_web import raw


async def test_an_absolute_target_names_the_host(site: Site) -> None:
    request = b"GET HTTP://books.example.org/api/books HTTP/1.1\r\nHost: x\r\n\r\n"
    status, _, answer = await raw(site, request)
    assert status == 200
    assert json.loads(answer)["links"]["self"].startswith("http://books.example.org/api/books?")
    status, _, _ = await raw(site, b"GET http://x?page=1 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status == 400, "the front page takes no page"


@pytest.mark.parametrize(
    "offer",
    [
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nConnection: Upgrade, HTTP2-Settings",
        b"Upgrade: websocket\r\nConnection: Upgrade",
        b"Upgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13",
    ],
)
async def test_an_offer_to_speak_otherwise_is_left(site: Site, offer: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    for _ in range(2):
        writer.write(b"GET /health/live HTTP/1.1\r\nHost: x\r\n" + offer + b"\r\n\r\n")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 9)
        assert head.startswith(b"HTTP/1.1 200")
        assert await reader.readexactly(18) == b'{"status":"alive"}'
    writer.close()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET / HTTP/3.0\r\nHost: x\r\n\r\n", 505),
        (b"get /api/books HTTP/1.1\r\nHost: x\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"x" * 70_000 + b"\r\n\r\n", 431),
    ],
)
async def test_what_is_no_http_is_refused_in_the_one_shape(
    site: Site, request_bytes: bytes, status: int
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write(request_bytes)
    head, _, body = (await asyncio.wait_for(reader.read(), 9)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"content-type: application/problem+json" in head
    told = json.loads(body)
    assert told["status"] == status
    assert f"x-request-id: {told['request_id']}".encode() in head
    writer.close()


async def test_only_hypercorns_own_protocol_is_replaced() -> None:
    """Where it looks that up is no promise of its: this says so, should it move."""
    install()
    assert vars(hypercorn.protocol)["H11Protocol"] is Http1
    assert {"_check_protocol", "_create_stream", "_send_error_response"} <= set(vars(H11Protocol))


async def test_a_busy_worker_accepts_many_connections_in_one_turn() -> None:
    """libuv alone accepts one in a turn, so that new connections wait while others are served."""
    turn, accepted = 0, Counter[int]()

    class Accepted(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted[turn] += 1
            transport.close()

    async def listen() -> None:
        nonlocal turn
        loop: Any = asyncio.get_running_loop()
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(1_000)
        address = listener.getsockname()
        await loop.create_server(Accepted, sock=listener, backlog=1_000)
        clients = [socket.create_connection(address) for _ in range(10 * ACCEPTED_AT_ONCE)]
        while accepted.total() < len(clients):
            turn += 1
            await asyncio.sleep(0)
        for client in clients:
            client.close()
        for server in loop.listeners:
            server.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)

    def run() -> None:
        with asyncio.Runner(loop_factory=Loop) as runner:
            runner.run(listen())

    await asyncio.to_thread(run)  # a loop of its own needs a thread of its own
    assert max(accepted.values()) == ACCEPTED_AT_ONCE
