"""The cost of a read at 10,000 and at 1,000,000 books: CPU of the server, and of PostgreSQL.

    python -m bench.sizes --sizes 10000,100000,1000000

Measures Octavo alone: from the cache, and with the cache turned off, so that every read is SQL. The
exit code is 1 if the cost of a read grows with the catalogue. The script needs some minutes to
create a million books.
"""

import sys
import tempfile
from pathlib import Path

import click
import psutil

from bench import machine, wrk
from bench.contestants import ALL
from bench.report import OUTPUT, percentage, table
from bench.server import DidNotStartError, Server, cpu_seconds, pin_everything_else, serving
from bench.stage import TEMPLATE, Facts, Stage, free_port, running_stage
from bench.work import CALLERS, cursor_path, get, item_path

WARM_SECONDS = 0.5
CONNECTIONS = wrk.CONNECTIONS[0]
TURNS = 3  # of each read; the best of each figure counts, because other load only adds time
GROWTH = 1.5  # allowed ratio of costs, largest to smallest catalogue; less is noise
READS = ("item", "first page", "deep cursor", "total")
CACHE_SETTINGS = {
    "from the cache": {},
    "without a cache": {
        "CACHE_ITEM_SECONDS": "0",
        "CACHE_COUNT_SECONDS": "0",
        "CACHE_PAGES": "none",
    },
}
Cost = tuple[float, float, float]  # requests per second; CPU microseconds: server, PostgreSQL
Costs = dict[tuple[str, str], list[Cost]]


def path_of(read: str, facts: Facts, number: int) -> str:
    """Return the path of a read."""
    match read:
        case "item":
            return item_path(facts, number)
        case "first page":
            return "/api/books"
        case "deep cursor":
            return cursor_path(facts, number)
        case _:
            return "/api/books?per_page=1"


def measure(
    stage: Stage, server: Server, read: str, facts: Facts, seconds: int, folder: Path
) -> Cost:
    """Measure a read once; return its cost. Raises NotMeasuredError if a request failed."""
    requests = folder / "requests"
    wrk.write_requests([get(path_of(read, facts, n), n) for n in range(CALLERS)], requests)
    wrk.warm(server.url, requests, WARM_SECONDS, CONNECTIONS)
    server.rest()
    postgresql = psutil.Process(stage.postgresql_process)
    before = server.cpu_seconds(), cpu_seconds(postgresql)
    load = wrk.send(server.url, requests, seconds, CONNECTIONS)
    after = server.cpu_seconds(), cpu_seconds(postgresql)
    if load.errors:
        raise wrk.NotMeasuredError(f"{read}: {percentage(load.errors)} of the requests failed")
    spent = [(b - a) / load.requests * 1e6 for a, b in zip(before, after, strict=True)]
    return load.rate, spent[0], spent[1]


def visit(stage: Stage, facts: Facts, seconds: int, costs: Costs) -> None:
    """Measure all reads of a catalogue, and add their costs to `costs`."""
    for cache, settings in CACHE_SETTINGS.items():
        port = free_port()
        environment = stage.environment(TEMPLATE, port) | settings
        command = ALL[0].command_on(port)
        with (
            serving("Octavo", command, port, environment, "/health/ready") as server,
            tempfile.TemporaryDirectory() as folder,
        ):
            turns = [
                {read: measure(stage, server, read, facts, seconds, Path(folder)) for read in READS}
                for _ in range(TURNS)
            ]
            for read in READS:
                rate, ours, sql = best([turn[read] for turn in turns])
                costs.setdefault((read, cache), []).append((rate, ours, sql))
                click.echo(
                    f"{facts.books:,} books, {read} {cache}: {rate:,.0f}/s, "
                    f"{ours:.0f} us, PostgreSQL {sql:.0f} us",
                    err=True,
                )


def best(turns: list[Cost]) -> Cost:
    """Return the best value of each figure."""
    rates, ours, sql = zip(*turns, strict=True)
    return max(rates), min(ours), min(sql)


def growth(costs: list[Cost]) -> float:
    """Return the ratio of the cost in the largest catalogue to the cost in the smallest."""
    (_, ours, sql), (_, ours_then, sql_then) = costs[0], costs[-1]
    return (ours_then + sql_then) / (ours + sql)


def page(sizes: list[int], all_costs: Costs, about: dict[str, str]) -> str:
    """Return the text of docs/bench-sizes.md."""
    rows = [
        [
            f"{read}, {cache}",
            *(f"{rate:,.0f}/s: {ours:,.0f} + {sql:,.0f} us" for rate, ours, sql in costs),
            f"{growth(costs):.2f}",
        ]
        for (read, cache), costs in all_costs.items()
    ]
    head = ["books", *(f"{size:,}" for size in sizes), "growth"]
    return (
        "# The cost of a read as the catalogue grows\n\n"
        f"Made by `make bench-sizes` on {about['date']}: {about['machine']}, {about['kernel']}, "
        f"{about['interpreter']}; {about['servers']}. Octavo runs alone with its default "
        f"settings, over {CONNECTIONS} connections, without an error. Each cell shows requests per "
        "second, and the CPU time per request of the server + of PostgreSQL, the best of "
        f"{TURNS} turns. Growth is the ratio of the summed CPU time in the largest catalogue to "
        f"that in the smallest; a growth above {GROWTH} is a failure.\n\n{table(head, rows)}\n"
    )


def _sizes(_: click.Context, __: click.Parameter, value: str) -> list[int]:
    try:
        sizes = sorted({int(part) for part in value.split(",")})
    except ValueError:
        raise click.BadParameter("expected numbers, for example 10000,100000") from None
    if len(sizes) < 2 or sizes[0] < 1_000:
        raise click.BadParameter("expected two or more sizes, each 1000 or more")
    return sizes


@click.command()
@click.option("--sizes", callback=_sizes, default="10000,100000,1000000", show_default=True)
@click.option("--seconds", type=click.IntRange(1, 60), default=1, show_default=True)
def main(sizes: list[int], seconds: int) -> None:
    """Measure the cost of reads at each size. The sizes follow each other in the same database."""
    wrk.require_wrk()
    pin_everything_else()
    all_costs: Costs = {}
    try:
        with running_stage() as stage:
            for size in sizes:
                visit(stage, stage.prepare(size), seconds, all_costs)
            about = machine.describe(stage.postgresql_version(), stage.redis_version())
    except (DidNotStartError, wrk.NotMeasuredError) as error:
        sys.exit(str(error))
    text = page(sizes, all_costs, about)
    (OUTPUT / "bench-sizes.md").write_text(text, encoding="utf-8")
    click.echo(f"\n{text}")
    grown = [
        f"{read} {cache}" for (read, cache), costs in all_costs.items() if growth(costs) > GROWTH
    ]
    if grown:
        sys.exit(f"The cost grows with the catalogue: {', '.join(grown)}")


if __name__ == "__main__":
    main()
