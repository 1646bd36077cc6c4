"""Run Alembic's migrations on an async engine, in one transaction, one run at a time.

Only the online mode is supported: `alembic upgrade --sql` is not.
"""

import asyncio
import warnings
from typing import Any

from alembic import context
from alembic.runtime.migration import MigrationContext, MigrationInfo
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from service import config as settings
from service.db.engines import prepare_sqlite
from service.models import Base

LOCK = 0x0C7A_0001  # PostgreSQL's advisory lock: only one process migrates at a time
CONNECT_SECONDS = 10
ONLY_SQLITE, ONLY_POSTGRESQL = ("books_fts",), ("ix_books_search", "ix_search_words_trigrams")
BUSY_MS = 120_000  # milliseconds: on SQLite a second process waits for the first so long


def wanted(thing: Any, name: str | None, kind: str, reflected: bool, other: Any) -> bool:
    """Whether Alembic compares an object with the models; not the search indexes of SQLite."""
    sqlite = context.get_bind().dialect.name == "sqlite"
    return not (sqlite and name is not None and name.startswith(ONLY_SQLITE + ONLY_POSTGRESQL))


def check_references(*, ctx: MigrationContext, step: MigrationInfo, **_: Any) -> None:
    """Raise CommandError if rows refer to missing rows: here SQLite enforces no foreign keys."""
    if ctx.dialect.name != "sqlite":
        return
    broken = {row[0] for row in ctx.connection.execute(text("PRAGMA foreign_key_check"))}
    if broken:
        raise CommandError(
            f"After the migration {step.up_revision_id}, rows of {', '.join(sorted(broken))} refer"
            " to rows that do not exist. The database is as it was before. If `PRAGMA"
            " foreign_key_check` lists such rows, delete them and migrate again; if it lists none,"
            " the migration is wrong"
        )


def migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        include_object=wanted,
        compare_server_default=False,  # PostgreSQL rewrites the expressions of default times
        render_as_batch=connection.dialect.name == "sqlite",
        transactional_ddl=True,
        on_version_apply=check_references,
    )
    with context.begin_transaction():
        if connection.dialect.name == "postgresql":
            connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
        with warnings.catch_warnings():
            # SQLAlchemy cannot reflect SQLite's indexes on expressions; a test checks each of them.
            warnings.filterwarnings("ignore", ".*expression-based index")
            context.run_migrations()


async def main() -> None:
    url = context.config.attributes.get("url")
    if url is None:
        url = settings.load_from_environment().database
    patience = {} if url.get_backend_name() == "sqlite" else {"timeout": CONNECT_SECONDS}
    engine = create_async_engine(url, poolclass=NullPool, connect_args=patience)
    if url.get_backend_name() == "sqlite":
        # If foreign keys were enforced, DROP TABLE would delete the rows that refer to the table.
        prepare_sqlite(engine, begin="BEGIN IMMEDIATE", busy_ms=BUSY_MS, foreign_keys=False)
    async with engine.connect() as connection:
        await connection.run_sync(migrate)
    await engine.dispose()


asyncio.run(main())
