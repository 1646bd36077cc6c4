"""The command line: `octavo`, or `python -m service`.

Exit codes: 0 success, 1 failure, 2 wrong usage, 69 database unavailable, 78 invalid
configuration (sysexits.h), 130 stopped by Ctrl-C.
"""

from importlib import import_module

import click

from service import __version__

COMMANDS = {  # command -> its module in service.cli
    "serve": "serve",
    "migrate": "migrate",
    "init-db": "migrate",
    "create-admin": "create_admin",
    "seed-db": "fill",
    "import-books": "fill",
    "cache": "cache",
    "openapi": "document",
}


class _Commands(click.Group):
    """Imports the module of a command only when the command runs: imports are slow."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        file = import_module(f"service.cli.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(file, cmd_name.replace("-", "_"))
        return command


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="octavo")
def cli() -> None:
    """Octavo, a book catalogue over HTTP.

    Settings come from the environment and from .env; OCTAVO_ENV chooses development (default:
    SQLite, nothing to install), production or testing.
    """


def main() -> None:
    """Run the command line."""
    try:
        cli()
    except Exception as error:
        # Imported here, because this import takes longer than most commands.
        from service.cli.failures import explain

        explain(error)
