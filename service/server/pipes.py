"""Messages between a worker and its supervisor: lines of JSON over two pipes."""

import asyncio
import json
import logging
import os
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

LONGEST = 1 << 20  # bytes of a line
MOST = 50_000  # characters of a text in a message, each up to six bytes


class Channel:
    """The worker's side of the pipes. `number`: the number of this worker."""

    def __init__(self, reads: int, writes: int, number: int) -> None:
        self.number = number
        self._reads = reads
        self._writes = writes
        self._turn = threading.Lock()

    def tell(self, **message: Any) -> None:
        """Send a message. Blocks while the supervisor does not read: never call it on the loop."""
        line = memoryview(json.dumps(message).encode() + b"\n")
        with self._turn:
            while line:
                line = line[os.write(self._writes, line) :]

    async def hear(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the messages of the supervisor, until it ends."""
        async for message in hear(self._reads):
            yield message


async def hear(pipe: int) -> AsyncIterator[dict[str, Any]]:
    """Yield the messages from a pipe, until its other end is closed."""
    reader = asyncio.StreamReader(limit=LONGEST)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(pipe, "rb", 0)
    )
    try:
        async for line in reader:
            message: dict[str, Any] = json.loads(line)
            yield message
    finally:
        transport.close()


class ChannelHandler(logging.Handler):
    """Sends log records to the supervisor: only one process may write the log file."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        values = {name: value for name, value in record.__dict__.items() if is_plain(value)}
        if record.exc_info:
            values["exc_text"] = logging.Formatter().formatException(record.exc_info)
        values |= {name: values[name][:MOST] for name in ("msg", "exc_text") if values.get(name)}
        with suppress(OSError):  # the supervisor may have ended
            self._channel.tell(record=values)


def is_plain(value: object) -> bool:
    """Whether JSON can represent a value."""
    return isinstance(value, str | int | float | None)
