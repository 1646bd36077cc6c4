"""What a worker and its supervisor tell each other: JSON, a line each, over two pipes."""

import asyncio
import json
import logging
import os
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

LONGEST = 1 << 20  # bytes of a line
MOST = 50_000  # characters of a text in it, each up to six bytes


class Channel:
    """The worker's end. `number`: which of the workers this is."""

    def __init__(self, reads: int, writes: int, number: int) -> None:
        self.number = number
        self._reads = reads
        self._writes = writes
        self._turn = threading.Lock()

    def tell(self, **what: Any) -> None:
        """Tell something. It waits for a supervisor that does not read: never on the loop."""
        line = memoryview(json.dumps(what).encode() + b"\n")
        with self._turn:
            while line:
                line = line[os.write(self._writes, line) :]

    async def hear(self) -> AsyncIterator[dict[str, Any]]:
        """Give what the supervisor tells, until it is gone."""
        async for told in hear(self._reads):
            yield told


async def hear(pipe: int) -> AsyncIterator[dict[str, Any]]:
    """Give what is told at the other end of a pipe, until that is closed."""
    reader = asyncio.StreamReader(limit=LONGEST)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(pipe, "rb", 0)
    )
    try:
        async for line in reader:
            told: dict[str, Any] = json.loads(line)
            yield told
    finally:
        transport.close()


class ChannelHandler(logging.Handler):
    """Leaves it to the supervisor to write: one process has the file."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        told = {name: value for name, value in record.__dict__.items() if is_plain(value)}
        if record.exc_info:
            told["exc_text"] = logging.Formatter().formatException(record.exc_info)
        told |= {name: told[name][:MOST] for name in ("msg", "exc_text") if told.get(name)}
        with suppress(OSError):  # there may be nobody who would write it
            self._channel.tell(record=told)


def is_plain(value: object) -> bool:
    """Whether JSON has it."""
    return isinstance(value, str | int | float | None)
