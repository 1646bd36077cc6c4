"""Hypercorn as Octavo runs it: HTTP/1.1 that stays so, and refuses as all else here does."""

import asyncio
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from socket import socket
from typing import Any, cast
from uuid import uuid4

import h11
import hypercorn.protocol
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import Response
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.typing import H11SendableEvent
from quart import Quart

from service.config import Settings
from service.errors import MIMETYPE, http_error, problem
from service.logs import request_id
from service.overload import Overload

KEEP_ALIVE_REQUESTS = 100_000  # of a connection: then it may find another worker
PLAIN_GET = re.compile(
    rb"GET (/[!$&-;=@-Z_a-z~]*)(?:\?[!-~]*)? HTTP/1\.1((?:\r\n[!-9;-~]+:[^\r\n]*)+)\r\n\r\n"
)
SPECIAL = {b"connection", b"content-length", b"transfer-encoding", b"expect", b"upgrade"}
ABSOLUTE = re.compile(rb"https?://([^/?#]+)(.*)", re.IGNORECASE | re.DOTALL)


class ServerConfig(Config):
    """Hypercorn's configuration, and what `Http1` has to know beyond it."""

    draining = False  # clients are told to close
    header_seconds = 5.0
    overload: Overload


class Http1(H11Protocol):
    """Hypercorn's HTTP/1.1, without what it lets a client change it to.

    Its HTTP/2 in cleartext keeps a megabyte for each stream that nobody reads, and never cuts
    headers that do not end. An upgrade is an offer that a server may leave (RFC 9110, 7.8): there
    are no websockets here either.
    """

    config: ServerConfig
    _headers_due: asyncio.TimerHandle | None = None
    _refresh_at = 0.0

    async def handle(self, event: Event) -> None:
        """Take what came. Headers have to end some time after they began, idle as they may be."""
        if isinstance(event, RawData):
            if self.config.overload.strain >= 1:
                scope = self._plain_get(event.data)
                if scope is not None and self.config.overload.turns_away("GET", scope["path"]):
                    await self._turn_away(scope)
                    return
            self._seen_alive()
        await super().handle(event)
        if isinstance(event, Closed):
            self._have_headers()
        elif self._headers_due is None and self._is_within_headers:
            loop = asyncio.get_running_loop()
            self._headers_due = loop.call_later(self.config.header_seconds, self._cut)

    @property
    def _is_within_headers(self) -> bool:
        return self.connection.their_state is h11.IDLE and self.connection.trailing_data[0] != b""

    def _have_headers(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def _cut(self) -> None:
        self._headers_due = None
        self.task_group._task_group.create_task(self.send(Closed()))  # type: ignore[attr-defined]

    def _plain_get(self, data: bytes) -> dict[str, Any] | None:
        """Read a GET that is whole and has nothing special: what costs least to turn away.

        Whatever else there is goes the ordinary way, and is turned away by the application.
        """
        whole = PLAIN_GET.fullmatch(data)
        if (
            whole is None
            or self.config.draining
            or self.stream is not None
            or self.connection.their_state is not h11.IDLE
            or self.connection.trailing_data[0]
        ):
            return None
        lines = [line.partition(b":") for line in whole[2].split(b"\r\n")]
        headers = [(name.lower(), value.strip()) for name, _, value in lines]
        if any(name in SPECIAL and value.lower() != b"keep-alive" for name, value in headers):
            return None
        return {"path": whole[1].decode(), "headers": headers}

    async def _turn_away(self, scope: dict[str, Any]) -> None:
        headers, body = self.config.overload.refusal(scope)
        told = [*headers, *self.config.response_headers("h11")]
        head = b"".join(b"%b: %b\r\n" % header for header in told)
        await self.send(RawData(b"HTTP/1.1 503 \r\n" + head + b"\r\n" + body))
        if asyncio.get_running_loop().time() > self._refresh_at:  # it costs more than the answer
            await self.send(Updated(idle=False))
            await self.send(Updated(idle=True))
            self._seen_alive()

    def _seen_alive(self) -> None:
        """Say when this connection, should it get refusals alone, has to be seen not to be idle.

        For each at another time: for all at once it takes longer than the loop may be late.
        """
        pause = self.config.keep_alive_timeout * random.uniform(0.2, 0.5)  # noqa: S311  (no secret)
        self._refresh_at = asyncio.get_running_loop().time() + pause

    async def stream_send(self, event: StreamEvent) -> None:
        """Send a part of an answer. While draining, it is the last one of its connection."""
        if self.config.draining and isinstance(event, Response) and event.status_code >= 200:
            event = replace(event, headers=[*event.headers, (b"connection", b"close")])
        await super().stream_send(event)

    async def _check_protocol(self, event: h11.Request) -> None:
        self._have_headers()

    async def _create_stream(self, request: h11.Request) -> None:
        """Take a request as RFC 9112 has it: methods tell cases apart, targets may be absolute."""
        if not request.http_version.startswith(b"1."):
            return await self._refuse(505)
        if request.method != request.method.upper():
            return await self._refuse(501)
        headers = [(name, value) for name, value in request.headers if name != b"upgrade"]
        target = request.target
        absolute = ABSOLUTE.fullmatch(target)
        if absolute is not None:  # then it names the host, whatever the header says (3.2.2)
            target = absolute[2] if absolute[2].startswith(b"/") else b"/" + absolute[2]
            headers = [(b"host", absolute[1])] + [item for item in headers if item[0] != b"host"]
        return await super()._create_stream(
            h11.Request(
                method=request.method,
                target=target,
                headers=headers,
                http_version=request.http_version,
            )
        )

    async def _refuse(self, status_code: int) -> None:
        await self._send_error_response(status_code)
        await self._maybe_recycle()

    async def _send_error_response(self, status_code: int) -> None:
        """Refuse what is no HTTP (400, 431, 501), and end the connection."""
        self._have_headers()
        request_id.set(uuid4().hex)
        body = problem(http_error(status_code))
        headers = {
            "content-type": MIMETYPE,
            "content-length": str(len(body)),
            "connection": "close",
            "cache-control": "no-store",
            "x-content-type-options": "nosniff",
            "x-request-id": request_id.get(),
        }
        dated = self.config.response_headers("h11")
        sent = [*((name.encode(), value.encode()) for name, value in headers.items()), *dated]
        events = (h11.Response(status_code=status_code, headers=sent), h11.Data(data=body))
        for event in (*events, h11.EndOfMessage()):
            await self._send_h11_event(cast(H11SendableEvent, event))


def configured(app: Quart, sockets: Sequence[socket], settings: Settings) -> ServerConfig:
    """Give the configuration of Hypercorn for an application on sockets that listen."""
    hypercorn.protocol.H11Protocol = Http1  # type: ignore[attr-defined]  # looked up there
    config = ServerConfig()
    config.bind = [f"fd://{sock.detach()}" for sock in sockets]
    config.errorlog = app.logger
    config.include_server_header = False
    config.backlog = settings.backlog
    config.keep_alive_timeout = settings.keep_alive_seconds
    config.keep_alive_max_requests = KEEP_ALIVE_REQUESTS
    config.graceful_timeout = settings.grace_seconds
    config.header_seconds = settings.header_seconds
    config.overload = app.extensions["overload"]
    if settings.tls_certfile is not None:
        config.certfile, config.keyfile = str(settings.tls_certfile), str(settings.tls_keyfile)
        config.alpn_protocols = ["h2", "http/1.1"] if settings.http2 else ["http/1.1"]
    return config
