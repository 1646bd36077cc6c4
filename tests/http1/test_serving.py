"""The protocol within Hypercorn: where it stands, how it ends, over TLS, and with a setting."""

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
from tests.http1.site import Log, answer, bare, echo
from tests.http1.test_corpus import next_answer
from tests.http1.test_exchange import BOTH, GET, LAST, part, saying, start

# Of Hypercorn 0.18.0. Of each we do the same in another way, or stand within it.
SEAM: dict[Any, str] = {
    hypercorn.asyncio.run.worker_serve: "makes a TCPServer, found in its module, for each "
    "connection, waits for these tasks at the end, and cancels them after graceful_timeout",
    TCPServer: "is what Server takes the place of: `run`, and what its constructor keeps",
    ProtocolWrapper: "finds H11Protocol in its module, and knows HTTP/2 by ALPN",
    HTTPStream: "makes the scope that Connection makes, too",
}
SEEN = "8af1f86092a2de00"


def test_hypercorn_is_as_it_was_where_we_stand() -> None:
    """Whoever moves to another Hypercorn reads what has changed, then writes its digest here."""
    install()
    assert vars(hypercorn.asyncio.run)["TCPServer"] is Server, "see service.http1.install"
    assert vars(hypercorn.protocol)["H11Protocol"] is Http1, "see service.http1.install"
    text = "\n".join(inspect.getsource(one) for one in SEAM)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    what = "\n".join(f"{one.__qualname__} {does}" for one, does in SEAM.items())
    assert digest == SEEN, f"Hypercorn has changed. Does it still hold that\n{what}?"


@BOTH
async def test_the_end_waits_for_answers_and_closes_what_is_idle(http1: str) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        begun.set()
        await go_on.wait()
        await answer(send, 200, b"abc")

    loop = asyncio.get_running_loop()
    async with bare(app, http1=http1) as site:
        idle, idle_writer = await site.connect()
        busy, writer = await site.connect()
        writer.write(GET)
        await begun.wait()
        loop.call_later(0.5, go_on.set)
        ending = loop.time()
        closed = asyncio.ensure_future(idle.read())
        closed.add_done_callback(lambda _: seconds.append(loop.time() - ending))
        seconds: list[float] = []
    assert 0.4 < loop.time() - ending < 3
    assert await closed == b""
    assert seconds[0] < 0.3
    assert (await busy.read()).endswith(b"\r\n\r\nabc")
    for one in (writer, idle_writer):
        one.close()


async def test_what_does_not_end_in_time_is_cancelled() -> None:
    told: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        told.append("begun")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            told.append("cancelled")
            raise

    begun = asyncio.get_running_loop().time()
    async with bare(app, graceful_timeout=0.3) as site:
        reader, writer = await site.connect()
        writer.write(GET)
        while not told:
            await asyncio.sleep(0.01)
    assert told == ["begun", "cancelled"]
    assert asyncio.get_running_loop().time() - begun < 3
    assert await reader.read() == b""
    writer.close()


async def test_while_draining_each_answer_is_the_last() -> None:
    async with bare() as site:
        reader, writer = await site.connect()
        writer.write(GET)
        assert await next_answer(reader) is not None
        site.config.draining = True
        writer.write(GET)
        assert b"\r\nconnection: close\r\n" in await asyncio.wait_for(reader.read(), 5)
        writer.close()


async def test_hypercorns_own_bounds_hold() -> None:
    async with bare(keep_alive_max_requests=3) as site:
        reader, writer = await site.connect()
        writer.write(GET * 5)
        told = await asyncio.wait_for(reader.read(), 5)
        assert (told.count(b"HTTP/1.1 200"), told.count(b"connection: close")) == (3, 1)
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
        told = await asyncio.wait_for(reader.read(), 5)
        assert told.count(b"HTTP/1.1 200") == 3
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await site.connect()


@BOTH
async def test_hypercorns_access_log_is_told(http1: str) -> None:
    log: Any = Log([])
    log.access_logger = True

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] != "/gone":
            await answer(send, 201, b"")
        while (await receive())["type"] != "http.disconnect":
            pass

    async with bare(app, http1=http1, _log=log) as site:
        for path in (b"/a", b"/gone"):
            reader, writer = await site.connect()
            writer.write(GET.replace(b"/ ", path + b" "))
            if path == b"/a":
                await next_answer(reader)
            else:
                await asyncio.sleep(0.1)
            writer.close()
            await asyncio.sleep(0.1)
    assert log.told == [("/a", 201), ("/gone", None)]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """A certificate, and a client that trusts it."""
    authority, folder = trustme.CA(), tmp_path_factory.mktemp("tls")
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(folder / "both.pem")
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    return folder / "both.pem", trusted


@BOTH
@pytest.mark.parametrize("http2", [False, True])
async def test_tls(tls: tuple[Path, ssl.SSLContext], http1: str, http2: bool) -> None:
    path, trusted = tls
    async with (
        bare(http1=http1, certfile=str(path), keyfile=str(path)) as site,
        httpx.AsyncClient(verify=trusted, http2=http2) as client,
    ):
        for size in (0, 3, 300_000):
            body = "a" * size
            got = await client.post(f"https://127.0.0.1:{site.port}/a", content=body)
            assert got.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
            digest = hashlib.sha256(body.encode()).hexdigest()
            assert got.json()["body"] == (body if size < 100 else digest)


async def test_a_large_answer_over_tls(tls: tuple[Path, ssl.SSLContext]) -> None:
    path, trusted = tls
    body = bytes(range(256)) * 20_000
    parts = [part(body[n : n + 70_000], True) for n in range(0, len(body), 70_000)]
    async with (
        bare(saying(start(), *parts, part(b"")), certfile=str(path), keyfile=str(path)) as site,
        httpx.AsyncClient(verify=trusted) as client,
    ):
        for _ in range(2):
            assert (await client.get(f"https://127.0.0.1:{site.port}")).content == body


async def test_what_came_before_the_protocol_did_is_not_lost() -> None:
    async with bare(echo) as site:
        pairs = [await site.connect() for _ in range(200)]
        for _, writer in pairs:
            writer.write(LAST)
        told = await asyncio.gather(*(reader.read() for reader, _ in pairs))
        assert all(one.startswith(b"HTTP/1.1 200") for one in told)
        # At once with the connection, and with its end.
        for _ in range(50):
            reader, writer = await site.connect()
            writer.write(GET)
            writer.write_eof()
            assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 200")
            writer.close()
        for _, writer in pairs:
            writer.close()
