"""The picture: requests per second of every server at every kind of work."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from bench.contestants import CEILING, DOCUMENTED, OCTAVO, TUNED
from bench.results import Results

COLOURS = {OCTAVO: "#1f5fa8", DOCUMENTED: "#e0a458", TUNED: "#b5532a", CEILING: "#b9bec4"}
COLUMNS = 4


def draw(results: Results, path: Path) -> None:
    """Draw a panel for each kind of work. The same results make the same file."""
    matplotlib.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "octavo", "font.size": 8, "font.family": "sans"}
    )
    rows = -(-(len(results.kinds) + 1) // COLUMNS)
    figure = Figure(figsize=(12, 2.9 * rows), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    names = results.contestants
    for panel, kind in zip(panels, results.kinds, strict=False):
        cells = [results.of(name, kind) for name in names]
        bars = panel.barh(
            range(len(names)),
            [cell.rate for cell in cells],
            color=[COLOURS[cell.group] for cell in cells],
        )
        panel.bar_label(bars, [f"{cell.rate:,.0f}" for cell in cells], padding=2, fontsize=7)
        panel.set_title(kind, loc="left", fontweight="bold")
        panel.set_xscale("log")
        panel.set_xlim(min(cell.rate for cell in cells) / 2, max(c.rate for c in cells) * 6)
        panel.minorticks_off()
        panel.invert_yaxis()
        panel.spines[["top", "right"]].set_visible(False)
        is_first = panel in panels[::COLUMNS]
        panel.set_yticks(range(len(names)), names if is_first else [""] * len(names))
    for panel in panels[len(results.kinds) :]:
        panel.set_axis_off()
    panels[-1].legend(
        handles=[matplotlib.patches.Patch(color=c, label=g) for g, c in COLOURS.items()],
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
