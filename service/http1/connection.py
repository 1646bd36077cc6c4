"""One connection: what came is read in order, each request when the one before is answered."""

import asyncio
import contextvars
from collections.abc import Coroutine
from math import inf
from typing import TYPE_CHECKING, Any

from service.http1 import transport
from service.http1.error_responses import Headers, refusal
from service.http1.parser import Reader, RefusedError
from service.http1.request_cycle import Exchange
from service.http1.response_writer import Answer
from service.http1.scope import scope_of
from service.http1.transport import BUSY, IN_HEAD, STALLED, UNREAD, Wire

if TYPE_CHECKING:
    from service.http1.server import Serving

MOST_UNREAD = 65_536  # bytes that wait for their turn; beyond that no more are taken


class Connection(Wire):
    """Speaks HTTP/1.1 with one client."""

    _data, _at = b"", 0  # what came, and how far it has been read
    _exchange: Exchange | None = None  # that is not answered
    _count = 0  # of requests
    _is_ending = False
    _is_lost = False

    def __init__(self, server: "Serving", client: Any, local: Any) -> None:
        super().__init__(server.loop)
        self.server = server
        self.client = client
        self.local = local
        self.ended = server.loop.create_future()  # it is lost, and nothing runs on
        self._context = contextvars.copy_context()  # each request has one as it was here
        self._reader = Reader(server.known)
        self._running: set[Exchange] = set()  # whose applications have not ended

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        super().connection_made(transport)
        self.scheme = "http" if transport.get_extra_info("ssl_object") is None else "https"
        self.server.connections.add(self)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Read on, if it is its turn."""
        if self._is_closing:
            return self._discard(len(data))
        self._data, self._at = self._data[self._at :] + data if self._data else data, 0
        return self._advance()

    def eof_received(self) -> bool:
        """Let what was asked be answered: it may be that only one half is closed."""
        self._is_eof = True
        if self._exchange is None or self._is_closing:
            return False
        self._exchange.leave()
        return self.scheme == "http"  # TLS knows no halves

    def connection_lost(self, error: Exception | None) -> None:
        """End."""
        super().connection_lost(error)
        self._is_lost, self._data, self._at = True, b"", 0
        self._reader.close()
        for exchange in [*self._running]:
            exchange.silence()
        self._exchange = None
        self.server.connections.discard(self)
        self._end()

    def pause_writing(self) -> None:
        """Let the application wait, and what was asked beyond."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """Go on."""
        super().resume_writing()
        if not self._is_closing:
            self._advance()

    def closes_after(self, exchange: Exchange | None) -> bool:
        """Tell whether the answer that begins is the last one here."""
        config, reader = self.server.config, self._reader
        return (
            b"close" in reader.options
            or (reader.line.version == "1.0" and b"keep-alive" not in reader.options)
            or self._is_ending
            or config.draining
            or self._count >= config.keep_alive_max_requests
            or (exchange is not None and exchange.leaves_much(reader))
        )

    def answered(self, exchange: Exchange, *, closes: bool) -> None:
        """Go on with the next request, or close."""
        if self._exchange is not exchange:
            return
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
                self.reset()
            else:
                self._close(lingers=False)

    def left(self, exchange: Exchange) -> None:
        """Forget an exchange whose application has ended."""
        self._running.discard(exchange)
        self._end()

    def _end(self) -> None:
        if self._is_lost and not self._running and not self.ended.done():
            self.ended.set_result(None)

    def _advance(self) -> None:
        while self._at < len(self._data) and not self._is_closing:
            try:
                if not self._reader.is_complete:
                    self._read_body()
                elif self._exchange is not None or not self._is_writable or not self._begin():
                    break
            except RefusedError as refused:
                return self._refuse(refused.status)
        if self._exchange is not None:
            self._exchange.start()  # with as much of its body as came with its head
        if self._at == len(self._data):
            self._data, self._at = b"", 0
            is_answering = self._exchange is not None and self._phase == BUSY and self._is_writable
            if is_answering and self._reader.is_complete and not self._is_paused:
                return None  # nothing is left to be waited for
        if self._is_eof and self._exchange is None:
            return self._close(lingers=False)
        return self.balance()

    def _begin(self) -> bool:
        """Begin with the next request; False: its head is not whole yet."""
        data, at = self._data, self._at
        if data.startswith(b"\r\n", at):  # one may have strayed there (RFC 9112, 2.2)
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
        reader, server, self._phase, self._due = self._reader, self.server, BUSY, inf
        scope: Any = scope_of(reader, self)
        config, is_plain = server.config, reader.line.method == "GET" and reader.is_complete
        if config.server_names and not server.is_known_host(reader.headers):
            return self._reply(404, *refusal(404), closes=True)
        exchange = self._exchange = Exchange(self, reader, scope)
        self._running.add(exchange)
        if self._is_eof:
            exchange.leave()
        exchange.is_plain = is_plain
        return None

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin a task with a context of its own."""
        return self._loop.create_task(work, context=self._context.copy())

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
            self._phase, self._due = BUSY, inf  # should it stall again, that begins anew
        reader.pieces = []
        return None

    def _refuse(self, status: int) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            if exchange.silence():
                return self.abort()  # half an answer has been sent
            exchange.start()  # it is over before it began
        return self._reply(status, *refusal(status), closes=True)

    def _reply(self, status: int, headers: Headers, body: bytes, *, closes: bool) -> None:
        """Answer without asking the application."""
        answer = Answer(status, headers, is_head=False)
        answer.closes = closes
        head = answer.head(body, False, self._reader.line.version, self.server.told())
        self.write([head, *answer.piece(body, False)])
        if answer.closes:
            self._close(lingers=True)

    def balance(self) -> None:
        """Take only as much as somebody wants to have."""
        exchange = self._exchange
        is_enough = len(self._data) - self._at > MOST_UNREAD or (
            exchange is not None and exchange.is_full
        )
        if is_enough is not self._is_paused:
            self._pause(is_enough)
        self._watch()

    def _watch(self) -> None:
        """See whose turn it is, and for how long."""
        exchange, config = self._exchange, self.server.config
        if self._is_closing:
            return
        if not self._is_writable or (exchange is not None and exchange.is_awaited):
            phase, seconds = STALLED, transport.STALL_SECONDS
        elif exchange is not None:
            phase, seconds = BUSY, inf
        elif not self._reader.is_complete:  # what comes of the rest is no progress
            phase, seconds = UNREAD, transport.UNREAD_SECONDS
        elif self._data:
            phase, seconds = IN_HEAD, config.header_seconds
        else:
            phase, seconds = self._count, config.keep_alive_timeout
        if phase != self._phase:
            self._enter(phase, seconds)

    def end(self) -> None:
        """Close as soon as what was asked is answered."""
        self._is_ending = True
        if self._exchange is None and not self._is_closing:
            self._leave()

    async def cancel(self) -> None:
        """Close now, cancel what still runs, and wait for its end."""
        self.abort()
        tasks = [task for exchange in [*self._running] if (task := exchange.cancel())]
        await asyncio.gather(*tasks, return_exceptions=True)
