"""octavo migrate, init-db: create or upgrade the tables of the database."""

import click

from service.config import load_from_environment
from service.db import migrations


@click.command()
def migrate() -> None:
    """Upgrade the database. Safe to repeat, and to run from two places at once."""
    url = load_from_environment().database
    migrations.upgrade(url)
    click.echo(f"Database at revision {migrations.head()}")


@click.command("init-db")
def init_db() -> None:
    """Create the tables of a new database (the same as migrate)."""
    migrations.upgrade(load_from_environment().database)
    click.echo("Database initialized")
