"""Batch loading: one statement reads all rows requested in one tick."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Generic, TypeVar

Row = TypeVar("Row")
Load = Callable[[Sequence[int]], Awaitable[Mapping[int, Row]]]

MAX_ROWS = 100  # maximum number of rows of one statement


class BatchLoader(Generic[Row]):
    """Loads the rows of one kind by their ids.

    No result is older than its request: a request that arrives while its row is being read waits
    for that statement, and gets the row from the next one. At most one statement at a time reads
    the same row. missing: the result for a row that does not exist.
    """

    def __init__(self, load: Load[Row], missing: Row) -> None:
        self._load = load
        self._missing = missing
        self._pending: dict[int, asyncio.Future[Row]] = {}
        self._running: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def read(self, row_id: int) -> Row:
        """Return a row, or `missing`. Raises the error of the statement."""
        future = self._pending.get(row_id)
        if future is None:
            loop = asyncio.get_running_loop()
            future = self._pending[row_id] = loop.create_future()
            future.add_done_callback(_retrieve)
            loop.call_soon(self._start)
        return await asyncio.shield(future)

    def _start(self) -> None:
        """Start statements for the pending rows, except rows that are being read."""
        while ids := [row_id for row_id in self._pending if row_id not in self._running][:MAX_ROWS]:
            batch = {row_id: self._pending.pop(row_id) for row_id in ids}
            self._running.update(batch)
            task = asyncio.create_task(self._run(batch))
            self._tasks.add(task)
            task.add_done_callback(partial(self._ended, batch))

    async def _run(self, batch: Mapping[int, asyncio.Future[Row]]) -> None:
        rows = await self._load(list(batch))
        for row_id, future in batch.items():
            if not future.done():
                future.set_result(rows.get(row_id, self._missing))

    def _ended(self, batch: Mapping[int, asyncio.Future[Row]], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._running.difference_update(batch)
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        for future in batch.values():
            if error is not None and not future.done():
                future.set_exception(error)
        self._start()

    async def close(self) -> None:
        """Wait until every requested row has been read."""
        while self._tasks or self._pending:
            await asyncio.wait(self._tasks) if self._tasks else await asyncio.sleep(0)


def _retrieve(future: asyncio.Future[Row]) -> None:
    """Retrieve the error, so that asyncio does not log it if no caller waits."""
    if not future.cancelled():
        future.exception()
