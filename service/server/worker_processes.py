"""The supervisor's view of a fork server and its workers."""

import asyncio
import json
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Self

from service.server.fork_server import FORK_SERVER_VARIABLE, NUMBER_BYTES
from service.server.pipes import receive

Callback = Callable[["WorkerProcess", dict[str, Any]], None]


class WorkerProcess:
    """A worker process, from its start to its end.

    ended: done when the process has ended, with its exit code, or the negative number of its
    signal; None if unknown. callback: called with each message of the worker.
    """

    def __init__(self, number: int, write_end: int, read_end: int, callback: Callback) -> None:
        self.number = number
        self.pid = 0  # before the fork
        self.forked = asyncio.Event()
        self.ready = asyncio.Event()
        self.replacement_requested = asyncio.Event()  # the worker requests a replacement
        self.code: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self._write_end = write_end
        self.ended = asyncio.create_task(self._read(read_end, callback))

    async def _read(self, read_end: int, callback: Callback) -> int | None:
        async for message in receive(read_end):
            callback(self, message)
        code = await self.code
        os.close(self._write_end)
        return code

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the worker, if it is running."""
        if self.pid and not self.ended.done():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def send_message(self, **message: Any) -> None:
        """Send a message to the worker; lost if its pipe is full or closed."""
        with suppress(OSError):
            os.write(self._write_end, json.dumps(message).encode() + b"\n")


class ForkServer:
    """A process that forks workers. `loaded`: it can fork. `ended`: done when it has ended."""

    def __init__(
        self, process: asyncio.subprocess.Process, request_socket: socket.socket, read_end: int
    ):
        self.process = process
        self.loaded = asyncio.Event()
        self._request_socket = request_socket
        self._workers: dict[int, WorkerProcess] = {}
        self.ended = asyncio.create_task(self._read(read_end))

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        sockets: Sequence[socket.socket],
        environment: Mapping[str, str],
    ) -> Self:
        """Start a fork server, which loads the application."""
        request_socket, theirs = socket.socketpair()
        read_end, writes = os.pipe()
        inherited = (theirs.fileno(), writes)
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                pass_fds=(*(sock.fileno() for sock in sockets), *inherited),
                env={**environment, FORK_SERVER_VARIABLE: ",".join(map(str, inherited))},
                start_new_session=True,  # Ctrl-C is for the supervisor
            )
        except BaseException:
            request_socket.close()
            os.close(read_end)
            raise
        finally:
            theirs.close()
            os.close(writes)
        return cls(process, request_socket, read_end)

    def fork(self, number: int, callback: Callback) -> WorkerProcess:
        """Request a new worker. If that fails, the returned worker has ended."""
        (reads, write_end), (read_end, writes) = os.pipe(), os.pipe()
        os.set_blocking(write_end, False)
        worker = self._workers[number] = WorkerProcess(number, write_end, read_end, callback)
        try:
            socket.send_fds(self._request_socket, [number.to_bytes(NUMBER_BYTES)], [reads, writes])
        except OSError:
            worker.code.set_result(None)
        finally:
            os.close(reads)
            os.close(writes)
        return worker

    async def _read(self, read_end: int) -> None:
        async for message in receive(read_end):
            match message:
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
        self._request_socket.close()

    def close(self) -> None:
        """Request no more workers: the fork server ends after its last worker."""
        self._request_socket.close()

    async def end(self, seconds: float) -> None:
        """End it: at once if it is still loading, else after its last worker. Kill it if late."""
        self.close()
        if not self.loaded.is_set():
            self._send(signal.SIGTERM)
        await asyncio.wait({self.ended}, timeout=seconds)
        self._send(signal.SIGKILL)
        await self.process.wait()
        await self.ended

    def _send(self, number: signal.Signals) -> None:
        # The process's own send_signal polls the process, and so would take its exit code.
        if not self.ended.done():
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, number)
