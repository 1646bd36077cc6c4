"""One request and its answer, as an ASGI application sees them."""

import asyncio
from time import time
from typing import TYPE_CHECKING, Any

from service.http1.answers import CONTINUE, Answer
from service.http1.refusals import Headers, refusal
from service.http1.requests import Reader

if TYPE_CHECKING:
    from service.http1.connection import Connection

Message = Any  # of ASGI: a dict by its type
MOST_WAITING = 65_536  # bytes of a body that the application has not taken; then none is read


class Exchange:
    """Calls the application with a request, and puts its answer in order.

    The head of an answer waits for the first part of its body: both are one write. An answer is
    whole, or its connection ends before it looks so.
    """

    __slots__ = (
        "_answer", "_begun_at", "_connection", "_is_begun", "_is_told_end", "_news", "_pieces",
        "_scope", "_summary", "_waiting", "expects", "is_answered", "is_awaited", "is_gone",
        "is_read", "is_silenced", "task",
    )  # fmt: skip

    task: asyncio.Task[None]

    def __init__(self, connection: "Connection", reader: Reader, scope: dict[str, Any]) -> None:
        self._connection = connection
        self._scope = scope
        self._answer: Answer | None = None
        self._is_begun = False  # something of the answer has been sent
        self._pieces: list[bytes] = []
        self._waiting = 0  # bytes in them
        self._is_told_end = False
        self._news: asyncio.Event | None = None
        self._begun_at = time() if connection.server.is_logged else 0.0
        self._summary: Any = None  # of the answer, for the access log
        self.expects = reader.expects and not reader.is_complete
        self.is_read = reader.is_complete  # the request, to its end
        self.is_awaited = False  # the next of it is
        self.is_gone = False  # nobody is there any more to ask further
        self.is_silenced = False  # nor may anything be sent
        self.is_answered = False

    async def run(self) -> None:
        """Have the request answered, whatever the application does."""
        server = self._connection.server
        try:
            if server.context.max_requests is not None:
                await server.context.mark_request()
            await server.app(
                self._scope,  # type: ignore[arg-type]  # all that HTTPScope names
                self.receive,
                self.send,
                server.spawn,
                server.call_soon,
            )
        except Exception:
            await server.config.log.exception("Error in ASGI Framework")
        finally:
            if not self.is_answered:
                await self._fail()
            self._connection.left(self)

    async def _fail(self) -> None:
        """End what the application has not."""
        if self._is_begun or self.is_gone:
            looks_whole = self._answer is not None and self._answer.is_endless
            self._connection.cut(self, looks_whole=looks_whole)
            if self._connection.server.is_logged:
                await self._log(None)
        else:
            headers, body = refusal(500)
            self._start(500, headers)
            self._write(body, more=False)

    def _start(self, status: int, headers: Headers) -> None:
        self._answer = Answer(status, headers, self._scope["method"] == "HEAD")
        self._summary = {"status": status, "headers": headers}

    async def receive(self) -> Message:
        """Give the next of the body, or that there is nobody to answer any more."""
        while True:
            if self.is_answered:
                return {"type": "http.disconnect"}
            if self._pieces or (self.is_read and not self._is_told_end):
                body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
                self._pieces, self._waiting = [], 0
                self._is_told_end = self.is_read
                if not self.is_read:
                    self._connection.balance()
                return {"type": "http.request", "body": body, "more_body": not self.is_read}
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

    @property
    def is_full(self) -> bool:
        """Whether enough of the body waits for the application."""
        return self._waiting > MOST_WAITING

    def take(self, pieces: list[bytes], *, is_read: bool) -> None:
        """Take what came of the body."""
        self.expects = False  # whoever sends it does not wait
        self._pieces += pieces
        self._waiting += sum(map(len, pieces))
        self.is_read = is_read
        self._tell()

    def leave(self) -> None:
        """Let the application know that nobody is there. What it sends may still be read."""
        self.is_gone = True
        self._tell()

    def silence(self) -> bool:
        """Let nothing more be sent; tell whether the answer had begun."""
        self.is_silenced = True
        self.leave()
        return self._is_begun

    def _tell(self) -> None:
        if self._news is not None:
            self._news.set()

    async def send(self, message: Message) -> None:
        """Take the next of the answer. Waits while the client does not read."""
        kind = message["type"]
        if kind == "http.response.start" and self._answer is None:
            status, headers = int(message["status"]), list(message.get("headers", ()))
            self._start(status, headers)
        elif kind == "http.response.body" and self._answer is not None and not self.is_answered:
            body, more = message.get("body", b""), message.get("more_body", False)
            self._write(body, more=more)
            if more:
                await self._connection.writable()
            elif self._connection.server.is_logged:
                await self._log(self._summary)
        elif not self.is_silenced:
            raise RuntimeError(f"{kind} is not what comes next in an answer")

    def _write(self, body: bytes, *, more: bool) -> None:
        if self.is_silenced:
            return
        answer, connection = self._answer, self._connection
        assert answer is not None
        if self._is_begun:
            parts = answer.piece(body, more)
        else:
            answer.closes = answer.closes or connection.closes_after(self)
            version, told = self._scope["http_version"], connection.server.told()
            parts = [answer.begin(body, more, version, told), *answer.piece(body, more)]
            self._is_begun = True
        if parts:
            connection.write(parts)
        if not more:
            self.is_answered = True
            self._tell()
            connection.answered(self, closes=answer.closes)

    async def _log(self, summary: Any) -> None:
        log, seconds = self._connection.server.config.log, time() - self._begun_at
        await log.access(self._scope, summary, seconds)  # type: ignore[arg-type]
