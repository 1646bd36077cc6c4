"""Read lists through the cache: ids and total of one generation, and each row as its own entry."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import blake2b
from typing import Any, Literal, Protocol

from pydantic_core import from_json, to_json
from sqlalchemy.ext.asyncio import AsyncSession

from service.cache.entries import GENERATION, NONE, Entry, read
from service.cache.items import Items, Kind, Status
from service.cache.reader import CacheReader
from service.cache.state import State
from service.errors import ResourceNotFoundError
from service.timeouts import LoopTimeout

Keeping = Literal["generation", "ttl", "none"]


@dataclass(frozen=True, slots=True)
class ListIds:
    """The ids and the total of a list, from the database. None: not requested.

    more: a JSON value that is cached with the ids, such as the position of the next page.
    """

    ids: tuple[int, ...] | None
    total: int | None
    more: Any = None


@dataclass(frozen=True, slots=True)
class ListResult:
    """A list: the encoded rows (`bodies`), the total, and `more` (see ListIds).

    generation: the generation of the list, if it was read through the cache; else empty.
    """

    bodies: Sequence[bytes]
    total: int
    more: Any
    status: Status
    generation: bytes = b""


class Find(Protocol):
    """Reads parts of a list in one snapshot. wanted: whether to read the ids, and the total."""

    def __call__(self, db: AsyncSession, wanted: tuple[bool, bool]) -> Awaitable[ListIds]:
        """Read from the database."""


@dataclass(frozen=True)
class ListQuery:
    """A list of rows, and how to read it.

    conditions: the filters, always in the same order. part: the page and the sort order. Both
    together identify the list.
    counted: whether the total is needed. find: reads the ids and the total.
    read_all: reads the encoded rows, the total, and `more`, in one snapshot.
    """

    kind: Kind
    conditions: Any
    part: Any
    counted: bool
    find: Find
    read_all: Callable[[AsyncSession], Awaitable[tuple[Sequence[bytes], int, Any]]]

    @cached_property
    def page(self) -> str:
        """The name under which the ids are cached."""
        return f"page {self.kind.name} {to_json([self.conditions, self.part]).decode()}"

    @cached_property
    def count(self) -> str:
        """The name under which the total is cached: the same for all pages."""
        return f"count {self.kind.name} {to_json(self.conditions).decode()}"


class _ChangedError(Exception):
    """The list changed while it was being read."""


class Lists:
    """Reads lists. All parts of a result are from the same state of the database.

    keeping: CACHE_PAGES; with `ttl`, ids may be older. page_seconds, seconds: lifetimes of ids and
    of totals.
    """

    def __init__(
        self,
        reader: CacheReader,
        items: Items,
        keeping: Keeping,
        page_seconds: float,
        seconds: float,
    ) -> None:
        self._reader = reader
        self._items = items
        self._keeping = keeping
        self._page_seconds = 0 if keeping == "none" else page_seconds
        self._count_seconds = seconds

    async def read(self, listing: ListQuery, *, bypass: bool = False) -> ListResult:
        """Return a list. `bypass`: read the database."""
        reader = self._reader
        state = None if bypass else reader.enter()
        if state is not None:
            try:
                rows = await self._read(listing, state, LoopTimeout(reader.timeout))
                reader.count(rows.status)
                if rows.status == "hit":
                    self._hit(listing, rows)
                return rows
            except reader.failures as error:
                reader.failed(error)
            except _ChangedError:
                pass
        bodies, total, more = await reader.sql(f"all {listing.page}", listing.read_all)
        return ListResult(bodies, total, more, reader.count("bypass"))

    def hit(self, listing: ListQuery, rows: ListResult, generation: bytes | None) -> bool:
        """Return whether `rows` has the current `generation` of the kind; if so, count a hit."""
        if generation != rows.generation:
            return False
        self._reader.count("hit")
        self._hit(listing, rows)
        return True

    def _hit(self, listing: ListQuery, rows: ListResult) -> None:
        if self._keeping != "ttl" and self._reader.is_sampled():
            self._reader.in_background(self._compare(listing, rows))

    async def _read(
        self, listing: ListQuery, state: State, loop_timeout: LoopTimeout
    ) -> ListResult:
        reader = self._reader
        names = (listing.page, listing.count) if listing.counted else (listing.page,)
        kind = listing.kind
        keys = [state.prefix + key for key in (kind.generation_key, *map(_short, names))]
        async with loop_timeout:
            generation, *values = await reader.store.get_many(keys)
            if generation is None:
                generation = await reader.store.generation(state.prefix, kind.name)
        if not generation.startswith(GENERATION):
            raise _ChangedError  # a write is under way
        page, *counts = (read(value, name) for value, name in zip(values, names, strict=True))
        count = counts[0] if counts else None
        if self._page_seconds == 0 or (
            page and self._keeping == "generation" and page.stamp != generation
        ):
            page = None
        if self._count_seconds == 0 or (count and count.stamp != generation):
            count = None
        status: Status = "hit"
        ids, more = from_json(page.body) if page else ((), None)
        total = int(count.body) if count else 0
        wanted = (page is None, listing.counted and count is None)
        if any(wanted):
            status = "miss"
            fresh = await self._find(listing, generation, keys[1:], wanted)
            if fresh.ids is not None:
                ids, more = fresh.ids, fresh.more
            total = total if fresh.total is None else fresh.total
        bodies, complete = await self._rows(kind, state, generation, ids, loop_timeout)
        status = status if complete else "miss"
        return ListResult(bodies, total, more, status, generation)

    async def _find(
        self, listing: ListQuery, generation: bytes, keys: Sequence[str], wanted: tuple[bool, bool]
    ) -> ListIds:
        """Read from the database, and cache the result with the generation that was read before."""
        reader = self._reader
        find = partial(listing.find, wanted=wanted)
        result: ListIds = await reader.sql(f"{wanted} {listing.page}", find)
        values = []
        if result.ids is not None and self._page_seconds:
            body = to_json([result.ids, result.more])
            entry = Entry(generation, body).write(listing.page)
            values.append((keys[0], entry, float(self._page_seconds)))
        if result.total is not None and self._count_seconds:
            entry = Entry(generation, b"%d" % result.total).write(listing.count)
            values.append((keys[1], entry, float(self._count_seconds)))
        if values:
            reader.in_background(self._keep(values))
        return result

    async def _rows(
        self,
        kind: Kind,
        state: State,
        generation: bytes,
        ids: Sequence[int],
        loop_timeout: LoopTimeout,
    ) -> tuple[list[bytes], bool]:
        """Return the encoded rows, and whether all were in the cache. Raises _ChangedError.

        The generation is read again with the last rows: a row that has changed meanwhile may
        belong to another list now.
        """
        store = self._reader.store
        generation_key = state.prefix + kind.generation_key
        keys = [state.prefix + kind.key(row_id) for row_id in ids]
        async with loop_timeout:
            again, *values = await store.get_many([generation_key, *keys])
        self._check(state, generation, again)
        stored = dict(zip(ids, values, strict=True))
        rows = {row_id: read(value, kind.own_key(row_id)) for row_id, value in stored.items()}
        missing = {row_id: value for row_id, value in stored.items() if rows[row_id] is None}
        if missing:
            rows |= await self._items.read_missing(kind, state, missing, loop_timeout)
            async with loop_timeout:
                self._check(state, generation, await store.get(generation_key))
        bodies = [(rows[row_id] or NONE).body for row_id in ids]
        if not all(bodies):
            raise _ChangedError  # a row is deleted
        return bodies, not missing

    def _check(self, state: State, generation: bytes, again: bytes | None) -> None:
        """Raise _ChangedError if a write may have committed since the generation was read.

        The epoch is compared too: after its end, writes do not change its keys.
        """
        now = self._reader.enter()
        if self._keeping != "ttl" and (
            again != generation or now is None or now.token != state.token
        ):
            raise _ChangedError

    async def _compare(self, listing: ListQuery, seen: ListResult) -> None:
        """Compare a hit with the database: stale if the rows differ and the generation is current.

        The generation is read after the rows: if it is current then, no write ended it before.
        """
        reader = self._reader
        try:
            async with reader.session() as db:
                now = await listing.read_all(db)
        except ResourceNotFoundError:
            now = None  # the list belonged to a row that is deleted
        state = reader.enter()
        if now == (seen.bodies, seen.total, seen.more) or state is None:
            return
        if await reader.store.get(state.prefix + listing.kind.generation_key) == seen.generation:
            reader.stale(listing.page)

    async def _keep(self, values: Sequence[tuple[str, bytes, float]]) -> None:
        self._reader.counters.fills += await self._reader.store.fill(values)


def _short(name: str) -> str:
    return f"list:{blake2b(name.encode(), digest_size=16).hexdigest()}"
