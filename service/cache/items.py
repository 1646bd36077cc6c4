"""Reading rows by their id: each is an entry of its own."""

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
from service.cached_models import cached_model
from service.patience import LoopTimeout

LEASE_SECONDS = 3.0  # of a reader that fills
NONE_SECONDS = 5.0  # of "there is none"
JITTER = 0.1  # part of a life by which entries differ, so that they do not end together

Status = Literal["hit", "miss", "bypass"]


class LoadMany(Protocol):
    """Gives the entries of those ids that there are, in one statement."""

    def __call__(self, db: AsyncSession, ids: Sequence[int]) -> Awaitable[dict[int, Entry]]:
        """Ask SQL."""


@dataclass(frozen=True)
class Kind:
    """Rows that are cached one by one. name: the kind that their model is registered as.

    shape: changes with the form of a body, so that a new release does not take the old one's.
    write: gives the body of a row.
    """

    name: str
    shape: str
    load: LoadMany
    write: Callable[[Any], bytes]

    def __post_init__(self) -> None:
        cached_model(self.name)  # else no write would invalidate its entries

    @cached_property
    def generation_key(self) -> str:
        """The key of the generation of its lists. Raises LookupError if no write would end it."""
        if not cached_model(self.name).lists:
            raise LookupError(f"No write would end lists: say @cached({self.name!r}, lists=True)")
        return generation_key(self.name)

    def key(self, row_id: int) -> str:
        """Name an entry, as writes name it too."""
        return f"{self.name}:{row_id}"

    def own_key(self, row_id: int) -> str:
        """Give the key that stands in the entry itself."""
        return f"{self.shape}:{self.key(row_id)}"


def shape_of(model: type[BaseModel]) -> str:
    """Name the form of a body: another release's may differ."""
    schema = json.dumps(model.model_json_schema(mode="serialization"), sort_keys=True)
    return blake2b(schema.encode(), digest_size=6).hexdigest()


class Prefetch:
    """An entry that was requested before it is needed. reply: None until there is one."""

    __slots__ = ("reply", "state")

    def __init__(self, state: State) -> None:
        self.state = state
        self.reply: Replied | Exception | None = None

    def receive(self, reply: Replied | Exception) -> None:
        """Keep what the store has replied."""
        self.reply = reply


class Items:
    """Reads entries, and fills what is missing under a lease."""

    def __init__(self, access: CacheReader, seconds: float) -> None:
        self._access = access
        self._seconds = seconds

    def prefetch(self, kind: Kind, row_id: int) -> Prefetch | None:
        """Request an entry in this tick, with all else that goes to the store in it."""
        state = self._access.enter() if self._seconds else None
        if state is None:
            return None
        prefetch = Prefetch(state)
        self._access.store.call((state.prefix + kind.key(row_id),), prefetch.receive)
        return prefetch

    async def read(self, kind: Kind, row_id: int, *, past: bool = False) -> tuple[Entry, Status]:
        """Give a row's entry (NONE if there is none), and how it was read. `past`: from SQL."""
        access = self._access
        state = access.enter() if self._seconds and not past else None
        if state is None:
            return await access.row(kind, row_id), access.count("bypass")
        key, own_key = state.prefix + kind.key(row_id), kind.own_key(row_id)
        lease = None
        try:
            async with LoopTimeout(access.patience):
                found = await access.store.get(key)
                entry = read(found, own_key)
                if entry is None and may_be_filled(found):
                    lease = await self._lease(key, found)
        except access.failures as error:
            access.failed(error)
            return await access.row(kind, row_id), access.count("bypass")
        if entry is not None:
            self.hit(kind, row_id, entry)
            return entry, "hit"
        entry = await access.row(kind, row_id)
        if lease is None:
            return entry, access.count("bypass")
        access.later(self._fill(key, entry.write(own_key), bool(entry.body), lease))
        return entry, access.count("miss")

    def take(self, prefetch: Prefetch | None, kind: Kind, row_id: int) -> Entry | None:
        """Give the entry that was prefetched, if it came and may still be used."""
        if prefetch is None:
            return None
        reply, access = prefetch.reply, self._access
        if isinstance(reply, access.failures):
            access.failed(reply)
        if not isinstance(reply, tuple) or not access.is_still(prefetch.state):
            return None
        run_id, (value,) = reply
        if run_id != prefetch.state.run_id:
            return None
        if (entry := read(value, kind.own_key(row_id))) is not None:
            self.hit(kind, row_id, entry)
        return entry

    def hit(self, kind: Kind, row_id: int, entry: Entry) -> None:
        """Count what a read has found, also one that has looked by itself, within an epoch."""
        self._access.count("hit")
        if self._access.is_sampled():
            self._access.later(self._compare(kind, row_id, entry))

    async def read_missing(
        self, kind: Kind, state: State, found: dict[int, bytes | None], patience: LoopTimeout
    ) -> dict[int, Entry]:
        """Load several rows that a list needs, and fill those that can be leased."""
        access = self._access
        ids = sorted(found)
        free = [row_id for row_id in ids if found[row_id] is None] if self._seconds else []
        lease = new_lease()
        leased: list[int] = []
        if free:
            keys = [state.prefix + kind.key(row_id) for row_id in free]
            async with patience:
                got = await access.store.lease(keys, lease, LEASE_SECONDS)
            leased = [row_id for row_id, mine in zip(free, got, strict=True) if mine]
        one_reading = f"{kind.name}:{','.join(map(str, ids))}"
        loaded = await access.sql(one_reading, partial(kind.load, ids=ids))
        values = [
            (
                state.prefix + kind.key(row_id),
                loaded[row_id].write(kind.own_key(row_id)),
                self._life(),
            )
            for row_id in leased
            if row_id in loaded
        ]
        if values:
            access.later(self._fill_many(values, lease))
        return loaded

    async def _lease(self, key: str, found: bytes | None) -> bytes | None:
        lease = new_lease()
        store = self._access.store
        if found is None:
            (mine,) = await store.lease([key], lease, LEASE_SECONDS)
        else:
            mine = await store.replace(key, lease, LEASE_SECONDS, found)
        return lease if mine else None

    async def _fill(self, key: str, value: bytes, is_row: bool, lease: bytes) -> None:
        seconds = self._life() if is_row else NONE_SECONDS
        await self._fill_many([(key, value, seconds)], lease)

    async def _fill_many(self, values: Sequence[tuple[str, bytes, float]], lease: bytes) -> None:
        self._access.counters.fills += await self._access.store.fill(values, lease)

    async def _compare(self, kind: Kind, row_id: int, seen: Entry) -> None:
        """Look whether a hit was true: stale is an entry that stands while the row is newer.

        The row is read before the entry and after it: a row that was missing may come and go.
        """
        if await self._read_row(kind, row_id) == seen or (state := self._access.enter()) is None:
            return
        again = await self._access.store.get(state.prefix + kind.key(row_id))
        is_unchanged = read(again, kind.own_key(row_id)) == seen
        if is_unchanged and await self._read_row(kind, row_id) != seen:
            self._access.stale(kind.key(row_id))

    async def _read_row(self, kind: Kind, row_id: int) -> Entry:
        async with self._access.session() as db:
            return (await kind.load(db, ids=[row_id])).get(row_id, NONE)

    def _life(self) -> float:
        return self._seconds * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311  (no secret)


def may_be_filled(found: bytes | None) -> bool:
    """Whether a reader may fill: nobody else does, and no write is under way.

    What else stands there is another release's.
    """
    return found is None or not found.startswith((LEASE, MARK))
