"""HTTP/1.1 of a served application, over a raw socket."""

import asyncio
import json
import socket
from collections import Counter
from typing import Any

import hypercorn.protocol
import pytest
from hypercorn.protocol.h11 import H11Protocol

from service.server.http1 import Http1, install
from service.server.worker import LISTENERS_PER_SOCKET, Loop
from tests.conftest import Site
from tests.http_client import TIMEOUT, send_raw


async def test_an_absolute_target_names_the_host(site: Site) -> None:
    request = b"GET HTTP://books.example.org/api/books HTTP/1.1\r\nHost: x\r\n\r\n"
    status, _, content = await send_raw(site, request)
    assert status == 200
    assert json.loads(content)["links"]["self"].startswith("http://books.example.org/api/books?")
    status, _, _ = await send_raw(site, b"GET http://x?page=1 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status == 400, "the home page has no parameter `page`"


@pytest.mark.parametrize(
    "offer",
    [
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nConnection: Upgrade, HTTP2-Settings",
        b"Upgrade: websocket\r\nConnection: Upgrade",
        b"Upgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13",
    ],
)
async def test_an_offer_to_change_the_protocol_is_ignored(site: Site, offer: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    try:
        for _ in range(2):
            writer.write(b"GET /health/live HTTP/1.1\r\nHost: x\r\n" + offer + b"\r\n\r\n")
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), TIMEOUT)
            assert head.startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(18) == b'{"status":"alive"}'
    finally:
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
async def test_bytes_that_are_not_http_are_refused_with_a_problem_document(
    site: Site, request_bytes: bytes, status: int
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    try:
        writer.write(request_bytes)
        received = await asyncio.wait_for(reader.read(), TIMEOUT)
    finally:
        writer.close()
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"content-type: application/problem+json" in head
    problem = json.loads(body)
    assert problem["status"] == status
    assert f"x-request-id: {problem['request_id']}".encode() in head


async def test_only_hypercorns_own_protocol_is_replaced() -> None:
    """Hypercorn does not document where it looks up the class: this test fails if that moves."""
    install()
    assert vars(hypercorn.protocol)["H11Protocol"] is Http1
    assert {"_check_protocol", "_create_stream", "_send_error_response"} <= set(vars(H11Protocol))


async def test_a_busy_worker_accepts_many_connections_in_one_turn() -> None:
    """libuv alone accepts 1 connection in a tick: new connections would wait."""
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
        clients: list[socket.socket] = []
        try:
            clients += (socket.create_connection(address) for _ in range(10 * LISTENERS_PER_SOCKET))
            while accepted.total() < len(clients):
                turn += 1
                await asyncio.sleep(0)
        finally:
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
    assert max(accepted.values()) == LISTENERS_PER_SOCKET
