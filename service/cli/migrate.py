"""octavo migrate, init-db: the tables that a database needs before it is served."""

import click

from service import migrations
from service.config import load_from_environment


@click.command()
def migrate() -> None:
    """Bring the database up to date. Safe to run again, and from two places at once."""
    url = load_from_environment().database
    migrations.upgrade(url)
    click.echo(f"Database at revision {migrations.head()}")


@click.command("init-db")
def init_db() -> None:
    """Create the tables of a new database (the same as migrate)."""
    migrations.upgrade(load_from_environment().database)
    click.echo("Database initialized")
