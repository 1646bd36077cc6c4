"""HTTP/2 over TLS has what HTTP/1.1 has: fast path, limits, 304, HEAD, compression, draining."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)

from tests.codings import tag_for
from tests.conftest import Site
from tests.factories import Factory
from tests.http1.site import Bare, bare, respond
from tests.http_client import TIMEOUT
from tests.test_http2 import HEADERS, Client, certified, encrypted

LIMIT = "40 per hour"
LARGE = b"x" * 200_000  # more than the window of a connection (64 KiB)


@asynccontextmanager
async def http2_client(trusted: ssl.SSLContext, url: str = "") -> AsyncIterator[httpx.AsyncClient]:
    """A client that speaks HTTP/2."""
    async with httpx.AsyncClient(
        http2=True, verify=trusted, base_url=url, timeout=TIMEOUT
    ) as client:
        yield client


async def test_the_fast_path_over_http2(site: Site, make: Factory, folder: Path) -> None:
    """Cached responses do not reach Quart; they are the same as without the cache."""
    book = await make.book(title="書" * 200, author="作" * 100)
    for number in range(8):
        await make.book(title=f"Book {number}")
    dispatched = []
    async with (
        encrypted(site, folder, ratelimit_books_list=LIMIT, ratelimit_books_item=LIMIT) as (
            served,
            trusted,
        ),
        http2_client(trusted, served.url) as client,
    ):

        async def note() -> None:
            dispatched.append(1)

        served.app.before_request_funcs.setdefault(None, []).append(note)
        served.app.extensions["additions"].accept()
        for path in ("/api/books", f"/api/books/{book.id}"):
            first = await client.get(path)
            assert (first.status_code, first.http_version) == (200, "HTTP/2")
            await client.get(path)
            dispatched.clear()
            warm = await client.get(path)
            assert warm.content == first.content
            assert warm.headers["Cache-Status"] == "Octavo; hit"
            assert warm.headers["Content-Encoding"] == "gzip"
            assert warm.headers["ETag"] == tag_for(dict(warm.headers), warm.content)
            own = {"If-None-Match": warm.headers["ETag"]}
            unchanged = await client.get(path, headers=own)
            assert (unchanged.status_code, unchanged.content) == (304, b"")
            assert unchanged.headers["ETag"] == warm.headers["ETag"]
            assert not dispatched
            head = await client.head(path)
            names = ("Content-Encoding", "Content-Length", "ETag", "Vary", "Content-Type")
            assert [head.headers[n] for n in names] == [warm.headers[n] for n in names]
            assert head.content == b""
        dispatched.clear()
        left = int(warm.headers["RateLimit-Remaining"])
        responses = [await client.get(path) for _ in range(left)]
        assert responses[-1].status_code == 429
        assert responses[-1].http_version == "HTTP/2"
        assert int(responses[-1].headers["Retry-After"]) > 0
        assert responses[-1].headers["RateLimit-Remaining"] == "0"
        assert not dispatched


class Gate:
    """An application that responds when the test allows it. begun: number of requests."""

    def __init__(self, body: bytes = b"abc") -> None:
        self.begun = 0
        self.may_respond = asyncio.Event()
        self._body = body

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Respond."""
        self.begun += 1
        await self.may_respond.wait()
        await respond(send, 200, self._body)

    async def until_begun(self, number: int) -> None:
        """Wait for a number of requests."""
        async with asyncio.timeout(TIMEOUT):
            while self.begun < number:
                await asyncio.sleep(0.01)


class Exchange:
    """A client of HTTP/2 that keeps the events of its connection."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.events: list[Event] = []

    def request(self) -> int:
        """Send a GET; return its stream."""
        connection = self.client.connection
        stream = connection.get_next_available_stream_id()
        connection.send_headers(stream, HEADERS, end_stream=True)
        self.client.flush()
        return stream

    async def until(self, kind: type[Event], **fields: Any) -> Any:
        """Read until an event of this kind, with these fields. Return the event."""
        async with asyncio.timeout(TIMEOUT):
            while True:
                for event in self.events:
                    if isinstance(event, kind) and fields.items() <= vars(event).items():
                        return event
                data = await self.client.reader.read(65_536)
                assert data, f"closed before {kind.__name__}: {self.events}"
                self.receive(data)

    def receive(self, data: bytes) -> None:
        """Read frames, and allow the server to send more."""
        connection = self.client.connection
        for event in connection.receive_data(data):
            self.events.append(event)
            if isinstance(event, DataReceived) and event.flow_controlled_length:
                connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        self.client.flush()

    async def end(self) -> ConnectionTerminated:
        """Read to the end of the connection; return its last event, a GOAWAY."""
        async with asyncio.timeout(TIMEOUT):
            while data := await self.client.reader.read(65_536):
                self.receive(data)
        last = self.events[-1]
        assert isinstance(last, ConnectionTerminated)
        return last

    def body(self, stream: int) -> bytes:
        """Return the body of a complete response."""
        own = [event for event in self.events if getattr(event, "stream_id", 0) == stream]
        assert any(isinstance(event, StreamEnded) for event in own)
        return b"".join(event.data for event in own if isinstance(event, DataReceived))


Connect = Callable[[], Awaitable[Exchange]]


@asynccontextmanager
async def gated(gate: Gate, folder: Path, **changed: Any) -> AsyncIterator[tuple[Bare, Connect]]:
    """Serve a gate over HTTP/2; yield the server and a function that connects to it."""
    path, trusted = certified(folder)
    opened: list[Client] = []

    async def connect() -> Exchange:
        opened.append(await Client.connect(server.port, trusted))
        return Exchange(opened[-1])

    options: dict[str, Any] = {
        "certfile": str(path),
        "keyfile": str(path),
        "alpn_protocols": ["h2"],
        "keep_alive_timeout": 600,  # neither timeout ends a connection
        "graceful_timeout": 600,
    }
    try:
        async with bare(gate, **(options | changed)) as server:
            try:
                yield server, connect
            except BaseException:
                gate.may_respond.set()  # the server waits for its responses
                raise
    finally:
        for client in opened:
            client.writer.transport.abort()


async def test_while_draining_goaway_follows_the_last_response(folder: Path) -> None:
    """Requests are still served; then the client learns that it must connect again."""
    gate = Gate()
    async with gated(gate, folder) as (server, connect):
        exchange = await connect()
        first = exchange.request()
        await gate.until_begun(1)
        server.config.draining = True
        second = exchange.request()
        await gate.until_begun(2)
        gate.may_respond.set()
        goaway = await exchange.until(ConnectionTerminated)
        assert (goaway.error_code, goaway.last_stream_id) == (ErrorCodes.NO_ERROR, second)
        assert [exchange.body(stream) for stream in (first, second)] == [b"abc", b"abc"]


async def test_a_client_connects_again_after_goaway(folder: Path) -> None:
    gate = Gate()
    gate.may_respond.set()
    path, trusted = certified(folder)
    tls = {"certfile": str(path), "keyfile": str(path)}
    async with bare(gate, **tls, alpn_protocols=["h2"]) as server, http2_client(trusted) as client:
        for is_draining in (False, True, True, False, False):
            server.config.draining = is_draining
            response = await client.get(f"https://127.0.0.1:{server.port}/")
            assert (response.status_code, response.http_version) == (200, "HTTP/2")


async def test_at_the_end_responses_are_sent_and_new_requests_are_refused(folder: Path) -> None:
    """A refused request was not started, so the client can repeat it (RFC 9113, 8.7)."""
    gate = Gate(LARGE)
    async with gated(gate, folder) as (_, connect):
        idle, busy = await connect(), await connect()
        stream = busy.request()
        await gate.until_begun(1)
        ended = asyncio.ensure_future(idle.end())

        async def go_on() -> ConnectionTerminated:
            await asyncio.wait({ended})  # the server stops
            try:
                late = busy.request()
                reset = await busy.until(StreamReset, stream_id=late)
                assert reset.error_code == ErrorCodes.REFUSED_STREAM
            finally:
                gate.may_respond.set()
            return await busy.end()

        going = asyncio.ensure_future(go_on())
    assert (await ended).error_code == ErrorCodes.NO_ERROR
    assert (await going).error_code == ErrorCodes.NO_ERROR
    assert busy.body(stream) == LARGE
    assert gate.begun == 1


async def test_a_connection_ends_after_its_requests_not_in_them(folder: Path) -> None:
    """Hypercorn sends GOAWAY at the last request, and loses all responses under way."""
    gate = Gate()
    async with gated(gate, folder, keep_alive_max_requests=3) as (_, connect):
        exchange = await connect()
        streams = [exchange.request() for _ in range(5)]
        await gate.until_begun(5)
        gate.may_respond.set()
        await exchange.until(ConnectionTerminated, last_stream_id=streams[-1])
        assert [exchange.body(stream) for stream in streams] == [b"abc"] * 5
        assert sum(isinstance(event, ResponseReceived) for event in exchange.events) == 5


async def test_an_idle_connection_ends_with_goaway(folder: Path) -> None:
    gate = Gate()
    async with gated(gate, folder, keep_alive_timeout=0.1) as (_, connect):
        assert (await (await connect()).end()).error_code == ErrorCodes.NO_ERROR
