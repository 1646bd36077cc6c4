"""Octavo's HTTP/1.1 within Hypercorn: its place, its end, TLS, and Hypercorn's settings."""

import asyncio
import hashlib
import inspect
import ssl
from pathlib import Path
from typing import Any

import httpx
import hypercorn.asyncio.run
import hypercorn.protocol
import pytest
import trustme
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.http_stream import HTTPStream

from service.server.http1 import Http1, Server, install
from tests.http1.site import TIMEOUT, Log, bare, echo, respond
from tests.http1.test_corpus import next_response
from tests.http1.test_exchange import BOTH, GET, LAST, part, sending, start

# Of Hypercorn 0.18.0. Octavo's code replaces each object, or depends on its behaviour.
SEAM: dict[Any, str] = {
    hypercorn.asyncio.run.worker_serve: "makes a TCPServer, a name of its module, for each "
    "connection, waits for these tasks at the end, and cancels them after graceful_timeout",
    TCPServer: "is replaced by Server: `run`, and the attributes of its constructor",
    ProtocolWrapper: "makes H11Protocol, a name of its module, and selects HTTP/2 by ALPN",
    HTTPStream: "makes the same scope as Connection",
}
DIGEST = "8af1f86092a2de00"


def test_the_parts_of_hypercorn_that_octavo_depends_on_have_not_changed() -> None:
    """With another version of Hypercorn: read the changes, then update the digest."""
    install()
    assert vars(hypercorn.asyncio.run)["TCPServer"] is Server, "see service.http1.install"
    assert vars(hypercorn.protocol)["H11Protocol"] is Http1, "see service.http1.install"
    text = "\n".join(inspect.getsource(part) for part in SEAM)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    facts = "\n".join(f"{part.__qualname__} {fact}" for part, fact in SEAM.items())
    assert digest == DIGEST, f"Hypercorn has changed. Are these still true?\n{facts}"


@BOTH
async def test_shutdown_closes_idle_connections_and_waits_for_responses(http1: str) -> None:
    """The busy request continues when the idle connection is closed: the order is proven."""
    begun, go_on = asyncio.Event(), asyncio.Event()
    long = {"graceful_timeout": 600, "keep_alive_timeout": 600}  # neither ends a connection

    async def app(scope: Any, receive: Any, send: Any) -> None:
        begun.set()
        await go_on.wait()
        await respond(send, 200, b"abc")

    async with bare(app, http1=http1, **long) as site:
        idle, idle_writer = await site.connect()
        busy, writer = await site.connect()
        writer.write(GET)
        await begun.wait()
        closed = asyncio.ensure_future(idle.read())
        closed.add_done_callback(lambda _: go_on.set())
    assert await closed == b""
    assert (await busy.read()).endswith(b"\r\n\r\nabc")
    for opened in (writer, idle_writer):
        opened.close()


async def test_a_request_that_outlasts_the_graceful_timeout_is_cancelled() -> None:
    events: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        events.append("begun")
        try:
            await asyncio.sleep(3_600)
        except asyncio.CancelledError:
            events.append("cancelled")
            raise

    async with bare(app, graceful_timeout=0.3) as site:
        reader, writer = await site.connect()
        writer.write(GET)
        while not events:
            await asyncio.sleep(0.01)
    assert events == ["begun", "cancelled"]
    assert await reader.read() == b""
    writer.close()


async def test_while_draining_each_response_closes_its_connection() -> None:
    async with bare() as site:
        reader, writer = await site.connect()
        writer.write(GET)
        assert await next_response(reader) is not None
        site.config.draining = True
        writer.write(GET)
        assert b"\r\nconnection: close\r\n" in await asyncio.wait_for(reader.read(), TIMEOUT)
        writer.close()


async def test_settings_of_hypercorn_apply() -> None:
    async with bare(keep_alive_max_requests=3) as site:
        reader, writer = await site.connect()
        writer.write(GET * 5)
        received = await asyncio.wait_for(reader.read(), TIMEOUT)
        assert (received.count(b"HTTP/1.1 200"), received.count(b"connection: close")) == (3, 1)
        writer.close()
    async with bare(server_names=["x"]) as site:
        for host, status in ((b"x", b"200"), (b"y", b"404")):
            reader, writer = await site.connect()
            writer.write(LAST.replace(b"Host: x", b"Host: " + host))
            assert (await reader.readline()).split()[1] == status
            writer.close()
    async with bare(max_requests=2) as site:
        reader, writer = await site.connect()
        writer.write(GET * 3)
        received = await asyncio.wait_for(reader.read(), TIMEOUT)
        assert received.count(b"HTTP/1.1 200") == 3
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await site.connect()


@BOTH
async def test_the_access_log_of_hypercorn_receives_each_request(http1: str) -> None:
    log: Any = Log([])
    log.access_logger = True
    begun = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        begun.set()
        if scope["path"] != "/gone":
            await respond(send, 201, b"")
        while (await receive())["type"] != "http.disconnect":
            pass

    async with bare(app, http1=http1, _log=log) as site:
        for number, path in enumerate((b"/a", b"/gone")):
            begun.clear()
            reader, writer = await site.connect()
            writer.write(GET.replace(b"/ ", path + b" "))
            if path == b"/a":
                await next_response(reader)
            await begun.wait()
            writer.close()
            async with asyncio.timeout(TIMEOUT):
                while len(log.accesses) == number:
                    await asyncio.sleep(0.01)
    assert log.accesses == [("/a", 201), ("/gone", None)]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """A certificate, and a TLS context of clients that trusts it."""
    authority, folder = trustme.CA(), tmp_path_factory.mktemp("tls")
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(folder / "both.pem")
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    return folder / "both.pem", trusted


@BOTH
@pytest.mark.parametrize("http2", [False, True])
async def test_requests_and_responses_over_tls(
    tls: tuple[Path, ssl.SSLContext], http1: str, http2: bool
) -> None:
    path, trusted = tls
    async with (
        bare(http1=http1, certfile=str(path), keyfile=str(path)) as site,
        httpx.AsyncClient(verify=trusted, http2=http2, timeout=TIMEOUT) as client,
    ):
        for size in (0, 3, 300_000):
            body = "a" * size
            response = await client.post(f"https://127.0.0.1:{site.port}/a", content=body)
            assert response.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
            digest = hashlib.sha256(body.encode()).hexdigest()
            assert response.json()["body"] == (body if size < 100 else digest)


async def test_a_large_response_over_tls(tls: tuple[Path, ssl.SSLContext]) -> None:
    path, trusted = tls
    body = bytes(range(256)) * 20_000
    parts = [part(body[n : n + 70_000], True) for n in range(0, len(body), 70_000)]
    async with (
        bare(sending(start(), *parts, part(b"")), certfile=str(path), keyfile=str(path)) as site,
        httpx.AsyncClient(verify=trusted, timeout=TIMEOUT) as client,
    ):
        for _ in range(2):
            assert (await client.get(f"https://127.0.0.1:{site.port}")).content == body


async def test_bytes_that_arrive_with_the_connection_are_not_lost() -> None:
    async with bare(echo) as site:
        pairs = [await site.connect() for _ in range(200)]
        for _, writer in pairs:
            writer.write(LAST)
        received = await asyncio.gather(*(reader.read() for reader, _ in pairs))
        assert all(response.startswith(b"HTTP/1.1 200") for response in received)
        # Bytes that arrive together with the connection and with its end.
        for _ in range(50):
            reader, writer = await site.connect()
            writer.write(GET)
            writer.write_eof()
            assert (await asyncio.wait_for(reader.read(), TIMEOUT)).startswith(b"HTTP/1.1 200")
            writer.close()
        for _, writer in pairs:
            writer.close()
