"""The transport under a connection: how much may wait, how long that may take, how it is closed."""

import asyncio
import socket
import struct
from math import inf
from typing import cast

LINGER_SECONDS = 2.0  # to have read the last answer, for a client that goes on sending
# What a client may take to read the next of an answer, or to send the next of a body: longer than
# an application gives a whole body (Quart here 10 s), which has its say before.
STALL_SECONDS = 20.0
BUSY, IN_HEAD, STALLED = -1, -2, -3  # a phase; or a number, when it is idle
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: the connection ends by an error


class Wire(asyncio.Protocol):
    """A transport that is closed if nothing happens until `_due`.

    One timer looks at that. It is not made anew for each request, and finds out only then whether
    what has been written is being read.
    """

    _transport: asyncio.Transport
    _is_closing = False
    _is_eof = False  # the client sends no more
    _is_paused = False
    _is_writable = True
    _writable: asyncio.Event | None = None
    _phase = BUSY
    _unsent = inf  # bytes, when it was last looked
    _due = inf
    _timer_due = inf
    _timer: asyncio.TimerHandle | None = None

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        """End."""
        self._is_closing = True
        if self._timer is not None:
            self._timer.cancel()
        self.resume_writing()

    def pause_writing(self) -> None:
        """Let who writes wait."""
        self._is_writable = False

    def resume_writing(self) -> None:
        """Let them go on."""
        self._is_writable = True
        if self._writable is not None:
            self._writable.set()

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

    def _pause(self, is_paused: bool) -> None:
        if not self._transport.is_closing():
            self._is_paused = is_paused
            if is_paused:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _enter(self, phase: int, seconds: float) -> None:
        """Begin with a phase, and say how long it may last."""
        self._phase, self._unsent = phase, inf
        self._set_due(seconds)

    def _set_due(self, seconds: float) -> None:
        self._due = self._loop.time() + seconds
        if self._due < self._timer_due:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_due = self._due
            self._timer = self._loop.call_at(self._due, self._look)

    def _look(self) -> None:
        """Close, if it is time; else look again when it will be."""
        self._timer, self._timer_due = None, inf
        seconds = self._due - self._loop.time()
        unsent = self._transport.get_write_buffer_size()
        if seconds > 0:
            if seconds < inf:
                self._set_due(seconds)
        elif 0 < unsent < self._unsent:  # it reads, slowly as it may be
            self._unsent = unsent
            self._set_due(STALL_SECONDS)
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
        self._is_closing = True
        if self._is_paused:
            self._pause(False)
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._enter(BUSY, LINGER_SECONDS)

    def _leave(self) -> None:
        self._is_closing = True
        self._transport.close()
        if self._transport.get_write_buffer_size():
            self._enter(BUSY, STALL_SECONDS)

    def abort(self) -> None:
        """Close now."""
        self._is_closing = True
        self._transport.abort()

    def reset(self) -> None:
        """Close now, and so that the client sees that it is an error."""
        sock = self._transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.abort()
