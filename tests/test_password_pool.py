"""Password hashing is bounded: a client that hangs up does not free a thread that still works."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from service.errors import ServiceUnavailableError
from service.security import Passwords, passwords
from tests.conftest import settings_for

THREADS = 2


class SlowHasher:
    """Stands in for argon2: a hash ends when the test allows it."""

    def __init__(self, **_: Any) -> None:
        self.begun = 0
        self.may_end = threading.Event()
        self.may_end.set()

    def hash(self, password: str) -> str:
        """Hash, as slowly as the test wants."""
        self.begun += 1
        assert self.may_end.wait(60)
        return f"hash of {password}"

    def verify(self, password_hash: str, password: str) -> None:
        """Accept every password."""
        self.hash(password)


class Pool:
    """Passwords, whose threads the test holds."""

    def __init__(self, store: Passwords, hasher: SlowHasher) -> None:
        self.store = store
        self.hasher = hasher

    async def occupy(self) -> list["asyncio.Task[str]"]:
        """Begin a hash in every thread, and wait until all of them work."""
        begun = self.hasher.begun
        self.hasher.may_end.clear()
        tasks = [asyncio.create_task(self.store.hash("p")) for _ in range(THREADS)]
        async with asyncio.timeout(30):
            while self.hasher.begun < begun + THREADS:
                await asyncio.sleep(0.01)
        return tasks


@pytest.fixture
async def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pool]:
    """Passwords on THREADS threads."""
    hasher = SlowHasher()
    monkeypatch.setattr(passwords, "PasswordHasher", lambda **_: hasher)
    settings = settings_for("sqlite:///:memory:", tmp_path, password_workers=THREADS)
    store = Passwords(settings)
    await store.open()
    try:
        yield Pool(store, hasher)
    finally:
        hasher.may_end.set()
        await store.close()


async def cancel(tasks: list["asyncio.Task[str]"]) -> None:
    """Cancel the callers of hashes, as clients that hang up do."""
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)


async def test_a_hash_counts_until_its_thread_has_ended(pool: Pool) -> None:
    tasks = await pool.occupy()
    begun = pool.hasher.begun
    await cancel(tasks)
    assert pool.store.pending == THREADS
    for _ in range(5):
        waiting = [asyncio.create_task(pool.store.hash("p")) for _ in range(3)]
        await asyncio.sleep(0.02)
        assert pool.store.pending == THREADS + 3
        await cancel(waiting)
        assert pool.store.pending == THREADS, "a caller that only waited is gone"
    pool.hasher.may_end.set()
    async with asyncio.timeout(30):
        while pool.store.pending:
            await asyncio.sleep(0.01)
    assert pool.hasher.begun == begun, "no hash of a cancelled caller was queued"


async def test_threads_are_free_again_after_cancelled_callers(pool: Pool) -> None:
    await cancel(await pool.occupy())
    pool.hasher.may_end.set()
    tasks = await pool.occupy()  # every thread works again
    pool.hasher.may_end.set()
    assert await asyncio.gather(*tasks) == ["hash of p"] * THREADS
    assert pool.store.pending == 0


async def test_a_hash_that_gets_no_thread_in_time_is_refused(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = await pool.occupy()
    begun = pool.hasher.begun
    monkeypatch.setattr(passwords, "seconds_left", lambda _: 0.05)
    for call in (pool.store.hash("p"), pool.store.verify("p", None)):
        with pytest.raises(ServiceUnavailableError):
            await call
    assert (pool.store.pending, pool.hasher.begun) == (THREADS, begun)
    pool.hasher.may_end.set()
    assert await asyncio.gather(*tasks) == ["hash of p"] * THREADS


async def test_no_password_is_right_for_an_unknown_user(pool: Pool) -> None:
    """The hash of an unknown user is verified as well, so that it takes as long."""
    begun = pool.hasher.begun
    assert await pool.store.verify("p", None) is False
    assert await pool.store.verify("p", "hash of p") is True
    assert pool.hasher.begun == begun + 2
