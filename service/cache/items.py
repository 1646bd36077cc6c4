"""Read rows by id through the cache. Each row is one entry."""

import json
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import blake2b
from typing import Any, Literal, Protocol

from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession

from service.cache.entries import LEASE, MARK, NONE, Entry, generation_key, new_lease, read
from service.cache.reader import CacheReader
from service.cache.state import State
from service.cache.store import Replied
from service.models.cached import cached_model
from service.timeouts import LoopTimeout

LEASE_SECONDS = 3.0  # lifetime of the lease of a reader that fills an entry
NONE_SECONDS = 5.0  # lifetime of an entry for a row that does not exist
JITTER = 0.1  # fraction by which lifetimes vary, so that entries expire at different times

Status = Literal["hit", "miss", "bypass"]


class LoadMany(Protocol):
    """Loads the entries of the ids that exist, in one statement."""

    def __call__(self, db: AsyncSession, ids: Sequence[int]) -> Awaitable[dict[int, Entry]]:
        """Load the entries from the database."""


@dataclass(frozen=True)
class Kind:
    """A kind of cached rows. name: the `kind` with which `@cached` registered their model.

    shape: a digest of the body's format, so that a new release does not use old entries.
    load: reads entries from the database. write: encodes the body of a row.
    """

    name: str
    shape: str
    load: LoadMany
    write: Callable[[Any], bytes]

    def __post_init__(self) -> None:
        cached_model(self.name)  # else no write would invalidate its entries

    @cached_property
    def generation_key(self) -> str:
        """The key of the generation of its lists. Raises LookupError if it has no cached lists."""
        if not cached_model(self.name).lists:
            raise LookupError(f"No write would end lists: say @cached({self.name!r}, lists=True)")
        return generation_key(self.name)

    def key(self, row_id: int) -> str:
        """Return the key of an entry, without the prefix. Writes mark the same key."""
        return f"{self.name}:{row_id}"

    def own_key(self, row_id: int) -> str:
        """Return the key that the entry itself contains; a reader compares it."""
        return f"{self.shape}:{self.key(row_id)}"


def shape_of(model: type[BaseModel]) -> str:
    """Return a digest of the format of a body: releases may use different formats."""
    schema = json.dumps(model.model_json_schema(mode="serialization"), sort_keys=True)
    return blake2b(schema.encode(), digest_size=6).hexdigest()


class Prefetch:
    """A request for an entry, sent before the entry is needed. reply: None until it arrives."""

    __slots__ = ("reply", "state")

    def __init__(self, state: State) -> None:
        self.state = state
        self.reply: Replied | Exception | None = None

    def receive(self, reply: Replied | Exception) -> None:
        """Keep the reply of the store."""
        self.reply = reply


class Items:
    """Reads entries, and fills missing entries under a lease."""

    def __init__(self, reader: CacheReader, seconds: float) -> None:
        self._reader = reader
        self._seconds = seconds

    def prefetch(self, kind: Kind, row_id: int) -> Prefetch | None:
        """Request an entry. Requests of one tick are one write. None: bypass."""
        state = self._reader.enter() if self._seconds else None
        if state is None:
            return None
        prefetch = Prefetch(state)
        self._reader.store.call((state.prefix + kind.key(row_id),), prefetch.receive)
        return prefetch

    async def read(self, kind: Kind, row_id: int, *, bypass: bool = False) -> tuple[Entry, Status]:
        """Return a row's entry (NONE: no such row) and the status. `bypass`: read the database."""
        reader = self._reader
        state = reader.enter() if self._seconds and not bypass else None
        if state is None:
            return await reader.row(kind, row_id), reader.count("bypass")
        key, own_key = state.prefix + kind.key(row_id), kind.own_key(row_id)
        lease = None
        try:
            async with LoopTimeout(reader.timeout):
                value = await reader.store.get(key)
                entry = read(value, own_key)
                if entry is None and may_be_filled(value):
                    lease = await self._lease(key, value)
        except reader.failures as error:
            reader.failed(error)
            return await reader.row(kind, row_id), reader.count("bypass")
        if entry is not None:
            self.hit(kind, row_id, entry)
            return entry, "hit"
        entry = await reader.row(kind, row_id)
        if lease is None:
            return entry, reader.count("bypass")
        reader.in_background(self._fill(key, entry.write(own_key), bool(entry.body), lease))
        return entry, reader.count("miss")

    def take(self, prefetch: Prefetch | None, kind: Kind, row_id: int) -> Entry | None:
        """Return the prefetched entry if it has arrived and is still valid, else None."""
        if prefetch is None:
            return None
        reply, reader = prefetch.reply, self._reader
        if isinstance(reply, reader.failures):
            reader.failed(reply)
        if not isinstance(reply, tuple) or not reader.is_still(prefetch.state):
            return None
        run_id, (value,) = reply
        if run_id != prefetch.state.run_id:
            return None
        if (entry := read(value, kind.own_key(row_id))) is not None:
            self.hit(kind, row_id, entry)
        return entry

    def hit(self, kind: Kind, row_id: int, entry: Entry) -> None:
        """Count a hit (callers may have read the store directly), and compare a sample with SQL."""
        self._reader.count("hit")
        if self._reader.is_sampled():
            self._reader.in_background(self._compare(kind, row_id, entry))

    async def read_many(
        self, kind: Kind, ids: Sequence[int], *, bypass: bool = False
    ) -> tuple[dict[int, Entry], Status]:
        """Return the entries of the rows that exist, by id, and the status.

        ids: different ids. The status is `hit` if the cache had all rows. Each entry is as new as
        the result of `read`; together they need not be from one moment. `bypass`: read the
        database.
        """
        reader, number = self._reader, len(ids)
        state = reader.enter() if self._seconds and not bypass else None
        if state is None:
            return await self._load(kind, ids), reader.count("bypass", number)
        loop_timeout, lease = LoopTimeout(reader.timeout), new_lease()
        leased: list[int] = []
        try:
            async with loop_timeout:
                values = await reader.store.get_many([state.prefix + kind.key(n) for n in ids])
            stored = dict(zip(ids, values, strict=True))
            entries = {n: read(value, kind.own_key(n)) for n, value in stored.items()}
            missing = {n: value for n, value in stored.items() if entries[n] is None}
            if missing:
                leased = await self._lease_many(kind, state, missing, lease, loop_timeout)
        except reader.failures as error:
            reader.failed(error)
            return await self._load(kind, ids), reader.count("bypass", number)
        hits = {n: entry for n, entry in entries.items() if entry is not None}
        if hits:
            reader.count("hit", len(hits))
            if reader.is_sampled():
                sample = random.choice([*hits])  # noqa: S311  (no secret)
                reader.in_background(self._compare(kind, sample, hits[sample]))
        rows = {n: entry for n, entry in hits.items() if entry.body}
        if not missing:
            return rows, "hit"
        rows |= await self._load_leased(kind, state, [*missing], leased, lease)
        return rows, reader.count("miss", len(missing))

    async def read_missing(
        self, kind: Kind, state: State, stored: dict[int, bytes | None], loop_timeout: LoopTimeout
    ) -> dict[int, Entry]:
        """Load the rows of `stored` (id -> content of the key), and fill those that get a lease."""
        lease = new_lease()
        leased = await self._lease_many(kind, state, stored, lease, loop_timeout)
        return await self._load_leased(kind, state, sorted(stored), leased, lease)

    async def _lease_many(
        self,
        kind: Kind,
        state: State,
        stored: dict[int, bytes | None],
        lease: bytes,
        loop_timeout: LoopTimeout,
    ) -> list[int]:
        """Lease the entries that the store does not have. Return their ids."""
        free = [row_id for row_id, value in stored.items() if value is None]
        if not free or not self._seconds:
            return []
        keys = [state.prefix + kind.key(row_id) for row_id in free]
        async with loop_timeout:
            results = await self._reader.store.lease(keys, lease, LEASE_SECONDS)
        return [row_id for row_id, is_leased in zip(free, results, strict=True) if is_leased]

    async def _load_leased(
        self, kind: Kind, state: State, ids: Sequence[int], leased: Sequence[int], lease: bytes
    ) -> dict[int, Entry]:
        """Load rows, and fill the leased entries. An absent row has an entry, too."""
        loaded = await self._load(kind, ids)
        values = [
            (
                state.prefix + kind.key(row_id),
                loaded.get(row_id, NONE).write(kind.own_key(row_id)),
                self._life() if row_id in loaded else NONE_SECONDS,
            )
            for row_id in leased
        ]
        if values:
            self._reader.in_background(self._fill_many(values, lease))
        return loaded

    async def _load(self, kind: Kind, ids: Sequence[int]) -> dict[int, Entry]:
        name = f"{kind.name}:{','.join(map(str, ids))}"
        return await self._reader.sql(name, partial(kind.load, ids=ids))

    async def _lease(self, key: str, value: bytes | None) -> bytes | None:
        lease = new_lease()
        store = self._reader.store
        if value is None:
            (is_leased,) = await store.lease([key], lease, LEASE_SECONDS)
        else:
            is_leased = await store.replace(key, lease, LEASE_SECONDS, value)
        return lease if is_leased else None

    async def _fill(self, key: str, value: bytes, is_row: bool, lease: bytes) -> None:
        seconds = self._life() if is_row else NONE_SECONDS
        await self._fill_many([(key, value, seconds)], lease)

    async def _fill_many(self, values: Sequence[tuple[str, bytes, float]], lease: bytes) -> None:
        self._reader.counters.fills += await self._reader.store.fill(values, lease)

    async def _compare(self, kind: Kind, row_id: int, seen: Entry) -> None:
        """Compare a hit with the database: an entry is stale if it is stored while the row differs.

        The row is read before and after the entry: it may be added and deleted in between.
        """
        if await self._read_row(kind, row_id) == seen or (state := self._reader.enter()) is None:
            return
        again = await self._reader.store.get(state.prefix + kind.key(row_id))
        is_unchanged = read(again, kind.own_key(row_id)) == seen
        if is_unchanged and await self._read_row(kind, row_id) != seen:
            self._reader.stale(kind.key(row_id))

    async def _read_row(self, kind: Kind, row_id: int) -> Entry:
        async with self._reader.session() as db:
            return (await kind.load(db, ids=[row_id])).get(row_id, NONE)

    def _life(self) -> float:
        return self._seconds * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311  (no secret)


def may_be_filled(value: bytes | None) -> bool:
    """Whether a reader may fill the entry: the content is neither a lease nor a mark.

    A value that could not be decoded comes from another release, and may be replaced.
    """
    return value is None or not value.startswith((LEASE, MARK))
