"""The files that Octavo creates: their permissions, and a log on a full disk."""

import asyncio
import logging
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest

from service import files, logs
from service.logs import MAX_WAITING_RECORDS, written
from tests.conftest import SECRET, settings_for
from tests.http_client import TIMEOUT
from tests.test_cli import octavo, served
from tests.test_full_disk import files_up_to


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Set the umask."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    """Return the permissions of a file."""
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.alone
@pytest.mark.parametrize("mask", [0o000, 0o022])
async def test_files_of_a_service_are_readable_by_their_owner_only(
    tmp_path: Path, mask: int
) -> None:
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
            async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT) as client:
                assert (await client.get("/api/books")).status_code == 200
            created = [path for path in tmp_path.rglob("*") if path not in {temporary, data}]
            modes = {str(path.relative_to(tmp_path)): mode(path) for path in created}
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
async def test_a_database_that_a_command_creates_is_readable_by_its_owner_only(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    path = tmp_path / "dev.db"
    with umask(0):
        await octavo(tmp_path, *words, DEV_DATABASE_URL=f"sqlite:///{path}")
    assert mode(path) == 0o600


async def test_an_existing_database_and_log_keep_their_permissions(tmp_path: Path) -> None:
    path, log = tmp_path / "dev.db", tmp_path / "app.log"
    for file in (path, log):
        file.touch()
        file.chmod(0o640)
    code, _, err = await octavo(tmp_path, "migrate", DEV_DATABASE_URL=f"sqlite:///{path}")
    assert (code, err) == (0, "")
    assert mode(path) == 0o640
    with umask(0), closing(log_file(tmp_path)) as destination:
        destination.write(["before"])
        destination.doRollover()
        destination.write(["after"])
    assert [mode(log), mode(tmp_path / "app.log.1")] == [0o640, 0o640]


def test_locks_of_a_database_survive_another_connection(tmp_path: Path) -> None:
    """A process that closes a file loses all of its locks on it, also those of SQLite."""
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


def log_file(folder: Path) -> logs.LogFile:
    """Return the destination `app.log` in a folder."""
    settings = settings_for("sqlite:///:memory:", folder, log_dir=folder)
    file = logs.destinations(settings)["app.log"]
    assert isinstance(file, logs.LogFile)
    return file


def test_lines_lost_on_a_full_disk_are_counted_with_1_warning(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """`/dev/full` is a disk without space, also for root."""
    path = tmp_path / "app.log"
    path.symlink_to("/dev/full")
    with closing(log_file(tmp_path)) as file:
        for n in range(5):
            file.write([f"lost {n} {k} " + "x" * 100 for k in range(100)])
        path.unlink()
        path.write_text("half a li", encoding="utf-8")
        for n in range(3):
            file.write([f"kept {n}"])
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert lines[0] == "half a li"
    assert "WARNING: 500 lines before this one could not be written [in " in lines[1]
    assert lines[2:] == ["kept 0", "kept 1", "kept 2"]
    err = capfd.readouterr().err
    assert "Traceback" not in err
    assert err.count("\n") == 1
    assert f"{path} cannot be written (No space left on device)" in err


@pytest.mark.alone
async def test_a_service_whose_log_cannot_be_written_serves(tmp_path: Path) -> None:
    """It starts, serves, warns once, and writes again when the disk has space."""
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
        async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT) as client:
            for _ in range(50):
                assert (await client.get("/api/books/999999")).status_code == 404
            log.unlink()
            async with asyncio.timeout(TIMEOUT):
                while not log.exists() or "could not be written" not in log.read_text("utf-8"):
                    assert (await client.get("/api/books/999999")).status_code == 404
                    await asyncio.sleep(0.1)
        process.terminate()
        _, err = await process.communicate()
    assert process.returncode == 0
    assert err.decode().count("cannot be written") == 1
    assert b"Traceback" not in err


def test_lines_lost_in_a_partial_write_are_counted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A write of many lines ends within a line; the complete lines before it are not lost."""
    path = tmp_path / "app.log"
    lines = [f"line {n:03d}" for n in range(100)]  # 9 bytes each
    with closing(log_file(tmp_path)) as file:
        with files_up_to(9 * 40 + 4):
            file.write(lines[:10])
            file.write(lines[10:])
            file.write(["a further line"])
        file.write(["and then"])
    written = path.read_text(encoding="utf-8").splitlines()
    assert written[:41] == [*lines[:40], "line"]
    assert "61 lines before this one could not be written" in written[41]
    assert written[42:] == ["and then"]
    assert capfd.readouterr().err.count("cannot be written (File too large)") == 1


def test_lines_that_cannot_be_written_are_bounded() -> None:
    """The supervisor may be stopped, and a terminal may not read its input."""
    release, lines = threading.Event(), list[str]()

    class Stuck(logs.Stderr):
        def write(self, lines_: Sequence[str]) -> None:
            release.wait(TIMEOUT)
            lines.extend(lines_)

    logger = logging.Logger("test")
    with written(logger, {"stuck": Stuck(logging.Formatter())}) as thread:
        try:
            for n in range(2 * MAX_WAITING_RECORDS):
                logger.info("line %d", n)
            assert thread.queue.qsize() <= MAX_WAITING_RECORDS
        finally:
            release.set()
        while thread.queue.qsize():
            time.sleep(0.001)
        logger.info("the last line")
    assert lines[0] == "line 0"
    assert lines[-1] == "the last line"
    assert "lines were dropped" in lines[-2]
    assert len(lines) < 2 * MAX_WAITING_RECORDS
