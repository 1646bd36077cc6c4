"""Rings of objects: what they hold waits until cycles are looked for, which is seldom."""

import gc
from collections.abc import Awaitable, Callable
from typing import Any


async def left_by(ask: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Ask once to warm up, then again; give what is left that only a look for cycles finds."""
    await ask()
    gc.collect()
    gc.disable()
    try:
        await ask()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        return [*gc.garbage]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def kinds(left: list[Any]) -> set[str]:
    """Name the types of what is left."""
    return {type(one).__name__ for one in left}
