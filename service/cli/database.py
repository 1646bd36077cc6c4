"""Functions for commands that write to the database."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import click
from sqlalchemy.ext.asyncio import AsyncSession

from service.config import load_from_environment
from service.db.database import Database
from service.sample_data.shipped import fill_if_empty, shipped_books

T = TypeVar("T")


def write_once(work: Callable[[AsyncSession], Awaitable[T]]) -> T:
    """Open the database, run `work` as one write, and close the database. Return the result."""

    async def run() -> T:
        database = Database(load_from_environment())
        await database.open()
        try:
            return await database.write(work)
        finally:
            await database.close()

    return asyncio.run(run())


def fill_with_shipped_books() -> None:
    """Add the shipped books to an empty catalogue, and print the result."""
    books = shipped_books()
    added = write_once(lambda db: fill_if_empty(db, books))
    click.echo(f"{added} books added" if added else "The catalogue has books already: none added")
