"""Seeded interleavings of the real cache, and defects that they must find.

A failing seed is printed: `run(seed)` does the same again. `make soak` runs 10,000.
"""

import asyncio
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from service.cache import Entry, Found, Kind, Listing, entries, epochs, items, lists, store, writes
from service.cache.entries import LEASE
from service.cache.items import Items
from service.cache.store import MemoryStore
from service.cache.touched import touched
from service.group_commit import UNDER_WAY
from tests.simulation import Row, Session, VirtualLoop, Worker, World, virtual_time

pytestmark = pytest.mark.no_cover  # what it runs, others cover, and it is far faster without

SEEDS = 10_000 if os.environ.get("SOAK") else 200
MOST_SEEDS = 600  # until a defect has to be found
WORKERS, CLIENTS = 3, 3
GONE = 1 << 30  # the version of a row that was deleted: ids are never used twice


@dataclass
class History:
    """What clients saw, and whether it can be true."""

    world: World
    acknowledged: list[tuple[float, int]] = field(default_factory=list)
    seen: dict[int, list[tuple[float, int]]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    hits: int = 0
    reads: int = 0

    def wrote(self, index: int) -> None:
        """Note that a write, which made a state, was answered now."""
        self.acknowledged.append((self.world.loop.now, index))

    def read(self, start: float, what: str, look: Any, answer: Any) -> None:
        """Check an answer: it must have been true at some moment since the last that is known."""
        self.reads += 1
        least = max((index for end, index in self.acknowledged if end < start), default=0)
        if not any(look(state) == answer for state in self.world.commits[least:]):
            self.violations.append(f"{start:.4f} {what}: {answer}, now {look(self.world.rows)}")

    def saw(self, start: float, row_id: int, row: Row | None) -> None:
        """Check that no reader goes back behind another one."""
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
        self._history, self._think = history, think
        self._chance = history.world.chance

    async def run(self, until: float) -> None:
        """Ask one thing after another."""
        loop = asyncio.get_running_loop()
        while loop.time() < until:
            await asyncio.sleep(self._chance.expovariate(1 / self._think))
            worker = self._places[self._place]
            ways = (self.item, self.shelf, self.write, self.write_twice, self.create_several)
            do = self._chance.choices(ways, (80, 60, 10, 10, 1))[0]
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
        self._history.hits += status == "hit"
        self._history.read(start, f"book {row_id} {status}", lambda rows: rows.get(row_id), row)
        self._history.saw(start, row_id, row)

    async def shelf(self, worker: Worker) -> None:
        start = asyncio.get_running_loop().time()
        name = self._chance.choice("AB")
        rows = await worker.cache.lists.read(shelf(name))
        answer = dict(read_row(body) for body in rows.bodies)
        self._history.hits += rows.status == "hit"

        def look(state: dict[int, Row]) -> Any:
            there = {i: row for i, row in state.items() if row.shelf == name}
            return there, len(there)

        self._history.read(start, f"shelf {name} {rows.status}", look, (answer, rows.total))
        for row_id, row in answer.items():
            self._history.saw(start, row_id, row)

    async def write_twice(self, worker: Worker) -> None:
        await asyncio.gather(self.write(worker), self.write(worker))

    async def create_several(self, worker: Worker) -> None:
        await asyncio.gather(*(self.create(worker) for _ in range(UNDER_WAY + 3)))

    async def create(self, worker: Worker) -> None:
        world = self._history.world
        row_id = world.next_id
        world.next_id += 1
        given = row_id, self._chance.choice("AB")
        self._history.wrote((await worker.database.write_together(create, given)).index)

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

        await worker.database.write(work)
        if isinstance(sessions[-1], Session) and sessions[-1].changes:
            self._history.wrote(sessions[-1].index)


async def nemesis(world: World, places: list[Worker], horizon: float) -> None:
    """Hurt the store, the wires and the workers."""
    chance, dump = world.chance, dict[str, bytes]()
    while True:
        await asyncio.sleep(chance.random() * horizon / 3)
        place = chance.randrange(WORKERS)
        match chance.choice(("dump", "restart", "down", "cut", "slow", "kill", "stale")):
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
            case "kill":
                places[place].kill()
                await asyncio.sleep(chance.random())
                places[place] = Worker(world)
                await places[place].start()


async def history_of(chance: random.Random, loop: VirtualLoop) -> History:
    """Let clients and the nemesis at it, and give what was seen."""
    world = World(chance, loop)
    history = History(world)
    places = [Worker(world) for _ in range(WORKERS)]
    for worker in places:
        await worker.start()
    horizon = chance.choice((0.5, 0.5, 1.0, 1.0, 1.0, 30.0))
    hurting = (
        asyncio.create_task(nemesis(world, places, horizon)) if chance.random() < 0.7 else None
    )
    clients = [
        Client(places, place, history, horizon / 60)
        for place in range(WORKERS)
        for _ in range(CLIENTS)
    ]
    await asyncio.gather(*(client.run(horizon) for client in clients))
    if hurting is not None:
        assert not hurting.done() or not hurting.exception()
    if any(worker.cache.counters.stale for worker in world.workers):
        history.violations.append("a sample was stale")
    world.row.close()
    return history


def run(seed: int) -> History:
    """Run one history."""
    random.seed(seed)
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(history_of(random.Random(seed), loop))
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
    reads = hits = 0
    for seed in range(SEEDS):
        history = run(seed)
        assert not history.violations, f"seed {seed}: {history.violations}"
        reads, hits = reads + history.reads, hits + history.hits
    print(f"{SEEDS} seeds, {reads} reads, {hits} of them hits, 0 violations")
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
    ],
)
def test_a_defect_is_found(monkeypatch: pytest.MonkeyPatch, defect: Any) -> None:
    virtual_time(monkeypatch)
    defect(monkeypatch)
    seed = next((seed for seed in range(MOST_SEEDS) if run(seed).violations), None)
    assert seed is not None
    print(f"found by seed {seed}")
