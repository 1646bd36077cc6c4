"""The command line: `octavo`, or `python -m service`.

Exit codes: 0 done, 1 failed, 2 wrong usage, 69 the database cannot be reached, 78 the
configuration cannot be used (sysexits.h), 130 stopped by Ctrl-C.
"""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click
from alembic.util import CommandError

from service import __version__
from service.cli.cache import cache
from service.cli.database import create_admin, init_db, migrate
from service.cli.document import openapi
from service.cli.fill import import_books, seed_db
from service.cli.serve import serve
from service.config import ConfigurationError, load_from_environment
from service.db_errors import is_busy, is_unavailable, lacks_tables

EX_UNAVAILABLE = 69
EX_CONFIG = 78
OUTPUT_FAILED = {errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT}  # no database says these


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="octavo")
def cli() -> None:
    """Octavo, a book catalogue over HTTP.

    Settings come from the environment and from .env; OCTAVO_ENV chooses development (default:
    SQLite, nothing to install), production or testing.
    """


for command in (serve, migrate, init_db, seed_db, import_books, create_admin, cache, openapi):
    cli.add_command(command)


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what a stranger can mend into a sentence and an exit code."""
    try:
        yield
    except ConfigurationError as error:
        click.echo("Octavo cannot start with this configuration:", err=True)
        for problem in error.problems:
            click.echo(f"  - {problem}", err=True)
        sys.exit(EX_CONFIG)
    except Exception as error:
        if lacks_tables(error):
            click.echo("Error: The database is not up to date: run octavo migrate first", err=True)
            sys.exit(1)
        if isinstance(error, CommandError):
            click.echo(f"Error: {error}", err=True)
            sys.exit(1)
        if isinstance(error, OSError) and error.errno in OUTPUT_FAILED:
            click.echo(f"Error: {error.strerror}", err=True)
            sys.exit(1)
        if not is_unavailable(error):
            raise
        if is_busy(error):
            click.echo("Error: Another process holds what this one needs: try again", err=True)
            sys.exit(EX_UNAVAILABLE)
        cause = str(getattr(error, "orig", error)) or type(error).__name__
        database = load_from_environment().database.render_as_string(hide_password=True)
        click.echo(f"Cannot reach the database {database}: {cause}", err=True)
        click.echo("Start it, or set DATABASE_URL (development: DEV_DATABASE_URL).", err=True)
        sys.exit(EX_UNAVAILABLE)


def main() -> None:
    """Run the command line."""
    with _explained():
        cli()
