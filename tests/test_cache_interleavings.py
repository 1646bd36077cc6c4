"""Seeded interleavings of the real cache, and defects that they must find.

A failing seed is printed: `run(seed)` does the same again. `make soak` runs 10,000.
"""

import asyncio
import os
import random
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from typing import Any

import pytest

from service.cache import (
    FAILURES,
    GEN,
    Entry,
    Found,
    Kind,
    Listing,
    entries,
    epochs,
    items,
    lists,
    store,
    writes,
)
from service.cache.entries import LEASE
from service.cache.items import Items
from service.cache.store import MemoryStore
from service.cache.touched import touched
from service.group_commit import UNDER_WAY
from service.patience import Patience
from tests.simulation import Row, Session, VirtualLoop, Weather, Worker, World, virtual_time

pytestmark = pytest.mark.no_cover  # what it runs, others cover, and it is far faster without

SEEDS = 10_000 if os.environ.get("SOAK") else 200
MOST_SEEDS = 600  # until a defect has to be found
WORKERS, CLIENTS = 3, 3
GONE = 1 << 30  # the version of a row that was deleted: ids are never used twice


@dataclass
class Write:
    """A write of some rows, from when it began to its answer, if there is one."""

    rows: set[int]
    start: float
    end: float = inf


@dataclass
class History:
    """What clients saw, and whether it can be true.

    Every answer shows what was so at one moment since the last write that was answered, and no
    reader goes back behind another one. Where keys vanished during a write, its rows are unsure
    until it answers: a reader may see each of them as it was or as it is, whatever others saw.
    """

    world: World
    writes: list[Write] = field(default_factory=list)
    acknowledged: list[tuple[float, int, set[int]]] = field(default_factory=list)
    seen: dict[int, list[tuple[float, int]]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    hits: int = 0
    reads: int = 0

    def begin(self, rows: Iterable[int]) -> Write:
        """Note that a write begins now."""
        write = Write(set(rows), self.world.loop.now)
        self.writes.append(write)
        return write

    def wrote(self, write: Write, index: int) -> None:
        """Note that a write, which made a state, was answered now."""
        write.end = self.world.loop.now
        self.acknowledged.append((write.end, index, write.rows))

    def read(self, start: float, row_id: int, status: str, row: Row | None) -> None:
        """Check a row that was read."""
        self._hit(status)
        if row not in self._versions(start, row_id, self.unsure(start)):
            self._violated(start, f"book {row_id} {status}: {row}")
        self.saw(start, row_id, row)

    def read_shelf(
        self, start: float, name: str, status: str, rows: dict[int, Row], total: int
    ) -> None:
        """Check a list: its parts may be of several moments while any row is unsure."""
        self._hit(status)
        states, unsure = self.world.commits, self.unsure(start)
        if not unsure:
            seen = (
                {row_id: row for row_id, row in state.items() if row.shelf == name}
                for state in states[self._least(start) :]
            )
            is_right = total == len(rows) and rows in seen
        else:
            versions = {i: self._versions(start, i, unsure) for i in set().union(*states)}
            is_on = {i: {row is not None and row.shelf == name for row in known}
                     for i, known in versions.items()}  # fmt: skip
            is_right = (
                all((row_id in rows) in where for row_id, where in is_on.items())
                and all(row in versions[row_id] for row_id, row in rows.items())
                and sum(map(all, is_on.values())) <= total <= sum(map(any, is_on.values()))
            )
        if not is_right:
            self._violated(start, f"shelf {name} {status}: {rows}, {total}")
        for row_id, row in rows.items():
            self.saw(start, row_id, row)

    def _hit(self, status: str) -> None:
        self.reads += 1
        self.hits += status == "hit"

    def _violated(self, start: float, what: str) -> None:
        self.violations.append(f"{start:.4f} {what}, now {self.world.rows}")

    def _least(self, start: float, row_id: int | None = None) -> int:
        """Give the last state that was answered when a read began, by a write of a row."""
        return max(
            (index for end, index, rows in self.acknowledged
             if end < start and (row_id is None or row_id in rows)),
            default=0,
        )  # fmt: skip

    def _versions(self, start: float, row_id: int, unsure: set[int]) -> list[Row | None]:
        """Give what a row may be seen as."""
        least = self._least(start, row_id if row_id in unsure else None)
        return [state.get(row_id) for state in self.world.commits[least:]]

    def unsure(self, start: float) -> set[int]:
        """Name the rows of the writes that had no answer when a read began, and lost keys."""
        now = self.world.loop.now
        return {
            row_id
            for write in self.writes
            if write.start <= now and start <= write.end
            and any(write.start <= lost <= min(write.end, now) for lost in self.world.losses)
            for row_id in write.rows
        }  # fmt: skip

    def saw(self, start: float, row_id: int, row: Row | None) -> None:
        """Check that no reader goes back behind another one."""
        if row_id in self.unsure(start):
            return
        ever = any(row_id in state for state in self.world.commits)
        version = row.version if row else GONE if ever and row_id not in self.world.rows else 0
        known = self.seen.setdefault(row_id, [])
        newest = max((version for end, version in known if end < start), default=0)
        if version < newest:
            self.violations.append(f"{start:.4f} book {row_id}: {version} after {newest}")
        known.append((self.world.loop.now, version))


def write_row(row_id: int, row: Row) -> bytes:
    """Give the body of a row."""
    return f"{row_id}:{row.version}:{row.shelf}".encode()


def read_row(body: bytes) -> tuple[int, Row]:
    """Read the body of a row."""
    row_id, version, shelf = body.decode().split(":")
    return int(row_id), Row(int(version), shelf)


async def load(db: Any, ids: Any) -> dict[int, Entry]:
    """Give the entries of rows."""
    found: dict[int, Entry] = await db.read(
        lambda rows: {
            i: Entry(b"%d" % rows[i].version, write_row(i, rows[i])) for i in ids if i in rows
        }
    )
    return found


BOOKS = Kind("book", "1", load, lambda row: row)


def shelf(name: str) -> Listing:
    """List the rows of a shelf."""

    def on(rows: dict[int, Row]) -> list[int]:
        return sorted(i for i, row in rows.items() if row.shelf == name)

    async def find(db: Any, wanted: tuple[bool, bool]) -> Found:
        ids = await db.read(lambda rows: on(rows))
        return Found(tuple(ids) if wanted[0] else None, len(ids) if wanted[1] else None)

    async def read_all(db: Any) -> Any:
        return await db.read(
            lambda rows: ([write_row(i, rows[i]) for i in on(rows)], len(on(rows)), None)
        )

    return Listing(BOOKS, {"shelf": name}, [], counted=True, find=find, read_all=read_all)


async def create(db: Any, given: Sequence[tuple[int, str]], apart: bool) -> list[Session]:
    """Add rows, all in one transaction."""
    assert not apart, "none of them can be refused"
    for row_id, name in given:
        db.changes[row_id] = Row(1, name)
        touched(db).keys.add(BOOKS.key(row_id))
    return [db] * len(given)


class Client:
    """Reads and writes through one place of a worker, whoever works there."""

    def __init__(self, places: list[Worker], place: int, history: History, think: float) -> None:
        self._places, self._place = places, place
        writes = history.world.weather.writes
        self._weights = (80, 60, writes / 2, writes / 2, writes / 20)
        self._history, self._think = history, think
        self._chance = history.world.chance

    async def run(self, until: float) -> None:
        """Ask one thing after another."""
        loop = asyncio.get_running_loop()
        while loop.time() < until:
            await asyncio.sleep(self._chance.expovariate(1 / self._think))
            worker = self._places[self._place]
            ways = (self.item, self.shelf, self.write, self.write_twice, self.create_several)
            do = self._chance.choices(ways, self._weights)[0]
            asking = asyncio.create_task(do(worker))
            await asyncio.wait({asking}, timeout=15)
            asking.cancel()
            await asyncio.wait({asking})
            if not asking.cancelled() and not isinstance(
                asking.exception(), TimeoutError | OSError | type(None)
            ):
                await asking  # no answer is an error but that the database is away

    async def item(self, worker: Worker) -> None:
        start = asyncio.get_running_loop().time()
        row_id = self._chance.randrange(1, self._history.world.next_id + 1)
        items, entry, status = worker.cache.items, None, "hit"
        if self._chance.random() < 0.3:
            prefetch = items.prefetch(BOOKS, row_id)
            await self._history.world.delay(0.02)  # it is let in meanwhile
            entry = items.take(prefetch, BOOKS, row_id)
        if entry is None:
            entry, status = await items.read(BOOKS, row_id)
        row = read_row(entry.body)[1] if entry.body else None
        self._history.read(start, row_id, status, row)

    async def shelf(self, worker: Worker) -> None:
        start = asyncio.get_running_loop().time()
        name = self._chance.choice("AB")
        rows = await worker.cache.lists.read(shelf(name))
        answer = dict(read_row(body) for body in rows.bodies)
        self._history.read_shelf(start, name, rows.status, answer, rows.total)

    async def write_twice(self, worker: Worker) -> None:
        await asyncio.gather(self.write(worker), self.write(worker))

    async def create_several(self, worker: Worker) -> None:
        await asyncio.gather(*(self.create(worker) for _ in range(UNDER_WAY + 3)))

    async def create(self, worker: Worker) -> None:
        world = self._history.world
        row_id = world.next_id
        world.next_id += 1
        given = row_id, self._chance.choice("AB")
        write = self._history.begin([row_id])
        self._history.wrote(write, (await worker.database.write_together(create, given)).index)

    async def write(self, worker: Worker) -> None:
        world, sessions = self._history.world, []
        new = self._chance.random() < 0.2
        row_id = world.next_id if new else self._chance.randrange(1, world.next_id)
        world.next_id += new
        deletes = not new and self._chance.random() < 0.1
        moves = self._chance.choice("AB")

        async def work(db: Any) -> None:
            sessions.append(db)
            row = await db.lock(row_id)
            if row is None and not new:
                return
            db.changes[row_id] = None if deletes else Row(row.version + 1 if row else 1, moves)
            touched(db).keys.add(BOOKS.key(row_id))

        write = self._history.begin([row_id])
        await worker.database.write(work)
        if isinstance(sessions[-1], Session) and sessions[-1].changes:
            self._history.wrote(write, sessions[-1].index)


async def nemesis(world: World, places: list[Worker], horizon: float) -> None:
    """Hurt the store, the wires and the workers."""
    chance, dump = world.chance, dict[str, bytes]()
    while True:
        await asyncio.sleep(chance.random() * horizon / 3)
        place = chance.randrange(WORKERS)
        faults = ("dump", "restart", "down", "cut", "slow", "kill", "stale", "forget", "forget")
        match chance.choice(faults):
            case "dump":
                dump = dict(world.server.aio._cache)
            case "restart":
                await world.restart({})
            case "stale":
                await world.restart(dump)
            case "down":
                world.is_up = False
                await asyncio.sleep(chance.random() * 3)
                world.is_up = True
            case "cut":
                places[place].wire.cut = True
                await asyncio.sleep(chance.random() * 3)
                places[place].wire.cut = False
            case "slow":
                world.slow = chance.choice((0.05, 0.2))
                await asyncio.sleep(chance.random() * 2)
                world.slow = 0.0
            case "forget":
                world.forgetting = chance.choice((0.005, 0.02, 0.1))
                await asyncio.sleep(chance.random() * horizon / 2)
                world.forgetting = 0.0
            case "kill":
                places[place].kill()
                await asyncio.sleep(chance.random())
                places[place] = Worker(world)
                await places[place].start()


async def history_of(chance: random.Random, loop: VirtualLoop, weather: Weather) -> History:
    """Let clients and the nemesis at it, and give what was seen."""
    world = World(chance, loop, weather)
    history = History(world)
    places = [Worker(world) for _ in range(WORKERS)]
    for worker in places:
        await worker.start()
    horizon = chance.choice((0.5, 0.5, 1.0, 1.0, 1.0, 30.0))
    hurting = asyncio.create_task(nemesis(world, places, horizon)) if weather.faults else None
    clients = [
        Client(places, place, history, horizon / 60)
        for place in range(WORKERS)
        for _ in range(CLIENTS)
    ]
    await asyncio.gather(*(client.run(horizon) for client in clients))
    if hurting is not None:
        assert not hurting.done() or not hurting.exception()
    if not world.losses and any(worker.cache.counters.stale for worker in world.workers):
        history.violations.append("a sample was stale")
    world.row.close()
    return history


def run(seed: int, weather: Weather | None = None) -> History:
    """Run one history, in some weather."""
    random.seed(seed)
    chance = random.Random(seed)
    weather = weather or Weather.some(chance)
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(history_of(chance, loop, weather))
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop._selector.select = lambda timeout=None: []
        for _ in range(20):
            loop.run_until_complete(asyncio.sleep(0))
        loop.close()


@pytest.mark.timeout(3_600 if SEEDS > 1_000 else 240)
def test_every_interleaving_is_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    virtual_time(monkeypatch)
    reads = hits = losses = 0
    for seed in range(SEEDS):
        history = run(seed)
        assert not history.violations, f"seed {seed}: {history.violations}"
        reads, hits = reads + history.reads, hits + history.hits
        losses += len(history.world.losses)
    print(f"{SEEDS} seeds, {reads} reads, {hits} of them hits; keys vanished {losses} times")
    assert losses > SEEDS
    assert hits > reads / 6, "a cache that is never asked is never stale"


class _Any(bytes):
    """Equal to everything."""

    __hash__ = bytes.__hash__

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


def without_token(patch: pytest.MonkeyPatch) -> None:
    """Fill whatever stands there now."""

    async def fill(self: Items, key: str, value: bytes, is_row: bool, lease: bytes) -> None:
        await self._access.store.fill([(key, value, 300.0)])

    async def fill_many(self: Items, values: Any, lease: bytes) -> None:
        await self._access.store.fill(values)

    patch.setattr(Items, "_fill", fill)
    patch.setattr(Items, "_fill_many", fill_many)


def without_mark(patch: pytest.MonkeyPatch) -> None:
    """Commit without a mark; what is kept is deleted afterwards."""

    async def mark(self: Any, state: Any, changed: Any) -> Any:
        return writes.Mark(state.prefix, tuple(sorted(changed.keys)), "none", changed.lists)

    patch.setattr(writes.Writes, "_mark", mark)


def without_wait(patch: pytest.MonkeyPatch) -> None:
    """Do not wait until leases on the epoch before have ended."""
    patch.setattr(writes, "SETTLED_SECONDS", -1_000.0)
    patch.setattr(epochs, "SETTLED_SECONDS", -1_000.0)


def without_run_id(patch: pytest.MonkeyPatch) -> None:
    """Take whoever answers for the store."""
    patch.setattr(store, "run_of", lambda key: _Any())


def without_way_round(patch: pytest.MonkeyPatch) -> None:
    """Fill where a write is under way."""
    patch.setattr(items, "may_be_filled", lambda found: not (found or b"").startswith(LEASE))


def without_generation(patch: pytest.MonkeyPatch) -> None:
    """Take a list of any generation."""

    def read(found: bytes | None, key: str) -> Entry | None:
        entry = entries.read(found, key)
        return entry and Entry(_Any(entry.stamp), entry.body)

    patch.setattr(lists, "read", read)


def without_writers(patch: pytest.MonkeyPatch) -> None:
    """Let the first of several writers that ends begin a new generation."""
    unmark = MemoryStore.unmark

    async def alone(self: MemoryStore, *values: Any) -> None:
        for other in self._writers.keys() - {values[2]}:
            del self._writers[other]
        await unmark(self, *values)

    patch.setattr(MemoryStore, "unmark", alone)


def without_new_generation(patch: pytest.MonkeyPatch) -> None:
    """Begin a generation only where the own mark was found."""
    unmark = MemoryStore.unmark

    async def mine(self: MemoryStore, prefix: str, keys: Any, token: str, lists: bool) -> None:
        is_there = token in self._writers
        before = await self.get(prefix + GEN)
        await unmark(self, prefix, keys, token, lists)
        if lists and not is_there and not self._writers and before is not None:
            await self.aio.set(prefix + GEN, before, ttl=30.0)

    patch.setattr(MemoryStore, "unmark", mine)


def without_confirmation(patch: pytest.MonkeyPatch) -> None:
    """Answer a write although nobody knows that its marks were cleared."""

    async def after_commit(self: writes.Writes, mark: writes.Mark | None) -> None:
        if mark is not None and self._store is not None:
            with suppress(*FAILURES):
                async with Patience(self._patience):
                    await self._store.unmark(mark.prefix, mark.keys, mark.token, mark.lists)

    patch.setattr(writes.Writes, "after_commit", after_commit)


FORGETFUL = Weather(False, 0.003, 0.001, 0.5, 0.0, 5)
LATE = Weather(False, 0.0, 0.001, 0.0, 0.1, 20)
WEATHERS = {  # in which what was left out matters more often; else any
    without_writers: LATE,
    without_new_generation: FORGETFUL,
    without_confirmation: FORGETFUL,
}


@pytest.mark.parametrize(
    "defect",
    [
        without_token,
        without_mark,
        without_wait,
        without_run_id,
        without_way_round,
        without_generation,
        without_writers,
        without_new_generation,
        without_confirmation,
    ],
)
def test_a_defect_is_found(monkeypatch: pytest.MonkeyPatch, defect: Any) -> None:
    virtual_time(monkeypatch)
    defect(monkeypatch)
    weather = WEATHERS.get(defect)
    seed = next((seed for seed in range(MOST_SEEDS) if run(seed, weather).violations), None)
    assert seed is not None
    print(f"found by seed {seed}")
