"""Count the views of books in memory, and write them to the database in batches."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from functools import cached_property, partial
from typing import Any

from quart import Quart

from service.config import Settings
from service.db.database import Database
from service.db.errors import is_unavailable
from service.http.context import context_of
from service.http.operations import COUNTS_VIEWS
from service.views.service import add_views

WRITE_SECONDS = 0.9  # between two writes; kill -9 loses the views since the last one
RETRY_SECONDS = 5.0  # after an error: a write to a read-only server drops all connections
BATCH_SIZE = 2_000  # books of a statement, which holds SQLite's only write lock
MAX_BOOKS = 100_000  # whose views are in memory while the database is unavailable


class ViewCounter:
    """Counts the views of books. written, lost: numbers of views since the process began.

    If the outcome of a commit is unknown, its views are written again, and may count twice.
    """

    def __init__(self, app: Quart) -> None:
        self._app = app
        self._database: Database = app.extensions["database"]
        self._pending: dict[int, int] = {}  # numbers of views by the id of the book
        self._turn = asyncio.Lock()
        self._has_failed = False
        self.written = self.lost = 0

    @cached_property
    def _rules(self) -> frozenset[str]:
        """The URL rules of the routes that declare `counts_views`."""
        views = self._app.view_functions
        rules = self._app.url_map.iter_rules()
        return frozenset(rule.rule for rule in rules if hasattr(views[rule.endpoint], COUNTS_VIEWS))

    def observe(self, scope: Any, status: int, seconds: float) -> None:
        """Count a view if the request is a GET that responded with a book, or with 304."""
        if status != 200 and status != 304:
            return
        if context_of(scope).route in self._rules and scope["method"] == "GET":
            self._add(int(scope["path"].rpartition("/")[2]), 1)

    def _add(self, book_id: int, number: int) -> None:
        pending = self._pending
        if book_id in pending:
            pending[book_id] += number
        elif len(pending) < MAX_BOOKS:
            pending[book_id] = number
        else:
            self.lost += number

    async def write(self) -> None:
        """Write the views that were counted before this call. If that fails, they are kept.

        Raises the errors of the database.
        """
        async with self._turn:
            counted, self._pending = self._pending, {}
            try:
                while counted:
                    await self._write_batch(counted)
            finally:
                if counted:
                    newer, self._pending = self._pending, counted
                    for book_id, number in newer.items():
                        self._add(book_id, number)

    async def _write_batch(self, counted: dict[int, int]) -> None:
        """Move a batch of views from `counted` to the database."""
        batch = dict(counted.popitem() for _ in range(min(BATCH_SIZE, len(counted))))
        try:
            await self._database.write(partial(add_views, views=batch))
        except BaseException:
            counted.update(batch)
            raise
        self.written += sum(batch.values())

    async def run(self, stop: asyncio.Event) -> None:
        """Write every WRITE_SECONDS until `stop` is set, and then the rest."""
        while not stop.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(RETRY_SECONDS if self._has_failed else WRITE_SECONDS):
                    await stop.wait()
            await self._try_write()
        await self._try_write()  # views that were counted during the write before
        if self._pending:
            number = sum(self._pending.values())
            self.lost += number
            self._app.logger.warning("%d views of books are lost: no database", number)

    async def _try_write(self) -> None:
        """Write. Log an error, once until the next success."""
        try:
            await self.write()
        except Exception as error:
            if not self._has_failed:
                self._app.logger.warning(
                    "Views of books are kept in memory: %s",
                    type(error).__name__,
                    exc_info=not is_unavailable(error),
                )
            self._has_failed = True
        else:
            self._has_failed = False


def init_app(app: Quart, settings: Settings) -> None:
    """Count the views while the application serves. Install this after the database."""
    counter = app.extensions["view_counter"] = ViewCounter(app)
    app.extensions.setdefault("observers", []).append(counter.observe)

    @app.while_serving
    async def lifespan() -> AsyncGenerator[None, None]:
        stop = asyncio.Event()
        writing = asyncio.create_task(counter.run(stop))
        yield
        stop.set()
        await writing  # the database closes after this
