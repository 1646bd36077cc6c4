"""An ASGI application without Octavo's middleware, served by Hypercorn over either parser."""

import asyncio
import hashlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from hypercorn.asyncio import serve

from service.http.error_handler import server_error
from service.server.http1 import ServerConfig, install

TIMEOUT = 60  # seconds: for any event, also on a busy machine


async def read(receive: Any) -> bytes | None:
    """Read a body to its end; return None if the client disconnects before."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message["body"]
        if not message["more_body"]:
            return bytes(body)


async def respond(send: Any, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    """Send a complete response."""
    fields = [(b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Respond with the request as JSON."""
    body = await read(receive)
    if body is None:
        return
    shown = {
        "method": scope["method"],
        "path": scope["path"],
        "raw_path": scope["raw_path"].decode(),
        "query": scope["query_string"].decode(),
        "version": scope["http_version"],
        "headers": [(k.decode("latin1"), v.decode("latin1")) for k, v in scope["headers"]],
        "body": body.decode("latin1") if len(body) < 100 else hashlib.sha256(body).hexdigest(),
    }
    await respond(send, 200, json.dumps(shown).encode())


@dataclass
class Bare:
    """A server, its port, and the lines that it has logged."""

    port: int
    config: ServerConfig
    logged: list[str] = field(default_factory=list)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def connect(self, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection. The test closes it; if the test fails, `bare` does."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, **options)
        self.writers.append(writer)
        return reader, writer

    async def until_connected(self, number: int = 1) -> None:
        """Wait until the server has accepted a number of connections."""
        async with asyncio.timeout(TIMEOUT):
            while not self.config.serving or len(self.config.serving.connections) < number:
                await asyncio.sleep(0.01)

    async def until_closed(self) -> None:
        """Wait until the server has no connection."""
        async with asyncio.timeout(TIMEOUT):
            while self.config.serving.connections:
                await asyncio.sleep(0.02)


class Log:
    """A log for Hypercorn that keeps its records."""

    access_logger = None

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines
        self.accesses: list[tuple[Any, Any]] = []

    async def info(self, *_: Any) -> None:
        """Ignore messages."""

    async def exception(self, message: str, *_: Any) -> None:
        """Keep an error."""
        self._lines.append(message)

    async def access(self, request: Any, response: Any, seconds: float) -> None:
        """Keep path and status of a request."""
        self.accesses.append((request["path"], response and response["status"]))


@asynccontextmanager
async def bare(app: Callable[..., Any] = echo, **changed: Any) -> AsyncIterator[Bare]:
    """Serve an application on a free port. changed: attributes of the configuration."""
    install()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(4_096)
    port, logged = listener.getsockname()[1], list[str]()
    config = ServerConfig()
    config.error_response = server_error
    config._log = Log(logged)  # type: ignore[assignment]  # has the same methods  # private: Hypercorn makes it from the settings
    config.bind = [f"fd://{listener.detach()}"]
    config.include_server_header = False
    config.backlog = 4_096
    config.graceful_timeout = TIMEOUT / 2
    for name, value in changed.items():
        setattr(config, name, value)
    started, stop = asyncio.Event(), asyncio.Event()

    async def with_lifespan(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        for event in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{event}.complete"})
            started.set()

    server = asyncio.ensure_future(serve(with_lifespan, config, shutdown_trigger=stop.wait))
    await started.wait()
    site = Bare(port, config, logged)
    try:
        yield site
    except BaseException:
        for writer in site.writers:
            writer.transport.abort()
        raise
    finally:
        stop.set()
        await asyncio.wait_for(server, TIMEOUT)
