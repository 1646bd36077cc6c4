"""octavo create-admin: create an administrator's account."""

import asyncio

import click
from pydantic import ValidationError

from service.auth.schemas import Registration
from service.cli.database import write_once
from service.config import load_from_environment
from service.errors import InvalidInputError
from service.http.schemas import messages
from service.security import Passwords
from service.users.service import create_user


@click.command("create-admin")
@click.option("--username", prompt=True, help="3 to 50 characters.")
@click.option("--email", prompt=True, help="Address to sign in with.")
@click.option(
    "--password",
    envvar="OCTAVO_ADMIN_PASSWORD",
    prompt=True,
    hide_input=True,
    confirmation_prompt=True,
    help="8 to 128 characters. Safer: enter it at the prompt, or set OCTAVO_ADMIN_PASSWORD.",
)
def create_admin(username: str, email: str, password: str) -> None:
    """Create an account with all rights."""
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


def _input_error(errors: dict[str, list[str]]) -> click.ClickException:
    lines = (f"{field}: {' '.join(sentences)}" for field, sentences in errors.items())
    return click.ClickException("\n".join(lines))
