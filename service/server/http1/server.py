"""Install the protocols of this package in Hypercorn, and serve each accepted connection."""

import asyncio
from contextlib import suppress
from functools import partial
from time import time
from typing import Any

import hypercorn.asyncio.run
import hypercorn.protocol
import hypercorn.protocol.h2
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.tcp_server import MAX_RECV, TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.protocol.events import Request
from hypercorn.typing import ASGIFramework, ConnectionState, LifespanState
from hypercorn.utils import parse_socket_addr, valid_server_name

from service.server.http1.config import ServerConfig
from service.server.http1.connection import Connection
from service.server.http1.h2 import BoundedBuffer, Http2
from service.server.http1.h11 import Http1
from service.server.http1.parser import HeaderCache, HeaderFields


class Serving:
    """State that all connections of one call of `hypercorn.asyncio.serve` share."""

    def __init__(
        self,
        app: ASGIFramework,
        config: ServerConfig,
        context: WorkerContext,
        loop: asyncio.AbstractEventLoop,
        state: LifespanState,
    ) -> None:
        self.app = app
        self.config = config
        self.context = context
        self.loop = loop
        self.state = state
        self.connections: set[Connection] = set()
        self.known = HeaderCache()
        self.is_logged = config.log.access_logger is not None
        self.counts_or_logs = self.is_logged or context.max_requests is not None  # for each request
        self._head_end = (0, b"")
        self._ending = loop.create_task(self._end())

    async def _end(self) -> None:
        """When Hypercorn stops, close idle connections now, and others after their response."""
        await self.context.terminated.wait()
        for connection in list(self.connections):
            connection.end()

    def head_end(self) -> bytes:
        """Return the last lines of every response head (such as Date), with the empty line.

        They are made once a second.
        """
        now = int(time())
        if self._head_end[0] != now:
            lines = [b"%b: %b\r\n" % line for line in self.config.response_headers("h11")]
            self._head_end = now, b"".join(lines) + b"\r\n"
        return self._head_end[1]

    def is_known_host(self, headers: HeaderFields) -> bool:
        """Return whether the Host field names this server (Hypercorn's `server_names`)."""
        request = Request(1, [*headers], "1.1", "GET", b"/", ConnectionState({}))
        return valid_server_name(self.config, request)


class Server(TCPServer):
    """Hypercorn's TCPServer, unchanged for HTTP/2, for WSGI, and for HTTP/1.1 with h11.

    For other connections, `run` sets `Connection` as the protocol of the transport. Hypercorn still
    manages sockets, TLS, the lifespan and shutdown: `run` is its task for the connection.
    """

    config: ServerConfig

    async def run(self) -> None:
        """Serve a connection to its end."""
        tls = self.writer.get_extra_info("ssl_object")
        is_http2 = tls is not None and tls.selected_alpn_protocol() == "h2"
        if is_http2 or self.config.http1 == "h11" or not isinstance(self.app, ASGIWrapper):
            return await super().run()
        try:
            sock = self.writer.get_extra_info("socket")
            client = parse_socket_addr(sock.family, sock.getpeername())
            local = parse_socket_addr(sock.family, sock.getsockname())
            received = b"".join(iter(partial(_received, self.reader), b""))
        except OSError:
            return self.writer.close()
        transport: Any = self.writer.transport
        if transport.is_closing():
            return None
        connection = Connection(self._serving(self.app.app), client, local)
        streams: Any = transport.get_protocol()
        transport.set_protocol(connection)
        connection.connection_made(transport)
        if received:
            connection.data_received(received)
        if self.reader.at_eof() and not connection.eof_received():
            transport.close()
        try:
            await asyncio.shield(connection.ended)
        except asyncio.CancelledError:  # Hypercorn cancels at shutdown, and waits for this task
            await connection.cancel()
        finally:
            streams.connection_lost(None)  # breaks a reference cycle
        return None

    async def _initiate_server_close(self) -> None:
        """Close an idle connection of HTTP/2 or h11. Over HTTP/2, send GOAWAY before.

        A request may have arrived with the end of the timeout: then the connection is not idle.
        """
        protocol = self.protocol.protocol
        if isinstance(protocol, Http2):
            if not protocol.idle:
                return
            await protocol.leave()
        await super()._initiate_server_close()

    async def _close(self) -> None:
        with suppress(TimeoutError):  # the client has not acknowledged the end of TLS
            await super()._close()

    def _serving(self, app: ASGIFramework) -> Serving:
        serving: Serving | None = self.config.serving
        if serving is None or serving.context is not self.context:
            serving = Serving(app, self.config, self.context, self.loop, self.state)
            self.config.serving = serving
        return serving


def install() -> None:
    """Replace the classes that Hypercorn uses for each connection."""
    hypercorn.asyncio.run.TCPServer = Server  # type: ignore[attr-defined]  # extension point
    hypercorn.protocol.H11Protocol = Http1  # type: ignore[attr-defined]  # extension point
    hypercorn.protocol.H2Protocol = Http2  # type: ignore[attr-defined]  # extension point
    hypercorn.protocol.h2.StreamBuffer = BoundedBuffer  # type: ignore[misc]  # for Http2


def _received(reader: asyncio.StreamReader) -> bytes:
    """Return the data that was already received, without waiting."""
    reading = reader.read(MAX_RECV)
    try:
        reading.send(None)
    except StopIteration as read:
        data: bytes = read.value
        return data
    reading.close()
    return b""
