"""What a request costs: CPU time of the whole stack, from its first byte to its last.

Bytes are handed to the server's own connection, as a transport would, so that reading HTTP counts
and the kernel does not. Password hashing is left out: a hash here is as cheap as argon2 allows.
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

SEGMENT = 65_536  # bytes that a transport hands over at once
METRICS_TOKEN = "a token of the tests, for metrics"


@dataclass(frozen=True)
class Cost:
    """What a request came to. ms: CPU; size: bytes of the request; body: bytes of the answer's."""

    status: int
    ms: float
    size: int
    head: bytes
    body: bytes


class MemoryTransport(asyncio.Transport):
    """A transport to nobody: what is written is kept, and whoever waits hears of the end."""

    def __init__(self, connection: Connection) -> None:
        super().__init__({})
        self.written = bytearray()
        self.ended = asyncio.get_running_loop().create_future()
        self._connection = connection

    def writelines(self, parts: Any) -> None:
        """Keep what is written."""
        self.written += b"".join(parts)

    def close(self) -> None:
        """End, as soon as the loop comes to it."""
        if not self.is_closing():
            self.ended.set_result(None)
            asyncio.get_running_loop().call_soon(self._connection.connection_lost, None)

    abort = write_eof = close

    def is_closing(self) -> bool:
        """Tell whether the end has come."""
        return bool(self.ended.done())

    def can_write_eof(self) -> bool:
        """TCP can."""
        return True

    def get_write_buffer_size(self) -> int:
        """Tell that all has been read."""
        return 0

    def pause_reading(self) -> None:
        """There is nothing to be paused."""

    resume_reading = pause_reading


class Meter:
    """Measures requests to one application, in its process."""

    def __init__(self, app: Quart, config: ServerConfig) -> None:
        self.app = app
        context: Any = WorkerContext(None)
        loop = asyncio.get_running_loop()
        wrapper = ASGIWrapper(app)
        self._serving = Serving(wrapper.app, config, context, loop, {})

    async def ask(self, request: bytes, segment: int = SEGMENT) -> Cost:
        """Send a request that ends its connection, in segments, and wait for all that it causes."""
        pieces = [request[at : at + segment] for at in range(0, len(request), segment)]
        connection = Connection(self._serving, ("127.0.0.1", 9), ("127.0.0.1", 80))
        transport = MemoryTransport(connection)
        begun = process_time()
        connection.connection_made(transport)
        for piece in pieces:
            connection.data_received(piece)
            await asyncio.sleep(0)
        if not connection._reader.is_complete and not connection.eof_received():
            transport.close()  # nothing more comes
        async with asyncio.timeout(90):
            await connection.ended
        ms = (process_time() - begun) * 1_000
        head, _, body = bytes(transport.written).rpartition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1]) if head else 0
        return Cost(status, ms, len(request), head, body)

    async def least(self, request: bytes, rounds: int, segment: int = SEGMENT) -> Cost:
        """Send a request several times; the cheapest is what it costs, the rest is noise."""
        return min([await self.ask(request, segment) for _ in range(rounds)], key=lambda x: x.ms)


@asynccontextmanager
async def metered(folder: Path, **changed: object) -> AsyncIterator[Meter]:
    """Start an application on a new SQLite database, without a socket."""
    settings: Settings = settings_for(
        f"sqlite:///{folder}/cost.db", folder, metrics_token=METRICS_TOKEN, **changed
    )
    await asyncio.to_thread(migrations.upgrade, settings.database)
    app = create_app(settings)
    config = configured(app, [], settings)
    app.extensions["passwords"]._hasher = PasswordHasher(1, 8, 1)
    async with app.test_app():
        gc.collect()
        gc.freeze()
        yield Meter(app, config)
