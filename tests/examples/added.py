"""Adds the example to the applications of a test."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from quart import Blueprint

from service.db.database import Database


class Reviews:
    """The blueprint of reviews, and their table.

    The table is in the metadata only during a test: other tests compare the metadata with the
    migrations, and delete users in databases that have no such table.
    """

    def __init__(self) -> None:
        self.blueprint: Blueprint = import_module("tests.examples.reviews").reviews_bp
        models = import_module("tests.examples.reviews.models")
        self.table: Any = models.Review.__table__

    @classmethod
    @contextmanager
    def added(cls) -> "Iterator[Reviews]":
        """Add the table to the metadata for a while."""
        reviews = cls()
        table, metadata = reviews.table, reviews.table.metadata
        if table.name not in metadata.tables:  # an earlier test has removed it
            metadata._add_table(table.name, None, table)  # private: as SQLAlchemy does
        try:
            yield reviews
        finally:
            metadata.remove(table)

    async def create_table(self, database: Database) -> None:
        """Create the table in a database."""
        async with database.writer.begin() as connection:
            await connection.run_sync(self.table.create)

    async def drop_table(self, database: Database) -> None:
        """Drop the table."""
        async with database.writer.begin() as connection:
            await connection.run_sync(self.table.drop)
