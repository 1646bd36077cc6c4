"""octavo serve: one process of Hypercorn on uvloop."""

import asyncio
import signal

import click
import uvloop
from hypercorn.asyncio import serve as hypercorn_serve
from hypercorn.config import Config
from hypercorn.utils import LifespanFailureError
from quart import Quart

from service import __version__, migrations
from service.app import create_app
from service.cli.fill import fill_with_shipped_books
from service.config import Settings, load_from_environment
from service.server import configured

GRACE_SECONDS = 30  # that requests in flight get to end


@click.command()
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
    wanted = Config()
    wanted.bind = [bind]
    try:
        sockets = wanted.create_sockets().insecure_sockets
    except (OSError, ValueError, OverflowError) as error:
        raise click.ClickException(f"Cannot listen on {bind}: {error}") from None
    config = configured(app, sockets, GRACE_SECONDS)
    if prepare:
        migrations.upgrade(settings.database)
        fill_with_shipped_books()
    _say_where(settings, bind)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(_serve(app, config))
        except LifespanFailureError as error:
            raise click.ClickException(f"Could not start: {error}") from None


async def _serve(app: Quart, config: Config) -> None:
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
