"""The report of a run: all figures, their ratios to Octavo, and where Octavo loses.

python -m bench.report   # reads docs/bench.json; writes docs/benchmark.md, docs/bench.svg, README
"""

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import product

import click

from bench import wrk
from bench.contestants import CEILING, OCTAVO, TUNED
from bench.results import Cell, Results
from bench.server import ROOT
from bench.work import KINDS

OUTPUT = ROOT / "docs"
US = "Octavo"
EVEN = 1.05  # up to this ratio there is no winner: two rounds differ as much
HEADLINE = {  # the kinds of work that README.md shows
    "item": "a cached book",
    "page": "a cached page",
    "filtered": "a list that is not cached",
    "create": "a new book",
}
AIMS = {"bulk": 1.2, "batch": 2.0, "search": 1.0, "gzip": 2.0}  # times the fastest tuned peer
MARKED = re.compile(r"(<!-- bench -->\n).*?(<!-- /bench -->)", re.DOTALL)

FIGURES: dict[
    str, tuple[Callable[[Cell], float], bool]
] = {  # the function that reads it; whether more is better
    "requests per second": (lambda cell: cell.rate, True),
    "CPU": (lambda cell: cell.cpu, False),
    "p99": (lambda cell: cell.p99, False),
}


def percentage(errors: float) -> str:
    """Write a share of errors: a share above 0 is never shown as 0 %."""
    return "under 1 %" if 0 < errors < 0.01 else f"{errors:.0%}".replace("%", " %")


def failure(cell: Cell) -> str:
    """Return the reason why a cell has no figure."""
    return f"{percentage(cell.errors)} errors" if cell.rate else "no response in time"


def outcome(cell: Cell) -> str:
    """Return the rate and the CPU of a cell, or why it has no figure."""
    if cell.errors:
        return f"no figure: {failure(cell)}"
    return f"{cell.rate:,.0f}/s, {cell.cpu:,.0f} us"


def ratio(results: Results, cell: Cell, figure: str = "requests per second") -> float | None:
    """Return the ratio of a cell's figure to Octavo's; above 1 Octavo loses.

    None if the cell has errors, or if Octavo has errors at the same work.
    """
    reference = results.of(US, cell.kind, cell.connections)
    if cell.errors or reference.errors:
        return None
    read, more_is_better = FIGURES[figure]
    theirs, ours = read(cell), read(reference)
    return theirs / ours if more_is_better else ours / theirs


def losses(results: Results, figure: str, connections: int) -> dict[str, list[tuple[str, float]]]:
    """Return, for each kind of work, the servers that beat Octavo at a figure, and the ratios.

    The ceilings are left out, because they do no work. A server with errors does not count.
    """
    winners: dict[str, list[tuple[str, float]]] = {}
    for cell in results.cells:
        if cell.group in {OCTAVO, CEILING} or cell.connections != connections:
            continue
        times = ratio(results, cell, figure)
        if times is not None and times > EVEN:
            winners.setdefault(cell.kind, []).append((cell.contestant, times))
    return {
        kind: sorted(winners[kind], key=lambda winner: -winner[1])
        for kind in KINDS
        if kind in winners
    }


def loses(results: Results) -> str:
    """List where Octavo has errors, where it loses, and at which figures it loses nowhere."""
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
        kinds = [
            f"{kind} ({', '.join(f'{name} {times:.1f}' for name, times in winners)})"
            for kind, winners in by_kind.items()
        ]
        lines.append(f"- **{figure}, {connections} connections:** {'; '.join(kinds) or 'nowhere'}")
    lighter = sorted(
        (held, name)
        for name, held in results.memory.items()
        if held * EVEN < results.memory[US] and _group(results, name) not in {OCTAVO, CEILING}
    )
    servers = [f"{name} {results.memory[US] / held:.1f}" for held, name in lighter]
    lines.append(f"- **memory:** {', '.join(servers) or 'nowhere'}")
    return "\n".join(lines)


def _group(results: Results, contestant: str) -> str:
    return next(cell.group for cell in results.cells if cell.contestant == contestant)


def short_tables(results: Results, connections: int) -> str:
    """Return a table for all kinds of work that the same servers did."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for kind in results.kinds:
        groups.setdefault(tuple(results.measured(kind)), []).append(kind)
    return "\n\n".join(
        short_table(results, connections, names, kinds) for names, kinds in groups.items()
    )


def short_table(
    results: Results, connections: int, names: Iterable[str], kinds: Sequence[str]
) -> str:
    """Return the table of requests per second, CPU and memory, with the ratios to Octavo."""
    rows = [
        [
            name,
            *(_short(results, results.of(name, kind, connections)) for kind in kinds),
            f"{results.memory[name]:.0f} MB",
        ]
        for name in names
    ]
    return table([f"{connections} connections", *kinds, "memory"], rows)


def _short(results: Results, cell: Cell) -> str:
    if cell.errors:
        return outcome(cell)
    rate, cpu = (_beside(results, cell, figure) for figure in ("requests per second", "CPU"))
    return f"{cell.rate:,.0f}/s ({rate})<br>{cell.cpu:,.0f} us ({cpu})"


def _beside(results: Results, cell: Cell, figure: str) -> str:
    """Return a figure divided by Octavo's; a dash if Octavo has errors at this work."""
    reference = results.of(US, cell.kind, cell.connections)
    read, _ = FIGURES[figure]
    return "-" if reference.errors else f"{read(cell) / read(reference):.2f}"


def whole_table(results: Results) -> str:
    """Return the table of all figures: every server, every kind of work."""
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
        for kind, connections in product(results.kinds, results.connections)
        for name in results.measured(kind)
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
    """Return a table in Markdown, with the numbers right-aligned."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def conditions(results: Results) -> str:
    """Describe when, where and how the run was measured."""
    about = results.machine
    return (
        f"Measured on {about['date']}: {about['machine']}, {about['kernel']}, "
        f"{about['interpreter']}; {about['servers']}. The catalogue has {results.books:,} books. "
        f"Each kind of work ran over {' and over '.join(map(str, results.connections))} "
        f"connections, for {results.seconds} s in each of {results.rounds} round(s). In a round "
        "the servers run one after the other. An error is a status of 400 or more, a broken "
        f"connection, or a response after more than {wrk.TIMEOUT_SECONDS} s. The tables show the "
        "best round without errors. A server with errors in every round has no figure; the tables "
        "show its share of errors instead. Each server is one process, pinned to one core; "
        "PostgreSQL, Redis and wrk share the other cores. Octavo runs with its default settings "
        "for production: load shedding, metrics, request ids, all headers, and one line of the "
        "access log for each request. Only the rate limits are raised. The peers write no access "
        "log; compare them with *Octavo, no access log*, which is Octavo with "
        "`ACCESS_LOG_SAMPLE=0`. The peers as documented read each page from PostgreSQL, because "
        "their totals must be exact; the tuned peers cache pages."
    )


def lead(results: Results, kind: str, connections: int) -> float | None:
    """Return the ratio of Octavo's rate to that of the fastest tuned peer; None without a figure.

    Unlike `ratio`, above 1 Octavo wins.
    """
    ours = results.of(US, kind, connections)
    rates = [
        cell.rate
        for cell in results.cells
        if (cell.group, cell.kind, cell.connections) == (TUNED, kind, connections)
        and not cell.errors
    ]
    return ours.rate / max(rates) if rates and not ours.errors else None


def aims(results: Results) -> str:
    """Return a table of the aims: the ratio to the fastest tuned peer, and whether it is met."""
    rows = []
    for kind in AIMS.keys() & results.kinds:
        times = [lead(results, kind, connections) for connections in results.connections]
        cells = ["-" if each is None else _judged(each, AIMS[kind]) for each in times]
        rows.append([kind, f"{AIMS[kind]:.1f}", *cells])
    rows.sort(key=lambda row: results.kinds.index(row[0]))
    return table(
        ["work", "aim", *(f"{connections} connections" for connections in results.connections)],
        rows,
    )


def _judged(times: float, aim: float) -> str:
    return f"{times:.2f}" if times >= aim else f"{times:.2f} (missed)"


def headline(results: Results) -> str:
    """Return README's text: a few rates of Octavo, and their ratios to the fastest tuned peer."""
    connections = results.connections[0]
    figures = []
    for kind, text in HEADLINE.items():
        if kind not in results.kinds:
            continue
        ours = results.of(US, kind, connections)
        if ours.errors:
            figures.append(f"{text} no figure")
        else:
            times = lead(results, kind, connections)
            best = "" if times is None else f" ({times:.2f})"
            figures.append(f"{text} **{ours.rate:,.0f}**{best}")
    return (
        f"Requests per second of Octavo with its default settings, on one core over {connections} "
        "connections, and in brackets the ratio to the fastest tuned peer (below 1 the peer is "
        f"faster): {', '.join(figures)}. Measured on {results.machine['date']}; the peers write "
        "no access log.\n"
    )


def summary(results: Results) -> str:
    """Return the text to print: the short tables, and where Octavo loses."""
    tables = "\n\n".join(short_tables(results, number) for number in results.connections)
    return (
        f"{conditions(results)}\n\nEach cell shows requests per second, and the CPU time of the "
        "server (user and system) per request. The number in brackets is the ratio to Octavo. "
        f"Memory is the maximum of the whole run.\n\n{tables}\n\n"
        "## Where Octavo loses\n\nFor each figure: the kind of work, the peers that are better, "
        f"and by what factor.\n\n{loses(results)}\n{_aimed(results)}"
    )


def _aimed(results: Results) -> str:
    """Return the section about the aims, if work with an aim was measured."""
    if AIMS.keys().isdisjoint(results.kinds):
        return ""
    return (
        "\n## Aims\n\n"
        "Requests per second of Octavo, divided by those of the fastest tuned peer.\n\n"
        f"{aims(results)}\n"
    )


def page(results: Results) -> str:
    """Return the text of docs/benchmark.md."""
    kinds = "\n".join(f"- **{kind}:** {KINDS[kind]}" for kind in results.kinds)
    return (
        "# Benchmark\n\n"
        "For readers who compare Octavo with other frameworks. `make bench` measures, and writes "
        "this page, in about half an hour. It needs [wrk](https://github.com/wg/wrk) (Debian: "
        "`apt install wrk`) and brings everything else along.\n\n"
        "![Requests per second](bench.svg)\n\n"
        "## Results\n\n"
        f"{summary(results)}\n"
        "## The servers\n\n"
        "- *As documented* is the peer as its documentation writes it; for Flask, the guide.\n"
        "- *Tuned* is the peer as an expert writes it: one call to Redis for limit and response, "
        "cached bytes that are sent unchanged, no ORM.\n"
        "- The *bare* applications repeat the responses of Octavo and do no work.\n"
        "- *Sockets and Redis alone* is a request without HTTP parsing, caller and response: the "
        "floor.\n\n"
        "[`bench/peers/__init__.py`](../bench/peers/__init__.py) describes each peer. All peers "
        "do the same work on the same tables. [`bench/same.py`](../bench/same.py) checks that "
        "before the measurement, and ends the run if a peer does other work.\n\n"
        f"## The work\n\n{kinds}\n\n"
        "The requests come from 1,000 clients with different addresses (`X-Forwarded-For`). Each "
        "server counts every request against the limit of its client; the limit is so high that "
        "it refuses none. Each server starts with an equal database, new in each round, and an "
        "empty Redis. The cache is warmed for half a second. The peers keep totals and pages "
        "exact only while Redis works, and their limits count fixed windows. Octavo is exact in "
        "both, also when Redis fails, and spends time on that. Octavo also counts the views of "
        "each book; the peers do not.\n\n"
        "The peers as documented and the ceilings do the first seven kinds of work only. A tuned "
        "peer writes an idempotency record in the transaction of its book. It compresses with the "
        "middleware of its framework, each time anew (Flask: with `gzip`). Its search is one "
        "statement, and has no second try with similar words.\n\n"
        "## Other measurements\n\n"
        "- `make bench-sizes` measures what reads cost as the catalogue grows, to a million "
        "books: [bench-sizes.md](bench-sizes.md). It was measured on another day; compare its "
        "columns with each other, and not with this page.\n"
        "- `make bench-parts` measures what a limit and a cached read cost.\n"
        "- `python -m bench.plans` shows the plan of PostgreSQL for every list.\n"
        "- `python -m bench.turns --before ../octavo-before` compares two checkouts of Octavo. "
        "They run in turns.\n\n"
        "## All figures\n\n"
        "CPU is the CPU time of the server (user and system) per request, in microseconds. *Core* "
        "is the share of its core that the server used; far below 100 %, another part of the "
        "system was the bottleneck. Memory is the maximum of all processes of the server.\n\n"
        f"{whole_table(results)}\n\n## Versions\n\n{results.machine['packages']}\n"
    )


def in_readme(readme: str, results: Results) -> str:
    """Replace the block between README's two marks. Raises ValueError if they are missing."""
    if not MARKED.search(readme):
        raise ValueError("README.md has no <!-- bench --> and <!-- /bench -->")
    return MARKED.sub(lambda block: block[1] + headline(results) + block[2], readme)


def write(results: Results) -> str:
    """Write the page, the chart, and README's block; return the text to print."""
    from bench.plot import draw  # the tests run without matplotlib

    draw(results, OUTPUT / "bench.svg")
    (OUTPUT / "benchmark.md").write_text(page(results), encoding="utf-8")
    readme = ROOT / "README.md"
    readme.write_text(in_readme(readme.read_text(encoding="utf-8"), results), encoding="utf-8")
    return f"{summary(results)}\nThe full report is docs/benchmark.md, the chart docs/bench.svg"


@click.command()
def main() -> None:
    """Write docs/benchmark.md, docs/bench.svg and README's block from docs/bench.json."""
    click.echo(write(Results.load(OUTPUT / "bench.json")))


if __name__ == "__main__":
    main()
