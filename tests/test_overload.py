"""Overload: what is turned away, in which order, and what the rest gains by it. A real server."""

import asyncio
import json
import os
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.overload import (
    CALM_SECONDS,
    FIRST,
    LEAST,
    LESS,
    MESSAGE,
    MORE,
    WAITED_SECONDS,
    Overload,
)
from tests.conftest import SECRET, Site, serving, settings_for
from tests.factories import PASSWORD
from tests.test_cli import empty_url, octavo, served

__all__ = ["empty_url"]  # a fixture

SOAK = bool(os.environ.get("SOAK"))
ORIGIN = "https://shop.example.org"
ALWAYS = ("/health", "/health/live", "/health/ready", "/metrics")
LISTS = ("/api/books?limit=2", "/api/users/1/books")
OTHERS = ("/", "/api/books/1", "/nowhere")
BUDGET = 0.05
CHANGING = {"date", "x-request-id"}  # from answer to answer
SECONDS = 20
# Half of it is what the cache has, half are lists that it never had: no two ask for the same.
MIX = ["/api/books/{id}", "/api/books?price_min={cold:.7f}&per_page=20"]


@pytest.fixture
async def strained(site: Site, folder: Path) -> AsyncIterator[Site]:
    """An application that sheds, of which a test says how much is in flight."""
    settings = settings_for(
        site.another_url, folder, shed_lag_seconds=BUDGET, cors_origins=[ORIGIN]
    )
    async with serving(settings) as strained:
        yield strained


def strain(site: Site, in_flight: int) -> Overload:
    """Let there be room for 10, and so many in flight; as the event loop is not asked."""
    overload: Overload = site.app.extensions["overload"]
    site.app.extensions["lag"].observers.clear()
    overload.room = 10
    site.app.extensions["front"].in_flight = in_flight
    return overload


async def asked(site: Site, path: str, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=site.url, headers=headers) as client:
        return await client.get(path)


@pytest.mark.parametrize(
    ("in_flight", "served_still"),
    [(9, (*ALWAYS, *LISTS, *OTHERS)), (10, (*ALWAYS, *OTHERS)), (20, ALWAYS)],
)
async def test_lists_go_first_and_health_never(
    strained: Site, in_flight: int, served_still: tuple[str, ...]
) -> None:
    overload = strain(strained, in_flight)
    for how in ("keep-alive", "close"):  # the short way to refuse, and the ordinary one
        for path in (*ALWAYS, *LISTS, *OTHERS):
            before = overload.shed
            answer = await asked(strained, path, Connection=how)
            told = answer.headers.get("Content-Type") == "application/problem+json"
            is_shed = answer.status_code == 503 and told and answer.json()["detail"] == MESSAGE
            assert is_shed is (path not in served_still), (how, path)
            assert overload.shed - before == is_shed


async def test_what_was_let_in_is_not_turned_away(strained: Site) -> None:
    """A write in progress, whatever comes after it."""
    name = {"username": "anna", "email": "anna@example.org", "password": PASSWORD}
    body = json.dumps(name).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", strained.port)
    kind = "Content-Type: application/json"
    head = f"POST /api/auth/register HTTP/1.1\r\nHost: x\r\n{kind}\r\nContent-Length: {len(body)}"
    writer.write(f"{head}\r\n\r\n".encode() + body[:10])
    front = strained.app.extensions["front"]
    async with asyncio.timeout(5):
        while not front.in_flight:
            await asyncio.sleep(0.01)
    strain(strained, 50)
    assert (await asked(strained, "/api/books/1")).status_code == 503
    writer.write(body[10:])
    assert b" 201 " in await reader.readline()
    writer.close()


@pytest.mark.parametrize("path", ["/api/books", "/api/books/1?x=y"])
async def test_a_refusal_says_all_and_both_ways_the_same(strained: Site, path: str) -> None:
    strain(strained, 20)
    short = await asked(strained, path, Origin=ORIGIN, Connection="keep-alive")
    ordinary = await asked(strained, path, Origin=ORIGIN, Connection="close")
    for answer in (short, ordinary):
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) >= 1
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.json()["request_id"] == answer.headers["X-Request-Id"]

    def plain(answer: httpx.Response) -> Any:
        kept = {k: v for k, v in answer.headers.items() if k not in CHANGING | {"connection"}}
        return kept, {k: v for k, v in answer.json().items() if k != "request_id"}

    assert plain(short) == plain(ordinary)
    named = await asked(strained, path, **{"X-Request-Id": "mine", "Connection": "keep-alive"})
    assert named.headers["X-Request-Id"] == named.json()["request_id"] == "mine"


async def test_a_connection_goes_on_after_refusals(strained: Site) -> None:
    async with httpx.AsyncClient(base_url=strained.url) as client:
        for in_flight, status in ((20, 503), (0, 200), (20, 503), (20, 503), (0, 200)):
            strain(strained, in_flight)
            assert (await client.get("/api/books")).status_code == status
        pool: Any = client._transport
        assert len(pool._pool.connections) == 1


async def test_one_that_gets_refusals_alone_is_not_idle(site: Site, folder: Path) -> None:
    settings = settings_for(
        site.another_url, folder, shed_lag_seconds=BUDGET, keep_alive_seconds=0.9
    )
    async with serving(settings) as strained:
        strain(strained, 20)
        reader, writer = await asyncio.open_connection("127.0.0.1", strained.port)
        for _ in range(20):
            writer.write(b"GET /api/books HTTP/1.1\r\nHost: x\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0])
            assert len(await reader.readexactly(length)) == length
            await asyncio.sleep(0.1)
        begun = time.monotonic()
        assert await reader.read() == b"", "idle at last"
        assert time.monotonic() - begun < 5
        writer.close()


async def test_a_long_wait_for_a_connection_turns_lists_away(strained: Site) -> None:
    strain(strained, 0)
    waits = strained.app.extensions["database"].waits
    waits.begun[-1] = time.monotonic() + 60  # it has just begun, however slow this machine is
    assert (await asked(strained, "/api/books")).status_code == 200
    waits.begun[-1] = time.monotonic() - WAITED_SECONDS
    assert (await asked(strained, "/api/books")).status_code == 503
    assert (await asked(strained, "/api/books/1")).status_code == 404
    del waits.begun[-1]
    assert (await asked(strained, "/api/books")).status_code == 200


async def test_room_is_as_much_as_is_done_in_time(
    strained: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    overload = strain(strained, 100)
    overload.room = float("inf")
    overload.seen_late(BUDGET * 0.9)
    assert overload.room == float("inf")
    overload.seen_late(BUDGET * 1.1)
    assert overload.room == 100 * FIRST
    overload.seen_late(BUDGET * 1.1)
    assert overload.room == 100 * FIRST * LESS
    overload.seen_late(0.0)
    assert overload.room == 100 * FIRST * LESS * MORE
    for _ in range(50):
        overload.seen_late(1.0)
    assert overload.room == LEAST
    later = time.monotonic() + CALM_SECONDS + 1
    monkeypatch.setattr("service.overload.time.monotonic", lambda: later)
    for looks in (1, 2):
        overload.seen_late(0.0)
        assert overload.room == pytest.approx(LEAST * MORE**looks), "nobody asks, and there is room"


async def test_a_loop_that_is_late_sheds(strained: Site) -> None:
    """Not what a test says, but a loop that is kept busy."""
    overload: Overload = strained.app.extensions["overload"]
    strained.app.extensions["front"].in_flight += 30
    async with asyncio.timeout(20):
        while overload.strain < 2:
            time.sleep(BUDGET)  # noqa: ASYNC251  (this is what is tested)
            await asyncio.sleep(0)
    assert (await asked(strained, "/health/live")).status_code == 200
    strained.app.extensions["front"].in_flight -= 30
    assert (await asked(strained, "/api/books")).status_code == 200


async def measured(port: int, rate: float, seconds: float = SECONDS) -> dict[str, float]:
    """Ask from another process, on another core: what that saw."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.overload", str(port), str(seconds), str(rate), *MIX,
        stdout=PIPE,
    )  # fmt: skip
    pin(process.pid, 1)
    said, _ = await process.communicate()
    found: dict[str, float] = json.loads(said)
    return found


def pin(pid: int, core: int) -> None:
    """Keep server and load apart, every thread of them."""
    cores = sorted(os.sched_getaffinity(0))
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {cores[core % len(cores)]})


@pytest.mark.skipif(not SOAK, reason="make soak: needs two cores of its own")
@pytest.mark.timeout(300)
async def test_three_times_what_can_be_borne(tmp_path: Path, empty_url: str) -> None:
    """Goodput and the answers to `/health/live`, with shedding and, as a control, without."""
    settings = {
        "OCTAVO_ENV": "testing",
        "TESTING_DATABASE_URL": empty_url,
        "SECRET_KEY": SECRET,
        "RATELIMIT_ENABLED": "false",
        "ACCESS_LOG_SAMPLE": "0",
        "WORKERS": "0",
    }
    await octavo(tmp_path, "migrate", **settings)
    await octavo(tmp_path, "seed-db", **settings)
    found: dict[str, Any] = {}
    three_times = 0.0  # of what can be borne: the control gets the same
    for name, budget in (
        ("shedding", {"SHED_LAG_SECONDS": "0.02"}),
        ("control", {"SHED_LAG_SECONDS": "0"}),
    ):
        async with served(tmp_path, **(settings | budget)) as (process, url, _):
            pin(process.pid, 0)
            port = int(url.rpartition(":")[2])
            await measured(port, 0, 3)
            peak = await measured(port, 0)
            three_times = three_times or 3 * peak["good"]
            found[name] = (peak, await measured(port, three_times))
    for name, (peak, three) in found.items():
        assert peak["others"] == three["others"] == 0
        print(
            f"{name}: peak {peak['good']:.0f}/s; at 3 times that {three['good']:.0f}/s in time "
            f"({three['good'] / peak['good']:.0%}), {three['shed']:.0f}/s turned away, "
            f"{three['late']:.0f}/s late, live p99 {three['live_p99'] * 1000:.0f} ms"
        )
    peak, three = found["shedding"]
    assert three["good"] >= 0.8 * peak["good"]
    assert three["live_p99"] < 0.1
    assert three["late"] < 0.01 * three["good"]
    _, control = found["control"]
    assert control["late"] > control["good"], "without it most come too late, or never"
