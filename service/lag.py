"""How late the event loop is: what every request of a process waits for, whatever it asks."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator

from quart import Quart

from service.config import Settings

TURNS = 10  # of the loop: about as many as the simplest answer takes
PAUSE_SECONDS = 0.02  # between looks
REMEMBERED = 50  # looks: about a second


class Lag:
    """Measures again and again how long some turns of the loop take."""

    def __init__(self) -> None:
        self._seen: deque[float] = deque([0.0, 0.0], maxlen=REMEMBERED)

    async def look_on(self) -> None:
        """Look for ever."""
        while True:
            begun = time.monotonic()
            for _ in range(TURNS):
                await asyncio.sleep(0)
            self._seen.append(time.monotonic() - begun)
            await asyncio.sleep(PAUSE_SECONDS)

    def worst(self) -> float:
        """Give the most of the last second."""
        return max(self._seen)


def init_app(app: Quart, settings: Settings) -> None:
    """Look while serving."""
    lag = app.extensions["lag"] = Lag()

    @app.while_serving
    async def lifespan() -> AsyncGenerator[None, None]:
        looking = asyncio.create_task(lag.look_on())
        yield
        looking.cancel()
