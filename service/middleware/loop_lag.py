"""Measure the lag of the event loop, which delays every request of a process."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator

from quart import Quart

from service.config import Settings

TURNS = 10  # iterations of the loop in a measurement, about as many as the simplest response needs
PAUSE_SECONDS = 0.02  # between measurements
REMEMBERED = 50  # measurements, about one second of them


class LoopLag:
    """Repeatedly measures the duration of TURNS iterations of the event loop, in seconds."""

    def __init__(self) -> None:
        self._seen: deque[float] = deque([0.0, 0.0], maxlen=REMEMBERED)

    async def observe(self) -> None:
        """Measure until cancelled."""
        while True:
            begun = time.monotonic()
            for _ in range(TURNS):
                await asyncio.sleep(0)
            self._seen.append(time.monotonic() - begun)
            await asyncio.sleep(PAUSE_SECONDS)

    def worst(self) -> float:
        """Return the highest lag of the last second, in seconds."""
        return max(self._seen)


def init_app(app: Quart, settings: Settings) -> None:
    """Measure the lag while the application serves."""
    lag = app.extensions["loop_lag"] = LoopLag()

    @app.while_serving
    async def lifespan() -> AsyncGenerator[None, None]:
        looking = asyncio.create_task(lag.observe())
        yield
        looking.cancel()
