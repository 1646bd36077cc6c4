"""The memory of a connection, whatever its client does, measured in a separate process."""

import asyncio
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field

import psutil
import pytest

from tests.conftest import raised_open_files
from tests.cycles import garbage_of, type_names
from tests.http1.site import TIMEOUT, bare, echo
from tests.http1.test_corpus import next_response

Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]
IDLE = 2_000
KB = 1_024


@dataclass
class Measured:
    """A server in another process, and its port."""

    port: int
    process: psutil.Process
    pairs: list[Pair] = field(default_factory=list)  # opened connections

    @property
    def memory(self) -> int:
        """Resident memory in bytes."""
        return int(self.process.memory_info().rss)

    async def open(self, number: int, raw: bytes) -> list[Pair]:
        """Open connections whose readers take almost nothing, and send bytes on each."""
        for _ in range(number):
            pair = await asyncio.open_connection("127.0.0.1", self.port, limit=1_000)
            self.pairs.append(pair)
            pair[1].write(raw)
        return self.pairs[-number:]

    async def steady(self) -> int:
        """Wait until the memory no longer grows; return it."""
        before = -1
        while (now := self.memory) > before:
            before = now
            await asyncio.sleep(1)
        return now

    async def serves(self) -> None:
        """Assert that another client receives a response."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            response = await asyncio.wait_for(next_response(reader), TIMEOUT)
        finally:
            writer.close()
        assert response == (200, b"abc")

    def close(self) -> None:
        """Close the connections."""
        for _, writer in self.pairs:
            with suppress(ConnectionError):
                writer.transport.abort()


@pytest.fixture
async def measured() -> AsyncIterator[Measured]:
    """A server that has responded to some requests."""
    with raised_open_files(2 * IDLE + 500):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.http1.process", stdout=PIPE
        )
        try:
            assert process.stdout is not None
            port = int(await process.stdout.readline())
            measured = Measured(port, psutil.Process(process.pid))
            for _ in range(20):
                await measured.serves()
            yield measured
            measured.close()
        finally:
            process.kill()
            await process.communicate()


async def test_idle_connections_use_little_memory(measured: Measured) -> None:
    before = measured.memory
    for _ in range(IDLE // 100):
        pairs = await measured.open(100, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        for reader, _ in pairs:
            assert await next_response(reader) == (200, b"abc")
    each = (await measured.steady() - before) / IDLE
    await measured.serves()
    print(f"{IDLE} idle connections: {each / KB:.1f} KB each")
    assert each < 16 * KB


async def test_an_unread_response_uses_no_more_than_a_buffer(measured: Measured) -> None:
    before, number = measured.memory, 50
    await measured.open(number, b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
    each = (await measured.steady() - before) / number
    await measured.serves()
    print(f"an endless response, unread: {each / KB:.0f} KB each")
    assert each < 512 * KB


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_body_that_the_application_does_not_read_is_not_stored(
    measured: Measured, is_chunked: bool
) -> None:
    """The client keeps the body, except for the buffers of the system."""
    before, number, size = measured.memory, 20, 20_000_000
    framing = b"Transfer-Encoding: chunked" if is_chunked else b"Content-Length: %d" % size
    head = b"POST /unread HTTP/1.1\r\nHost: x\r\n" + framing + b"\r\n\r\n"
    pairs = await measured.open(number, head)
    body = b"a" * size
    for _, writer in pairs:
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (size, body) if is_chunked else body)
    each = (await measured.steady() - before) / number
    await measured.serves()
    print(f"a body of 20 MB, unread: {each / KB:.0f} KB each")
    assert each < 1_024 * KB


async def test_requests_that_wait_are_not_stored(measured: Measured) -> None:
    before, number = measured.memory, 20
    request = b"GET /unread HTTP/1.1\r\nHost: x\r\n\r\n"
    await measured.open(number, request * 300_000)
    each = (await measured.steady() - before) / number
    await measured.serves()
    print(f"300,000 requests behind another: {each / KB:.0f} KB each")
    assert each < 1_024 * KB


async def test_a_client_that_never_reads_stops_the_processing_of_its_requests(
    measured: Measured,
) -> None:
    before, number = measured.memory, 20
    await measured.open(number, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 300_000)
    each = (await measured.steady() - before) / number
    await measured.serves()
    print(f"300,000 unread responses: {each / KB:.0f} KB each")
    assert each < 1_024 * KB


async def test_a_closed_connection_leaves_no_reference_cycles() -> None:
    """Cycles stay in memory until a full garbage collection, which is rare."""
    async with bare(echo) as site:

        async def send() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await next_response(reader)
            writer.close()
            await site.until_closed()

        async def send_often() -> None:
            for _ in range(5):
                await send()

        left = type_names(await garbage_of(send_often))
    cut = {"Connection", "Reader", "HttpRequestParser", "StreamReaderProtocol", "StreamWriter"}
    assert not cut.intersection(left), left
