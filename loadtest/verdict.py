"""The verdict: compares the measured figures with the objectives."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from loadtest.objectives import Objective, Objectives
from loadtest.retry_after import HONORED, SENT

STALE = "stale read"  # the name of this failure
BUSY = 0.8  # of a core; above it, locust measures its own delays as delays of the server


class Measured(BaseModel):
    """The measured figures of one kind of request. failures: counts by name."""

    model_config = ConfigDict(frozen=True)

    requests: int
    p95_ms: float
    p99_ms: float
    failures: dict[str, int] = {}

    @property
    def failed(self) -> int:
        """The number of failed requests."""
        return sum(self.failures.values())


class Figures(BaseModel):
    """The figures of a run. core: share of a core that locust used. retry_after: counts of 429s."""

    model_config = ConfigDict(frozen=True)

    seconds: float
    users: int
    core: float
    requests: dict[str, Measured]
    retry_after: dict[str, int] = {}

    @classmethod
    def load(cls, path: Path) -> "Figures":
        """Read figures from a file that `save` wrote."""
        return cls.model_validate_json(path.read_bytes())

    def save(self, path: Path) -> None:
        """Write the figures to a file."""
        path.write_text(self.model_dump_json(indent=1))


NOTHING = Measured(requests=0, p95_ms=0, p99_ms=0)


@dataclass(frozen=True)
class Row:
    """One kind of request: its figures, its objective, and its missed objectives."""

    name: str
    measured: Measured
    allowed: Objective | None
    wrong: list[str]


@dataclass(frozen=True)
class Verdict:
    """The result of a run. `wrong` has the missed objectives of the whole run."""

    figures: Figures
    rows: list[Row]
    wrong: list[str] = field(default_factory=list)

    @property
    def met(self) -> bool:
        """Whether all objectives are met."""
        return not self.wrong and not any(row.wrong for row in self.rows)


def judge(allowed: Objectives, figures: Figures) -> Verdict:
    """Compare figures with objectives. An objective without a measured request is missed."""
    names = [*allowed.requests, *sorted(figures.requests.keys() - allowed.requests.keys())]
    rows = []
    for name in names:
        measured, objective = figures.requests.get(name, NOTHING), allowed.requests.get(name)
        rows.append(Row(name, measured, objective, list(_wrong(measured, objective))))
    wrong = []
    stale = sum(measured.failures.get(STALE, 0) for measured in figures.requests.values())
    if stale > allowed.stale_reads:
        wrong.append(f"{stale} stale reads: {allowed.stale_reads} are allowed")
    honored = figures.retry_after.get(HONORED, 0)
    if honored < allowed.min_retry_after_honored:
        wrong.append(
            f"requests admitted after the Retry-After of a 429: {honored}; required: "
            f"{allowed.min_retry_after_honored} (limits per minute need a run of over a minute)"
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
    """Return the table, the failures, and the verdict as text."""
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
        lines += [
            f"{row.name}: {n} x {failure}" for failure, n in sorted(row.measured.failures.items())
        ]
    sent, honored = (figures.retry_after.get(name, 0) for name in (SENT, HONORED))
    if sent:
        lines.append(
            f"429 with Retry-After: {sent}; clients that waited and were admitted: {honored}"
        )
    if figures.core > BUSY:
        lines.append(
            "Locust used too much of its core, so its own delays are in the times. Use fewer users"
        )
    lines += verdict.wrong
    missed = [f"{row.name} ({', '.join(row.wrong)})" for row in verdict.rows if row.wrong]
    lines += [f"Missed: {each}" for each in missed]
    lines.append("All objectives are met" if verdict.met else "Objectives are MISSED")
    return "\n".join(lines)


def _line(row: Row, width: int, seconds: float) -> str:
    measured, allowed = row.measured, row.allowed
    failed = 100 * measured.failed / max(1, measured.requests)
    pairs = (
        (f"{failed:.2f}", allowed and f"{100 * allowed.failure_ratio:.2f}"),
        (f"{measured.p95_ms:.0f}", allowed and f"{allowed.p95_ms:.0f}"),
        (f"{measured.p99_ms:.0f}", allowed and f"{allowed.p99_ms:.0f}"),
    )
    cells = " ".join(f"{value:>5} /{limit or '-':>5}" for value, limit in pairs)
    rate = f"{measured.requests:>8} {measured.requests / seconds:>6.1f}"
    return f"{row.name:{width}} {rate} {cells}  {', '.join(row.wrong) or 'ok'}"
