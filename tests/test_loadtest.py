"""The load test: its verdict, and its objectives."""

import asyncio
import re
import sys
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path
from typing import Any

import pytest

from loadtest.objectives import Objective, Objectives, ObjectivesError, read
from loadtest.profiles import PROFILES
from loadtest.retry_after import HONORED, SENT, limit_of
from loadtest.verdict import STALE, Figures, Measured, judge, render
from service import config
from service.app import create_app
from service.limits.policies import Policies
from tests.test_cli import killed

SLO = Path("loadtest/slo.toml")
NAME, OTHER = "GET /api/books", "GET /api/books/{id}"
NOTES = re.compile(" (after a write|by cursor|repeated)$")  # the client adds them to a route
DELAY_MS = 200  # a delay that must break the objectives
HASHING = {"POST /api/auth/login", "POST /api/auth/register"}
GOOD = Objectives(requests={NAME: Objective(p95_ms=50, p99_ms=100, failure_ratio=0.01)})


def figures(promises: dict[str, int] | None = None, core: float = 0.3, **changed: Any) -> Figures:
    """Give figures that keep the objectives GOOD, with some values changed."""
    measured = {"requests": 1_000, "p95_ms": 50, "p99_ms": 100} | changed
    return Figures(
        seconds=10,
        users=5,
        core=core,
        requests={NAME: Measured.model_validate(measured)},
        retry_after=promises or {},
    )


def wrong(allowed: Objectives, seen: Figures) -> list[str]:
    """Give the violations of every row and of the run."""
    verdict = judge(allowed, seen)
    return [each for row in verdict.rows for each in row.wrong] + verdict.wrong


def test_figures_at_the_objective_keep_it() -> None:
    verdict = judge(GOOD, figures(failures={"answered 500": 10}))
    assert verdict.met
    assert render(verdict).splitlines()[-1] == "All objectives are met"


def test_failures_stand_beside_requests_per_second() -> None:
    _, _, head, row, *_ = render(judge(GOOD, figures(failures={"answered 503": 5}))).splitlines()
    assert head.split() == ["requests", "per", "s", "failed", "%", "p95", "ms", "p99", "ms"]
    assert row.removeprefix(NAME).split()[:4] == ["1000", "100.0", "0.50", "/"]


@pytest.mark.parametrize(
    ("changed", "violations"),
    [
        ({"p95_ms": 51}, ["p95"]),
        ({"p99_ms": 101}, ["p99"]),
        ({"failures": {"answered 500": 6, "no answer": 5}}, ["failures"]),
        ({"requests": 0, "p95_ms": 0, "p99_ms": 0}, ["not measured"]),
        ({"failures": {STALE: 1}}, ["1 stale reads: 0 are allowed"]),
    ],
)
def test_figures_beyond_the_objective_break_it(
    changed: dict[str, Any], violations: list[str]
) -> None:
    verdict = judge(GOOD, figures(**changed))
    assert wrong(GOOD, verdict.figures) == violations
    assert not verdict.met
    assert render(verdict).splitlines()[-1] == "Objectives are MISSED"


def test_an_objective_without_requests_is_broken() -> None:
    allowed = Objectives(requests={**GOOD.requests, OTHER: GOOD.requests[NAME]})
    verdict = judge(allowed, figures())
    assert {row.name: row.wrong for row in verdict.rows} == {NAME: [], OTHER: ["not measured"]}
    assert not verdict.met


def test_a_failure_without_an_objective_breaks_the_run() -> None:
    refused = Measured(requests=9, p95_ms=900, p99_ms=900)
    seen = figures()
    for failures, kept in (({}, True), ({"503, come again": 1}, False)):
        extra = {f"{NAME}: 503": refused.model_copy(update={"failures": failures})}
        more = seen.model_copy(update={"requests": seen.requests | extra})
        assert judge(GOOD, more).met is kept


def test_a_profile_about_limits_has_to_see_a_promise_come_due() -> None:
    allowed = GOOD.model_copy(update={"min_retry_after_honored": 2})
    assert "after the Retry-After of a 429: 1" in wrong(allowed, figures({SENT: 9, HONORED: 1}))[0]
    assert not wrong(allowed, figures({SENT: 9, HONORED: 2}))


def test_a_busy_locust_is_told_of() -> None:
    assert "too much of its core" not in render(judge(GOOD, figures(core=0.5)))
    assert "too much of its core" in render(judge(GOOD, figures(core=0.95)))


def test_figures_are_read_as_they_were_written(tmp_path: Path) -> None:
    seen = figures({SENT: 1}, failures={STALE: 2})
    seen.save(tmp_path / "figures.json")
    assert Figures.load(tmp_path / "figures.json") == seen


def routes() -> set[str]:
    """Give every method and path of the service, named as in the load test."""
    return {
        f"{method} {rule.rule.replace('<id:book_id>', '{id}').replace('<id:user_id>', '{id}')}"
        for rule in create_app(config.Testing(log_dir=None)).url_map.iter_rules()
        for method in rule.methods or ()
    }


@pytest.mark.parametrize("profile", PROFILES)
def test_every_objective_names_a_route_and_is_broken_by_a_delay(profile: str) -> None:
    known = routes()
    for name, objective in read(SLO, profile).requests.items():
        route = NOTES.sub("", name.partition(":")[0])
        assert route in known, name
        assert objective.p95_ms < DELAY_MS or route in HASHING, name


def test_the_objectives_are_documented() -> None:
    text = Path("docs/load-testing.md").read_text("utf-8")
    rows = re.findall(
        r"^\| `((?:GET|POST|PUT|PATCH|DELETE) [^`]+)` \| (\d+) / (\d+) \|", text, re.M
    )
    allowed = read(SLO, "service-tier").requests | read(SLO, "limits-on").requests
    assert [(name, float(p95), float(p99)) for name, p95, p99 in rows] == [
        (name, objective.p95_ms, objective.p99_ms) for name, objective in allowed.items()
    ]


def test_the_limits_are_those_of_the_service() -> None:
    app = create_app(config.Testing(log_dir=None))
    limiter = app.extensions["limiter"]
    for rule in app.url_map.iter_rules():
        named = limiter.plan(app, rule.endpoint).names
        template = rule.rule.replace("<id:book_id>", "{id}").replace("<id:user_id>", "{id}")
        for method in {"GET", "POST", "PATCH", "DELETE"} & (rule.methods or set()):
            if named:
                assert [limit_of(method, template)] == list(named), template
    assert {limit_of("GET", OTHER.removeprefix("GET "))} < set(Policies(config.Testing()).names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no objectives for service-tier, only for nothing"),
        ("a = ", "cannot be read"),
        ("[service-tier]\nallow_503 = true", "service-tier.requests: Field required"),
        ("[service-tier.requests]", "service-tier.requests: "),
        ("[service-tier.requests]\na = {p95_ms = 9}", "a.p99_ms: Field required"),
        ("[service-tier.requests]\na = {p95_ms = 9, p99_ms = 8}", "p99_ms is less than p95_ms"),
        ("[service-tier.requests]\na = {p95_ms = 0, p99_ms = 8}", "a.p95_ms: "),
        ("[service-tier.requests]\na = {p95_ms = '9', p99_ms = 9}", "a.p95_ms: "),
        ("[service-tier.requests]\na = {p95_ms = 9, p99_ms = 9, p50_ms = 1}", "a.p50_ms: "),
        ("[service-tier]\nslow = 1\nrequests.a = {p95_ms = 9, p99_ms = 9}", "service-tier.slow: "),
        ("[other.requests]\na = {p95_ms = 9, p99_ms = 9}", "no objectives for service-tier"),
    ],
)
async def test_an_invalid_file_is_reported_before_the_load_starts(
    text: str, message: str, tmp_path: Path
) -> None:
    slo = tmp_path / "slo.toml"
    slo.write_text(text)
    with pytest.raises(ObjectivesError) as error:
        read(slo, "service-tier")
    assert message in str(error.value)


@pytest.mark.parametrize("content", [b"a = ", b"\xff", None])
async def test_the_command_exits_with_2_if_its_file_cannot_be_read(
    content: bytes | None, tmp_path: Path
) -> None:
    slo = tmp_path / "slo.toml"
    if content is not None:
        slo.write_bytes(content)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "loadtest", "--slo", str(slo), stdout=PIPE, stderr=STDOUT
    )
    try:
        output, _ = await process.communicate()
    finally:
        await killed(process)
    assert process.returncode == 2
    assert f"{slo} cannot be read" in output.decode()
    assert "Traceback" not in output.decode()


def test_an_objective_may_be_a_fraction_of_a_millisecond() -> None:
    assert Objective(p95_ms=1, p99_ms=1.5).p95_ms == 1
