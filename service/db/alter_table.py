"""Change a table in a migration, without the loss of dependent objects on SQLite."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from alembic import op
from alembic.operations import BatchOperations
from sqlalchemy import text

AUTOINCREMENT = text("""SELECT sql LIKE '%AUTOINCREMENT%' FROM sqlite_master
    WHERE type = 'table' AND name = :table""")
HIGHEST_ID = text("SELECT seq FROM sqlite_sequence WHERE name = :table")
# The views and the triggers of all tables: SQLite does not rename a table while a view or trigger
# refers to a missing table. Views sort before triggers, because a view can have a trigger.
DEPENDENTS = text("""SELECT type, name, sql FROM sqlite_master
    WHERE type IN ('view', 'trigger') OR (type = 'index' AND tbl_name = :table AND sql IS NOT NULL)
    ORDER BY type = 'trigger', rowid""")
# SQLite creates a view or trigger even if its columns do not exist. Only ALTER TABLE ... RENAME
# checks them.
RESOLVE_NAMES = (
    "CREATE TABLE _before (id)",
    "ALTER TABLE _before RENAME TO _after",
    "DROP TABLE _after",
)
HAS_STATISTICS = text("SELECT 1 FROM sqlite_master WHERE name = 'sqlite_stat1'")
ANALYZED_ROWS = 1_000  # rows of each index that ANALYZE reads


@contextmanager
def alter_table(table: str, **options: Any) -> Iterator[BatchOperations]:
    """Change a table with Alembic's batch operations, and keep the objects that depend on it.

    PostgreSQL alters the table. SQLite cannot: there Alembic copies the rows to a new table, drops
    the old table and renames the new one. Without an error it loses triggers, indexes on
    expressions, AUTOINCREMENT, the highest id that was ever used, and the statistics. This function
    restores them in the same transaction.

    A view, trigger or index that does not fit the changed table makes the migration fail. Drop such
    an object with `op`, before the block or in it, and create its replacement after the block.
    `batch` does not know existing indexes: use `op.drop_index`.

    options: for `op.batch_alter_table`, except `table_kwargs`. `recreate` applies to SQLite only.
    Raises RuntimeError on SQLite if foreign keys are enforced.
    """
    connection = op.get_bind()
    if connection.dialect.name != "sqlite":
        with op.batch_alter_table(table, **options | {"recreate": "never"}) as batch:
            yield batch
        return
    if connection.scalar(text("PRAGMA foreign_keys")):
        raise RuntimeError(
            "PRAGMA foreign_keys is on: dropping the old table would delete the rows that refer to"
            " it. Turn the pragma off before the transaction begins, as alembic/env.py does"
        )
    named = {"table": table}
    has_autoincrement = bool(connection.scalar(AUTOINCREMENT, named))
    highest_id = None
    with op.batch_alter_table(
        table, **options, table_kwargs={"sqlite_autoincrement": has_autoincrement}
    ) as batch:
        yield batch
        if has_autoincrement:
            highest_id = connection.scalar(HIGHEST_ID, named)
        dependents = connection.execute(DEPENDENTS, named).all()
        for dependent in reversed(dependents):
            connection.exec_driver_sql(f'DROP {dependent.type} "{dependent.name}"')
    for dependent in dependents:
        connection.exec_driver_sql(dependent.sql)
    for statement in RESOLVE_NAMES:
        connection.exec_driver_sql(statement)
    if highest_id is not None:
        connection.execute(text("DELETE FROM sqlite_sequence WHERE name = :table"), named)
        restore = text("INSERT INTO sqlite_sequence (name, seq) VALUES (:table, :seq)")
        connection.execute(restore, {**named, "seq": highest_id})
    if connection.scalar(HAS_STATISTICS):
        connection.exec_driver_sql(f"PRAGMA analysis_limit = {ANALYZED_ROWS}")
        connection.exec_driver_sql(f'ANALYZE "{table}"')
