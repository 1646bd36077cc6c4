"""A fork server and its workers as their supervisor sees them."""

import asyncio
import json
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Self

from service.server.fork_server import NUMBER_BYTES, VARIABLE
from service.server.pipes import hear

Told = Callable[["WorkerProcess", dict[str, Any]], None]


class WorkerProcess:
    """A process that serves, from its start to its end.

    ended: done when it has, with its exit code, or the signal's number below 0; None if nobody
    can tell. told: called with each thing that it says.
    """

    def __init__(self, number: int, tells: int, hears: int, told: Told) -> None:
        self.number = number
        self.pid = 0  # until it was forked
        self.forked = asyncio.Event()
        self.ready = asyncio.Event()
        self.worn = asyncio.Event()  # asks to be replaced
        self.code: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self._tells = tells
        self.ended = asyncio.create_task(self._listen(hears, told))

    async def _listen(self, hears: int, told: Told) -> int | None:
        async for what in hear(hears):
            told(self, what)
        code = await self.code
        os.close(self._tells)
        return code

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it is there."""
        if self.pid and not self.ended.done():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def tell(self, **what: Any) -> None:
        """Tell it something, unless it hangs or has ended."""
        with suppress(OSError):
            os.write(self._tells, json.dumps(what).encode() + b"\n")


class ForkServer:
    """A process that forks into workers: `loaded` before its first, `gone` at its end."""

    def __init__(self, process: asyncio.subprocess.Process, asks: socket.socket, hears: int):
        self.process = process
        self.loaded = asyncio.Event()
        self._asks = asks
        self._workers: dict[int, WorkerProcess] = {}
        self.gone = asyncio.create_task(self._listen(hears))

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        sockets: Sequence[socket.socket],
        environment: Mapping[str, str],
    ) -> Self:
        """Start one; it loads what serves."""
        asks, theirs = socket.socketpair()
        hears, writes = os.pipe()
        inherited = (theirs.fileno(), writes)
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                pass_fds=(*(sock.fileno() for sock in sockets), *inherited),
                env={**environment, VARIABLE: ",".join(map(str, inherited))},
                start_new_session=True,  # Ctrl-C is for the supervisor
            )
        except BaseException:
            asks.close()
            os.close(hears)
            raise
        finally:
            theirs.close()
            os.close(writes)
        return cls(process, asks, hears)

    def fork(self, number: int, told: Told) -> WorkerProcess:
        """Have it fork into a worker, which ends at once if that cannot be."""
        (reads, tells), (hears, writes) = os.pipe(), os.pipe()
        os.set_blocking(tells, False)
        worker = self._workers[number] = WorkerProcess(number, tells, hears, told)
        try:
            socket.send_fds(self._asks, [number.to_bytes(NUMBER_BYTES)], [reads, writes])
        except OSError:
            worker.code.set_result(None)
        finally:
            os.close(reads)
            os.close(writes)
        return worker

    async def _listen(self, hears: int) -> None:
        async for told in hear(hears):
            match told:
                case {"loaded": True}:
                    self.loaded.set()
                case {"forked": number, "pid": pid}:
                    self._workers[number].pid = pid
                    self._workers[number].forked.set()
                case {"ended": number, "code": code}:
                    self._workers.pop(number).code.set_result(code)
        for worker in self._workers.values():
            if not worker.code.done():
                worker.code.set_result(None)
        self._asks.close()

    def close(self) -> None:
        """Ask for no more: it ends with the last of its workers."""
        self._asks.close()

    async def end(self, seconds: float) -> None:
        """Let it end: at once if it has not loaded yet, else with the last of its workers."""
        self.close()
        if not self.loaded.is_set():
            self._send(signal.SIGTERM)
        await asyncio.wait({self.gone}, timeout=seconds)
        self._send(signal.SIGKILL)
        await self.process.wait()
        await self.gone

    def _send(self, number: signal.Signals) -> None:
        # The process's own send_signal looks whether it has ended, and so takes away its exit code.
        if not self.gone.done():
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, number)
