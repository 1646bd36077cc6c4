"""One run: start all processes, run the clients, and stop all processes, also after an error."""

import asyncio
import os
import secrets
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from loadtest.delay import delayed
from loadtest.processes import StartError, started
from loadtest.services import ADMIN, Print, run_services
from loadtest.verdict import Figures

HERE = Path(__file__).parent
# Share of the run in which the clients start. The server hashes the password of each client twice,
# so a start of all clients at once would be another kind of load.
RAMP_UP = 0.25


@dataclass(frozen=True)
class RunOptions:
    """The options of a run."""

    profile: str
    users: int
    seconds: int
    workers: int
    books: int
    delay_ms: int
    allow_503: bool
    folder: Path


async def measure(options: RunOptions, show: Print) -> Figures:
    """Start all processes, run the clients, stop all processes. Raises StartError."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, _stop_once(task))
    password = secrets.token_urlsafe(12)
    _warn_if_busy(show)
    async with AsyncExitStack() as stack:
        log = stack.enter_context((options.folder / "server.log").open("wb"))
        port = await stack.enter_async_context(
            run_services(options.books, options.workers, log, password, show)
        )
        if options.delay_ms:
            show(f"A proxy delays every response by {options.delay_ms} ms")
            port = await stack.enter_async_context(delayed(port, options.delay_ms / 1_000))
        show(
            f"{options.users} clients start one after the other; the run takes {options.seconds} s"
        )
        return await _run_locust(options, port, password)


def _warn_if_busy(show: Print) -> None:
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    if load > cores / 2:
        show(
            f"Other processes use this machine (load {load:.1f}, {cores} cores): it affects results"
        )


def _stop_once(task: "asyncio.Task[Figures]") -> Callable[[], None]:
    """Return a signal handler that cancels the task once; a second signal does nothing."""
    stopped = False

    def stop() -> None:
        nonlocal stopped
        if not stopped:
            stopped = True
            task.cancel()

    return stop


async def _run_locust(options: RunOptions, port: int, password: str) -> Figures:
    folder = options.folder
    target = folder / "figures.json"
    target.unlink(missing_ok=True)
    rate = options.users / options.seconds / RAMP_UP
    words = [
        "locust", "--locustfile", str(HERE / "locustfile.py"), "--headless", "--only-summary",
        "--host", f"http://127.0.0.1:{port}", "--profile", options.profile,
        "--users", str(options.users), "--spawn-rate", f"{rate:.3f}",
        "--run-time", f"{options.seconds}s", "--stop-timeout", "5", "--loglevel", "WARNING",
        "--exit-code-on-error", "0", "--html", str(folder / "report.html"),
        "--books", str(options.books), "--admin-email", ADMIN, "--figures", str(target),
        *(["--allow-503"] if options.allow_503 else []),
    ]  # fmt: skip
    environment = os.environ | {
        "OCTAVO_ADMIN_PASSWORD": password,
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
    }
    with (folder / "locust.txt").open("wb") as log_file:
        async with started(*words, environment=environment, err=log_file) as locust:
            code = await locust.wait()
    if code or not target.exists():
        raise StartError(
            f"locust exited with code {code} and measured nothing; see {log_file.name}"
        )
    return Figures.load(target)
