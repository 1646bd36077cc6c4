"""Bytes of the corpus with random changes: the server survives, and the next client is served.

MUTATIONS is the number of streams, SEED selects them. Both are printed, to repeat a failure.
"""

import asyncio
import os
import random
import re
from collections.abc import AsyncIterator

import pytest

from tests.http1.corpus import CASES
from tests.http1.site import TIMEOUT, Bare, bare
from tests.http1.test_corpus import PROBE, next_response

MUTATIONS = int(os.environ.get("MUTATIONS", "3000"))
SEED = int(os.environ.get("SEED", "1"))
CONNECTIONS = 40
SPECIAL = [b"\r\n", b"\r", b"\n", b"\0", b":", b" ", b"\t", b",", b";", b"0", b"\xff", b"\r\n\r\n"]
SPECIAL += [b"chunked", b"Content-Length: 1\r\n", b"Transfer-Encoding: chunked\r\n", b"HTTP/1.1"]
SEEDS = [case.raw for case in CASES if 0 < len(case.raw) < 2_000]
STATUS_LINES = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r]*\r\n")
STATUSES = {b"100", b"200", b"400", b"431", b"501", b"505"}


def mutated(chance: random.Random) -> bytes:
    """Return a stream: 1 or more requests, cut, joined, and changed in a few places."""
    raw = bytearray(b"".join(chance.choices(SEEDS, k=chance.choice([1, 1, 1, 2, 3]))))
    for _ in range(chance.choice([0, 1, 1, 1, 2, 4, 16])):
        at, end = sorted(chance.randrange(len(raw) + 1) for _ in range(2))
        end = min(end, at + chance.choice([1, 1, 2, 8, 64]))
        kind = chance.randrange(6)
        if kind == 0 and at < len(raw):
            raw[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del raw[at:end]
        elif kind == 2:
            raw[at:at] = chance.choice(SPECIAL)
        elif kind == 3:
            raw[at:end] = chance.choice(SPECIAL)
        elif kind == 4:
            raw[at:at] = raw[at:end] * chance.choice([1, 2, 100])
        else:
            raw[at:at] = chance.randbytes(end - at)
    return bytes(raw)


@pytest.fixture
async def site() -> AsyncIterator[Bare]:
    """The echo application, with short timeouts for clients."""
    async with bare(keep_alive_timeout=5, header_seconds=5) as site:
        yield site


async def stream(site: Bare, raw: bytes, chance: random.Random) -> None:
    """Send a stream in pieces; assert that only responses come back."""
    reader, writer = await site.connect()
    cuts = sorted(chance.randrange(len(raw) + 1) for _ in range(chance.choice([0, 0, 1, 3])))
    for begin, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        writer.write(raw[begin:end])
        await asyncio.sleep(0)
    try:
        if chance.random() < 0.1:
            writer.transport.abort()
            return
        writer.write_eof()
        received = await asyncio.wait_for(reader.read(), TIMEOUT)
    except ConnectionError:
        return
    finally:
        writer.close()
    assert received.startswith(b"HTTP/1.1 ") or not received
    assert {match[1] for match in STATUS_LINES.finditer(received)} <= STATUSES


@pytest.mark.no_cover  # other tests cover the same code, and this test is slow with coverage
@pytest.mark.timeout(3_600)
async def test_damaged_bytes_stop_neither_the_server_nor_other_clients(site: Bare) -> None:
    print(f"MUTATIONS={MUTATIONS} SEED={SEED}")
    numbers = iter(range(MUTATIONS))

    async def send_streams() -> None:
        for number in numbers:
            chance = random.Random(f"{SEED}-{number}")
            raw = mutated(chance)
            try:
                await stream(site, raw, chance)
            except BaseException as error:
                error.add_note(f"SEED={SEED}, number {number}: {raw[:2_000]!r}")
                raise
            if number % 100 == 0:
                reader, writer = await site.connect()
                try:
                    writer.write(PROBE)
                    response = await asyncio.wait_for(next_response(reader), TIMEOUT)
                finally:
                    writer.close()
                assert response is not None
                assert response[0] == 200
            if number % 10_000 == 9_999:
                print(f"{number + 1} of {MUTATIONS}", flush=True)

    async with asyncio.TaskGroup() as clients:
        for _ in range(CONNECTIONS):
            clients.create_task(send_streams())
    await site.until_closed()
    assert not site.logged, "no error has been logged"
