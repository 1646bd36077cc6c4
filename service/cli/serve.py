"""octavo serve: workers on one socket, and who watches over them."""

import asyncio
import logging
import os
import socket
import sys
from functools import partial

import click
from hypercorn.config import Config
from hypercorn.utils import LifespanFailureError

from service import __version__, figures, logs
from service.config import Settings, load_from_environment
from service.server.fork_server import Forks
from service.server.supervisor import Supervisor


@click.command()
@click.option(
    "--bind",
    "binds",
    multiple=True,
    default=["127.0.0.1:8000"],
    show_default=True,
    help="Address and port to listen on, or unix:PATH; may be repeated.",
)
@click.option("--workers", type=click.IntRange(0, 256), help="Processes (WORKERS).")
@click.option("--prepare", is_flag=True, help="First do what migrate and seed-db do.")
def serve(binds: tuple[str, ...], workers: int | None, prepare: bool) -> None:
    """Serve the catalogue over HTTP until Ctrl-C or SIGTERM.

    SIGHUP replaces every worker by a new one, without losing a request.
    """
    settings = load_from_environment()
    if workers is not None:
        settings = settings.model_copy(update={"workers": workers}).check()
    sockets = _sockets(settings, binds)
    forks = Forks.inherited()
    if prepare:
        _prepare(settings)
    if forks is None:
        _say_where(settings, binds[0])
    if settings.workers == 0:
        return _serve_here(settings, sockets, forks)
    sys.exit(_watch(settings, sockets))


def _sockets(settings: Settings, binds: tuple[str, ...]) -> list[socket.socket]:
    found = []
    for bind in binds:
        if not bind:
            raise click.BadParameter("write address:port, as 127.0.0.1:8000", param_hint="--bind")
        wanted = Config()
        wanted.bind = [bind]
        try:
            (sock,) = wanted.create_sockets().insecure_sockets
            sock.listen(settings.backlog)
        except (OSError, ValueError, OverflowError) as error:
            raise click.ClickException(f"Cannot listen on {bind}: {error}") from None
        found.append(sock)
    return found


def _prepare(settings: Settings) -> None:
    # Takes a second to load, like what serves: who only watches over workers need not wait for it.
    from service import migrations
    from service.cli.database import fill_with_shipped_books

    migrations.upgrade(settings.database)
    fill_with_shipped_books()


def _serve_here(settings: Settings, sockets: list[socket.socket], forks: Forks | None) -> None:
    from service.server.worker import serve as serve_here

    channel = None if forks is None else forks.worker()
    if forks is not None and channel is None:
        return
    try:
        serve_here(settings, sockets, channel)
    except LifespanFailureError as error:
        raise click.ClickException(f"Could not start: {error}") from None


def _watch(settings: Settings, sockets: list[socket.socket]) -> int:
    processes = max(settings.total_workers, settings.workers)
    binds = [word for sock in sockets for word in ("--bind", f"fd://{sock.fileno()}")]
    logger = logging.Logger("supervisor", settings.log_level)
    with figures.folder() as folder, logs.written(logger, logs.handlers(settings)):
        environment = {**os.environ, "TOTAL_WORKERS": str(processes)}
        if folder is not None:
            environment[figures.FOLDER] = folder
        else:
            environment.pop(figures.FOLDER, None)
            logger.warning("No temporary folder can be made: each worker has metrics of its own")
        supervisor = Supervisor(
            [sys.executable, "-m", "service", "serve", "--workers", "0", *binds],
            sockets,
            logger,
            count=settings.workers,
            # In memory, two would each have a cache and limits of their own.
            overlap=settings.redis_url is not None,
            patience=settings.drain_seconds + settings.grace_seconds,
            environment=environment,
            forget=partial(figures.forget, folder),
        )
        return asyncio.run(supervisor.run())


def _say_where(settings: Settings, bind: str) -> None:
    path = f"--unix-socket {bind.removeprefix('unix:')} " if bind.startswith("unix:") else ""
    scheme = "http" if settings.tls_certfile is None else "https"
    base = settings.public_url or f"{scheme}://{'localhost' if path else bind}"
    database = settings.database.render_as_string(hide_password=True)
    click.echo(f"Octavo {__version__} ({settings.env}), {database}")
    click.echo(f"  API     {base}/api/books")
    click.echo(f"  Health  {base}/health")
    click.echo(f"  Try     curl -s {path}'{base}/api/books?per_page=1'")
