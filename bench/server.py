"""A server that is being measured: one core to itself, and what its processes have spent there."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from loadtest.stand import inherited_environment

CORE = 0
ROOT = Path(__file__).resolve().parent.parent
START_SECONDS, REST_SECONDS, STOP_SECONDS = 30.0, 10.0, 10.0
PAUSE, IDLE_SHARE = 0.1, 0.2  # of a core; the clock of CPU time ticks a hundred times a second


class DidNotStartError(Exception):
    """A contestant does not answer."""


def pin_everything_else() -> None:
    """Leave the server's core: this process, and all that it starts from now on, but servers."""
    cores = os.sched_getaffinity(0)
    if len(cores) < 2 or CORE not in cores:
        sys.exit("The benchmark needs two cores: one for the server, the other for the load")
    os.sched_setaffinity(0, cores - {CORE})


@dataclass(frozen=True)
class Server:
    """A server, and all processes that it has started."""

    process: psutil.Process
    url: str

    def cpu_seconds(self) -> float:
        """Give the time that its processes have had, user and system."""
        return cpu_seconds(self.process)

    def rest(self) -> None:
        """Wait until it has done what nobody waits for any more."""
        until = time.monotonic() + REST_SECONDS
        before, now = -1.0, self.cpu_seconds()
        while now - before > IDLE_SHARE * PAUSE and time.monotonic() < until:
            time.sleep(PAUSE)
            before, now = now, self.cpu_seconds()

    def peak_bytes(self) -> int:
        """Give the most memory that its processes have held, each at its worst."""
        return sum(_peak_bytes(one) for one in _tree(self.process))


def cpu_seconds(root: psutil.Process) -> float:
    """Give the time that a process and all that it has started have had, user and system.

    Also those that have ended: a pool lets connections go, and PostgreSQL's processes with them.
    """
    return sum(sum(one.cpu_times()[:4]) for one in _tree(root))


def _tree(root: psutil.Process) -> list[psutil.Process]:
    return [root, *root.children(recursive=True)]


def _peak_bytes(process: psutil.Process) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            return int(value.split()[0]) * 1_024
    return 0  # it is ending, and holds nothing any more


@contextmanager
def serving(
    name: str, command: Sequence[str], port: int, environment: Mapping[str, str], path: str
) -> Iterator[Server]:
    """Start a server on its core, wait until it answers `path`, and end it. Raises DidNotStart.

    It runs in an empty folder that is removed afterwards: without a `.env`, and for its log.
    """
    with tempfile.TemporaryFile() as said, tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(  # noqa: S603  (a contestant's own command)
            command,
            env={**inherited_environment(), "PYTHONPATH": str(ROOT), **environment},
            cwd=folder,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        os.sched_setaffinity(process.pid, {CORE})  # what it starts from now on is there as well
        url = f"http://127.0.0.1:{port}"
        try:
            if not _answers(process, url + path):
                said.seek(0)
                told = said.read().decode(errors="replace")
                raise DidNotStartError(f"{name} does not answer {path}; it said:\n{told}")
            yield Server(psutil.Process(process.pid), url)
        finally:
            _end(process)


def _answers(process: subprocess.Popen[bytes], url: str) -> bool:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            if httpx.get(url).status_code == 200:
                return True
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a server and all that it has started."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
