"""Starts the measured server on its own core, and measures its CPU time and memory."""

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

from loadtest.services import inherited_environment

CORE = 0
ROOT = Path(__file__).resolve().parent.parent
START_SECONDS, REST_SECONDS, STOP_SECONDS = 30.0, 10.0, 10.0
PAUSE, IDLE_SHARE = 0.1, 0.2  # IDLE_SHARE: of a core; CPU time is counted in steps of 10 ms


class DidNotStartError(Exception):
    """A server sends no response after its start."""


def pin_everything_else() -> None:
    """Keep this process and its later child processes, except servers, off the server's core."""
    cores = os.sched_getaffinity(0)
    if len(cores) < 2 or CORE not in cores:
        sys.exit("The benchmark needs two cores: one for the server, the other for the load")
    os.sched_setaffinity(0, cores - {CORE})


@dataclass(frozen=True)
class Server:
    """A server and all processes that it has started."""

    process: psutil.Process
    url: str

    def cpu_seconds(self) -> float:
        """Return the CPU time of its processes, user and system."""
        return cpu_seconds(self.process)

    def rest(self) -> None:
        """Wait until the server has finished the work whose clients have disconnected."""
        until = time.monotonic() + REST_SECONDS
        before, now = -1.0, self.cpu_seconds()
        while now - before > IDLE_SHARE * PAUSE and time.monotonic() < until:
            time.sleep(PAUSE)
            before, now = now, self.cpu_seconds()

    def peak_bytes(self) -> int:
        """Return the sum of the peak memory of its processes."""
        return sum(_peak_bytes(process) for process in _tree(self.process))


def cpu_seconds(root: psutil.Process) -> float:
    """Return the CPU time of a process and all its child processes, user and system.

    Child processes that have ended are included: when a pool closes a connection, the process of
    PostgreSQL for it ends.
    """
    return sum(sum(process.cpu_times()[:4]) for process in _tree(root))


def _tree(root: psutil.Process) -> list[psutil.Process]:
    return [root, *root.children(recursive=True)]


def _peak_bytes(process: psutil.Process) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            return int(value.split()[0]) * 1_024
    return 0  # the process is ending, and has no memory any more


@contextmanager
def serving(
    name: str, command: Sequence[str], port: int, environment: Mapping[str, str], path: str
) -> Iterator[Server]:
    """Start a server on its core, wait until `path` returns 200, and stop the server at the end.

    The server runs in an empty folder, without a `.env`; its log goes there. The folder is removed
    afterwards. Raises DidNotStartError.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(  # noqa: S603  (a fixed command)
            command,
            env={**inherited_environment(), "PYTHONPATH": str(ROOT), **environment},
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        os.sched_setaffinity(process.pid, {CORE})  # its later child processes use this core too
        url = f"http://127.0.0.1:{port}"
        try:
            if not _is_ready(process, url + path):
                output.seek(0)
                text = output.read().decode(errors="replace")
                raise DidNotStartError(
                    f"{name} does not return 200 for {path}; its output:\n{text}"
                )
            yield Server(psutil.Process(process.pid), url)
        finally:
            _end(process)


def _is_ready(process: subprocess.Popen[bytes], url: str) -> bool:
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
    """Stop a server and all processes that it has started."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
