"""octavo cache: what an operator may do about the cache. No write of Octavo's needs any of it."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar

import click

from service.cache import FAILURES, Epochs, RedisStore
from service.config import Settings, load_from_environment
from service.db import Database

T = TypeVar("T")


@click.group()
def cache() -> None:
    """Turn the cache off, clear it, or look at it."""


@cache.command()
def bump() -> None:
    """Turn the cache off for all, and wait until nobody uses it: after changes by other tools.

    It comes back by itself, empty, after some seconds.
    """
    _with_row(lambda settings, epochs: epochs.turn_off())
    click.echo("The cache is off; what it held is never used again")


@cache.command()
def clear() -> None:
    """Delete what is in the cache, and nothing else in that Redis."""
    swept = _with_row(_clear)
    if swept is None:
        click.echo("The cache is off; what it held is never used again")
    else:
        click.echo(f"{swept} entries deleted")


@cache.command()
def stats() -> None:
    """Say whether the cache is on, and what is in it."""
    for line in _with_row(_stats):
        click.echo(line)


async def _clear(settings: Settings, epochs: Epochs) -> int | None:
    state = await epochs.read()
    if not state.on:
        return None
    if settings.redis_url is None:  # the memory of another process
        await epochs.turn_off()
        return None
    return await _ask(settings.redis_url, lambda store: store.sweep(state.prefix))


async def _stats(settings: Settings, epochs: Epochs) -> list[str]:
    state = await epochs.read()
    said = [f"The cache is {'on' if state.on else 'off'}, epoch {state.epoch}"]
    if not state.on:
        return said
    said.append(f"Store: {state.run_id}")
    if settings.redis_url is None or state.run_id.startswith("memory-"):
        return [*said, "Its entries are in the memory of the process that serves"]
    found = await _ask(settings.redis_url, lambda store: store.names(state.prefix))
    counts = Counter(name.partition(":")[0] for name in found)
    return [*said, *(f"  {kind}: {n}" for kind, n in sorted(counts.items()))]


async def _ask(url: str, ask: Callable[[RedisStore], Awaitable[T]]) -> T:
    store = RedisStore(url)
    try:
        return await ask(store)
    except FAILURES as error:
        raise click.ClickException(
            f"Redis cannot be asked: {error}. Start it, or set REDIS_URL"
        ) from None
    finally:
        await store.close()


def _with_row(work: Callable[[Settings, Epochs], Awaitable[T]]) -> T:
    """Do something about the row of the epoch."""
    settings = load_from_environment()

    async def run() -> T:
        database = Database(settings)
        await database.open()
        try:
            return await work(settings, database.epochs)
        finally:
            await database.close()

    return asyncio.run(run())
