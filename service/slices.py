"""Do CPU work in slices, between which the event loop serves others."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

T = TypeVar("T")

SLICE_SECONDS = 0.002  # of work without a pause


async def in_slices(items: Iterable[T]) -> AsyncIterator[T]:
    """Yield items. Pause for one turn of the event loop whenever SLICE_SECONDS have passed."""
    due = time.perf_counter() + SLICE_SECONDS
    for item in items:
        yield item
        if time.perf_counter() >= due:
            await asyncio.sleep(0)
            due = time.perf_counter() + SLICE_SECONDS
