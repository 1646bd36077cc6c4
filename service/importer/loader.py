"""Insert books in batches of a thousand, while the next batch is prepared."""

import asyncio
import sqlite3
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from typing import Any, Self, TypeVar

import uvloop
from sqlalchemy import insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from service.books.service import book_values
from service.config import Settings
from service.db.database import Database
from service.db.errors import violated_constraint
from service.http.parsing import is_unstorable
from service.importer.normalise import Accepted
from service.importer.sources import SourceError
from service.models import Base, Book, BookViews, ImportedRecord, User
from service.security.usernames import name_key

T = TypeVar("T")

# Tables, not mappers: a mapper executes one statement for each combination of absent values.
BOOKS, RECORDS, VIEWS = (
    Base.metadata.tables[model.__tablename__] for model in (Book, ImportedRecord, BookViews)
)
OWNER_GONE = {"fk_books_user_id_users", "FOREIGN KEY"}  # SQLite does not name the constraint
BATCH_SIZE = 1_000  # books per transaction
LOCK = 0x0C7A_0002  # key of PostgreSQL's advisory lock for adding a batch
ANALYZED_ROWS = 1_000  # rows of each index that SQLite reads for its statistics


async def add_new(db: AsyncSession, batch: Sequence[Accepted], owner_id: int | None) -> int:
    """Add the books of records that are not known yet. Return the number of added books.

    On PostgreSQL a lock serialises imports, so that two imports of one file add no duplicates.
    """
    postgresql = db.get_bind().dialect.name == "postgresql"
    if postgresql:
        await db.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
    fresh = {item.digest: item for item in reversed(await _unknown(db, batch))}
    items = list(reversed(fresh.values()))  # only the first of equal records
    if not items:
        return 0
    ids = await _insert_books(db, [book_values(owner_id, item.book) for item in items], postgresql)
    pairs = list(zip(ids, items, strict=True))
    records = [{"book_id": id_, "digest": item.digest} for id_, item in pairs]
    await db.execute(insert(RECORDS), records)
    views = [{"book_id": id_, "views": item.views} for id_, item in pairs if item.views is not None]
    if views:
        await db.execute(insert(VIEWS), views)
    return len(items)


async def _unknown(db: AsyncSession, batch: Sequence[Accepted]) -> list[Accepted]:
    """Return the items that are not in the catalogue.

    An item is known by a digest. If it was exported from this very catalogue, it is also known by
    its id and its time of creation: a book that was not imported has no digest.
    """
    digests = [digest for item in batch for digest in item.digests]
    records = select(ImportedRecord.digest).where(ImportedRecord.digest.in_(digests))
    known = set(await db.scalars(records))
    ids = [item.origin[0] for item in batch if item.origin is not None]
    origins: set[Any] = set()
    if ids:
        rows = await db.execute(select(Book.id, Book.created_at).where(Book.id.in_(ids)))
        origins = {tuple(row) for row in rows}
    return [item for item in batch if known.isdisjoint(item.digests) and item.origin not in origins]


async def _insert_books(
    db: AsyncSession, rows: list[dict[str, Any]], postgresql: bool
) -> Sequence[int]:
    """Insert rows by the fastest method of each database. Return their ids, in order."""
    statement = insert(BOOKS)
    if postgresql:
        with_ids = statement.returning(BOOKS.c.id, sort_by_parameter_order=True)
        return (await db.scalars(with_ids, rows)).all()
    await db.execute(statement, rows)
    # SQLite has one writer at a time, and a new id is always the highest.
    newest = (await db.scalars(select(Book.id).order_by(Book.id.desc()).limit(len(rows)))).all()
    return newest[::-1]


class Loader:
    """Writes batches in a separate thread, while the caller prepares the next batch.

    owner: username of the owner of the books. added: number of books added so far. known: number
    of records that were in the catalogue already. dry_run: write nothing, and only count.
    """

    def __init__(
        self, settings: Settings, owner: str | None = None, *, dry_run: bool = False
    ) -> None:
        self.added = self.known = 0
        self._database = Database(settings)
        self._owner = owner
        self._owner_id: int | None = None
        # A temporary database on disk bounds the memory of a dry run.
        self._seen = sqlite3.connect("", check_same_thread=False) if dry_run else None
        self._pending: Future[tuple[int, int]] | None = None

    def __enter__(self) -> Self:
        """Open the database. Raises SourceError if the owner does not exist."""
        self._thread = ThreadPoolExecutor(1)
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        if self._seen is not None:
            self._seen.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID")
        try:
            self._run(self._open()).result()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        """Wait for the running batch, then close the database."""
        with suppress(Exception):  # finish() has raised it, or another error is propagating
            self._wait()
        self._close()

    def put(self, batch: list[Accepted]) -> None:
        """Wait for the previous batch, raise its error if any, then start to add this batch."""
        self._wait()
        if batch:
            self._pending = self._run(self._add(batch))

    def load(self, items: Iterable[Accepted]) -> Iterator[int]:
        """Add all items in batches. After each `put`, yield the number of items so far."""
        iterator, done = iter(items), 0
        while batch := list(islice(iterator, BATCH_SIZE)):
            self.put(batch)
            done += len(batch)
            yield done

    def finish(self) -> None:
        """Wait for the last batch, then update the statistics of the query planner."""
        self._wait()
        if self.added and self._seen is None:
            with suppress(DBAPIError):  # ANALYZE timed out: the database updates them later
                self._run(self._database.write(_analyze)).result()

    def _run(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return self._thread.submit(self._runner.run, work)

    def _wait(self) -> None:
        if self._pending is not None:
            try:
                added, known = self._pending.result()  # Ctrl-C ends this wait, not the batch
            except Exception:
                self._pending = None
                raise
            self._pending = None
            self.added += added
            self.known += known

    async def _open(self) -> None:
        await self._database.open()
        async with self._database.session() as db:
            await db.execute(select(ImportedRecord.book_id).limit(1))  # fails without tables
            if self._owner is not None:
                if is_unstorable(self._owner):
                    raise SourceError("The owner's name is not text")
                key = name_key(self._owner)
                self._owner_id = await db.scalar(select(User.id).where(User.username_key == key))
                if self._owner_id is None:
                    raise SourceError(f"There is no user {self._owner}")

    async def _add(self, batch: list[Accepted]) -> tuple[int, int]:
        if self._seen is None:
            try:
                added = await self._database.write(lambda db: add_new(db, batch, self._owner_id))
            except IntegrityError as error:
                if violated_constraint(error) in OWNER_GONE:
                    raise SourceError(f"The user {self._owner} was deleted meanwhile") from None
                raise
            return added, len(batch) - added
        async with self._database.session() as db:
            unknown = await _unknown(db, batch)
        rows = [(item.digest,) for item in unknown]
        result = self._seen.executemany("INSERT OR IGNORE INTO seen VALUES (?)", rows)
        return result.rowcount, len(batch) - result.rowcount

    def _close(self) -> None:
        self._run(self._database.close()).result()
        self._thread.submit(self._runner.close).result()
        self._thread.shutdown()
        if self._seen is not None:
            self._seen.close()


async def _analyze(db: AsyncSession) -> None:
    """Update the statistics of the query planner."""
    if db.get_bind().dialect.name == "sqlite":
        await db.execute(text(f"PRAGMA analysis_limit = {ANALYZED_ROWS}"))
    await db.execute(text("ANALYZE books"))
