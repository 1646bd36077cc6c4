"""A chunked request and the request behind it, received in pieces: no request is lost or merged."""

import asyncio
import itertools
import json
import socket

import pytest

from service.server.http1.parser import HeaderCache, Reader
from tests.http1.site import bare

HEAD = b"POST /first HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
BODIES = {
    "two chunks": (b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", b"abcde"),
    "empty": (b"0\r\n\r\n", b""),
    "line ends as data": (b"6\r\n\r\na\r\n\r\r\n0\r\n\r\n", b"\r\na\r\n\r"),
    "a trailer": (b"1\r\na\r\n0\r\nX-Sum: 1\r\n\r\n", b"a"),
    "an extension": (b"1;x=y\r\na\r\n0;z\r\n\r\n", b"a"),
}
NEXT = b"GET /second HTTP/1.1\r\nHost: x\r\n\r\n"


def read_body(pieces: list[bytes]) -> tuple[bytes, bytes]:
    """Parse a chunked body that is received in pieces. Return it, and the data behind it."""
    reader = Reader(HeaderCache())
    reader.head(HEAD)
    data = b""
    for piece in pieces:
        data += piece
        while data and not reader.is_complete:
            data = data[reader.body(data, 0) :]
    assert reader.is_complete
    return b"".join(reader.pieces), data


@pytest.mark.parametrize("body", BODIES)
def test_a_chunked_body_ends_where_the_next_request_begins(body: str) -> None:
    raw, content = BODIES[body]
    data = raw + NEXT
    places = range(1, len(raw) + 4)
    for first, second in itertools.combinations_with_replacement(places, 2):
        pieces = [data[:first], data[first:second], data[second:]]
        assert read_body(pieces) == (content, NEXT), pieces


@pytest.mark.parametrize("body", BODIES)
def test_a_chunked_body_that_is_received_byte_by_byte(body: str) -> None:
    raw, content = BODIES[body]
    data = raw + NEXT
    assert read_body([data[n : n + 1] for n in range(len(data))]) == (content, NEXT)


@pytest.mark.parametrize("body", BODIES)
async def test_both_requests_have_a_response_wherever_the_data_is_cut(body: str) -> None:
    """Each cut is tried on a connection of its own, all at the same time."""
    raw, content = BODIES[body]
    data = HEAD + raw + NEXT.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")

    async def responses(cut: int) -> list[tuple[str, str]]:
        reader, writer = await site.connect()
        try:
            connection = writer.get_extra_info("socket")
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            writer.write(data[:cut])
            await writer.drain()
            await asyncio.sleep(0.2)  # if the pieces arrive together, this cut is not tested
            writer.write(data[cut:])
            received = await asyncio.wait_for(reader.read(), 60)
        finally:
            writer.transport.abort()
        shown = [json.loads(b"{" + part.partition(b"{")[2]) for part in split(received)]
        return [(each["path"], each["body"]) for each in shown]

    async with bare() as site:
        begin = len(HEAD) - 2
        results = await asyncio.gather(*map(responses, range(begin, len(data))))
    for cut, result in enumerate(results, begin):
        assert result == [("/first", content.decode()), ("/second", "")], cut


def split(received: bytes) -> list[bytes]:
    """Split received data into the responses."""
    return [b"HTTP/1.1" + part for part in received.split(b"HTTP/1.1 200")[1:]]
