"""Measure the lag of the event loop, which delays every request of a process."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator

from quart import Quart

from service.config import Settings

MEASURED_TICKS = 10  # ticks in a measurement, about as many as the simplest response needs
PAUSE_SECONDS = 0.02  # between measurements
WINDOW_SIZE = 50  # measurements, about one second of them


class LoopLag:
    """Repeatedly measures the duration of MEASURED_TICKS ticks, in seconds."""

    def __init__(self) -> None:
        self._seen: deque[float] = deque([0.0, 0.0], maxlen=WINDOW_SIZE)

    async def observe(self) -> None:
        """Measure until cancelled."""
        while True:
            begun = time.monotonic()
            for _ in range(MEASURED_TICKS):
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
