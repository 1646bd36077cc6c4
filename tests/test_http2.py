"""Attacks over HTTP/2: the connection of a flooding client ends, and other clients are served."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import hypercorn.protocol
import pytest
import trustme
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated
from hypercorn.protocol.h2 import H2Protocol
from hyperframe.frame import (
    ContinuationFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
)

from service.server.http1 import install
from service.server.http1.h2 import BURST, PIECE_BYTES, Http2
from tests.conftest import Site, serving, settings_for

FRAMES = 3_000  # of an attack
HEADERS = [(":method", "GET"), (":path", "/api/books"), (":scheme", "https"), (":authority", "x")]


@asynccontextmanager
async def encrypted(site: Site, folder: Path) -> AsyncIterator[tuple[Site, ssl.SSLContext]]:
    """Serve an application over TLS, with HTTP/2: it, and what its clients trust."""
    authority = trustme.CA()
    path = folder / "http2.pem"
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(path))
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    settings = settings_for(
        site.another_url, folder, tls_certfile=path, tls_keyfile=path, http2=True
    )
    async with serving(settings) as served:
        yield served, trusted


class Client:
    """A connection that sends whatever frames it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.connection = H2Connection(H2Configuration(client_side=True))
        self.connection.initiate_connection()
        self.flush()

    @classmethod
    async def connect(cls, site: Site, trusted: ssl.SSLContext) -> "Client":
        """Connect over TLS."""
        trusted.set_alpn_protocols(["h2"])
        return cls(*await asyncio.open_connection("127.0.0.1", site.port, ssl=trusted))

    def flush(self) -> None:
        """Send what is due."""
        self.writer.write(self.connection.data_to_send())

    async def end(self) -> int | None:
        """Read to the end of the connection: the error that the server gave for it."""
        code = None
        async with asyncio.timeout(60):
            try:
                while data := await self.reader.read(65_536):
                    for event in self.connection.receive_data(data):
                        if isinstance(event, ConnectionTerminated):
                            code = event.error_code
            except ConnectionError:
                pass
        self.writer.close()
        return code


def resets(client: Client) -> bytes:
    """Open streams, each reset at once."""
    data = b""
    for number in range(FRAMES):
        stream = 2 * number + 1
        block = client.connection.encoder.encode(HEADERS)
        frame = HeadersFrame(stream, data=block, flags=["END_HEADERS", "END_STREAM"])
        data += frame.serialize() + RstStreamFrame(stream, error_code=8).serialize()
    return data


def settings_frames(client: Client) -> bytes:
    """Change settings again and again."""
    return b"".join(SettingsFrame(settings={4: 65_535 + n % 2}).serialize() for n in range(FRAMES))


def pings(client: Client) -> bytes:
    """Ask for an answer again and again."""
    return PingFrame(opaque_data=b"octavo!!").serialize() * FRAMES


def priorities(client: Client) -> bytes:
    """Give priorities to streams that are not there."""
    frames = (PriorityFrame(2 * n + 1, depends_on=2 * n + 3) for n in range(FRAMES))
    return b"".join(frame.serialize() for frame in frames)


def continuations(client: Client) -> bytes:
    """Begin a head that never ends."""
    begin = HeadersFrame(1, data=client.connection.encoder.encode(HEADERS)).serialize()
    return begin + ContinuationFrame(1, data=b"\0" * 100).serialize() * FRAMES


def bomb(client: Client) -> bytes:
    """Send a head of some bytes that unpack to a hundred times as many."""
    encoder = client.connection.encoder
    filler = [("x-filler", "a" * 4_000)]
    block = encoder.encode([*HEADERS, *filler]) + encoder.encode(filler * 2_000)
    return HeadersFrame(1, data=block, flags=["END_HEADERS", "END_STREAM"]).serialize()


@pytest.mark.parametrize(
    ("attack", "code"),
    [
        (resets, ErrorCodes.ENHANCE_YOUR_CALM),
        (settings_frames, ErrorCodes.ENHANCE_YOUR_CALM),
        (pings, ErrorCodes.ENHANCE_YOUR_CALM),
        (priorities, ErrorCodes.ENHANCE_YOUR_CALM),
        (continuations, ErrorCodes.PROTOCOL_ERROR),
        (bomb, ErrorCodes.ENHANCE_YOUR_CALM),
    ],
)
async def test_a_flood_ends_its_connection_and_others_are_served(
    site: Site, folder: Path, attack: Callable[[Client], bytes], code: ErrorCodes
) -> None:
    async with encrypted(site, folder) as (served, trusted):
        client = await Client.connect(served, trusted)
        client.writer.write(attack(client))
        assert await client.end() == code
        async with httpx.AsyncClient(http2=True, verify=trusted, base_url=served.url) as other:
            for _ in range(3):
                answer = await other.get(served.url.replace("http:", "https:") + "/api/books")
                assert (answer.status_code, answer.http_version) == (200, "HTTP/2")
        queue: Any = served.app.extensions["load_shedding"].queue
        async with asyncio.timeout(60):
            while queue.running or queue.waiting:
                await asyncio.sleep(0.01)


async def test_an_ordinary_client_may_change_its_mind(site: Site, folder: Path) -> None:
    async with encrypted(site, folder) as (served, trusted):
        client = await Client.connect(served, trusted)
        for number in range(BURST // 2):
            client.connection.send_headers(2 * number + 1, HEADERS, end_stream=True)
            client.connection.reset_stream(2 * number + 1)
        client.connection.send_headers(BURST + 1, HEADERS, end_stream=True)
        client.flush()
        async with asyncio.timeout(60):
            seen = b""
            while b"pagination" not in seen:
                data = await client.reader.read(65_536)
                assert data
                seen += data
        client.writer.close()


def test_what_is_read_in_one_turn_is_bounded() -> None:
    smallest = len(PingFrame(opaque_data=b"octavo!!").serialize())
    assert PIECE_BYTES / smallest < BURST


def test_only_hypercorns_own_protocol_is_replaced() -> None:
    """Where Hypercorn looks it up is no promise: this test fails if it moves."""
    install()
    assert vars(hypercorn.protocol)["H2Protocol"] is Http2
    assert {"handle", "_handle_events", "_flush"} <= set(vars(H2Protocol))
