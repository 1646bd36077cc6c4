"""Find the rows that the database changes when it deletes a row, by following foreign keys."""

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, ForeignKeyConstraint, Table, select, tuple_

from service.models.cached import CACHED_MODELS, CachedModel

Changes = dict[CachedModel, set[Any]]  # the ids of the rows that change


def dependent_models(table: Table) -> set[CachedModel]:
    """Return the cached models with a foreign key to a table in which the delete removes rows.

    This includes foreign keys without ON DELETE: even if no row refers to the deleted row, an
    empty list of such rows may be cached.
    """
    models = set()
    deleted = [table]
    for parent in deleted:  # the list grows: a cascade may continue from each child
        for key in _references(parent):
            if key.table in CACHED_MODELS:
                models.add(CACHED_MODELS[key.table])
            if _deletes(key) and key.table not in deleted:
                deleted.append(key.table)
    return models


def dependent_rows(
    connection: Connection, table: Table, identities: Sequence[Sequence[Any]], most: int
) -> Changes | None:
    """Select the cached rows that the database changes when it deletes rows of `table`.

    identities: the primary keys of these rows. None: the cascade reaches more than `most` rows.
    Each row that the cascade deletes is locked before its children are selected. An insert of a
    child locks its parent as well (FOR KEY SHARE), so no child can be added in between. SQLite
    locks nothing: it has one writer at a time.
    """
    changes: Changes = {}
    seen: set[tuple[Any, ...]] = set()
    pending = [(table, list(table.primary_key), list(map(tuple, identities)), True)]
    while pending:
        table, columns, values, is_deleted = pending.pop()
        keys = list(_followed(table)) if is_deleted else []
        if not keys and not seen:
            return {}  # the rows themselves have no dependent rows
        referred = (element.column for key in keys for element in key.elements)
        selected = list(dict.fromkeys([*table.primary_key, *referred]))
        query = select(*selected).where(tuple_(*columns).in_(values)).limit(most + 1)
        if keys:
            query = query.order_by(*table.primary_key).with_for_update()
        rows = [
            dict(zip(selected, row, strict=True))
            for row in connection.execute(query)
            if (table, is_deleted, *row) not in seen
        ]
        seen |= {(table, is_deleted, *row.values()) for row in rows}
        if len(seen) > most:
            return None
        if rows and table in CACHED_MODELS:
            model = CACHED_MODELS[table]
            changes.setdefault(model, set()).update(row[model.key] for row in rows)
        for key in keys if rows else ():
            parents = [tuple(row[element.column] for element in key.elements) for row in rows]
            pending.append((key.table, list(key.columns), parents, _deletes(key)))
    return changes


def _references(table: Table) -> Iterator[ForeignKeyConstraint]:
    """Return the foreign keys that refer to a table."""
    for other in table.metadata.tables.values():
        for key in other.foreign_key_constraints:
            if key.referred_table == table:  # a table of a statement can be an annotated copy
                yield key


def _followed(table: Table) -> Iterator[ForeignKeyConstraint]:
    """Return the foreign keys by which a delete in a table changes cached rows."""
    for key in _references(table):
        is_cached = key.table in CACHED_MODELS
        if (_deletes(key) and (is_cached or dependent_models(key.table))) or (
            is_cached and _action(key).startswith("SET ")
        ):
            yield key


def _deletes(key: ForeignKeyConstraint) -> bool:
    return _action(key) == "CASCADE"


def _action(key: ForeignKeyConstraint) -> str:
    return (key.ondelete or "").upper()
