"""Waiting, and not waiting any more."""

import asyncio

from service.timeouts import cancel_and_wait


async def test_a_cancellation_that_a_library_took_is_said_again() -> None:
    taken = 0

    async def stubborn() -> None:
        nonlocal taken
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                taken += 1
                if taken == 2:
                    raise

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await cancel_and_wait(task)
    assert task.cancelled()


async def test_what_failed_meanwhile_is_over() -> None:
    async def fail() -> None:
        raise ValueError

    task = asyncio.create_task(fail())
    await cancel_and_wait(task)
    await cancel_and_wait(task)
    assert task.done()
