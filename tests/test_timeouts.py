"""Cancellation of a task, also of a task that swallows it."""

import asyncio

from service.timeouts import cancel_and_wait


async def test_a_swallowed_cancellation_is_repeated() -> None:
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                swallowed += 1
                if swallowed == 2:
                    raise

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        await cancel_and_wait(task)
    assert task.cancelled()


async def test_a_task_that_failed_is_done_and_raises_nothing() -> None:
    async def fail() -> None:
        raise ValueError

    task = asyncio.create_task(fail())
    await cancel_and_wait(task)
    await cancel_and_wait(task)
    assert task.done()
