"""Correct Hypercorn's own HTTP/2: early responses, floods of control frames, and draining.

A client that opens a stream and resets it at once starts a request on the server with only 40 bytes
("rapid reset", CVE-2023-44487). The server must also acknowledge or track SETTINGS, PING and
PRIORITY frames (CVE-2019-9515, -9512, -9513). Like nghttp2, this module closes the connection of a
client that sends too many such frames. The library `h2` itself refuses endless CONTINUATION frames,
and headers that decode to more than 64 KiB.

Hypercorn closes an idle connection without GOAWAY. It sends GOAWAY before the end of a response
that the client has not read, and after `keep_alive_max_requests` in the middle of all responses.
Here GOAWAY follows the last response of a connection: some clients give up their requests at
GOAWAY (httpcore does).
"""

import asyncio
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    PingReceived,
    PriorityUpdated,
    RemoteSettingsChanged,
    RequestReceived,
    StreamReset,
)
from h2.events import Event as FrameEvent
from h2.exceptions import ProtocolError
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import StreamClosed
from hypercorn.protocol.h2 import (
    BUFFER_HIGH_WATER,
    BUFFER_LOW_WATER,
    BufferCompleteError,
    H2Protocol,
    StreamBuffer,
)

from service.server.http1.config import ServerConfig

BURST, PER_SECOND = 200, 33  # frames of COUNTED that a connection may send (token bucket)
COUNTED = (PingReceived, PriorityUpdated, RemoteSettingsChanged, StreamReset)
PIECE_BYTES = 2_048  # bytes parsed in one tick: a hundred frames at most


class BoundedBuffer(StreamBuffer):
    """The unsent part of a response: BUFFER_HIGH_WATER bytes, and the part that was added last.

    Hypercorn's buffer has no bound: it accepts more while the client's flow control stops it.
    """

    async def push(self, data: bytes) -> None:
        """Add a part, and wait until the client has read enough. Raises BufferCompleteError."""
        if self._complete:
            raise BufferCompleteError
        self.buffer.extend(data)
        await self._is_empty.clear()
        if len(self.buffer) >= BUFFER_HIGH_WATER:
            await self._paused.clear()
            await self._paused.wait()

    async def pop(self, max_length: int) -> bytes:
        """Remove and return the first bytes."""
        data = bytes(self.buffer[:max_length])
        del self.buffer[:max_length]
        if len(self.buffer) < BUFFER_LOW_WATER:
            await self._paused.set()
        if not self.buffer:
            await self._is_empty.set()
        return data


class Http2(H2Protocol):
    """Replaces Hypercorn's H2Protocol.

    Hypercorn's protocol fails on DATA for a stream that has ended, and then closes the connection
    with all its requests. It also accepts any number of control frames.
    """

    config: ServerConfig
    _has_left = False  # GOAWAY was sent
    _last_stream = 0  # of the requests that were started

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._frames_left: float = BURST
        self._counted_at = time.monotonic()

    async def handle(self, event: Event) -> None:
        """Parse received data in pieces, so that other connections are served in between."""
        if not isinstance(event, RawData):
            await super().handle(event)
            if isinstance(event, Closed):
                await self._discard_responses(list(self.stream_buffers))
            return
        for first in range(0, len(event.data), PIECE_BYTES):
            if first:
                await asyncio.sleep(0)
            if self.closed or self._has_left:
                break
            await super().handle(RawData(event.data[first : first + PIECE_BYTES]))

    async def _handle_events(self, events: list[FrameEvent]) -> None:
        number = sum(isinstance(event, COUNTED) for event in events)
        if number and not self._may_receive(number):
            self.closed = True
            self.connection.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
            await self._flush()
            return await self.send(Closed())
        for event in events:
            if self._has_left:
                break  # GOAWAY has told the client that these requests were not started
            if isinstance(event, DataReceived) and event.stream_id not in self.streams:
                # Without an acknowledgement these data would use up the connection's window.
                length = event.flow_controlled_length or 0
                self.connection.acknowledge_received_data(length, event.stream_id)
                await self._flush()
            elif isinstance(event, RequestReceived):
                await self._accept(event)
            else:
                await super()._handle_events([event])
                if isinstance(event, StreamReset):
                    await self._discard_responses([event.stream_id])
        return None

    async def _accept(self, request: RequestReceived) -> None:
        """Start a request. While the server stops, refuse it: the client can safely repeat it."""
        if self.context.terminated.is_set():
            self.connection.reset_stream(request.stream_id, ErrorCodes.REFUSED_STREAM)
            return await self._flush()
        self._last_stream = request.stream_id
        await self._create_stream(request)
        return await self.send(Updated(idle=False))

    async def stream_send(self, event: StreamEvent) -> None:
        """Send a part of a response. After its end, the connection may be idle, or end."""
        if not isinstance(event, StreamClosed):
            return await super().stream_send(event)
        await self._reset_incomplete(event.stream_id)
        await self._close_stream(event.stream_id)
        await self._leave_if_complete()
        return await self.send(Updated(idle=self.idle))

    async def _leave_if_complete(self) -> None:
        """Send GOAWAY if the connection must end, and all its responses are sent."""
        config = self.config
        must_end = (
            config.draining
            or self.context.terminated.is_set()
            or self.keep_alive_requests >= config.keep_alive_max_requests
        )
        if must_end and not (self.closed or self.streams or self.stream_buffers):
            await self.leave()

    async def leave(self) -> None:
        """Send GOAWAY. The client then closes; until then, what it sends is discarded.

        GOAWAY names the last request that was started; h2 would name one that only was received.
        """
        if not self._has_left:
            self._has_left = True
            self.connection.close_connection(last_stream_id=self._last_stream)
            await self._flush()

    async def _discard_responses(self, stream_ids: Iterable[int]) -> None:
        """Wake the applications that wait until the client reads more: it never will.

        Hypercorn lets them wait. Each held its turn in the queue for 60 s, so that two connections
        of a flooding client stopped a worker.
        """
        for stream_id in stream_ids:
            if (buffer := self.stream_buffers.get(stream_id)) is not None:
                await buffer.close()

    async def _reset_incomplete(self, stream_id: int) -> None:
        """Reset the stream of a response that stays incomplete. Hypercorn leaves it open."""
        buffer = self.stream_buffers.get(stream_id)
        if buffer is None or buffer.complete:
            return
        await buffer.close()
        del self.stream_buffers[stream_id]
        self.priority.remove_stream(stream_id)
        with suppress(ProtocolError):
            self.connection.reset_stream(stream_id, ErrorCodes.INTERNAL_ERROR)
        await self._flush()

    def _may_receive(self, number: int) -> bool:
        now = time.monotonic()
        refilled = self._frames_left + PER_SECOND * (now - self._counted_at)
        self._frames_left, self._counted_at = min(BURST, refilled) - number, now
        return self._frames_left >= 0

    async def _send_data(self, stream_id: int) -> None:
        """Send the next part of a response. After the last part, reset an incomplete request."""
        await super()._send_data(stream_id)
        stream = self.connection.streams.get(stream_id)
        if stream_id not in self.stream_buffers and stream is not None and not stream.closed:
            with suppress(ProtocolError):  # RFC 9113, 8.1
                self.connection.reset_stream(stream_id, ErrorCodes.NO_ERROR)
            await self._flush()
        await self._leave_if_complete()
