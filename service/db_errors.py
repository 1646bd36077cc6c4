"""What the errors of PostgreSQL and SQLite mean, said the same way for both."""

import re
import sqlite3

from sqlalchemy import UniqueConstraint
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from service.models import Base

# Classes of PostgreSQL's codes that tell of the server's state, not of the statement: connection,
# login, no such database, resources, operator intervention, system; lock and idle time-outs;
# serialization and deadlock.
UNAVAILABLE_STATES = re.compile("08|28|3D|53|57|58|55P03|25P0[34]|40001|40P01")
UNAVAILABLE_SQLITE = re.compile(
    "SQLITE_(BUSY|LOCKED|FULL|IOERR|CANTOPEN|READONLY|NOMEM|NOTADB|CORRUPT|PROTOCOL)"
)
# A value that its column cannot hold: too long, out of range, no date, no text of the encoding; or
# that breaks a CHECK.
UNFIT_STATES = re.compile("22000|22001|22003|22007|22008|22021|22P02|22P05|23514")
UNFIT_SQLITE = re.compile("SQLITE_(CONSTRAINT_CHECK|TOOBIG|MISMATCH)")
RETRIED_STATES = {"40001", "40P01"}  # serialization failure, deadlock


def sqlstate(error: BaseException | None) -> str | None:
    """Give PostgreSQL's five-character code for a driver's error, if it has one."""
    state = getattr(error, "sqlstate", None)
    return state if isinstance(state, str) else None


def may_be_tried_again(error: DBAPIError) -> bool:
    """Whether the database undid a transaction only to let another through."""
    return sqlstate(error.driver_exception) in RETRIED_STATES


def is_unavailable(error: BaseException | None) -> bool:
    """Whether an error says that the database is down or full, rather than that we are wrong."""
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or is_unavailable(error.driver_exception)
    if isinstance(error, sqlite3.Error):
        return bool(UNAVAILABLE_SQLITE.match(getattr(error, "sqlite_errorname", "")))
    state = sqlstate(error)
    if state is not None:
        return bool(UNAVAILABLE_STATES.match(state))
    return isinstance(error, PoolTimeoutError | OSError | TimeoutError)


def is_busy(error: BaseException | None) -> bool:
    """Whether an error says that somebody else held for too long what was needed."""
    driver = error.driver_exception if isinstance(error, DBAPIError) else error
    if isinstance(driver, sqlite3.Error):
        return getattr(driver, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))
    return sqlstate(driver) == "55P03"


def is_unfit(error: BaseException | None) -> bool:
    """Whether an error says that a value, let in by us, is none that the database can hold."""
    if not isinstance(error, DBAPIError):
        return False
    driver = error.driver_exception
    if isinstance(driver, sqlite3.Error):
        return bool(UNFIT_SQLITE.match(getattr(driver, "sqlite_errorname", "")))
    return isinstance(driver, OverflowError) or bool(UNFIT_STATES.match(sqlstate(driver) or ""))


def lacks_tables(error: BaseException | None) -> bool:
    """Whether an error says that a table or column is missing: migrations are behind."""
    driver = error.driver_exception if isinstance(error, DBAPIError) else error
    if isinstance(driver, sqlite3.Error):
        return str(driver).startswith(("no such table", "no such column"))
    return sqlstate(driver) in {"42P01", "42703"}


def violated(error: IntegrityError) -> str:
    """Name the constraint that refused a row.

    SQLite names the columns of a unique constraint, and nothing of a foreign key: that is
    `FOREIGN KEY` there.
    """
    name = getattr(error.driver_exception, "constraint_name", None)
    if isinstance(name, str):
        return name
    kind, _, what = str(error.driver_exception).partition(" constraint failed")
    what = what.removeprefix(": ")
    if kind != "UNIQUE":
        return what or kind
    columns = [column.partition(".")[2] for column in what.split(", ")]
    table = Base.metadata.tables[what.partition(".")[0]]
    return next(
        str(item.name)
        for item in table.constraints
        if isinstance(item, UniqueConstraint) and [c.name for c in item.columns] == columns
    )
