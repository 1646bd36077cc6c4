"""Hash and verify passwords with argon2id, in separate threads."""

import asyncio
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from service.admission import OVERLOADED, current, seconds_left, waiting
from service.config import Settings
from service.errors import ServiceUnavailableError

T = TypeVar("T")


class Passwords:
    """argon2id with 19 MiB, 2 passes, 1 lane (OWASP Password Storage Cheat Sheet), in threads."""

    def __init__(self, settings: Settings) -> None:
        self._hasher = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
        self._threads = settings.password_workers
        self._longest_wait = settings.max_wait_seconds
        self._free = asyncio.Semaphore(self._threads)
        self._pending = 0
        self._pool: ThreadPoolExecutor
        self._dummy_hash: str

    @property
    def pending(self) -> int:
        """The number of hashes that run or wait."""
        return self._pending

    async def open(self) -> None:
        """Start the threads, and make the dummy hash for sign-ins of unknown users."""
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="password")
        self._dummy_hash = await self.hash(secrets.token_hex())

    async def close(self) -> None:
        """Wait for running hashes, and end the threads."""
        await asyncio.to_thread(self._pool.shutdown)

    async def hash(self, password: str) -> str:
        """Hash a password. Raises ServiceUnavailableError if no thread is free in time."""
        return await self._run(lambda: self._hasher.hash(password))

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """Return whether a password is right. `password_hash` is None for an unknown user.

        Then the result is False, and takes as long as for a known user. Raises
        ServiceUnavailableError if no thread is free in time.
        """
        return await self._run(lambda: self._check(password, password_hash))

    def is_outdated(self, password_hash: str) -> bool:
        """Whether a hash was made with other parameters than the current ones."""
        return self._hasher.check_needs_rehash(password_hash)

    def _check(self, password: str, password_hash: str | None) -> bool:
        try:
            self._hasher.verify(password_hash or self._dummy_hash, password)
        except (Argon2Error, InvalidHashError):
            return False
        return password_hash is not None

    async def _run(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread. Raises ServiceUnavailableError if none is free in time.

        The request's turn (admission) is paused meanwhile, so that other requests run.
        """
        admission = current.get()
        with nullcontext() if admission is None else admission.paused():
            self._pending += 1
            try:
                with waiting():
                    async with asyncio.timeout(seconds_left(self._longest_wait)):
                        await self._free.acquire()
            except TimeoutError:
                self._pending -= 1
                raise ServiceUnavailableError(OVERLOADED) from None
            except BaseException:
                self._pending -= 1
                raise
            future = asyncio.get_running_loop().run_in_executor(self._pool, work)
            # `pending` counts it until the thread has finished, even if the client disconnects.
            future.add_done_callback(self._done)
            return await asyncio.shield(future)

    def _done(self, future: "asyncio.Future[Any]") -> None:
        self._pending -= 1
        self._free.release()
