"""The fork server: a process that has loaded what serves, and forks into workers.

A worker that has to be replaced is so in a few milliseconds, not after the second or two of CPU
that loading takes; and what was loaded is in memory once. Nothing is connected here, no thread
runs and there is no event loop: what is copied is code.

Why not multiprocessing's: that is one for a whole process, and SIGHUP has newer code loaded
beside what still serves.
"""

import gc
import json
import os
import signal
import socket
from contextlib import suppress
from typing import Any

from service.server.pipes import Channel

VARIABLE = "OCTAVO_FORK_SERVER"  # in its environment: the socket that it reads, the pipe it writes
NUMBER_BYTES = 4  # of a worker, as it is asked for
LEFT_ALONE = (signal.SIGTERM, signal.SIGINT)  # it ends when its supervisor closes the socket


class Forks:
    """The fork server's own end."""

    def __init__(self, reads: int, writes: int) -> None:
        self._asked = socket.socket(fileno=reads)
        self._writes = writes
        self._numbers: dict[int, int] = {}  # of workers, by process id

    @classmethod
    def inherited(cls) -> "Forks | None":
        """Give the one that a supervisor has left in the environment."""
        given = os.environ.pop(VARIABLE, None)
        return None if given is None else cls(*map(int, given.split(",")))

    def worker(self) -> Channel | None:
        """Fork whenever asked to: returns in each worker, and, once all is over, None here."""
        for number in LEFT_ALONE:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, self._reap)
        gc.collect()
        gc.freeze()  # to look for cycles would write to pages that are shared
        self._tell(loaded=True)
        while True:
            asked, pipes, _, _ = socket.recv_fds(self._asked, NUMBER_BYTES, 2)
            if not asked:
                break
            channel = self._fork(int.from_bytes(asked), *pipes)
            if channel is not None:
                return channel
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        while self._numbers:
            self._ended(*os.waitpid(-1, 0))
        return None

    def _fork(self, number: int, reads: int, writes: int) -> Channel | None:
        # Not told of its end before its beginning.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        pid = os.fork()
        if pid == 0:
            for one in (*LEFT_ALONE, signal.SIGCHLD):
                signal.signal(one, signal.SIG_DFL)
        else:
            os.close(reads)  # it alone has them: they close when it ends
            os.close(writes)
            self._numbers[pid] = number
            self._tell(forked=number, pid=pid)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        if pid != 0:
            return None
        self._asked.close()
        os.close(self._writes)
        return Channel(reads, writes, number)

    def _reap(self, *_: Any) -> None:
        while self._numbers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self._ended(pid, status)

    def _ended(self, pid: int, status: int) -> None:
        self._tell(ended=self._numbers.pop(pid), code=os.waitstatus_to_exitcode(status))

    def _tell(self, **what: Any) -> None:
        with suppress(OSError):  # the supervisor is gone
            os.write(self._writes, json.dumps(what).encode() + b"\n")
