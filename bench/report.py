"""The table: everything that was measured, as ratios to Octavo, and where Octavo loses.

python -m bench.report            # writes docs/bench.md and docs/bench.svg anew from bench.json
python -m bench.report --readme   # and the short table in README.md
"""

import re
from collections.abc import Callable, Iterable
from itertools import product

import click

from bench import wrk
from bench.contestants import CEILING, OCTAVO
from bench.results import Cell, Results
from bench.server import ROOT
from bench.work import KINDS

OUTPUT = ROOT / "docs"
US = "Octavo"
EVEN = 1.05  # up to this ratio nobody wins: as much lies between two rounds
MARKED = re.compile(r"(<!-- bench -->\n).*?(<!-- /bench -->)", re.DOTALL)

FIGURES: dict[str, tuple[Callable[[Cell], float], bool]] = {  # how it is read; whether more is good
    "requests per second": (lambda cell: cell.rate, True),
    "CPU": (lambda cell: cell.cpu, False),
    "p99": (lambda cell: cell.p99, False),
}


def percentage(errors: float) -> str:
    """Write a share of errors: any share above 0 is seen."""
    return "under 1 %" if 0 < errors < 0.01 else f"{errors:.0%}".replace("%", " %")


def failure(cell: Cell) -> str:
    """Say why a cell has no figure."""
    return f"{percentage(cell.errors)} errors" if cell.rate else "no answer in time"


def outcome(cell: Cell) -> str:
    """Give the rate and the CPU of a cell, or why it has no figure."""
    if cell.errors:
        return f"no figure: {failure(cell)}"
    return f"{cell.rate:,.0f}/s, {cell.cpu:,.0f} us"


def ratio(results: Results, cell: Cell, figure: str = "requests per second") -> float | None:
    """Give how many times as good as Octavo's a figure of a cell is: over 1, Octavo loses.

    None if the cell has errors, or Octavo has some at the same work.
    """
    reference = results.of(US, cell.kind, cell.connections)
    if cell.errors or reference.errors:
        return None
    read, more_is_good = FIGURES[figure]
    theirs, ours = read(cell), read(reference)
    return theirs / ours if more_is_good else ours / theirs


def losses(results: Results, figure: str, connections: int) -> dict[str, list[tuple[str, float]]]:
    """Give for each kind of work which servers beat Octavo at a figure, and by how many times.

    The ceilings are left out: they do no work. A server with errors beats nobody.
    """
    found: dict[str, list[tuple[str, float]]] = {}
    for cell in results.cells:
        if cell.group in {OCTAVO, CEILING} or cell.connections != connections:
            continue
        times = ratio(results, cell, figure)
        if times is not None and times > EVEN:
            found.setdefault(cell.kind, []).append((cell.contestant, times))
    return {kind: sorted(found[kind], key=lambda one: -one[1]) for kind in KINDS if kind in found}


def loses(results: Results) -> str:
    """Say where Octavo has errors, where it loses, and where it is beaten by nobody."""
    failed = [
        f"{cell.kind} at {cell.connections} connections ({failure(cell)})"
        for cell in results.cells
        if cell.contestant == US and cell.errors
    ]
    lines = []
    if failed:
        lines.append(
            f"- **Octavo itself has no figure, so there is no comparison:** {'; '.join(failed)}"
        )
    for figure, connections in product(FIGURES, results.connections):
        by_kind = losses(results, figure, connections)
        told = [
            f"{kind} ({', '.join(f'{name} {times:.1f}' for name, times in who)})"
            for kind, who in by_kind.items()
        ]
        lines.append(f"- **{figure}, {connections} connections:** {'; '.join(told) or 'nowhere'}")
    lighter = sorted(
        (held, name)
        for name, held in results.memory.items()
        if held * EVEN < results.memory[US] and _group(results, name) not in {OCTAVO, CEILING}
    )
    told = [f"{name} {results.memory[US] / held:.1f}" for held, name in lighter]
    lines.append(f"- **memory:** {', '.join(told) or 'nowhere'}")
    return "\n".join(lines)


def _group(results: Results, contestant: str) -> str:
    return next(cell.group for cell in results.cells if cell.contestant == contestant)


def short_table(results: Results, connections: int) -> str:
    """Give requests per second and CPU of all, with the ratio to Octavo's, and memory."""
    rows = [
        [
            name,
            *(_short(results, results.of(name, kind, connections)) for kind in results.kinds),
            f"{results.memory[name]:.0f} MB",
        ]
        for name in results.contestants
    ]
    return table([f"{connections} connections", *results.kinds, "memory"], rows)


def _short(results: Results, cell: Cell) -> str:
    if cell.errors:
        return outcome(cell)
    rate, cpu = (_beside(results, cell, figure) for figure in ("requests per second", "CPU"))
    return f"{cell.rate:,.0f}/s ({rate})<br>{cell.cpu:,.0f} us ({cpu})"


def _beside(results: Results, cell: Cell, figure: str) -> str:
    """Write a figure divided by Octavo's; a dash if Octavo has errors there."""
    reference = results.of(US, cell.kind, cell.connections)
    read, _ = FIGURES[figure]
    return "-" if reference.errors else f"{read(cell) / read(reference):.2f}"


def whole_table(results: Results) -> str:
    """Give every figure of every contestant at every kind of work."""
    rows = [
        [
            kind,
            f"{connections}",
            name,
            percentage(cell.errors),
            *(["-"] * 6 if cell.errors else _figures(results, cell)),
            f"{cell.busy:.0%}",
            f"{results.memory[name]:.0f}",
        ]
        for kind, connections, name in product(
            results.kinds, results.connections, results.contestants
        )
        for cell in [results.of(name, kind, connections)]
    ]
    head = ["work", "connections", "server", "errors", "requests/s", "to Octavo"]
    return table([*head, "CPU us", "to Octavo", "p50 ms", "p99 ms", "core", "MB"], rows)


def _figures(results: Results, cell: Cell) -> list[str]:
    return [
        f"{cell.rate:,.0f}",
        _beside(results, cell, "requests per second"),
        f"{cell.cpu:,.0f}",
        _beside(results, cell, "CPU"),
        f"{cell.p50:.1f}",
        f"{cell.p99:.1f}",
    ]


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """Write a table in Markdown, numbers to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def conditions(results: Results) -> str:
    """Say when, where and how it was measured."""
    about = results.machine
    return (
        f"Measured on {about['date']}: {about['machine']}, {about['kernel']}, "
        f"{about['interpreter']}; {about['servers']}. {results.books:,} books; each kind of work "
        f"over {' and over '.join(map(str, results.connections))} connections, for "
        f"{results.seconds} s in each of {results.rounds} round(s), in which the servers take "
        "turns. An error is a status of 400 or more, a broken connection, or an answer after "
        f"more than {wrk.TIMEOUT_SECONDS} s. The best round without errors counts; a server with "
        "errors in every round has no figure, and its share of errors stands there instead. Each "
        "server is one process, pinned to a core; PostgreSQL, Redis and wrk share the others. "
        "Octavo runs with its default settings for production, among them load shedding, metrics, "
        "request ids, all headers, and a line of the access log for each request; only the rate "
        "limits are raised. The peers write no access log: *Octavo, no access log* is Octavo with "
        "`ACCESS_LOG_SAMPLE=0`, to be compared with them. As documented, pages of the peers are "
        "read from PostgreSQL each time, since their totals have to be exact; tuned, they are kept."
    )


def summary(results: Results) -> str:
    """Give the short tables and where Octavo loses: what is printed, and what README shows."""
    tables = "\n\n".join(short_table(results, number) for number in results.connections)
    return (
        f"{conditions(results)} Requests per second, and CPU of the server (user and system) per "
        f"request; in brackets the ratio to Octavo. Memory is the most of the whole run.\n\n"
        f"{tables}\n\n"
        f"Where Octavo loses today, to whom, and how many times:\n\n{loses(results)}\n"
    )


def page(results: Results) -> str:
    """Give docs/bench.md."""
    kinds = "\n".join(f"- **{kind}:** {told}" for kind, told in KINDS.items())
    return (
        "# Octavo beside its peers\n\n"
        "Made by `make bench`. Who is measured, and how each is written: "
        "[`bench/peers/__init__.py`](../bench/peers/__init__.py); that all do the same work: "
        "[`bench/same.py`](../bench/same.py), which ends the run if one does not.\n\n"
        "![requests per second](bench.svg)\n\n"
        f"{summary(results)}\n## The work\n\n{kinds}\n\n"
        "A thousand callers ask, told apart by `X-Forwarded-For`; every request is counted against "
        "the limit of its caller, which is so high that it refuses none. Everybody has the same "
        "database, anew in each round, and an empty Redis, which is warmed for half a second. The "
        "peers keep totals and pages exact as long as Redis is well, and their limits are counts "
        "of a window; Octavo is exact in both, also when Redis is not well, and spends time on "
        "it.\n\n"
        "## Everything\n\n"
        "CPU is the server's, user and system, per request; *core* is the part of its core that "
        "the server used: where it is far from 100 %, something else was slower. Memory is the "
        "most that all of its processes held.\n\n"
        f"{whole_table(results)}\n\n## Versions\n\n{results.machine['packages']}\n"
    )


def in_readme(readme: str, results: Results) -> str:
    """Put the short table between README's two marks. Raises ValueError if they are not there."""
    if not MARKED.search(readme):
        raise ValueError("README.md has no <!-- bench --> and <!-- /bench -->")
    return MARKED.sub(lambda found: found[1] + summary(results) + found[2], readme)


def write(results: Results) -> str:
    """Write the page and the picture, and give what is to be printed."""
    from bench.plot import draw  # matplotlib is not among what the tests need

    (OUTPUT / "bench.md").write_text(page(results), encoding="utf-8")
    draw(results, OUTPUT / "bench.svg")
    return f"{summary(results)}\nAll of it is in docs/bench.md and docs/bench.svg"


@click.command()
@click.option("--readme", is_flag=True, help="Write the short table into README.md as well.")
def main(readme: bool) -> None:
    """Write docs/bench.md and docs/bench.svg anew from docs/bench.json."""
    results = Results.load(OUTPUT / "bench.json")
    click.echo(write(results))
    if readme:
        path = ROOT / "README.md"
        path.write_text(in_readme(path.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    main()
