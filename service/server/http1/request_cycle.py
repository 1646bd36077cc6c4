"""Run one request: call the ASGI application, and send its response."""

import asyncio
from time import time
from typing import TYPE_CHECKING, Any

from hypercorn.typing import HTTPScope

from service.server.http1.config import COMPLETE, EarlyResponse, Headers, Turn
from service.server.http1.error_responses import error_response
from service.server.http1.parser import Reader
from service.server.http1.response_writer import CONTINUE, ResponseWriter, early_head
from service.server.http1.transport import UNREAD_BYTES

if TYPE_CHECKING:
    from service.server.http1.connection import Connection

Message = Any  # an ASGI message: a dict
REQUEST_TIMEOUT = 408  # closes its connection (RFC 9110, 15.5.9)
MAX_WAITING_BYTES = 65_536  # bytes of a body that wait for the application; beyond, reading pauses


class ClientDisconnectedError(ConnectionResetError):
    """The client has disconnected, so the rest of a response needs not be made."""


class RequestCycle:
    """Calls the application with a request, and sends its response.

    The head of a response waits for the first part of the body, so that both are one write. An
    incomplete response closes its connection, so that the client can detect the error.
    """

    task: asyncio.Task[None] | None = None  # the call of the application
    _turn: Turn | None = None  # the turn in the admission queue
    is_awaited = False  # the application waits for more of the body
    is_full = False  # more than MAX_WAITING_BYTES wait for the application
    is_plain = False  # a GET or HEAD without content
    is_gone = False  # the client has closed its sending side or the connection
    is_responded = False
    _is_started = False
    _is_silenced = False  # no part of the response may be sent any more
    _is_cancelled = False
    _start: Message = None  # `http.response.start`; the head waits for the first part of the body
    _response: ResponseWriter | None = None  # the started response
    _pieces: list[bytes] | None = None  # parts of the body that wait for the application
    _has_given = False  # the application has received part of the body
    _has_given_end = False
    _changed: asyncio.Event | None = None

    def __init__(self, connection: "Connection", reader: Reader, scope: HTTPScope) -> None:
        self._connection = connection
        self._scope = scope
        self.is_read = reader.is_complete  # the whole request
        self.expects = reader.expects and not reader.is_complete
        self._begun_at = time() if connection.server.is_logged else 0.0

    def start(self) -> None:
        """Respond, by the shortcut if possible, else by the application. Later calls do nothing."""
        if self._is_started:
            return None
        self._is_started = True
        server = self._connection.server
        shortcut = server.config.shortcut
        scope: Any = self._scope
        is_usual = self.is_plain and scope["http_version"] == "1.1" and not server.counts_or_logs
        if shortcut is None or not is_usual or self._is_silenced:
            return self._submit()
        if not shortcut.lookup(scope, self.take_early_response):
            self._submit()
        return None

    def _submit(self) -> None:
        if self._is_cancelled or self._is_silenced:
            return self._connection.application_ended(self)
        admission = self._connection.server.config.admission
        if admission is None or not self.is_read:
            self._begin()
        else:
            self._turn = admission.submit(self._scope, self._begin, self._refuse)
        return None

    def _begin(self) -> None:
        self.task = self._connection.spawn(self.run())

    def _refuse(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a response without the application."""
        self._start = {"status": status, "headers": headers}
        self._write(body, more=False)
        self._connection.application_ended(self)

    def cancel(self) -> asyncio.Task[None] | None:
        """Cancel the request. Return the task of its application, if it was called."""
        self._is_cancelled = True
        if self.task is not None:
            self.task.cancel()
        self._leave_queue()
        return self.task

    def _leave_queue(self) -> None:
        """Withdraw the request from the admission queue, if the application was not called yet."""
        if self._turn is not None and self.task is None and not self.is_responded:
            self._turn.end()
            self._connection.application_ended(self)

    def has_long_rest(self, reader: Reader) -> bool:
        """Return whether the rest of the body may be too long to be discarded (UNREAD_BYTES)."""
        is_much = self.expects or reader.left is None or reader.left > UNREAD_BYTES
        return is_much and not self.is_read

    async def run(self) -> None:
        """Run the application. If its response is incomplete, send 500 or close."""
        server = self._connection.server
        self._mark_complete()
        try:
            if server.context.max_requests is not None:
                await server.context.mark_request()
            await server.app(self._scope, self.receive, self.send)
        except ClientDisconnectedError:
            pass
        except Exception:
            await server.config.log.exception("Error in ASGI Framework")
        finally:
            if not self.is_responded:
                await self._fail()
            self._connection.application_ended(self)

    def _mark_complete(self) -> None:
        """Mark the request as complete in its scope, if the application can receive it at once."""
        if self.is_read and not self._has_given:
            self._scope["extensions"][COMPLETE] = {}

    def take_early_response(self, response: EarlyResponse | None) -> None:
        """Send the response of the shortcut; None: call the application."""
        connection = self._connection
        if response is None:
            return self._submit()
        closes = connection.closes_after(self)
        if not self._is_silenced:
            end = connection.server.head_end()
            head = early_head(response.status, response.lines, closes, end)
            is_head = self._scope["method"] == "HEAD"
            connection.write([head] if is_head else [head, response.body])
        self.is_responded = True
        connection.finished(self, closes=closes)
        return connection.application_ended(self)

    async def _fail(self) -> None:
        """Finish a response that the application has left incomplete."""
        if self._response is not None or self.is_gone:
            self._connection.abort_response(self, looks_whole=self.is_endless)
            await self._log(None)
        else:
            headers, body = error_response(self._connection.server.config, 500)
            self._start = {"status": 500, "headers": headers}
            self._write(body, more=False)
            await self._log(self._start)

    @property
    def is_endless(self) -> bool:
        """Whether the started response would look complete if the connection ended now."""
        return self._response is not None and self._response.is_endless

    async def _log(self, response: Message) -> None:
        if self._begun_at:
            log, seconds = self._connection.server.config.log, time() - self._begun_at
            await log.access(self._scope, response, seconds)

    async def receive(self) -> Message:
        """Return the next ASGI message: a part of the body, or `http.disconnect`."""
        while True:
            if self.is_responded:
                return {"type": "http.disconnect"}
            if self._pieces or (self.is_read and not self._has_given_end):
                return self._next_of_body()
            if self.is_gone:
                return {"type": "http.disconnect"}
            if self.expects:
                self.expects = False
                self._connection.write([CONTINUE])
            if self._changed is None:
                self._changed = asyncio.Event()
            self._changed.clear()
            if not self.is_read:
                self.is_awaited = True
                self._connection.adjust_reading()
            await self._changed.wait()
            self.is_awaited = False
            self._connection.adjust_reading()  # the application no longer waits for the client

    def _next_of_body(self) -> Message:
        body = b"".join(self._pieces or ())
        self._pieces, self.is_full, self._has_given_end = None, False, self.is_read
        self._has_given = True
        if not self.is_read:
            self._connection.adjust_reading()
        return {"type": "http.request", "body": body, "more_body": not self.is_read}

    def add_body(self, pieces: list[bytes], *, is_read: bool) -> None:
        """Add received parts of the body."""
        self.expects = False  # the client did not wait for 100 Continue
        self._pieces = self._pieces + pieces if self._pieces else pieces
        self.is_full = not is_read and sum(map(len, self._pieces)) > MAX_WAITING_BYTES
        self.is_read = is_read
        self._mark_complete()
        self._notify()

    def client_left(self) -> None:
        """Let `receive` return the disconnect. The client may still read the response."""
        self.is_gone = True
        self._notify()

    def discard_response(self) -> bool:
        """Send no more of the response. Return whether a part was sent."""
        self._is_silenced = True
        self.client_left()
        self._leave_queue()
        return self._response is not None

    def _notify(self) -> None:
        if self._changed is not None:
            self._changed.set()

    async def send(self, message: Message) -> None:
        """Send an ASGI message; wait while the client does not read.

        Raises RuntimeError, or ClientDisconnectedError for a part before the last: without an error
        the application would make a long response to its end.
        """
        kind = message["type"]
        if kind == "http.response.start" and self._start is None:
            self._start = message
        elif kind == "http.response.body" and self._start is not None and not self.is_responded:
            more = message.get("more_body", False)
            if more and self._is_silenced:
                raise ClientDisconnectedError
            self._write(message.get("body", b""), more=more)
            if more:
                await self._connection.writable()
            else:
                await self._log(self._start)
        elif not self._is_silenced:
            raise RuntimeError(f"Unexpected message {kind} at this point of a response")

    def _write(self, body: bytes, *, more: bool) -> None:
        if self._is_silenced:
            return
        connection, response = self._connection, self._response
        if response is not None:
            parts = response.piece(body, more)
        else:
            start, scope = self._start, self._scope
            response = ResponseWriter(
                start["status"], start.get("headers", ()), scope["method"] == "HEAD"
            )
            is_late = start["status"] == REQUEST_TIMEOUT
            response.closes = response.closes or is_late or connection.closes_after(self)
            end = connection.server.head_end()
            head = response.head(body, more, scope["http_version"], end)
            parts = [head, *response.piece(body, more)]
            self._response = response
        if parts:
            connection.write(parts)
        if not more:
            self.is_responded = True
            self._notify()
            connection.finished(self, closes=response.closes)
