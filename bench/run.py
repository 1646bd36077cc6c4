"""Benchmark Octavo and its peers: requests per second, CPU, latency and memory, in one run.

    python -m bench.run --books 10000 --seconds 2 --rounds 2

Needs wrk, and the packages of requirements-bench.lock. One server runs at a time, alone on one
core; PostgreSQL, Redis and wrk use the other cores. The best round without errors counts.
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import click

from bench import machine, wrk
from bench.contestants import ALL, Contestant
from bench.report import OUTPUT, outcome, write
from bench.results import Cell, Results, best
from bench.same import ResponseChecker, UnequalWorkError, save
from bench.server import DidNotStartError, Server, pin_everything_else, serving
from bench.stage import Facts, Stage, free_port, running_stage
from bench.work import KINDS, SENT_ONCE, item_path, requests_of

WARM_SECONDS = 0.5


class Run:
    """One run over all servers, round by round."""

    def __init__(
        self, stage: Stage, facts: Facts, seconds: int, kinds: Sequence[str], folder: Path
    ) -> None:
        self._stage = stage
        self._facts = facts
        self._seconds = seconds
        self._kinds = kinds
        self._requests = folder / "requests"
        self._responses = folder / "responses"
        self._reference: dict[str, Any] = {}
        self._examined: set[str] = set()
        self.memory: dict[str, float] = {}

    def record_octavo(self) -> None:
        """Record Octavo's responses: peers are compared with them, and the ceilings repeat them."""
        with self._served(ALL[0]) as server:
            examiner = ResponseChecker("Octavo", server.url, self._facts)
            self._reference = save(examiner.responses(KINDS), self._responses)
            examiner.close()

    def visit(self, contestant: Contestant) -> Iterator[Cell]:
        """Measure one server at every kind of work, with a new database and an empty Redis."""
        with self._served(contestant) as server:
            examiner = ResponseChecker(contestant.name, server.url, self._facts)
            if contestant.does_work and contestant.name not in self._examined:
                examiner.compare(self._reference, contestant.kinds)
                self._examined.add(contestant.name)
            tags = examiner.tags()
            examiner.close()
            kinds = [kind for kind in self._kinds if kind in contestant.kinds]
            for kind, series in product(kinds, range(len(wrk.CONNECTIONS))):
                yield self._measure(contestant, server, kind, tags, series)
            held = server.peak_bytes() / 1e6
            self.memory[contestant.name] = max(held, self.memory.get(contestant.name, 0))

    @contextmanager
    def _served(self, contestant: Contestant) -> Iterator[Server]:
        port = free_port()
        environment = self._stage.environment(self._stage.renew(), port)
        environment |= contestant.environment
        environment["RESPONSES"] = str(self._responses) if self._reference else ""
        command, path = contestant.command_on(port), item_path(self._facts, 0)
        with serving(contestant.name, command, port, environment, path) as server:
            yield server

    def _measure(
        self, contestant: Contestant, server: Server, kind: str, tags: dict[str, str], series: int
    ) -> Cell:
        connections = wrk.CONNECTIONS[series]
        warming = requests_of(kind, self._facts, tags, self._seconds, warming=True)
        wrk.write_requests(warming, self._requests)
        # Few connections, so that few requests still wait when the measurement begins.
        wrk.warm(server.url, self._requests, WARM_SECONDS, wrk.CONNECTIONS[0])
        if kind in SENT_ONCE:
            requests = requests_of(kind, self._facts, tags, self._seconds, series=series)
            wrk.write_requests(requests, self._requests)
        server.rest()
        before = server.cpu_seconds()
        load = wrk.send(server.url, self._requests, self._seconds, connections)
        spent = server.cpu_seconds() - before
        return Cell(
            contestant.name,
            contestant.group,
            kind,
            connections,
            errors=load.errors,
            rate=load.rate,
            cpu=spent / max(1, load.requests) * 1e6,
            p50=load.p50,
            p99=load.p99,
            busy=spent / load.seconds,
        )


def rotated(contestants: list[Contestant], number: int) -> list[Contestant]:
    """Return the order of the servers in a round: each round starts with another server."""
    first = number * (len(contestants) // 2 + 1) % len(contestants)
    return contestants[first:] + contestants[:first]


def measure(
    books: int, seconds: int, rounds: int, contestants: list[Contestant], kinds: Sequence[str]
) -> Results:
    """Measure all servers, and print the progress."""
    with running_stage() as stage, tempfile.TemporaryDirectory() as folder:
        run = Run(stage, stage.prepare(books), seconds, kinds, Path(folder))
        run.record_octavo()
        cells: list[Cell] = []
        done = sum(len({*kinds} & {*contestant.kinds}) for contestant in contestants)
        steps = rounds * done * len(wrk.CONNECTIONS)
        for number in range(rounds):
            for contestant in rotated(contestants, number):
                for cell in run.visit(contestant):
                    cells.append(cell)
                    click.echo(
                        f"[{len(cells):3}/{steps}] round {number + 1}: {cell.contestant}, "
                        f"{cell.kind}, {cell.connections} connections: {outcome(cell)}",
                        err=True,
                    )
        about = machine.describe(stage.postgresql_version(), stage.redis_version())
    order = list(product((each.name for each in contestants), KINDS, wrk.CONNECTIONS))
    kept = sorted(best(cells), key=lambda cell: order.index(cell.place))
    return Results(books, seconds, rounds, about, kept, run.memory)


@click.command()
@click.option("--books", type=click.IntRange(1_000), default=10_000, show_default=True)
@click.option("--seconds", type=click.IntRange(1, 60), default=2, show_default=True)
@click.option("--rounds", type=click.IntRange(1, 20), default=2, show_default=True)
@click.option(
    "--only", multiple=True, help="Only servers whose name contains this text; repeatable."
)
@click.option(
    "--kind", "kinds", type=click.Choice([*KINDS]), multiple=True, default=[*KINDS],
    help="Only this kind of work; repeatable.",
)  # fmt: skip
def main(
    books: int, seconds: int, rounds: int, only: tuple[str, ...], kinds: tuple[str, ...]
) -> None:
    """Measure Octavo and its peers: SECONDS for each kind of work, connections and round."""
    wrk.require_wrk()
    contestants = [
        contestant
        for contestant in ALL
        if not only or any(part.lower() in contestant.name.lower() for part in only)
    ]
    if not contestants:
        sys.exit(f"No server has such a name: {', '.join(contestant.name for contestant in ALL)}")
    pin_everything_else()
    try:
        results = measure(books, seconds, rounds, contestants, kinds)
    except (DidNotStartError, UnequalWorkError, wrk.NotMeasuredError) as error:
        sys.exit(str(error))
    if only or kinds != tuple(KINDS):
        return
    results.save(OUTPUT / "bench.json")
    click.echo(write(results))


if __name__ == "__main__":
    main()
