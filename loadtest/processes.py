"""Programs that a run starts. Each has a session of its own: Ctrl-C is ours to hand on."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

ENDING_SECONDS = 40


class StartError(Exception):
    """Something did not start, or failed. The message says what, and where to look."""


@asynccontextmanager
async def started(
    *words: str,
    environment: Mapping[str, str],
    out: IO[bytes] | int | None = None,
    err: IO[bytes] | None = None,
    cwd: Path | None = None,
) -> AsyncIterator[Process]:
    """Run a Python module, and end it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *words,
        stdout=out, stderr=err, env=environment, cwd=cwd, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), ENDING_SECONDS)
            except TimeoutError:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()


async def done(*words: str, environment: Mapping[str, str], cwd: Path) -> str:
    """Run a Python module to its end: what it said. Its progress is shown. Raises StartError."""
    async with started(*words, environment=environment, out=PIPE, cwd=cwd) as process:
        said, _ = await process.communicate()
    if process.returncode:
        raise StartError(f"{' '.join(words)} ended with {process.returncode}")
    return said.decode()
