"""The files that Octavo makes: who may read them, and a log whose disk is full."""

import asyncio
import logging
import os
import queue
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest

from service import files, logs
from service.logs import MOST_WAITING, written
from tests.conftest import SECRET, settings_for
from tests.test_cli import octavo, served

DEADLINE = 30  # seconds


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Change what new files may not have."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    """Give the permissions of a file."""
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.alone
@pytest.mark.parametrize("mask", [0o000, 0o022])
async def test_what_serving_makes_is_for_its_owner_alone(tmp_path: Path, mask: int) -> None:
    temporary, data = tmp_path / "tmp", tmp_path / "data"
    temporary.mkdir()
    data.mkdir()
    settings = {
        "OCTAVO_ENV": "testing",
        "TESTING_DATABASE_URL": f"sqlite:///{data / 'books.db'}",
        "SECRET_KEY": SECRET,
        "LOG_DIR": str(tmp_path / "var" / "log"),
        "TMPDIR": str(temporary),
    }
    with umask(mask):
        async with served(tmp_path, "--prepare", **settings) as (_, url, _):
            async with httpx.AsyncClient(base_url=url, timeout=DEADLINE) as client:
                assert (await client.get("/api/books")).status_code == 200
            made = [path for path in tmp_path.rglob("*") if path not in {temporary, data}]
            modes = {str(path.relative_to(tmp_path)): mode(path) for path in made}
    folders = {name for name in modes if (tmp_path / name).is_dir() or "metrics" in name}
    assert {"var", "var/log"} <= folders
    names = {Path(name).name for name in modes}
    assert {"books.db", "books.db-wal", "books.db-shm", "books.db.lock", "app.log"} <= names
    assert any(name.startswith("counter_") for name in names)
    assert all(
        mode == (0o700 if Path(name).name in {"var", "log"} or mode & stat.S_IXUSR else 0o600)
        for name, mode in modes.items()
    ), {name: oct(mode) for name, mode in modes.items()}


@pytest.mark.parametrize("words", [("migrate",), ("seed-db",)])
async def test_a_database_that_a_command_makes_is_for_its_owner_alone(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    path = tmp_path / "dev.db"
    with umask(0):
        await octavo(tmp_path, *words, DEV_DATABASE_URL=f"sqlite:///{path}")
    assert mode(path) == 0o600


async def test_a_database_and_a_log_that_are_there_keep_their_modes(tmp_path: Path) -> None:
    path, log = tmp_path / "dev.db", tmp_path / "app.log"
    for file in (path, log):
        file.touch()
        file.chmod(0o640)
    code, _, err = await octavo(tmp_path, "migrate", DEV_DATABASE_URL=f"sqlite:///{path}")
    assert (code, err) == (0, "")
    assert mode(path) == 0o640
    (handler,) = logs.handlers(settings_for("sqlite:///:memory:", tmp_path, log_dir=tmp_path))
    with umask(0), written(logging.Logger("test"), [handler]):
        handler.handle(line("before"))
        handler.doRollover()  # type: ignore[attr-defined]  # it has one
        handler.handle(line("after"))
    assert [mode(log), mode(tmp_path / "app.log.1")] == [0o640, 0o640]


def test_locks_of_a_database_survive_another_connection(tmp_path: Path) -> None:
    """To close a file releases what the process has locked of it, for SQLite as well."""
    path = tmp_path / "books.db"
    program = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], timeout=0)\n"
        "c.isolation_level = None\n"
        "c.execute('BEGIN IMMEDIATE')"
    )
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE t (x)")
        database.commit()
        database.isolation_level = None
        database.execute("BEGIN IMMEDIATE")
        files.make_database(str(path))
        other = [sys.executable, "-c", program, str(path)]
        done = subprocess.run(other, capture_output=True, text=True, check=False)
    assert "database is locked" in done.stderr


def line(text: str) -> logging.LogRecord:
    """Make a record."""
    record = logging.LogRecord("test", logging.INFO, __file__, 1, text, None, None)
    record.request_id = "-"
    return record


def test_a_full_disk_costs_lines_and_one_warning(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """`/dev/full` is a disk without space for everybody, root or not."""
    path = tmp_path / "app.log"
    path.symlink_to("/dev/full")
    (handler,) = logs.handlers(settings_for("sqlite:///:memory:", tmp_path, log_dir=tmp_path))
    for n in range(500):
        handler.handle(line(f"lost {n} " + "x" * 100))
    path.unlink()
    path.write_text("half a li", encoding="utf-8")
    for n in range(3):
        handler.handle(line(f"kept {n}"))
    handler.close()
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert lines[0] == "half a li"
    assert [entry.split(" [in ")[0].partition(": ")[2] for entry in lines[1:]] == [
        "kept 0", "500 lines before this one could not be written", "kept 1", "kept 2",
    ]  # fmt: skip
    err = capfd.readouterr().err
    assert "Traceback" not in err
    assert err.count("\n") == 1
    assert f"{path} cannot be written (No space left on device)" in err


@pytest.mark.alone
async def test_a_service_whose_log_cannot_be_written_goes_on(tmp_path: Path) -> None:
    """It starts, serves, warns once, and writes again when there is space."""
    log = tmp_path / "logs" / "app.log"
    log.parent.mkdir()
    log.symlink_to("/dev/full")
    settings = {
        "OCTAVO_ENV": "testing",
        "TESTING_DATABASE_URL": f"sqlite:///{tmp_path / 'books.db'}",
        "SECRET_KEY": SECRET,
        "RATELIMIT_ENABLED": "false",
    }
    async with served(tmp_path, "--prepare", **settings) as (process, url, _):
        async with httpx.AsyncClient(base_url=url, timeout=DEADLINE) as client:
            for _ in range(50):
                assert (await client.get("/api/books/999999")).status_code == 404
            log.unlink()
            async with asyncio.timeout(DEADLINE):
                while not log.exists() or "could not be written" not in log.read_text("utf-8"):
                    assert (await client.get("/api/books/999999")).status_code == 404
                    await asyncio.sleep(0.1)
        process.terminate()
        _, err = await process.communicate()
    assert process.returncode == 0
    assert err.decode().count("cannot be written") == 1
    assert b"Traceback" not in err


def test_lines_that_nobody_writes_do_not_pile_up() -> None:
    """The supervisor may be stopped, and a terminal may not read."""
    release, lines = threading.Event(), list[str]()

    class Stuck(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            release.wait(DEADLINE)
            lines.append(record.getMessage())

    logger = logging.Logger("test")
    with written(logger, [Stuck()]):
        (queued,) = logger.handlers
        waiting: queue.SimpleQueue[logging.LogRecord] = queued.queue  # type: ignore[attr-defined]  # it has one
        for n in range(MOST_WAITING + 5_000):
            logger.info("line %d", n)
        assert waiting.qsize() <= MOST_WAITING
        release.set()
        while waiting.qsize():
            pass
        logger.info("the last one")
    assert lines[0] == "line 0"
    assert lines[-1] == "the last one"
    assert "lines were dropped" in lines[-2]
    assert len(lines) <= MOST_WAITING + 3
