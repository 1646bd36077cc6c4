"""Whether what was measured is what was allowed."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from loadtest.objectives import Objective, Objectives
from loadtest.promises import KEPT, TOLD

STALE = "stale read"  # as a failure is called
BUSY = 0.8  # of a core: locust waits for itself, and takes it for the server


class Measured(BaseModel):
    """What was seen of one kind of request. failures: how many, by what they are called."""

    model_config = ConfigDict(frozen=True)

    requests: int
    p95_ms: float
    p99_ms: float
    failures: dict[str, int] = {}

    @property
    def failed(self) -> int:
        """How many failed."""
        return sum(self.failures.values())


class Figures(BaseModel):
    """What locust saw in one run. core: the part of one that it used itself."""

    model_config = ConfigDict(frozen=True)

    seconds: float
    users: int
    core: float
    requests: dict[str, Measured]
    promises: dict[str, int] = {}

    @classmethod
    def load(cls, path: Path) -> "Figures":
        """Read what `save` wrote."""
        return cls.model_validate_json(path.read_bytes())

    def save(self, path: Path) -> None:
        """Write them down."""
        path.write_text(self.model_dump_json(indent=1))


NOTHING = Measured(requests=0, p95_ms=0, p99_ms=0)


@dataclass(frozen=True)
class Row:
    """One kind of request: measured, allowed, and what is wrong with it."""

    name: str
    measured: Measured
    allowed: Objective | None
    wrong: list[str]


@dataclass(frozen=True)
class Verdict:
    """Everything that was judged. `wrong` concerns the run as a whole."""

    figures: Figures
    rows: list[Row]
    wrong: list[str] = field(default_factory=list)

    @property
    def kept(self) -> bool:
        """Whether all is as it should be."""
        return not self.wrong and not any(row.wrong for row in self.rows)


def judge(allowed: Objectives, figures: Figures) -> Verdict:
    """Hold figures to objectives. What has an objective and was not asked for is broken, too."""
    names = [*allowed.requests, *sorted(figures.requests.keys() - allowed.requests.keys())]
    rows = []
    for name in names:
        measured, objective = figures.requests.get(name, NOTHING), allowed.requests.get(name)
        rows.append(Row(name, measured, objective, list(_wrong(measured, objective))))
    wrong = []
    stale = sum(measured.failures.get(STALE, 0) for measured in figures.requests.values())
    if stale > allowed.stale_reads:
        wrong.append(f"{stale} stale reads: {allowed.stale_reads} are allowed")
    kept = figures.promises.get(KEPT, 0)
    if kept < allowed.kept_promises:
        wrong.append(
            f"{kept} promises of a 429 came due and held: {allowed.kept_promises} are needed "
            "to tell (a minute's limit needs more than a minute)"
        )
    return Verdict(figures, rows, wrong)


def _wrong(measured: Measured, allowed: Objective | None) -> Iterator[str]:
    if allowed is not None and not measured.requests:
        yield "not measured"
        return
    if allowed is not None:
        if measured.p95_ms > allowed.p95_ms:
            yield "p95"
        if measured.p99_ms > allowed.p99_ms:
            yield "p99"
    ratio = 0.0 if allowed is None else allowed.failure_ratio
    if measured.failed > ratio * measured.requests:
        yield "failures"


def render(verdict: Verdict) -> str:
    """Give the table, what failed, and the verdict."""
    figures = verdict.figures
    width = max(len(row.name) for row in verdict.rows)
    rate = sum(each.requests for each in figures.requests.values()) / figures.seconds
    lines = [
        f"{figures.users} users, {figures.seconds:.0f} s, {rate:.0f} requests/s; "
        f"locust used {figures.core:.2f} of a core",
        "",
        f"{'':{width}} {'requests':>8} {'per s':>6} {'failed %':>12} {'p95 ms':>12} {'p99 ms':>12}",
        *(_line(row, width, figures.seconds) for row in verdict.rows),
        "",
    ]
    for row in verdict.rows:
        lines += [f"{row.name}: {n} x {what}" for what, n in sorted(row.measured.failures.items())]
    told, kept = (figures.promises.get(name, 0) for name in (TOLD, KEPT))
    if told:
        lines.append(f"Retry-After was told {told} times; {kept} times somebody waited and got in")
    if figures.core > BUSY:
        lines.append("Locust was short of a core: some of the time is its own. Take fewer users")
    lines += verdict.wrong
    broken = [f"{row.name} ({', '.join(row.wrong)})" for row in verdict.rows if row.wrong]
    lines += [f"Broken: {each}" for each in broken]
    lines.append("The objectives are kept" if verdict.kept else "The objectives are BROKEN")
    return "\n".join(lines)


def _line(row: Row, width: int, seconds: float) -> str:
    measured, allowed = row.measured, row.allowed
    failed = 100 * measured.failed / max(1, measured.requests)
    pairs = (
        (f"{failed:.2f}", allowed and f"{100 * allowed.failure_ratio:.2f}"),
        (f"{measured.p95_ms:.0f}", allowed and f"{allowed.p95_ms:.0f}"),
        (f"{measured.p99_ms:.0f}", allowed and f"{allowed.p99_ms:.0f}"),
    )
    told = " ".join(f"{seen:>5} /{limit or '-':>5}" for seen, limit in pairs)
    rate = f"{measured.requests:>8} {measured.requests / seconds:>6.1f}"
    return f"{row.name:{width}} {rate} {told}  {', '.join(row.wrong) or 'ok'}"
