"""One request and its answer, as an ASGI application sees them."""

import asyncio
from time import time
from typing import TYPE_CHECKING, Any

from hypercorn.typing import HTTPScope

from service.asgi import COMPLETE
from service.http1.config import EarlyResponse, Turn
from service.http1.error_responses import Headers, refusal
from service.http1.parser import Reader
from service.http1.response_writer import CONTINUE, Answer, head_at_hand
from service.http1.transport import UNREAD_BYTES

if TYPE_CHECKING:
    from service.http1.connection import Connection

Message = Any  # of ASGI: a dict by its type
REQUEST_TIMEOUT = 408  # ends its connection (RFC 9110, 15.5.9)
MOST_WAITING = 65_536  # bytes of a body that the application has not taken; then none is read


class Exchange:
    """Calls the application with a request, and puts its answer in order.

    The head of an answer waits for the first part of its body: both are one write. An answer is
    whole, or its connection ends before it looks so.
    """

    task: asyncio.Task[None] | None = None  # of the application
    _turn: Turn | None = None  # in the admission queue
    is_awaited = False  # the next of the body is
    is_full = False  # enough of it waits for the application
    is_plain = False  # a GET without a body
    is_gone = False  # nobody is there any more to ask further
    is_answered = False
    _is_started = False
    _is_silenced = False  # nothing more may be sent
    _is_cancelled = False
    _start: Message = None  # of the answer, whose head waits
    _answer: Answer | None = None  # that has begun
    _pieces: list[bytes] | None = None  # of the body
    _has_given = False  # some of the body, to the application
    _is_told_end = False
    _news: asyncio.Event | None = None

    def __init__(self, connection: "Connection", reader: Reader, scope: HTTPScope) -> None:
        self._connection = connection
        self._scope = scope
        self.is_read = reader.is_complete  # the request, to its end
        self.expects = reader.expects and not reader.is_complete
        self._begun_at = time() if connection.server.is_logged else 0.0

    def start(self) -> None:
        """Have it answered, once: by what is at hand, if it may be there, or by the application."""
        if self._is_started:
            return None
        self._is_started = True
        server = self._connection.server
        shortcut = server.config.shortcut
        scope: Any = self._scope
        is_usual = self.is_plain and scope["http_version"] == "1.1" and not server.counts_or_logs
        if shortcut is None or not is_usual or self._is_silenced:
            return self._ask()
        if not shortcut.look(scope, self.take_at_hand):
            self._ask()
        return None

    def _ask(self) -> None:
        if self._is_cancelled or self._is_silenced:
            return self._connection.left(self)
        admission = self._connection.server.config.admission
        if admission is None or not self.is_read:
            self._begin()
        else:
            self._turn = admission.submit(self._scope, self._begin, self._refuse)
        return None

    def _begin(self) -> None:
        self.task = self._connection.spawn(self.run())

    def _refuse(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer without the application."""
        self._start = {"status": status, "headers": headers}
        self._write(body, more=False)
        self._connection.left(self)

    def cancel(self) -> asyncio.Task[None] | None:
        """Let it come to nothing; give what ends soon."""
        self._is_cancelled = True
        if self.task is not None:
            self.task.cancel()
        self._leave_queue()
        return self.task

    def _leave_queue(self) -> None:
        """Give up the turn of a request that has not begun."""
        if self._turn is not None and self.task is None and not self.is_answered:
            self._turn.end()
            self._connection.left(self)

    def leaves_much(self, reader: Reader) -> bool:
        """Tell whether more of the body may come than one would throw away."""
        is_much = self.expects or reader.left is None or reader.left > UNREAD_BYTES
        return is_much and not self.is_read

    async def run(self) -> None:
        """Have the request answered, whatever the application does."""
        server = self._connection.server
        self._tell_whole()
        try:
            if server.context.max_requests is not None:
                await server.context.mark_request()
            await server.app(self._scope, self.receive, self.send)
        except Exception:
            await server.config.log.exception("Error in ASGI Framework")
        finally:
            if not self.is_answered:
                await self._fail()
            self._connection.left(self)

    def _tell_whole(self) -> None:
        """Say, as long as it may come in one piece, that all of the request has been read."""
        if self.is_read and not self._has_given:
            self._scope["extensions"][COMPLETE] = {}

    def take_at_hand(self, found: EarlyResponse | None) -> None:
        """Send an answer that needs no application, or have that asked."""
        connection = self._connection
        if found is None:
            return self._ask()
        closes = connection.closes_after(self)
        if not self._is_silenced:
            told = connection.server.told()
            connection.write([head_at_hand(found.status, found.lines, closes, told), found.body])
        self.is_answered = True
        connection.answered(self, closes=closes)
        return connection.left(self)

    async def _fail(self) -> None:
        """End what the application has not."""
        if self._answer is not None or self.is_gone:
            looks_whole = self._answer is not None and self._answer.is_endless
            self._connection.cut(self, looks_whole=looks_whole)
            await self._log(None)
        else:
            headers, body = refusal(500)
            self._start = {"status": 500, "headers": headers}
            self._write(body, more=False)
            await self._log(self._start)

    async def _log(self, told: Message) -> None:
        if self._begun_at:
            log, seconds = self._connection.server.config.log, time() - self._begun_at
            await log.access(self._scope, told, seconds)

    async def receive(self) -> Message:
        """Give the next of the body, or that there is nobody to answer any more."""
        while True:
            if self.is_answered:
                return {"type": "http.disconnect"}
            if self._pieces or (self.is_read and not self._is_told_end):
                return self._next_of_body()
            if self.is_gone:
                return {"type": "http.disconnect"}
            if self.expects:
                self.expects = False
                self._connection.write([CONTINUE])
            if self._news is None:
                self._news = asyncio.Event()
            self._news.clear()
            if not self.is_read:
                self.is_awaited = True
                self._connection.balance()
            await self._news.wait()
            self.is_awaited = False
            self._connection.balance()  # from now on nobody waits for the client

    def _next_of_body(self) -> Message:
        body = b"".join(self._pieces or ())
        self._pieces, self.is_full, self._is_told_end = None, False, self.is_read
        self._has_given = True
        if not self.is_read:
            self._connection.balance()
        return {"type": "http.request", "body": body, "more_body": not self.is_read}

    def take(self, pieces: list[bytes], *, is_read: bool) -> None:
        """Take what came of the body."""
        self.expects = False  # whoever sends it does not wait
        self._pieces = self._pieces + pieces if self._pieces else pieces
        self.is_full = not is_read and sum(map(len, self._pieces)) > MOST_WAITING
        self.is_read = is_read
        self._tell_whole()
        self._tell()

    def leave(self) -> None:
        """Let the application know that nobody is there. What it sends may still be read."""
        self.is_gone = True
        self._tell()

    def silence(self) -> bool:
        """Let nothing more be sent; tell whether the answer had begun."""
        self._is_silenced = True
        self.leave()
        self._leave_queue()
        return self._answer is not None

    def _tell(self) -> None:
        if self._news is not None:
            self._news.set()

    async def send(self, message: Message) -> None:
        """Take the next of the answer. Waits while the client does not read."""
        kind = message["type"]
        if kind == "http.response.start" and self._start is None:
            self._start = message
        elif kind == "http.response.body" and self._start is not None and not self.is_answered:
            more = message.get("more_body", False)
            self._write(message.get("body", b""), more=more)
            if more:
                await self._connection.writable()
            else:
                await self._log(self._start)
        elif not self._is_silenced:
            raise RuntimeError(f"{kind} is not what comes next in an answer")

    def _write(self, body: bytes, *, more: bool) -> None:
        if self._is_silenced:
            return
        connection, answer = self._connection, self._answer
        if answer is not None:
            parts = answer.piece(body, more)
        else:
            start, scope = self._start, self._scope
            answer = Answer(start["status"], start.get("headers", ()), scope["method"] == "HEAD")
            is_late = start["status"] == REQUEST_TIMEOUT
            answer.closes = answer.closes or is_late or connection.closes_after(self)
            head = answer.head(body, more, scope["http_version"], connection.server.told())
            parts = [head, *answer.piece(body, more)]
            self._answer = answer
        if parts:
            connection.write(parts)
        if not more:
            self.is_answered = True
            self._tell()
            connection.answered(self, closes=answer.closes)
