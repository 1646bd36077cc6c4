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

from service.http import responses
from service.server.http1 import install
from service.server.http1.h2 import BURST, PIECE_BYTES, Http2
from tests.conftest import Site, serving, settings_for
from tests.http_client import TIMEOUT

FRAMES = 3_000  # of an attack
HEADERS = [(":method", "GET"), (":path", "/api/books"), (":scheme", "https"), (":authority", "x")]


@asynccontextmanager
async def encrypted(
    site: Site, folder: Path, **changed: Any
) -> AsyncIterator[tuple[Site, ssl.SSLContext]]:
    """Serve an application over TLS with HTTP/2; yield it and a TLS context of its clients."""
    path, trusted = certified(folder)
    settings = settings_for(
        site.another_url, folder, tls_certfile=path, tls_keyfile=path, http2=True, **changed
    )
    async with serving(settings) as served:
        yield Site(served.app, served.url.replace("http:", "https:")), trusted


def certified(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """Make a certificate with its key; return its path and a TLS context that trusts it."""
    authority = trustme.CA()
    path = folder / "http2.pem"
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(path))
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    return path, trusted


class Client:
    """A connection that sends any frames."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.connection = H2Connection(H2Configuration(client_side=True))
        self.connection.initiate_connection()
        self.flush()

    @classmethod
    async def connect(cls, port: int, trusted: ssl.SSLContext) -> "Client":
        """Connect over TLS."""
        trusted.set_alpn_protocols(["h2"])
        return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=trusted))

    def flush(self) -> None:
        """Send the frames that are due."""
        self.writer.write(self.connection.data_to_send())

    async def end(self) -> int | None:
        """Read to the end of the connection; return the error code of the server."""
        code = None
        try:
            async with asyncio.timeout(TIMEOUT):
                while data := await self.reader.read(65_536):
                    for event in self.connection.receive_data(data):
                        if isinstance(event, ConnectionTerminated):
                            code = event.error_code
        except ConnectionError:
            pass
        finally:
            self.writer.transport.abort()  # a TLS goodbye would wait behind the frames for 30 s
        return code


def resets(client: Client) -> bytes:
    """Return frames that open streams and reset each at once."""
    data = b""
    for number in range(FRAMES):
        stream = 2 * number + 1
        block = client.connection.encoder.encode(HEADERS)
        frame = HeadersFrame(stream, data=block, flags=["END_HEADERS", "END_STREAM"])
        data += frame.serialize() + RstStreamFrame(stream, error_code=8).serialize()
    return data


def settings_frames(client: Client) -> bytes:
    """Return many frames that change a setting."""
    return b"".join(SettingsFrame(settings={4: 65_535 + n % 2}).serialize() for n in range(FRAMES))


def pings(client: Client) -> bytes:
    """Return many pings."""
    return PingFrame(opaque_data=b"octavo!!").serialize() * FRAMES


def priorities(client: Client) -> bytes:
    """Return frames that give priorities to unknown streams."""
    frames = (PriorityFrame(2 * n + 1, depends_on=2 * n + 3) for n in range(FRAMES))
    return b"".join(frame.serialize() for frame in frames)


def continuations(client: Client) -> bytes:
    """Return frames of a head that never ends."""
    begin = HeadersFrame(1, data=client.connection.encoder.encode(HEADERS)).serialize()
    return begin + ContinuationFrame(1, data=b"\0" * 100).serialize() * FRAMES


def bomb(client: Client) -> bytes:
    """Return a head whose decompressed size is 100 times as large."""
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
    site: Site,
    folder: Path,
    attack: Callable[[Client], bytes],
    code: ErrorCodes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No request of the attack keeps its turn: without the release it would for an hour."""
    monkeypatch.setattr(responses, "SEND_SECONDS", 3_600.0)
    async with encrypted(site, folder) as (served, trusted):
        client = await Client.connect(served.port, trusted)
        client.writer.write(attack(client))
        assert await client.end() == code
        async with httpx.AsyncClient(http2=True, verify=trusted, timeout=TIMEOUT) as other:
            for _ in range(3):
                response = await other.get(served.url + "/api/books")
                assert (response.status_code, response.http_version) == (200, "HTTP/2")
        queue: Any = served.app.extensions["load_shedding"].queue
        async with asyncio.timeout(TIMEOUT):
            while queue.running or queue.waiting:
                await asyncio.sleep(0.01)


async def test_a_client_may_reset_some_streams(site: Site, folder: Path) -> None:
    async with encrypted(site, folder) as (served, trusted):
        client = await Client.connect(served.port, trusted)
        for number in range(BURST // 2):
            client.connection.send_headers(2 * number + 1, HEADERS, end_stream=True)
            client.connection.reset_stream(2 * number + 1)
        client.connection.send_headers(BURST + 1, HEADERS, end_stream=True)
        client.flush()
        async with asyncio.timeout(TIMEOUT):
            received = b""
            try:
                while b"pagination" not in received:
                    data = await client.reader.read(65_536)
                    assert data
                    received += data
            finally:
                client.writer.close()


def test_one_read_holds_fewer_frames_than_a_burst() -> None:
    smallest = len(PingFrame(opaque_data=b"octavo!!").serialize())
    assert PIECE_BYTES / smallest < BURST


def test_only_hypercorns_own_protocol_is_replaced() -> None:
    """Hypercorn does not document where it looks up the class: this test fails if that moves."""
    install()
    assert vars(hypercorn.protocol)["H2Protocol"] is Http2
    assert {"handle", "_handle_events", "_flush"} <= set(vars(H2Protocol))
