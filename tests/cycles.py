"""Reference cycles: their objects stay in memory until a garbage collection, which is rare."""

import gc
from collections.abc import Awaitable, Callable
from typing import Any


async def garbage_of(work: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Run once to warm up, then again; return the objects that only a collection frees."""
    await work()
    gc.collect()
    gc.disable()
    try:
        await work()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        return [*gc.garbage]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def type_names(objects: list[Any]) -> set[str]:
    """Return the names of the types of objects."""
    return {type(thing).__name__ for thing in objects}
