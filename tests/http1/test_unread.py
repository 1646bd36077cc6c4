"""Answers before the end of a body, and answers that nobody reads: both have to end."""

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
from tests.http1.site import Bare, answer, bare, read
from tests.http1.test_corpus import next_answer
from tests.http1.test_exchange import BOTH, GET, part, saying, start
from tests.http1.test_serving import tls

__all__ = ["tls"]  # a fixture
DEADLINE = 30  # seconds: for whatever has to happen at once
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


async def drip(writer: asyncio.StreamWriter, piece: bytes, pause: float = 0.05) -> None:
    """Send a piece now and then, until the connection ends."""
    with suppress(ConnectionError):
        while not writer.is_closing():
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)


async def closed(site: Bare) -> None:
    """Wait until no connection is open."""
    async with asyncio.timeout(DEADLINE):
        while site.config.serving.connections:
            await asyncio.sleep(0.02)


def test_the_bounds_are_as_documented() -> None:
    assert transport.UNREAD_SECONDS <= 5
    assert transport.LINGER_SECONDS <= 5
    assert transport.UNREAD_BYTES == 65_536
    assert transport.STALL_SECONDS == 20


@BOTH
@pytest.mark.parametrize("raw", [POST % 60_000, POST % 90_000, CHUNKED])
async def test_a_trickle_after_the_answer_holds_no_connection(
    monkeypatch: pytest.MonkeyPatch, http1: str, raw: bytes
) -> None:
    """Whether the answer says that the connection stays, or that it ends."""
    for name in ("UNREAD_SECONDS", "LINGER_SECONDS"):
        monkeypatch.setattr(transport, name, 0.5)
    answering = saying(start((b"content-length", b"3"), status=401), part(b"abc"))
    async with bare(answering, http1=http1) as site:
        reader, writer = await site.connect()
        writer.write(raw)
        async with asyncio.timeout(DEADLINE):
            head = await reader.readuntil(b"\r\n\r\n")
            stays = raw == POST % 60_000 and http1 == "httptools"
            assert (b"connection: close" in head) is not stays
            dripping = asyncio.ensure_future(
                drip(writer, b"1\r\na\r\n" if raw == CHUNKED else b"a")
            )
            with suppress(ConnectionError):
                assert await reader.read() == b"abc"
            await dripping
        writer.close()


async def test_a_body_that_comes_in_time_after_its_answer_keeps_the_connection() -> None:
    async with bare(saying(start(status=401), part(b"abc"))) as site:
        reader, writer = await site.connect()
        writer.write(POST % 60_000)
        assert await next_answer(reader) == (401, b"abc")
        for _ in range(60):
            writer.write(b"a" * 1_000)
            await asyncio.sleep(0.001)
        writer.write(GET)
        assert await asyncio.wait_for(next_answer(reader), DEADLINE) == (401, b"abc")
        writer.close()


@pytest.mark.parametrize("raw", [POST % 10_000_000_000, CHUNKED])
async def test_a_flood_after_the_answer_ends_before_its_time(
    monkeypatch: pytest.MonkeyPatch, raw: bytes
) -> None:
    monkeypatch.setattr(transport, "LINGER_SECONDS", 600.0)
    async with bare(saying(start(status=413), part(b"abc"))) as site:
        reader, writer = await site.connect()
        writer.write(raw)
        async with asyncio.timeout(DEADLINE):
            assert b"connection: close" in await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(3) == b"abc"
            await drip(writer, b"1000\r\n" + b"a" * 4_096 + b"\r\n", 0.001)
        writer.close()


@BOTH
async def test_a_408_is_the_last_answer(http1: str) -> None:
    """The client may have sent the rest in the meantime: it would look like another request."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await answer(send, 408, b"abc")

    async with bare(app, http1=http1) as site:
        reader, writer = await site.connect()
        writer.write(POST % 3 + b"a")
        async with asyncio.timeout(DEADLINE):
            reply = await reader.read()
        assert b"connection: close\r\n" in reply
        assert reply.endswith(b"abc")
        writer.close()


@pytest.mark.parametrize("size", [60_000, 3_000_000])
async def test_an_answer_that_nobody_reads_is_cut_long_before_an_idle_connection(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Also where the application has sent all of it, as it waits within the server."""
    monkeypatch.setattr(transport, "STALL_SECONDS", 1.0)
    app = saying(start(), part(b"a" * size))
    async with bare(app, keep_alive_timeout=600) as site:
        loop, client = asyncio.get_running_loop(), socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", site.port))
        async with asyncio.timeout(DEADLINE):
            while not site.config.serving or not site.config.serving.connections:
                await asyncio.sleep(0.01)
        (connection,) = site.config.serving.connections
        served = connection._transport.get_extra_info("socket")
        served.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        await loop.sock_sendall(client, GET)
        await closed(site)
        client.close()


async def test_who_reads_a_little_now_and_then_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """For six times as long as a client may stand still."""
    monkeypatch.setattr(transport, "STALL_SECONDS", 1.0)
    body = b"a" * 3_000_000
    async with bare(saying(start(), part(body)), keep_alive_timeout=1) as site:
        loop, client = asyncio.get_running_loop(), socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", site.port))
        await loop.sock_sendall(client, GET)
        got = 0
        for _ in range(60):
            got += len(await loop.sock_recv(client, 30_000))
            await asyncio.sleep(0.1)
        while piece := await loop.sock_recv(client, 1_000_000):
            got += len(piece)
        assert got > len(body)
        client.close()


async def test_http2_survives_an_answer_before_the_end_of_a_body(
    tls: tuple[Path, ssl.SSLContext],
) -> None:
    """Its stream ends; the others on the connection go on."""
    path, trusted = tls
    trusted.set_alpn_protocols(["h2"])
    held = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/held":
            await read(receive)
            await held.wait()
        await answer(send, 200, scope["path"].encode())

    certificate = {"certfile": str(path), "keyfile": str(path), "alpn_protocols": ["h2"]}
    async with bare(app, **certificate) as site, asyncio.timeout(DEADLINE):
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port, ssl=trusted)
        client = H2Connection(H2Configuration(client_side=True))
        client.initiate_connection()

        def ask(stream: int, url: str, method: str = "GET") -> None:
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

        ask(1, "/held")
        ask(3, "/early", "POST")
        assert await until(StreamEnded, 3) == b"/early"
        with suppress(Exception):  # the client may know of the end of the stream already
            client.send_data(3, b"a" * 10_000)
        ask(5, "/other")
        assert await until(StreamEnded, 5) == b"/other"
        held.set()
        assert await until(StreamEnded, 1) == b"/held"
        ask(7, "/early", "POST")
        await until(StreamReset, 7)
        writer.close()
    assert not site.logged
