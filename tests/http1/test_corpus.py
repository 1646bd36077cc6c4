"""Every request of the corpus, to both parsers: the statuses, and the end of the connection."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from tests.http1.corpus import CASES, CLOSED, OPEN, WAITS, Case
from tests.http1.site import TIMEOUT, Bare, bare

PROBE = b"GET /probe HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module", params=["httptools", "h11"])
async def site(request: pytest.FixtureRequest) -> AsyncIterator[Bare]:
    """The echo application, over each parser."""
    async with bare(http1=request.param) as site:
        yield site


def expected(site: Bare, case: Case) -> tuple[tuple[int, ...], str]:
    """Return the statuses of a case, and the end of its connection."""
    if site.config.http1 == "h11" and isinstance(case.h11, tuple):
        return case.h11[:2]
    return case.statuses, case.end


async def next_response(reader: asyncio.StreamReader) -> tuple[int, bytes] | None:
    """Read a response: status and body; None at the end of the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    status = int(head.split(b" ", 2)[1])
    length = head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
    return status, await reader.readexactly(int(length or 0))


async def outcome(site: Bare, case: Case) -> tuple[tuple[int, ...], str, list[bytes]]:
    """Send a case; return the statuses, the end of the connection, and the bodies."""
    statuses, end = expected(site, case)
    seen: list[int] = []
    bodies: list[bytes] = []
    reader, writer = await site.connect()
    writer.write(case.raw)
    try:
        while True:
            if end == OPEN and len(seen) == len(statuses):
                writer.write(PROBE)
            waits = 0.2 if end == WAITS and len(seen) == len(statuses) else TIMEOUT
            response = await asyncio.wait_for(next_response(reader), waits)
            if response is None:
                return tuple(seen), CLOSED, bodies
            if response[0] == 200 and json.loads(response[1])["path"] == "/probe":
                return tuple(seen), OPEN, bodies
            seen.append(response[0])
            bodies.append(response[1])
    except TimeoutError:
        return tuple(seen), WAITS, bodies
    except ConnectionError:
        return tuple(seen), CLOSED, bodies
    finally:
        writer.close()


async def test_the_corpus_has_150_cases_of_different_names() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 150


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_the_statuses_and_the_end_of_each_case(site: Bare, case: Case) -> None:
    if site.config.http1 == "h11" and isinstance(case.h11, str):
        pytest.skip(f"h11: {case.h11}")
    statuses, end, bodies = await outcome(site, case)
    assert (statuses, end) == expected(site, case)
    if statuses[-1:] == (200,):
        shown = json.loads(bodies[0] if bodies[0] else bodies[1])
        if case.body is not None:
            assert shown["body"] == case.body
        if case.shown is not None and case.h11 is None:
            assert shown[case.shown[0]] == case.shown[1]


async def test_each_refusal_is_a_problem_document(site: Bare) -> None:
    refused = 0
    for case in CASES:
        if case.end == CLOSED and case.statuses[-1:] >= (400,) and case.h11 is None:
            *_, bodies = await outcome(site, case)
            problem = json.loads(bodies[-1])
            assert problem["status"] == case.statuses[-1]
            assert problem["request_id"]
            refused += 1
    assert refused > 60
