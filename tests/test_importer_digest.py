"""Digests of records: the same in every release, also in a release that reads more fields."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from service.books.schemas import BookCreate
from service.books.service import book_values
from service.db.database import Database
from service.importer import columns, loader, normalise
from service.importer.importer import open_reading
from service.importer.loader import Loader
from service.importer.normalise import Accepted, validate_record
from service.importer.records import FIELDS, Record
from tests.conftest import fresh_catalogue, settings_for

HEADER = "title,author,isbn,year,genre,price"
BOOKS = ("Dune,Frank Herbert,9780441172719,1965,Fiction,9.99", "Emma,Jane Austen,,1815,,")
FILES = {
    "without": [HEADER, *BOOKS],
    "empty": [f"{HEADER},publisher", *(f"{book}," for book in BOOKS)],
    "full": [f"{HEADER},publisher", *(f"{book},Penguin" for book in BOOKS)],
}
EDITIONS = [FILES["full"][0], *(f"Ulysses,James Joyce,,,,,{name}" for name in ("Egoist", "Bodley"))]


class LaterBook(BookCreate):
    """A book with a further field."""

    publisher: str | None = None


@contextmanager
def later_release() -> Iterator[pytest.MonkeyPatch]:
    """Let the importer read a further field, which books of that release have."""

    def columns_of(owner_id: int | None, book: BookCreate) -> dict[str, Any]:
        values = book_values(owner_id, book)
        del values["publisher"]  # there is no such column here
        return values

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(columns.GUESSES, "publisher", ("publisher",))
        patch.setitem(normalise.MENDERS, "publisher", normalise.MENDERS["title"])
        patch.setattr(normalise, "BookCreate", LaterBook)
        patch.setattr(normalise, "FIELDS", (*FIELDS, "publisher"), raising=False)
        patch.setattr(loader, "book_values", columns_of)
        yield patch


@pytest.fixture(params=["sqlite", "postgresql"])
async def catalogue(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Database]:
    """A migrated database without books, on each backend."""
    async with fresh_catalogue(request.param, request, folder) as database:
        yield database


async def load(
    database: Database, folder: Path, lines: list[str], *, dry_run: bool = False
) -> tuple[int, int]:
    """Import a file. Give the numbers of added books and of known records."""
    path = folder / "books.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    settings = settings_for(database.url.render_as_string(hide_password=False), folder)

    def run() -> tuple[int, int]:
        with (
            open_reading(str(path), "csv", None, {}) as reading,
            Loader(settings, dry_run=dry_run) as target,
        ):
            verdicts = [validate_record(record) for record in reading.records]
            target.put([verdict for verdict in verdicts if isinstance(verdict, Accepted)])
            target.finish()
            return target.added, target.known

    return await asyncio.to_thread(run)


@pytest.mark.parametrize(
    ("fields", "digest"),
    [
        (
            {
                "title": "The Selfish Gene",
                "author": "Richard Dawkins",
                "isbn": "9780192860927",
                "published_year": "1976",
                "genre": "Science",
                "price": "9.95",
            },
            "303c820000be8bd9648c6f33373851aa",
        ),
        ({"title": "Été", "author": "Anna"}, "ba5abc6f5806a3921df5be9b4dd15281"),
        ({"title": "T", "author": "A", "price": 7}, "905d4e2d603c9d9fcb966f00cc727291"),
    ],
)
def test_digests_in_databases_do_not_change(fields: dict[str, Any], digest: str) -> None:
    judged = validate_record(Record(1, None, {name: [value] for name, value in fields.items()}))
    assert isinstance(judged, Accepted)
    assert judged.digests[-1].hex() == digest, (
        "databases hold it: a repeated import would add the book again"
    )


@pytest.mark.parametrize("first", FILES)
async def test_a_release_with_a_further_field_adds_no_book_twice(
    catalogue: Database, tmp_path: Path, first: str
) -> None:
    assert await load(catalogue, tmp_path, FILES[first]) == (2, 0)
    for lines in FILES.values():
        with later_release():
            assert await load(catalogue, tmp_path, lines) == (0, 2)
            assert await load(catalogue, tmp_path, lines, dry_run=True) == (0, 2)


@pytest.mark.parametrize("first", FILES)
async def test_a_book_with_a_further_field_is_known_without_the_field(
    catalogue: Database, tmp_path: Path, first: str
) -> None:
    with later_release():
        assert await load(catalogue, tmp_path, FILES[first]) == (2, 0)
        for lines in FILES.values():
            assert await load(catalogue, tmp_path, lines) == (0, 2)
    for lines in FILES.values():  # as after a rollback to the older release
        assert await load(catalogue, tmp_path, lines) == (0, 2)


async def test_a_new_version_of_the_digest_knows_the_records_of_older_versions(
    catalogue: Database, tmp_path: Path
) -> None:
    assert await load(catalogue, tmp_path, FILES["full"]) == (2, 0)
    with later_release() as patch:
        versions = ((*FIELDS, "publisher"), FIELDS)
        patch.setattr("service.importer.digest.DIGEST_FIELDS", versions)
        for lines in FILES.values():
            assert await load(catalogue, tmp_path, lines, dry_run=True) == (0, 2)
            assert await load(catalogue, tmp_path, lines) == (0, 2)
        assert await load(catalogue, tmp_path, EDITIONS, dry_run=True) == (2, 0)
        assert await load(catalogue, tmp_path, EDITIONS) == (2, 0)
        assert await load(catalogue, tmp_path, EDITIONS) == (0, 2)
