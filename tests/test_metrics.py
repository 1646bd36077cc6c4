"""Metrics: every metric of the dashboard and of the alerts exists, and counts events."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import Site, settings_for, visiting
from tests.factories import Factory

DEPLOY = Path(__file__).parent.parent / "deploy"
NAME = re.compile(r"\boctavo_[a-z_]+")


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return the samples that Prometheus would read."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def read(client: httpx.AsyncClient) -> Any:
    """Read the metrics; return a function from name and labels to the value of a sample."""
    response = await client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    values = samples(response.text)
    return lambda name, **labels: values.get((name, frozenset(labels.items())), 0.0)


async def test_requests_and_cache_reads_are_counted(
    site: Site, client: httpx.AsyncClient, make: Factory
) -> None:
    before = await read(client)
    book = await make.book(await make.member())
    for _ in range(3):
        assert (await client.get(f"/api/books/{book.id}")).status_code == 200
    assert (await client.get("/api/books/999999")).status_code == 404
    assert (await client.get("/nowhere")).status_code == 404
    assert (await client.request("BREW", "/api/books")).status_code == 405
    after = await read(client)

    def grown(name: str, **labels: str) -> float:
        rise: float = after(name, **labels) - before(name, **labels)
        return rise

    of_books = {"method": "GET", "route": "/api/books/<id:book_id>"}
    count, total = "octavo_request_seconds_count", "octavo_request_seconds_sum"
    assert grown(count, **of_books, status="200") == 3
    assert grown(count, **of_books, status="404") == 1
    assert 0 < grown(total, **of_books, status="200") < 90
    assert grown(count, method="GET", route="unknown", status="404") == 1
    assert grown(count, method="other", route="unknown", status="405") == 1
    assert grown("octavo_cache_reads_total", outcome="hit") == 2
    assert grown("octavo_cache_reads_total", outcome="miss") == 2
    assert grown("octavo_cache_marks_total") >= 1
    assert grown("octavo_limit_decisions_total", outcome="admitted") >= 5
    assert after("octavo_cache_stale_total") == 0
    assert (after("octavo_workers"), after("octavo_cache_on")) == (1, 1)
    assert after("octavo_requests_in_flight") == 1, "the request for the metrics"
    assert 0 <= after("octavo_event_loop_lag_seconds") < 30


async def test_the_metrics_of_dashboard_and_alerts_exist(
    site: Site, client: httpx.AsyncClient
) -> None:
    await client.get("/api/books")
    existing = {name for name, _ in samples((await client.get("/metrics")).text)}
    board = json.loads((DEPLOY / "grafana.json").read_text(encoding="utf-8"))
    shown = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    rules = yaml.safe_load((DEPLOY / "alerts.yml").read_text(encoding="utf-8"))
    watched = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    used = {name for expr in (*shown, *watched) for name in NAME.findall(expr)}
    assert used <= existing
    families = {name for name in existing if not name.endswith(("_created", "_bucket", "_sum"))}
    assert families <= used, "no metric is without a use"


@pytest.mark.parametrize(
    ("settings", "authorization", "status"),
    [
        ({}, None, 200),
        ({"metrics_token": "of the monitor"}, None, 404),
        ({"metrics_token": "of the monitor"}, "Bearer of another", 404),
        ({"metrics_token": "of the monitor"}, "Bearer of the monitor", 200),
    ],
)
async def test_metrics_with_a_token_are_404_without_it(
    site: Site, folder: Path, settings: dict[str, str], authorization: str | None, status: int
) -> None:
    headers = {"Authorization": authorization} if authorization else {}
    async with visiting(settings_for(site.another_url, folder, **settings)) as client:
        assert (await client.get("/metrics", headers=headers)).status_code == status
