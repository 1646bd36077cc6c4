"""Every request of the corpus, to both protocols: status by status, and how the connection ends."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from tests.http1.corpus import CASES, CLOSED, OPEN, WAITS, Case
from tests.http1.site import Bare, bare

PROBE = b"GET /probe HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module", params=["httptools", "h11"])
async def site(request: pytest.FixtureRequest) -> AsyncIterator[Bare]:
    """The echo, over each protocol."""
    async with bare(http1=request.param) as found:
        yield found


def wanted(site: Bare, case: Case) -> tuple[tuple[int, ...], str]:
    """Give what should come of a case."""
    if site.config.http1 == "h11" and isinstance(case.h11, tuple):
        return case.h11[:2]
    return case.statuses, case.end


async def next_answer(reader: asyncio.StreamReader) -> tuple[int, bytes] | None:
    """Read an answer: status and body; None at the end of the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    status = int(head.split(b" ", 2)[1])
    length = head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
    return status, await reader.readexactly(int(length or 0))


async def outcome(site: Bare, case: Case) -> tuple[tuple[int, ...], str, list[bytes]]:
    """Send a case: the statuses of what comes back, how it ends, and the bodies."""
    statuses, end = wanted(site, case)
    seen: list[int] = []
    bodies: list[bytes] = []
    reader, writer = await site.connect()
    writer.write(case.raw)
    try:
        while True:
            if end == OPEN and len(seen) == len(statuses):
                writer.write(PROBE)
            waits = 0.2 if end == WAITS and len(seen) == len(statuses) else 10
            got = await asyncio.wait_for(next_answer(reader), waits)
            if got is None:
                return tuple(seen), CLOSED, bodies
            if got[0] == 200 and json.loads(got[1])["path"] == "/probe":
                return tuple(seen), OPEN, bodies
            seen.append(got[0])
            bodies.append(got[1])
    except TimeoutError:
        return tuple(seen), WAITS, bodies
    except ConnectionError:
        return tuple(seen), CLOSED, bodies
    finally:
        writer.close()


async def test_it_is_large_enough() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 150


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_each_is_answered_as_it_should_be(site: Bare, case: Case) -> None:
    if site.config.http1 == "h11" and isinstance(case.h11, str):
        pytest.skip(f"h11: {case.h11}")
    statuses, end, bodies = await outcome(site, case)
    assert (statuses, end) == wanted(site, case)
    if statuses[-1:] == (200,):
        shown = json.loads(bodies[0] if bodies[0] else bodies[1])
        if case.body is not None:
            assert shown["body"] == case.body
        if case.shown is not None and case.h11 is None:
            assert shown[case.shown[0]] == case.shown[1]


async def test_what_is_refused_is_an_error_of_the_one_shape(site: Bare) -> None:
    refused = 0
    for case in CASES:
        if case.end == CLOSED and case.statuses[-1:] >= (400,) and case.h11 is None:
            *_, bodies = await outcome(site, case)
            told = json.loads(bodies[-1])
            assert told["status"] == case.statuses[-1]
            assert told["request_id"]
            refused += 1
    assert refused > 60
