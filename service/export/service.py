"""Read the whole catalogue in order of id: a page at a time, each page by a statement of its own.

Ids only grow, and no id is used twice. So a book that existed throughout is in the export once. A
book that was created or deleted meanwhile is in it once or not at all. A changed book is as it was
when its page was read.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from sqlalchemy import Row, bindparam, select

from service.admission import current
from service.books.service import BOOKS, COLUMNS, OUTPUT_COLUMNS
from service.db.database import Database
from service.db.list_queries import LIMIT
from service.errors import ServiceUnavailableError
from service.export.formats import Format
from service.http.compression import Coding, StreamCompressor, stream_compressor
from service.http.operations import Stream

Rows = Sequence[Row[Any]]

STREAM_PAGE_SIZE = 500  # books of one statement of a stream, and of one part of its body
SLICE_SIZE = 100  # books that are serialised in one turn of the event loop
MAX_STREAMS = 64  # of a process; each holds a page and a write buffer
MAX_READS = 2  # pages of streams that are made at once; other requests have the rest of the CPU
SELECT_PAGE = (
    select(*OUTPUT_COLUMNS).where(COLUMNS.id > bindparam("after")).order_by(COLUMNS.id).limit(LIMIT)
)


class Uncompressed:
    """A StreamCompressor that changes nothing."""

    def compress(self, data: bytes, /) -> bytes:
        """Return a part unchanged."""
        return data

    def flush(self) -> bytes:
        """Return nothing."""
        return b""


class Exports:
    """The exports of one process. running: the number of streams."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._reads = asyncio.Semaphore(MAX_READS)
        self.running = 0

    async def page(self, after: int, limit: int) -> tuple[list[bytes], int | None]:
        """Return up to `limit` books after an id, as JSON, and the last id if more follow."""
        rows = await self._read(after, limit + 1)
        bodies = [BOOKS.write(row) async for part in _slices(rows[:limit]) for row in part]
        return bodies, rows[limit - 1].id if len(rows) > limit else None

    async def stream(self, after: int, form: Format, coding: Coding | None) -> Stream:
        """Return the stream of all books after an id. It reads the first page at once.

        So an error of the database is known before the response begins. Raises
        ServiceUnavailableError if too many streams are running.
        """
        if self.running >= MAX_STREAMS:
            raise ServiceUnavailableError("Too many exports are running; retry later")
        compressor = Uncompressed() if coding is None else stream_compressor(coding)
        head = compressor.compress(form.head)
        body, last = await self._part(after, form, compressor)
        return self._parts(head + body, last, form, compressor)

    async def _parts(
        self, body: bytes, last: int | None, form: Format, compressor: StreamCompressor
    ) -> Stream:
        self.running += 1
        try:
            _leave_queue()
            yield body
            while last is not None:
                body, last = await self._part(last, form, compressor)
                if body:
                    yield body
            yield compressor.flush()
        finally:
            self.running -= 1

    async def _part(
        self, after: int, form: Format, compressor: StreamCompressor
    ) -> tuple[bytes, int | None]:
        """Return the next page of a stream, compressed, and its last id if more may follow."""
        async with self._reads:
            rows = await self._read(after, STREAM_PAGE_SIZE)
            parts = [compressor.compress(form.write(part)) async for part in _slices(rows)]
        return b"".join(parts), rows[-1].id if len(rows) == STREAM_PAGE_SIZE else None

    async def _read(self, after: int, limit: int) -> Rows:
        """Return the rows of a page. Their connection is free again before they are used."""
        async with self._database.session() as db:
            return (await db.execute(SELECT_PAGE, {"after": after, "limit": limit})).all()


def _leave_queue() -> None:
    """End the turn of the request: a stream lasts for minutes, and mostly waits for its client.

    Without an admission, each wait for a connection has the whole timeout.
    """
    admission = current.get()
    if admission is not None:
        admission.end()
        current.set(None)


async def _slices(rows: Rows) -> AsyncIterator[Rows]:
    """Yield rows in slices, each in another turn of the event loop."""
    for first in range(0, len(rows), SLICE_SIZE):
        yield rows[first : first + SLICE_SIZE]
        await asyncio.sleep(0)
