"""Invalidation: a write marks the keys of its changes before it commits, and clears them after.

    change -> read the row of the epoch -> mark the changes -> commit -> clear the marks

If marking fails, the write is rolled back, the cache is turned off for all processes, and the write
begins again.
"""

import time
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from service.cache.change_tracking import Changes, changes_of
from service.cache.circuit_breaker import FAILURES
from service.cache.counters import Counters
from service.cache.state import SETTLED_SECONDS, Epochs, State, hold_off_recovery, read_within
from service.cache.store import Store
from service.errors import ServiceUnavailableError
from service.ids import random_id
from service.timeouts import LoopTimeout

MARK_TIMEOUT_FACTOR = 1.5  # timeout for marks, as a multiple of the timeout of a read
CLEARINGS = 3  # attempts: the first may meet a broken connection or a busy Redis
COMMIT_SECONDS = 10.0  # from BEGIN to COMMIT; much shorter than the lifetime of a mark
RETRY_WRITE_SECONDS = 12.0  # from the first attempt of a write to its last


class RetryWrite(Exception):  # noqa: N818  (not an error)
    """The write must be rolled back and begin again.

    turn_off: whether the cache must be turned off first.
    """

    def __init__(self, *, turn_off: bool) -> None:
        super().__init__()
        self.turn_off = turn_off


@dataclass(frozen=True, slots=True)
class Mark:
    """The marks of a write: the keys of rows, and the kinds whose lists change (`lists`)."""

    prefix: str
    keys: tuple[str, ...]
    token: str
    lists: tuple[str, ...]


class Invalidation:
    """Sets marks in the store that readers use. Without a store, a write turns the cache off."""

    def __init__(
        self, store: Store | None, epochs: Epochs, counters: Counters, timeout: float = 0.1
    ) -> None:
        self._store = store
        self._epochs = epochs
        self._counters = counters
        self._timeout = MARK_TIMEOUT_FACTOR * timeout

    async def before_commit(self, db: AsyncSession, begun: float) -> Mark | None:
        """Mark the changes of a write. `begun`: when the write began (monotonic clock).

        Raises RetryWrite; ServiceUnavailableError if the write has taken too long.
        """
        if db.new or db.dirty or db.deleted:
            await db.flush()
        changed = changes_of(db)
        mark = None
        if changed:
            state = changed.state or await read_within(db)
            if not state.on:
                await hold_off_recovery(db)
                state = await read_within(db)
            if state.age <= SETTLED_SECONDS:
                raise RetryWrite(turn_off=False)
            if state.on:
                mark = await self._mark(state, changed)
        if time.monotonic() - begun > COMMIT_SECONDS:
            raise ServiceUnavailableError("The write took too long")
        return mark

    async def after_commit(self, mark: Mark | None) -> None:
        """Clear the marks before the response to the write; if that fails, turn the cache off.

        The store may have lost the marks before the commit, and readers may have stored old values
        since then. Only a confirmed clearing proves that these are deleted. Raises
        ServiceUnavailableError, SQLAlchemyError or OSError if the cache cannot be turned off.
        """
        if mark is None or self._store is None:
            return
        for _ in range(CLEARINGS):
            try:
                async with LoopTimeout(self._timeout):
                    await self._store.unmark(mark.prefix, mark.keys, mark.token, mark.lists)
            except FAILURES:
                continue
            return
        await self._wait_until_off(turn_off=True)

    async def wait_to_retry(self, retry: RetryWrite, since: float) -> None:
        """Wait until a write may begin again. Raises ServiceUnavailableError after 12 s.

        since: when the first attempt began (monotonic clock).
        """
        if time.monotonic() - since > RETRY_WRITE_SECONDS:
            raise ServiceUnavailableError("The write could not be marked in the cache")
        await self._wait_until_off(turn_off=retry.turn_off)

    async def _wait_until_off(self, *, turn_off: bool) -> None:
        try:
            if not turn_off:
                return await self._epochs.settle()
            await self._epochs.turn_off()
            if self._store is None:  # more such writes may follow
                await self._epochs.hold_off()
        except TimeoutError:
            raise ServiceUnavailableError("The cache could not be turned off") from None

    async def _mark(self, state: State, changed: Changes) -> Mark:
        store = self._store
        if store is None or changed.many:
            raise RetryWrite(turn_off=True)
        keys, lists = tuple(sorted(changed.keys)), tuple(sorted(changed.lists))
        mark = Mark(state.prefix, keys, random_id(), lists)
        try:
            async with LoopTimeout(self._timeout):
                await store.mark(mark.prefix, mark.keys, mark.token, mark.lists)
        except FAILURES:
            raise RetryWrite(turn_off=True) from None
        self._counters.marks += 1
        return mark
