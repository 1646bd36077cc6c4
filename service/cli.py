"""The command line: `octavo`, or `python -m service`.

Exit codes: 0 done, 1 failed, 2 wrong usage, 69 the database cannot be reached, 78 the
configuration cannot be used (sysexits.h).
"""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import click
import uvloop
from alembic.util import CommandError
from hypercorn.asyncio import serve as hypercorn_serve
from hypercorn.config import Config as HypercornConfig
from hypercorn.utils import LifespanFailureError
from pydantic import ValidationError
from quart import Quart
from sqlalchemy.ext.asyncio import AsyncSession

from service import __version__, migrations
from service.app import create_app
from service.auth.schemas import Registration
from service.config import ConfigurationError, Settings, load_from_environment
from service.db import Database
from service.db_errors import is_unavailable, lacks_tables
from service.errors import InvalidInputError
from service.security import Passwords
from service.seed import fill_if_empty, shipped_books
from service.users.service import create_user
from service.validation import messages

T = TypeVar("T")

EX_UNAVAILABLE = 69
EX_CONFIG = 78
GRACE_SECONDS = 30  # that requests in flight get to end


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="octavo")
def cli() -> None:
    """Octavo, a book catalogue over HTTP.

    Settings come from the environment and from .env; OCTAVO_ENV chooses development (default:
    SQLite, nothing to install), production or testing.
    """


@cli.command()
@click.option(
    "--bind", default="127.0.0.1:8000", show_default=True, help="Address and port to listen on."
)
@click.option("--prepare", is_flag=True, help="First do what migrate and seed-db do.")
def serve(bind: str, prepare: bool) -> None:
    """Serve the catalogue over HTTP until Ctrl-C or SIGTERM."""
    settings = load_from_environment()
    app = create_app(settings)
    if not bind:
        raise click.BadParameter("write address:port, as 127.0.0.1:8000", param_hint="--bind")
    config = HypercornConfig()
    config.bind = [bind]
    try:
        sockets = config.create_sockets().insecure_sockets
    except (OSError, ValueError, OverflowError) as error:
        raise click.ClickException(f"Cannot listen on {bind}: {error}") from None
    config.bind = [f"fd://{sock.detach()}" for sock in sockets]
    if prepare:
        migrations.upgrade(settings.database)
        _seed()
    config.errorlog = app.logger
    config.include_server_header = False
    config.graceful_timeout = GRACE_SECONDS
    _say_where(settings, bind)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(_serve(app, config))
        except LifespanFailureError as error:
            raise click.ClickException(f"Could not start: {error}") from None


async def _serve(app: Quart, config: HypercornConfig) -> None:
    stop = asyncio.Event()

    def drain() -> None:
        app.extensions["health"].serving = False  # /health/ready says 503 from here on
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, drain)
    await hypercorn_serve(app, config, shutdown_trigger=stop.wait)


def _say_where(settings: Settings, bind: str) -> None:
    base = settings.public_url or f"http://{bind}"
    database = settings.database.render_as_string(hide_password=True)
    click.echo(f"Octavo {__version__} ({settings.env}), {database}")
    click.echo(f"  API     {base}/api/books")
    click.echo(f"  Health  {base}/health")
    click.echo(f"  Try     curl -s '{base}/api/books?per_page=1'")


@cli.command()
def migrate() -> None:
    """Bring the database up to date. Safe to run again, and from two places at once."""
    url = load_from_environment().database
    migrations.upgrade(url)
    click.echo(f"Database at revision {migrations.head()}")


@cli.command("init-db")
def init_db() -> None:
    """Create the tables of a new database (the same as migrate)."""
    migrations.upgrade(load_from_environment().database)
    click.echo("Database initialized")


@cli.command("seed-db")
def seed_db() -> None:
    """Fill an empty catalogue with the books that come with Octavo."""
    _seed()
    click.echo("Database seeded")


def _seed() -> None:
    books = shipped_books()
    added = _write(lambda db: fill_if_empty(db, books))
    click.echo(f"{added} books added" if added else "The catalogue has books already: none added")


@cli.command("create-admin")
@click.option("--username", prompt=True, help="3 to 50 characters.")
@click.option("--email", prompt=True, help="Address to sign in with.")
@click.option(
    "--password",
    envvar="OCTAVO_ADMIN_PASSWORD",
    prompt=True,
    hide_input=True,
    confirmation_prompt=True,
    help="8 to 128 characters; better asked for, or from OCTAVO_ADMIN_PASSWORD.",
)
def create_admin(username: str, email: str, password: str) -> None:
    """Make an account with all rights."""
    try:
        account = Registration(username=username, email=email, password=password)
    except ValidationError as error:
        raise _input_error(messages(error)) from None

    async def hashed() -> str:
        passwords = Passwords(load_from_environment())
        await passwords.open()
        try:
            return await passwords.hash(account.password)
        finally:
            await passwords.close()

    password_hash = asyncio.run(hashed())
    try:
        user = _write(
            lambda db: create_user(
                db, account.username, account.email, password_hash, is_admin=True
            )
        )
    except InvalidInputError as error:
        raise _input_error(error.payload["messages"]) from None
    click.echo(f"Administrator {user.username} created, id {user.id}")


def _input_error(found: dict[str, list[str]]) -> click.ClickException:
    lines = (f"{field}: {' '.join(sentences)}" for field, sentences in found.items())
    return click.ClickException("\n".join(lines))


def _write(work: Callable[[AsyncSession], Awaitable[T]]) -> T:
    """Run one write in a database of its own, opened and closed here."""

    async def run() -> T:
        database = Database(load_from_environment())
        await database.open()
        try:
            return await database.write(work)
        finally:
            await database.close()

    return asyncio.run(run())


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
        if not is_unavailable(error):
            raise
        cause = str(getattr(error, "orig", error)) or type(error).__name__
        database = load_from_environment().database.render_as_string(hide_password=True)
        click.echo(f"Cannot reach the database {database}: {cause}", err=True)
        click.echo("Start it, or set DATABASE_URL (development: DEV_DATABASE_URL).", err=True)
        sys.exit(EX_UNAVAILABLE)


def main() -> None:
    """Run the command line."""
    with _explained():
        cli()
