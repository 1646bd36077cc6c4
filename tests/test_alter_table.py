"""Migrations that change a table keep its triggers, indexes, ids, and rows that refer to it."""

import asyncio
import os
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import Connection, delete, func, inspect, select, text, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession

from service.db import migrations
from service.db.alter_table import alter_table
from service.db.database import Database
from service.importer.loader import add_new
from service.models import Base, Book, BookViews, ImportedRecord
from service.models.search import found_by, query_of
from service.sample_data.generated import generated_books
from service.users.service import create_user
from tests.conftest import fresh_catalogue
from tests.test_counts import counted, kept

# SQLAlchemy reads the indexes of a table for its unique constraints.
pytestmark = pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based")

REVISION = '''
"""A later change."""

import sqlalchemy as sa
from alembic import op

from service.db.alter_table import alter_table

revision = "later"
down_revision = "{head}"
branch_labels = None
depends_on = None


def upgrade():
{body}
'''
# Both keep the tables as in the models. SQLite creates new tables for both.
RENEW_CONSTRAINT = """
    with alter_table("books") as batch:
        batch.drop_constraint(op.f("ck_books_version"), type_="check")
        batch.create_check_constraint(op.f("ck_books_version"), "version >= 1")
"""
RENEW_ALL_TABLES = f"""
    for table in {sorted(Base.metadata.tables)}:
        with alter_table(table, recreate="always"):
            pass
"""
DROP_GENRE = """
    op.drop_index("ix_books_genre", "books")
    with alter_table("books") as batch:
        batch.drop_constraint(op.f("ck_books_genre"), type_="check")
        batch.drop_column("genre")
"""
OTHER_DEPENDENTS = (
    "CREATE VIEW fiction AS SELECT id, title FROM books WHERE genre = 'Fiction'",
    """CREATE TRIGGER fiction_deleted INSTEAD OF DELETE ON fiction BEGIN
        DELETE FROM books WHERE id = old.id;
    END""",
    """CREATE TRIGGER users_renamed AFTER UPDATE OF username ON users BEGIN
        UPDATE books SET version = version + 1 WHERE user_id = new.id;
    END""",
    "CREATE INDEX ix_by_title ON books (title COLLATE NOCASE DESC) WHERE genre IS NOT NULL",
)
DEFINITIONS = {
    "sqlite": "SELECT name, sql FROM sqlite_master WHERE type <> 'table' AND sql IS NOT NULL",
    "postgresql": """SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
        UNION ALL SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'""",
}


def with_revision(database: Database, folder: Path, body: str) -> Config:
    """Give Alembic's configuration with one more revision, whose upgrade is `body`."""
    body = indent(dedent(body).strip(), "    ")
    script = REVISION.format(head=migrations.head(), body=body)
    (folder / "later.py").write_text(script, encoding="utf-8")
    config = migrations.configuration(database.url)
    config.set_main_option("path_separator", "os")
    locations = (str(migrations.ROOT / "alembic" / "versions"), str(folder))
    config.set_main_option("version_locations", os.pathsep.join(locations).replace("%", "%%"))
    return config


async def filled(database: Database) -> int:
    """Add imported books, and delete the newest of them. Give the highest id ever used."""

    async def fill(db: AsyncSession) -> int:
        user = await create_user(db, "owner", "owner@example.org", "x")
        await add_new(db, list(generated_books(50, 1)), user.id)
        highest = await db.scalar(select(func.max(Book.id)))
        await db.execute(delete(Book).where(Book.id == highest))
        return int(highest or 0)

    return await database.write(fill)


async def definitions(database: Database) -> dict[str, str]:
    """Read the SQL of each trigger, view and index."""
    query = text(DEFINITIONS[database.url.get_backend_name()])
    async with database.session() as db:
        return {name: " ".join(sql.split()) for name, sql in await db.execute(query)}


async def rows(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    """Read all rows of all tables."""
    async with database.session() as db:
        return {
            name: [tuple(row) for row in await db.execute(table.select().order_by(text("1")))]
            for name, table in Base.metadata.tables.items()
        }


async def structure(database: Database) -> dict[str, list[Any]]:
    """Read the columns and constraints of all tables."""

    def read(connection: Connection) -> dict[str, list[Any]]:
        inspector = inspect(connection)
        return {
            table: [
                [
                    {**column, "type": str(column["type"])}
                    for column in inspector.get_columns(table)
                ],
                inspector.get_pk_constraint(table),
                inspector.get_foreign_keys(table),
                sorted(inspector.get_unique_constraints(table), key=str),
                sorted(
                    inspector.get_check_constraints(table), key=lambda check: str(check["name"])
                ),
            ]
            for table in Base.metadata.tables
        }

    async with database.session() as db:
        return await (await db.connection()).run_sync(read)


async def titled(database: Database, word: str) -> list[str]:
    """Search for a word."""
    query = query_of(word, database.url.get_backend_name())
    condition = found_by(Book.__table__.c, database.url.get_backend_name())
    async with database.session() as db:
        return list(await db.scalars(select(Book.title).where(condition), {"q": query}))


async def add(database: Database, title: str) -> int:
    """Add a book, and give its id."""

    async def work(db: AsyncSession) -> int:
        book = Book(title=title, author="Anna", **Book.derived(title, "Anna"))
        db.add(book)
        await db.flush()
        return book.id

    return await database.write(work)


async def check_books(database: Database, highest: int) -> None:
    """Assert that ids, search, totals and cascades are right after changes of the books."""
    book_id = await add(database, "Zanzibar")
    assert book_id > highest
    assert await titled(database, "zanzibar") == ["Zanzibar"]
    assert await kept(database) == await counted(database)
    changed = {"title": "Quokka", "search": "quokka anna", "genre": "Science"}
    await database.write(
        lambda db: db.execute(update(Book).where(Book.id == book_id).values(changed))
    )
    assert (await titled(database, "zanzibar"), await titled(database, "quokka")) == (
        [],
        ["Quokka"],
    )
    assert await kept(database) == await counted(database)
    async with database.session() as db:
        imported = await db.scalar(select(func.min(ImportedRecord.book_id)))
    await database.write(
        lambda db: db.execute(delete(Book).where(Book.id.in_([book_id, imported])))
    )
    assert await titled(database, "quokka") == []
    assert await kept(database) == await counted(database)
    async with database.session() as db:
        assert await db.get(ImportedRecord, imported) is None
        assert await db.get(BookViews, imported) is None
    if database.url.get_backend_name() == "sqlite":
        check = text("INSERT INTO books_fts(books_fts, rank) VALUES ('integrity-check', 1)")
        await database.write(lambda db: db.execute(check))


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
@pytest.mark.parametrize("body", [RENEW_CONSTRAINT, RENEW_ALL_TABLES], ids=["constraint", "all"])
async def test_a_changed_table_keeps_its_triggers_indexes_constraints_and_rows(
    backend: str, body: str, request: pytest.FixtureRequest, folder: Path, tmp_path: Path
) -> None:
    async with fresh_catalogue(backend, request, folder) as database:
        highest = await filled(database)
        before = await definitions(database), await structure(database), await rows(database)
        assert len(before[2]["imported_records"]) == len(before[2]["book_views"]) == 49
        config = with_revision(database, tmp_path, body)
        await asyncio.to_thread(command.upgrade, config, "later")
        await asyncio.to_thread(command.check, config)
        assert await definitions(database) == before[0]
        assert await structure(database) == before[1]
        assert await rows(database) == before[2]
        await check_books(database, highest)


@pytest.mark.parametrize("backend", ["sqlite"])
async def test_the_ids_of_an_empty_table_are_not_used_again(
    backend: str, request: pytest.FixtureRequest, folder: Path, tmp_path: Path
) -> None:
    async with fresh_catalogue(backend, request, folder) as database:
        highest = await filled(database)
        await database.write(lambda db: db.execute(delete(Book)))
        config = with_revision(database, tmp_path, RENEW_CONSTRAINT)
        await asyncio.to_thread(command.upgrade, config, "later")
        assert await add(database, "Zanzibar") == highest + 1


@pytest.mark.parametrize("backend", ["sqlite"])
async def test_views_triggers_of_other_tables_and_statistics_are_kept(
    backend: str, request: pytest.FixtureRequest, folder: Path, tmp_path: Path
) -> None:
    async def analyzed() -> set[tuple[Any, ...]]:
        async with database.session() as db:
            return {tuple(row) for row in await db.execute(text("SELECT * FROM sqlite_stat1"))}

    async with fresh_catalogue(backend, request, folder) as database:
        highest = await filled(database)
        async with database.writer.begin() as connection:
            for statement in (*OTHER_DEPENDENTS, "ANALYZE"):
                await connection.execute(text(statement))
        before, statistics = await definitions(database), await analyzed()
        assert {"fiction", "fiction_deleted", "users_renamed", "ix_by_title"} < set(before)
        config = with_revision(database, tmp_path, RENEW_ALL_TABLES)
        await asyncio.to_thread(command.upgrade, config, "later")
        assert await definitions(database) == before
        assert await analyzed() == statistics
        await check_books(database, highest)


@pytest.mark.parametrize("backend", ["sqlite"])
@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        (DROP_GENRE, OperationalError, "error in trigger books_.*: no such column: new.genre"),
        ('op.execute("DELETE FROM users")', CommandError, "later, rows of books refer to rows"),
    ],
    ids=["a trigger does not fit", "rows refer to nothing"],
)
async def test_a_migration_with_an_error_changes_nothing(
    backend: str,
    body: str,
    error: type[Exception],
    message: str,
    request: pytest.FixtureRequest,
    folder: Path,
    tmp_path: Path,
) -> None:
    async with fresh_catalogue(backend, request, folder) as database:
        highest = await filled(database)
        before = await definitions(database), await structure(database), await rows(database)
        config = with_revision(database, tmp_path, body)
        with pytest.raises(error, match=message):
            await asyncio.to_thread(command.upgrade, config, "later")
        assert (
            await definitions(database), await structure(database), await rows(database)
        ) == before  # fmt: skip
        await check_books(database, highest)


@pytest.mark.parametrize("backend", ["sqlite"])
async def test_a_table_is_not_dropped_while_foreign_keys_are_on(
    backend: str, request: pytest.FixtureRequest, folder: Path
) -> None:
    def change(connection: Connection) -> None:
        with (
            Operations.context(MigrationContext.configure(connection)),
            pytest.raises(RuntimeError, match="foreign_keys is on"),
            alter_table("books"),
        ):
            pass

    async with (
        fresh_catalogue(backend, request, folder) as database,
        database.writer.connect() as connection,
    ):
        await connection.run_sync(change)
