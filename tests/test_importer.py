"""Imports in real processes, on both databases: whole, stopped, and run again."""

import asyncio
import csv
import gzip
import io
import json
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from service.cli import cli
from service.db import migrations
from service.db.database import Database
from service.importer.interrupt import Interrupt
from service.importer.loader import BATCH_SIZE, Loader
from service.importer.sources import SourceError
from service.models import Book, BookCount, ImportedRecord
from service.sample_data.generated import generated_books
from service.users.service import create_user
from tests.conftest import fresh_catalogue, migrate, settings_for
from tests.test_cli import CLEAN, environment_of, killed, octavo, start

FAULTY = Path(__file__).parent / "data" / "faulty.csv"
ADDED, REFUSED = 5, 7
MANY = 6_000


@pytest.fixture(params=["sqlite", "postgresql"])
async def catalogue(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Database]:
    """A migrated database without books, on each backend."""
    async with fresh_catalogue(request.param, request, folder) as database:
        yield database


def url_of(database: Database) -> dict[str, str]:
    """Give the environment that names a database to the command."""
    return {"DEV_DATABASE_URL": database.url.render_as_string(hide_password=False)}


async def books(database: Database) -> list[Book]:
    """Read the whole catalogue."""
    async with database.session() as db:
        return list(await db.scalars(select(Book).order_by(Book.id)))


async def counts(database: Database) -> tuple[int, int, int]:
    """Count the rows of books and of records, and give the stored number of books."""
    async with database.session() as db:
        rows = await db.scalar(select(func.count()).select_from(Book))
        records = await db.scalar(select(func.count()).select_from(ImportedRecord))
        kept = await db.scalar(select(func.sum(BookCount.n)))
    return int(rows or 0), int(records or 0), int(kept or 0)


def table(rows: int) -> bytes:
    """Make a CSV file of different books."""
    lines = io.StringIO()
    writer = csv.writer(lines)
    writer.writerow(["title", "author", "year", "genre", "price"])
    for n in range(rows):
        writer.writerow([f"Title {n}", f"Author {n % 997}", 1900 + n % 100, "Fiction", n / 100])
    return lines.getvalue().encode()


async def test_a_messy_file_is_repaired_counted_and_imported_once(
    catalogue: Database, tmp_path: Path
) -> None:
    settings = url_of(catalogue)
    words = ("import-books", str(FAULTY), "--rejects", "rejects.jsonl")
    dry_run = await octavo(tmp_path, *words, "--dry-run", **settings)
    assert dry_run[0] == 0
    assert await books(catalogue) == []
    code, out, err = await octavo(tmp_path, *words, **settings)
    assert code == 0, err
    assert dry_run[1].replace("would be added", "added").splitlines()[8:] == out.splitlines()[8:]
    lines = [line.strip() for line in out.splitlines()]
    assert lines[:7] == [
        f"Reading csv from {FAULTY}", "title: title", "author: authors", "isbn: isbn13 or isbn",
        "published_year: original_publication_year", "genre: (no column)", "price: (no column)",
    ]  # fmt: skip
    assert lines[7].startswith("13 records read in ")
    assert lines[8:] == [
        f"{ADDED} books added",
        "1 in the catalogue already",
        f"{REFUSED} refused",
        "2  isbn: String does not match expected pattern: 10 or 13 digits.",
        "1  published_year: Must be greater than or equal to 1000.",
        "1  author: Longer than maximum length 100.",
        "1  author: Missing data for required field.",
        "1  columns do not fit the header",
        "1  title: Missing data for required field.",
        "8 repairs",
        "4  isbn: leading zeros restored",
        "4  published_year: a number's .0 dropped",
        "Refused records are in rejects.jsonl",
    ]
    assert "13 records" in err
    added = {book.title: book for book in await books(catalogue)}
    assert added["The Long Field (Fields, #1)"].isbn == "0439023483"
    assert added["To the River"].published_year == 1960
    assert added["To the River"].author == "Boris Ahl, Cora Lind"
    assert added["Emil's Book"].isbn == "080442957X"
    assert {book.user_id for book in added.values()} == {None}
    rejects = (tmp_path / "rejects.jsonl").read_text(encoding="ascii").splitlines()
    refused = [json.loads(line) for line in rejects]
    assert [line["number"] for line in refused] == [6, 7, 8, 9, 10, 12, 13]
    assert refused[1]["record"]["isbn13"] == "9.78067172365e+12"
    assert refused[5]["record"][6:] == ["Shifted", " by a comma", "eng"]
    assert len(refused) == REFUSED
    again = await octavo(tmp_path, *words, **settings)
    assert f"0 books added\n{ADDED + 1} in the catalogue already" in again[1]
    assert await counts(catalogue) == (ADDED, ADDED, ADDED)


async def test_imported_books_belong_to_the_named_owner(
    catalogue: Database, tmp_path: Path
) -> None:
    user = await catalogue.write(lambda db: create_user(db, "Änne", "a@example.org", "x"))
    words = ("import-books", str(FAULTY), "--owner")
    code, out, err = await octavo(tmp_path, *words, "nobody", **url_of(catalogue))
    assert (code, out, err) == (1, "", "Error: There is no user nobody\n")
    assert (await octavo(tmp_path, *words, "äNNE", **url_of(catalogue)))[0] == 0
    assert {book.user_id for book in await books(catalogue)} == {user.id}

    async def forget(db: AsyncSession) -> None:
        await db.delete(await db.get_one(type(user), user.id))

    await catalogue.write(forget)  # their books go with them, and may come again
    assert await counts(catalogue) == (0, 0, 0)
    assert (await octavo(tmp_path, *words[:2], **url_of(catalogue)))[0] == 0
    assert len(await books(catalogue)) == ADDED


@pytest.mark.no_cover  # a signal that comes as coverage holds its lock would leave it held
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
async def test_an_import_that_was_stopped_can_be_run_again(
    catalogue: Database, tmp_path: Path, number: signal.Signals
) -> None:
    lines = table(MANY)
    (tmp_path / "many.csv").write_bytes(lines)
    process = await start(tmp_path, "import-books", "-", **url_of(catalogue))
    assert process.stdin is not None
    try:
        process.stdin.write(lines[: len(lines) // 2])  # the rest never comes
        await process.stdin.drain()
        async with asyncio.timeout(60):
            while not (await counts(catalogue))[0]:
                await asyncio.sleep(0.01)
        process.send_signal(number)
        out, err = await process.communicate()
    finally:
        await killed(process)
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    rows, records, kept = await counts(catalogue)
    assert 0 < rows < MANY
    assert rows % BATCH_SIZE == 0
    assert rows == records == kept
    if number == signal.SIGINT:
        assert f"{rows} books added" in out.decode()
        assert "Run the same command again" in err.decode()
        assert "Traceback" not in err.decode()
    done = await octavo(tmp_path, "import-books", "many.csv", **url_of(catalogue))
    assert f"{MANY - rows} books added\n{rows} in the catalogue already" in done[1]
    assert await counts(catalogue) == (MANY, MANY, MANY)
    titles = [book.title for book in await books(catalogue)]
    assert titles == [f"Title {n}" for n in range(MANY)]


async def test_two_imports_at_once_add_each_book_once(catalogue: Database, tmp_path: Path) -> None:
    (tmp_path / "books.csv").write_bytes(table(4_000))
    both = await asyncio.gather(
        *(octavo(tmp_path, "import-books", "books.csv", **url_of(catalogue)) for _ in range(2))
    )
    assert [code for code, _, _ in both] == [0, 0], both
    assert await counts(catalogue) == (4_000, 4_000, 4_000)


@pytest.mark.parametrize("packed", [False, True])
async def test_standard_input_is_imported_plain_and_gzipped(tmp_path: Path, packed: bool) -> None:
    settings = {"DEV_DATABASE_URL": f"sqlite:///{tmp_path}/d.db"}
    await migrate(settings["DEV_DATABASE_URL"])
    process = await start(tmp_path, "import-books", "-", "--dry-run", **settings)
    lines = b'{"title": "A", "author": "x"}\n{"title": "B", "author": "x"}\n'
    out, _ = await process.communicate(gzip.compress(lines) if packed else lines)
    assert process.returncode == 0
    assert b"2 books would be added" in out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("import-books", "nowhere.csv"), 2, "does not exist"),
        (("import-books", "."), 2, "is a directory"),
        (("import-books", "b.csv", "--map", "pages=n"), 2, "write FIELD=COLUMN"),
        (("import-books", "b.csv", "--format", "xls"), 2, "is not one of"),
        (("import-books", "b.csv", "--rejects", "b.csv"), 2, "the file to import"),
        (("import-books", "b.csv", "--rejects", "no/r.jsonl"), 1, "Cannot write no/r.jsonl"),
        (("import-books", "b.csv", "--rejects", "/dev/full"), 1, "Cannot write /dev/full"),
        (("import-books", "b.csv", "--map", "title=name"), 1, "no column name for title"),
        (("import-books", "b.csv", "--owner", "\udcff"), 1, "not text"),
        (("import-books", "b.csv", "--encoding", "klingon"), 1, "no encoding klingon"),
        (("import-books", "b.gz"), 1, "gzip data are damaged"),
        (("import-books", "title.csv"), 1, "No column for author"),
        (("import-books", "empty.csv"), 0, ""),
        (("seed-db", "--seed", "1"), 2, "--books"),
        (("seed-db", "--books", "0"), 2, "--books"),
    ],
)
async def test_an_import_that_is_not_possible_is_reported(
    tmp_path: Path, words: tuple[str, ...], code: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"DEV_DATABASE_URL": f"sqlite:///{tmp_path}/d.db"}
    (tmp_path / "b.csv").write_text("title,author\nA,x\n,x\n")
    (tmp_path / "b.gz").write_bytes(gzip.compress(table(100))[:-9])
    (tmp_path / "title.csv").write_text("title\nA\n")
    (tmp_path / "empty.csv").write_text("")
    await asyncio.to_thread(
        migrations.upgrade, settings_for(settings["DEV_DATABASE_URL"], tmp_path).database
    )
    before = (tmp_path / "b.csv").read_bytes()
    monkeypatch.chdir(tmp_path)
    done = await asyncio.to_thread(CliRunner().invoke, cli, words, env=settings)
    assert (done.exit_code, message in done.stderr) == (code, True), done.output
    assert isinstance(done.exception, SystemExit | None)
    assert (tmp_path / "b.csv").read_bytes() == before


# A process inherits the peak of its parent, so a small process starts the command.
MEASURED = """
import resource, subprocess, sys
subprocess.run([sys.executable, "-m", "service", *sys.argv[1:]], check=True, capture_output=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


async def peak_memory(cwd: Path, *words: str, **environment: str) -> int:
    """Run a command to its end, and give its peak memory in KiB."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", MEASURED, *words,
        cwd=cwd, env=environment_of(environment), stdout=PIPE,
    )  # fmt: skip
    try:
        out, _ = await process.communicate()
    finally:
        await killed(process)
    assert process.returncode == 0
    return int(out)


@pytest.mark.no_cover  # coverage needs memory of its own
async def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A file of ten times as many books takes no more memory, in a dry run and in a real one."""
    peaks: dict[tuple[str, int], int] = {}
    for rows in (3_000, 30_000):
        (tmp_path / "books.csv").write_bytes(table(rows))
        settings = {"DEV_DATABASE_URL": f"sqlite:///{tmp_path}/{rows}.db"}
        await migrate(settings["DEV_DATABASE_URL"])
        for mode in ("--dry-run", "--rejects=r.jsonl"):
            words = ("import-books", "books.csv", mode)
            peaks[mode, rows] = await peak_memory(tmp_path, *words, **settings)
    for mode in ("--dry-run", "--rejects=r.jsonl"):
        grown = peaks[mode, 30_000] - peaks[mode, 3_000]
        assert grown < 8_000, peaks  # 27,000 more books as objects would take 20,000 KiB


async def test_generated_books_depend_on_the_seed_alone(
    catalogue: Database, tmp_path: Path
) -> None:
    settings = url_of(catalogue)
    words = ("seed-db", "--books", "1500", "--seed", "7")
    code, out, err = await octavo(tmp_path, *words, **settings)
    assert (code, out) == (
        0, "1500 books added, 0 there already, with seed 7\nDatabase seeded\n",
    ), err  # fmt: skip
    assert "1,500 records" in err
    again = await octavo(tmp_path, *words[:2], "1600", "--seed", "7", **settings)
    assert again[1].startswith("100 books added, 1500 there already")
    names = ("title", "author", "isbn", "published_year", "genre", "price")
    made = [tuple(getattr(item.book, name) for name in names) for item in generated_books(1600, 7)]
    added = await books(catalogue)
    assert [tuple(getattr(book, name) for name in names) for book in added] == made
    async with catalogue.session() as db:
        views = await db.execute(text("SELECT views FROM book_views ORDER BY book_id"))
        assert [row[0] for row in views] == [item.views for item in generated_books(1600, 7)]


async def test_an_import_ends_if_its_owner_is_deleted_meanwhile(
    catalogue: Database, folder: Path
) -> None:
    user = await catalogue.write(lambda db: create_user(db, "owner", "o@example.org", "x"))
    settings = settings_for(catalogue.url.render_as_string(hide_password=False), folder)

    def load() -> None:
        with Loader(settings, "owner") as loader:
            made = list(generated_books(10, 1))
            loader.put(made[:5])
            loader.finish()
            asyncio.run_coroutine_threadsafe(catalogue.write(forget), loop).result()
            loader.put(made[5:])
            loader.finish()

    async def forget(db: AsyncSession) -> None:
        await db.delete(await db.get_one(type(user), user.id))

    loop = asyncio.get_running_loop()
    with pytest.raises(SourceError, match="The user owner was deleted meanwhile"):
        await asyncio.to_thread(load)
    assert await counts(catalogue) == (0, 0, 0)


async def test_rejects_are_never_written_over_the_file_to_import(tmp_path: Path) -> None:
    """Each run writes a new file of rejects. A run refuses a file that is its own input."""
    settings = {"DEV_DATABASE_URL": f"sqlite:///{tmp_path}/d.db"}
    await migrate(settings["DEV_DATABASE_URL"])
    words = ("import-books", "-", "--rejects", "r.jsonl")
    for _ in range(2):
        done = await octavo(tmp_path, *words, stdin="title,author\n,x\n", **settings)
        assert done[0] == 0, done
    kept = (tmp_path / "r.jsonl").read_bytes()
    with (tmp_path / "r.jsonl").open("rb") as same:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "service", *words,
            cwd=tmp_path, env=CLEAN | settings, stdin=same, stderr=PIPE,
        )  # fmt: skip
        try:
            _, err = await process.communicate()
        finally:
            await killed(process)
    assert process.returncode == 2
    assert b"the file to import" in err
    assert (tmp_path / "r.jsonl").read_bytes() == kept


def test_an_interrupt_is_raised_between_records_and_at_checks() -> None:
    def source() -> Iterator[int]:
        yield 1
        signal.raise_signal(signal.SIGINT)
        yield 2  # pragma: no cover - the wait was interrupted

    before = signal.getsignal(signal.SIGINT)
    with Interrupt() as interrupt:
        items = interrupt.items(source())
        assert next(items) == 1
        with pytest.raises(KeyboardInterrupt):
            next(items)
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)  # as while a lock is acquired
        with pytest.raises(KeyboardInterrupt):
            interrupt.check()
        with pytest.raises(KeyboardInterrupt):
            next(interrupt.items([1]))
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_lost_in_a_destructor_is_raised_again() -> None:
    class Swallows:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def source() -> Iterator[int]:
        Swallows()
        yield 1
        yield 2

    with Interrupt() as interrupt:
        items = interrupt.items(source())
        assert next(items) == 1
        with pytest.raises(KeyboardInterrupt):
            next(items)
