"""The cache of parsed headers: a cached head gives the same result as a parsed head."""

import random
from typing import Any

from service.config import MAX_HOPS
from service.http.headers import parse_headers
from service.server.http1.parser import (
    MAX_SECTION_BYTES,
    MAX_SECTIONS,
    HeaderCache,
    Reader,
    RefusedError,
    end_of_head,
    read_line,
)
from tests.http1.corpus import CASES

LINES = [b"GET / HTTP/1.1\r\n", b"POST /a?b HTTP/1.1\r\n", b"HEAD / HTTP/1.0\r\n"]


def parsed(known: HeaderCache, head: bytes) -> Any:
    """Parse a head; return the status that refuses it, or the result."""
    reader = Reader(known)
    try:
        reader.head(head)
    except RefusedError as refused:
        return refused.status
    waits = reader.expects and not reader.is_complete
    result = (reader.line, reader.headers, reader.options)
    return *result, reader.left, reader.is_complete, waits


def header_blocks() -> set[bytes]:
    """Return the headers, without the first line, of each case of the corpus."""
    heads = set()
    for case in CASES:
        try:
            end = end_of_head(case.raw, 0)
        except RefusedError:
            continue
        if end is not None:
            heads.add(case.raw[:end].partition(b"\r\n")[2])
    return heads


def test_a_cached_head_gives_the_same_result_as_a_parsed_head() -> None:
    known = HeaderCache()
    heads = [line + rest for rest in sorted(header_blocks()) for line in LINES]
    first = [parsed(known, head) for head in heads]
    assert len(known) > 20
    assert [parsed(known, head) for head in heads] == first
    assert [parsed(HeaderCache(), head) for head in heads] == first


def test_heads_with_a_body_and_heads_of_http_1_0_are_not_cached() -> None:
    known = HeaderCache()
    for rest in (b"Content-Length: 1\r\n", b"Transfer-Encoding: chunked\r\n"):
        assert parsed(known, LINES[1] + b"Host: x\r\n" + rest + b"\r\n")[-2] is False
    assert parsed(known, LINES[2] + b"Host: x\r\n\r\n")[-2] is True
    assert not known


def test_the_cache_of_heads_is_bounded() -> None:
    known = HeaderCache()
    for n in range(MAX_SECTIONS + 1):
        parsed(known, LINES[0] + b"Host: x%d\r\n\r\n" % n)
    assert len(known) == 1
    parsed(known, LINES[0] + b"Host: x\r\nX: " + b"y" * MAX_SECTION_BYTES + b"\r\n\r\n")
    assert len(known) == 1


def test_only_short_request_lines_are_cached() -> None:
    before = read_line.cache_info()
    for n in range(3):
        parsed(
            HeaderCache(), b"GET /%d%b HTTP/1.1\r\nHost: x\r\n\r\n" % (n, b"y" * MAX_SECTION_BYTES)
        )
    assert read_line.cache_info() == before
    parsed(
        HeaderCache(), b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n" % random.randbytes(8).hex().encode()
    )
    assert read_line.cache_info().misses == before.misses + 1


def test_only_the_end_of_a_chain_of_proxies_is_parsed() -> None:
    """The client may have invented the beginning: to parse it would waste time."""
    chain = b"1.1.1.1," * 8_000 + b" 2.2.2.2 , 3.3.3.3"
    headers = parse_headers([(b"x-forwarded-for", chain)])
    assert len(headers.forwarded) == MAX_HOPS + 1
    assert headers.forwarded[-2:] == ["2.2.2.2", "3.3.3.3"]
