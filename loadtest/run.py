"""One run: everything starts, clients come, everything ends, whatever happens."""

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
from loadtest.stand import ADMIN, Say, stand
from loadtest.verdict import Figures

HERE = Path(__file__).parent
# Part of a run in which clients come: each of them has its password hashed twice, so that all at
# once would be a load of another kind.
COMING = 0.25


@dataclass(frozen=True)
class Wanted:
    """What is to be run."""

    profile: str
    users: int
    seconds: int
    workers: int
    books: int
    delay_ms: int
    allow_503: bool
    folder: Path


async def measure(wanted: Wanted, say: Say) -> Figures:
    """Start everything, let the clients come, end everything. Raises StartError."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, _stop_once(task))
    password = secrets.token_urlsafe(12)
    _say_if_busy(say)
    async with AsyncExitStack() as stack:
        log = stack.enter_context((wanted.folder / "server.log").open("wb"))
        port = await stack.enter_async_context(
            stand(wanted.books, wanted.workers, log, password, say)
        )
        if wanted.delay_ms:
            say(f"Every answer is {wanted.delay_ms} ms late")
            port = await stack.enter_async_context(delayed(port, wanted.delay_ms / 1_000))
        say(f"{wanted.users} clients come one after the other, for {wanted.seconds} s in all")
        return await _let_loose(wanted, port, password)


def _say_if_busy(say: Say) -> None:
    at_work, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    if at_work > cores / 2:
        say(f"Others are at work here (load {at_work:.1f}, {cores} cores): it will show")


def _stop_once(task: "asyncio.Task[Figures]") -> Callable[[], None]:
    """Give what a signal does: to stop is told once, and ending is not interrupted."""
    stopped = False

    def stop() -> None:
        nonlocal stopped
        if not stopped:
            stopped = True
            task.cancel()

    return stop


async def _let_loose(wanted: Wanted, port: int, password: str) -> Figures:
    folder = wanted.folder
    target = folder / "figures.json"
    target.unlink(missing_ok=True)
    rate = wanted.users / wanted.seconds / COMING
    words = [
        "locust", "--locustfile", str(HERE / "locustfile.py"), "--headless", "--only-summary",
        "--host", f"http://127.0.0.1:{port}", "--profile", wanted.profile,
        "--users", str(wanted.users), "--spawn-rate", f"{rate:.3f}",
        "--run-time", f"{wanted.seconds}s", "--stop-timeout", "5", "--loglevel", "WARNING",
        "--exit-code-on-error", "0", "--html", str(folder / "report.html"),
        "--books", str(wanted.books), "--admin-email", ADMIN, "--figures", str(target),
        *(["--allow-503"] if wanted.allow_503 else []),
    ]  # fmt: skip
    environment = os.environ | {
        "OCTAVO_ADMIN_PASSWORD": password,
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
    }
    with (folder / "locust.txt").open("wb") as told:
        async with started(*words, environment=environment, err=told) as locust:
            code = await locust.wait()
    if code or not target.exists():
        raise StartError(f"locust ended with {code}, and measured nothing: {told.name} says why")
    return Figures.load(target)
