"""Books into the database, a thousand at a time, while the next thousand is made."""

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
from service.db import Database
from service.db_errors import violated
from service.importer.normalise import Accepted
from service.importer.sources import SourceError
from service.models import Base, Book, BookViews, ImportedRecord, User
from service.usernames import name_key
from service.validation import FORBIDDEN

T = TypeVar("T")

# The tables, not their mappers: those make a statement for each pattern of absent values.
BOOKS, RECORDS, VIEWS = (
    Base.metadata.tables[model.__tablename__] for model in (Book, ImportedRecord, BookViews)
)
OWNER_GONE = {"fk_books_user_id_users", "FOREIGN KEY"}  # SQLite does not say which
BATCH = 1_000  # books of one transaction
LOCK = 0x0C7A_0002  # PostgreSQL's advisory lock of whoever adds a batch
ANALYZED_ROWS = 1_000  # of each index that SQLite looks at for its statistics


async def add_new(db: AsyncSession, batch: Sequence[Accepted], owner_id: int | None) -> int:
    """Add the books whose records are not known yet; give how many.

    Imports take turns, so that two of the same file do not double it.
    """
    postgresql = db.get_bind().dialect.name == "postgresql"
    if postgresql:
        await db.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
    known = await _known(db, batch)
    fresh = {item.digest: item for item in reversed(batch) if known.isdisjoint(item.digests)}
    items = list(reversed(fresh.values()))  # of the same record twice, the first
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


async def _known(db: AsyncSession, batch: Sequence[Accepted]) -> set[bytes]:
    digests = [digest for item in batch for digest in item.digests]
    known = select(ImportedRecord.digest).where(ImportedRecord.digest.in_(digests))
    return set(await db.scalars(known))


async def _insert_books(
    db: AsyncSession, rows: list[dict[str, Any]], postgresql: bool
) -> Sequence[int]:
    """Insert rows and give their ids, in order: on each database in its fastest way."""
    statement = insert(BOOKS)
    if postgresql:
        with_ids = statement.returning(BOOKS.c.id, sort_by_parameter_order=True)
        return (await db.scalars(with_ids, rows)).all()
    await db.execute(statement, rows)
    # Nobody else writes now, and an id is always the highest so far.
    newest = (await db.scalars(select(Book.id).order_by(Book.id.desc()).limit(len(rows)))).all()
    return newest[::-1]


class Loader:
    """Adds batches in a thread of its own: one is written while the next one is made.

    added, known: books so far, and records that were in the catalogue already. Within
    `dry_run` nothing is written, and both say what would be.
    """

    def __init__(
        self, settings: Settings, owner: str | None = None, *, dry_run: bool = False
    ) -> None:
        self.added = self.known = 0
        self._database = Database(settings)
        self._owner = owner
        self._owner_id: int | None = None
        # A temporary database on disk, so that a dry run remembers in bounded memory, too.
        self._seen = sqlite3.connect("", check_same_thread=False) if dry_run else None
        self._pending: Future[tuple[int, int]] | None = None

    def __enter__(self) -> Self:
        """Open the database. Raises SourceError if there is no such owner."""
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
        """Let the batch under way end, then close the database."""
        with suppress(Exception):  # finish() has told of it, or another error is on its way
            self._wait()
        self._close()

    def put(self, batch: list[Accepted]) -> None:
        """Add a batch, once the one before is in."""
        self._wait()
        if batch:
            self._pending = self._run(self._add(batch))

    def load(self, items: Iterable[Accepted]) -> Iterator[int]:
        """Add all items, batch by batch; give after each how many were put so far."""
        made, done = iter(items), 0
        while batch := list(islice(made, BATCH)):
            self.put(batch)
            done += len(batch)
            yield done

    def finish(self) -> None:
        """Wait for the last batch, and let the database look at what it holds now."""
        self._wait()
        if self.added and self._seen is None:
            with suppress(DBAPIError):  # it took too long: the database does it by and by
                self._run(self._database.write(_analyze)).result()

    def _run(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return self._thread.submit(self._runner.run, work)

    def _wait(self) -> None:
        if self._pending is not None:
            try:
                added, known = self._pending.result()  # Ctrl-C ends the waiting, not the batch
            except Exception:
                self._pending = None
                raise
            self._pending = None
            self.added += added
            self.known += known

    async def _open(self) -> None:
        await self._database.open()
        async with self._database.session() as db:
            await db.execute(select(ImportedRecord.book_id).limit(1))  # are there tables?
            if self._owner is not None:
                if FORBIDDEN.search(self._owner):
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
                if violated(error) in OWNER_GONE:
                    raise SourceError(f"The user {self._owner} was deleted meanwhile") from None
                raise
            return added, len(batch) - added
        async with self._database.session() as db:
            known = await _known(db, batch)
        rows = [(item.digest,) for item in batch if known.isdisjoint(item.digests)]
        found = self._seen.executemany("INSERT OR IGNORE INTO seen VALUES (?)", rows)
        return found.rowcount, len(batch) - found.rowcount

    def _close(self) -> None:
        self._run(self._database.close()).result()
        self._thread.submit(self._runner.close).result()
        self._thread.shutdown()
        if self._seen is not None:
            self._seen.close()


async def _analyze(db: AsyncSession) -> None:
    """Renew the statistics that plans are made from."""
    if db.get_bind().dialect.name == "sqlite":
        await db.execute(text(f"PRAGMA analysis_limit = {ANALYZED_ROWS}"))
    await db.execute(text("ANALYZE books"))
