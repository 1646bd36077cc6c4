"""octavo cache: turn the cache off, clear or inspect it. Octavo's own writes need no command."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar

import click

from service.cache import FAILURES, Epochs, RedisStore
from service.config import Settings, load_from_environment
from service.db.database import Database

T = TypeVar("T")


@click.group()
def cache() -> None:
    """Turn the cache off, clear it, or inspect it."""


@cache.command()
def disable() -> None:
    """Turn the cache off in all processes, and wait until none uses it.

    Use this after other tools have changed the database. The cache turns itself on again, empty,
    after some seconds.
    """
    _with_row(lambda settings, epochs: epochs.turn_off())
    click.echo("The cache is off; its entries are never used again")


@cache.command(hidden=True)
@click.pass_context
def bump(context: click.Context) -> None:
    """Run `disable`, under its old name."""
    click.echo("octavo cache bump is called octavo cache disable now", err=True)
    context.invoke(disable)


@cache.command()
def clear() -> None:
    """Delete all entries of the cache, and nothing else in that Redis."""
    deleted = _with_row(_clear)
    if deleted is None:
        click.echo("The cache is off; its entries are never used again")
    else:
        click.echo(f"{deleted} entries deleted")


@cache.command()
def stats() -> None:
    """Show whether the cache is on, and count its entries."""
    for line in _with_row(_stats):
        click.echo(line)


async def _clear(settings: Settings, epochs: Epochs) -> int | None:
    state = await epochs.read()
    if not state.on:
        return None
    if settings.redis_url is None:  # the entries are in the memory of another process
        await epochs.turn_off()
        return None
    return await _with_store(settings.redis_url, lambda store: store.sweep(state.prefix))


async def _stats(settings: Settings, epochs: Epochs) -> list[str]:
    state = await epochs.read()
    lines = [f"The cache is {'on' if state.on else 'off'}, epoch {state.epoch}"]
    if not state.on:
        return lines
    lines.append(f"Store: {state.run_id}")
    if settings.redis_url is None or state.run_id.startswith("memory-"):
        return [*lines, "Its entries are in the memory of the process that serves"]
    names = await _with_store(settings.redis_url, lambda store: store.names(state.prefix))
    counts = Counter(name.partition(":")[0] for name in names)
    return [*lines, *(f"  {kind}: {n}" for kind, n in sorted(counts.items()))]


async def _with_store(url: str, work: Callable[[RedisStore], Awaitable[T]]) -> T:
    """Run `work` with the Redis store. Raises ClickException if Redis fails."""
    store = RedisStore(url)
    try:
        return await work(store)
    except FAILURES as error:
        raise click.ClickException(
            f"Redis cannot be reached: {error}. Start it, or set REDIS_URL"
        ) from None
    finally:
        await store.close()


def _with_row(work: Callable[[Settings, Epochs], Awaitable[T]]) -> T:
    """Open the database, run `work` with the settings and the epochs, and close the database."""
    settings = load_from_environment()

    async def run() -> T:
        database = Database(settings)
        await database.open()
        try:
            return await work(settings, database.epochs)
        finally:
            await database.close()

    return asyncio.run(run())
