"""The cost of a request: CPU time of the whole stack, from its first byte to its last.

The bytes are passed to the server's connection as a transport does. So the parsing of HTTP counts,
and the kernel does not. Password hashing hardly counts: it is as cheap as argon2 allows.
"""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

from argon2 import PasswordHasher
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.worker_context import WorkerContext
from quart import Quart

from service.app import create_app
from service.config import Settings
from service.db import migrations
from service.server.http1 import ServerConfig
from service.server.http1.connection import Connection
from service.server.http1.server import Serving
from service.server.hypercorn_config import configured
from tests.conftest import settings_for

SEGMENT = 65_536  # bytes that a transport passes at once
METRICS_TOKEN = "a token of the tests, for metrics"


@dataclass(frozen=True)
class Cost:
    """The cost of a request. ms: CPU time. size: bytes of the request. body: of the response."""

    status: int
    ms: float
    size: int
    head: bytes
    body: bytes


class MemoryTransport(asyncio.Transport):
    """A transport without a peer. written: the bytes so far. ended: set when it is closed."""

    def __init__(self, connection: Connection) -> None:
        super().__init__({})
        self.written = bytearray()
        self.ended = asyncio.get_running_loop().create_future()
        self._connection = connection

    def writelines(self, parts: Any) -> None:
        """Keep the bytes."""
        self.written += b"".join(parts)

    def close(self) -> None:
        """Close, and report it to the connection in the next tick."""
        if not self.is_closing():
            self.ended.set_result(None)
            asyncio.get_running_loop().call_soon(self._connection.connection_lost, None)

    abort = write_eof = close

    def is_closing(self) -> bool:
        """Whether it is closed."""
        return bool(self.ended.done())

    def can_write_eof(self) -> bool:
        """Return True, as for TCP."""
        return True

    def get_write_buffer_size(self) -> int:
        """Return 0: the peer reads at once."""
        return 0

    def pause_reading(self) -> None:
        """Do nothing: all bytes are there."""

    resume_reading = pause_reading


class Meter:
    """Measures requests to an application, in its process."""

    def __init__(self, app: Quart, config: ServerConfig) -> None:
        self.app = app
        context: Any = WorkerContext(None)
        loop = asyncio.get_running_loop()
        wrapper = ASGIWrapper(app)
        self._serving = Serving(wrapper.app, config, context, loop, {})

    async def send(self, request: bytes, segment: int = SEGMENT) -> Cost:
        """Send a request in segments, and wait for the end of its connection."""
        pieces = [request[at : at + segment] for at in range(0, len(request), segment)]
        connection = Connection(self._serving, ("127.0.0.1", 9), ("127.0.0.1", 80))
        transport = MemoryTransport(connection)
        begun = process_time()
        connection.connection_made(transport)
        for piece in pieces:
            connection.data_received(piece)
            await asyncio.sleep(0)
        is_complete = connection._reader.is_complete  # private: no response shows it
        if not is_complete and not connection.eof_received():
            transport.close()  # an incomplete request gets no further bytes
        async with asyncio.timeout(90):
            await connection.ended
        ms = (process_time() - begun) * 1_000
        head, _, body = bytes(transport.written).rpartition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1]) if head else 0
        return Cost(status, ms, len(request), head, body)

    async def least(self, request: bytes, rounds: int, segment: int = SEGMENT) -> Cost:
        """Send a request several times, and give the lowest cost: the rest is noise."""
        costs = [await self.send(request, segment) for _ in range(rounds)]
        return min(costs, key=lambda cost: cost.ms)


@asynccontextmanager
async def metered(folder: Path, **changed: object) -> AsyncIterator[Meter]:
    """Start an application on a new SQLite database, without a socket."""
    settings: Settings = settings_for(
        f"sqlite:///{folder}/cost.db", folder, metrics_token=METRICS_TOKEN, **changed
    )
    await asyncio.to_thread(migrations.upgrade, settings.database)
    app = create_app(settings)
    config = configured(app, [], settings)
    passwords = app.extensions["passwords"]
    passwords._hasher = PasswordHasher(1, 8, 1)  # private: no setting makes hashes cheaper
    async with app.test_app():
        gc.collect()
        gc.freeze()
        yield Meter(app, config)
