"""One connection: reads requests in order, each after the response to the previous request."""

import asyncio
import contextvars
from collections.abc import Coroutine
from math import inf
from typing import TYPE_CHECKING, Any

from service.server.http1 import transport
from service.server.http1.config import Headers
from service.server.http1.error_responses import error_response
from service.server.http1.parser import Reader, RefusedError
from service.server.http1.request_cycle import RequestCycle
from service.server.http1.response_writer import ResponseWriter
from service.server.http1.scope import scope_of
from service.server.http1.transport import Phase, TransportProtocol

if TYPE_CHECKING:
    from service.server.http1.server import Serving

MAX_UNPARSED_BYTES = 65_536  # bytes received but not parsed; beyond that, reading is paused


class Connection(TransportProtocol):
    """An HTTP/1.1 connection to one client."""

    _data, _at = b"", 0  # received data, and the position up to which it is parsed
    _cycle: RequestCycle | None = None  # the request whose response is not complete
    _count = 0  # number of requests
    _is_ending = False
    _is_lost = False

    def __init__(self, server: "Serving", client: Any, local: Any) -> None:
        super().__init__(server.loop)
        self.server = server
        self.client = client
        self.local = local
        self.ended = server.loop.create_future()  # connection lost, and no application runs
        self._context = contextvars.copy_context()  # each request gets a copy
        self._reader = Reader(server.known)
        self._running: set[RequestCycle] = set()  # requests whose application has not returned

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register the connection and start its timer."""
        super().connection_made(transport)
        self.scheme = "http" if transport.get_extra_info("ssl_object") is None else "https"
        self.server.connections.add(self)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Buffer received data, and parse it unless a response is pending."""
        if self._is_closing:
            return self._discard(len(data))
        self._data, self._at = self._data[self._at :] + data if self._data else data, 0
        return self._advance()

    def eof_received(self) -> bool:
        """Finish the pending response: the client may have closed only its sending side.

        Return whether the transport stays open.
        """
        self._is_eof = True
        if self._cycle is None or self._is_closing:
            return False
        self._cycle.client_left()
        return self.scheme == "http"  # TLS connections cannot be half-closed

    def connection_lost(self, error: Exception | None) -> None:
        """Release the connection, and report the disconnect to running applications."""
        super().connection_lost(error)
        self._is_lost, self._data, self._at = True, b"", 0
        self._reader.close()
        for cycle in [*self._running]:
            cycle.discard_response()
        self._cycle = None
        self.server.connections.discard(self)
        self._end()

    def pause_writing(self) -> None:
        """Make `send` wait, and parse no further requests: the write buffer is full."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """Let `send` continue, and parse further requests."""
        super().resume_writing()
        if not self._is_closing:
            self._advance()

    def closes_after(self, cycle: RequestCycle | None) -> bool:
        """Return whether the connection closes after the response that starts now."""
        config, reader = self.server.config, self._reader
        return (
            b"close" in reader.options
            or (reader.line.version == "1.0" and b"keep-alive" not in reader.options)
            or self._is_ending
            or config.draining
            or self._count >= config.keep_alive_max_requests
            or (cycle is not None and cycle.has_long_rest(reader))
        )

    def finished(self, cycle: RequestCycle, *, closes: bool) -> None:
        """After a complete response, continue with the next request, or close."""
        if self._cycle is not cycle:
            return
        self._cycle = None
        if closes or self._is_ending:
            self._close(lingers=bool(self._data) or not self._reader.is_complete)
        elif self._data or self._is_eof:  # in a fresh context, not that of this application
            self._context.copy().run(self._advance)
        else:
            self.adjust_reading()

    def abort_response(self, cycle: RequestCycle, *, looks_whole: bool) -> None:
        """Close in the middle of a response. looks_whole: reset, else the client sees no error."""
        if self._cycle is cycle:
            self._cycle = None
            if looks_whole:
                self.reset()
            else:
                self._close(lingers=False)

    def application_ended(self, cycle: RequestCycle) -> None:
        """Remove a request whose application has returned."""
        self._running.discard(cycle)
        self._end()

    def _end(self) -> None:
        if self._is_lost and not self._running and not self.ended.done():
            self.ended.set_result(None)

    def _advance(self) -> None:
        while self._at < len(self._data) and not self._is_closing:
            try:
                if not self._reader.is_complete:
                    self._read_body()
                elif self._cycle is not None or not self._is_writable or not self._begin():
                    break
            except RefusedError as error:
                return self._refuse(error.status)
        if self._cycle is not None:
            self._cycle.start()  # after the part of the body that arrived with the head
        if self._at == len(self._data):
            self._data, self._at = b"", 0
            is_responding = (
                self._cycle is not None and self._phase is Phase.BUSY and self._is_writable
            )
            if is_responding and self._reader.is_complete and not self._is_paused:
                return None  # no timer and no reading to adjust
        if self._is_eof and self._cycle is None:
            return self._close(lingers=False)
        return self.adjust_reading()

    def _begin(self) -> bool:
        """Start the next request. False: its head is not complete. Raises RefusedError."""
        data, at = self._data, self._at
        if data.startswith(b"\r\n", at):  # ignore an empty line before a request (RFC 9112, 2.2)
            at += 2
        end = self._reader.find_end(data, at)
        if end is None:
            return False
        self._at = end
        self._reader.head(data[at:end])
        self._count += 1
        self._take()
        return True

    def _take(self) -> None:
        reader, server, self._phase, self._due = self._reader, self.server, Phase.BUSY, inf
        scope: Any = scope_of(reader, self)
        config = server.config
        is_plain = reader.line.method in {"GET", "HEAD"} and reader.is_complete
        if config.server_names and not server.is_known_host(reader.headers):
            return self._reply(404, *error_response(config, 404), closes=True)
        cycle = self._cycle = RequestCycle(self, reader, scope)
        self._running.add(cycle)
        if self._is_eof:
            cycle.client_left()
        cycle.is_plain = is_plain
        return None

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Create a task in a copy of the connection's context."""
        return self._loop.create_task(work, context=self._context.copy())

    def _read_body(self) -> None:
        reader, cycle = self._reader, self._cycle
        try:
            self._at = reader.body(self._data, self._at)
        except RefusedError:
            if cycle is None:  # its response is complete
                return self._close(lingers=True)
            raise
        if cycle is not None:
            cycle.add_body(reader.pieces, is_read=reader.is_complete)
            self._phase, self._due = Phase.BUSY, inf  # another stall starts a new timeout
        reader.pieces = []
        return None

    def _refuse(self, status: int) -> None:
        cycle, self._cycle = self._cycle, None
        if cycle is not None:
            if cycle.discard_response():
                return self.abort()  # part of a response was sent
            cycle.start()  # after `discard_response`, start only ends the request
        return self._reply(status, *error_response(self.server.config, status), closes=True)

    def _reply(self, status: int, headers: Headers, body: bytes, *, closes: bool) -> None:
        """Send a response without the application."""
        response = ResponseWriter(status, headers, is_head=False)
        response.closes = closes
        head = response.head(body, False, self._reader.line.version, self.server.head_end())
        self.write([head, *response.piece(body, False)])
        if response.closes:
            self._close(lingers=True)

    def adjust_reading(self) -> None:
        """Pause reading while more than 64 KiB wait for the parser or for the application."""
        cycle = self._cycle
        is_enough = len(self._data) - self._at > MAX_UNPARSED_BYTES or (
            cycle is not None and cycle.is_full
        )
        if is_enough is not self._is_paused:
            self._pause(is_enough)
        self._watch()

    def _watch(self) -> None:
        """Set the phase of the connection and its timeout."""
        cycle, config = self._cycle, self.server.config
        if self._is_closing:
            return
        if not self._is_writable or (cycle is not None and cycle.is_awaited):
            phase, seconds = Phase.STALLED, transport.STALL_SECONDS
        elif cycle is not None:
            phase, seconds = Phase.BUSY, inf
        elif not self._reader.is_complete:  # further data of the body does not extend the timeout
            phase, seconds = Phase.UNREAD, transport.UNREAD_SECONDS
        elif self._data:
            phase, seconds = Phase.IN_HEAD, config.header_seconds
        else:
            phase, seconds = Phase.IDLE, config.keep_alive_timeout
        if phase is not self._phase:
            self._enter(phase, seconds)

    def end(self) -> None:
        """Close after the response to the current request, or now if there is none."""
        self._is_ending = True
        if self._cycle is None and not self._is_closing:
            self._leave()

    async def cancel(self) -> None:
        """Close now, cancel the running applications, and wait for their end."""
        if self._cycle is not None and self._cycle.is_endless:
            self.reset()
        else:
            self.abort()
        tasks = [task for cycle in [*self._running] if (task := cycle.cancel())]
        await asyncio.gather(*tasks, return_exceptions=True)
