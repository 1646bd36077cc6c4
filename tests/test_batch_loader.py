"""Rows requested together are read in one statement, and none is older than its request."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from service.cache.batch_loader import MAX_ROWS, BatchLoader


class Table:
    """Rows that a test can delay and change. Each statement sees them as they are at its begin."""

    def __init__(self) -> None:
        self.version = 1
        self.statements: list[list[int]] = []
        self.released = asyncio.Event()
        self.released.set()
        self.error: Exception | None = None

    async def load(self, ids: Sequence[int]) -> Mapping[int, tuple[int, int]]:
        """Read rows; the ids are 1 to 1,000."""
        self.statements.append(list(ids))
        rows = {row_id: (row_id, self.version) for row_id in ids if 1 <= row_id <= 1_000}
        await self.released.wait()
        if self.error is not None:
            raise self.error
        return rows


async def until_begun(table: Table, number: int) -> None:
    """Wait until `number` statements have begun."""
    async with asyncio.timeout(30):
        while len(table.statements) < number:
            await asyncio.sleep(0)


async def turns() -> None:
    """Let the loop run all tasks that are ready."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_requests_of_one_tick_share_a_statement() -> None:
    table = Table()
    loader = BatchLoader(table.load, (0, 0))
    rows = await asyncio.gather(*(loader.read(row_id) for row_id in (1, 2, 7_000, 2)))
    assert rows == [(1, 1), (2, 1), (0, 0), (2, 1)]
    assert table.statements == [[1, 2, 7_000]]


async def test_a_statement_is_bounded() -> None:
    table = Table()
    loader = BatchLoader(table.load, (0, 0))
    ids = range(1, 2 * MAX_ROWS + 2)
    assert await asyncio.gather(*map(loader.read, ids)) == [(row_id, 1) for row_id in ids]
    assert [len(statement) for statement in table.statements] == [MAX_ROWS, MAX_ROWS, 1]


async def test_a_request_during_a_statement_waits_for_the_next_statement() -> None:
    table = Table()
    loader = BatchLoader(table.load, (0, 0))
    table.released.clear()
    try:
        early = asyncio.create_task(loader.read(1))
        await until_begun(table, 1)
        table.version = 2
        late = [asyncio.create_task(loader.read(row_id)) for row_id in (1, 1, 2)]
        await until_begun(table, 2)
        await turns()
        assert table.statements == [[1], [2]], "a row is read once at a time"
    finally:
        table.released.set()
    assert await early == (1, 1)
    assert await asyncio.gather(*late) == [(1, 2), (1, 2), (2, 2)]
    assert table.statements == [[1], [2], [1]]


async def test_all_requests_of_a_statement_get_its_error_and_the_next_succeeds() -> None:
    table = Table()
    loader = BatchLoader(table.load, (0, 0))
    table.error = OSError()
    outcomes = await asyncio.gather(*map(loader.read, (1, 2)), return_exceptions=True)
    assert outcomes == [table.error] * 2
    table.error = None
    assert await loader.read(1) == (1, 1)


async def test_a_cancelled_request_cancels_no_other() -> None:
    table = Table()
    loader = BatchLoader(table.load, (0, 0))
    table.released.clear()
    try:
        tasks = [asyncio.create_task(loader.read(1)) for _ in range(2)]
        await until_begun(table, 1)
        tasks[0].cancel()
        await asyncio.wait({tasks[0]})
        closed = asyncio.create_task(loader.close())
        await turns()
        assert not closed.done()
    finally:
        table.released.set()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    assert await tasks[1] == (1, 1)
    await closed
