"""What a write touches, as its session sees it: no write can forget to say so."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Insert, Row, TextClause, event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import ORMExecuteState, Session

from service.cache.epochs import CLOCK, State, told_state, with_state
from service.models import Base, Book, User

CACHED: dict[type[Base], str] = {Book: "book", User: "user"}
TABLES = {model.__table__: name for model, name in CACHED.items()}
LISTED = "book"  # what lists are made of
CHANGES = re.compile(r"\s*(insert|update|delete|merge|truncate|with)\b", re.IGNORECASE)
MOST = 500  # keys of one write; beyond that the whole cache goes


@dataclass
class Touched:
    """Keys of the rows that change; `many`: more than could be named.

    state: the row of the epoch, if the last statement has read it.
    """

    keys: set[str] = field(default_factory=set)
    many: bool = False
    state: State | None = None

    @property
    def lists(self) -> bool:
        """Whether lists change as well."""
        return any(key.startswith(LISTED) for key in self.keys)


class WriteSession(Session):
    """A session that remembers which cached rows it changes."""


def touched(db: AsyncSession) -> Touched:
    """Give what a session has changed so far."""
    return _of(db.sync_session)


def touch_books(db: AsyncSession, ids: Any) -> None:
    """Say that books change which the database changes by itself: as it deletes a user's."""
    found = touched(db)
    found.keys |= {f"book:{book_id}" for book_id in ids}
    found.many |= len(found.keys) > MOST


async def insert_books(
    db: AsyncSession, statement: Insert, values: Mapping[str, Any]
) -> Sequence[Row[Any]]:
    """Insert books, as the last of a write: give what its statement returns.

    It goes around the ORM, which costs more than all the rest, and reads the row of the epoch in
    the same statement. That is as good as after it: nobody else has had these rows.
    """
    rows = await db.run_sync(_insert, statement, values)
    if rows:
        touch_books(db, [row.id for row in rows])
        touched(db).state = told_state(rows[0])
    return rows


def _insert(session: Session, statement: Insert, values: Mapping[str, Any]) -> Sequence[Row[Any]]:
    connection = session.connection()
    telling = with_state(statement, CLOCK[connection.dialect.name])
    return connection.execute(telling, values).all()


def _of(session: Session) -> Touched:
    found: Touched = session.info.setdefault("touched", Touched())
    return found


@event.listens_for(WriteSession, "after_flush")
def _flushed(session: Session, context: Any) -> None:
    changed = [*session.new, *session.deleted]
    changed += (row for row in session.dirty if session.is_modified(row))
    found = _of(session)
    found.keys |= {f"{CACHED[type(row)]}:{row.id}" for row in changed if type(row) in CACHED}
    found.many |= len(found.keys) > MOST


@event.listens_for(WriteSession, "do_orm_execute")
def _executed(state: ORMExecuteState) -> None:
    """Statements about many rows do not say which."""
    if state.is_insert or state.is_update or state.is_delete:
        table: Any = getattr(state.statement, "table", None)
        _of(state.session).many |= getattr(table, "element", table) in TABLES
    elif isinstance(state.statement, TextClause) and CHANGES.match(state.statement.text):
        _of(state.session).many = True
