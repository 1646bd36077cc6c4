"""The fork server: a process that has loaded the application, and forks workers.

A worker starts within milliseconds, without the one or two seconds of CPU time for loading, and the
workers share the memory of the code. The fork server has no connections, threads or event loop, so
a fork copies only code.

multiprocessing's fork server does not fit: a process can have only one, but at SIGHUP a second one
loads newer code while the first one still runs.
"""

import gc
import json
import os
import signal
import socket
from contextlib import suppress
from typing import Any

from service.server.pipes import Channel

FORK_SERVER_VARIABLE = "OCTAVO_FORK_SERVER"  # environment variable: socket to read, pipe to write
NUMBER_BYTES = 4  # size of a worker's number in a request
IGNORED = (signal.SIGTERM, signal.SIGINT)  # a closed socket ends the fork server


class Forks:
    """The fork server's side of the connection to the supervisor."""

    def __init__(self, reads: int, writes: int) -> None:
        self._requests = socket.socket(fileno=reads)
        self._writes = writes
        self._numbers: dict[int, int] = {}  # numbers of workers, by process id

    @classmethod
    def inherited(cls) -> "Forks | None":
        """Return the fork server that the environment describes; None without one."""
        given = os.environ.pop(FORK_SERVER_VARIABLE, None)
        return None if given is None else cls(*map(int, given.split(",")))

    def worker(self) -> Channel | None:
        """Fork on each request. Returns a channel in each worker, and None here at the end."""
        for number in IGNORED:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, self._reap)
        gc.collect()
        gc.freeze()  # garbage collection would write to shared pages
        self._send(loaded=True)
        while True:
            request, pipes, _, _ = socket.recv_fds(self._requests, NUMBER_BYTES, 2)
            if not request:
                break
            channel = self._fork(int.from_bytes(request), *pipes)
            if channel is not None:
                return channel
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        while self._numbers:
            self._ended(*os.waitpid(-1, 0))
        return None

    def _fork(self, number: int, reads: int, writes: int) -> Channel | None:
        # The supervisor must not get the end of a worker before its start.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        pid = os.fork()
        if pid == 0:
            for each in (*IGNORED, signal.SIGCHLD):
                signal.signal(each, signal.SIG_DFL)
        else:
            os.close(reads)  # only the worker has them: they close when it ends
            os.close(writes)
            self._numbers[pid] = number
            self._send(forked=number, pid=pid)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        if pid != 0:
            return None
        self._requests.close()
        os.close(self._writes)
        return Channel(reads, writes, number)

    def _reap(self, *_: Any) -> None:
        while self._numbers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self._ended(pid, status)

    def _ended(self, pid: int, status: int) -> None:
        self._send(ended=self._numbers.pop(pid), code=os.waitstatus_to_exitcode(status))

    def _send(self, **message: Any) -> None:
        with suppress(OSError):  # the supervisor is gone
            os.write(self._writes, json.dumps(message).encode() + b"\n")
