"""Starts and stops processes. Each has its own session: Ctrl-C reaches only this process."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

STOP_SECONDS = 40


class StartError(Exception):
    """A process did not start, or failed. The message names the process and its log."""


@asynccontextmanager
async def started(
    *arguments: str,
    environment: Mapping[str, str],
    out: IO[bytes] | int | None = None,
    err: IO[bytes] | None = None,
    cwd: Path | None = None,
) -> AsyncIterator[Process]:
    """Run a Python module, and stop it at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *arguments,
        stdout=out, stderr=err, env=environment, cwd=cwd, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_SECONDS)
            except TimeoutError:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()


async def run_module(*arguments: str, environment: Mapping[str, str], cwd: Path) -> str:
    """Run a Python module to its end; return its stdout. Its stderr is shown. Raises StartError."""
    async with started(*arguments, environment=environment, out=PIPE, cwd=cwd) as process:
        output, _ = await process.communicate()
    if process.returncode:
        raise StartError(f"{' '.join(arguments)} exited with code {process.returncode}")
    return output.decode()
