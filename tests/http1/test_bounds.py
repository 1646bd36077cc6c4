"""What a connection may cost, whatever its client does. A process of its own is weighed."""

import asyncio
import resource
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass

import psutil
import pytest

from tests.cycles import kinds, left_by
from tests.http1.site import bare, echo
from tests.http1.test_corpus import next_answer

Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]
IDLE = 2_000
KB = 1_024


@dataclass
class Weighed:
    """A server, and where it listens."""

    port: int
    process: psutil.Process

    @property
    def memory(self) -> int:
        """Bytes that it has in use."""
        return int(self.process.memory_info().rss)

    async def open(self, number: int, raw: bytes) -> list[Pair]:
        """Open connections whose readers take next to nothing, and send something on each."""
        pairs = []
        for _ in range(number):
            pairs.append(await asyncio.open_connection("127.0.0.1", self.port, limit=1_000))
            pairs[-1][1].write(raw)
        return pairs

    async def steady(self) -> int:
        """Wait until it takes no more: what it has then."""
        before = -1
        while (now := self.memory) > before:
            before = now
            await asyncio.sleep(1)
        return now

    async def answers(self) -> None:
        """See that somebody else is served."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        finished = await asyncio.wait_for(next_answer(reader), 10)
        assert finished == (200, b"abc")
        writer.close()


@pytest.fixture
async def weighed() -> AsyncIterator[Weighed]:
    """A server that has answered once."""
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(most, 2 * IDLE + 500) if most != resource.RLIM_INFINITY else 2 * IDLE + 500
    if files < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.http1.process", stdout=PIPE
    )
    assert process.stdout is not None
    found = Weighed(int(await process.stdout.readline()), psutil.Process(process.pid))
    for _ in range(20):
        await found.answers()
    yield found
    process.kill()
    await process.communicate()


def close(pairs: list[Pair]) -> None:
    """Close connections."""
    for _, writer in pairs:
        writer.transport.abort()


async def test_idle_connections_weigh_little(weighed: Weighed) -> None:
    before = weighed.memory
    pairs = []
    for _ in range(IDLE // 100):
        pairs += await weighed.open(100, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        for reader, _ in pairs[-100:]:
            assert await next_answer(reader) == (200, b"abc")
    each = (await weighed.steady() - before) / IDLE
    await weighed.answers()
    print(f"{IDLE} idle connections: {each / KB:.1f} KB each")
    assert each < 16 * KB
    close(pairs)


async def test_who_does_not_read_holds_no_more_than_a_buffer(weighed: Weighed) -> None:
    before, number = weighed.memory, 50
    pairs = await weighed.open(number, b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
    each = (await weighed.steady() - before) / number
    await weighed.answers()
    print(f"an answer without end, unread: {each / KB:.0f} KB each")
    assert each < 512 * KB
    close(pairs)


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_body_that_nobody_takes_is_not_kept(weighed: Weighed, is_chunked: bool) -> None:
    """It stays with the client, beyond what the system's own buffers have."""
    before, number, size = weighed.memory, 20, 20_000_000
    told = b"Transfer-Encoding: chunked" if is_chunked else b"Content-Length: %d" % size
    pairs = await weighed.open(number, b"POST /unread HTTP/1.1\r\nHost: x\r\n" + told + b"\r\n\r\n")
    body = b"a" * size
    for _, writer in pairs:
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (size, body) if is_chunked else body)
    each = (await weighed.steady() - before) / number
    await weighed.answers()
    print(f"a body of 20 MB that nobody takes: {each / KB:.0f} KB each")
    assert each < 1_024 * KB
    close(pairs)


async def test_requests_that_wait_are_not_kept_either(weighed: Weighed) -> None:
    before, number = weighed.memory, 20
    request = b"GET /unread HTTP/1.1\r\nHost: x\r\n\r\n"
    pairs = await weighed.open(number, request * 300_000)
    each = (await weighed.steady() - before) / number
    await weighed.answers()
    print(f"300,000 requests behind one: {each / KB:.0f} KB each")
    assert each < 1_024 * KB
    close(pairs)


async def test_who_asks_on_and_never_reads_is_waited_for(weighed: Weighed) -> None:
    before, number = weighed.memory, 20
    pairs = await weighed.open(number, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 300_000)
    each = (await weighed.steady() - before) / number
    await weighed.answers()
    print(f"300,000 answers that nobody reads: {each / KB:.0f} KB each")
    assert each < 1_024 * KB
    with suppress(ConnectionError):
        close(pairs)


async def test_what_ended_leaves_no_cycles() -> None:
    """They would wait for the full look at all that there is, which is seldom."""
    async with bare(echo) as site:

        async def ask() -> None:
            reader, writer = await site.connect()
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await next_answer(reader)
            writer.close()
            async with asyncio.timeout(5):
                while site.config.serving.connections:
                    await asyncio.sleep(0.01)

        async def ask_often() -> None:
            for _ in range(5):
                await ask()

        left = kinds(await left_by(ask_often))
    cut = {"Connection", "Reader", "HttpRequestParser", "StreamReaderProtocol", "StreamWriter"}
    assert not cut.intersection(left), left
