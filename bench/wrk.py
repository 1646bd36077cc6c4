"""The load: wrk with one thread, a number of connections, and requests from a file."""

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

CONNECTIONS = (32, 256)  # each kind of work is measured with each of these numbers
TIMEOUT_SECONDS = 10
SCRIPT = Path(__file__).with_name("load.lua")
MEASURED = re.compile(
    r"^measured requests=(\d+) microseconds=(\d+) p50=(\d+) p99=(\d+) refused=(\d+) broken=(\d+)$",
    re.MULTILINE,
)


class NotMeasuredError(Exception):
    """There is no figure: wrk did not run, or a request failed where none may fail."""


@dataclass(frozen=True)
class Load:
    """The result of wrk. requests: number with a response. errors: share that failed.

    p50 and p99 are in milliseconds. Errors: a status of 400 or more, a broken connection, a
    timeout.
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


def require_wrk() -> None:
    """Exit with a message if wrk is not installed."""
    if shutil.which("wrk") is None:
        sys.exit("The benchmark needs wrk: install it (Debian: apt install wrk; brew install wrk)")


def write_requests(requests: Iterable[bytes], path: Path) -> None:
    """Write the bytes of requests in the format that load.lua reads."""
    path.write_bytes(b"".join(b"%d\n%b" % (len(request), request) for request in requests))


def warm(url: str, requests: Path, seconds: float, connections: int) -> None:
    """Send requests for some seconds without measuring them."""
    command = _command(url, requests, 60, connections)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603  (a fixed command)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)  # wrk exits cleanly on SIGINT
    process.wait(30)


def send(url: str, requests: Path, seconds: int, connections: int) -> Load:
    """Send requests for `seconds` and measure them. Raises NotMeasuredError."""
    command = _command(url, requests, seconds, connections)
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  (a fixed command)
    return read(result.stdout + result.stderr)


def _command(url: str, requests: Path, seconds: int, connections: int) -> list[str]:
    return [
        "wrk", "--threads", "1", "--connections", str(connections),
        "--timeout", f"{TIMEOUT_SECONDS}s", "--duration", f"{seconds}s",
        "--script", str(SCRIPT), url, "--", str(requests),
    ]  # fmt: skip


def read(output: str) -> Load:
    """Parse the output of wrk. Raises NotMeasuredError if it contains no result."""
    line = MEASURED.search(output)
    if line is None:
        raise NotMeasuredError(f"The output of wrk contains no result:\n{output}")
    requests, microseconds, p50, p99, refused, broken = map(int, line.groups())
    sent = requests + broken
    errors = (
        (refused + broken) / sent if requests else 1.0
    )  # without a response all requests have failed
    return Load(requests, microseconds / 1e6, errors, p50 / 1e3, p99 / 1e3)
