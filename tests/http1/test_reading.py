"""Fields that came before are not read again: what is known of them is what reading finds."""

import random
from typing import Any

from service.config import MOST_HOPS
from service.http.headers import parse_headers
from service.server.http1.parser import (
    KEPT_BYTES,
    MOST_KEPT,
    HeaderCache,
    Reader,
    RefusedError,
    end_of_head,
    read_line,
)
from tests.http1.corpus import CASES

LINES = [b"GET / HTTP/1.1\r\n", b"POST /a?b HTTP/1.1\r\n", b"HEAD / HTTP/1.0\r\n"]


def found(known: HeaderCache, head: bytes) -> Any:
    """Read a head: the status that refuses it, or all that is found."""
    reader = Reader(known)
    try:
        reader.head(head)
    except RefusedError as refused:
        return refused.status
    waits = reader.expects and not reader.is_complete
    named = (reader.line, reader.headers, reader.options)
    return *named, reader.left, reader.is_complete, waits


def fields() -> set[bytes]:
    """Give what stands after the first line, in each case of the corpus."""
    heads = set()
    for case in CASES:
        try:
            end = end_of_head(case.raw, 0)
        except RefusedError:
            continue
        if end is not None:
            heads.add(case.raw[:end].partition(b"\r\n")[2])
    return heads


def test_what_is_known_is_what_reading_finds() -> None:
    known = HeaderCache()
    heads = [line + rest for rest in sorted(fields()) for line in LINES]
    once = [found(known, head) for head in heads]
    assert len(known) > 20
    assert [found(known, head) for head in heads] == once
    assert [found(HeaderCache(), head) for head in heads] == once


def test_what_has_a_body_or_comes_by_http_1_0_is_read_each_time() -> None:
    known = HeaderCache()
    for rest in (b"Content-Length: 1\r\n", b"Transfer-Encoding: chunked\r\n"):
        assert found(known, LINES[1] + b"Host: x\r\n" + rest + b"\r\n")[-2] is False
    assert found(known, LINES[2] + b"Host: x\r\n\r\n")[-2] is True
    assert not known


def test_it_is_bounded() -> None:
    known = HeaderCache()
    for n in range(MOST_KEPT + 1):
        found(known, LINES[0] + b"Host: x%d\r\n\r\n" % n)
    assert len(known) == 1
    found(known, LINES[0] + b"Host: x\r\nX: " + b"y" * KEPT_BYTES + b"\r\n\r\n")
    assert len(known) == 1


def test_of_a_line_only_what_is_short_is_remembered() -> None:
    before = read_line.cache_info()
    for n in range(3):
        found(HeaderCache(), b"GET /%d%b HTTP/1.1\r\nHost: x\r\n\r\n" % (n, b"y" * KEPT_BYTES))
    assert read_line.cache_info() == before
    found(
        HeaderCache(), b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n" % random.randbytes(8).hex().encode()
    )
    assert read_line.cache_info().misses == before.misses + 1


def test_of_a_chain_of_proxies_the_end_is_read() -> None:
    """Whatever stands before it, a client made up: it is not worth a millisecond."""
    chain = b"1.1.1.1," * 8_000 + b" 2.2.2.2 , 3.3.3.3"
    headers = parse_headers([(b"x-forwarded-for", chain)])
    assert len(headers.forwarded) == MOST_HOPS + 1
    assert headers.forwarded[-2:] == ["2.2.2.2", "3.3.3.3"]
