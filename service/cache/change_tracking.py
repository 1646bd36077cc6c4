"""Change tracking: the session of a write records every cached row that it changes."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    Connection,
    Insert,
    Row,
    Table,
    TextClause,
    Update,
    bindparam,
    delete,
    event,
    inspect,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapper, ORMExecuteState, Session, object_mapper, object_session
from sqlalchemy.sql.dml import ReturningDelete

from service.cache.cascades import dependent_models, dependent_rows
from service.cache.state import CLOCK, State, state_in, with_state
from service.models.cached import CACHED_MODELS, CachedModel

CHANGES = re.compile(r"\s*(insert|update|delete|merge|truncate|with)\b", re.IGNORECASE)
MAX_CHANGED_KEYS = 2_000  # of one write; a write of more rows turns the cache off


@dataclass
class Changes:
    """The changes of a write: the keys of rows, and the kinds whose lists change.

    many: the changed rows are unknown, or more than MAX_CHANGED_KEYS. state: the row of the epoch,
    if the last statement of the write has read it.
    """

    keys: set[str] = field(default_factory=set)
    lists: set[str] = field(default_factory=set)
    many: bool = False
    state: State | None = None

    def __bool__(self) -> bool:
        return bool(self.keys or self.lists or self.many)

    def add(self, model: CachedModel, ids: Iterable[Any]) -> None:
        """Add rows of a model, and its lists. Without ids: lists change, but no row of theirs."""
        self.keys.update(f"{model.kind}:{row_id}" for row_id in ids)
        if model.lists:
            self.lists.add(model.kind)
        self.many |= len(self.keys) > MAX_CHANGED_KEYS

    def add_deleted(
        self, connection: Connection, table: Table, identities: Sequence[Sequence[Any]]
    ) -> None:
        """Add rows that are about to be deleted, with all that the database changes with them."""
        if table in CACHED_MODELS:
            self.add(CACHED_MODELS[table], (row_id for (row_id,) in identities))
        for model in dependent_models(table):
            self.add(model, ())
        rows = dependent_rows(connection, table, identities, MAX_CHANGED_KEYS)
        self.many |= rows is None
        for model, ids in (rows or {}).items():
            self.add(model, ids)


class WriteSession(Session):
    """A session that tracks which cached rows it changes."""


def changes_of(db: AsyncSession) -> Changes:
    """Return the changes of a session so far."""
    return _of(db.sync_session)


def touch_rows(db: AsyncSession, model: Any, ids: Iterable[int]) -> None:
    """Record rows of a model that this session changes indirectly, such as by a trigger."""
    changes_of(db).add(CACHED_MODELS[model.__table__], ids)


async def write_rows(
    db: AsyncSession, model: Any, statement: Insert | Update, values: Mapping[str, Any]
) -> Sequence[Row[Any]]:
    """Insert or update rows, as a write's last change of cached rows. Return the statement's rows.

    The statement must return the `id` of each row, and the write must hold the locks of updated
    rows. This function bypasses the ORM, which would take most of the CPU time, and reads the row
    of the epoch in the same statement. A later read would be no safer: no other transaction can
    change these rows.
    """
    rows = await db.run_sync(_execute, statement, values)
    if rows:
        touch_rows(db, model, [row.id for row in rows])
        changes_of(db).state = state_in(rows[0])
    return rows


async def delete_row(db: AsyncSession, model: Any, row_id: int) -> None:
    """Delete a row without the ORM, as the last step of a write, which holds the row's lock."""
    table: Table = model.__table__
    await delete_rows(db, model, [row_id], _deletion(table), {"row_id": row_id})


async def delete_rows(
    db: AsyncSession,
    model: Any,
    row_ids: Sequence[int],
    statement: ReturningDelete[Any],
    values: Mapping[str, Any],
) -> None:
    """Delete rows without the ORM, as the last step of a write, which holds the rows' locks.

    statement: deletes exactly these rows, at least one, and returns a column of each.
    """
    await db.run_sync(_delete, model.__table__, row_ids, statement, values)


def _delete(
    session: Session,
    table: Table,
    row_ids: Sequence[int],
    statement: ReturningDelete[Any],
    values: Mapping[str, Any],
) -> None:
    changes = _of(session)
    changes.add_deleted(session.connection(), table, [[row_id] for row_id in row_ids])
    row, *_ = _execute(session, statement, values)
    changes.state = state_in(row)


@lru_cache
def _deletion(table: Table) -> Any:
    (key,) = table.primary_key
    return delete(table).where(key == bindparam("row_id")).returning(key)


def _execute(session: Session, statement: Any, values: Mapping[str, Any]) -> Sequence[Row[Any]]:
    connection = session.connection()
    with_epoch = with_state(statement, CLOCK[connection.dialect.name])
    return connection.execute(with_epoch, values).all()


def _of(session: Session) -> Changes:
    changes: Changes = session.info.setdefault("touched", Changes())
    return changes


@event.listens_for(WriteSession, "after_flush")
def _flushed(session: Session, context: Any) -> None:
    for row in [*session.new, *(row for row in session.dirty if session.is_modified(row))]:
        mapper = object_mapper(row)
        for table in mapper.tables:
            if table in CACHED_MODELS:
                _of(session).add(CACHED_MODELS[table], mapper.primary_key_from_instance(row))


@event.listens_for(Mapper, "before_delete")
def _deleted(mapper: Mapper[Any], connection: Connection, row: Any) -> None:
    """Record the cascade before the DELETE: afterwards its rows cannot be selected."""
    session, identity = object_session(row), inspect(row).identity
    tables: Any = mapper.tables
    if isinstance(session, WriteSession):
        for table in tables:
            _of(session).add_deleted(connection, table, [identity])


@event.listens_for(WriteSession, "do_orm_execute")
def _executed(state: ORMExecuteState) -> None:
    """Set `many` for a bulk statement that may change cached rows: their ids are unknown."""
    if state.is_insert or state.is_update or state.is_delete:
        table: Any = getattr(state.statement, "table", None)
        table = getattr(table, "element", table)  # of an alias
        is_unknown = not isinstance(table, Table) or table in CACHED_MODELS
        if is_unknown or (state.is_delete and dependent_models(table)):
            _of(state.session).many = True
    elif isinstance(state.statement, TextClause) and CHANGES.match(state.statement.text):
        _of(state.session).many = True
