"""Responses before the end of a body, and responses that the client does not read: both end."""

import asyncio
import socket
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, StreamEnded, StreamReset

from service.server.http1 import transport
from tests.http1.site import TIMEOUT, bare, read, respond
from tests.http1.test_corpus import next_response
from tests.http1.test_exchange import BOTH, GET, part, sending, start
from tests.http1.test_serving import tls

__all__ = ["tls"]  # a fixture
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


async def drip(writer: asyncio.StreamWriter, piece: bytes, pause: float = 0.05) -> None:
    """Send a piece at an interval until the connection ends."""
    with suppress(ConnectionError):
        while not writer.is_closing():
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)


def test_the_limits_are_as_documented() -> None:
    assert transport.UNREAD_SECONDS <= 5
    assert transport.LINGER_SECONDS <= 5
    assert transport.UNREAD_BYTES == 65_536
    assert transport.STALL_SECONDS == 20


@BOTH
@pytest.mark.parametrize("raw", [POST % 60_000, POST % 90_000, CHUNKED])
async def test_a_body_that_trickles_after_the_response_does_not_keep_the_connection(
    monkeypatch: pytest.MonkeyPatch, http1: str, raw: bytes
) -> None:
    """Whether the response keeps the connection or announces its end."""
    for name in ("UNREAD_SECONDS", "LINGER_SECONDS"):
        monkeypatch.setattr(transport, name, 0.5)
    app = sending(start((b"content-length", b"3"), status=401), part(b"abc"))
    async with bare(app, http1=http1) as site:
        reader, writer = await site.connect()
        writer.write(raw)
        async with asyncio.timeout(TIMEOUT):
            head = await reader.readuntil(b"\r\n\r\n")
            stays = raw == POST % 60_000 and http1 == "httptools"
            assert (b"connection: close" in head) is not stays
            dripping = asyncio.ensure_future(
                drip(writer, b"1\r\na\r\n" if raw == CHUNKED else b"a")
            )
            try:
                with suppress(ConnectionError):
                    assert await reader.read() == b"abc"
                await dripping
            finally:
                dripping.cancel()
        writer.close()


async def test_a_body_that_ends_soon_after_its_response_keeps_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport, "UNREAD_SECONDS", 600.0)  # a busy machine may be slow
    async with bare(sending(start(status=401), part(b"abc"))) as site:
        reader, writer = await site.connect()
        writer.write(POST % 60_000)
        assert await next_response(reader) == (401, b"abc")
        for _ in range(60):
            writer.write(b"a" * 1_000)
            await asyncio.sleep(0.001)
        writer.write(GET)
        assert await asyncio.wait_for(next_response(reader), TIMEOUT) == (401, b"abc")
        writer.close()


@pytest.mark.parametrize("raw", [POST % 10_000_000_000, CHUNKED])
async def test_a_flood_after_the_response_is_cut_by_its_size(
    monkeypatch: pytest.MonkeyPatch, raw: bytes
) -> None:
    monkeypatch.setattr(transport, "LINGER_SECONDS", 600.0)
    async with bare(sending(start(status=413), part(b"abc"))) as site:
        reader, writer = await site.connect()
        writer.write(raw)
        async with asyncio.timeout(TIMEOUT):
            assert b"connection: close" in await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(3) == b"abc"
            await drip(writer, b"1000\r\n" + b"a" * 4_096 + b"\r\n", 0.001)
        writer.close()


@BOTH
async def test_a_408_is_the_last_response_of_a_connection(http1: str) -> None:
    """The client may have sent the rest meanwhile: it would be read as another request."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await respond(send, 408, b"abc")

    async with bare(app, http1=http1) as site:
        reader, writer = await site.connect()
        writer.write(POST % 3 + b"a")
        async with asyncio.timeout(TIMEOUT):
            received = await reader.read()
        assert b"connection: close\r\n" in received
        assert received.endswith(b"abc")
        writer.close()


@pytest.mark.parametrize("size", [60_000, 3_000_000])
async def test_an_unread_response_is_cut_long_before_an_idle_connection(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Also if the application has sent all of it, and it waits in the server."""
    monkeypatch.setattr(transport, "STALL_SECONDS", 1.0)
    app = sending(start(), part(b"a" * size))
    async with bare(app, keep_alive_timeout=600) as site:
        loop = asyncio.get_running_loop()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", site.port))
            await site.until_connected()
            (connection,) = site.config.serving.connections
            accepted = connection._transport  # private: sets the buffer of this socket alone
            served = accepted.get_extra_info("socket")
            served.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
            await loop.sock_sendall(client, GET)
            await site.until_closed()


async def test_a_client_that_reads_slowly_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads for 3 times as long as a client may stall."""
    monkeypatch.setattr(transport, "STALL_SECONDS", 2.0)
    body = b"a" * 3_000_000
    async with bare(sending(start(), part(body)), keep_alive_timeout=1) as site:
        loop, received = asyncio.get_running_loop(), 0
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", site.port))
            await loop.sock_sendall(client, GET)
            for _ in range(60):
                received += len(await loop.sock_recv(client, 30_000))
                await asyncio.sleep(0.1)
            while piece := await loop.sock_recv(client, 1_000_000):
                received += len(piece)
        assert received > len(body)


async def test_http2_survives_a_response_before_the_end_of_a_body(
    tls: tuple[Path, ssl.SSLContext],
) -> None:
    """Its stream ends; the other streams of the connection continue."""
    path, trusted = tls
    trusted.set_alpn_protocols(["h2"])
    held = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/held":
            await read(receive)
            await held.wait()
        await respond(send, 200, scope["path"].encode())

    certificate = {"certfile": str(path), "keyfile": str(path), "alpn_protocols": ["h2"]}
    async with bare(app, **certificate) as site, asyncio.timeout(TIMEOUT):
        reader, writer = await site.connect(ssl=trusted)
        client = H2Connection(H2Configuration(client_side=True))
        client.initiate_connection()

        def send(stream: int, url: str, method: str = "GET") -> None:
            pseudo = {":method": method, ":path": url, ":scheme": "https", ":authority": "x"}
            client.send_headers(stream, [*pseudo.items()], end_stream=method == "GET")

        async def until(kind: type[Event], stream: int) -> bytes:
            body = b""
            while True:
                writer.write(client.data_to_send())
                data = await reader.read(65_536)
                assert data, "the connection has ended"
                for event in client.receive_data(data):
                    if isinstance(event, DataReceived) and event.stream_id == stream:
                        body += event.data
                    if isinstance(event, kind) and getattr(event, "stream_id", 0) == stream:
                        return body

        send(1, "/held")
        send(3, "/early", "POST")
        assert await until(StreamEnded, 3) == b"/early"
        with suppress(Exception):  # the stream of the client may have ended already
            client.send_data(3, b"a" * 10_000)
        send(5, "/other")
        assert await until(StreamEnded, 5) == b"/other"
        held.set()
        assert await until(StreamEnded, 1) == b"/held"
        send(7, "/early", "POST")
        await until(StreamReset, 7)
        writer.close()
    assert not site.logged
