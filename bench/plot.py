"""The chart: requests per second of every server at every kind of work and connections."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bench.contestants import CEILING, DOCUMENTED, OCTAVO, TUNED
from bench.report import outcome
from bench.results import Cell, Results

COLOURS = {OCTAVO: "#1f5fa8", DOCUMENTED: "#e0a458", TUNED: "#b5532a", CEILING: "#b9bec4"}
COLUMNS = 4
SHADES = (1.0, 0.5)  # opacity of the bars, for each number of connections


def draw(results: Results, path: Path) -> None:
    """Draw a panel for each kind of work. The same results give the same bytes."""
    matplotlib.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "octavo", "font.size": 8, "font.family": "sans"}
    )
    rows = -(-(len(results.kinds) + 1) // COLUMNS)
    figure = Figure(figsize=(12, 4.5 * rows), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    names = results.contestants
    for panel, kind in zip(panels, results.kinds, strict=False):
        rates = [cell.rate for cell in results.cells if cell.kind == kind and not cell.errors]
        least, most = min(rates, default=1) / 2, max(rates, default=1) * 6
        height = 0.8 / len(results.connections)
        for series, connections in enumerate(results.connections):
            measured = results.measured(kind)
            cells = [results.of(name, kind, connections) for name in measured]
            bars = panel.barh(
                [
                    names.index(name) + height * (series - (len(results.connections) - 1) / 2)
                    for name in measured
                ],
                [least if cell.errors else cell.rate for cell in cells],
                height,
                color=[(COLOURS[cell.group], SHADES[series]) for cell in cells],
            )
            panel.bar_label(bars, [_label(cell) for cell in cells], padding=2, fontsize=6)
        panel.set_title(kind, loc="left", fontweight="bold")
        panel.set_xscale("log")
        panel.set_xlim(least, most)
        panel.set_ylim(-0.5, len(names) - 0.5)
        panel.minorticks_off()
        panel.invert_yaxis()
        panel.spines[["top", "right"]].set_visible(False)
        is_first = panel in panels[::COLUMNS]
        panel.set_yticks(range(len(names)), names if is_first else [""] * len(names))
    for panel in panels[len(results.kinds) :]:
        panel.set_axis_off()
    panels[-1].legend(
        handles=[
            *(Patch(color=colour, label=group) for group, colour in COLOURS.items()),
            *(
                Patch(color=("black", SHADES[series]), label=f"{connections} connections")
                for series, connections in enumerate(results.connections)
            ),
        ],
        loc="center",
        frameon=False,
    )
    about = results.machine
    figure.suptitle(
        f"Requests per second on one core, logarithmic ({about['date']}, {about['machine']}, "
        f"{results.books:,} books)",
        x=0.01,
        ha="left",
    )
    figure.savefig(path, format="svg", metadata={"Date": None})


def _label(cell: Cell) -> str:
    return outcome(cell) if cell.errors else f"{cell.rate:,.0f}"
