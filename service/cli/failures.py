"""Turn expected errors into a message with the remedy, and an exit code."""

import errno
import sys
from typing import NoReturn

import click
from alembic.util import CommandError

from service.config import ConfigurationError, load_from_environment
from service.db.errors import is_busy, is_unavailable, lacks_tables

EX_UNAVAILABLE = 69  # sysexits.h
EX_CONFIG = 78
OUTPUT_FAILED = {errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT}  # not database errors


def explain(error: Exception) -> NoReturn:
    """Print the remedy for `error`, and exit. An unexpected error is raised again."""
    if isinstance(error, ConfigurationError):
        lines = ("Octavo cannot start with this configuration:", *error.problems)
        _end(EX_CONFIG, "\n  - ".join(lines))
    if lacks_tables(error):
        _end(1, "Error: The database is not up to date: run octavo migrate first")
    if isinstance(error, CommandError):
        _end(1, f"Error: {error}")
    if isinstance(error, OSError) and error.errno in OUTPUT_FAILED:
        _end(1, f"Error: {error.strerror}")
    if not is_unavailable(error):
        raise error
    if is_busy(error):
        _end(EX_UNAVAILABLE, "Error: Another process has locked the database: try again")
    cause = str(getattr(error, "orig", error)) or type(error).__name__
    database = load_from_environment().database.render_as_string(hide_password=True)
    _end(
        EX_UNAVAILABLE,
        f"Cannot reach the database {database}: {cause}\n"
        "Start it, or set DATABASE_URL (development: DEV_DATABASE_URL).",
    )


def _end(code: int, message: str) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(code)
