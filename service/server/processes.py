"""A worker as its supervisor sees it: a process, and two pipes."""

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from service.server.channel import VARIABLE, hear


class WorkerProcess:
    """A process that serves, or waits to be told to, from its start to its end."""

    def __init__(
        self, number: int, process: asyncio.subprocess.Process, tells: int, hears: int
    ) -> None:
        self.number = number
        self.process = process
        self.is_spare = True  # until it is told to serve
        self.ready = asyncio.Event()
        self.worn = asyncio.Event()  # asks to be replaced
        self.ended = asyncio.create_task(process.wait())
        self._tells = tells
        self._hears = hears

    @classmethod
    async def start(
        cls,
        number: int,
        command: Sequence[str],
        sockets: Sequence[socket.socket],
        environment: Mapping[str, str],
    ) -> "WorkerProcess":
        """Start one: it loads what it needs, and serves once it is told to."""
        (theirs, tells), (hears, writes) = os.pipe(), os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                pass_fds=(*(sock.fileno() for sock in sockets), theirs, writes),
                env={**environment, VARIABLE: f"{theirs},{writes},{number}"},
                start_new_session=True,  # Ctrl-C is for the supervisor
            )
        except BaseException:
            os.close(tells)
            os.close(hears)
            raise
        finally:
            os.close(theirs)
            os.close(writes)
        os.set_blocking(tells, False)
        return cls(number, process, tells, hears)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it is still there."""
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    def tell(self, **what: Any) -> None:
        """Tell it something, unless it hangs or has ended."""
        with suppress(OSError):
            os.write(self._tells, json.dumps(what).encode() + b"\n")

    def hear(self) -> AsyncIterator[dict[str, Any]]:
        """Give what it tells, until it has ended."""
        return hear(self._hears)

    def close(self) -> None:
        """Tell nothing any more: it has ended."""
        os.close(self._tells)
