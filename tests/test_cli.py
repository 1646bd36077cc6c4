"""The command line, in real processes."""

import asyncio
import os
import signal
import socket
import sqlite3
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

import httpx
import pytest
from click import Context
from coverage import Coverage
from sqlalchemy import make_url

from service import __version__
from service.cli import COMMANDS, cli
from service.db import migrations
from tests.conftest import SECRET, free_port, fresh_database, migrate

CLEAN = {
    name: value
    for name, value in os.environ.items()
    if name not in {"SECRET_KEY", "DATABASE_URL", "DEV_DATABASE_URL", "PUBLIC_URL", "REDIS_URL"}
} | {"DRAIN_SECONDS": "0", "MAX_WAIT_SECONDS": "60"}  # no load balancer, and a busy machine

TRACED = {"COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START"}


def environment_of(given: dict[str, str]) -> dict[str, str]:
    """Give the environment of a process: without settings from outside.

    A process is measured by coverage only if its test is.
    """
    environment = CLEAN | given
    dropped = TRACED if Coverage.current() is None else set()
    return {name: value for name, value in environment.items() if name not in dropped}


@pytest.fixture(params=["sqlite", "postgresql"])
async def empty_url(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[str]:
    """A database without tables, on each backend."""
    async with fresh_database(request.param, request, folder) as url:
        yield url


async def octavo(
    cwd: Path, *words: str, stdin: str | None = None, **environment: str
) -> tuple[int, str, str]:
    """Run a command to its end: exit code, standard output, standard error."""
    process = await start(cwd, *words, **environment)
    try:
        out, err = await process.communicate(stdin.encode() if stdin is not None else None)
    finally:
        await killed(process)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def killed(process: Process) -> None:
    """Kill a process, unless it has ended."""
    if process.returncode is None:
        process.kill()
        await process.communicate()


async def start(cwd: Path, *words: str, **environment: str) -> Process:
    """Start a command."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "service", *words,
        cwd=cwd, env=environment_of(environment), stdin=PIPE, stdout=PIPE, stderr=PIPE,
    )  # fmt: skip


@asynccontextmanager
async def served(
    cwd: Path, *words: str, **environment: str
) -> AsyncIterator[tuple[Process, str, str]]:
    """Serve on a free port. Give the process, its URL, and the first four lines of its output."""
    port = free_port()
    process = await start(cwd, "serve", "--bind", f"127.0.0.1:{port}", *words, **environment)
    url = f"http://127.0.0.1:{port}"
    assert process.stdout is not None
    try:
        output = "".join([(await process.stdout.readline()).decode() for _ in range(4)])
        async with asyncio.timeout(60), httpx.AsyncClient(base_url=url, timeout=60) as client:
            while True:
                try:
                    await client.get("/health/live")
                    break
                except httpx.TransportError:
                    await asyncio.sleep(0.02)
        yield process, url, output
    finally:
        if process.returncode is None:
            process.terminate()
            await process.communicate()


def patient_client() -> httpx.AsyncClient:
    """Give a client for servers on a busy machine."""
    return httpx.AsyncClient(timeout=60)


async def test_a_new_catalogue_is_migrated_filled_and_served_twice(
    empty_url: str, tmp_path: Path
) -> None:
    settings = {"DEV_DATABASE_URL": empty_url}
    for _ in range(2):
        done = await octavo(tmp_path, "migrate", **settings)
        assert done == (0, f"Database at revision {migrations.head()}\n", "")
    code, out, err = await octavo(tmp_path, "seed-db", **settings)
    assert (code, err) == (0, "")
    count, *_, last = out.splitlines()
    assert count.endswith(" books added")
    assert last == "Database seeded"
    again = await octavo(tmp_path, "seed-db", **settings)
    assert again[1].splitlines() == [
        "The catalogue has books already: none added", "Database seeded",
    ]  # fmt: skip
    for _ in range(2):
        async with served(tmp_path, **settings) as (process, url, output):
            async with patient_client() as client:
                assert (await client.get(f"{url}/health/ready")).status_code == 200
                assert (await client.get(f"{url}/api/books")).json()["total"] == int(
                    count.split()[0]
                )
            assert f"{url}/api/books" in output
            assert f"{url}/health" in output
            assert f"curl -s '{url}/api/books" in output
            process.terminate()
            _, err_bytes = await process.communicate()
            assert process.returncode == 0
            assert b"Traceback" not in err_bytes


async def test_serve_prepare_migrates_and_fills_the_database(
    empty_url: str, tmp_path: Path
) -> None:
    for first_line in ("books added", "The catalogue has books already"):
        async with served(tmp_path, "--prepare", DEV_DATABASE_URL=empty_url) as (_, url, output):
            assert first_line in output.splitlines()[0]
            async with patient_client() as client:
                assert (await client.get(f"{url}/health/ready")).status_code == 200
                assert (await client.get(f"{url}/api/books")).json()["total"] >= 150


async def test_init_db_prints_the_sentence_of_the_guide(empty_url: str, tmp_path: Path) -> None:
    done = await octavo(tmp_path, "init-db", DEV_DATABASE_URL=empty_url)
    assert done == (0, "Database initialized\n", "")


async def test_a_created_administrator_can_sign_in(empty_url: str, tmp_path: Path) -> None:
    settings = {"DEV_DATABASE_URL": empty_url}
    await migrate(settings["DEV_DATABASE_URL"])
    words = ("create-admin", "--username", "root", "--email", "root@example.org")
    given = settings | {"OCTAVO_ADMIN_PASSWORD": "a good password"}
    code, out, err = await octavo(tmp_path, *words, **given)
    assert (code, err) == (0, "")
    assert out.startswith("Administrator root created, id ")
    words = (*words[:-1], "other@example.org")
    code, _, err = await octavo(tmp_path, *words, **given)
    assert (code, err) == (1, "Error: username: Username already exists\n")
    code, _, err = await octavo(
        tmp_path, "create-admin", "--username", "x", "--email", "nobody",
        **settings | {"OCTAVO_ADMIN_PASSWORD": "short"},
    )  # fmt: skip
    assert code == 1
    assert err.splitlines() == [
        "Error: username: Shorter than minimum length 3.",
        "email: Not a valid email address.",
        "password: Shorter than minimum length 8.",
    ]
    async with served(tmp_path, **settings) as (_, url, _), patient_client() as client:
        response = await client.post(
            f"{url}/api/auth/login",
            json={"email": "root@example.org", "password": "a good password"},
        )
        token = response.json()["token"]
        users = await client.get(f"{url}/admin/users", headers={"Authorization": token})
        assert users.json()["total"] == 1


async def test_a_request_under_way_is_completed_before_the_server_stops(tmp_path: Path) -> None:
    settings = {"DEV_DATABASE_URL": f"sqlite:///{tmp_path}/d.db"}
    await migrate(settings["DEV_DATABASE_URL"])
    account = b'{"username": "anna", "email": "anna@example.org", "password": "long enough"}'
    async with served(tmp_path, **settings) as (process, url, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        try:
            writer.write(
                b"POST /api/auth/register HTTP/1.1\r\nHost: x\r\n"
                b"Content-Type: application/json\r\n"
                b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(account)
            )
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
            process.send_signal(signal.SIGTERM)
            async with httpx.AsyncClient(timeout=5) as client:  # it expires if no worker accepts
                with suppress(httpx.TransportError):
                    while True:
                        response = await client.get(f"{url}/health/live")
                        if response.headers.get("Connection") == "close":
                            break  # the worker is draining
            writer.write(account)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 201")
        finally:
            writer.close()
        await process.communicate()
        assert process.returncode == 0


async def test_a_busy_port_is_reported(tmp_path: Path) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        bind = f"127.0.0.1:{busy.getsockname()[1]}"
        code, out, err = await octavo(tmp_path, "serve", "--bind", bind)
    assert (code, out) == (1, "")
    assert err.startswith(f"Error: Cannot listen on {bind}: ")
    assert "in use" in err


async def test_a_locked_database_is_reported_as_busy(tmp_path: Path) -> None:
    settings = {"DEV_DATABASE_URL": f"sqlite:///{tmp_path}/d.db"}
    await migrate(settings["DEV_DATABASE_URL"])
    with closing(sqlite3.connect(tmp_path / "d.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        code, _, err = await octavo(tmp_path, "seed-db", "--books", "1", **settings)
    assert (code, "try again" in err, "Cannot reach" in err) == (69, True, False)


@pytest.mark.parametrize("bind", ["nowhere", "127.0.0.1:port", "127.0.0.1:99999999"])
async def test_an_invalid_address_is_reported(tmp_path: Path, bind: str) -> None:
    code, _, err = await octavo(tmp_path, "serve", "--bind", bind)
    assert code == 1
    assert err.startswith(f"Error: Cannot listen on {bind}: ")
    assert "Traceback" not in err


async def test_production_with_unsafe_settings_does_not_start(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("OCTAVO_ENV=production\n")
    code, out, err = await octavo(tmp_path, "serve")
    assert (code, out) == (78, "")
    first, *problems = err.splitlines()
    assert first == "Octavo cannot start with this configuration:"
    assert [line.split()[1] for line in problems] == ["SECRET_KEY", "DATABASE_URL", "PUBLIC_URL"]


@pytest.mark.parametrize("command", ["migrate", "seed-db"])
async def test_no_command_runs_with_unsafe_production_settings(
    tmp_path: Path, command: str
) -> None:
    code, out, err = await octavo(tmp_path, command, OCTAVO_ENV="production")
    assert (code, out) == (78, "")
    assert "DATABASE_URL is missing" in err
    assert list(tmp_path.iterdir()) == []


async def test_a_missing_database_is_reported(tmp_path: Path, postgresql: str) -> None:
    missing = make_url(postgresql).set(database="octavo_nothing")
    url = missing.render_as_string(hide_password=False)
    code, _, err = await octavo(tmp_path, "migrate", DEV_DATABASE_URL=url)
    assert code == 69
    assert "octavo_nothing" in err
    assert "Traceback" not in err


async def test_a_revision_of_a_later_release_is_reported(tmp_path: Path) -> None:
    settings = {"DEV_DATABASE_URL": f"sqlite:///{tmp_path}/f.db"}
    await migrate(settings["DEV_DATABASE_URL"])
    with closing(sqlite3.connect(tmp_path / "f.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    code, _, err = await octavo(tmp_path, "migrate", **settings)
    assert code == 1
    assert err.startswith("Error: Can't locate revision identified by '9999'")


async def test_production_with_safe_settings_starts(tmp_path: Path, postgresql: str) -> None:
    async with served(
        tmp_path,
        OCTAVO_ENV="production",
        SECRET_KEY=SECRET,
        DATABASE_URL=postgresql,
        PUBLIC_URL="https://books.example.org",
    ) as (process, url, output):
        assert "https://books.example.org/api/books" in output
        async with patient_client() as client:
            ready = await client.get(f"{url}/health/ready")
            assert ready.json()["reasons"] == ["migrations are behind: run octavo migrate"]
            live = await client.get(f"{url}/health/live")
            assert "Server" not in live.headers
        process.terminate()
        await process.communicate()
    lines = (tmp_path / "logs" / "app.log").read_text(encoding="utf-8").splitlines()
    assert "Application startup" in lines[0]
    assert any("run octavo migrate" in line for line in lines)


@pytest.mark.parametrize("command", ["migrate", "init-db", "seed-db"])
async def test_an_unreachable_database_is_reported_without_its_password(
    tmp_path: Path, command: str
) -> None:
    url = f"postgresql://me:hidden@127.0.0.1:{free_port()}/books"
    code, out, err = await octavo(tmp_path, command, DEV_DATABASE_URL=url)
    assert (code, out) == (69, "")
    assert err.startswith("Cannot reach the database postgresql+asyncpg://me:***@127.0.0.1:")
    assert "DATABASE_URL" in err
    assert "hidden" not in err
    assert "Traceback" not in err


async def test_a_database_without_tables_is_reported_with_the_command_to_run(
    tmp_path: Path,
) -> None:
    for words in (("seed-db",), ("create-admin", "--username", "anna", "--email", "a@b.org")):
        code, _, err = await octavo(
            tmp_path, *words,
            DEV_DATABASE_URL=f"sqlite:///{tmp_path}/empty.db", OCTAVO_ADMIN_PASSWORD="long enough",
        )  # fmt: skip
        assert code == 1
        assert err == "Error: The database is not up to date: run octavo migrate first\n"


async def test_every_command_and_option_has_a_help_text(tmp_path: Path) -> None:
    code, out, _ = await octavo(tmp_path, "--help")
    assert code == 0
    for name in COMMANDS:
        assert name in out
        command = cli.get_command(Context(cli), name)
        assert command
        assert command.help
        assert all(parameter.help for parameter in command.params if parameter.name != "file")
    assert (await octavo(tmp_path, "--version"))[1] == f"octavo, version {__version__}\n"
    code, out, _ = await octavo(tmp_path, "import-books", "--help")
    assert (code, "Usage:" in out) == (0, True)
    assert (await octavo(tmp_path, "dance"))[0] == 2
