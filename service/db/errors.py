"""Classify the errors of PostgreSQL and SQLite: unavailable, busy, invalid value, retryable."""

import re
import sqlite3
from typing import NamedTuple

from asyncpg.exceptions import InvalidCachedStatementError
from sqlalchemy import UniqueConstraint
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from service.models import Base


class ServerState(NamedTuple):
    """A kind of error caused by the state of the database, not by the request: 503, Retry-After.

    codes: prefix of its codes: SQLSTATE on PostgreSQL, error names on SQLite. why: the meaning.
    leaves: the connection is removed from the pool, because it may be unusable.
    """

    codes: str
    why: str
    leaves: bool = False


POSTGRESQL_STATES: tuple[ServerState, ...] = (
    ServerState("08", "The connection broke, or could not be made.", leaves=True),
    ServerState("25006", "Read-only: a standby, or by a setting.", leaves=True),
    ServerState("25P03", "Idle for too long within a transaction: disconnected.", leaves=True),
    ServerState("25P04", "A transaction took too long: disconnected.", leaves=True),
    ServerState("26000", "A prepared statement is gone: behind a pooler.", leaves=True),
    ServerState("28", "The login was refused: roles or passwords are being changed."),
    ServerState("3D", "There is no such database: it is being restored."),
    ServerState("40", "Undone for another transaction, or in conflict with recovery on a standby."),
    ServerState("53", "Out of disk, memory or connections."),
    ServerState("55000", "Not in the state for this: no connections are let in, or recovery."),
    ServerState("55006", "The database is in use by an operator's command."),
    ServerState("55P03", "Another transaction held a lock for too long."),
    ServerState("57014", "A statement took too long, or an operator canceled it."),
    ServerState("57", "Shutting down, crashed, starting, or being dropped.", leaves=True),
    ServerState("58", "An I/O error of the server, or a file of it that is missing."),
    ServerState("72", "A snapshot is too old."),
    ServerState("F0", "The server's configuration file is wrong."),
    ServerState("XX", "The server failed within, or its data is damaged."),
)
SQLITE_STATES: tuple[ServerState, ...] = (
    ServerState("SQLITE_BUSY", "Another process held the file for too long."),
    ServerState("SQLITE_LOCKED", "Another connection held a table for too long."),
    ServerState("SQLITE_INTERRUPT", "An operator interrupted a statement."),
    ServerState("SQLITE_FULL", "The disk is full."),
    ServerState("SQLITE_NOMEM", "There is no memory."),
    ServerState("SQLITE_READONLY", "The file cannot be written, or was moved.", leaves=True),
    ServerState("SQLITE_PERM", "The file may not be used so.", leaves=True),
    ServerState("SQLITE_CANTOPEN", "The file, or one beside it, cannot be opened.", leaves=True),
    ServerState("SQLITE_IOERR", "The disk failed.", leaves=True),
    ServerState("SQLITE_PROTOCOL", "The locks of WAL could not be had.", leaves=True),
    ServerState("SQLITE_NOLFS", "The file is too large for this system."),
    ServerState("SQLITE_CORRUPT", "The file is damaged.", leaves=True),
    ServerState("SQLITE_NOTADB", "The file is no database.", leaves=True),
)
REFUSED = "42501"  # insufficient privilege: while connecting, unavailable; in a statement, a defect
BUSY = ("55P03", "SQLITE_BUSY", "SQLITE_LOCKED")
READ_ONLY = ("25006", "SQLITE_READONLY")
# The column cannot store the value: too long, out of range, not a date, not text of the encoding,
# or refused by a CHECK constraint.
UNSTORABLE_STATES = re.compile("22000|22001|22003|22007|22008|22021|22P02|22P05|23514")
MISSING_SQLITE = re.compile(r"no such (table|column)|table \w+ has no column")
UNSTORABLE_SQLITE = re.compile("SQLITE_(CONSTRAINT_CHECK|TOOBIG|MISMATCH)")
RETRIED_STATES = {"40001", "40P01"}  # serialization failure, deadlock


def sqlstate(error: BaseException | None) -> str | None:
    """Return the SQLSTATE (five characters) of a PostgreSQL driver's error, or None."""
    state = getattr(error, "sqlstate", None)
    return state if isinstance(state, str) else None


def driver_error(error: BaseException | None) -> BaseException | None:
    """Return the driver's error that SQLAlchemy wraps; any other error is returned as it is."""
    if not isinstance(error, DBAPIError):
        return error
    try:
        return error.driver_exception
    except ValueError:  # SQLAlchemy loses the driver's error for an invalid prepared statement
        return error.orig and error.orig.__cause__


def server_state(error: BaseException | None) -> ServerState | None:
    """Return the ServerState of a driver's error; None if the error has another cause."""
    if isinstance(error, sqlite3.Error):
        code, states = getattr(error, "sqlite_errorname", ""), SQLITE_STATES
    else:
        code, states = sqlstate(error) or "", POSTGRESQL_STATES
    return next((state for state in states if code.startswith(state.codes)), None)


def is_read_only(error: BaseException | None) -> bool:
    """Whether an error says that the server of the connection accepts no writes."""
    state = server_state(error)
    return state is not None and state.codes in READ_ONLY


def is_retryable(error: DBAPIError) -> bool:
    """Whether a transaction that was rolled back can succeed if it is run again now.

    Causes: a serialization failure or deadlock; a migration that made a prepared statement invalid;
    a connection to a read-only server that has been removed from the pool.
    """
    driver = driver_error(error)
    if is_read_only(driver):
        return error.connection_invalidated
    return sqlstate(driver) in RETRIED_STATES or isinstance(driver, InvalidCachedStatementError)


def is_unavailable(error: BaseException | None) -> bool:
    """Whether an error means that the database is unavailable, and not a defect of this code."""
    if isinstance(error, DBAPIError):
        driver = driver_error(error)
        is_refused = error.statement is None and sqlstate(driver) == REFUSED
        return error.connection_invalidated or is_refused or is_unavailable(driver)
    unavailable = PoolTimeoutError | OSError | TimeoutError | InvalidCachedStatementError
    return server_state(error) is not None or isinstance(error, unavailable)


def is_busy(error: BaseException | None) -> bool:
    """Whether an error means that another transaction or process held a lock for too long."""
    state = server_state(driver_error(error))
    return state is not None and state.codes in BUSY


def is_unstorable(error: BaseException | None) -> bool:
    """Whether an error means that the database cannot store a value that validation accepted."""
    if not isinstance(error, DBAPIError):
        return False
    driver = driver_error(error)
    if isinstance(driver, sqlite3.Error):
        return bool(UNSTORABLE_SQLITE.match(getattr(driver, "sqlite_errorname", "")))
    return isinstance(driver, OverflowError) or bool(
        UNSTORABLE_STATES.match(sqlstate(driver) or "")
    )


def lacks_tables(error: BaseException | None) -> bool:
    """Whether an error means that a table or column is missing: migrations are behind."""
    driver = driver_error(error)
    if isinstance(driver, sqlite3.Error):
        return MISSING_SQLITE.match(str(driver)) is not None
    return sqlstate(driver) in {"42P01", "42703"}


def violated_constraint(error: IntegrityError) -> str:
    """Return the name of the violated constraint.

    For a unique constraint SQLite reports only the columns: the name is looked up. For a foreign
    key it reports nothing: the result is `FOREIGN KEY`.
    """
    name = getattr(error.driver_exception, "constraint_name", None)
    if isinstance(name, str):
        return name
    kind, _, subject = str(error.driver_exception).partition(" constraint failed")
    subject = subject.removeprefix(": ")
    if kind != "UNIQUE":
        return subject or kind
    columns = [column.partition(".")[2] for column in subject.split(", ")]
    table = Base.metadata.tables[subject.partition(".")[0]]
    return next(
        str(item.name)
        for item in table.constraints
        if isinstance(item, UniqueConstraint) and [c.name for c in item.columns] == columns
    )
