"""Manage the transport of a connection: write buffer, timeouts, closing."""

import asyncio
import socket
import struct
from array import array
from enum import Enum, auto
from fcntl import ioctl
from math import inf
from termios import TIOCOUTQ
from typing import cast

LINGER_SECONDS = 2.0  # time to read the last response, for a client that still sends
# Limits of a request body that continues after the response. Beyond them the connection closes.
UNREAD_SECONDS, UNREAD_BYTES = 5.0, 65_536
# Timeout for a client to read more of a response, or to send more of a body. It is longer than the
# application's timeout for a whole body (10 s in Quart), so that the application responds first.
STALL_SECONDS = 20.0
STALL_LOOKS = 4  # number of checks of the client's progress within STALL_SECONDS
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with a TCP reset


class Phase(Enum):
    """What a connection waits for. Each phase but BUSY has a timeout."""

    IDLE = auto()  # for the next request
    IN_HEAD = auto()  # for the rest of a head
    BUSY = auto()  # for the application
    STALLED = auto()  # for the client: to read the response, or to send the body
    UNREAD = auto()  # for the rest of a body whose response is complete
    ENDING = auto()  # for the client to read the last response


class TransportProtocol(asyncio.Protocol):
    """A protocol that closes its transport if a phase lasts too long, or the client stops reading.

    One timer checks both timeouts, and is not created again for each request. While a client reads
    a response, the connection stays open in every phase: until STALL_SECONDS without progress.
    """

    _transport: asyncio.Transport
    _is_closing = False
    _is_eof = False  # the client has closed its sending side
    _is_paused = False
    _is_writable = True
    _writable: asyncio.Event | None = None
    _phase = Phase.BUSY
    _unread = 0  # response bytes that the client had not read at the last check; 0: no check yet
    _unread_due = inf  # time (of the loop) by which the client must have read more
    _discarded = 0  # bytes received while closing
    _due = inf  # time by which the phase must end
    _timer_due = inf
    _timer: asyncio.TimerHandle | None = None

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        """Stop the timer, and wake writers."""
        self._is_closing = True
        if self._timer is not None:
            self._timer.cancel()
        self.resume_writing()

    def pause_writing(self) -> None:
        """Make `writable` wait: the write buffer is full."""
        self._is_writable = False

    def resume_writing(self) -> None:
        """Let `writable` return."""
        self._is_writable = True
        if self._writable is not None:
            self._writable.set()

    def write(self, parts: list[bytes]) -> None:
        """Send parts in one write."""
        if not self._is_closing:
            self._transport.writelines(parts)

    async def writable(self) -> None:
        """Wait until the write buffer has space, because the client has read more."""
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

    def _enter(self, phase: Phase, seconds: float) -> None:
        """Start a phase that may last `seconds`."""
        now = self._loop.time()
        self._phase, self._due = phase, now + seconds
        self._unread, self._unread_due = 0, now + STALL_SECONDS
        self._wake(now)

    def _wake(self, now: float) -> None:
        """Schedule the next check: at the timeout, or sooner while data wait to be sent."""
        is_sent = not self._transport.get_write_buffer_size()
        due = self._due if is_sent else min(self._due, now + STALL_SECONDS / STALL_LOOKS)
        if due < self._timer_due:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_due = due
            self._timer = self._loop.call_at(due, self._check_timeouts)

    def _check_timeouts(self) -> None:
        """Close if a timeout has expired; else schedule the next check."""
        self._timer, self._timer_due = None, inf
        now, unsent = self._loop.time(), self._transport.get_write_buffer_size()
        if self._phase is Phase.BUSY:
            return None  # the next phase schedules a check
        if unsent:
            before, self._unread = self._unread, unsent + self._unacknowledged()
            if self._unread < before:
                self._unread_due = now + STALL_SECONDS
            if now >= self._unread_due:
                return self.abort()
            self._due = max(self._due, now + STALL_SECONDS / STALL_LOOKS)
        if now < self._due:
            self._wake(now)
        elif self._phase is Phase.STALLED or self._transport.is_closing():
            self.abort()
        else:
            self._leave()
        return None

    def _unacknowledged(self) -> int:
        """Return the number of sent bytes that the client's kernel has not acknowledged (TIOCOUTQ).

        This number shows the progress of a slow client: the local kernel accepts more data only
        after megabytes have been acknowledged.
        """
        queued = array("i", [0])
        ioctl(self._transport.get_extra_info("socket").fileno(), TIOCOUTQ, queued)
        return queued[0]

    def _close(self, *, lingers: bool) -> None:
        """Close. lingers: first give a client that still sends time to read the last response."""
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
        self._enter(Phase.ENDING, LINGER_SECONDS)

    def _discard(self, size: int) -> None:
        """Discard data received while closing. More than UNREAD_BYTES close the connection."""
        self._discarded += size
        if self._discarded > UNREAD_BYTES and not self._transport.is_closing():
            self._leave()

    def _leave(self) -> None:
        self._is_closing = True
        self._transport.close()
        if self._transport.get_write_buffer_size():
            self._enter(Phase.ENDING, STALL_SECONDS)

    def abort(self) -> None:
        """Close now, and discard unsent data."""
        self._is_closing = True
        self._transport.abort()

    def reset(self) -> None:
        """Close now with a TCP reset, so that the client sees an error."""
        sock = self._transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.abort()
