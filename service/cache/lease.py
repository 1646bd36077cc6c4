"""The lease on the epoch: permits a process to use the cache for 2 s. Renewed every 0.5 s."""

import asyncio
import logging
import time

from sqlalchemy.exc import SQLAlchemyError

from service.cache.circuit_breaker import FAILURES
from service.cache.state import LEASE_SECONDS, LOOK_SECONDS, RESTED_SECONDS, Epochs, State
from service.cache.store import AnotherStoreError, MemoryStore, Store
from service.timeouts import LoopTimeout, cancel_and_wait

WELL_SECONDS = 5.0  # a store must reply for this time before it is trusted again
PROBE_SECONDS = 0.1
UNREACHABLE = (SQLAlchemyError, OSError)


class SharedCacheError(Exception):
    """Another process serves this database, and the two processes cannot share one cache."""


class EpochLease:
    """Renews the lease: reads the row of the epoch every 0.5 s. Turns the cache on again."""

    def __init__(self, store: Store, epochs: Epochs, logger: logging.Logger) -> None:
        self._store = store
        self._epochs = epochs
        self._logger = logger
        self._alone = isinstance(store, MemoryStore)
        self._state: State | None = None
        self._until = 0.0
        self._was_on = False
        self._well_since: float | None = None
        self._well_id = ""
        self._renewing: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None

    def lease(self) -> State | None:
        """Return the epoch for a read that begins now. None: no lease, or the cache is off."""
        state = self._state
        if state is None or not state.on or time.monotonic() >= self._until:
            return None
        return state

    async def open(self) -> None:
        """Get the first lease, and start the task that renews it. Raises SharedCacheError."""
        try:
            await self._renew()
        except UNREACHABLE as error:
            self._logger.warning("The cache is not available yet: %s", type(error).__name__)
        self._renewing = asyncio.create_task(self._renew_for_ever())

    async def close(self) -> None:
        """Give up the lease, and stop renewing it."""
        self._state = None
        for task in (self._renewing, self._leaving):
            if task is not None:
                await cancel_and_wait(task)

    def leave(self) -> None:
        """Turn the cache off, in a task: another store replies at the configured address."""
        self._state = None
        if self._leaving is None or self._leaving.done():
            self._logger.warning("Another Redis replies, not the one of the cache")
            self._leaving = asyncio.create_task(self._leave())

    async def _leave(self) -> None:
        try:
            await self._epochs.turn_off()
        except UNREACHABLE as error:  # the next renewal checks the store again
            self._logger.warning("The cache could not be turned off: %s", type(error).__name__)

    async def _renew_for_ever(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self._renew()
            except (*UNREACHABLE, SharedCacheError) as error:
                self._logger.debug("The cache lease was not renewed: %s", type(error).__name__)
            except Exception:
                self._logger.exception("The cache lease was not renewed")

    async def _renew(self) -> None:
        begun = time.monotonic()
        if not await self._epochs.hold_serving(alone=self._alone):
            self._state = None
            raise SharedCacheError(
                "another process serves this database, and each would keep a cache of its "
                "own: set REDIS_URL to the same Redis for all of them, or stop the other one"
            )
        state = await self._read()
        if self._alone:
            await self._take_over(state)
        elif state.on:
            await self._check_store(state)
        elif await self._is_well(begun) and state.age >= RESTED_SECONDS:
            await self._recover(state, self._well_id, settled=False)

    async def _check_store(self, state: State) -> None:
        """Turn the cache off if another store replies."""
        try:
            async with LoopTimeout(PROBE_SECONDS):
                if await self._store.identify() != state.run_id:
                    self.leave()
        except AnotherStoreError:
            self.leave()
        except FAILURES:
            pass  # the next read or write will notice

    async def _take_over(self, state: State) -> None:
        """Turn the cache on in this process's own memory, as soon as no other lease is valid."""
        run_id = await self._store.identify()
        if state.on and state.run_id == run_id:
            return
        self._state = None
        if state.on and self._epochs.is_postgresql:
            # The previous process may run on after it lost its lock.
            await self._epochs.begin_epoch()
        elif state.on or state.age >= RESTED_SECONDS:
            # On SQLite the previous process has ended: its file lock ends with it.
            await self._recover(state, run_id, settled=not self._epochs.is_postgresql)

    async def _is_well(self, now: float) -> bool:
        """Whether the same store has replied for WELL_SECONDS."""
        try:
            async with LoopTimeout(PROBE_SECONDS):
                run_id = await self._store.identify()
        except FAILURES:
            self._well_since = None
            return False
        if self._well_since is None or run_id != self._well_id:
            self._well_since, self._well_id = now, run_id
        return now - self._well_since >= WELL_SECONDS

    async def _recover(self, state: State, run_id: str, *, settled: bool) -> None:
        if await self._epochs.recover(state, run_id, settled=settled):
            self._well_since = None
            await self._read()

    async def _read(self) -> State:
        begun = time.monotonic()
        state = await self._epochs.read()
        if state.on != self._was_on:
            self._was_on = state.on
            self._logger.info("The cache is %s, epoch %d", "on" if state.on else "off", state.epoch)
        self._state, self._until = state, begun + LEASE_SECONDS
        return state
