"""An ASGI application without anything around it, served by Hypercorn over either protocol."""

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


async def read(receive: Any) -> bytes | None:
    """Read a body to its end; None: the client has gone before."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message["body"]
        if not message["more_body"]:
            return bytes(body)


async def answer(send: Any, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    """Send an answer in one piece."""
    told = [(b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": told})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Say what was asked."""
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
    await answer(send, 200, json.dumps(shown).encode())


@dataclass
class Bare:
    """What is served, and where."""

    port: int
    config: ServerConfig
    logged: list[str] = field(default_factory=list)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection."""
        return await asyncio.open_connection("127.0.0.1", self.port)


class Log:
    """Hypercorn's log, kept."""

    access_logger = None

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines
        self.told: list[tuple[Any, Any]] = []

    async def info(self, *_: Any) -> None:
        """Forget where it listens."""

    async def exception(self, message: str, *_: Any) -> None:
        """Keep what failed."""
        self._lines.append(message)

    async def access(self, request: Any, response: Any, seconds: float) -> None:
        """Keep what was answered."""
        self.told.append((request["path"], response and response["status"]))


@asynccontextmanager
async def bare(
    app: Callable[..., Any] = echo, *, tls: Any = None, **changed: Any
) -> AsyncIterator[Bare]:
    """Serve an application on a free port; `changed`: of the configuration."""
    install()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(4_096)
    port, logged = listener.getsockname()[1], list[str]()
    config = ServerConfig()
    config.error_response = server_error
    config._log = Log(logged)  # type: ignore[assignment]  # a stand-in
    config.bind = [f"fd://{listener.detach()}"]
    config.include_server_header = False
    config.backlog = 4_096
    config.graceful_timeout = 5
    for name, value in changed.items():
        setattr(config, name, value)
    started, stop = asyncio.Event(), asyncio.Event()

    async def with_lifespan(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        for happened in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{happened}.complete"})
            started.set()

    server = asyncio.ensure_future(serve(with_lifespan, config, shutdown_trigger=stop.wait))
    await started.wait()
    try:
        yield Bare(port, config, logged)
    finally:
        stop.set()
        await asyncio.wait_for(server, 20)
