"""The load: wrk, one thread, as many connections as are said, requests from a file."""

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

CONNECTIONS = (32, 256)  # each kind of work is measured with so many at once
TIMEOUT_SECONDS = 10
SCRIPT = Path(__file__).with_name("load.lua")
MEASURED = re.compile(
    r"^measured requests=(\d+) microseconds=(\d+) p50=(\d+) p99=(\d+) refused=(\d+) broken=(\d+)$",
    re.MULTILINE,
)


class NotMeasuredError(Exception):
    """There is no figure: wrk did not run, or requests failed where none may."""


@dataclass(frozen=True)
class Load:
    """What wrk has seen. requests: with an answer. errors: share of all requests that failed.

    Latencies in milliseconds. An error is a status of 400 or more, a broken connection, a timeout.
    """

    requests: int
    seconds: float
    errors: float
    p50: float
    p99: float

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


def look_for_wrk() -> None:
    """End with a sentence if there is none."""
    if shutil.which("wrk") is None:
        sys.exit("The benchmark needs wrk: install it (Debian: apt install wrk; brew install wrk)")


def write_requests(requests: Iterable[bytes], path: Path) -> None:
    """Write requests, as they go over the wire, where load.lua reads them."""
    path.write_bytes(b"".join(b"%d\n%b" % (len(one), one) for one in requests))


def warm(url: str, requests: Path, seconds: float, connections: int) -> None:
    """Send requests for a while, and do not measure."""
    command = _command(url, requests, 60, connections)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603  (our own command)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)  # wrk ends well by it
    process.wait(30)


def send(url: str, requests: Path, seconds: int, connections: int) -> Load:
    """Send requests for so many seconds. Raises NotMeasuredError."""
    command = _command(url, requests, seconds, connections)
    found = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  (our own command)
    return read(found.stdout + found.stderr)


def _command(url: str, requests: Path, seconds: int, connections: int) -> list[str]:
    return [
        "wrk", "--threads", "1", "--connections", str(connections),
        "--timeout", f"{TIMEOUT_SECONDS}s", "--duration", f"{seconds}s",
        "--script", str(SCRIPT), url, "--", str(requests),
    ]  # fmt: skip


def read(told: str) -> Load:
    """Read what wrk says. Raises NotMeasuredError if it did not run."""
    line = MEASURED.search(told)
    if line is None:
        raise NotMeasuredError(f"wrk measured nothing:\n{told}")
    requests, microseconds, p50, p99, refused, broken = map(int, line.groups())
    sent = requests + broken
    errors = (refused + broken) / sent if requests else 1.0  # without an answer all have failed
    return Load(requests, microseconds / 1e6, errors, p50 / 1e3, p99 / 1e3)
