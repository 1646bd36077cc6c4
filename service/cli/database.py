"""octavo migrate, init-db, create-admin: what a database needs before it is served."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import click
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from service import migrations
from service.auth.schemas import Registration
from service.config import load_from_environment
from service.db import Database
from service.errors import InvalidInputError
from service.security import Passwords
from service.seed import fill_if_empty, shipped_books
from service.users.service import create_user
from service.validation import messages

T = TypeVar("T")


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


@click.command("create-admin")
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
        user = write_once(
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


def write_once(work: Callable[[AsyncSession], Awaitable[T]]) -> T:
    """Run one write in a database of its own, opened and closed here."""

    async def run() -> T:
        database = Database(load_from_environment())
        await database.open()
        try:
            return await database.write(work)
        finally:
            await database.close()

    return asyncio.run(run())


def fill_with_shipped_books() -> None:
    """Add the shipped books to an empty catalogue, and say so."""
    books = shipped_books()
    added = write_once(lambda db: fill_if_empty(db, books))
    click.echo(f"{added} books added" if added else "The catalogue has books already: none added")
