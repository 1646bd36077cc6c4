"""Correct Hypercorn's own HTTP/1.1 (h11): no protocol upgrades, and a timeout for headers."""

import asyncio
from dataclasses import replace
from typing import cast

import h11
from hypercorn.events import Closed, Event
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import Response
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.typing import H11SendableEvent

from service.server.http1.config import ServerConfig
from service.server.http1.error_responses import as_origin, error_response
from service.server.http1.parser import RefusedError


class Http1(H11Protocol):
    """Replaces Hypercorn's H11Protocol, and ignores Upgrade, as RFC 9110, 7.8 permits.

    Hypercorn's cleartext HTTP/2 buffers a megabyte for each unread stream, and has no timeout for
    unfinished headers. Octavo has no websockets.
    """

    config: ServerConfig
    _headers_due: asyncio.TimerHandle | None = None

    async def handle(self, event: Event) -> None:
        """Handle an event. Headers must be complete `header_seconds` after their first byte."""
        await super().handle(event)
        if isinstance(event, Closed):
            self._stop_header_timer()
        elif self._headers_due is None and self._is_within_headers:
            loop = asyncio.get_running_loop()
            self._headers_due = loop.call_later(self.config.header_seconds, self._close_late)

    @property
    def _is_within_headers(self) -> bool:
        return self.connection.their_state is h11.IDLE and self.connection.trailing_data[0] != b""

    def _stop_header_timer(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def _close_late(self) -> None:
        self._headers_due = None
        self.task_group._task_group.create_task(self.send(Closed()))  # type: ignore[attr-defined]  # its own

    async def stream_send(self, event: StreamEvent) -> None:
        """Send a part of a response. Add `Connection: close` if Hypercorn will then close.

        Hypercorn closes while draining, and after a request whose body is incomplete.
        """
        if isinstance(event, Response) and event.status_code >= 200:
            is_early = self.connection.their_state is h11.SEND_BODY
            if self.config.draining or is_early:
                event = replace(event, headers=[*event.headers, (b"connection", b"close")])
        await super().stream_send(event)

    async def _check_protocol(self, event: h11.Request) -> None:
        self._stop_header_timer()

    async def _create_stream(self, request: h11.Request) -> None:
        """Refuse other versions (505), CONNECT and lower-case methods (501: RFC 9110, 9.1).

        Accept targets in absolute form (RFC 9112, 3.2.2).
        """
        if not request.http_version.startswith(b"1."):
            return await self._refuse(505)
        if request.method != request.method.upper() or request.method == b"CONNECT":
            return await self._refuse(501)
        offered = [(name, value) for name, value in request.headers if name != b"upgrade"]
        try:
            target, headers = as_origin(request.target, offered)
        except RefusedError as error:
            return await self._refuse(error.status)
        return await super()._create_stream(
            h11.Request(
                method=request.method,
                target=target,
                headers=[*headers],
                http_version=request.http_version,
            )
        )

    async def _refuse(self, status_code: int) -> None:
        await self._send_error_response(status_code)
        await self._maybe_recycle()

    async def _send_error_response(self, status_code: int) -> None:
        """Send an error for an invalid request (400, 431, 501), and close the connection."""
        self._stop_header_timer()
        headers, body = error_response(self.config, status_code)
        sent = [*headers, *self.config.response_headers("h11")]
        events = (h11.Response(status_code=status_code, headers=sent), h11.Data(data=body))
        for event in (*events, h11.EndOfMessage()):
            await self._send_h11_event(cast(H11SendableEvent, event))
