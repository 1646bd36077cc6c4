"""The transport under a connection: how much may wait, how long that may take, how it is closed."""

import asyncio
import socket
import struct
from array import array
from fcntl import ioctl
from math import inf
from termios import TIOCOUTQ
from typing import cast

LINGER_SECONDS = 2.0  # to have read the last answer, for a client that goes on sending
# What a client may still send of a body after its answer: more ends the connection.
UNREAD_SECONDS, UNREAD_BYTES = 5.0, 65_536
# What a client may take to read the next of an answer, or to send the next of a body: longer than
# an application gives a whole body (Quart here 10 s), which has its say before.
STALL_SECONDS = 20.0
STALL_LOOKS = 4  # within these seconds, at how much of an answer has been read
BUSY, IN_HEAD, STALLED, UNREAD, ENDING = -1, -2, -3, -4, -5  # a phase; or a number, when it is idle
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: the connection ends by an error


class Wire(asyncio.Protocol):
    """A transport that is closed if its phase lasts until `_due`, or if its client stops reading.

    One timer looks at both. It is not made anew for each request. An answer that the client still
    reads is not cut, whatever the phase: it has STALL_SECONDS from the last progress that was seen.
    """

    _transport: asyncio.Transport
    _is_closing = False
    _is_eof = False  # the client sends no more
    _is_paused = False
    _is_writable = True
    _writable: asyncio.Event | None = None
    _phase = BUSY
    _unread = 0  # bytes of answers, when it was last looked; 0: it has not been
    _unread_due = inf  # by then the client has to have taken more of them
    _discarded = 0  # bytes that came while closing
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
        now = self._loop.time()
        self._phase, self._due = phase, now + seconds
        self._unread, self._unread_due = 0, now + STALL_SECONDS
        self._wake(now)

    def _wake(self, now: float) -> None:
        """Look again in time: soon, as long as something is to be sent."""
        is_sent = not self._transport.get_write_buffer_size()
        due = self._due if is_sent else min(self._due, now + STALL_SECONDS / STALL_LOOKS)
        if due < self._timer_due:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_due = due
            self._timer = self._loop.call_at(due, self._look)

    def _look(self) -> None:
        """Close, if it is time; else look again when it will be."""
        self._timer, self._timer_due = None, inf
        now, unsent = self._loop.time(), self._transport.get_write_buffer_size()
        if self._phase == BUSY:
            return None  # the phase after it wakes this
        if unsent:
            before, self._unread = self._unread, unsent + self._unacknowledged()
            if self._unread < before:
                self._unread_due = now + STALL_SECONDS
            if now >= self._unread_due:
                return self.abort()
            self._due = max(self._due, now + STALL_SECONDS / STALL_LOOKS)
        if now < self._due:
            self._wake(now)
        elif self._phase == STALLED or self._transport.is_closing():
            self.abort()
        else:
            self._leave()
        return None

    def _unacknowledged(self) -> int:
        """Give the bytes that were sent, and that the client's system has not taken.

        They tell a slow client from one that stands still: the system takes more to be sent only
        when megabytes of it have gone.
        """
        queued = array("i", [0])
        ioctl(self._transport.get_extra_info("socket").fileno(), TIOCOUTQ, queued)
        return queued[0]

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
        self._enter(ENDING, LINGER_SECONDS)

    def _discard(self, size: int) -> None:
        """Throw away what comes while closing; too much of it ends the connection."""
        self._discarded += size
        if self._discarded > UNREAD_BYTES and not self._transport.is_closing():
            self._leave()

    def _leave(self) -> None:
        self._is_closing = True
        self._transport.close()
        if self._transport.get_write_buffer_size():
            self._enter(ENDING, STALL_SECONDS)

    def abort(self) -> None:
        """Close now."""
        self._is_closing = True
        self._transport.abort()

    def reset(self) -> None:
        """Close now, and so that the client sees that it is an error."""
        sock = self._transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.abort()
