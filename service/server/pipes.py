"""Messages between a worker and its supervisor: lines of JSON over two pipes."""

import asyncio
import json
import logging
import os
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

MAX_LINE_BYTES = 1 << 20  # bytes of a line
MAX_MESSAGE_CHARACTERS = 100_000  # characters of the lines in a message, each up to six bytes


class Channel:
    """The worker's side of the pipes. `number`: the number of this worker."""

    def __init__(self, reads: int, writes: int, number: int) -> None:
        self.number = number
        self._reads = reads
        self._writes = writes
        self._turn = threading.Lock()

    def send_message(self, **message: Any) -> None:
        """Send a message. Blocks while the supervisor does not read: never call it on the loop."""
        line = memoryview(json.dumps(message).encode() + b"\n")
        with self._turn:
            while line:
                line = line[os.write(self._writes, line) :]

    async def receive(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the messages of the supervisor, until it ends."""
        async for message in receive(self._reads):
            yield message


async def receive(pipe: int) -> AsyncIterator[dict[str, Any]]:
    """Yield the messages from a pipe, until its other end is closed."""
    reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(pipe, "rb", 0)
    )
    try:
        async for line in reader:
            message: dict[str, Any] = json.loads(line)
            yield message
    finally:
        transport.close()


class ChannelDestination:
    """Sends lines for the destination `name` to the supervisor, which alone writes the log file."""

    def __init__(self, channel: Channel, name: str, formatter: logging.Formatter) -> None:
        self.formatter = formatter
        self._channel = channel
        self._name = name

    def write(self, lines: Sequence[str]) -> None:
        """Send lines, several in a message. A long line is cut."""
        message, length = list[str](), 0
        for line in lines:
            if length + min(len(line), MAX_MESSAGE_CHARACTERS) > MAX_MESSAGE_CHARACTERS:
                self._send(message)
                message, length = [], 0
            message.append(line[:MAX_MESSAGE_CHARACTERS])
            length += len(line)
        self._send(message)

    def _send(self, lines: list[str]) -> None:
        with suppress(OSError):  # the supervisor may have ended
            self._channel.send_message(lines=lines, destination=self._name)

    def close(self) -> None:
        """Leave the pipe open: the worker has other messages."""
