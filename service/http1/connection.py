"""One connection: what came is read in order, each request when the one before is answered."""

import asyncio
import contextvars
import socket
import struct
from math import inf
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote

from service.http1.answers import Answer
from service.http1.exchange import Exchange
from service.http1.refusals import Headers, as_origin, refusal
from service.http1.requests import END, HEAD_BYTES, Reader, RefusedError, may_become_a_head

if TYPE_CHECKING:
    from service.http1.server import Serving

MOST_UNREAD = 65_536  # bytes that wait for their turn; beyond that no more are taken
MOST_THROWN_AWAY = 65_536  # bytes of a body that the answer did not wait for; else it is the last
# What a client may take to send the next of its body, or to read the next of its answer: longer
# than an application gives a whole body (Quart here 10 s), which has its say before.
STALL_SECONDS = 20.0
LINGER_SECONDS = 2.0  # to have read the last answer, for a client that goes on sending
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: the connection ends by an error
BUSY, IN_HEAD, STALLED = -1, -2, -3  # or idle, since so many requests


class Connection(asyncio.Protocol):
    """Speaks HTTP/1.1 with one client.

    `_due` is when it will be closed if nothing happens. One timer looks at that, and is not made
    anew for each request.
    """

    __slots__ = (
        "_at", "_context", "_count", "_data", "_due", "_exchange", "_is_closing", "_is_ending",
        "_is_eof", "_is_paused", "_is_writable", "_phase", "_reader", "_running", "_scheme",
        "_timer", "_timer_due", "_transport", "_unsent", "_writable", "client", "ended", "local",
        "server",
    )  # fmt: skip

    _transport: asyncio.Transport

    def __init__(self, server: "Serving", client: Any, local: Any) -> None:
        self.server = server
        self.client = client
        self.local = local
        self.ended = server.loop.create_future()  # it is lost, and nothing runs on
        self._context = contextvars.copy_context()  # each request has one as it was here
        self._reader = Reader()
        self._data, self._at = b"", 0  # what came, and how far it has been read
        self._exchange: Exchange | None = None  # that is not answered
        self._running: set[Exchange] = set()  # whose applications have not ended
        self._count = 0
        self._is_eof = self._is_ending = self._is_closing = self._is_paused = False
        self._is_writable = True
        self._writable: asyncio.Event | None = None
        self._phase = BUSY
        self._unsent = inf  # bytes, when it was last looked
        self._due = self._timer_due = inf
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast(asyncio.Transport, transport)
        self._scheme = "http" if transport.get_extra_info("ssl_object") is None else "https"
        self.server.connections.add(self)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Read on, if it is its turn."""
        if not self._is_closing:
            self._data = self._data[self._at :] + data if self._data else data
            self._at = 0
            self._advance()

    def eof_received(self) -> bool:
        """Let what was asked be answered: it may be that only one half is closed."""
        self._is_eof = True
        if self._exchange is None or self._is_closing:
            return False
        self._exchange.leave()
        return self._scheme == "http"  # TLS knows no halves

    def connection_lost(self, error: Exception | None) -> None:
        """End."""
        self._is_closing, self._data, self._at = True, b"", 0
        if self._timer is not None:
            self._timer.cancel()
        for exchange in self._running:
            exchange.silence()
        self._exchange = None
        self.resume_writing()
        self.server.connections.discard(self)
        self._end_if_alone()

    def pause_writing(self) -> None:
        """Let the application wait, and what was asked beyond."""
        self._is_writable = False
        self._watch()

    def resume_writing(self) -> None:
        """Go on."""
        self._is_writable = True
        if self._writable is not None:
            self._writable.set()
        if not self._is_closing:
            self._advance()

    # For an exchange

    def write(self, parts: list[bytes]) -> None:
        """Send something, in one go."""
        if not self._is_closing:
            self._transport.writelines(parts)

    async def writable(self) -> None:
        """Wait until the client has read enough."""
        while not self._is_writable:
            if self._writable is None:
                self._writable = asyncio.Event()
            self._writable.clear()
            await self._writable.wait()

    def closes_after(self, exchange: Exchange | None) -> bool:
        """Tell whether the answer that begins is the last one here."""
        config, reader = self.server.config, self._reader
        return (
            b"close" in reader.options
            or (reader.version == "1.0" and b"keep-alive" not in reader.options)
            or self._is_ending
            or config.draining
            or self._count >= config.keep_alive_max_requests
            or (
                exchange is not None
                and not exchange.is_read
                and (exchange.expects or reader.left is None or reader.left > MOST_THROWN_AWAY)
            )
        )

    def answered(self, exchange: Exchange, *, closes: bool) -> None:
        """Go on with the next request, or close."""
        if self._exchange is exchange:
            self._exchange = None
            if closes or self._is_ending:
                self._close(lingers=bool(self._data) or not self._reader.is_complete)
            elif self._data or self._is_eof:  # not in the context of this application
                self._context.copy().run(self._advance)
            else:
                self.balance()

    def cut(self, exchange: Exchange, *, looks_whole: bool) -> None:
        """Close within an answer."""
        if self._exchange is exchange:
            self._exchange = None
            if looks_whole:
                sock = self._transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                self.abort()
            else:
                self._close(lingers=False)

    def left(self, exchange: Exchange) -> None:
        """Forget an exchange whose application has ended."""
        self._running.discard(exchange)
        self._end_if_alone()

    def _end_if_alone(self) -> None:
        is_lost = self not in self.server.connections
        if is_lost and not self._running and not self.ended.done():
            self.ended.set_result(None)

    # Reading

    def _advance(self) -> None:
        while self._at < len(self._data) and not self._is_closing:
            try:
                if not self._reader.is_complete:
                    self._read_body()
                elif self._exchange is not None or not self._is_writable or not self._begin():
                    break
            except RefusedError as refused:
                return self._refuse(refused.status)
        if self._at == len(self._data):
            self._data, self._at = b"", 0
        if self._is_eof and self._exchange is None:
            return self._close(lingers=False)
        return self.balance()

    def _begin(self) -> bool:
        """Begin with the next request; False: its head is not whole yet."""
        data, at = self._data, self._at
        if data.startswith(b"\r\n", at):  # one may have strayed there (RFC 9112, 2.2)
            at += 2
        end = data.find(END, at) + len(END)
        is_whole = end >= len(END)
        if (end if is_whole else len(data)) - at > HEAD_BYTES:
            raise RefusedError(431)
        if not is_whole:
            if not may_become_a_head(data, at):
                raise RefusedError(400)
            return False
        self._at = end
        self._reader.head(data[at:end])
        self._count += 1
        self._take()
        return True

    def _take(self) -> None:
        reader, server, self._phase = self._reader, self.server, BUSY
        target, headers = as_origin(reader.target, reader.headers)
        path, _, query = target.partition(b"?")
        scope: dict[str, Any] = {
            "type": "http",
            "http_version": reader.version,
            "asgi": {"spec_version": "2.1", "version": "3.0"},
            "method": reader.method,
            "scheme": self._scheme,
            "path": unquote(path.decode()) if b"%" in path else path.decode(),
            "raw_path": path,
            "query_string": query,
            "root_path": server.config.root_path,
            "headers": headers,
            "client": self.client,
            "server": self.local,
            "state": server.state.copy(),
            "extensions": {},
        }
        overload, is_plain = server.config.overload, reader.method == "GET" and reader.is_complete
        if overload is not None and is_plain and overload.turns_away("GET", scope["path"]):
            # Before it costs a task.
            return self._reply(503, *overload.refusal(scope), closes=self.closes_after(None))
        if not server.is_known_host(headers):
            return self._reply(404, *refusal(404), closes=True)
        exchange = self._exchange = Exchange(self, reader, scope)
        self._running.add(exchange)
        if self._is_eof:
            exchange.leave()
        exchange.task = server.loop.create_task(exchange.run(), context=self._context.copy())
        return None

    def _read_body(self) -> None:
        reader, exchange = self._reader, self._exchange
        try:
            self._at = reader.body(self._data, self._at)
        except RefusedError:
            if exchange is None:  # it is answered already
                return self._close(lingers=True)
            raise
        if exchange is not None:
            exchange.take(reader.pieces, is_read=reader.is_complete)
        reader.pieces = []
        self._phase = BUSY  # it is no longer as it was, should it stall again
        return None

    def _refuse(self, status: int) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None and exchange.silence():
            return self.abort()  # half an answer has been sent
        return self._reply(status, *refusal(status), closes=True)

    def _reply(self, status: int, headers: Headers, body: bytes, *, closes: bool) -> None:
        """Answer without asking the application."""
        answer = Answer(status, headers, is_head=False)
        answer.closes = closes
        head = answer.begin(body, False, self._reader.version, self.server.told())
        self.write([head, *answer.piece(body, False)])
        if answer.closes:
            self._close(lingers=True)

    # How long it lasts

    def balance(self) -> None:
        """Take only as much as somebody wants to have."""
        exchange = self._exchange
        is_enough = len(self._data) - self._at > MOST_UNREAD or (
            exchange is not None and exchange.is_full
        )
        self._pause(is_enough)
        self._watch()

    def _pause(self, is_paused: bool) -> None:
        if is_paused is self._is_paused or self._transport.is_closing():
            return
        self._is_paused = is_paused
        if is_paused:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _watch(self) -> None:
        """See whose turn it is, and for how long."""
        if self._is_closing:
            return
        exchange, config = self._exchange, self.server.config
        if not self._is_writable or (
            exchange.is_awaited if exchange is not None else not self._reader.is_complete
        ):
            phase, seconds = STALLED, STALL_SECONDS
        elif exchange is not None:
            phase, seconds = BUSY, inf
        elif self._data:
            phase, seconds = IN_HEAD, config.header_seconds
        else:
            phase, seconds = self._count, config.keep_alive_timeout
        if phase != self._phase:
            self._phase, self._unsent = phase, inf
            self._expect(seconds)

    def _expect(self, seconds: float) -> None:
        loop = self.server.loop
        self._due = loop.time() + seconds
        if self._due < self._timer_due:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_due = self._due
            self._timer = loop.call_at(self._due, self._look)

    def _look(self) -> None:
        """Close, if it is time; else look again when it will be."""
        self._timer, self._timer_due = None, inf
        seconds = self._due - self.server.loop.time()
        unsent = self._transport.get_write_buffer_size()
        if seconds > 0:
            if seconds < inf:
                self._expect(seconds)
        elif 0 < unsent < self._unsent:  # it reads, slowly as it may be
            self._unsent = unsent
            self._expect(STALL_SECONDS)
        elif self._phase == STALLED or self._transport.is_closing():
            self.abort()
        else:
            self._leave()

    def _close(self, *, lingers: bool) -> None:
        """Close when what was sent is read. Who is still sending would not get it otherwise."""
        if self._is_closing:
            return
        if not lingers or self._is_eof:
            self._leave()
            return
        self._is_closing, self._phase, self._unsent = True, BUSY, inf
        self._data, self._at = b"", 0
        self._pause(False)
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._expect(LINGER_SECONDS)

    def _leave(self) -> None:
        self._is_closing, self._phase, self._unsent = True, BUSY, inf
        self._transport.close()
        if self._transport.get_write_buffer_size():
            self._expect(STALL_SECONDS)

    def end(self) -> None:
        """Close as soon as what was asked is answered."""
        self._is_ending = True
        if self._exchange is None and not self._is_closing:
            self._leave()

    def abort(self) -> None:
        """Close now."""
        self._is_closing = True
        self._transport.abort()

    async def cancel(self) -> None:
        """Close now, cancel what still runs, and wait for its end."""
        self.abort()
        tasks = [exchange.task for exchange in self._running]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
