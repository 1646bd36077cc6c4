"""The benchmark: its figures and pages, and the equal work of its peers."""

import asyncio
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from redis.asyncio import Redis

from bench import wrk
from bench.contestants import ALL
from bench.limits import get_status
from bench.peers import bare, derived
from bench.report import (
    AIMS,
    OUTPUT,
    aims,
    headline,
    in_readme,
    loses,
    losses,
    outcome,
    page,
    ratio,
    short_tables,
    table,
    whole_table,
)
from bench.results import Cell, Results, best
from bench.run import rotated
from bench.same import UnequalWorkError, normal, remaining
from bench.server import ROOT
from bench.sizes import best as best_cost
from bench.sizes import growth
from bench.stage import Facts, Stage
from bench.work import BASIC_KINDS, BULK_SIZE, CALLERS, KINDS, caller, requests_of
from loadtest.services import inherited_environment
from service.config import Production
from service.models import Book
from service.models.search import tsvector_of

LUA = Path(bare.__file__).with_name("limit_and_get.lua").read_text(encoding="utf-8")
FACTS = Facts(
    books=1_000,
    ids=(1, 2, 3),
    middle=500,
    tokens=("a.b.c", "d.e.f"),
    owned=tuple(range(1, 1_001)),
    searches=tuple(f"word {n}" for n in range(5_000)),
)
TAGS = {f"/api/books/{n}": f'"{n}"' for n in FACTS.ids}
OUTPUT_OF_WRK = """Running 1s test @ http://127.0.0.1:1
  1 threads and 32 connections
measured requests=1200 microseconds=1500000 p50=4000 p99=12500 refused={} broken={}
"""


def cell(
    contestant: str, group: str, kind: str, rate: float, connections: int = 32, **changed: float
) -> Cell:
    figures = {"errors": 0, "cpu": 1e6 / rate, "p50": 1.0, "p99": 10.0, "busy": 1.0} | changed
    return Cell(contestant, group, kind, connections, rate=rate, **figures)


def with_errors(results: Results, contestant: str, errors: float) -> Results:
    """Let a share of a server's requests fail at 32 connections."""
    cells = [
        replace(each, errors=errors)
        if (each.contestant, each.connections) == (contestant, 32)
        else each
        for each in results.cells
    ]
    return replace(results, cells=cells)


@pytest.fixture
def results() -> Results:
    """A run in which Octavo loses the page to a tuned peer, and the latency of creating.

    With 256 connections every server is half as fast.
    """
    few = [
        cell("Octavo", "Octavo", "page", 100),
        cell("Octavo", "Octavo", "create", 50),
        cell("Octavo on uvicorn", "Octavo", "page", 400),
        cell("Octavo on uvicorn", "Octavo", "create", 400),
        cell("Slow", "as documented", "page", 25),
        cell("Slow", "as documented", "create", 52, p99=5.0),
        cell("Fast", "tuned", "page", 250),
        cell("Fast", "tuned", "create", 25),
        cell("bare", "ceiling", "page", 9_000),
        cell("bare", "ceiling", "create", 9_000),
    ]
    many = [replace(each, connections=256, rate=each.rate / 2, cpu=each.cpu * 2) for each in few]
    cells = [*few, *many]
    machine = {
        "date": "2026-11-25", "machine": "a machine", "kernel": "Linux 6", "interpreter": "CPython",
        "servers": "PostgreSQL 18", "packages": "quart 0.22",
    }  # fmt: skip
    memory = {"Octavo": 100.0, "Octavo on uvicorn": 90.0, "Slow": 50.0, "Fast": 99.0, "bare": 20.0}
    return Results(10_000, 2, 3, machine, cells, memory)


@pytest.mark.parametrize(
    ("refused", "broken", "errors"), [(0, 0, 0), (300, 0, 0.25), (0, 300, 0.2), (1, 1, 2 / 1_201)]
)
def test_the_output_of_wrk_is_read(refused: int, broken: int, errors: float) -> None:
    load = wrk.read(OUTPUT_OF_WRK.format(refused, broken))
    assert (load.requests, load.rate, load.p50, load.p99) == (1_200, 800, 4, 12.5)
    assert load.errors == errors


def test_a_server_without_responses_has_only_errors() -> None:
    assert wrk.read(OUTPUT_OF_WRK.replace("=1200", "=0").format(0, 0)).errors == 1


def test_an_output_without_figures_is_reported() -> None:
    with pytest.raises(wrk.NotMeasuredError):
        wrk.read("unable to connect")


def test_the_best_round_counts_with_all_its_figures() -> None:
    rounds = [cell("A", "tuned", "page", rate, p99=rate) for rate in (3, 5, 4)]
    others = [cell("B", "tuned", "page", 1), cell("A", "tuned", "page", 1, connections=256)]
    assert best([*rounds, *others]) == [rounds[1], *others]


@pytest.mark.parametrize(("shares", "kept"), [((0, 0.1), 0), ((0.1, 0), 1), ((0.3, 0.1, 0.2), 1)])
def test_a_round_with_errors_is_never_the_best(shares: Sequence[float], kept: int) -> None:
    rounds = [cell("A", "tuned", "page", 10 + 90 * errors, errors=errors) for errors in shares]
    assert best(rounds) == [rounds[kept]]


def test_each_round_begins_with_another_contestant() -> None:
    contestants: list[Any] = ["a", "b", "c", "d"]
    first, second = (rotated(contestants, n) for n in range(2))
    assert first == contestants
    assert second == [*contestants[3:], *contestants[:3]]


def test_a_ratio_over_1_is_better_than_octavo(results: Results) -> None:
    for connections in wrk.CONNECTIONS:
        fast = results.of("Fast", "page", connections)
        assert ratio(results, fast) == 2.5
        assert ratio(results, fast, "CPU") == 2.5
        assert ratio(results, results.of("Slow", "create", connections), "p99") == 2


def test_the_page_lists_where_octavo_loses(results: Results) -> None:
    assert losses(results, "requests per second", 32) == {"page": [("Fast", 2.5)]}
    assert loses(results).splitlines() == [
        "- **requests per second, 32 connections:** page (Fast 2.5)",
        "- **requests per second, 256 connections:** page (Fast 2.5)",
        "- **CPU, 32 connections:** page (Fast 2.5)",
        "- **CPU, 256 connections:** page (Fast 2.5)",
        "- **p99, 32 connections:** create (Slow 2.0)",
        "- **p99, 256 connections:** create (Slow 2.0)",
        "- **memory:** Slow 2.0",
    ]


def test_the_page_says_that_octavo_loses_nowhere(results: Results) -> None:
    ours = [each for each in results.cells if each.group == "Octavo"]
    alone = Results(1, 1, 1, {}, ours, {"Octavo": 1.0})
    assert loses(alone).count("nowhere") == 7


def test_a_server_with_errors_has_no_figure_and_no_ratio(results: Results) -> None:
    failing = with_errors(results, "Fast", 0.12)
    assert "- **requests per second, 32 connections:** nowhere" in loses(failing)
    assert "- **requests per second, 256 connections:** page (Fast 2.5)" in loses(failing)
    few, many = (short_tables(failing, connections) for connections in wrk.CONNECTIONS)
    assert "| Fast | no figure: 12 % errors | no figure: 12 % errors | 99 MB |" in few
    assert "errors" not in many
    silent = replace(results.of("Fast", "page", 32), errors=1, rate=0)
    assert outcome(silent) == "no figure: no response in time"
    row = "| page | 32 | Fast | 12 % | - | - | - | - | - | - | 100% | 99 |"
    assert row in whole_table(failing)


def test_errors_of_octavo_are_reported_and_leave_no_ratio(results: Results) -> None:
    failing = with_errors(results, "Octavo", 0.004)
    first, *others = loses(failing).splitlines()
    assert first == (
        "- **Octavo itself has no figure, so there is no comparison:** "
        "page at 32 connections (under 1 % errors); create at 32 connections (under 1 % errors)"
    )
    assert others[:2] == [
        "- **requests per second, 32 connections:** nowhere",
        "- **requests per second, 256 connections:** page (Fast 2.5)",
    ]
    rows = short_tables(failing, 32).splitlines()
    assert rows[2].startswith("| Octavo | no figure: under 1 % errors | no figure")
    assert rows[5] == "| Fast | 250/s (-)<br>4,000 us (-) | 25/s (-)<br>40,000 us (-) | 99 MB |"
    assert "| page | 32 | Fast | 0 % | 250 | - | 4,000 | - | 1.0 |" in whole_table(failing)


def test_tables_have_every_contestant_and_every_figure(results: Results) -> None:
    head, line, *rows = short_tables(results, 32).splitlines()
    assert head == "| 32 connections | page | create | memory |"
    assert line == "| --- | ---: | ---: | ---: |"
    assert rows[3] == (
        "| Fast | 250/s (2.50)<br>4,000 us (0.40) | 25/s (0.50)<br>40,000 us (2.00) | 99 MB |"
    )
    assert "| Fast | 125/s (2.50)<br>8,000 us (0.40) |" in short_tables(results, 256)
    whole = whole_table(results)
    assert (
        "| page | 32 | Fast | 0 % | 250 | 2.50 | 4,000 | 0.40 | 1.0 | 10.0 | 100% | 99 |" in whole
    )
    assert len(whole.splitlines()) == 2 + len(results.cells)
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |"


def test_work_that_some_servers_do_has_a_table_of_its_own(results: Results) -> None:
    batch = [
        cell(name, group, "batch", rate, connections)
        for connections in wrk.CONNECTIONS
        for name, group, rate in (("Octavo", "Octavo", 300), ("Fast", "tuned", 125))
    ]
    more = replace(results, cells=[*results.cells, *batch])
    first, second = (part.splitlines() for part in short_tables(more, 32).split("\n\n"))
    assert first == short_tables(results, 32).splitlines()
    assert second[0] == "| 32 connections | batch | memory |"
    assert [row.split(" | ")[0] for row in second[2:]] == ["| Octavo", "| Fast"]
    assert len(whole_table(more).splitlines()) == 2 + len(more.cells)
    assert AIMS["batch"] == 2
    assert aims(more).splitlines()[2:] == ["| batch | 2.0 | 2.40 | 2.40 |"]
    assert aims(more) in page(more)
    assert "## Aims" not in page(results)
    equal = [*results.cells, *(replace(each, rate=150) for each in batch)]
    missed = aims(replace(results, cells=equal))
    assert missed.splitlines()[2] == "| batch | 2.0 | 1.00 (missed) | 1.00 (missed) |"


def test_octavo_and_tuned_peers_do_all_work() -> None:
    for contestant in ALL:
        is_compared = contestant.group in {"Octavo", "tuned"}
        assert contestant.kinds == tuple(KINDS if is_compared else BASIC_KINDS)


def test_octavo_runs_with_default_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATELIMIT_ENABLED", "false")
    monkeypatch.setenv("MAX_WAIT_SECONDS", "600")
    inherited = {name.lower() for name in inherited_environment()}
    assert not inherited & Production.model_fields.keys()
    postgresql = Mock(get_uri=Mock(return_value="postgresql://postgres@/postgres?host=/tmp"))
    settings = Stage(postgresql, Mock(port=6379)).environment("books", 8000)
    changed = {name.lower() for name in settings} & Production.model_fields.keys()
    assert {name for name in changed if not name.startswith("ratelimit_")} == {
        "database_url", "redis_url", "secret_key", "public_url", "trusted_proxy_hops"
    }  # fmt: skip
    octavo, *others = ALL
    assert (octavo.name, octavo.environment) == ("Octavo", {})
    assert {each.name: each.environment for each in others if each.environment} == {
        "Octavo, no access log": {"ACCESS_LOG_SAMPLE": "0"}
    }


def test_the_page_shows_date_machine_and_settings(results: Results) -> None:
    text = page(results)
    kinds = [KINDS[kind] for kind in results.kinds]
    facts = ("10,000 books", "32 and over 256 connections", "each of 3 round(s)", *kinds)
    for fact in (*results.machine.values(), *facts):
        assert fact in text


def test_the_headline_compares_with_the_fastest_tuned_peer(results: Results) -> None:
    faster = cell("Faster", "tuned", "page", 400)
    more = replace(results, cells=[*results.cells, faster])
    assert "over 32 connections" in headline(more)
    assert "a cached page **100** (0.25), a new book **50** (2.00). Measured" in headline(more)
    assert "a cached page **100** (0.40)" in headline(
        replace(more, cells=[*results.cells, replace(faster, errors=0.1)])
    )
    assert "a cached page **100**, a new" in headline(with_errors(results, "Fast", 0.1))
    assert "a cached page no figure" in headline(with_errors(results, "Octavo", 0.1))


def test_the_readme_shows_the_headline(results: Results) -> None:
    readme = "before\n<!-- bench -->\nold\n<!-- /bench -->\nafter\n"
    new = in_readme(readme, results)
    assert new == f"before\n<!-- bench -->\n{headline(results)}<!-- /bench -->\nafter\n"
    assert in_readme(new, results) == new
    with pytest.raises(ValueError, match="bench"):
        in_readme("without", results)


def test_the_documentation_shows_the_last_run() -> None:
    last = Results.load(OUTPUT / "bench.json")
    assert (OUTPUT / "benchmark.md").read_text(encoding="utf-8") == page(last)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert in_readme(readme, last) == readme


def test_saved_results_can_be_loaded(results: Results, tmp_path: Path) -> None:
    results.save(tmp_path / "bench.json")
    assert Results.load(tmp_path / "bench.json") == results


def test_growth_is_computed_for_server_and_database() -> None:
    assert best_cost([(10, 5, 7), (20, 6, 3)]) == (20, 5, 3)
    assert growth([(1, 100, 100), (1, 100, 900), (1, 150, 250)]) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_requests_are_complete_and_of_many_callers(kind: str, tmp_path: Path) -> None:
    requests = requests_of(kind, FACTS, TAGS, seconds=1)
    assert len(requests) >= CALLERS
    for request in requests[:100]:
        head, _, body = request.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        assert first.split()[2] == "HTTP/1.1"
        assert len(body) == int(headers.get("Content-Length", 0))
        assert first.startswith(("POST", "PUT")) == bool(body)
    wrk.write_requests(requests, tmp_path / "requests")
    kept = (tmp_path / "requests").read_bytes()
    assert kept.startswith(b"%d\n%b" % (len(requests[0]), requests[0]))


def test_a_tenth_of_the_mix_is_created() -> None:
    requests = requests_of("mix", FACTS, TAGS, seconds=1)
    assert sum(request.startswith(b"POST") for request in requests) * 10 == len(requests)


def test_conditional_requests_have_the_etag_of_their_book() -> None:
    for request in requests_of("304", FACTS, TAGS, seconds=1):
        path = request.split()[1].decode()
        assert f"If-None-Match: {TAGS[path]}\r\n".encode() in request


@pytest.mark.parametrize(
    ("kind", "unique"),
    [
        ("filtered", rb"^GET (\S+)"),
        ("search", rb"^GET (\S+)"),
        ("create_key", rb"Idempotency-Key: (\S+)"),
    ],
)
def test_no_filter_search_or_key_is_sent_twice(kind: str, unique: bytes) -> None:
    measurements = [
        *(requests_of(kind, FACTS, TAGS, seconds=1, series=series) for series in range(2)),
        requests_of(kind, FACTS, TAGS, seconds=1, warming=True),
    ]
    values = [re.search(unique, each) for requests in measurements for each in requests]
    assert len({value[1] for value in values if value}) == len(values)


def test_a_search_is_not_repeated_if_there_are_too_few() -> None:
    with pytest.raises(ValueError, match="fewer seconds"):
        requests_of("search", FACTS, TAGS, seconds=2, series=1)


def test_many_books_are_in_one_request() -> None:
    bulk, batch = (
        json.loads(requests_of(kind, FACTS, TAGS, seconds=1)[0].partition(b"\r\n\r\n")[2])
        for kind in ("bulk", "batch")
    )
    assert (len(bulk["items"]), len(batch["ids"])) == (BULK_SIZE, BULK_SIZE)


def test_each_caller_has_its_own_address() -> None:
    assert len({caller(n) for n in range(CALLERS)}) == CALLERS


def test_responses_are_compared_without_host_and_format_of_times() -> None:
    ours = {
        "items": [{"id": 1, "created_at": "2026-11-25T10:00:00.500000Z"}],
        "links": {"self": "http://a:1/api/books?page=2&genre=x"},
    }
    theirs = {
        "links": {"self": "http://b:2/api/books?genre=x&page=2"},
        "items": [{"id": 1, "created_at": "2026-11-25T11:00:00.5+01:00"}],
    }
    assert normal(ours) == normal(theirs)
    theirs["items"][0]["id"] = 1.5  # type: ignore[index]  # it is JSON
    assert normal(ours) != normal(theirs)


def test_a_peer_without_a_limit_is_reported() -> None:
    class Response:
        headers = {"x-ratelimit-remaining": "7"}  # noqa: RUF012  (read only)

    assert remaining(Response()) == 7  # type: ignore[arg-type]  # a stand-in
    Response.headers = {}
    with pytest.raises(UnequalWorkError):
        remaining(Response())  # type: ignore[arg-type]  # a stand-in


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
async def test_a_put_has_the_etag_of_the_response_before(tmp_path: Path) -> None:
    """wrk sends the PUTs to a server that accepts only the present ETag of a book."""
    tags: dict[bytes, int] = {}
    prices: set[bytes] = set()
    statuses: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            prices.add(await reader.readexactly(len(b'{"price": 10.00}')))
            path, tag = (re.findall(each, head)[0] for each in (rb"/(\d+) ", rb"If-Match: (\S+)"))
            present = tags.get(path, 0)
            statuses.append(200 if tag == (b'"%d"' % present if present else b"*") else 412)
            tags[path] = present + 1
            body = b'{"id":%b,"price":1}' % path
            writer.write(
                b'HTTP/1.1 %d x\r\nETag: "%d"\r\nContent-Length: %d\r\n\r\n%b'
                % (statuses[-1], present + 1, len(body), body)
            )

    wrk.write_requests(requests_of("put", FACTS, TAGS, seconds=1), tmp_path / "requests")
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        load = await asyncio.to_thread(wrk.send, url, tmp_path / "requests", 1, 4)
    finally:
        server.close()
    assert load.errors == 0
    assert set(statuses) == {200}
    assert max(tags.values()) > 2
    assert len(prices) > 2


async def test_a_ceiling_repeats_its_recorded_responses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {kind: (200 + n, [("x-kind", kind)], kind) for n, kind in enumerate(KINDS)}
    (tmp_path / "answers").write_text(json.dumps(kept))
    monkeypatch.setattr(bare, "responses", bare.load(tmp_path / "answers"))
    for path, kind in {
        "/api/books/7": "item",
        "/api/books?page=1": "page",
        "/api/books?cursor=5&limit=20": "cursor",
        "/api/books?genre=Fiction&price_min=5": "filtered",
    }.items():
        assert await get_status(bare.app, path) == kept[kind][0]
    assert bare.kind_of("POST", "/api/books", b"", []) == "create"
    assert bare.kind_of("GET", "/api/books/7", b"", [(b"if-none-match", b'"1"')]) == "304"


@pytest.mark.parametrize(
    ("title", "author"),
    [
        ("A Brief History of Time", "Stephen Hawking"),
        ("Cien años de soledad", "Gabriel García Márquez"),
        ("Straße — ﬁn, 2nd ed.", "STRAẞE, İ"),
    ],
)
def test_peers_write_the_columns_that_octavo_writes(title: str, author: str) -> None:
    ours = Book.derived(title, author)
    assert derived.author_key(author) == ours["author_key"]
    assert derived.search_words(title, author) == tsvector_of(ours["search"])


async def test_a_tuned_peer_counts_its_limit(redis_url: str) -> None:
    redis: Redis = Redis.from_url(redis_url)
    await redis.set("bench:book", b"a book")
    period = 10**9  # seconds: the current period ends in 2033
    arguments: list[Any] = ["bench:limit", "bench:book", "bench:none", 10, period]
    try:
        replies = [await redis.eval(LUA, 3, *arguments) for _ in range(12)]
        assert [reply[0] for reply in replies[:10]] == list(range(9, -1, -1))
        assert [reply[2:] for reply in replies[:10]] == [[b"a book", None]] * 10
        assert [(reply[0], len(reply)) for reply in replies[10:]] == [(-1, 2), (-1, 2)]
        assert all(0 < reply[1] <= period for reply in replies)
        keys = [key async for key in redis.scan_iter("bench:limit*")]
        assert [0 < await redis.ttl(key) <= 2 * period for key in keys] == [True]
        costly: list[Any] = ["bench:limit of another", "bench:book", "bench:none", 10, period, 4]
        replies = [await redis.eval(LUA, 3, *costly) for _ in range(3)]
        assert [reply[0] for reply in replies] == [6, 2, -1]
    finally:
        keys = [key async for key in redis.scan_iter("bench:limit*")]
        await redis.delete("bench:book", *keys)
        await redis.aclose()
