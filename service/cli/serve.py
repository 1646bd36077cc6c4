"""octavo serve: worker processes on shared sockets, and their supervisor."""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

import click
from hypercorn.config import Config
from hypercorn.utils import LifespanFailureError

from service import __version__, logs
from service.config import Settings, load_from_environment
from service.server.fork_server import Forks
from service.server.supervisor import Supervisor
from service.system import metrics_files

if TYPE_CHECKING:
    from quart import Quart  # a supervisor serves without it


@click.command()
@click.option(
    "--bind",
    "binds",
    multiple=True,
    default=["127.0.0.1:8000"],
    show_default=True,
    help="Address and port to listen on, or unix:PATH; may be repeated.",
)
@click.option("--workers", type=click.IntRange(0, 256), help="Number of processes (WORKERS).")
@click.option("--prepare", is_flag=True, help="Run migrate and seed-db first.")
@click.option(
    "--app",
    "factory",
    default="service.app:create_app",
    show_default=True,
    help="Function that makes the application from the settings, as module:name.",
)
def serve(binds: tuple[str, ...], workers: int | None, prepare: bool, factory: str) -> None:
    """Serve the catalogue over HTTP until Ctrl-C or SIGTERM.

    SIGHUP replaces every worker by a new one. No request is lost.
    """
    settings = load_from_environment()
    if workers is not None:
        settings = settings.model_copy(update={"workers": workers}).check()
    sockets = _sockets(settings, binds)
    forks = Forks.inherited()
    if prepare:
        _prepare(settings)
    if forks is None:
        _print_addresses(settings, binds[0])
    if settings.workers == 0:
        return _serve_here(settings, sockets, forks, factory)
    sys.exit(_supervise(settings, sockets, factory))


def _sockets(settings: Settings, binds: tuple[str, ...]) -> list[socket.socket]:
    sockets = []
    for bind in binds:
        if not bind:
            raise click.BadParameter("write address:port, as 127.0.0.1:8000", param_hint="--bind")
        config = Config()
        config.bind = [bind]
        try:
            (sock,) = config.create_sockets().insecure_sockets
            sock.listen(settings.backlog)
        except (OSError, ValueError, OverflowError) as error:
            raise click.ClickException(f"Cannot listen on {bind}: {error}") from None
        sockets.append(sock)
    return sockets


def _prepare(settings: Settings) -> None:
    # Imported here, because these modules take a second to load. A supervisor does not need them.
    from service.cli.database import fill_with_shipped_books
    from service.db import migrations

    migrations.upgrade(settings.database)
    fill_with_shipped_books()


def _load(factory: str) -> "Callable[[Settings], Quart]":
    """Import a function. Modules are found in the current directory as well."""
    module, _, name = factory.partition(":")
    sys.path.insert(0, os.getcwd())  # as `python -m` does
    try:
        function: Callable[[Settings], Quart] = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        text = f"cannot be loaded ({error}): write module:function"
        raise click.BadParameter(f"{factory!r} {text}", param_hint="--app") from None
    return function


def _serve_here(
    settings: Settings, sockets: list[socket.socket], forks: Forks | None, factory: str
) -> None:
    from service.server.worker import serve as serve_here

    create_app = _load(factory)
    channel = None if forks is None else forks.worker()
    if forks is not None and channel is None:
        return
    try:
        serve_here(settings, sockets, channel, create_app)
    except LifespanFailureError as error:
        raise click.ClickException(f"Could not start: {error}") from None


def _supervise(settings: Settings, sockets: list[socket.socket], factory: str) -> int:
    processes = max(settings.total_workers, settings.workers)
    binds = [word for sock in sockets for word in ("--bind", f"fd://{sock.fileno()}")]
    logger = logging.Logger("supervisor", settings.log_level)
    with metrics_files.folder() as folder, logs.written(logger, logs.destinations(settings)) as log:
        environment = {**os.environ, "TOTAL_WORKERS": str(processes)}
        if folder is not None:
            environment[metrics_files.FOLDER] = folder
        else:
            environment.pop(metrics_files.FOLDER, None)
            logger.warning("No temporary folder can be made: each worker has metrics of its own")
        supervisor = Supervisor(
            [sys.executable, "-m", "service", "serve", "--workers", "0", "--app", factory, *binds],
            sockets,
            logger,
            count=settings.workers,
            # Without Redis, two concurrent workers would have separate caches and rate limits.
            overlap=settings.redis_url is not None,
            stop_seconds=settings.drain_seconds + settings.grace_seconds,
            environment=environment,
            on_end=partial(metrics_files.forget, folder),
            write_lines=log.put_lines,
        )
        return asyncio.run(supervisor.run())


def _print_addresses(settings: Settings, bind: str) -> None:
    path = f"--unix-socket {bind.removeprefix('unix:')} " if bind.startswith("unix:") else ""
    scheme = "http" if settings.tls_certfile is None else "https"
    base = settings.public_url or f"{scheme}://{'localhost' if path else bind}"
    database = settings.database.render_as_string(hide_password=True)
    click.echo(f"Octavo {__version__} ({settings.env}), {database}")
    click.echo(f"  API     {base}/api/books")
    click.echo(f"  Health  {base}/health")
    click.echo(f"  Try     curl -s {path}'{base}/api/books?per_page=1'")
